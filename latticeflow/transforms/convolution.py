"""Convolution with symmetric kernels as real Fourier transforms, one small matrix product for each axis.

A kernel even in every d_mu is diagonal in the real Fourier basis, cosines and sines along each axis, with one eigenvalue
for both: `(K * x)(s) = sum_d K(d) x(s - d)`, `lambda(n) = sum_d K(d) prod_mu cos(2 pi n_mu d_mu / L_mu)`. An axis of length
L costs 2 L V operations, a dense kernel 2 V^2: on one CPU core, with five kernels, products axis by axis are as fast
as dense ones at 8x8, twice as fast at 14x14, four times at 20x20, and not behind FFTs up to 32x32.

Fields are `[..., V, batch]`, sites in C order, batch last: every product is one of large matrices then.
"""

import math
from functools import lru_cache

import torch
from torch import Tensor

from ..lattice import Lattice


def _frequencies(side: int) -> list[int]:
    """n of each row of the basis: 0, 1, 1, 2, 2, ..., and L/2 once where L is even."""
    pairs = [n for n in range(1, (side - 1) // 2 + 1) for _ in range(2)]
    return [0, *pairs, *([side // 2] if side % 2 == 0 else [])]


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a cached inference tensor could not be differentiated through later
def basis(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The orthogonal matrix of the real Fourier basis, `[n, s]`: `cos(2 pi n s / L)` and `sin(2 pi n s / L)`, normalised."""
    s, rows = torch.arange(side, dtype=torch.float64), []
    for i, n in enumerate(frequencies := _frequencies(side)):
        angle = 2 * math.pi * n * s / side
        second = i > 0 and frequencies[i - 1] == n
        row = angle.sin() if second else angle.cos()
        rows.append(row / row.norm())
    return torch.stack(rows).to(device, dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def eigenvalues(lattice: Lattice, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Eigenvalues of the kernel that is 1 on one orbit of displacements and 0 elsewhere, `[orbits, V]`."""
    orbit = torch.from_numpy(lattice.displacement_orbits)
    table = torch.nn.functional.one_hot(orbit.flatten()).T.double().reshape(-1, *lattice.shape)
    for mu, side in enumerate(lattice.shape):
        n, d = torch.tensor(_frequencies(side)).double(), torch.arange(side)
        cosine = torch.cos(2 * math.pi * n[:, None] * d / side)
        table = torch.movedim(torch.tensordot(table, cosine, ([1 + mu], [1])), -1, 1 + mu)
    return table.flatten(1).to(device, dtype)


def bases(lattice: Lattice, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """`basis` for each axis."""
    return [basis(side, dtype, device) for side in lattice.shape]


def to_momentum(matrices: list[Tensor], x: Tensor) -> Tensor:
    """`x(s)`, `[..., V, batch]`, in the real Fourier basis `matrices`; orthogonal."""
    return each_axis(matrices, x, _fields(matrices, x))


def to_position(matrices: list[Tensor], x: Tensor) -> Tensor:
    """The inverse of `to_momentum`."""
    return each_axis([matrix.T for matrix in matrices], x, _fields(matrices, x))


def _fields(matrices: list[Tensor], x: Tensor) -> int:
    return x.numel() // (math.prod([len(matrix) for matrix in matrices]) * x.shape[-1])


def each_axis(matrices: list[Tensor], x: Tensor, before: int = 1) -> Tensor:
    """Each matrix applied to its axis of x, `[before * len(matrices[0]) * len(matrices[1]) * ..., after]` in any shape."""
    y, after = x, x.numel() // before
    for matrix in matrices:
        side = len(matrix)
        after //= side
        y = torch.matmul(matrix, y.reshape(before, side, after))
        before *= side
    return y.reshape(x.shape)
