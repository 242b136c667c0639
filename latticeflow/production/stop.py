"""Ending early on request, whole and resumable.

A job is asked to stop by

- SIGTERM, SIGINT or SIGUSR1 to any of its ranks;
- the file `RUN/STOP`, made by whoever may write there: `touch RUN/STOP`;
- its time limit: elapsed + longest stretch between two polls so far + margin > limit;
- the death of its launcher.

Every rank polls between two blocks or training steps. What one rank alone knows of it writes into `RUN/.stop-TOKEN`,
which all ranks of that job look for: nobody waits for anybody. A file system that caches absent names (NFS) may show the
file up to a minute late.

The block in flight is finished, with two exceptions. A second signal, a second or more after the first, gives it up.
And SIGTERM, after which batch systems kill within 30 s or so, waits for `GRACE` seconds: longer blocks, or a
thermalisation, are given up. They are drawn again, identically, by the job that goes on.
"""

import math
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn, Protocol

from ..errors import InputError, Stopped
from .ranks import check_launcher_lives, launcher_of_this

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
GRACE = 20  # seconds from SIGTERM to giving up what is in flight
LOOK_EVERY = 0.5  # seconds between two looks at the run folder: training steps are quicker than a file server
TWICE = 1.0  # seconds within which a second signal is the first one, on another way


class Job(Protocol):
    """What is needed of `Ranks`."""

    @property
    def root(self) -> bool: ...
    def broadcast(self, value): ...
    def barrier(self) -> None: ...


def duration(text: str) -> float:
    """Seconds in `text`: "90", or "MM:SS", "HH:MM:SS", "D-HH:MM:SS" as Slurm writes them. Raises `InputError`."""
    days, dash, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    whole = all(part.isdecimal() for part in parts) and len(parts) <= 3 and (not dash or days.isdecimal())
    if not whole or (dash and len(parts) != 3):
        raise InputError(
            f"time limit '{text}': expected seconds, MM:SS, HH:MM:SS or D-HH:MM:SS, e.g. 23:30:00"
        )
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(seconds + 86400 * int(days or 0))


def process_began() -> float:
    """When this process started, on the clock of `time.monotonic`; now, where /proc does not say."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return now
    return now - max(age, 0.0)


class StopRequests:
    """`reason()`, polled between two pieces of work; made by `stop_requests`."""

    def __init__(self, run: Path, token: str, limit: float | None, since: float):
        self.run, self.marker = run, run / f".stop-{token}"
        self.limit, self.since = math.inf if limit is None else limit, since
        self.signal: signal.Signals | None = None
        self.signalled = self.looked = -1e9
        self.leaving = False
        self.launcher = launcher_of_this()
        self.polled: float | None = None
        self.longest = 0.0
        self.found: str | None = None

    def reason(self, look: bool = False) -> str | None:
        """Why this job is to stop, in words; None while it is not. Stays what it was once it is there.

        `look`: into the run folder in any case, not every `LOOK_EVERY` seconds.

        Raises `Stopped` where the launcher is gone.
        """
        now = time.monotonic()
        if self.polled is not None:
            self.longest = max(self.longest, now - self.polled)
        self.polled = now
        check_launcher_lives(self.launcher)
        if self.found is None:
            self.found = self._own(now) or self._look(now, look)
        return self.found

    def _own(self, now: float) -> str | None:
        """What this rank knows by itself, told to the others."""
        if self.signal is not None:
            reason = f"signal {self.signal.name}"
        elif self._late(now):
            reason = f"time limit of {self.limit:.0f} s"
        else:
            return None
        try:
            self.marker.write_text(reason)
        except OSError as error:  # the other ranks cannot be told: end the job here
            raise Stopped(f"{reason}; whole blocks are stored ({error})") from None
        return reason

    def _late(self, now: float) -> bool:
        margin = min(30.0, 0.05 * self.limit)  # for the end: waiting for other ranks, messages
        return now - self.since + self.longest + margin > self.limit

    def _look(self, now: float, always: bool) -> str | None:
        """What the run folder says."""
        if now - self.looked < LOOK_EVERY and not always:
            return None
        self.looked = now
        if stop_file(self.run).exists():
            return f"{stop_file(self.run)} is there; remove it to go on"
        try:
            return self.marker.read_text() or "another rank was asked to"
        except OSError:
            return None

    def handle(self, number: int, frame: object) -> None:
        """The signal handler: notes the first; a later one raises `KeyboardInterrupt`, once."""
        now = time.monotonic()
        if self.signal is None and number != signal.SIGALRM:
            self.signal, self.signalled = signal.Signals(number), now
            if number == signal.SIGTERM:
                signal.alarm(GRACE)
        elif not self.leaving and (number == signal.SIGALRM or now - self.signalled > TWICE):
            self.leaving = True
            raise KeyboardInterrupt


def stop_file(run: Path) -> Path:
    return run / "STOP"


def _remove_old(marker: Path, age: float = 86400.0) -> None:
    """Remove a killed job's marker; a younger one may be in use."""
    with suppress(OSError):
        if time.time() - marker.stat().st_mtime > age:
            marker.unlink()


@contextmanager
def stop_requests(
    run_path: Path, time_limit: float | None, ranks: Job, since: float | None = None
) -> Iterator[StopRequests]:
    """Listen for requests to stop, for the duration; every rank must call it.

    `time_limit`: seconds since `since`, a time of `time.monotonic` (default: now). `KeyboardInterrupt` comes out of the
    body where what is in flight is given up. Raises `InputError` where `RUN/STOP` is there from the start, so
    that a series of jobs that start one another ends, too. Python handles signals in the main thread alone: in
    another one they act as before.
    """
    run = Path(run_path)
    token = ""
    if ranks.root:
        if stop_file(run).exists():
            raise InputError(
                f"{stop_file(run)} is there, so no job starts here. To go on: rm {stop_file(run)}"
            )
        token = secrets.token_hex(8)
        for marker in run.glob(".stop-*"):
            _remove_old(marker)
    stop = StopRequests(run, ranks.broadcast(token), time_limit, time.monotonic() if since is None else since)
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop.handle) for number in (*SIGNALS, signal.SIGALRM)}
    try:
        yield stop
    finally:
        if before:
            signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)
        if ranks.root:
            with suppress(OSError):
                stop.marker.unlink(missing_ok=True)


def leave_together(ranks: Job, message: str) -> NoReturn:
    """End a stopped job in good order: rank 0 says why, then every rank raises `Stopped`. Every rank must call it."""
    if ranks.root:
        with suppress(OSError):  # nobody may be reading any more
            print(f"latticeflow: stopped: {message}", file=sys.stderr, flush=True)
    ranks.barrier()
    raise Stopped(message, together=True)
