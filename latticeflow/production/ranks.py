"""The ranks of an MPI job; without a launcher, one rank and no MPI library."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import InputError, Stopped

# Job size as each family of launchers announces it to its processes.
_SIZES = {
    "PMI_SIZE": "MPICH, Intel MPI or Cray",
    "OMPI_COMM_WORLD_SIZE": "Open MPI",
    "MV2_COMM_WORLD_SIZE": "MVAPICH",
    "PALS_SIZE": "Cray PALS",
    "JSM_NAMESPACE_SIZE": "IBM JSM",
    "SLURM_STEP_NUM_TASKS": "Slurm (srun)",
}
# PMIx announces no size, only a rank; rank 0 of it is told by its peers' failure.
_PMIX_RANK = "PMIX_RANK"


def launched(environment: dict[str, str]) -> tuple[int, str]:
    """Size of the job that a launcher says it started, and the launcher; (0, "") without one."""
    sizes = {name: int(environment[name]) for name in _SIZES if environment.get(name, "").isdigit()}
    if environment.get(_PMIX_RANK, "").isdigit():
        sizes[_PMIX_RANK] = int(environment[_PMIX_RANK]) + 1
    if not sizes:
        return 0, ""
    name = max(sizes, key=lambda key: sizes[key])
    return sizes[name], f"{_SIZES.get(name, 'PMIx')}, by {name}={environment[name]}"


def check_launcher(world: int, environment: dict[str, str]) -> None:
    """Raise `InputError` where a launcher started several processes that MPI takes for jobs of one rank.

    Each would draw the whole ensemble by itself, N times the work for the same result.
    """
    size, launcher = launched(environment)
    if world == 1 and size > 1:
        raise InputError(
            f"the launcher ({launcher}) started a job of {size} or more ranks, but the MPI library that mpi4py "
            "loads sees 1: they belong to different MPI implementations. Use the mpirun of the MPI that mpi4py "
            "loads (with the pip wheel 'mpich': the mpirun beside python), or remove that wheel so that mpi4py "
            "finds the system's MPI"
        )


def refuse_torchrun(world: int, environment: dict[str, str]) -> None:
    """Raise `InputError` in a job of torchrun's: its processes know of one another in training only."""
    size = environment.get("WORLD_SIZE", "")
    if world == 1 and "TORCHELASTIC_RUN_ID" in environment and size.isdigit() and int(size) > 1:
        raise InputError(
            f"torchrun started {size} processes, and each would draw the whole ensemble by itself. Torchrun is for "
            f"training; start this command with mpirun -n {size} or srun"
        )


def launcher_of_this() -> int | None:
    """Process id of the parent, if that is a launcher or its helper."""
    return os.getppid() if launched(dict(os.environ))[0] else None


def check_launcher_lives(parent: int | None) -> None:
    """Raise `Stopped` where the launcher is gone: nobody waits for this rank, and other ranks may be dead.

    `parent`: of `launcher_of_this`, earlier. Orphans get another parent.
    """
    if parent is not None and os.getppid() != parent:
        raise Stopped("the launcher (mpirun, srun) of this rank is gone; what is finished is stored")


class Ranks:
    """`rank` of `size`; `local_rank` of `local_size` on this node. `comm`: the mpi4py communicator, or None."""

    def __init__(self, comm: Any = None):
        self.comm, self._local = comm, None
        self.rank: int = comm.rank if comm else 0
        self.size: int = comm.size if comm else 1
        self.local_rank, self.local_size = 0, 1
        self._parent = launcher_of_this()
        if comm:
            from mpi4py import MPI

            self._local = comm.Split_type(MPI.COMM_TYPE_SHARED)
            self.local_rank, self.local_size = self._local.rank, self._local.size

    @classmethod
    def world(cls) -> "Ranks":
        """The job's ranks. MPI is imported only where a launcher's environment is there.

        Raises `InputError` where the launcher and the MPI library do not fit, or no MPI library loads.
        """
        size, launcher = launched(dict(os.environ))
        if not size:
            return cls()
        try:
            from mpi4py import MPI
        except (ImportError, RuntimeError) as error:
            if size == 1:  # srun of one task, on a machine without MPI
                return cls()
            raise InputError(
                f"started by a launcher ({launcher}), but mpi4py loads no MPI library: {error}. Load the "
                "cluster's MPI module, or pip install 'latticeflow[mpi]'"
            ) from None
        check_launcher(MPI.COMM_WORLD.size, dict(os.environ))
        return cls(MPI.COMM_WORLD)

    @property
    def root(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all ranks, asleep: a plain MPI barrier would take a core from those that still compute.

        Raises `Stopped` where the launcher dies meanwhile.
        """
        if self.comm:
            request = self.comm.Ibarrier()
            while not request.Test():
                check_launcher_lives(self._parent)
                time.sleep(0.01)

    @contextmanager
    def root_first(self) -> Iterator[None]:
        """Rank 0 goes through the body before the others: what is wrong is then reported once."""
        if not self.root:
            self.barrier()
        yield
        if self.root:
            self.barrier()

    def broadcast(self, value: Any) -> Any:
        """A small object of rank 0, on every rank."""
        return self.comm.bcast(value) if self.comm else value

    def total(self, value: int) -> int:
        """The sum over all ranks, on all of them."""
        return self.comm.allreduce(value) if self.comm else value

    def gather_local(self, value: Any) -> list[Any]:
        """A small object of each rank on this node, in the order of local ranks, on all of them."""
        return self._local.allgather(value) if self._local else [value]
