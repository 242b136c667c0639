"""Weights that go on from one lattice to another: kernels are functions of displacement, spectra of momentum."""

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice


def representatives(lattice: Lattice) -> np.ndarray:
    """The folded, sorted displacement of each orbit, int64 `[orbits, D]`, `0 <= d_mu <= L_mu / 2`."""
    sides = np.array(lattice.shape)
    found = np.empty((int(lattice.displacement_orbits.max()) + 1, lattice.dim), dtype=np.int64)
    found[lattice.displacement_orbits.ravel()] = lattice.coordinates
    return np.minimum(found, sides - found)


def require_same_dim(source: Lattice, target: Lattice) -> None:
    if source.dim != target.dim:
        raise InputError(
            f"a flow on {source.shape} cannot go on to {target.shape}: {source.dim} and {target.dim} dimensions"
        )


def travel_kernel(kernel: Tensor, source: Lattice, target: Lattice) -> Tensor:
    """A kernel `[..., orbits]` of `source` as one of `target`: same K(d), zero beyond the reach of `source`.

    A displacement of half a side is its own mirror image on `source`, and two (four, ...) different ones on a larger
    `target`: they share its value. On a smaller lattice, displacements are cut off at half a side, whose images are
    summed. Raises `InputError` for another number of dimensions.
    """
    require_same_dim(source, target)
    out = kernel.new_zeros(*kernel.shape[:-1], int(target.displacement_orbits.max()) + 1)
    if source.shape == target.shape:
        return out.copy_(kernel)
    half, reach = np.array(source.shape) // 2, np.array(target.shape) // 2
    even = np.array(source.shape) % 2 == 0
    for orbit, d in enumerate(representatives(target)):
        if (d > half).any():
            continue
        share = 0.5 ** int(((d == half) & even & (d < reach)).sum())
        wider = (d == reach) & (np.array(target.shape) % 2 == 0) & (d < half)
        # on the smaller lattice both signs of d_mu = L/2 fall on one site
        share *= 2.0 ** int(wider.sum())
        out[..., orbit] = share * kernel[..., int(source.displacement_orbits[tuple(d)])]
    return out


def travel_spectrum(values: Tensor, source: Lattice, target: Lattice) -> Tensor:
    """Values `[orbits]` of the momentum k on `source`, at the momenta of `target`: interpolated linearly in each `k_mu`.

    Raises `InputError` for another number of dimensions.
    """
    require_same_dim(source, target)
    if source.shape == target.shape:
        return values.clone()
    grid = values.detach().double().cpu().numpy()[source.displacement_orbits]
    for mu, side in enumerate(target.shape):
        at = np.arange(side) / side * source.shape[mu]
        low = np.floor(at).astype(int)
        part = (at - low).reshape([-1 if axis == mu else 1 for axis in range(target.dim)])
        take = [np.take(grid, (low + more) % source.shape[mu], axis=mu) for more in (0, 1)]
        grid = (1 - part) * take[0] + part * take[1]
    out = np.empty(int(target.displacement_orbits.max()) + 1)
    out[target.displacement_orbits.ravel()] = grid.ravel()
    return torch.from_numpy(out).to(values)
