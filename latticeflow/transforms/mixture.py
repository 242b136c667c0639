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


def upper_tail(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """`P(h' > h) = sum_j p_j [ erfc(t_j^+) + erfc(t_j^-) ] / 4`, `t_j^{+-} = (h -+ c_j) / (sqrt(2) s_j)`, `[batch]`."""
    t, p, _ = _standardised(h, log_p, c, log_s)
    return 0.25 * torch.erfc(t) @ p


def _standardised(h: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`t` `[batch, 2 J]` of `upper_tail`, and p and s of its columns."""
    s = torch.cat([log_s, log_s]).exp()
    t = (h.unsqueeze(-1) - torch.cat([c, -c])) / (math.sqrt(2) * s)
    return t, torch.cat([log_p, log_p]).exp(), s


def from_normal(n: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """The h whose upper tail is that of the standard normal n: if n is normal, h has the density r. Odd and rising in n.

    Newton's iteration on the logarithm of the tail of |n|, kept inside a bracket from a table, until a step is 1e-6; it and
    one more leave only rounding, also of the tails; no value depends on the others of its batch. Differentiable once: by
    the implicit function theorem the last step, on the converged root, carries the derivative with respect to n and all
    parameters. Raises `LatticeflowError` where it does not get there.
    """
    tail = 0.5 * torch.erfc(n.abs() / math.sqrt(2))
    with torch.no_grad():
        reach, width = c.abs().max(), log_s.exp().max()
        grid = (reach + 8 * width) * torch.linspace(0, 1, GRID, dtype=n.dtype, device=n.device)
        table = upper_tail(grid, log_p, c, log_s)
        above = torch.searchsorted(-table, -tail).clamp_min(1)
        # no Gaussian's tail at c + s |n| is more than that of |n|, hence r's at the largest of them is not
        ends = torch.cat([grid, grid.new_full((1,), torch.inf)])
        low, high = grid[above - 1], torch.minimum(ends[above], reach + width * (n.abs() + 1))
        h, log_tail, done = 0.5 * (low + high), tail.log(), torch.zeros_like(n, dtype=torch.bool)
        for _ in range(ITERATIONS):
            t, p, s = _standardised(h, log_p, c, log_s)
            here, density = (
                0.25 * torch.erfc(t) @ p,
                t.square().neg().exp() @ (p / s) / math.sqrt(8 * math.pi),
            )
            low, high = torch.where(here > tail, h, low), torch.where(here > tail, high, h)
            step = (here.log() - log_tail) * here / density  # not a number where both underflow: then bisect
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
        density = log_density(h, log_p, c, log_s).exp()
    h = h + (upper_tail(h, log_p, c, log_s) - tail) / density
    return n.sign() * h
