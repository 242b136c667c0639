"""Which device a rank computes on."""

import platform

import torch

from ..errors import InputError
from .ranks import Ranks


def pick_device(
    name: str,
    local_rank: int = 0,
    gpu_count: int | None = None,
    local_size: int = 1,
    share: bool = False,
    host: str = "this host",
) -> str:
    """ "cpu" or "cuda:i", one GPU for each rank of a node: `cuda:(local_rank mod gpu_count)`.

    `name`: "cpu", "cuda", or "auto" (cuda where there are GPUs). `gpu_count`: GPUs that this rank sees; default, those
    that torch counts. `local_rank` of `local_size` ranks on this node, called `host` in messages. With `share`, ranks
    go round robin over the GPUs. Nodes need not be alike: each answers for its own ranks.

    Raises `InputError` for an unknown name, for fewer GPUs than ranks without `share`, and for "cuda" with no GPU.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise InputError(f"device '{name}'; expected cpu, cuda or auto")
    if name == "cpu":
        return "cpu"
    if gpu_count is None:
        gpu_count = torch.cuda.device_count()
    where = f"local rank {local_rank} of {local_size} on {host}"
    if gpu_count == 0:
        if name == "auto":
            return "cpu"
        raise InputError(
            f"device 'cuda', {where}: torch sees no GPU here. Use --device cpu, or --device auto, which takes the "
            "GPUs of the nodes that have them, or a torch built for CUDA"
        )
    if local_size > gpu_count and not share:
        raise InputError(
            f"device '{name}', {where}: {local_size} ranks and {gpu_count} GPUs. Start at most one rank for each "
            "GPU, or give --device cpu, or allow several ranks a GPU with --share-gpus"
        )
    return f"cuda:{local_rank % gpu_count}"


def bind_device(name: str, ranks: Ranks, share: bool = False) -> str:
    """`pick_device` for this rank, made torch's current GPU. Every rank of a node must call it.

    Counting and naming the GPUs opens no context on any of them; the first is that of the GPU chosen here.
    Where a batch system shows each rank other GPUs (one each, as a rule), a rank picks among its own.
    """
    if name == "cpu":
        return "cpu"
    count = torch.cuda.device_count()
    seen = ranks.gather_local([str(torch.cuda.get_device_properties(i).uuid) for i in range(count)])
    own = count > 0 and len(set().union(*seen)) == sum(map(len, seen))
    local_rank, local_size = (0, 1) if own else (ranks.local_rank, ranks.local_size)
    device = pick_device(name, local_rank, count, local_size, share, platform.node())
    if device != "cpu":
        torch.cuda.set_device(device)
    return device
