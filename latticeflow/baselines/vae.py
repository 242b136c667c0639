"""The variational autoencoder: a latent-variable model whose density is bounded from below.

    p(y) = integral dz N(z; 0, 1) N(y; D(z), s^2),        q(z | y) = N(z; m(y), v(y)) from the encoder

    ELBO(y) = < log N(y; D(z), s^2) >_{q(z|y)} - KL( q(z|y) || N(0, 1) )  <=  log p(y)      (Kingma and Welling, 1312.6114)
    KL      = (1/2) sum_a ( m_a^2 + v_a - 1 - log v_a )
    L_K(y)  = < log (1/K) sum_k w_k >,   w_k = N(y; D(z_k), s^2) N(z_k; 0, 1) / q(z_k | y)      (Burda et al., 1509.00519)

L_1 is the ELBO, L_K never falls with K and goes to log p(y). The output's variance s^2 is learned; draws have that noise,
too, since they would not be of p without it. It is one number for each channel of a lattice and each component of events,
or with `noise = "spectrum"`, on a lattice, a function s^2(k) of momentum, one number for each channel and orbit of momenta,
s^2 being diag(s^2(k)) in the basis of plane waves:

    log N(y; D, s^2) = - (1/2) sum_k [ |y_k - D_k|^2 / s^2(k) + log s^2(k) + log 2 pi ],   y_k = V^{-1/2} sum_s y(s) e^{-iks}

It starts from the data's power `<|y_k|^2>`: the first draws are nearly Gaussian fields of the data's two-point function, and
what few latent numbers cannot reach is not white. Without decoder this is the free field that is nearest in KL to the data.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..lattice import Lattice
from ..random import Purpose, stream
from ..targets import Target
from ..transforms.fourier import fourier_scale
from .autoencoders import Autoencoder, AutoencoderSpec
from .base import Data, log_normal, mean_over, models

Noise = Literal["white", "spectrum"]
LEAST = 1e-12  # power of a mode that does not vary in the data
AT_ONCE = 16  # importance samples of every configuration in one call of the decoder; part of what log_q's numbers are


class Vae(Autoencoder):
    """The model above for y = inward(x); its densities are those of x, by the log-det of `inward`.

    `beta`: weight of the KL term in the loss, 1 for the bound (beta-VAE, Higgins et al., ICLR 2017). Trained is
    `-( < log N(y; D(z), s^2) > - beta KL ) / volume`. `encode(x)` is m, `error(x)` that of D(m(y)).

    The bound needs coordinates with as many numbers as x: of angles of U(1), `(cos, sin)`, there is none, and `density` is
    "none" there.
    """

    generates = True
    codes = 2
    orbits: Tensor

    def __init__(
        self,
        target: Target,
        latent: int,
        hidden: tuple[int, ...],
        beta: float,
        rng: np.random.Generator,
        noise: Noise = "white",
    ):
        """Raises `InputError` for `noise = "spectrum"` where there is no lattice, and what `Autoencoder` raises."""
        super().__init__(target, latent, hidden, rng)
        channels, sides = self.coordinates.shape[0], self.coordinates.sides
        self.beta, self.spectral, self.dim = beta, noise == "spectrum", len(sides)
        self.density = "bound" if self.coordinates.same_size else "none"
        if not self.spectral:
            self.log_variance = nn.Parameter(torch.zeros(channels, *[1] * self.dim))
            return
        if not sides:
            raise InputError(
                f"model.noise = 'spectrum': '{self.kind}' is on no lattice and has no momenta; expected 'white'"
            )
        orbits = torch.from_numpy(Lattice(sides).displacement_orbits)  # momenta have those of displacements
        self.register_buffer("orbits", orbits, persistent=False)
        self.log_variance = nn.Parameter(torch.zeros(channels, int(orbits.max()) + 1))

    @torch.no_grad()
    def begin(self, data: Data) -> None:
        """Also s^2(k), which starts as the mean of `<|y_k|^2>` over each orbit; walks once more for it."""
        super().begin(data)
        if not self.spectral:
            return
        axes = tuple(range(-self.dim, 0))

        def power(x: Tensor) -> Tensor:
            y = self.inward(x.to(self.mean.device)).double()
            return torch.fft.fftn(y, dim=axes, norm="ortho").abs().square().flatten(2)

        found, orbit = mean_over(data, power), self.orbits.flatten()
        total = found.new_zeros(self.log_variance.shape).index_add_(1, orbit, found)
        self.log_variance.copy_((total / orbit.bincount()).clamp(min=LEAST).log())

    def _log_likelihood(self, d: Tensor) -> Tensor:
        """`log N(d; 0, s^2)`, float64 `[batch]`."""
        if not self.spectral:
            return log_normal(d, self.log_variance)
        white, log_det = fourier_scale(d, -0.5 * self.log_variance[:, self.orbits], self.dim)
        return log_normal(white) + log_det

    def _coloured(self, n: Tensor) -> Tensor:
        """`s n` of white noise n."""
        log_s = 0.5 * self.log_variance
        return fourier_scale(n, log_s[:, self.orbits], self.dim)[0] if self.spectral else log_s.exp() * n

    def posterior(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """`m(y)` and `log v(y)`, `[batch, latent]` each."""
        mean, log_variance = self.encoder(y).chunk(2, 1)
        return mean, log_variance

    def _terms(self, y: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """One draw's `log N(y; D(z), s^2)` and KL, float64 `[batch]` each."""
        mean, log_v = self.posterior(y)
        z = mean + (0.5 * log_v).exp() * self.noise(tuple(mean.shape), rng)
        kl = 0.5 * (mean.square() + log_v.exp() - 1 - log_v).double().sum(1)
        return self._log_likelihood(y - self.decoder(z)), kl

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        likelihood, kl = self._terms(self.inward(x), rng)
        return -(likelihood - self.beta * kl).mean() / self.volume

    def elbo(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """The ELBO of x from one draw of z each, float64 `[batch]`: at most log p(x) in the mean over draws.

        Raises `InputError` where there is no bound.
        """
        self._require_bound()
        likelihood, kl = self._terms(self.inward(x), rng)
        return likelihood - kl + self.log_det(x)

    def log_weights(self, x: Tensor, rng: np.random.Generator, k: int) -> Tensor:
        """`log w_k` of x, float64 `[k, batch]`, whose mean weight over draws is p(x). Raises `InputError` for k < 1."""
        self._require_bound()
        if k < 1:
            raise InputError(f"{k} importance samples; expected at least 1")
        y = self.inward(x)
        mean, log_v = self.posterior(y)
        parts = []
        for first in range(0, k, AT_ONCE):
            n = min(AT_ONCE, k - first)
            noise = self.noise((n, *mean.shape), rng)
            z = mean + (0.5 * log_v).exp() * noise
            output = self.decoder(z.flatten(0, 1)).view(n, *y.shape)
            flat = self._log_likelihood((y - output).flatten(0, 1)).view(n, -1)
            prior = log_normal(z.flatten(0, 1)).view(n, -1)
            proposal = log_normal(noise.flatten(0, 1)).view(n, -1) - 0.5 * log_v.double().sum(1)
            parts.append(flat + prior - proposal)
        return torch.cat(parts) + self.log_det(x)

    @torch.no_grad()
    def log_q(self, x: Tensor, rng: np.random.Generator, k: int) -> tuple[Tensor, Tensor]:
        """`log (1/k) sum w` and its error by the delta method, `sqrt( (<w^2> / <w>^2 - 1) / (k - 1) )`, k >= 2.

        An approximation: the mean of the estimate lies below log p(x), by half the squared error where that is small; where
        few weights dominate, the error is itself too small. Raises `InputError` for k < 2 and where there is no bound.
        """
        if k < 2:
            raise InputError(f"log q from {k} importance samples has no error; expected at least 2")
        log_w = self.log_weights(x, rng, k)
        value = log_w.logsumexp(0) - math.log(k)
        square = (2 * (log_w - value)).exp().mean(0)  # <w^2> / <w>^2
        return value, ((square - 1).clamp(min=0) / (k - 1)).sqrt()

    @torch.no_grad()
    def report(self, x: Tensor, rng: np.random.Generator) -> dict[str, float]:
        """`held_out`: the loss on configurations that were not trained on; `elbo`: their mean ELBO."""
        found = super().report(x, rng)
        return found | ({"elbo": float(self.elbo(x, rng).mean())} if self.density == "bound" else {})

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        """`x = outward(D(z) + s n)`."""
        y = self.decoder(self.noise((n, self.latent), rng))
        return self.outward(y + self._coloured(self.noise(tuple(y.shape), rng)))

    def _require_bound(self) -> None:
        if self.density != "bound":
            raise InputError(
                f"a VAE of '{self.kind}' sees angles as cosine and sine, twice as many numbers: there is no bound of its "
                "density in the angles"
            )


@models.add("vae")
class VaeSpec(AutoencoderSpec):
    """`[model] kind = "vae"`: `latent`, `hidden` (without: linear, which is probabilistic PCA), `beta`, `noise`."""

    latent: int = Field(16, ge=1)
    beta: float = Field(1.0, ge=0)
    noise: Noise = "white"

    def build(self, target: Target, seed: int) -> Vae:
        return Vae(target, self.latent, self.hidden, self.beta, stream(seed, Purpose.INIT), self.noise)
