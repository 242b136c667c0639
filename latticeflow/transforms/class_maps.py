"""Maps of SU(2) and SU(3) by conjugacy class that take Haar's measure to the density of one plaquette,

`p(P) ~ exp((beta / N) Re tr P)`, but for a share e = `FLOOR` that stays Haar distributed and bounds the slopes.

Coordinates of a class: SU(2) sigma, the angle in [0, pi]; SU(3) `sigma = (alpha_1 + alpha_2) / 2` in [0, pi] and
`rho = pi (alpha_1 - alpha_2) / (alpha_1 + alpha_2)` in [-pi, pi], `alpha_i = theta_i - theta_{i+1}` of the alcove
(`spectral`), under P -> P^* sigma and -rho. Triangular: sigma by a spline, then rho by a spline that depends on the new
sigma (Rosenblatt 1952). Haar's density: `sin^2 sigma`; `sigma sin^2 sigma sin^2(alpha_1 / 2) sin^2(alpha_2 / 2)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .circular import Knots, circle_inverse, circle_map
from .spectral import spectral

FLOOR = 1e-5
BINS, RHO_BINS = 64, 32
FINE = 32  # points of the tables in each bin


def _no_rho(sigma: Tensor) -> Knots:
    raise TypeError("a stage of SU(2) has no rho")


@dataclass(frozen=True)
class Stage:
    """sigma's knots, and rho's as a function of the new sigma (SU(3))."""

    sigma: Knots
    rho: Callable[[Tensor], Knots] = _no_rho


def move(p: Tensor, stages: list[Stage], share: float | None = None) -> tuple[Tensor, Tensor]:
    """P `[..., N, N]` after all stages, and `log |det|` with respect to Haar's measure; `share` as of `spectral`."""
    return spectral(p, lambda angles: _along(angles, stages, circle_map), share)


def move_back(p: Tensor, stages: list[Stage], share: float | None = None) -> tuple[Tensor, Tensor]:
    """The inverse of `move`; with a `share` the turn is the inverse of its."""
    return spectral(p, lambda angles: _along(angles, stages[::-1], circle_inverse), share)


def _along(angles: Tensor, stages: list[Stage], by) -> tuple[Tensor, Tensor, Tensor]:
    apart = torch.finfo(angles.dtype).eps ** 0.5  # where angles meet derivatives are 0 / 0
    if angles.shape[-1] == 2:
        start = angles[..., 0].clamp(apart, math.pi - apart)
        sigma, total = start, torch.zeros_like(start)
        for stage in stages:
            sigma, log_slope = by(sigma, stage.sigma)
            total = total + log_slope
        return torch.stack([sigma, -sigma], -1), torch.stack([start, -start], -1), total
    first, second = ((angles[..., i] - angles[..., i + 1]).clamp_min(apart) for i in (0, 1))
    start = ((first + second) / 2).clamp_max(math.pi - apart)
    begun = math.pi * (first - second) / (first + second)
    sigma, rho, total = start, begun, torch.zeros_like(start)
    for stage in stages:
        new, log_sigma = by(sigma, stage.sigma)
        rho, log_rho = by(rho, stage.rho(new if by is circle_map else sigma))
        total = total + log_sigma + log_rho + (new / sigma).log()  # d alpha_1 d alpha_2 ~ sigma d sigma d rho
        sigma = new
    return alcove_angles(sigma, rho), alcove_angles(start, begun), total


def alcove_angles(sigma: Tensor, rho: Tensor) -> Tensor:
    """theta `[..., 3]` of the coordinates of SU(3)'s classes."""
    first, second = sigma * (1 + rho / math.pi), sigma * (1 - rho / math.pi)
    return torch.stack([2 * first + second, second - first, -first - 2 * second], -1) / 3


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not be used under autograd later
def reference(n: int, beta: float, device: torch.device) -> Stage:
    """The map of the module's docstring, n = 2 or 3, float64."""
    radial, rows = (torch.from_numpy(one).to(device) for one in _tables(n, beta))
    x, y, d = radial
    if n == 2:
        return Stage((x, y, d))

    def rho(sigma: Tensor) -> Knots:
        place = sigma * (BINS / math.pi)
        k = place.detach().floor().clamp(0, BINS - 1).long()
        part = (place - k)[..., None, None]
        x, y, d = torch.lerp(rows[k], rows[k + 1], part).unbind(-2)
        return x, y, d

    return Stage((x, y, d), rho)


def densities(n: int, sigma, rho, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Haar's, up to a constant, and `exp((beta / N) Re tr (P - 1))`, at the coordinates of classes (SU(2) has no rho)."""
    if n == 2:
        return np.sin(sigma) ** 2, np.exp(beta * (np.cos(sigma) - 1))
    first, second = sigma * (1 + rho / math.pi), sigma * (1 - rho / math.pi)
    haar = sigma * (np.sin(sigma) * np.sin(first / 2) * np.sin(second / 2)) ** 2
    trace = sum(np.cos(one / 3) for one in (2 * first + second, second - first, first + 2 * second))
    return haar, np.exp(beta / 3 * (trace - 3))


def _tables(n: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """sigma's knots `[3, BINS + 1]`; of SU(3) also rho's at each of sigma's, `[BINS + 1, 3, RHO_BINS + 1]`."""
    sigma = np.linspace(0, math.pi, BINS * FINE + 1)
    if n == 2:
        haar, boltzmann = densities(n, sigma, None, beta)
        mean = (haar * boltzmann).sum() / haar.sum()
        return _knots(haar, haar * _ratio(boltzmann, mean), BINS), np.empty(0)
    rho = np.linspace(0, math.pi, RHO_BINS * FINE + 1)  # both densities are even in rho
    ends = np.where((rho == 0) | (rho == math.pi), 0.5, 1.0)
    haar, boltzmann = densities(n, sigma[:, None], rho, beta)
    mean = ((haar * boltzmann) @ ends).sum() / (haar @ ends).sum()
    radial = _knots(haar @ ends, (haar * _ratio(boltzmann, mean)) @ ends, BINS)
    rows = []
    for x, y in np.clip(
        radial[:2].T, 0.01, math.pi - 0.01
    ):  # at the ends Haar's density vanishes for all rho
        of_y, boltzmann = densities(n, y, rho, beta)
        rows.append(_knots(densities(n, x, rho, beta)[0], of_y * _ratio(boltzmann, mean), RHO_BINS))
    return radial, np.stack(rows)


def _ratio(boltzmann: np.ndarray, mean: float) -> np.ndarray:
    """p over Haar's density."""
    return (1 - FLOOR) * boltzmann / mean + FLOOR


def _knots(source: np.ndarray, aim: np.ndarray, bins: int) -> np.ndarray:
    """Places, values and slopes `[3, bins + 1]` of the map of [0, pi] from one density to another, known on a grid."""
    grid = np.linspace(0, math.pi, len(source))
    below = [np.concatenate([[0.0], np.cumsum(one[1:] + one[:-1])]) for one in (source, aim)]
    below = [one / one[-1] for one in below]
    density = [one / np.trapezoid(one, grid) for one in (source, aim)]
    every = slice(None, None, (len(grid) - 1) // bins)
    y = grid[every]
    x = np.interp(below[1][every], below[0], grid)
    x[0], x[-1] = 0.0, math.pi
    slope = np.empty_like(x)
    slope[1:-1] = np.interp(x[1:-1], grid, density[0]) / density[1][every][1:-1]
    # at the ends both densities vanish, by the same power
    slope[0], slope[-1] = y[1] / x[1], (math.pi - y[-2]) / (math.pi - x[-2])
    return np.stack([x, y, slope])
