"""Principal components: the linear baseline, computed and not trained."""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..targets import Target
from .base import Data, Model, ModelSpec, covariance, mean_square, models, require_latent

LARGEST = 1 << 13  # numbers of a configuration: 512 MiB of covariance


class Pca(Model):
    """The `latent` leading eigenvectors u_a of the covariance `C = < (y - <y>) (y - <y>)^T >` (over n), y flattened.

        z_a = u_a . y,    reconstruction y' = sum_a u_a z_a,    error |y - y'|^2 / volume

    y is inward(x): the mean of each component is taken off, and all are divided by one number, so that the u_a are those of
    x itself. `basis` `[volume, latent]`, `variance` `[latent]`, descending; `rest`, the mean of the other eigenvalues.

    As a sampler: `y = sum_a u_a sqrt(v_a) n_a`; with `residual` that of probabilistic PCA (Tipping and Bishop, J. R. Stat.
    Soc. B 61 (1999) 611, eqs. 7 and 8), `C_model = sum_a (v_a - rest) u_a u_a^T + rest`, which lacks no direction.

    Raises `InputError` for more than `LARGEST` numbers, whose covariance would not fit.
    """

    generates = True
    per_component = True
    basis: Tensor
    variance: Tensor
    rest: Tensor

    def __init__(self, target: Target, latent: int, residual: bool = False):
        super().__init__(target)
        require_latent(latent, self)
        if self.volume > LARGEST:
            raise InputError(
                f"pca: the covariance of {self.volume:,} numbers takes {self.volume**2 >> 27} GiB, its eigenvectors hours; "
                f"at most {LARGEST:,} are taken. A linear_autoencoder finds the same space without it"
            )
        self.latent, self.residual = latent, residual
        self.register_buffer("basis", torch.zeros(self.volume, latent))
        self.register_buffer("variance", torch.zeros(latent))
        self.register_buffer("rest", torch.zeros(()))

    @torch.no_grad()
    def begin(self, data: Data) -> None:
        """Everything, exactly, by the eigenvectors of C in float64; walks the data four times, one piece at a time."""
        super().begin(data)
        _, found = covariance(data, lambda x: self.inward(x.to(self.mean.device)).flatten(1))
        values, vectors = torch.linalg.eigh(found)
        values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
        self.basis.copy_(vectors[:, : self.latent])
        self.variance.copy_(values[: self.latent])
        left = values[self.latent :]
        self.rest.copy_(left.mean() if len(left) else left.new_zeros(()))

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {}

    def encode(self, x: Tensor) -> Tensor:
        """`z`, `[batch, latent]`."""
        return self.inward(x).flatten(1) @ self.basis

    def decode(self, z: Tensor) -> Tensor:
        return self.outward((z @ self.basis.T).view(-1, *self.coordinates.shape))

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def error(self, x: Tensor) -> Tensor:
        """`|y - y'|^2 / volume`, `[batch]`: as an autoencoder's."""
        y = self.inward(x).flatten(1)
        return mean_square(y - y @ self.basis @ self.basis.T)

    @torch.no_grad()
    def report(self, x: Tensor, rng: np.random.Generator) -> dict[str, float]:
        return {"held_out": float(self.error(x).mean())}

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        if not self.basis.any():
            raise InputError(
                "pca: nothing is there to draw from before it is computed (latticeflow train DECK)"
            )
        noise = self.noise((n, self.latent), rng)
        if not self.residual:
            return self.decode(noise * self.variance.sqrt())
        kept = noise * (self.variance - self.rest).clamp(min=0).sqrt() @ self.basis.T
        y = kept + self.rest.sqrt() * self.noise((n, self.volume), rng)
        return self.outward(y.view(-1, *self.coordinates.shape))


@models.add("pca")
class PcaSpec(ModelSpec):
    """`[model] kind = "pca"`: `latent`, how many components; `residual`, draw the other directions too, as one noise.

    Its [train] says where the data are, and no `steps`.
    """

    latent: int = Field(ge=1)
    residual: bool = False

    def build(self, target: Target, seed: int) -> Pca:
        return Pca(target, self.latent, self.residual)
