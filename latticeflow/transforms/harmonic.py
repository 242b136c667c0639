"""Harmonics of one sine, and the odd monotone map of one real variable made of a line and them.

`g(x) = e^a x + sum_{f=1}^F c_f sin(f w x)` with `r = sum_f |c_f f w| < e^a`, so that
`g'(x) = e^a + sum_f c_f f w cos(f w x) >= e^a - r > 0`: invertible, and odd, hence Z2 equivariant.

Harmonics follow from one sine and one cosine by recurrence, so that any number of them costs no further ones.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

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


def _clenshaw(c: Tensor, twice_cos: Tensor) -> tuple[Tensor, Tensor]:
    """`(b_1, b_2)` of Clenshaw's recurrence `b_f = c_f + 2 cos(t) b_{f+1} - b_{f+2}`, stable for any order.

    `sum_f c_f sin(f t) = sin(t) b_1` and `sum_f c_f cos(f t) = cos(t) b_1 - b_2`.
    """
    *lower, last = c.unbind()
    b1, b2 = last.expand_as(twice_cos), torch.zeros_like(last)
    for one in reversed(lower):
        b1, b2 = torch.addcmul(one - b2, twice_cos, b1), b1
    return b1, b2


class _Parts:
    """sin and cos of w x, and `g`, `g'` and `g''` as sums over harmonics of them."""

    def __init__(self, x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor):
        angle = w * x
        self.x, self.slope, self.c = x, log_slope.exp(), c
        self.sin, self.cos = angle.sin(), angle.cos()
        self.twice_cos = 2 * self.cos
        self.frequency = w * torch.arange(1, len(c) + 1, dtype=c.dtype, device=c.device)

    def value(self) -> Tensor:
        b1, _ = _clenshaw(self.c, self.twice_cos)
        return torch.addcmul(self.slope * self.x, self.sin, b1)

    def first(self) -> Tensor:
        b1, b2 = _clenshaw(self.c * self.frequency, self.twice_cos)
        return torch.addcmul(self.slope - b2, self.cos, b1)

    def second(self) -> Tensor:
        b1, _ = _clenshaw(self.c * self.frequency.square(), self.twice_cos)
        return -self.sin * b1


class _HarmonicMap(torch.autograd.Function):
    """`(g(x), log g'(x) summed over sites, score of y)`: derivatives in closed form, with what the value needed kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, score: Tensor | None, log_slope: Tensor, c: Tensor, w: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        parts = _Parts(x, log_slope, c, w)
        first = parts.first()
        if score is not None:
            score = (score - parts.second() / first) / first
            ctx.mark_non_differentiable(score)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, log_slope, c, w, first)
        return parts.value(), site_sum(first.log()), score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor | None, grad_log_det: Tensor | None, _: Tensor | None):  # type: ignore[override]
        x, log_slope, c, w, first = ctx.saved_tensors
        parts, harmonics = (
            _Parts(x, log_slope, c, w),
            torch.arange(1, len(c) + 1, dtype=c.dtype, device=c.device),
        )
        line = first - parts.slope  # w / x times the derivative of g by w
        grad_x, grad_a, grad_c, grad_w = (
            torch.zeros_like(x),
            x.new_zeros(()),
            torch.zeros_like(c),
            x.new_zeros(()),
        )
        if grad_y is not None:
            grad_x = grad_y * first
            grad_a = grad_a + parts.slope * (grad_y * x).sum()
            sin = _recur(torch.zeros_like(x), parts.sin, parts.twice_cos, len(c))
            grad_c = grad_c + torch.stack([(grad_y * one).sum() for one in sin])
            grad_w = grad_w + (grad_y * x * line).sum() / w
        if grad_log_det is not None:
            share, second = grad_log_det.to(x.dtype)[:, None] / first, parts.second()
            grad_x = grad_x + share * second
            grad_a = grad_a + parts.slope * share.sum()
            cos = _recur(torch.ones_like(x), parts.cos, parts.twice_cos, len(c))
            grad_c = grad_c + w * harmonics * torch.stack([(share * one).sum() for one in cos])
            grad_w = grad_w + (share * (line + x * second)).sum() / w
        return grad_x, None, grad_a, grad_c, grad_w


def harmonic_map(x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`y = g(x)` and `log_det = sum log g'(x)`.

    x `[batch, n]`; `log_slope` = a and `w` scalars, `c` `[F]`, F >= 1. Returns `[batch, n]` and `[batch]`.
    """
    y, log_det, _ = _HarmonicMap.apply(x, None, log_slope, c, w)
    return y, log_det


def harmonic_map_with_score(
    x: Tensor, score: Tensor, log_slope: Tensor, c: Tensor, w: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`harmonic_map`, and the score of y: `(score - g''/g') / g'`, without gradient."""
    return _HarmonicMap.apply(x, score, log_slope, c, w)


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
            done = miss.abs() <= tolerance
            if bool(done.all()):
                break
            high = torch.where(miss > 0, x, high)
            low = torch.where(miss > 0, low, x)
            step = x - miss / parts.first()
            step = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
            # a root that is found is an end of its bracket: its step would be the bracket's middle
            x = torch.where(done, x, step)
        else:
            raise LatticeflowError(
                f"inverse of the harmonic map: not converged after {ITERATIONS} iterations, "
                f"largest miss {float(miss.abs().max()):.2e}; are the weights and the fields finite?"
            )
    parts = _Parts(x, log_slope, c, w)
    x = x - (parts.value() - y) / parts.first().detach()
    return x, -site_sum(_Parts(x, log_slope, c, w).first().log())
