"""A continuous flow of U(1) in two dimensions: `dtheta_0/dt = v(x) - v(x - e1)`, `dtheta_1/dt = -v(x) + v(x - e0)`,

`v(x) = sum_y sum_n K_n(x - y; t) sin(n P(y))`, in the spirit of Luescher's trivializing flow (0907.5491) but with kernels of
any range. On plaquettes it is `dP/dt = -Laplace v`. It commutes with gauge transformations, charge conjugation and
translations.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import wrap
from ..lattice import Lattice
from ..transforms.convolution import eigenvalues
from ..transforms.plaquettes import curl, curl_transposed, lift, score_of_plaquettes
from .continuous import ContinuousLayer


class PlaquetteDrift(ContinuousLayer):
    """The flow of the module's docstring: that of scalars for the field P, without the feature P; w = 1."""

    def __init__(self, lattice: Lattice, harmonics: int, modes: int, steps: int, solver: str):
        super().__init__(lattice, harmonics, modes, steps, solver, 1.0)
        self.kernel = nn.Parameter(torch.zeros_like(self.kernel[1:]))
        self.log_w.requires_grad_(False)

    def kernels_at(self, times: list[float]) -> tuple[Tensor, Tensor]:
        """Of `-Laplace K_n`, and zero for the feature P."""
        t = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
        cosines = torch.cos(math.pi * torch.arange(self.modes) * t).to(self.kernel)
        values = torch.einsum("tb,fbo->tfo", cosines, self.kernel)
        base = eigenvalues(self.lattice, self.kernel.dtype, self.kernel.device)
        found = (values @ base) * (_laplacian(self.lattice).to(base) @ base)
        found = torch.cat([torch.zeros_like(found[:, :1]), found], 1)
        return found, found.mean(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = wrap(curl(x))
        moved, log_det = super().forward(p)
        return wrap(x + lift(moved - p)), log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = wrap(curl(x))
        moved, log_det, s = super().forward_with_score(p, score_of_plaquettes(score))
        return wrap(x + lift(moved - p)), log_det, curl_transposed(s)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._back(y, super().inverse)

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._back(y, super().finer_inverse)

    def _back(self, y: Tensor, undo) -> tuple[Tensor, Tensor]:
        p = wrap(curl(y))
        moved, log_det = undo(p)
        return wrap(y + lift(moved - p)), log_det


def _laplacian(lattice: Lattice) -> Tensor:
    """`-Laplace` as a kernel, a value for each orbit of the displacement, float64."""
    orbits = lattice.displacement_orbits
    kernel = np.zeros(lattice.shape)
    for mu, side in enumerate(lattice.shape):
        for step in (1, -1):
            place = [0] * lattice.dim
            place[mu] = step % side
            kernel[(0,) * lattice.dim] += 1
            kernel[tuple(place)] -= 1
    values = torch.zeros(int(orbits.max()) + 1, dtype=torch.float64)
    values[torch.from_numpy(orbits).flatten()] = torch.from_numpy(kernel).flatten()
    return values
