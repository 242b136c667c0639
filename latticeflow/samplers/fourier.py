"""Fourier acceleration of HMC: a kinetic term that is diagonal in momentum space (Batrouni et al. 1985)."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..lattice import Lattice
from ..targets import Phi4, Target

DENSE = 200  # up to this volume one product with a V x V matrix is quicker than two real FFTs (one CPU core)


class FourierMass:
    """The mass matrix `M(k) = khat^2 + mass^2` of `H = (1/2) sum_k |p_k|^2 / M(k) - log_prob(x)`.

    Momenta are `p ~ N(0, M)`. What is integrated is the velocity `v = M^{-1} p`, for which

    `dx/dt = v`, `dv/dt = M^{-1} force(x)`, `H = (1/2) |M^{1/2} v|^2 - log_prob(x)`,

    so that each force costs one product with M^{-1}. In a free field, `force_k = -2 (khat^2 + m2) x_k`, all modes
    have the frequency `sqrt(2)` where `mass^2 = m2`: nothing slows down (Batrouni, Katz, Kronfeld, Lepage, Svetitsky,
    Wilson, Phys. Rev. D 32, 2736, 1985; in HMC Duane, Kennedy, Pendleton, Roweth, Phys. Lett. B 195, 216, 1987).
    In an interacting theory the best mass is found by trying.

    `cost`: what `force` costs beyond the target's own, in force evaluations of phi^4 (one core, 256 chains in
    float32): with the dense product nothing, since it takes the place of the force's; FFTs two and a half.
    """

    def __init__(self, lattice: Lattice, mass: float):
        self.lattice, self.mass = lattice, mass
        self.cost = 0.0 if lattice.volume <= DENSE else 2.5

    def force(self, target: Target, x: Tensor) -> Tensor:
        """`M^{-1} force(x)`, `[chains, *shape]`.

        Of phi^4 with one product and no neighbours: `force = -2 (khat^2 + m2) x - 4 lam x^3`, so
        `M^{-1} force = -2 x + M^{-1} [ 2 (mass^2 - m2) x - 4 lam x^3 ]`.
        """
        if not isinstance(target, Phi4):
            return self._times(target.force(x), -1.0)
        local = (x * x).mul_(-4 * target.lam).add_(2 * (self.mass**2 - target.m2)).mul_(x)
        return self._times(local, -1.0).sub_(x, alpha=2)

    def velocity(self, noise: Tensor) -> Tensor:
        """`v = M^{-1/2} noise`: from white noise, `p = M^{1/2} noise ~ N(0, M)`."""
        return self._times(noise, -0.5)

    def white(self, v: Tensor) -> Tensor:
        """`M^{1/2} v`, the noise that `velocity` makes v of; its half square is the kinetic energy."""
        return self._times(v, 0.5)

    def _times(self, x: Tensor, power: float) -> Tensor:
        """`F^{-1} [ M(k)^power F x ]`."""
        if self.lattice.volume <= DENSE:
            return (x.flatten(1) @ _matrix(self.lattice, self.mass, power, x.dtype, x.device)).view_as(x)
        return _by_fft(x, _spectrum(self.lattice, self.mass, power, x.dtype, x.device))


def _by_fft(x: Tensor, half_spectrum: Tensor) -> Tensor:
    axes = tuple(range(1, x.dim()))
    return torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * half_spectrum, s=x.shape[1:], dim=axes)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not be used under autograd later
def _spectrum(
    lattice: Lattice, mass: float, power: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """`M(k)^power` on the half of the momenta that a real FFT keeps, `[*shape[:-1], L // 2 + 1]`."""
    values = (lattice.khat2 + mass**2) ** power
    return torch.from_numpy(np.ascontiguousarray(values[..., : lattice.shape[-1] // 2 + 1])).to(device, dtype)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _matrix(lattice: Lattice, mass: float, power: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same as a symmetric matrix in position space, `[V, V]`, from float64."""
    sites = torch.eye(lattice.volume, dtype=torch.float64).view(-1, *lattice.shape)
    spectrum = _spectrum(lattice, mass, power, torch.float64, torch.device("cpu"))
    return _by_fft(sites, spectrum).flatten(1).to(device, dtype)
