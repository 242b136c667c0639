"""Mixtures of non-compact projections of the circle (2002.02428, sec. 2.1; 2003.06413, eq. 15), with log-derivatives:

`h(x) = sum_i rho_i 2 arctan( e^{s_i} tan(x / 2) )`, `h'(x) = sum_i rho_i e^{s_i} / ( cos^2(x/2) + e^{2 s_i} sin^2(x/2) )`,

rho_i >= 0, `sum_i rho_i = 1`: monotone, odd, 0 and pi in their places, smooth on the whole circle. Angles may be any real
numbers; results lie in [-pi, pi].
"""

import math

import torch
from torch import Tensor

from ..groups import wrap

ITERATIONS = 64  # of the inverse, at most: halving alone needs 55 in float64


def project(x: Tensor, log_rho: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`(h(x), log h'(x))`, shape of x, `[...]`; `log_rho` (normalised) and s `[..., components]`."""
    half = wrap(x).unsqueeze(-1) / 2
    sine, cosine, scale, rho = half.sin(), half.cos(), s.exp(), log_rho.exp()
    y = (rho * 2 * torch.atan2(scale * sine, cosine)).sum(-1)
    slope = (rho * scale / (cosine.square() + (scale * sine).square())).sum(-1)
    return y, slope.log()


def project_inverse(y: Tensor, log_rho: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """`(x, log dx/dy)` with h(x) = y: Newton's steps in a bracket that shrinks; differentiable in all."""
    y = wrap(y)
    x = _solve(y.detach(), log_rho.detach(), s.detach())
    reached, log_slope = project(x, log_rho, s)
    # one Newton step more, which is zero to rounding, carries the derivatives of the implicit function
    x = x - (reached - y) * (-log_slope.detach()).exp()
    return x, -project(x, log_rho, s)[1]


@torch.no_grad()
def _solve(y: Tensor, log_rho: Tensor, s: Tensor) -> Tensor:
    low, high, x = torch.full_like(y, -math.pi), torch.full_like(y, math.pi), y
    allowed = 4 * torch.finfo(y.dtype).eps
    for _ in range(ITERATIONS):
        reached, log_slope = project(x, log_rho, s)
        off = reached - y
        low, high = torch.where(off < 0, x, low), torch.where(off < 0, high, x)
        step = off * (-log_slope).exp()
        newton, middle = x - step, (low + high) / 2
        x = torch.where((newton >= low) & (newton <= high), newton, middle)
        if not ((step.abs() > allowed) & (high - low > allowed)).any():
            break
    return x
