"""Ranks and launchers: one failing rank ends the job, another MPI is found out."""

import os
import subprocess
import sys

import pytest

from latticeflow.errors import InputError
from latticeflow.production import ranks as ranks_module
from latticeflow.production.ranks import Ranks, check_launcher, refuse_torchrun

FAIL = """
import os, sys, threading
import latticeflow.cli as cli
from latticeflow.errors import InputError
from latticeflow.production.ranks import Ranks
how = sys.argv[1]
def body(**_):
    ranks = Ranks.world()
    if ranks.rank == 1:
        if how == "exit": sys.exit(3)
        if how == "input": raise InputError("bad")
        if how.startswith("full disk"):
            sys.stdout, sys.stderr = open("/dev/full", "w"), open("/dev/full", "w")
            print("lines that were never written")
            raise InputError("bad") if how == "full disk" else RuntimeError("boom")
        if how == "crash": raise RuntimeError("boom")
        if how == "interrupt": raise KeyboardInterrupt
        if how == "killed": os.kill(os.getpid(), 9)
        if how == "thread": threading.Thread(target=lambda: 1 / 0).start()
        if how == "crash beside a thread":
            threading.Thread(target=threading.Event().wait).start()
            raise RuntimeError("boom")
    ranks.comm.Barrier() if how == "crash" else ranks.barrier()
    if how == "thread": threading.Event().wait()
cli.app = body
cli.main()
"""


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("nothing", {0}),
        ("exit", {3}),
        ("input", {2}),
        ("full disk", {2}),
        ("full disk, crash", {1}),
        ("crash", {1}),
        ("interrupt", {1}),
        ("thread", {1}),
        ("crash beside a thread", {1}),
        ("killed", {9, 137}),  # as the launcher reports a signal
    ],
)
def test_one_failing_rank_ends_the_job(mpirun, tmp_path, how, status):
    job = mpirun(2, "-c", FAIL, how, cwd=tmp_path, timeout=30)
    assert job.returncode in status, job.stderr


def test_serial_use_loads_no_mpi():
    code = "import sys; from latticeflow.production.ranks import Ranks; Ranks.world().barrier(); "
    code += "assert not any(name.startswith('mpi4py') for name in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if "MPI" not in key and "PMI" not in key}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


@pytest.mark.mpi
@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_launcher_of_another_mpi(mpirun, tmp_path, name):
    code = "import latticeflow.cli as c; from latticeflow.production.ranks import Ranks; "
    code += "c.app = lambda **_: Ranks.world(); c.main()"
    environment = {key: value for key, value in os.environ.items() if "MPI" not in key and "PMI" not in key}
    job = subprocess.run(
        [sys.executable, "-c", code], env={**environment, name: "2"}, capture_output=True, text=True
    )
    assert job.returncode == 2
    assert f"by {name}=2" in job.stderr and "Use the mpirun of the MPI that mpi4py loads" in job.stderr


@pytest.mark.parametrize(
    ("world", "environment"),
    [
        (1, {"PMI_SIZE": "4"}),
        (1, {"MV2_COMM_WORLD_SIZE": "2"}),
        (1, {"PMIX_RANK": "1"}),
        (1, {"PMI_SIZE": "1", "OMPI_COMM_WORLD_SIZE": "2"}),
    ],
)
def test_check_launcher_raises(world, environment):
    with pytest.raises(InputError, match="different MPI implementations"):
        check_launcher(world, environment)


@pytest.mark.parametrize(
    ("world", "environment"),
    [
        (1, {}),
        (1, {"PMI_SIZE": "1"}),
        (4, {"PMI_SIZE": "4"}),
        (1, {"SLURM_NTASKS": "8"}),
        (1, {"PMI_SIZE": "x"}),
    ],
)
def test_check_launcher_passes(world, environment):
    check_launcher(world, environment)


def test_launcher_without_an_mpi_library(monkeypatch):
    for name in ranks_module._SIZES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "mpi4py.MPI", None)  # as if it could not be loaded
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(InputError, match="loads no MPI library"):
        Ranks.world()
    monkeypatch.setenv("PMI_SIZE", "1")
    assert Ranks.world().size == 1


def test_torchrun_is_for_training(tmp_path):
    command = [sys.executable, "-m", "latticeflow", "sample", str(tmp_path), "--draws", "10"]
    environment = {**os.environ, "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2", "RANK": "0"}
    job = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert job.returncode == 2
    assert "torchrun started 2 processes" in job.stderr and "mpirun -n 2" in job.stderr
    for world, fine in [
        (1, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "1"}),
        (1, {"WORLD_SIZE": "2"}),  # set by hand, or by a batch system
        (2, {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "2"}),  # MPI knows of the ranks
    ]:
        refuse_torchrun(world, fine)
