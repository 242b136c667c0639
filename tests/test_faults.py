"""Faults of a running job, under MPICH and Open MPI: it ends, says why, keeps what was finished, and goes on afterwards.

SIGKILL stands for the kernel's out-of-memory killer, which sends it; MemoryError is what a limit on memory gives.
"""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from jobs import contents

from latticeflow.config import Deck
from latticeflow.production.sample import sample_run
from latticeflow.run import Run

DECK = {
    "name": "free",
    "seed": 5,
    "target": {"kind": "free", "shape": [4, 4], "m2": 1.0},
    "sampler": {"exact": {"block": 1000}},
}
# rank 1 fails in its second block; by then rank 0 waits at the end, or is inside its first block
FAIL = """
import os, resource, sys, time
import numpy as np
import latticeflow.cli as cli
from latticeflow.production.sample import sample_run
from latticeflow.samplers.exact import ExactSampler
from mpi4py import MPI
run, how, where = sys.argv[1:]
draw, rank = ExactSampler.draw, []
def faulty(self, state, n, rng):
    rank.append(MPI.COMM_WORLD.rank)
    if rank == [0]:
        if where == "block":
            while True: np.ones((300, 300)) @ np.ones((300, 300))
        if where == "reading": open(os.path.join(os.path.dirname(run), "pipe")).read()
    if rank == [1, 1]:
        if where == "barrier": time.sleep(0.5)
        if how == "raise": raise RuntimeError("boom")
        if how == "exit": sys.exit(3)
        if how == "leave": os._exit(4)
        if how == "killed": os.kill(os.getpid(), 9)
        if how == "memory":
            resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))
            np.ones(2**34)
    return draw(self, state, n, rng)
ExactSampler.draw = faulty
cli.app = lambda **_: sample_run(run, sampler="exact", draws=2000 if where == "barrier" and rank == [0] else 4000)
cli.main()
"""
SAMPLE = ["-m", "latticeflow", "sample", "run", "--sampler", "exact", "--device", "cpu", "--draws"]


@pytest.fixture
def run(tmp_path) -> Path:
    return make(tmp_path / "run")


def make(folder: Path) -> Path:
    return Run.create(Deck.parse(DECK), folder).path


def check_resumes(run: Path, draws: int, scratch: Path) -> None:
    """What is there is whole and what an undisturbed run has; the same call goes on to the same end."""
    whole = make(scratch / "whole")
    sample_run(whole, sampler="exact", draws=draws)
    wanted, found = contents(whole), contents(run)
    assert found and all(wanted[name] == found[name] for name in found)
    sample_run(run, sampler="exact", draws=draws)
    assert contents(run) == wanted


def blocks(run: Path) -> list[Path]:
    return list(run.rglob("s*_b*.h5"))


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("how", "where", "status", "said"),
    [
        ("raise", "block", {1}, "RuntimeError: boom"),
        pytest.param("exit", "barrier", {3}, "", marks=pytest.mark.long),
        ("killed", "reading", {9, 137}, ""),
        ("memory", "block", {1}, "MemoryError"),
        pytest.param("killed", "block", {9, 137}, "", marks=pytest.mark.long),
        pytest.param("killed", "barrier", {9, 137}, "", marks=pytest.mark.long),
        pytest.param("leave", "barrier", {4}, "", marks=pytest.mark.long),
        pytest.param("raise", "barrier", {1}, "RuntimeError: boom", marks=pytest.mark.long),
        pytest.param("exit", "reading", {3}, "", marks=pytest.mark.long),
    ],
)
def test_a_rank_that_fails_ends_the_job(any_mpirun, run, how, where, status, said):
    os.mkfifo(run.parent / "pipe")
    job = any_mpirun.start(2, "-c", FAIL, run, how, where, cwd=run.parent)
    begun = time.monotonic()
    while not blocks(run):  # rank 1's first: it fails next
        assert job.poll() is None or blocks(run), job.communicate()
        assert time.monotonic() - begun < 60
        time.sleep(0.01)
    out, err = job.communicate(timeout=30)
    assert job.returncode in status, (job.returncode, out, err)
    assert said in err
    assert len(blocks(run)) == (3 if where == "barrier" else 1)
    check_resumes(run, 4000, run.parent)


