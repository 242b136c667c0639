"""Which device a rank computes on."""

import torch

from ..console import console
from ..errors import InputError
from .ranks import Ranks


def pick_device(
    name: str,
    local_rank: int = 0,
    gpu_count: int | None = None,
    local_size: int = 1,
    share: bool = False,
) -> str:
    """ "cpu" or "cuda:i", one GPU for each rank of a node.

    `name`: "cpu", "cuda", or "auto" (cuda where there is a GPU for every rank). `gpu_count`: GPUs that this rank
    sees; default, those that torch counts. `local_rank` of `local_size` ranks on this node. With `share`, ranks
    go round robin over the GPUs. Raises `InputError` for an unknown name, and for "cuda" with no GPU or fewer GPUs
    than ranks.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{name}'; expected cpu, cuda or auto")
    if name == "cpu":
        return "cpu"
    if gpu_count is None:
        gpu_count = torch.cuda.device_count()
    if gpu_count == 0:
        if name == "auto":
            return "cpu"
        raise InputError("device 'cuda': torch sees no GPU here; use --device cpu, or a torch built for CUDA")
    if local_size > gpu_count and not share:
        if name == "auto":
            return "cpu"
        raise InputError(
            f"{local_size} ranks on this node and {gpu_count} GPUs: start at most one rank for each GPU, or "
            "give --device cpu, or allow several ranks a GPU with --share-gpus"
        )
    return f"cuda:{local_rank % gpu_count}"


def bind_device(name: str, ranks: Ranks, share: bool = False) -> str:
    """`pick_device` for this rank, made torch's current GPU. Every rank of a node must call it.

    Where a batch system shows each rank other GPUs (one each, as a rule), a rank picks among its own.
    """
    if name == "cpu":
        return "cpu"
    count = torch.cuda.device_count()
    seen = ranks.gather_local([str(torch.cuda.get_device_properties(i).uuid) for i in range(count)])
    own = count > 0 and len(set().union(*seen)) == sum(map(len, seen))
    local_rank, local_size = (0, 1) if own else (ranks.local_rank, ranks.local_size)
    device = pick_device(name, local_rank, count, local_size, share)
    if device != "cpu":
        torch.cuda.set_device(device)
    elif count:
        console(quiet=not ranks.root).print(
            f"{local_size} ranks on this node and {count} GPUs: computing on cpu. To use the GPUs start one rank "
            "for each, or allow several ranks a GPU with --share-gpus"
        )
    return device
