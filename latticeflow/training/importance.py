"""Training by importance sampling: Renyi divergences of the target from the flow, over points that are used more than once.

With f the integrand, `p = f / Z` and `w = p / q`, the divergence of order alpha

    D_alpha(p || q) = log < w^alpha >_q / (alpha - 1)

is the forward Kullback-Leibler divergence `< w log w >_q` for alpha -> 1, `log(1 + var w)` for alpha = 2, and tends to the
logarithm of the largest weight; by Markov's inequality the quantile t of w that is exceeded with probability P has `t <= (<
w^alpha > / P)^(1/alpha)`, so that an order of 3 or 4 looks at the tail that unweighting pays for. None needs f where the
flow has density and f has none, and none has a derivative of f (the reverse divergence is infinite with cuts).

Points come from q_old, the flow as it was when they were drawn, with `w_old = f / (Z q_old)`; the flow of today has

    < w^alpha >_q = < w_old r^(alpha - 1) >_old,    r = p / q,    gradient  - (alpha - 1) < w_old r^(alpha - 1) d log q >_old

exact for any q_old that covers p, so that a point whose integrand was dear is used in several steps. Z is the mean of the
pool's weights. The coefficient `r` is cut at `CUT` where it is a factor: a point the flow has all but lost counts for that
much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericalError
from ..flows import Flow
from ..precision import double
from ..random import Purpose, stream
from ..targets import Target
from .parallel import ALONE, Group

PIECE = (
    4096  # points drawn and evaluated in one call, each piece from its own stream: part of what a seed means
)
CUT = 20.0


@dataclass(frozen=True)
class Pool:
    """Evaluated points, the same on all ranks: `x` `[n, dim]`, `log_w = log (f / q_old) - log Z` and `log_q` of q_old,
    float64."""

    x: Tensor
    log_w: Tensor
    log_q: Tensor

    @classmethod
    @torch.no_grad()
    def draw(
        cls, flow: Flow, target: Target, n: int, *, seed: int, step: int, group: Group = ALONE
    ) -> "Pool":
        """n points of the flow as it is. Piece j of 4,096 has the stream (seed, TRAIN, step, j), on rank j % size.

        Raises `NumericalError` where the integrand is zero at all of them.
        """
        like = flow.base.like
        x = torch.zeros(n, *flow.event_shape, dtype=like.dtype, device=like.device)
        log_w, log_q = (torch.zeros(n, dtype=torch.float64, device=like.device) for _ in range(2))
        for j, (own, w, q) in enumerate(zip(x.split(PIECE), log_w.split(PIECE), log_q.split(PIECE))):
            if j % group.size == group.rank:
                drawn, density = flow.sample(len(own), stream(seed, Purpose.TRAIN, step, j))
                own.copy_(drawn)
                q.copy_(density)
                w.copy_(target.log_prob(double(drawn)) - density)
        for tensor in (x, log_w, log_q):
            group.sum(tensor)
        log_z = torch.logsumexp(log_w, 0) - math.log(n)
        if not torch.isfinite(log_z):
            raise NumericalError(
                f"the integrand is zero at all of the {n:,} points that the flow drew in step {step}: do the cuts leave "
                "anything?"
            )
        return cls(x, log_w - log_z, log_q)

    def rows(self, step: int, batch: int, part: range, seed: int) -> "Pool":
        """The points `part` of the batch of `step`: chosen with replacement by the stream (seed, DATA, 2, step)."""
        chosen = stream(seed, Purpose.DATA, 2, step).integers(0, len(self.x), batch)[part.start : part.stop]
        i = torch.from_numpy(chosen).to(self.x.device)
        return Pool(self.x[i], self.log_w[i], self.log_q[i])

    def tensors(self) -> dict[str, Tensor]:
        return {"x": self.x, "log_w": self.log_w, "log_q": self.log_q}

    @classmethod
    def of(cls, tensors: dict[str, Tensor], like: Tensor) -> "Pool":
        """From `tensors`, on the device of `like`."""
        return cls(**{name: value.to(like.device) for name, value in tensors.items()})


def renyi(
    flow: Flow, rows: Pool, order: float, batch: int, total: Callable[[Tensor], Tensor] = lambda x: x
) -> tuple[Tensor, Tensor]:
    """(surrogate, loss) of `D_order` over the rows of this rank; the surrogate has the gradient, the loss the value.

    A mean over a batch is a sum divided by `batch`, the points of all ranks. `total` adds up over the ranks; every rank
    calls it once, also one without rows. The loss is this rank's part of `< w_old log r >` for order 1, else of the
    estimate of `D_order`, whole on every rank and divided by their number of points.
    """
    inside = torch.isfinite(rows.log_w)
    w, x = rows.log_w[inside].exp(), rows.x[inside]
    log_q = flow.log_prob(x) if len(x) else torch.zeros(0, dtype=torch.float64, device=rows.x.device)
    log_r = (rows.log_w + rows.log_q)[inside] - log_q.detach()
    coefficient = w * torch.exp((order - 1) * log_r.clamp(max=math.log(CUT)))
    mean = total((coefficient.sum() / batch).reshape(1).clone())[0]
    if order == 1:
        loss = (w * log_r).sum() / batch
    else:
        loss = mean.log() / (order - 1) * (len(rows.x) / batch)
    return -(coefficient * log_q).sum() / (batch * mean.clamp_min(1e-300)), loss.detach()
