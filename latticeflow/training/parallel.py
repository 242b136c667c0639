"""A global batch on any number of ranks: the same noise, the same gradient to rounding, the same weights.

    gradient = (1 / batch) sum_i g_i,    i over the configurations of all ranks

The batch is cut into pieces of 64; piece j of step t has the stream (seed, TRAIN, t, j). Rank r of R computes
configurations `[batch r / R, batch (r + 1) / R)` and draws only the pieces that cover them.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from ..errors import NumericalError
from ..flows import Flow
from ..random import Purpose, stream

PIECE = 64  # part of what a seed means: never change


class Group:
    """The ranks that train together, of which this is `rank` of `size`. Here one, which has nobody to talk to."""

    rank = 0
    size = 1

    @property
    def root(self) -> bool:
        return self.rank == 0

    def share(self, batch: int) -> range:
        """This rank's part of a global batch; empty where there are more ranks than configurations."""
        return range(batch * self.rank // self.size, batch * (self.rank + 1) // self.size)

    def sum(self, x: Tensor) -> Tensor:
        """Replace x by its sum over the ranks, the same bits on all of them."""
        return x

    def broadcast(self, x: Tensor) -> Tensor:
        """Replace x by that of rank 0."""
        return x


ALONE = Group()


def noise(flow: Flow, seed: int, step: int, batch: int, part: range) -> Tensor:
    """White noise of the configurations `part` (not empty) of the global batch of `step`, `[len(part), *shape]`."""
    return cut(batch, part, lambda j, n: flow.noise(n, stream(seed, Purpose.TRAIN, step, j)))


def cut(batch: int, part: range, piece: Callable[[int, int], Tensor]) -> Tensor:
    """Rows `part` (not empty) of a global batch whose piece j, of n rows, is `piece(j, n)`; only those needed are made."""
    first, last = part.start // PIECE, (part.stop - 1) // PIECE
    pieces = [piece(j, min(PIECE, batch - PIECE * j)) for j in range(first, last + 1)]
    return torch.cat(pieces)[part.start - PIECE * first : part.stop - PIECE * first]


def sum_gradients(
    parameters: Iterable[nn.Parameter], numbers: Sequence[float], group: Group
) -> Sequence[float]:
    """Add up the gradients over the ranks, in place; returns `numbers` added up as well.

    One buffer of float64, one all-reduce: its latency, not its size, is what a small flow pays for. A rank without a
    gradient adds zero.
    """
    if group.size == 1:
        return numbers
    own = list(parameters)
    grads = [p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in own]
    last = torch.tensor(numbers, dtype=torch.float64, device=own[0].device)
    buffer = group.sum(torch.cat([*(grad.double() for grad in grads), last]))
    *parts, last = buffer.split([*(p.numel() for p in own), len(numbers)])
    for p, part in zip(own, parts):
        p.grad = part.view_as(p).to(p.dtype)
    return last.tolist()


def broadcast(tensors: Sequence[Tensor], group: Group) -> None:
    """Overwrite `tensors` (floating point, any device) by those of rank 0, in one message."""
    if group.size == 1 or not tensors:
        return
    buffer = group.broadcast(torch.cat([t.detach().flatten().cpu().double() for t in tensors]))
    for t, part in zip(tensors, buffer.split([t.numel() for t in tensors])):
        with torch.no_grad():
            t.copy_(part.view_as(t))


def require_equal_weights(flow: Flow, step: int, group: Group) -> None:
    """Raise `NumericalError`, on every rank, unless all ranks hold the same weights, bit for bit."""
    if group.size == 1:
        return
    digest = hashlib.sha256()
    for value in flow.state_dict().values():
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    sums = torch.zeros(group.size, dtype=torch.float64)
    sums[group.rank] = int.from_bytes(digest.digest()[:6])  # 48 bits: exact in float64
    group.sum(sums)
    other = torch.nonzero(sums != sums[0]).flatten().tolist()
    if other:
        raise NumericalError(
            f"after step {step} the weights on rank(s) {', '.join(map(str, other[:8]))} differ from those on rank 0: "
            "different kinds of processor, or a fault of memory or network. Train on one kind of node and go "
            "on from the last checkpoint (--resume)"
        )