@pytest.mark.mpi
def test_same_bytes_under_open_mpi(openmpi, run):
    job = openmpi(2, *SAMPLE, "5000", cwd=run.parent)
    assert job.returncode == 0, job.stderr
    whole = make(run.parent / "whole")
    sample_run(whole, sampler="exact", draws=5000)
    assert contents(run) == contents(whole)
    assert {path.name for path in run.iterdir()} == {"deck.toml", "ensembles"}


# Disks


def unprivileged() -> list[str]:
    """A command under which permissions bind root, too; empty where they do anyway."""
    if os.geteuid():
        return []
    command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if shutil.which("setpriv") is None or subprocess.run([*command, "true"]).returncode:
        pytest.skip("permissions do not bind root here, and setpriv cannot take that away")
    return command


def fails(job: subprocess.CompletedProcess, *parts: str) -> None:
    assert job.returncode == 1, (job.returncode, job.stderr)
    assert "Traceback" not in job.stderr
    said = [line for line in job.stderr.splitlines() if line.startswith("latticeflow: error:")]
    assert said and all(part in said[0] for part in parts), job.stderr


@pytest.mark.mpi
@pytest.mark.parametrize(
    "any_mpirun", ["mpich", pytest.param("openmpi", marks=pytest.mark.long)], indirect=True
)
def test_permission_lost(any_mpirun, run):
    """In the middle of a job; and from the start."""
    under = unprivileged()
    job = any_mpirun.start(2, *SAMPLE, str(10**7), cwd=run.parent, under=under)
    while not blocks(run):
        assert job.poll() is None, job.communicate()
        time.sleep(0.01)
    folder = blocks(run)[0].parent
    folder.chmod(0o555)
    out, err = job.communicate(timeout=30)
    fails(subprocess.CompletedProcess([], job.returncode, out, err), f"/{folder.name}/", "Permission denied")
    folder.chmod(0o755)
    run.chmod(0o555)
    fails(any_mpirun(2, *SAMPLE, "1000", cwd=run.parent, under=under), "run/.lock", "Permission denied")
    run.chmod(0o755)
    check_resumes(run, 1000 * (1 + max(int(path.stem[1:7]) for path in blocks(run))), run.parent)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of a few MiB. Only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.mpi
def test_disk_full_and_read_only(mpirun, small_disk):
    run = make(small_disk / "run")
    done = mpirun(2, *SAMPLE, "100000", cwd=small_disk)
    assert (done.returncode, blocks(run)) == (2, []) and "GB are free" in done.stderr
    # there is room for the fields, and not for what is beside them in the files
    fails(mpirun(2, *SAMPLE, "14500", cwd=small_disk), "/s0", "cannot be written: No space left on device")
    assert 5 < len(blocks(run)) < 15
    while subprocess.run(
        ["mount", "-o", "remount,ro,size=64m", small_disk], stderr=subprocess.DEVNULL
    ).returncode:
        time.sleep(0.1)  # the last process is still closing its files
    fails(mpirun(2, *SAMPLE, "20000", cwd=small_disk), "run/.lock", "Read-only file system")
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    check_resumes(run, 20000, small_disk)


LIMITED = """
import resource, sys
import latticeflow.cli as cli
from mpi4py import MPI  # its shared memory is a larger file
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))
cli.main()
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    "any_mpirun", ["mpich", pytest.param("openmpi", marks=pytest.mark.long)], indirect=True
)
def test_limit_on_the_size_of_a_file(any_mpirun, run):
    """As a full disk, for whoever may not mount: every block is too large."""
    fails(
        any_mpirun(2, "-c", LIMITED, *SAMPLE[2:], "4000", cwd=run.parent),
        "/s0",
        "cannot be written: File too large",
    )
    assert not blocks(run)
    sample_run(run, sampler="exact", draws=4000)
