"""Shared fixtures: `mpirun`, a real launcher."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

# Open MPI refuses root and more ranks than cores unless told; other launchers ignore these.
_LENIENT = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
    "OMP_NUM_THREADS": "1",
}


def processes_under(root: int) -> list[int]:
    """`root` and all its descendants; ranks are in sessions of their own, so a process group is not enough."""
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
    found = [root]
    for parent in found:
        found += [pid for pid, ppid in pairs if ppid == parent]
    return found


def kill_9(job: subprocess.Popen) -> None:
    """SIGKILL to the launcher and all ranks at once."""
    for pid in processes_under(job.pid):
        try:
            os.kill(pid, 9)
        except ProcessLookupError:
            pass
    job.wait()


class Launcher:
    """`start(n, *arguments)` runs `mpirun -n N python *arguments`; calling it waits for the end."""

    def __init__(self, program: str):
        self.program = program

    def start(
        self, n: int, *arguments: str, cwd: Path, env: dict[str, str] | None = None
    ) -> subprocess.Popen:
        command = [self.program, "-n", str(n), sys.executable, *map(str, arguments)]
        whole = {**os.environ, **_LENIENT, **(env or {})}
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=cwd, env=whole, stdout=pipe, stderr=pipe, text=True)

    def __call__(self, n: int, *arguments: str, cwd: Path, timeout: float = 120, env=None):
        job = self.start(n, *arguments, cwd=cwd, env=env)
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_9(job)
            raise
        return subprocess.CompletedProcess(job.args, job.returncode, out, err)


@pytest.fixture(scope="session")
def mpirun() -> Launcher:
    """The mpirun beside python (the MPICH wheel) or the system's. Skips without one, but never in CI."""
    beside = Path(sys.executable).with_name("mpirun")
    program = str(beside) if beside.exists() else shutil.which("mpirun")
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no mpirun in CI: install 'latticeflow[mpi]'")
        pytest.skip("no mpirun: pip install 'latticeflow[mpi]'")
    return Launcher(program)
