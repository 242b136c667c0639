"""One-dimensional densities that maps follow: u in [0, 1] to a variable in [low, high], with the log of dx/du, and back."""

import math

import torch
from torch import Tensor


def power(
    u: Tensor, low: Tensor, high: Tensor, exponent: float, shift: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """x of density proportional to `(x + shift)^-exponent` on [low, high], and `log dx/du`.

    With `a = low + shift`, `r = log(high + shift) - log a`, `k = 1 - exponent`: `x + shift = a exp(r t)` with `t = u` for k
    = 0, else `t = log(1 + u (exp(k r) - 1)) / (k r)`.
    """
    a = torch.maximum(low + shift, 1e-30 * high)
    r = ((high - low) / a).log1p()
    k = 1 - exponent
    if k == 0:
        step, log_slope = r * u, r.log()
    else:
        span = torch.expm1(k * r)
        step = torch.log1p(u * span) / k
        log_slope = (span / k).log() - k * step
    return low + a * torch.expm1(step), log_slope + a.log() + step


def power_inverse(
    x: Tensor, low: Tensor, high: Tensor, exponent: float, shift: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """u of x, and `log dx/du` as `power` gives it."""
    a = torch.maximum(low + shift, 1e-30 * high)
    r = ((high - low) / a).log1p()
    step = ((x - low) / a).log1p()
    k = 1 - exponent
    if k == 0:
        return step / r, r.log() + a.log() + step
    span = torch.expm1(k * r)
    return torch.expm1(k * step) / span, (span / k).log() - k * step + a.log() + step


def breit_wigner(u: Tensor, low: Tensor, high: Tensor, mass: float, width: float) -> tuple[Tensor, Tensor]:
    """s of density proportional to `1 / ((s - m^2)^2 + m^2 Gamma^2)` on [low, high], and `log ds/du`: `s = m^2 + m Gamma
    tan(angle)`."""
    unit = mass * width
    start = ((low - mass**2) / unit).atan()
    span = ((high - mass**2) / unit).atan() - start
    tangent = (start + span * u).tan()
    s = torch.minimum(torch.maximum(mass**2 + unit * tangent, low), high)
    return s, (span * unit).log() + ((s - mass**2) / unit).square().log1p()


def breit_wigner_inverse(
    s: Tensor, low: Tensor, high: Tensor, mass: float, width: float
) -> tuple[Tensor, Tensor]:
    """u of s, and `log ds/du` as `breit_wigner` gives it."""
    unit = mass * width
    start = ((low - mass**2) / unit).atan()
    span = ((high - mass**2) / unit).atan() - start
    offset = (s - mass**2) / unit
    return (offset.atan() - start) / span, (span * unit).log() + offset.square().log1p()


def onset(u: Tensor, start: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """x on [0, 1] of density proportional to `start + 1 - width^2 / (x + width)^2`, and `log dx/du`.

    It rises from `start` within about the width; its integral `x^2 / (x + width) + start x` is inverted by a quadratic.
    """
    total = 1 / (1 + width) + start
    g = total * u
    b = start * width - g
    root = (b.square() + 4 * (1 + start) * width * g).sqrt()
    x = torch.where(b > 0, 2 * width * g / (b + root), (root - b) / (2 * (1 + start)))
    return x, _onset_slope(x, start, width)


def onset_inverse(x: Tensor, start: Tensor, width: float) -> tuple[Tensor, Tensor]:
    """u of x, and `log dx/du` as `onset` gives it."""
    u = (x.square() / (x + width) + start * x) / (1 / (1 + width) + start)
    return u, _onset_slope(x, start, width)


def _onset_slope(x: Tensor, start: Tensor, width: float) -> Tensor:
    density = start + x * (x + 2 * width) / (x + width).square()
    return (1 / (1 + width) + start).log() - density.log()


def peaked_angle(u: Tensor, k: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """An angle in [-largest, largest], of density proportional to `1 / (k^2 cos^2(x/2) + sin^2(x/2))`, and `log dx/du`.

    `tan(x/2) = k tan(t/2)` with t uniform: a wrapped Cauchy density, flat for k = 1 and a peak of width 2 k at 0 for small
    k.
    """
    half = ((largest / 2).sin()).atan2(k * (largest / 2).cos())  # of t
    t = half * (2 * u - 1)
    x = 2 * torch.atan2(k * t.sin(), t.cos())
    return x, _slope(t, k, half)


def peaked_angle_inverse(x: Tensor, k: Tensor, largest: Tensor) -> tuple[Tensor, Tensor]:
    """u of the angle x in (-pi, pi], and `log dx/du` as `peaked_angle` gives it."""
    half = ((largest / 2).sin()).atan2(k * (largest / 2).cos())
    t = torch.atan2((x / 2).sin(), k * (x / 2).cos())
    return (t / half + 1) / 2, _slope(t, k, half)


def _slope(t: Tensor, k: Tensor, half: Tensor) -> Tensor:
    """`dx/du = 2 * 2 half k / (cos^2 t + k^2 sin^2 t)`, t here half of the uniform angle."""
    return math.log(4) + half.log() + k.log() - (t.cos().square() + (k * t.sin()).square()).log()
