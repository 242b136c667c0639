"""An even mixture of Gaussians in one variable: density, score and quantile function.

`r(h) = sum_j p_j [ N(h; c_j, s_j) + N(h; -c_j, s_j) ] / 2`, N the normal density of that mean and width: even in h, with one
peak or several. In arguments `log_p`, `c`, `log_s` are `[J]`, `sum_j p_j = 1`; h is float64 `[batch]`.
"""

import math

import torch
from torch import Tensor

from ..errors import LatticeflowError

ITERATIONS = 100
STEP = 1e-6
GRID = 128
NORMAL = 12  # iterations of `normal_of_log_tail`; 6 are enough from Q = 1/2 to Q = e^-10^6
_LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def _terms(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor]:
    """`log( p N / 2 )` and `d log N / dh` of every Gaussian, `[batch, 2 J]`, those at +c first."""
    centre, log_width = torch.cat([c, -c]), torch.cat([log_s, log_s])
    t = (h.unsqueeze(-1) - centre) * (-log_width).exp()
    log_terms = torch.cat([log_p, log_p]) - math.log(2) - log_width - _LOG_SQRT_2PI - 0.5 * t.square()
    return log_terms, -t * (-log_width).exp()


def log_density(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """`log r(h)`, `[batch]`."""
    return _terms(h, log_p, c, log_s)[0].logsumexp(-1)


def score(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """`d log r / dh`, `[batch]`: each Gaussian's own, weighted by its share of r."""
    log_terms, own = _terms(h, log_p, c, log_s)
    return (log_terms.softmax(-1) * own).sum(-1)


def log_upper_tail(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """`log P(h' > h)`, `P = sum_j p_j [ Q((h - c_j) / s_j) + Q((h + c_j) / s_j) ] / 2`, Q the normal tail, `[batch]`."""
    t = (h.unsqueeze(-1) - torch.cat([c, -c])) * (-torch.cat([log_s, log_s])).exp()
    return (torch.cat([log_p, log_p]) - math.log(2) + torch.special.log_ndtr(-t)).logsumexp(-1)


def normal_of_log_tail(log_tail: Tensor) -> Tensor:
    """The n >= 0 whose normal tail `Q(n)` has the given logarithm, at most log 1/2. Not differentiable.

    Newton's iteration on log Q, which is concave, from sqrt(-2 log Q), above the root: it falls towards it.
    """
    n = (-2 * log_tail).sqrt()
    for _ in range(NORMAL):
        here = torch.special.log_ndtr(-n)
        n = n + (here - log_tail) * (here + 0.5 * n.square() + _LOG_SQRT_2PI).exp()
    return n


def from_normal(n: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """The h whose upper tail is that of the standard normal n: if n is normal, h has the density r. Odd and rising in n.

    Newton's iteration on the logarithm of the tail of |n|, kept inside a bracket from a table, until a step is 1e-6; it and
    one more leave only rounding, also of the tails; no value depends on the others of its batch. Differentiable once: by
    the implicit function theorem the last step, on the converged root, carries the derivative with respect to n and all
    parameters. Raises `LatticeflowError` where it does not get there.
    """
    log_tail = torch.special.log_ndtr(-n.abs())
    with torch.no_grad():
        reach, width = c.abs().max(), log_s.exp().max()
        grid = (reach + 8 * width) * torch.linspace(0, 1, GRID, dtype=n.dtype, device=n.device)
        above = torch.searchsorted(-log_upper_tail(grid, log_p, c, log_s), -log_tail).clamp_min(1)
        # no Gaussian's tail at c + s |n| is more than that of |n|, hence r's at the largest of them is not
        ends = torch.cat([grid, grid.new_full((1,), torch.inf)])
        low, high = grid[above - 1], torch.minimum(ends[above], reach + width * (n.abs() + 1))
        h, done = 0.5 * (low + high), torch.zeros_like(n, dtype=torch.bool)
        for _ in range(ITERATIONS):
            here = log_upper_tail(h, log_p, c, log_s)
            low, high = torch.where(here > log_tail, h, low), torch.where(here > log_tail, high, h)
            step = (here - log_tail) * (here - log_density(h, log_p, c, log_s)).exp()
            last = step.abs() <= STEP * (1 + high)
            inside = (h + step > low) & (h + step < high)
            new = torch.where(last | inside, h + step, 0.5 * (low + high))
            h, done = torch.where(done, h, new), done | last
            if bool(done.all()):
                break
        else:
            raise LatticeflowError(
                f"quantile of a Gaussian mixture: not converged after {ITERATIONS} iterations for "
                f"{int((~done).sum())} of {len(n)} values; are the parameters and the noise finite?"
            )
        slope = (log_upper_tail(h, log_p, c, log_s) - log_density(h, log_p, c, log_s)).exp()
    h = h + (log_upper_tail(h, log_p, c, log_s) - log_tail) * slope
    return n.sign() * h
