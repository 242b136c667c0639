"""Monotone maps of the circle that are odd, h(-x) = -h(x), and leave 0 and pi in their places; with their log-derivatives.

On [0, pi] a rational-quadratic spline (Gregory and Delbourgo 1982; Durkan et al., 1906.04032, sec. 3; on circles
2002.02428), odd beyond: continuously differentiable on the whole circle. In bin k, from (x_k, y_k) to (x_{k+1}, y_{k+1})
with slopes d at its ends, `s = (y_{k+1} - y_k) / (x_{k+1} - x_k)` and `t = (x - x_k) / (x_{k+1} - x_k)`,

`h = y_k + (y_{k+1} - y_k) [ s t^2 + d_k t (1 - t) ] / [ s + (d_k + d_{k+1} - 2 s) t (1 - t) ]`.

Angles may be any real numbers; results lie in [-pi, pi].
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..groups import wrap

SMALLEST = 1e-4  # share of a bin in width and in height
LEAST_SLOPE = 1e-4
REFERENCE = 64  # bins of `von_mises_knots`
FLOOR = 1e-3  # its share of uniform angles
Knots = tuple[Tensor, Tensor, Tensor]  # places x, values y and slopes d, `[..., bins + 1]` each


def knots(widths: Tensor, heights: Tensor, slopes: Tensor) -> Knots:
    """Knots from any numbers: `widths`, `heights` `[..., bins]`, `slopes` `[..., bins + 1]`; zeros give the identity."""
    bins = widths.shape[-1]

    def places(logits: Tensor) -> Tensor:
        share = SMALLEST + (1 - bins * SMALLEST) * logits.softmax(-1)
        inner = math.pi * share.cumsum(-1)[..., :-1]
        zero = torch.zeros_like(logits[..., :1])
        return torch.cat([zero, inner, zero + math.pi], -1)

    slope = LEAST_SLOPE + torch.nn.functional.softplus(slopes + math.log(math.expm1(1 - LEAST_SLOPE)))
    return places(widths), places(heights), slope


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not be used under autograd later
def von_mises_knots(kappa: float) -> Knots:
    """Of a map that takes uniform angles to the density `p(y) = (1 - e) exp(kappa cos y) / 2 pi I_0(kappa) + e / 2 pi`, with

    e = `FLOOR`, which bounds its slopes `1 / (2 pi p)`; exact at the knots, which are even in y; float64.
    """
    from scipy.stats import vonmises  # takes a second to import

    y = np.linspace(0, math.pi, REFERENCE + 1)
    below, density = y / math.pi, np.full_like(y, 1 / (2 * math.pi))
    if kappa:
        below = (1 - FLOOR) * (2 * vonmises.cdf(y, kappa) - 1) + FLOOR * below
        density = (1 - FLOOR) * vonmises.pdf(y, kappa) + FLOOR * density
    x, slope = math.pi * below, 1 / (2 * math.pi * density)
    x[-1] = math.pi
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(slope)


def circle_map(x: Tensor, spline: Knots) -> tuple[Tensor, Tensor]:
    """`(h(x), log h'(x))`, shape of x; knots `[bins + 1]`, or `[..., bins + 1]` for x `[...]`."""
    sign, x = _folded(x)
    x0, y0, width, height, d0, d1 = _bin(x, spline, 0)
    s, t = height / width, (x - x0) / width
    product = t * (1 - t)
    below = s + (d0 + d1 - 2 * s) * product
    y = y0 + height * (s * t * t + d0 * product) / below
    slope = s * s * (d1 * t * t + 2 * s * product + d0 * (1 - t) ** 2)
    return sign * y, slope.log() - 2 * below.log()


def circle_inverse(y: Tensor, spline: Knots) -> tuple[Tensor, Tensor]:
    """`(x, log dx/dy)` with h(x) = y."""
    sign, y = _folded(y)
    x0, y0, width, height, d0, d1 = _bin(y, spline, 1)
    s, above = height / width, y - y0
    bend = above * (d0 + d1 - 2 * s)
    a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * above
    t = 2 * c / (-b - (b * b - 4 * a * c).clamp_min(0).sqrt())
    product = t * (1 - t)
    below = s + (d0 + d1 - 2 * s) * product
    slope = s * s * (d1 * t * t + 2 * s * product + d0 * (1 - t) ** 2)
    return sign * (x0 + t * width), 2 * below.log() - slope.log()


def _folded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Sign and size of the angle in (-pi, pi]."""
    x = wrap(x)
    return torch.where(x < 0, -1.0, 1.0).to(x.dtype), x.abs().clamp_max(math.pi)


def _bin(x: Tensor, spline: Knots, ordinate: int) -> tuple[Tensor, ...]:
    """x_k, y_k, width, height and both slopes of the bin that holds x (by its values, where `ordinate` is 1)."""
    edges = spline[ordinate].detach()
    inner = edges[..., 1:-1]
    k = (x.detach().unsqueeze(-1) >= inner).sum(-1, keepdim=True)

    def at(values: Tensor, place: Tensor) -> Tensor:
        return values.expand(*x.shape, -1).gather(-1, place).squeeze(-1)

    (xs, ys, ds), x0, y0 = spline, at(spline[0], k), at(spline[1], k)
    return x0, y0, at(xs, k + 1) - x0, at(ys, k + 1) - y0, at(ds, k), at(ds, k + 1)
