"""The run's lock: who is alive, who is gone, and that one only of many gets it."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from jobs import contents

from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.production import lock as lock_module
from latticeflow.production.lock import Lock, Owner, is_gone, run_lock
from latticeflow.production.ranks import Ranks
from latticeflow.run import Run

HERE = Owner.this_process()
DECK = {
    "name": "free",
    "seed": 5,
    "target": {"kind": "free", "shape": [4, 4], "m2": 1.0},
    "sampler": {
        "hmc": {"chains": 4, "streams": 1, "block": 40, "thermalisation": 100, "step": 0.01, "length": 2.0}
    },
}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(lock_module, "PATIENCE", 0.2)


@pytest.fixture
def quick(monkeypatch):
    """An owner that beats ten times in the time after which it is gone."""
    monkeypatch.setattr(lock_module, "BEAT", 0.1)
    monkeypatch.setattr(lock_module, "WAIT", 1.0)


def elsewhere(run: Path) -> Lock:
    """A lock of another host."""
    lock = Lock(run)
    lock.owner = replace(lock.owner, host="node17")
    return lock


def test_owner_is_read_as_it_was_written(tmp_path):
    lock = Lock(tmp_path)
    lock.acquire()
    assert Owner.parse(lock.path.read_bytes()) == lock.owner
    assert lock.owner.pid == os.getpid() and lock.owner.host and lock.owner.command
    lock.release()
    assert not list(tmp_path.iterdir())
    for broken in (b"", b"{", b"[1, 2]", b'{"host": "a"}', b"\xff", b'{"colour": "red"}'):
        assert Owner.parse(broken) is None


def test_is_gone():
    child = subprocess.Popen([sys.executable, "-c", "pass"])  # not waited for: a zombie
    while lock_module.process_start(child.pid):
        time.sleep(0.01)
    cases = [
        (HERE, False),
        (replace(HERE, start="17"), True),  # the number was given to another process since
        (replace(HERE, pid=2**22 + 1), True),
        (replace(HERE, pid=child.pid), True),
        (replace(HERE, host="node17", pid=2**22 + 1), None),
        (replace(HERE, boot="another", pid=2**22 + 1), None),
        (replace(HERE, namespace="pid:[1]", pid=2**22 + 1), None),
        (None, None),
    ]
    for owner, gone in cases:
        assert is_gone(owner, HERE) is gone, owner
    child.wait()


def test_a_hidden_process_of_another_user_is_not_taken_for_dead(monkeypatch):
    """Where /proc shows one's own processes alone, one that may not be signalled is there: its lock is watched."""

    def refuse(pid, signal):
        raise PermissionError

    hidden = replace(HERE, pid=2**22 + 1)
    assert is_gone(hidden, HERE) is True
    monkeypatch.setattr(os, "kill", refuse)
    assert is_gone(hidden, HERE) is None
    assert is_gone(replace(HERE, start="1"), HERE) is True  # it is shown, and a later one


def test_without_proc_the_process_is_asked_for():
    here = replace(HERE, start="")
    assert is_gone(here, here) is False
    assert is_gone(replace(here, pid=2**22 + 1), here) is True


def test_a_second_job_is_refused(tmp_path):
    with run_lock(tmp_path, Ranks()):
        before = (tmp_path / ".lock").read_bytes()
        with pytest.raises(InputError) as refused, run_lock(tmp_path, Ranks()):
            pass
        for part in (str(tmp_path), f"process {os.getpid()} on {HERE.host} since 20", HERE.command, "rm "):
            assert part in str(refused.value)
        assert (tmp_path / ".lock").read_bytes() == before
    assert not list(tmp_path.iterdir())


def test_an_owner_that_is_dying_is_waited_for(tmp_path, monkeypatch):
    """mpirun may be back before the last rank of an aborted job is gone."""
    monkeypatch.setattr(lock_module, "PATIENCE", 10)
    first = Lock(tmp_path)
    first.acquire()
    threading.Timer(0.3, first.release).start()
    with run_lock(tmp_path, Ranks()):
        pass


def test_released_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path, Ranks()):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_dead_owner_of_this_host_is_replaced_at_once(tmp_path, capsys):
    dead = Lock(tmp_path)
    dead.owner = replace(dead.owner, start="17", command="the old job")
    dead._create()
    begun = time.monotonic()
    with run_lock(tmp_path, Ranks()):
        assert time.monotonic() - begun < 1
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    said = capsys.readouterr().err
    assert "the old job, which is gone; taken over" in said


def test_another_host_that_beats_is_alive(tmp_path, quick, capsys):
    first = elsewhere(tmp_path)
    first.acquire()
    with pytest.raises(InputError, match=r"in use by another job: process .* on node17"):
        Lock(tmp_path).acquire()
    assert "watching for a sign of life" in capsys.readouterr().err
    first.release()
    assert not first.path.exists()


