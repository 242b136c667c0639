"""Autoencoders: `r(x) = D(E(x))` through few latent numbers z = E(x), trained to give x back.

All losses are means over the batch, in the coordinates y = inward(x) that networks see (variance about 1), per number:

    reconstruction   L = < |y - D(E(y))|^2 > / volume        (Hinton and Salakhutdinov, Science 313 (2006) 504)
    denoising        L = < |y - D(E(y + s n))|^2 > / volume,  n white noise        (Vincent et al., JMLR 11 (2010) 3371)
"""

from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..errors import InputError, NumericalError
from ..random import Purpose, stream
from ..targets import Target
from .base import Data, Model, ModelSpec, covariance, mean_square, models, require_latent
from .networks import decoder_net, encoder_net


class Autoencoder(Model):
    """Encoder E and decoder D with `latent` numbers between.

    `encode(x)` `[batch, latent]`, `decode(z)` and `reconstruct(x)` `[batch, *event_shape]`; `error(x)`, `[batch]`, the mean
    square of what reconstruction misses, in units of the data's variance: what finds anomalies.
    """

    codes: ClassVar[int] = 1  # numbers that the encoder gives for each latent one

    def __init__(self, target: Target, latent: int, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__(target)
        require_latent(latent, self)
        self.latent = latent
        self.encoder = encoder_net(self.coordinates, self.codes * latent, hidden, rng)
        self.decoder = decoder_net(self.coordinates, latent, hidden, rng)

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(self.inward(x))[:, : self.latent]

    def decode(self, z: Tensor) -> Tensor:
        return self.outward(self.decoder(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def error(self, x: Tensor) -> Tensor:
        return mean_square(self.inward(x) - self.decoder(self.encode(x)))

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        return self.error(x).mean()

    @torch.no_grad()
    def report(self, x: Tensor, rng: np.random.Generator) -> dict[str, float]:
        """`held_out`: the loss on configurations that were not trained on."""
        return {"held_out": float(self.loss("model", x, rng))}


class LinearAutoencoder(Autoencoder):
    """E and D linear, about the mean of each component and with one scale for all: the minimum of the loss is PCA.

    At the minimum the columns of D span the space of the leading eigenvectors of the covariance (Baldi and Hornik, Neural
    Networks 2 (1989) 53); which basis of it they are is left open. `basis` `[volume, latent]` is an orthonormal one.
    """

    per_component = True

    def __init__(self, target: Target, latent: int, rng: np.random.Generator):
        super().__init__(target, latent, (), rng)

    @property
    def basis(self) -> Tensor:
        """Orthonormal columns that span what the decoder reaches, float64."""
        return torch.linalg.qr(self.decoder.get_parameter("0.weight").detach().double())[0]


class DenoisingAutoencoder(Autoencoder):
    """Gives y back from `y + noise n`. The minimum is the mean of y given what was seen, `r(v) = <y | v>`.

    Of Gaussian y with covariance C that is the Wiener filter `C (C + noise^2)^{-1}`; in general `(r(v) - v) / noise^2` is
    the score of the density of y + noise n (Vincent, Neural Computation 23 (2011) 1661). `reconstruct(x)` is r at inward(x).
    """

    def __init__(
        self, target: Target, latent: int, hidden: tuple[int, ...], noise: float, rng: np.random.Generator
    ):
        super().__init__(target, latent, hidden, rng)
        self.noise_width = noise

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        y = self.inward(x)
        seen = y + self.noise_width * self.noise(tuple(y.shape), rng)
        return mean_square(y - self.decoder(self.encoder(seen))).mean()


class GaussianAutoencoder(Autoencoder):
    """An autoencoder whose decoder is fed, to draw, with a Gaussian of the latent numbers' mean and covariance: naive.

    `x = D(m + L n)`, m and `L L^T` the mean and covariance of E(x) over the training data, n white noise. Nothing makes the
    latent numbers Gaussian or independent, and what reconstruction loses is not drawn: both show in the diagnostics.
    """

    generates = True
    latent_mean: Tensor
    latent_root: Tensor

    def __init__(self, target: Target, latent: int, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__(target, latent, hidden, rng)
        self.register_buffer("latent_mean", torch.zeros(latent))
        self.register_buffer("latent_root", torch.zeros(latent, latent))

    @torch.no_grad()
    def finish(self, data: Data) -> None:
        """Fit m and L. Raises `NumericalError` where a latent number does not vary."""
        mean, found = covariance(data, lambda x: self.encode(x.to(self.mean.device)))
        root, failed = torch.linalg.cholesky_ex(found)
        if failed:
            raise NumericalError(
                f"gaussian_autoencoder: the covariance of its {self.latent} latent numbers is not positive: some do not "
                "vary over the data. Lower model.latent"
            )
        self.latent_mean.copy_(mean)
        self.latent_root.copy_(root)

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        if not self.latent_root.any():
            raise InputError(
                "gaussian_autoencoder: the Gaussian is fitted after the last step of training; finish it (latticeflow train "
                "RUN --resume)"
            )
        return self.decode(self.latent_mean + self.noise((n, self.latent), rng) @ self.latent_root.T)


class AutoencoderSpec(ModelSpec):
    """`latent`: numbers between encoder and decoder; `hidden`: channels of the convolutions, widths on events."""

    latent: int = Field(ge=1)
    hidden: tuple[PositiveInt, ...] = (16, 32)


@models.add("linear_autoencoder")
class LinearAutoencoderSpec(ModelSpec):
    """`[model] kind = "linear_autoencoder"`: PCA by training. `latent`: how many components."""

    latent: int = Field(ge=1)

    def build(self, target: Target, seed: int) -> LinearAutoencoder:
        return LinearAutoencoder(target, self.latent, stream(seed, Purpose.INIT))


@models.add("autoencoder")
class PlainAutoencoderSpec(AutoencoderSpec):
    """`[model] kind = "autoencoder"`: `latent`, `hidden` (`encoder_net`)."""

    def build(self, target: Target, seed: int) -> Autoencoder:
        return Autoencoder(target, self.latent, self.hidden, stream(seed, Purpose.INIT))


@models.add("denoising_autoencoder")
class DenoisingAutoencoderSpec(AutoencoderSpec):
    """`[model] kind = "denoising_autoencoder"`: also `noise`, its standard deviation over that of the data."""

    noise: float = Field(0.3, gt=0)

    def build(self, target: Target, seed: int) -> DenoisingAutoencoder:
        rng = stream(seed, Purpose.INIT)
        return DenoisingAutoencoder(target, self.latent, self.hidden, self.noise, rng)


@models.add("gaussian_autoencoder")
class GaussianAutoencoderSpec(AutoencoderSpec):
    """`[model] kind = "gaussian_autoencoder"`: `latent`, `hidden`."""

    def build(self, target: Target, seed: int) -> GaussianAutoencoder:
        return GaussianAutoencoder(target, self.latent, self.hidden, stream(seed, Purpose.INIT))
