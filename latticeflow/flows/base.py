"""Base densities: white noise, the free field with a trainable spectrum, and the same with a zero mode of its own."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..groups import Group
from ..lattice import Lattice
from ..random import normal
from ..transforms import mixture
from ..transforms.fourier import fourier_scale
from ..transforms.sums import site_sum
from .travel import require_same_dim, travel_spectrum


class WhiteNoise(nn.Module):
    """Independent standard normal sites: `log r(z) = -z^2/2 - (V/2) log 2 pi`.

    A base is also where a flow learns its dtype and device: `noise` draws in those of its one tensor.
    """

    like: Tensor

    def __init__(self, lattice: Lattice):
        super().__init__()
        self.lattice = lattice
        self.register_buffer("like", torch.zeros(()), persistent=False)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.lattice.shape

    def adopt(self, previous: "WhiteNoise") -> None:
        """The weights of the same base on another lattice."""
        require_same_dim(previous.lattice, self.lattice)

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """White noise `[n, *shape]`."""
        return normal(rng, (n, *self.lattice.shape), dtype=self.like.dtype, device=self.like.device)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """White noise to `(z, log r(z))`."""
        return noise, self.log_white(noise)

    def whiten(self, z: Tensor) -> Tensor:
        """The white noise that `push` maps to z."""
        return z

    def log_white(self, noise: Tensor) -> Tensor:
        return -0.5 * site_sum(noise.square()) - 0.5 * self.lattice.volume * math.log(2 * math.pi)

    def log_prob(self, z: Tensor) -> Tensor:
        """`log r(z)`, normalised, `[batch]`."""
        return self.log_white(z)

    def score(self, z: Tensor) -> Tensor:
        """`d log r / dz`, shape of z."""
        return -z


class HaarBase(WhiteNoise):
    """Independent, uniform links of a gauge group: log r = 0 with respect to normalised Haar measure."""

    def __init__(self, lattice: Lattice, group: Group):
        super().__init__(lattice)
        self.group = group

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.lattice.dim, *self.lattice.shape, *self.group.tail)

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        return self.group.haar(
            (n, self.lattice.dim, *self.lattice.shape), rng, self.like.dtype, self.like.device
        )

    def log_white(self, noise: Tensor) -> Tensor:
        return torch.zeros(len(noise), dtype=torch.float64, device=noise.device)

    def score(self, z: Tensor) -> Tensor:
        """Zero, in left derivatives `[batch, D, *shape, *algebra_tail]`."""
        shape = (len(z), self.lattice.dim, *self.lattice.shape, *self.group.algebra_tail)
        return torch.zeros(shape, dtype=z.real.dtype, device=z.device)


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

    def adopt(self, previous: "Spectrum") -> None:  # type: ignore[override]
        """log A(k), interpolated between the momenta of the other lattice."""
        values = travel_spectrum(previous.log_amplitude_of_orbit, previous.lattice, self.lattice)
        with torch.no_grad():
            self.log_amplitude_of_orbit.copy_(values)

    @property
    def log_amplitude(self) -> Tensor:
        """`log A(k)`, `[*shape]`."""
        return self.log_amplitude_of_orbit[self.orbit]

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, log_det = fourier_scale(noise, self.log_amplitude, self.lattice.dim)
        return z, self.log_white(noise) - log_det

    def whiten(self, z: Tensor) -> Tensor:
        return fourier_scale(z, -self.log_amplitude, self.lattice.dim)[0]

    def log_prob(self, z: Tensor) -> Tensor:
        noise, log_det = fourier_scale(z, -self.log_amplitude, self.lattice.dim)
        return self.log_white(noise) + log_det

    def score(self, z: Tensor) -> Tensor:
        """`d log r / dz = -F^{-1} [ A^{-2} F z ]`."""
        return -fourier_scale(z, -2 * self.log_amplitude, self.lattice.dim)[0]


class MeanField(Spectrum):
    """A Gaussian field but for its zero mode, whose density may have two peaks: a base for the broken phase.

    `z = F^{-1} [ A(k) F w ]` as in `Spectrum`, w white noise but for `h = V^{-1/2} sum_s w(s)`, whose density is the even
    `r(h) = sum_j p_j [ N(h; c_j, s_j) + N(h; -c_j, s_j) ] / 2` of `transforms.mixture`. So `V^{-1/2} sum_s z(s) = A(0) h`,
    and `log r(z) = sum_{k != 0} log N(w_k; 0, 1) + log r(h) - sum_k log A(k)`, exact, as is its score. The idea of a
    zero mode with its own, mean-field density is normflow's; this mixture is an own choice.

    Trainable: p, s and `v = V^{-1/2} c` of `peaks` pairs of Gaussians: A(0) v is the field of a well, so that one step of
    training moves a site by as much on any volume. At the start r has variance 1, as in `Spectrum`, and one peak;
    `set_wells` gives it two.
    """

    def __init__(self, lattice: Lattice, m2: float = 1.0, peaks: int = 3):
        super().__init__(lattice, m2)
        # none at c = 0: by symmetry the gradient of c vanishes there, and the peak could not split
        c = (torch.arange(peaks) + 0.5) / peaks
        self.peak_logit = nn.Parameter(torch.zeros(peaks))
        self.peak_field = nn.Parameter(c / math.sqrt(lattice.volume))
        self.peak_log_width = nn.Parameter(0.5 * torch.log1p(-c.square()))

    def adopt(self, previous: "MeanField") -> None:  # type: ignore[override]
        """As `Spectrum`; the field of the wells stays, whatever the volume."""
        super().adopt(previous)
        with torch.no_grad():
            amplitude = (previous.log_amplitude_of_orbit[0] - self.log_amplitude_of_orbit[0]).exp()
            self.peak_logit.copy_(previous.peak_logit)
            self.peak_field.copy_(previous.peak_field * amplitude)
            self.peak_log_width.copy_(previous.peak_log_width)

    @torch.no_grad()
    def set_wells(self, field: float) -> None:
        """Let z be about +-`field` on every site, all widths as they are. Raises `InputError` for field < 0."""
        if not field >= 0:
            raise InputError(f"wells of the base at +-{field}: expected a field, not negative")
        start = field / self.log_amplitude_of_orbit[0].exp()
        self.peak_field.copy_(self.peak_field - self.peak_field.mean() + start)

    def peaks(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(log p, c, log s)` of the density of h, float64 `[peaks]` each."""
        return (
            self.peak_logit.double().log_softmax(0),
            self.peak_field.double() * math.sqrt(self.lattice.volume),
            self.peak_log_width.double(),
        )

    def zero_mode(self, x: Tensor) -> Tensor:
        """`V^{-1/2} sum_s x(s)`, float64 `[batch]`."""
        return site_sum(x) / math.sqrt(self.lattice.volume)

    def add_zero_mode(self, x: Tensor, h: Tensor) -> Tensor:
        """x with h added to its zero mode, in the dtype of x."""
        shift = (h / math.sqrt(self.lattice.volume)).to(x.dtype)
        return x + shift.view(-1, *[1] * self.lattice.dim)

    def log_w(self, w: Tensor, h: Tensor) -> Tensor:
        """Log-density of w, whose zero mode is h: white but for that of h."""
        log_normal = -0.5 * h.square() - 0.5 * math.log(2 * math.pi)
        return self.log_white(w) - log_normal + mixture.log_density(h, *self.peaks())

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        n = self.zero_mode(noise)
        h = mixture.from_normal(n, *self.peaks())
        w = self.add_zero_mode(noise, h - n)
        z, log_det = fourier_scale(w, self.log_amplitude, self.lattice.dim)
        return z, self.log_w(w, h) - log_det

    def whiten(self, z: Tensor) -> Tensor:
        w = super().whiten(z)
        h = self.zero_mode(w)
        n = h.sign() * mixture.normal_of_log_tail(mixture.log_upper_tail(h.abs(), *self.peaks()))
        return self.add_zero_mode(w, n - h)

    def log_prob(self, z: Tensor) -> Tensor:
        w, log_det = fourier_scale(z, -self.log_amplitude, self.lattice.dim)
        return self.log_w(w, self.zero_mode(w)) + log_det

    def score(self, z: Tensor) -> Tensor:
        """`d log r / dz = F^{-1} [ A^{-1} F (d log r / dw) ]`; `d log r / dw = -w` but for `d log r / dh`."""
        w, _ = fourier_scale(z, -self.log_amplitude, self.lattice.dim)
        h = self.zero_mode(w)
        score_w = self.add_zero_mode(-w, h + mixture.score(h, *self.peaks()))
        return fourier_scale(score_w, -self.log_amplitude, self.lattice.dim)[0]


BaseName = Literal["spectrum", "white", "mean_field"]


def make_base(name: BaseName, lattice: Lattice, m2: float) -> WhiteNoise:
    """The base called `name` in a deck; m2 is where the spectrum starts."""
    if name == "white":
        return WhiteNoise(lattice)
    return Spectrum(lattice, m2) if name == "spectrum" else MeanField(lattice, m2)
