"""torch.distributed among the ranks of a job: what training on several ranks adds its gradients up with.

Under mpirun the ranks know one another by MPI; rank 0 opens a `TCPStore` on a free port and tells the others where.
Under torchrun there is no MPI: the agent brings the store. Either way gloo carries what lies in main memory, NCCL what
lies on GPUs.
"""

import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError, LatticeflowError, Stopped
from ..training.parallel import ALONE, Group
from .ranks import Ranks

REACH = timedelta(seconds=120)  # for a rank to find rank 0


@contextmanager
def _connected(rank: int) -> Iterator[None]:
    """One line instead of a traceback where another rank has died: that one has said why."""
    try:
        yield
    except RuntimeError as error:
        raise LatticeflowError(f"rank {rank} lost the other ranks: {_short(error)}") from None


def _short(error: Exception) -> str:
    """The first sentence of torch's message, without the place in its sources."""
    return re.sub(r"^\[[^]]*\] ", "", str(error).partition("\n")[0]).partition(". ")[0]


class TorchRanks(Ranks):
    """Ranks that torchrun started. They can talk within `process_group`, in main memory, asleep while they wait."""

    def __init__(self, environment: Mapping[str, str]):
        super().__init__()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        try:
            self.rank, self.size, self.local_rank, self.local_size = (int(environment[n]) for n in names)
        except (KeyError, ValueError) as error:
            raise InputError(
                f"started by torchrun, whose {', '.join(names)} cannot be read: {error!r}"
            ) from None

    def barrier(self) -> None:
        if self.size > 1:
            with _connected(self.rank):
                torch.distributed.all_reduce(torch.zeros(1))

    def broadcast(self, value: Any) -> Any:
        if self.size == 1:
            return value
        box = [value]
        with _connected(self.rank):
            torch.distributed.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather_local(self, value: Any) -> list[Any]:
        """The value of this rank for each: one agent starts all ranks of a node, with the same GPUs in sight."""
        return [value] * self.local_size


def training_ranks(environment: Mapping[str, str]) -> Ranks:
    """The job's ranks: of torchrun, of an MPI launcher, or one."""
    # torchrun first: Slurm may have started its agents, one a node
    return TorchRanks(environment) if "TORCHELASTIC_RUN_ID" in environment else Ranks.world()


class ProcessGroup(Group):
    """The ranks of torch's default process group."""

    def __init__(self, ranks: Ranks):
        self.rank, self.size = ranks.rank, ranks.size

    def sum(self, x: Tensor) -> Tensor:
        with _connected(self.rank):
            torch.distributed.all_reduce(x)
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        with _connected(self.rank):
            torch.distributed.broadcast(x, src=0)
        return x


@contextmanager
def process_group(ranks: Ranks, device: str) -> Iterator[Group]:
    """The `Group` that trains on `device` ("cpu" or "cuda:i", already torch's current one), for the duration.

    One rank alone has no process group. Raises `InputError` where ranks compute on different kinds of device, or
    cannot reach rank 0. A rank that fails in the body leaves the group as it is: its job is about to be ended.
    """
    if ranks.size == 1:
        yield ALONE
        return
    # Imported by the first optimiser in any case. Within a group it would keep a default argument that is the group itself,
    # so that gloo's threads outlive it, and one that still holds a tensor while Python ends aborts the process.
    import torch._dynamo
    import torch.distributed as dist

    cuda = device != "cpu"
    if ranks.size == ranks.local_size:  # one machine, whose own name need not resolve
        for name in ("lo", "lo0"):
            if name in (found for _, found in socket.if_nameindex()):
                os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        store = _store(ranks)
        _require_one_kind(store, ranks, "cuda" if cuda else "cpu")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=ranks.rank,
            world_size=ranks.size,
            device_id=torch.device(device) if cuda else None,
        )
    except RuntimeError as error:
        raise InputError(
            f"rank {ranks.rank} on {socket.gethostname()} cannot join the others for training: "
            f"{_short(error)}. On several nodes set MASTER_ADDR to an address of rank 0's "
            "node that all reach, and GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME on GPUs) to the network interface to use"
        ) from None
    try:
        yield ProcessGroup(ranks)
    except Stopped as stopped:
        if stopped.together:
            dist.destroy_process_group()
        raise
    ranks.barrier()  # rank 0 holds the store, which must outlive the others' use of it
    dist.destroy_process_group()


def _store(ranks: Ranks) -> Any:
    """The key-value store through which the ranks find one another; kept by rank 0, or by torchrun's agent."""
    import torch.distributed as dist

    if isinstance(ranks, TorchRanks):
        return next(iter(dist.rendezvous("env://")))[0]
    one_machine = ranks.size == ranks.local_size
    if ranks.root:
        host = "127.0.0.1" if one_machine else os.environ.get("MASTER_ADDR") or socket.gethostname()
        store = dist.TCPStore(host, 0, ranks.size, True, timeout=REACH, wait_for_workers=False)
        ranks.broadcast((host, store.port))
        return store
    host, port = ranks.broadcast(None)
    return dist.TCPStore(host, port, ranks.size, False, timeout=REACH, wait_for_workers=False)


def _require_one_kind(store: Any, ranks: Ranks, kind: str) -> None:
    """Raise `InputError` on a rank whose kind of device is not that of rank 0."""
    if ranks.root:
        store.set("latticeflow/device", kind)
        return
    wanted = store.get("latticeflow/device").decode()
    if kind != wanted:
        raise InputError(
            f"rank {ranks.rank} on {socket.gethostname()} would train on {kind}, rank 0 on {wanted}: all ranks need "
            "the same kind. Ask for nodes with a GPU for every rank, or give --device cpu"
        )