def test_another_host_that_does_not_beat_is_gone(tmp_path, quick):
    elsewhere(tmp_path)._create()  # as a node that has died leaves it
    begun = time.monotonic()
    lock = Lock(tmp_path)
    lock.acquire()
    assert 1 < time.monotonic() - begun < 10
    assert Owner.parse(lock.path.read_bytes()) == lock.owner
    lock.release()


@pytest.mark.parametrize("content", ["", '{"host": "nod'])
def test_unreadable_locks_are_watched(tmp_path, quick, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    timer = threading.Timer(0.3, os.utime, [path])
    timer.start()
    with pytest.raises(InputError, match="in use by another job: unknown"):
        Lock(tmp_path).acquire()
    lock = Lock(tmp_path)
    lock.acquire()  # no sign of life
    lock.release()
    assert not path.exists()


def test_a_lock_seen_half_written_is_read_again(tmp_path, quick):
    path = tmp_path / ".lock"
    path.touch()
    other = Lock(tmp_path)
    whole = tmp_path / "whole"
    with run_lock(whole.parent / ".", _Nobody()):  # no rank 0: no lock is made
        assert path.read_text() == ""

    def write():
        path.unlink()
        other._create()

    timer = threading.Timer(0.3, write)
    timer.start()
    with pytest.raises(InputError, match=f"process {os.getpid()} on"):
        Lock(tmp_path).acquire()


class _Nobody(Ranks):
    root = False


def test_only_the_judged_lock_is_taken(tmp_path):
    dead, alive = Lock(tmp_path), Lock(tmp_path)
    dead._create()
    judged = dead._look(dead.path)
    dead.path.unlink()
    alive.acquire()  # another newcomer was quicker
    late = Lock(tmp_path)
    assert late._remove(judged) is False
    assert Owner.parse(alive.path.read_bytes()) == alive.owner
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    os.utime(alive.path, ns=(1, 1))  # a beat since it was judged
    before = late._look(late.path)
    os.utime(alive.path)
    assert late._remove(before) is False and alive.path.exists()
    assert late._remove(late._look(late.path)) is True and not alive.path.exists()
    assert late._remove(judged) is False  # nothing there


def test_nobody_elses_lock_is_released_or_touched(tmp_path, quick):
    first, second = elsewhere(tmp_path), elsewhere(tmp_path)
    first.acquire()
    first.path.unlink()  # taken over while the first one slept
    second._create()
    state = second.path.stat().st_mtime_ns
    time.sleep(0.4)
    first.release()
    assert second.path.stat().st_mtime_ns == state
    assert Owner.parse(second.path.read_bytes()) == second.owner


def test_one_of_many_gets_a_stale_lock(tmp_path):
    for trial in range(20):
        run = tmp_path / str(trial)
        run.mkdir()
        dead = Lock(run)
        dead.owner = replace(dead.owner, start="17")
        dead._create()
        locks = [Lock(run) for _ in range(8)]
        got, refused = [], []
        line = threading.Barrier(len(locks))

        def take(lock, got=got, refused=refused, line=line):
            line.wait()
            try:
                lock.acquire()
                got.append(lock)
            except InputError:
                refused.append(lock)

        threads = [threading.Thread(target=take, args=[lock]) for lock in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) == 1 and len(refused) == 7
        assert Owner.parse(got[0].path.read_bytes()) == got[0].owner
        got[0].release()
        assert not list(run.iterdir())


def test_a_newcomer_that_died_in_the_takeover_is_gone_too(tmp_path, quick):
    dead = Lock(tmp_path)
    dead.owner = replace(dead.owner, start="17")
    dead._create()
    (tmp_path / ".lock.takeover").touch()
    lock = Lock(tmp_path)
    begun = time.monotonic()
    lock.acquire()
    assert 1 < time.monotonic() - begun < 10
    lock.release()
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path):
    with pytest.raises(StoreError, match=r"missing/\.lock cannot be written: No such file"):
        Lock(tmp_path / "missing").acquire()


# Real jobs


def start(run: Path, draws: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "latticeflow", "sample", run, "--sampler", "hmc", "--draws", str(draws)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_jobs_at_once_and_kill_9(tmp_path):
    run = Run.create(Deck.parse(DECK), tmp_path / "run").path
    first = start(run, 10**6)
    while not list(run.rglob("s*_b*.h5")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    second = start(run, 1000)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and f"process {first.pid} on" in err and "--draws 1000000" in err
    assert first.poll() is None and (run / ".lock").exists()
    first.kill()
    first.communicate()
    assert (run / ".lock").exists()
    left = contents(run)
    third = start(run, 40 * (len(list(run.rglob("s*_b*.h5"))) + 1))
    _, err = third.communicate(timeout=60)
    assert third.returncode == 0 and "which is gone; taken over" in err, err
    assert not (run / ".lock").exists()
    found = contents(run)
    assert len(found) == len(left) + 1 and {name: found[name] for name in left} == left
