"""The odd monotone map of one real variable made of a line and sines.

`g(x) = e^a x + sum_f c_f sin(w_f x)` with `r = sum_f |c_f w_f| < e^a`, so that
`g'(x) = e^a + sum_f c_f w_f cos(w_f x) >= e^a - r > 0`: invertible, and odd, hence Z2 equivariant.
"""

import torch
from torch import Tensor

from ..errors import LatticeflowError
from .sums import site_sum

ITERATIONS = 60


def sine_map(x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`y = g(x)` and `log_det = sum log g'(x)`.

    x `[batch, n]`; `log_slope` = a, a scalar; `c`, `w` `[F]`. Returns `[batch, n]` and `[batch]`.
    """
    angle = x.unsqueeze(-1) * w
    slope = log_slope.exp()
    y = torch.addcmul(angle.sin() @ c, slope, x)
    return y, site_sum((slope + angle.cos() @ (c * w)).log())


def derivatives(x: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`g'(x)` and `g''(x)`, shape of x."""
    angle = x.unsqueeze(-1) * w
    return log_slope.exp() + angle.cos() @ (c * w), -(angle.sin() @ (c * w * w))


def sine_map_inverse(y: Tensor, log_slope: Tensor, c: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """`x = g^{-1}(y)` and the log_det of this inverse, `-sum log g'(x)`.

    Newton's iteration kept inside the bracket `|e^a x - y| <= sum |c_f|`, until
    `|g(x) - y| <= 8 eps (|y| + sum|c|)` with eps of the dtype; raises `LatticeflowError` if it does not get there.
    Differentiable: by the implicit function theorem one more Newton step on the converged root carries the
    exact first derivative with respect to y and all parameters.
    """
    with torch.no_grad():
        slope, reach = log_slope.exp(), c.abs().sum()
        low, high = (y - reach) / slope, (y + reach) / slope
        x = y / slope
        tolerance = 8 * torch.finfo(y.dtype).eps * (y.abs() + reach)
        for _ in range(ITERATIONS):
            angle = x.unsqueeze(-1) * w
            miss = torch.addcmul(angle.sin() @ c, slope, x) - y
            if bool((miss.abs() <= tolerance).all()):
                break
            high = torch.where(miss > 0, x, high)
            low = torch.where(miss > 0, low, x)
            step = x - miss / (slope + angle.cos() @ (c * w))
            inside = (step > low) & (step < high)
            x = torch.where(inside, step, 0.5 * (low + high))
        else:
            raise LatticeflowError(
                f"inverse of the sine map: not converged after {ITERATIONS} iterations, "
                f"largest miss {float(miss.abs().max()):.2e}; are the weights or the fields finite?"
            )
    angle = x.unsqueeze(-1) * w
    residue = torch.addcmul(angle.sin() @ c, log_slope.exp(), x) - y
    first = log_slope.exp() + angle.cos() @ (c * w)
    x = x - residue / first.detach()
    return x, -site_sum(derivatives(x, log_slope, c, w)[0].log())
