"""Independent matrices of SU(2) and SU(3) with the density of one plaquette, `p(P) = exp((beta / N) Re tr P) / c_0`.

`P = V e^{i theta} V^dagger` with V Haar distributed and the class by rejection: from steps that lie above its density on a
grid of cells of `class_maps`' coordinates. Exact: `draw` raises where a density lies above its step (beta beyond 10,000).
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..groups import GROUPS
from .class_maps import alcove_angles, densities

CELLS, WITHIN = (128, 64), 8  # of sigma and rho; places of each in which its largest density is sought
ABOVE = 1.01  # times what is found there


def draw(n: int, beta: float, count: int, rng: np.random.Generator) -> Tensor:
    """`[count, N, N]`, complex128 on the CPU, n = N = 2 or 3."""
    found = [np.empty((0, 2))]
    while (missing := count - sum(map(len, found))) > 0:
        found.append(_proposed(n, beta, missing + missing // 8 + 8, rng))
    sigma, rho = torch.from_numpy(np.concatenate(found)[:count].T)
    angles = torch.stack([sigma, -sigma], -1) if n == 2 else alcove_angles(sigma, rho)
    v = GROUPS[f"su{n}"].haar((count,), rng, torch.float64)
    return v @ (torch.polar(torch.ones_like(angles), angles)[..., None] * v.mH)


def _proposed(n: int, beta: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """sigma and rho of those of `count` proposals that are accepted, `[accepted, 2]`."""
    heights, below = _steps(n, beta)
    cell = np.searchsorted(below, below[-1] * rng.random(count), side="right").clip(max=heights.size - 1)
    places = np.unravel_index(cell, heights.shape)
    sigma, rho = (math.pi * (k + rng.random(count)) / cells for k, cells in zip(places, heights.shape))
    density = np.multiply(*densities(n, sigma, rho, beta))
    if (density > heights.ravel()[cell]).any():
        raise InputError(
            f"plaquettes of SU({n}) at beta = {beta}: the density is too narrow to be drawn; expected a smaller beta"
        )
    accepted = heights.ravel()[cell] * rng.random(count) < density
    return np.stack([sigma, np.where(rng.random(count) < 0.5, rho, -rho)], 1)[accepted]


@lru_cache(maxsize=32)
def _steps(n: int, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """Heights `[cells of sigma, cells of rho]` (SU(2): one of rho), and their sum up to each cell."""
    cells = CELLS if n == 3 else (CELLS[0], 1)
    grid = [np.linspace(0, math.pi, k * WITHIN + 1) for k in cells]
    density = np.multiply(*densities(n, grid[0][:, None], grid[1], beta)) * np.ones((1, len(grid[1])))
    rows, columns = (np.arange(k)[:, None] * WITHIN + np.arange(WITHIN + 1) for k in cells)  # ends included
    heights = ABOVE * density[rows[:, :, None, None], columns].max((1, 3))
    return heights, heights.cumsum()
