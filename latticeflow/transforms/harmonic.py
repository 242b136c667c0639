"""The monotone map of one real variable made of a line and harmonics, whose coefficients may differ from site to site.

`g(x) = e^a x + sum_{f=1}^S [ A_f sin(f w x) + B_f cos(f w x) ]`, invertible where `sum_f f w (|A_f| + |B_f|) < e^a`, since
then `g' > 0`. Odd, hence Z2 equivariant, where A is even and B odd in whatever they depend on.

x `[n, batch]`, A and B `[n, S, batch]` or anything that broadcasts to it; a and w scalars.
"""

import torch
from torch import Tensor

from ..errors import LatticeflowError

ITERATIONS = 60


def frequencies(w: Tensor, order: int) -> Tensor:
    """`f w`, `[order, 1]`, f = 1 to `order`."""
    return (w * torch.arange(1, order + 1, dtype=w.dtype, device=w.device))[:, None]


def sines(x: Tensor, w: Tensor, order: int) -> Tensor:
    """`sin(f w x)`, `[n, order, batch]`, f = 1 to `order`.

    Where derivatives are recorded, in few operations; else by Chebyshev's recurrence from the first, which is as exact at
    orders in use, and takes one sine and one cosine for all.
    """
    if torch.is_grad_enabled():
        return (x[:, None] * frequencies(w, order)).sin()
    angle = w * x
    return torch.stack(multiples(torch.zeros_like(x), angle.sin(), 2 * angle.cos(), order), 1)


def harmonics(x: Tensor, w: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """`sines`, and as many cosines."""
    if torch.is_grad_enabled():
        angle = x[:, None] * frequencies(w, order)
        return angle.sin(), angle.cos()
    angle = w * x
    cos = angle.cos()
    sin_f = multiples(torch.zeros_like(x), angle.sin(), 2 * cos, order)
    return torch.stack(sin_f, 1), torch.stack(multiples(torch.ones_like(x), cos, 2 * cos, order), 1)


def multiples(zeroth: Tensor, first: Tensor, twice: Tensor, order: int) -> list[Tensor]:
    """Those of f = 1 to `order`, from f = 0 and 1, `twice` the first cosine."""
    found = [zeroth, first]
    for _ in range(2, order + 1):
        found.append(twice * found[-1] - found[-2])
    return found[1 : order + 1]


class HarmonicMap:
    """g of the module's docstring at x, and its derivatives."""

    def __init__(self, x: Tensor, log_slope: Tensor, A: Tensor, B: Tensor, w: Tensor):
        self.x, self.slope, self.A, self.B = x, log_slope.exp(), A, B
        self.frequency = frequencies(w, A.shape[-2])
        self.sin, self.cos = harmonics(x, w, A.shape[-2])

    def value(self) -> Tensor:
        return torch.addcmul((self.A * self.sin).addcmul(self.B, self.cos).sum(1), self.slope, self.x)

    def first(self) -> Tensor:
        """`g'`."""
        return self.slope + (self.frequency * (self.A * self.cos).addcmul(self.B, self.sin, value=-1)).sum(1)

    def second(self) -> Tensor:
        """`g''`."""
        return -(self.frequency.square() * (self.A * self.sin).addcmul(self.B, self.cos)).sum(1)

    def change(self, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """What `A` and `B` more than there are add to `g` and `g'`."""
        value = (A * self.sin).addcmul(B, self.cos).sum(1)
        return value, (self.frequency * (A * self.cos).addcmul(B, self.sin, value=-1)).sum(1)


def harmonic_inverse(y: Tensor, log_slope: Tensor, A: Tensor, B: Tensor, w: Tensor) -> Tensor:
    """`x = g^{-1}(y)`.

    Newton's iteration kept inside the bracket `|e^a x - y| <= r = sum_f (|A_f| + |B_f|)`, until
    `|g(x) - y| <= 16 eps (|y| + r)` with eps of the dtype; raises `LatticeflowError` if it does not get there.
    Differentiable: by the implicit function theorem one more Newton step on the converged root carries the exact first
    derivative with respect to y and all parameters.
    """
    with torch.no_grad():
        slope, reach = log_slope.exp(), (A.abs() + B.abs()).sum(-2)
        low, high = (y - reach) / slope, (y + reach) / slope
        x = y / slope
        tolerance = 16 * torch.finfo(y.dtype).eps * (y.abs() + reach)
        for _ in range(ITERATIONS):
            g = HarmonicMap(x, log_slope, A, B, w)
            miss = g.value() - y
            done = miss.abs() <= tolerance
            if bool(done.all()):
                break
            high = torch.where(miss > 0, x, high)
            low = torch.where(miss > 0, low, x)
            step = x - miss / g.first()
            step = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
            # a root that is found is an end of its bracket: its step would be the bracket's middle
            x = torch.where(done, x, step)
        else:
            raise LatticeflowError(
                f"inverse of the harmonic map: not converged after {ITERATIONS} iterations, "
                f"largest miss {float(miss.abs().max()):.2e}; are the weights and the fields finite?"
            )
    g = HarmonicMap(x, log_slope, A, B, w)
    return x - (g.value() - y) / g.first().detach()
