"""Requests to stop: what is one, who hears of it, and what a stopped job leaves."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from jobs import contents, processes_under

from latticeflow.cli import app
from latticeflow.config import Deck
from latticeflow.errors import InputError, Stopped
from latticeflow.production import sample as sample_module
from latticeflow.production import stop as stop_module
from latticeflow.production.ranks import Ranks
from latticeflow.production.sample import sample_run
from latticeflow.production.stop import StopRequests, duration, stop_requests
from latticeflow.run import Run
from latticeflow.store import Ensemble

ALONE = Ranks()
DECK = {
    "name": "free",
    "seed": 5,
    "target": {"kind": "free", "shape": [4, 4], "m2": 1.0},
    "sampler": {
        "exact": {"block": 50},
        "hmc": {"chains": 8, "streams": 2, "block": 80, "thermalisation": 100, "step": 0.05, "length": 1.0},
    },
}


@pytest.fixture
def run(tmp_path) -> Path:
    return Run.create(Deck.parse(DECK), tmp_path / "run").path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("1:30", 90), ("2:00:00", 7200), ("1-00:00:10", 86410), ("0", 0), ("00:90:00", 5400)],
)
def test_duration(text, seconds):
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "an hour", "-5", "1.5", "1-00", "1:2:3:4", "1:", "-1:00:00", "x-1:00:00"]
)
def test_duration_refuses(text):
    with pytest.raises(InputError, match="expected seconds, MM:SS"):
        duration(text)


def test_process_began():
    code = "import time; time.sleep(1); from latticeflow.production.stop import process_began; "
    code += "print(time.monotonic() - process_began())"
    begun = time.monotonic()
    age = float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    )
    assert 1 < age < time.monotonic() - begun + 0.02  # the kernel counts in hundredths


@pytest.mark.parametrize("limit", [None, 200, 10_000])
def test_time_limit_leaves_room_for_the_longest_block(run, monkeypatch, limit):
    """Polled every 7 s, once after 20 s: stops at the last poll from which another 20 s and the margin fit."""
    clock = [1000.0]
    monkeypatch.setattr(stop_module.time, "monotonic", lambda: clock[0])
    stop = StopRequests(run, "token", limit, since=990.0)
    for step in range(100):
        if stop.reason():
            break
        clock[0] += 20 if step == 3 else 7
    else:
        assert limit in (None, 10_000)
        return
    margin = 10  # 5 % of 200 s
    assert clock[0] - 990 + 20 + margin > limit >= clock[0] - 7 - 990 + 20 + margin
    assert stop.reason() == "time limit of 200 s"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_signals(run, monkeypatch, name):
    monkeypatch.setattr(stop_module, "TWICE", 0.2)
    number = signal.Signals[name]
    before = [signal.getsignal(n) for n in (*stop_module.SIGNALS, signal.SIGALRM)]
    with pytest.raises(KeyboardInterrupt):
        with stop_requests(run, None, ALONE) as stop:
            assert stop.reason() is None
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # the same request on another way
            assert stop.reason() == f"signal {name}"
            assert len(list(run.glob(".stop-*"))) == 1
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(5)
    assert [signal.getsignal(n) for n in (*stop_module.SIGNALS, signal.SIGALRM)] == before
    assert not list(run.glob(".stop-*")) and signal.alarm(0) == 0


def test_sigterm_waits_for_its_grace(run, monkeypatch):
    monkeypatch.setattr(stop_module, "GRACE", 1)
    with stop_requests(run, None, ALONE):
        os.kill(os.getpid(), signal.SIGUSR1)  # the negative control
        time.sleep(1.3)
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        with stop_requests(run, None, ALONE):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    assert 0.9 < time.monotonic() - begun < 5


def test_one_rank_tells_the_others(run):
    """Two ranks of a job, one of another job."""
    asked, other, stranger = (StopRequests(run, token, None, 0.0) for token in ("job", "job", "another"))
    assert other.reason() is None and stranger.reason() is None
    asked.handle(signal.SIGUSR1, None)
    assert asked.reason() == "signal SIGUSR1"
    assert other.reason() is None  # looks at the folder twice a second, not at every step
    assert other.reason(look=True) == "signal SIGUSR1"
    assert stranger.reason(look=True) is None


def test_a_marker_that_cannot_be_written_ends_the_job(tmp_path):
    stop = StopRequests(tmp_path / "missing", "job", None, 0.0)
    stop.handle(signal.SIGINT, None)
    with pytest.raises(Stopped, match=r"signal SIGINT.*No such file"):
        stop.reason()


def test_old_markers_go(run):
    old, young = run / ".stop-1", run / ".stop-2"
    old.touch()
    young.touch()
    os.utime(old, (time.time() - 2 * 86400,) * 2)
    with stop_requests(run, None, ALONE):
        assert not old.exists() and young.exists()


def test_stop_file(run):
    with stop_requests(run, None, ALONE) as stop:
        (run / "STOP").touch()
        assert stop.reason(look=True) == f"{run}/STOP is there; remove it to go on"
    with pytest.raises(InputError, match=f"rm {run}/STOP"):
        sample_run(run, sampler="exact", draws=10)
    assert not (run / "ensembles").exists()
    (run / "STOP").unlink()
    sample_run(run, sampler="exact", draws=10)


def test_in_another_thread_signals_act_as_before(run):
    seen = []

    def body():
        with stop_requests(run, None, ALONE) as stop:
            seen.append((signal.getsignal(signal.SIGTERM), stop.reason()))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [(signal.getsignal(signal.SIGTERM), None)]


# Sampling


def whole(run: Path, draws: int) -> dict:
    """What an uninterrupted process draws."""
    fresh = Run.create(Deck.parse(DECK), run.parent / "whole").path
    sample_run(fresh, sampler="hmc", draws=draws)
    return contents(fresh)


def blocks(run: Path) -> list[Path]:
    return sorted((run / "ensembles").rglob("s*_b*.h5"))


def draws_to_cover(run: Path) -> int:
    """Draws that need every block that is there, and one more in each stream."""
    return (max((int(path.stem[-6:]) for path in blocks(run)), default=-1) + 2) * 160


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGUSR1", "STOP", "time limit"])
def test_stopped_job_goes_on(run, capsys, how):
    limit, over = "2" if how == "time limit" else None, threading.Event()

    def ask():
        while len(blocks(run)) < 3 and not over.is_set():
            time.sleep(0.001)
        if how == "STOP":
            (run / "STOP").touch()
        elif not limit and not over.is_set():
            os.kill(os.getpid(), signal.Signals[how])

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        with pytest.raises(Stopped) as stopped:
            sample_run(run, sampler="hmc", draws=10**6, overrides=["sampler.hmc.thin=1"], time_limit=limit)
    finally:
        over.set()  # on a loaded machine the time is over before three blocks are there
        thread.join()
    assert stopped.value.status == 75 and stopped.value.together
    drawn = len(blocks(run))
    said = capsys.readouterr().err
    assert ("time limit of 2 s" if limit else how) in said
    assert f". {drawn} blocks drawn, {12500 - drawn} missing; go on with\n" in said
    line = ["latticeflow", "sample", str(run), "--sampler", "hmc", "--draws", "1000000"]
    line += ["--set", "sampler.hmc.thin=1", *(["--time-limit", "2"] if limit else [])]
    assert shlex.split(said.splitlines()[-1]) == line
    assert {path.name for path in run.iterdir()} <= {"deck.toml", "ensembles", "STOP"}
    assert not list((run / "ensembles").rglob(".*"))  # no half files
    (run / "STOP").unlink(missing_ok=True)
    draws = draws_to_cover(run)
    line[line.index("1000000")] = str(draws)
    app([*line[1:], "--time-limit", "1:00:00"], standalone_mode=False)
    assert contents(run) == whole(run, draws)


@pytest.mark.parametrize("place", ["_build", "missing_blocks", "bind_device"])
def test_signal_before_the_first_block(run, monkeypatch, place):
    real = getattr(sample_module, place)

    def signalled(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    monkeypatch.setattr(sample_module, place, signalled)
    with pytest.raises(Stopped, match="0 blocks drawn, 2 missing"):
        sample_run(run, sampler="exact", draws=100)
    monkeypatch.undo()
    assert sample_run(run, sampler="exact", draws=100).draws == 100


def test_signal_after_the_last_block_comes_too_late(run, monkeypatch):
    monkeypatch.setattr(sample_module, "_remove_leftovers", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert sample_run(run, sampler="exact", draws=100).draws == 100


def test_a_second_signal_gives_up_the_block_in_flight(run, monkeypatch):
    monkeypatch.setattr(stop_module, "TWICE", 0.1)

    def endless(*_, **__):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)
        time.sleep(20)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "write", endless)
        with pytest.raises(
            Stopped, match=r"at once.*without the blocks in flight.*\nlatticeflow sample"
        ) as stopped:
            sample_run(run, sampler="exact", draws=100)
    assert not stopped.value.together and not blocks(run)
    assert sample_run(run, sampler="exact", draws=100).draws == 100


# Jobs of several ranks

LONG = ["-m", "latticeflow", "sample", "run", "--sampler", "hmc", "--draws", "1000000", "--device", "cpu"]


def start(mpirun, run: Path, *options: str) -> subprocess.Popen:
    """Two ranks that have both drawn something."""
    job = mpirun.start(2, *LONG, *options, cwd=run.parent)
    begun = time.monotonic()
    while len({path.stem[:7] for path in blocks(run)}) < 2:
        assert job.poll() is None, job.communicate()
        assert time.monotonic() - begun < 60
        time.sleep(0.01)
    return job


def ranks_of(job: subprocess.Popen) -> list[int]:
    """Process ids of the ranks: all below the launcher that run python."""
    found = [
        p
        for p in processes_under(job.pid)
        if b"python" in Path(f"/proc/{p}/cmdline").read_bytes().split(b"\0")[0]
    ]
    assert len(found) == 2
    return found


def check_stopped(job: subprocess.Popen, run: Path, reason: str) -> None:
    out, err = job.communicate(timeout=30)
    assert job.returncode == 75, (out, err)
    assert err.count("latticeflow: stopped:") == 1 and reason in err
    assert "\nlatticeflow sample run --sampler hmc --draws 1000000 --device cpu" in err
    assert "Traceback" not in err
    assert {path.name for path in run.iterdir()} <= {"deck.toml", "ensembles", "STOP"}
    assert not list((run / "ensembles").rglob(".*"))
    (run / "STOP").unlink(missing_ok=True)
    draws = draws_to_cover(run)
    sample_run(run, sampler="hmc", draws=draws)  # on one rank
    assert contents(run) == whole(run, draws)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.long)])
def test_signal_to_the_launcher(mpirun, run, name):
    """MPICH forwards all three. Open MPI forwards SIGUSR1 only, see docs/slurm.md."""
    job = start(mpirun, run)
    job.send_signal(signal.Signals[name])
    check_stopped(job, run, f"signal {name}")


@pytest.mark.mpi
def test_sigusr1_to_the_launcher_of_open_mpi(openmpi, run):
    job = start(openmpi, run)
    job.send_signal(signal.SIGUSR1)
    check_stopped(job, run, "signal SIGUSR1")


@pytest.mark.mpi
def test_signal_to_one_rank_stops_all(any_mpirun, run):
    job = start(any_mpirun, run)
    os.kill(ranks_of(job)[1], signal.SIGTERM)
    check_stopped(job, run, "signal SIGTERM")


@pytest.mark.mpi
@pytest.mark.long
def test_stop_file_stops_all(openmpi, run):
    job = start(openmpi, run)
    (run / "STOP").touch()
    check_stopped(job, run, "STOP is there; remove it")


@pytest.mark.mpi
@pytest.mark.long
def test_time_limit_counts_from_the_start_of_the_process(mpirun, run):
    begun = time.monotonic()
    job = mpirun(2, *LONG, "--time-limit", "5", cwd=run.parent)
    assert job.returncode == 75, job.stderr
    assert job.stderr.count("latticeflow: stopped: time limit of 5 s.") == 1
    assert job.stderr.rstrip().endswith("--draws 1000000 --device cpu --time-limit 5")
    assert 4 < time.monotonic() - begun


@pytest.mark.mpi
@pytest.mark.parametrize(
    "any_mpirun", [pytest.param("mpich", marks=pytest.mark.long), "openmpi"], indirect=True
)
def test_ranks_end_when_their_launcher_is_killed(any_mpirun, run):
    """And the run is free again."""
    job = start(any_mpirun, run)
    ranks = ranks_of(job)
    job.kill()
    job.communicate()
    begun = time.monotonic()
    while any(map(running, ranks)):
        assert time.monotonic() - begun < 20
        time.sleep(0.05)
    draws = draws_to_cover(run)
    sample_run(run, sampler="hmc", draws=draws)
    assert contents(run) == whole(run, draws)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
