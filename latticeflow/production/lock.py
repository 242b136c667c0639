"""One job at a time writes to a run folder: `RUN/.lock`.

Rank 0 makes the file, which must not be there yet, and removes it at the end. It says who: host, process id and that
process's start, boot and process-id namespace (containers count from 1, too), a token, the command, the time.

A lock that is found is

- alive or gone at once, where it is of this host, boot and namespace: its process runs, or it does not;
- else (another host, another container, a file that cannot be read) watched for `WAIT` seconds. Its owner touches it every
  `BEAT` seconds: at the first change it is alive, without one it is gone. No two machines' clocks are compared.

What is gone is removed, by one newcomer at a time (`RUN/.lock.takeover`) and only if it is still what was judged: else the
slower of two newcomers would remove the quicker one's new lock. Then the newcomers compete as for a free run. So a job
whose node has died can be requeued on another one without help.
"""

import json
import os
import platform
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import InputError, StoreError
from ..files import writing
from .stop import Job

BEAT = 10.0  # seconds between two touches of the owner
PATIENCE = 3.0  # seconds given to a living owner: an aborted job's ranks may outlive its launcher by a moment
WAIT = 60.0  # seconds without a touch after which an owner that cannot be asked is gone

Mark = tuple[int, int, bytes]  # inode, time of change, content: what a touch or another owner alters


@dataclass(frozen=True)
class Owner:
    """Who holds a lock. Empty text: this system does not say."""

    host: str
    pid: int
    start: str
    boot: str
    namespace: str
    command: str = ""
    since: str = ""
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    @classmethod
    def this_process(cls) -> "Owner":
        boot = namespace = ""
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(
            host=platform.node(),
            pid=os.getpid(),
            start=process_start(os.getpid()),
            boot=boot,
            namespace=namespace,
            command=shlex.join(sys.argv)[:1000],
            since=time.strftime("%Y-%m-%d %H:%M:%S %z"),
        )

    @classmethod
    def parse(cls, content: bytes) -> "Owner | None":
        """None where `content` is not of this form: half written, or by another version."""
        try:
            return cls(**json.loads(content))
        except (ValueError, TypeError):
            return None

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}: {self.command}"


def process_start(pid: int) -> str:
    """When the process started, in ticks since boot; empty where it does not run or there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]  # a zombie writes no more
    except (OSError, IndexError):
        return ""


def _hidden(pid: int) -> bool:
    """Whether the process is there, but of another user and not shown to this one (/proc mounted with hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}").exists()
    except OSError:
        return False
    return False


def is_gone(owner: Owner | None, here: Owner) -> bool | None:
    """Whether the owner's process has ended; None where that cannot be seen from `here`."""
    if owner is None or (owner.host, owner.boot, owner.namespace) != (here.host, here.boot, here.namespace):
        return None
    if here.start:
        start = process_start(owner.pid)
        return None if not start and _hidden(owner.pid) else start != owner.start
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


class _Watch:
    """Whether a file that nobody here can judge shows a sign of life."""

    def __init__(self) -> None:
        self.first: Mark | None = None
        self.since = time.monotonic()
        self.said = False

    def verdict(self, mark: Mark | None) -> bool | None:
        """True: gone, since it stayed what it was for `WAIT` seconds. False: alive, it has changed. None: not yet known."""
        if self.first is None:
            self.first, self.since = mark, time.monotonic()
        if mark != self.first:
            return False
        return True if time.monotonic() - self.since > WAIT else None

    def begins(self) -> bool:
        """True once, when it has been watched for a little: a lock that is being written is whole in no time."""
        begins = self.first is not None and not self.said and time.monotonic() - self.since > WAIT / 60
        self.said |= begins
        return begins


class Lock:
    """The lock of the run in `run`, `acquire`d and `release`d by one process."""

    def __init__(self, run: Path):
        self.path = Path(run) / ".lock"
        self.owner = Owner.this_process()
        self._ended = threading.Event()
        self._guard = _Watch()

    def acquire(self) -> None:
        """Take the lock. Raises `InputError` where another job has it, `WriteFailed` where the folder cannot be written."""
        watch = _Watch()
        begun = time.monotonic()
        while not self._create():
            mark = self._look(self.path)
            if mark is None:  # released just now
                continue
            owner = Owner.parse(mark[2])
            gone = is_gone(owner, self.owner)
            if gone is None:
                gone = watch.verdict(mark)
            if watch.begins():
                self._say(
                    f"was left by {owner or 'an unknown job'}; watching for a sign of life, {WAIT:.0f} s at most"
                )
            if gone is False and time.monotonic() - begun > PATIENCE:
                raise InputError(
                    f"{self.path.parent} is in use by another job: {owner or 'unknown'}. Wait for its end, or stop it. "
                    f"If you are sure that it is gone: rm {self.path}"
                )
            if gone and self._remove(mark):
                self._say(f"was left by {owner or 'an unknown job'}, which is gone; taken over")
            else:
                time.sleep(min(0.1, WAIT / 10))
        threading.Thread(target=self._beat, name="run lock", daemon=True).start()

    def release(self) -> None:
        """Remove the lock, if it is still this job's."""
        self._ended.set()
        mark = self._look(self.path)
        if mark is not None and Owner.parse(mark[2]) == self.owner:
            with suppress(OSError):
                self.path.unlink()

    def _create(self) -> bool:
        with writing(self.path):
            try:
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                return False
            try:
                with open(handle, "w", encoding="utf-8") as file:
                    json.dump(asdict(self.owner), file)
                    file.flush()
                    os.fsync(handle)
            except BaseException:
                with suppress(OSError):
                    self.path.unlink()
                raise
        return True

    def _look(self, path: Path) -> Mark | None:
        """Opened anew each time: only then does a network file system show what other hosts did."""
        try:
            with open(path, "rb") as file:
                state = os.fstat(file.fileno())
                return state.st_ino, state.st_mtime_ns, file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from None

    def _remove(self, judged: Mark) -> bool:
        """Remove the lock that was judged gone; False where it is another one by now, or another newcomer is at it."""
        guard = self.path.with_name(".lock.takeover")
        with writing(guard):
            try:
                os.close(os.open(guard, os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                if self._guard.verdict(self._look(guard)):  # a newcomer has died here
                    guard.unlink(missing_ok=True)
                return False
            try:
                same = self._look(self.path) == judged
                if same:
                    self.path.unlink()
            finally:
                guard.unlink(missing_ok=True)
        return same

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                mark = self._look(self.path)
                if mark is None or Owner.parse(mark[2]) != self.owner:
                    return  # taken over: this process slept for long
                os.utime(self.path)
            except (OSError, StoreError):  # a file server that hangs for a while
                continue

    def _say(self, what: str) -> None:
        with suppress(OSError):
            print(f"latticeflow: {self.path} {what}", file=sys.stderr, flush=True)


@contextmanager
def run_lock(run_path: Path, ranks: Job) -> Iterator[None]:
    """Hold the run's lock for the duration; every rank must call it, and rank 0 leave it last.

    Raises `InputError` where another job holds it, `WriteFailed` where the folder cannot be written.
    """
    lock = Lock(run_path) if ranks.root else None
    if lock is not None:
        lock.acquire()
    try:
        ranks.barrier()
        yield
    finally:
        if lock is not None:
            lock.release()
