"""Monotone rational-quadratic splines of the unit interval (Gregory and Delbourgo 1982; flows: 1906.04032).

K bins of widths w_k and heights h_k, each summing to 1, and slopes s_0 ... s_K > 0 at the knots. Within a bin, with
`t = (x - x_k) / w_k` and `m = h_k / w_k`,

    y = y_k + h_k [ m t^2 + s_k t (1 - t) ] / D,    D = m + (s_k + s_{k+1} - 2 m) t (1 - t)
    dy/dx = m^2 [ s_{k+1} t^2 + 2 m t (1 - t) + s_k (1 - t)^2 ] / D^2

The slopes at the ends are free. On a circle s_K = s_0, so that the density is continuous there. The inverse solves a
quadratic equation in the form that does not cancel.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

SMALLEST = 1e-4  # width and height of a bin, at least, before normalisation to 1
SHALLOWEST = 1e-3  # slope, at least
_ONE = math.log(math.expm1(1 - SHALLOWEST))  # softplus of this, plus SHALLOWEST, is 1


def parameters(bins: int) -> int:
    """Numbers that a spline of one coordinate takes: 3 K + 1 (K widths, K heights, K + 1 slopes; on a circle K slopes)."""
    return 3 * bins + 1


def knots(raw: Tensor, periodic: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """`raw` `[..., 3 K + 1]`, any numbers, zeros being the identity, to knots x and y `[..., K + 1]` and slopes `[..., K +
    1]`.

    `periodic`: bool, broadcast against `[...]`; there the last slope is the first.
    """
    bins = (raw.shape[-1] - 1) // 3
    both = raw[..., : 2 * bins].unflatten(-1, (2, bins)).softmax(-1)
    both = SMALLEST + (1 - SMALLEST * bins) * both
    edges = functional.pad(both.cumsum(-1)[..., :-1], (1, 1))
    edges[..., -1] = 1.0
    slopes = functional.softplus(raw[..., 2 * bins :] + _ONE) + SHALLOWEST
    if periodic is not None:
        last = torch.where(periodic, slopes[..., 0], slopes[..., -1])
        slopes = torch.cat([slopes[..., :-1], last[..., None]], -1)
    return edges[..., 0, :], edges[..., 1, :], slopes


def _bin(at: Tensor, raw_knots: tuple[Tensor, Tensor, Tensor], along: int) -> tuple[Tensor, ...]:
    """`(x_k, w_k, y_k, h_k, s_k, s_{k+1})` of the bin that `at` lies in; `along`: 0, at is an x; 1, a y."""
    x, y, s = raw_knots
    k = (at.detach()[..., None] >= (x, y)[along].detach()[..., 1:-1]).sum(-1, keepdim=True)
    both = torch.cat([k, k + 1], -1)
    (x0, x1), (y0, y1), (s0, s1) = (a.gather(-1, both).unbind(-1) for a in (x, y, s))
    return x0, x1 - x0, y0, y1 - y0, s0, s1


def forward(x: Tensor, raw_knots: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """x in [0, 1], `[...]`, to `(y, log dy/dx)`."""
    x0, w, y0, h, s0, s1 = _bin(x, raw_knots, 0)
    t = ((x - x0) / w).clamp(0, 1)
    m, u = h / w, t * (1 - t)
    d = m + (s0 + s1 - 2 * m) * u
    y = y0 + h * (m * t * t + s0 * u) / d
    slope = m * m * (s1 * t * t + 2 * m * u + s0 * (1 - t).square()) / (d * d)
    return y.clamp(0, 1), slope.log()


def inverse(y: Tensor, raw_knots: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """y in [0, 1], `[...]`, to `(x, log dx/dy)`."""
    x0, w, y0, h, s0, s1 = _bin(y, raw_knots, 1)
    m, r = h / w, ((y - y0) / h).clamp(0, 1)
    e = s0 + s1 - 2 * m
    # (m - s0 + r e) t^2 + (s0 - r e) t - r m = 0
    b = s0 - r * e
    a, c = m - b, r * m
    root = (b * b + 4 * a * c).clamp_min(0).sqrt()
    small = b > 0  # of the two forms of the root the one that does not cancel
    t = torch.where(small, 2 * c / (b.abs() + root), (root - b) / (2 * torch.where(small, 1.0, a))).clamp(
        0, 1
    )
    u = t * (1 - t)
    d = m + e * u
    slope = m * m * (s1 * t * t + 2 * m * u + s0 * (1 - t).square()) / (d * d)
    return (x0 + w * t).clamp(0, 1), -slope.log()
