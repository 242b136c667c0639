"""Harmonics of one sine, and the odd monotone map of one real variable made of a line and them.

`g(x) = e^a x + sum_{f=1}^F c_f sin(f w x)` with `r = sum_f |c_f f w| < e^a`, so that
`g'(x) = e^a + sum_f c_f f w cos(f w x) >= e^a - r > 0`: invertible, and odd, hence Z2 equivariant.

Harmonics are polynomials in the cosine (Chebyshev), `sin(f t) = sin(t) U_{f-1}(cos t)` and `cos(f t) = T_f(cos t)`,
so that any number of them costs one sine and one cosine.
"""

from functools import lru_cache

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

from ..errors import LatticeflowError
from .sums import site_sum

ITERATIONS = 60


def sines(x: Tensor, w: Tensor, order: int) -> list[Tensor]:
    """`sin(f w x)` for f = 1 to `order`, by `sin((f+1) t) = 2 cos(t) sin(f t) - sin((f-1) t)`."""
    angle = w * x
    return _recur(torch.zeros_like(x), angle.sin(), 2 * angle.cos(), order)


def cosines(x: Tensor, w: Tensor, order: int) -> list[Tensor]:
    """`cos(f w x)` for f = 1 to `order`, by the same recurrence from `cos(0) = 1`."""
    cos = (w * x).cos()
    return _recur(torch.ones_like(x), cos, 2 * cos, order)


def _recur(before: Tensor, first: Tensor, twice_cos: Tensor, order: int) -> list[Tensor]:
    found = [before, first]
    while len(found) <= order:
        found.append(torch.addcmul(-found[-2], twice_cos, found[-1]))
    return found[1 : order + 1]


@lru_cache
@torch.inference_mode(False)  # a cached inference tensor could not be differentiated through later
def _powers_of_cos(order: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Harmonics as polynomials in the cosine, lowest power first, and their numbers 1 .. F.

    Monomial coefficients of `U_0 .. U_{F-1}` (`[F, F]`; `U_{f-1} = T_f' / f`) and `T_1 .. T_F` (`[F, F + 1]`).
    """
    t = np.array([np.pad(chebyshev.cheb2poly([0] * f + [1]), (0, order - f)) for f in range(1, order + 1)])
    number = np.arange(1, order + 1)
    u = t[:, 1:] * number / number[:, None]
    u_t, t_t, number_t = (torch.tensor(a, dtype=dtype, device=device) for a in (u, t, number))
    return u_t, t_t, number_t


def _horner(coefficients: Tensor, x: Tensor) -> Tensor:
    """`sum_k coefficients_k x^k`."""
    *lower, total = coefficients.unbind()
    total = total.expand_as(x)
    for p in reversed(lower):
        total = torch.addcmul(p, total, x)
    return total


class _Parts:
    """sin and cos of w x, and the coefficients with which `g`, `g'` and `g''` are polynomials in them."""

    def __init__(self, x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor):
        angle = w * x
        self.x, self.slope, self.c, self.w = x, log_slope.exp(), c, w
        self.sin, self.cos = angle.sin(), angle.cos()
        self.u, self.t, number = _powers_of_cos(len(c), c.dtype, c.device)
        self.frequency = w * number

    def value(self) -> Tensor:
        return torch.addcmul(self.slope * self.x, self.sin, _horner(self.c @ self.u, self.cos))

    def first(self) -> Tensor:
        powers = (self.c * self.frequency) @ self.t
        return _horner(torch.cat([powers[:1] + self.slope, powers[1:]]), self.cos)

    def second(self) -> Tensor:
        return -self.sin * _horner((self.c * self.frequency.square()) @ self.u, self.cos)


def harmonic_map(x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`y = g(x)` and `log_det = sum log g'(x)`.

    x `[batch, n]`; `log_slope` = a and `w` scalars, `c` `[F]`, F >= 1. Returns `[batch, n]` and `[batch]`.
    """
    parts = _Parts(x, log_slope, c, w)
    return parts.value(), site_sum(parts.first().log())


def harmonic_map_with_score(
    x: Tensor, score: Tensor, log_slope: Tensor, c: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`harmonic_map`, and the score of y: `(score - g''/g') / g'`, without gradient."""
    parts = _Parts(x, log_slope, c, w)
    first = parts.first()
    with torch.no_grad():
        score = (score - parts.second() / first) / first
    return parts.value(), site_sum(first.log()), score


def harmonic_map_inverse(y: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`x = g^{-1}(y)` and the log_det of this inverse, `-sum log g'(x)`.

    Newton's iteration kept inside the bracket `|e^a x - y| <= sum |c_f|`, until
    `|g(x) - y| <= 16 eps (|y| + sum |c|)` with eps of the dtype; raises `LatticeflowError` if it does not get there.
    Differentiable: by the implicit function theorem one more Newton step on the converged root carries the
    exact first derivative with respect to y and all parameters.
    """
    with torch.no_grad():
        slope, reach = log_slope.exp(), c.abs().sum()
        low, high = (y - reach) / slope, (y + reach) / slope
        x = y / slope
        tolerance = 16 * torch.finfo(y.dtype).eps * (y.abs() + reach)
        for _ in range(ITERATIONS):
            parts = _Parts(x, log_slope, c, w)
            miss = parts.value() - y
            if bool((miss.abs() <= tolerance).all()):
                break
            high = torch.where(miss > 0, x, high)
            low = torch.where(miss > 0, low, x)
            step = x - miss / parts.first()
            x = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
        else:
            raise LatticeflowError(
                f"inverse of the harmonic map: not converged after {ITERATIONS} iterations, "
                f"largest miss {float(miss.abs().max()):.2e}; are the weights and the fields finite?"
            )
    parts = _Parts(x, log_slope, c, w)
    x = x - (parts.value() - y) / parts.first().detach()
    return x, -site_sum(_Parts(x, log_slope, c, w).first().log())
