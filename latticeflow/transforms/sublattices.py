"""Convolution between the 2^D sublattices of a lattice with even sides, by real Fourier matrices of half the size.

Sublattice c holds the sites whose parities `(s_0 mod 2, ..., s_{D-1} mod 2)` are the binary digits of c. Along an axis of
length L, `cos(2 pi n s / L)` and `sin(2 pi n s / L)` with 0 <= n <= L/4 are an orthogonal basis of the even sites s, and of
the odd ones. A kernel K that is even in every d_mu maps sublattice a to b with one eigenvalue for both, of K where d
has the parities a xor b:

    lambda(n) = sum_{d = a xor b mod 2} K(d) prod_mu cos(2 pi n_mu d_mu / L_mu).

So there are 2^D - 1 kinds of coupling between different sublattices, one within each, and nothing but products with
matrices of size L/2. Fields are `[2^D, V / 2^D, batch]`, batch last.
"""

import math
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ..lattice import Lattice
from .convolution import each_axis

DENSE = 100  # sites of a sublattice up to which one matrix for all axes is faster than one for each


def parities(lattice: Lattice) -> list[tuple[int, ...]]:
    return list(product((0, 1), repeat=lattice.dim))


def site_order(lattice: Lattice) -> np.ndarray:
    """Sites by sublattice, in C order within each, int64 `[V]`. Raises `InputError` for odd sides."""
    lattice.require_even("a flow between sublattices")
    digits = 2 ** np.arange(lattice.dim)[::-1]
    return np.argsort((lattice.coordinates % 2) @ digits, kind="stable")


def _frequencies(side: int) -> list[int]:
    """n of each row of the basis: 0, 1, 1, 2, 2, ..., and L/4 once where that is an integer."""
    pairs = [n for n in range(1, (side + 3) // 4) for _ in range(2)]
    return [0, *pairs, *([side // 4] if side % 4 == 0 else [])]


def _axis_basis(side: int, parity: int) -> Tensor:
    """The orthogonal matrix of one axis, float64 `[n, s]`, s = parity, parity + 2, ..."""
    s, rows = parity + 2 * torch.arange(side // 2, dtype=torch.float64), []
    for i, n in enumerate(frequencies := _frequencies(side)):
        angle = 2 * math.pi * n * s / side
        second = i > 0 and frequencies[i - 1] == n
        row = angle.sin() if second or (4 * n == side and parity) else angle.cos()
        rows.append(row / row.norm())
    return torch.stack(rows)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor could not be differentiated through later
def bases(lattice: Lattice, dtype: torch.dtype, device: torch.device) -> list[list[Tensor]]:
    """For each sublattice the matrices `[n, s]` to apply, one for each axis or one for all."""
    found = []
    for parity in parities(lattice):
        axes = [_axis_basis(side, p) for side, p in zip(lattice.shape, parity)]
        if lattice.volume // 2**lattice.dim <= DENSE:
            whole = torch.ones(1, 1, dtype=torch.float64)
            for axis in axes:
                whole = torch.kron(whole, axis)
            axes = [whole]
        found.append([axis.to(device, dtype) for axis in axes])
    return found


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def eigenvalues(lattice: Lattice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Of the kernel that is 1 on one orbit of displacements, for each kind of coupling, `[2^D, orbits, V / 2^D]`."""
    orbit = torch.from_numpy(lattice.displacement_orbits)
    one_hot = torch.nn.functional.one_hot(orbit.flatten()).T.double().reshape(-1, *lattice.shape)
    kinds = []
    for parity in parities(lattice):
        table = one_hot
        for mu, (side, p) in enumerate(zip(lattice.shape, parity)):
            n, d = torch.tensor(_frequencies(side)).double(), torch.arange(side)
            cosine = torch.cos(2 * math.pi * n[:, None] * d / side) * (d % 2 == p)
            table = torch.movedim(torch.tensordot(table, cosine, ([1 + mu], [1])), -1, 1 + mu)
        kinds.append(table.flatten(1))
    return torch.stack(kinds).to(device, dtype)


def to_momentum(matrices: list[Tensor], x: Tensor) -> Tensor:
    """x `[V / 2^D, ...]` of the sublattice whose `bases` are `matrices`, in its real Fourier basis; orthogonal."""
    return each_axis(matrices, x)


def to_position(matrices: list[Tensor], x: Tensor) -> Tensor:
    """The inverse of `to_momentum`."""
    return each_axis([matrix.T for matrix in matrices], x)
