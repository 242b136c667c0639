"""Maps of one plaquette with parameters from its surroundings: what coupling layers of gauge fields do.

Each commutes with conjugation, `P -> g P g^dagger`, and with charge conjugation, `P -> P^*`, under which the parameters
`even` `[..., evens]` stay and `odd` `[..., odds]` change their sign. All zero, it is the identity. `forward(P, even, odd)`
and `inverse` return the new P and `log |det|` with respect to Haar's measure, both `[...]`.
"""

import math

import torch
from torch import Tensor

from . import projections
from .circular import circle_inverse, circle_map, knots
from .spectral import spectral


def _spline_numbers(bins: int) -> int:
    return 3 * bins + 1


def _knots(numbers: Tensor):
    bins = (numbers.shape[-1] - 1) // 3
    return knots(*numbers.split([bins, bins, bins + 1], -1))


class MapInContext:
    """`evens`, `odds`: how many parameters there are."""

    evens: int
    odds: int

    def forward(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def inverse(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class TurnedMap(MapInContext):
    """U(1): `P' = h(P - t_1) + t_2`, h an odd map of the circle with even parameters, t the two odd ones."""

    odds = 2

    def h(self, x: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def h_inverse(self, y: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = self.h(p - odd[..., 0], even)
        return y + odd[..., 1], log_slope

    def inverse(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        x, log_slope = self.h_inverse(p - odd[..., 1], even)
        return x + odd[..., 0], log_slope


class CircleSpline(TurnedMap):
    """h a rational-quadratic spline of `bins` bins on [0, pi] (`transforms.circular`)."""

    def __init__(self, bins: int):
        self.evens = _spline_numbers(bins)

    def h(self, x: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        return circle_map(x, _knots(even))

    def h_inverse(self, y: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        return circle_inverse(y, _knots(even))


class Projections(TurnedMap):
    """h a mixture of `components` non-compact projections (`transforms.projections`).

    Their logs s begin apart, antisymmetric about 0, for equal ones would stay equal: then h is not quite the identity.
    """

    def __init__(self, components: int):
        self.components, self.evens = components, 2 * components

    def _parameters(self, even: Tensor) -> tuple[Tensor, Tensor]:
        logits, s = even.split(self.components, -1)
        apart = torch.linspace(-1, 1, self.components) if self.components > 1 else torch.zeros(1)
        return logits.log_softmax(-1), s + 0.2 * apart.to(s)

    def h(self, x: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        return projections.project(x, *self._parameters(even))

    def h_inverse(self, y: Tensor, even: Tensor) -> tuple[Tensor, Tensor]:
        return projections.project_inverse(y, *self._parameters(even))


class SpectralSU2(MapInContext):
    """`theta' = h(theta)` of the angle in [0, pi], h a spline of `bins` bins. Nothing is odd: P^* is conjugate to P."""

    odds = 0

    def __init__(self, bins: int):
        self.evens = _spline_numbers(bins)

    def forward(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(p, circle_map, _knots(even))

    def inverse(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(p, circle_inverse, _knots(even))

    def _move(self, p: Tensor, by, spline) -> tuple[Tensor, Tensor]:
        def move(angles: Tensor):
            apart = _apart(angles)
            theta = angles[..., 0].clamp(apart, math.pi - apart)
            new, log_slope = by(theta, spline)
            return torch.stack([new, -new], -1), torch.stack([theta, -theta], -1), log_slope

        return spectral(p, move)


class SpectralSU3(MapInContext):
    """A map of the alcove's triangle, `alpha_i = theta_i - theta_{i+1}`, in the coordinates

    `s = (alpha_1 + alpha_2) / 2 pi`, `r = alpha_1 / (alpha_1 + alpha_2)`, both in [0, 1],
    `d alpha_1 d alpha_2 = (2 pi)^2 s ds dr`:

    s by a spline; then r by a spline, symmetric about 1/2, whose parameters are linear in s', and by
    `logit r -> logit r + t`, t odd. P^* has s and 1 - r. Edges of the triangle go to themselves: the map is continuous on
    the group.
    """

    odds = 1

    def __init__(self, bins: int):
        self.each = _spline_numbers(bins)
        self.evens = 3 * self.each

    def forward(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        radial, constant, linear = even.split(self.each, -1)

        def move(angles: Tensor):
            s, r = _box(angles)
            s_new, log_s = circle_map(math.pi * s, _knots(radial))
            s_new = s_new / math.pi
            r_new, log_r = circle_map(math.pi * (2 * r - 1), _knots(constant + linear * s_new[..., None]))
            r_new, log_turn = _tilt((r_new / math.pi + 1) / 2, odd[..., 0])
            return _angles(s_new, r_new), _angles(s, r), log_s + log_r + log_turn + (s_new / s).log()

        return spectral(p, move)

    def inverse(self, p: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        radial, constant, linear = even.split(self.each, -1)

        def move(angles: Tensor):
            s, r = _box(angles)
            s_new, log_s = circle_inverse(math.pi * s, _knots(radial))
            s_new = s_new / math.pi
            r_new, log_turn = _tilt(r, -odd[..., 0])
            r_new, log_r = circle_inverse(math.pi * (2 * r_new - 1), _knots(constant + linear * s[..., None]))
            r_new = (r_new / math.pi + 1) / 2
            return _angles(s_new, r_new), _angles(s, r), log_s + log_r + log_turn + (s_new / s).log()

        return spectral(p, move)


def _apart(angles: Tensor) -> float:
    """How far angles are held from meeting, where derivatives are 0/0: half of the digits, met by chance 1 in 1e11 draws."""
    return torch.finfo(angles.dtype).eps ** 0.5


def _box(angles: Tensor) -> tuple[Tensor, Tensor]:
    apart = _apart(angles)
    first, second = ((angles[..., i] - angles[..., i + 1]).clamp_min(apart) for i in (0, 1))
    both = first + second
    return (both / (2 * math.pi)).clamp_max(1 - apart), first / both


def _angles(s: Tensor, r: Tensor) -> Tensor:
    first, second = 2 * math.pi * s * r, 2 * math.pi * s * (1 - r)
    return torch.stack([2 * first + second, second - first, -first - 2 * second], -1) / 3


def _tilt(r: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """`logit r -> logit r + t` and the logarithm of its derivative."""
    up = r * t.exp()
    below = 1 - r + up
    return up / below, t - 2 * below.log()
