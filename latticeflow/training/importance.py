"""Training by importance sampling: Renyi divergences of the target from the flow, over points that are used more than once.

With f the integrand, `p = f / Z` and `w = p / q`, the divergence of order alpha

    D_alpha(p || q) = log < w^alpha >_q / (alpha - 1)

is the forward Kullback-Leibler divergence `< w log w >_q` for alpha -> 1, `log(1 + var w)` for alpha = 2, and tends to the
logarithm of the largest weight; by Markov's inequality the quantile t of w that is exceeded with probability P has `t <= (<
w^alpha > / P)^(1/alpha)`, so that an order of 3 or 4 looks at the tail that unweighting pays for. None needs f where the
flow has density and f has none, and none has a derivative of f (the reverse divergence is infinite with cuts).

Points come from q_old, the flow as it was when they were drawn, with `w_old = f / (Z q_old)`; the flow of today has

    < w^alpha >_q = < w_old r^(alpha - 1) >_old,    r = p / q,    gradient  - (alpha - 1) < w_old r^(alpha - 1) d log q >_old

exact for any q_old that covers p, so that a point whose integrand was dear is used in several steps. On the unit cube q_old
has a share of the flow's VEGAS grid in it (`TrainSettings.explore`). Z is the mean of the pool's weights; points of weight
zero count there and are not used again. Means are over the weights of the batch, `sum w_old r^(alpha - 1) / sum w_old`, so
that the estimate goes over into that of order 1 without a jump. The coefficient `r` is cut at `CUT` where it is a factor: a
point the flow has all but lost counts for that much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import NumericalError
from ..flows import Flow
from ..flows.cube import CubeFlow
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
        cls,
        flow: Flow,
        target: Target,
        n: int,
        *,
        seed: int,
        step: int,
        group: Group = ALONE,
        explore: float = 0.0,
    ) -> "Pool":
        """Of n points of the flow as it is those with f > 0. Piece j of 4,096 has the stream (seed, TRAIN, step, j), on rank
        j % size. `explore`: on the unit cube q_old is the mixture of the flow with this share of its grid (`defended`).

        Raises `NumericalError` where there is none, and where f is NaN or infinite.
        """
        if explore and isinstance(flow, CubeFlow):
            flow = flow.defended(explore)
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
        bad = torch.isnan(log_w) | torch.isposinf(log_w)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise NumericalError(
                f"f/q is {float(log_w[first].exp())} at {int(bad.sum())} of {n:,} points drawn in step {step}, the first "
                f"{x[first].tolist()}"
            )
        log_z = torch.logsumexp(log_w, 0) - math.log(n)
        inside = torch.isfinite(log_w)
        if not inside.any():
            raise NumericalError(
                f"the integrand is zero at all of the {n:,} points that the flow drew in step {step}: do the cuts leave "
                "anything?"
            )
        return cls(x[inside], (log_w - log_z)[inside], log_q[inside])

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

    `total` adds up over the ranks; every rank calls it once, also one without rows. The loss is this rank's part: those of
    all ranks add up to the estimate.
    """
    w = rows.log_w.exp()
    log_q = flow.log_prob(rows.x) if len(w) else w
    log_r = rows.log_w + rows.log_q - log_q.detach()
    coefficient = w * torch.exp((order - 1) * log_r.clamp(max=math.log(CUT)))
    powers, weights = total(torch.stack([coefficient.sum(), w.sum()]))
    if order == 1:
        loss = (w * log_r).sum() / weights
    else:
        loss = (powers / weights).log() / (order - 1) * (len(w) / batch)
    return -(coefficient * log_q).sum() / powers, loss.detach()
