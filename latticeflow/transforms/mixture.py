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
    centre, width = torch.cat([c, -c]), torch.cat([log_s, log_s]).exp()
    p = torch.cat([log_p, log_p]).exp()
    return 0.25 * (p * torch.erfc((h.unsqueeze(-1) - centre) / (math.sqrt(2) * width))).sum(-1)


def from_normal(n: Tensor, log_p: Tensor, c: Tensor, log_s: Tensor) -> Tensor:
    """The h whose upper tail is that of the standard normal n: if n is normal, h has the density r. Odd and rising in n.

    Newton's iteration on the logarithm of the tail of |n|, kept inside a bracket, until a step is 1e-6; it and one more
    leave only rounding, also of the tails. `LatticeflowError` if it does not get there. Differentiable once: by the implicit
    function theorem the last step, on the converged root, carries the derivative with respect to n and all parameters.
    """
    tail = 0.5 * torch.erfc(n.abs() / math.sqrt(2))
    with torch.no_grad():
        # every Gaussian's tail at c + s |n| is at most that of |n|, hence r's at the largest of them
        low, high = torch.zeros_like(n), c.abs().max() + log_s.exp().max() * (n.abs() + 1)
        h, log_tail = 0.5 * (low + high), tail.log()
        for _ in range(ITERATIONS):
            here = upper_tail(h, log_p, c, log_s)
            low, high = torch.where(here > tail, h, low), torch.where(here > tail, high, h)
            step = (here.log() - log_tail) * here / log_density(h, log_p, c, log_s).exp()
            done = step.abs() <= STEP * (1 + high)
            inside = (h + step > low) & (h + step < high)
            h = torch.where(done | inside, h + step, 0.5 * (low + high))
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
