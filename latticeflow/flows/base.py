"""Base densities: white noise, and the free field with a trainable spectrum."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..lattice import Lattice
from ..random import normal
from ..transforms.fourier import fourier_scale
from ..transforms.sums import site_sum


class WhiteNoise(nn.Module):
    """Independent standard normal sites: `log r(z) = -z^2/2 - (V/2) log 2 pi`.

    A base is also where a flow learns its dtype and device: `noise` draws in those of its one tensor.
    """

    like: Tensor

    def __init__(self, lattice: Lattice):
        super().__init__()
        self.lattice = lattice
        self.register_buffer("like", torch.zeros(()), persistent=False)

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """White noise `[n, *shape]`."""
        return normal(rng, (n, *self.lattice.shape), dtype=self.like.dtype, device=self.like.device)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """White noise to `(z, log r(z))`."""
        return noise, self.log_white(noise)

    def log_white(self, noise: Tensor) -> Tensor:
        return -0.5 * site_sum(noise.square()) - 0.5 * self.lattice.volume * math.log(2 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """`log r(z)`, normalised, `[batch]`."""
        return self.log_white(z)

    def score(self, z: Tensor) -> Tensor:
        """`d log r / dz`, shape of z."""
        return -z


class Spectrum(WhiteNoise):
    """A Gaussian field, diagonal in Fourier space: `z = F^{-1} [ A(k) F noise ]`, `<|z_k|^2> = A(k)^2`.

    One trainable `log A` for each orbit of the momentum under the point group of the lattice's shape,
    starting as the free field of `m2` (`A^2 = 1 / (2 (khat^2 + m2))`).
    """

    orbit: Tensor

    def __init__(self, lattice: Lattice, m2: float = 1.0):
        super().__init__(lattice)
        orbits = lattice.displacement_orbits  # momenta have the same orbits as displacements
        self.register_buffer("orbit", torch.from_numpy(orbits), persistent=False)
        self.log_amplitude_of_orbit = nn.Parameter(torch.zeros(int(orbits.max()) + 1))
        self.set_free_field(m2)

    @torch.no_grad()
    def set_free_field(self, m2: float) -> None:
        """Set the spectrum to that of `FreeField(shape, m2)`. Raises `InputError` for m2 <= 0."""
        if m2 <= 0:
            raise InputError(f"base spectrum with m2 = {m2}: expected m2 > 0")
        log_amplitude = torch.from_numpy(-0.5 * np.log(2 * (self.lattice.khat2 + m2)))
        values = torch.zeros(self.log_amplitude_of_orbit.shape, dtype=torch.float64)
        values[self.orbit.cpu().flatten()] = log_amplitude.flatten()
        self.log_amplitude_of_orbit.copy_(values)

    @property
    def log_amplitude(self) -> Tensor:
        """`log A(k)`, `[*shape]`."""
        return self.log_amplitude_of_orbit[self.orbit]

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = fourier_scale(noise, self.log_amplitude, self.lattice.dim)
        return z, self.log_white(noise) - log_det

    def log_prob(self, z: Tensor) -> Tensor:
        noise, log_det = fourier_scale(z, -self.log_amplitude, self.lattice.dim)
        return self.log_white(noise) + log_det

    def score(self, z: Tensor) -> Tensor:
        """`d log r / dz = -F^{-1} [ A^{-2} F z ]`."""
        return -fourier_scale(z, -2 * self.log_amplitude, self.lattice.dim)[0]


BaseName = Literal["spectrum", "white"]


def make_base(name: BaseName, lattice: Lattice, m2: float) -> WhiteNoise:
    """The base called `name` in a deck; m2 is where the spectrum starts."""
    return Spectrum(lattice, m2) if name == "spectrum" else WhiteNoise(lattice)
