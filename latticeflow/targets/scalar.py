"""Scalar field theories with the flat (Lebesgue) measure."""

import math
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..random import normal
from .base import LatticeTarget, targets


def kinetic(lattice, x: Tensor) -> Tensor:
    """`sum_{s, mu} (phi(s + mu) - phi(s))^2`, shape `[batch]`.

    On a side of length 2 the two neighbours coincide and the bond counts twice, as the periodic shift gives.
    """
    return sum((lattice.shift(x, mu) - x).square().flatten(1).sum(1) for mu in range(lattice.dim))


DENSE = 100  # up to this volume one product with a V x V matrix is quicker than 2 D shifts (one CPU core)


def linear_force(lattice, m2: float, x: Tensor) -> Tensor:
    """`-d/dphi(s)` of the quadratic action: `2 sum_mu [phi(s+mu) + phi(s-mu) - 2 phi(s)] - 2 m2 phi(s)`."""
    if lattice.volume <= DENSE:
        return (x.flatten(1) @ _linear_force_matrix(lattice, m2, x.dtype, x.device)).view_as(x)
    return _linear_force_by_shifts(lattice, m2, x)


def _linear_force_by_shifts(lattice, m2: float, x: Tensor) -> Tensor:
    y = (-4 * lattice.dim - 2 * m2) * x
    for mu in range(lattice.dim):
        y.add_(lattice.shift(x, mu), alpha=2).add_(lattice.shift(x, mu, -1), alpha=2)
    return y


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # a cached inference tensor could not be differentiated through later
def _linear_force_matrix(lattice, m2: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The symmetric matrix of `linear_force`, `[V, V]`."""
    sites = torch.eye(lattice.volume, dtype=dtype, device=device)
    return _linear_force_by_shifts(lattice, m2, sites.view(-1, *lattice.shape)).flatten(1)


def _coupling(value, x: Tensor):
    """A coupling that may be a number or a tensor `[batch]`, shaped to multiply `[batch]`-sums."""
    return value.to(x) if isinstance(value, Tensor) else value


@targets.add("phi4")
class Phi4(LatticeTarget):
    """phi^4 theory, `log_prob = -S` up to a constant.

    `S = sum_s [ sum_mu (phi(s+mu) - phi(s))^2 + m2 phi(s)^2 + lam phi(s)^4 ]`

    on a periodic lattice of any dimension 1 to 4, flat measure, lattice units (1904.12072, eq. 13; no
    factor 1/2). x has shape `[batch, *shape]`. Raises `InputError` for lam < 0, and for lam = 0 with
    m2 <= 0, where `exp(-S)` has no integral.
    """

    measure: ClassVar[str] = "lebesgue"
    m2: float
    lam: float

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if self.lam < 0 or (self.lam == 0 and self.m2 <= 0):
            raise InputError(
                f"phi4 with m2 = {self.m2}, lam = {self.lam}: exp(-S) has no integral; "
                "expected lam > 0, or lam = 0 with m2 > 0"
            )

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    def action(self, x: Tensor, m2=None, lam=None) -> Tensor:
        """S of each configuration, `[batch]`. `m2`, `lam`: other couplings, numbers or tensors `[batch]`."""
        self.check(x)
        m2 = self.m2 if m2 is None else _coupling(m2, x)
        lam = self.lam if lam is None else _coupling(lam, x)
        x2 = x.square().flatten(1)
        return kinetic(self.lattice, x) + m2 * x2.sum(1) + lam * x2.square().sum(1)

    def force(self, x: Tensor) -> Tensor:
        """`-dS/dphi(s) = linear_force - 4 lam phi^3`, shape of x."""
        self.check(x)
        return linear_force(self.lattice, self.m2, x).sub_(x * x * x, alpha=4 * self.lam)

    # Other parametrisations. In each, the field is rescaled: phi = scale * field.

    @classmethod
    def from_half(cls, shape, m2: float, lam: float) -> tuple["Phi4", float]:
        """From `S = sum [ (1/2) sum_mu (d_mu f)^2 + (1/2) m2 f^2 + (lam/4!) f^4 ]`.

        Returns the target and `scale` with `phi = scale f`: f = sqrt(2) phi, so m2 is the same and
        lam here = lam_half / 6.
        """
        return cls(shape=shape, m2=m2, lam=lam / 6), math.sqrt(0.5)

    def to_half(self) -> dict[str, float]:
        """`{m2, lam, scale}` of the parametrisation with 1/2 and lam/4!; phi = scale * f."""
        return {"m2": self.m2, "lam": 6 * self.lam, "scale": math.sqrt(0.5)}

    @classmethod
    def from_hopping(cls, shape, kappa: float, lam: float) -> tuple["Phi4", float]:
        """From `S = sum [ -2 kappa sum_mu f(s) f(s+mu) + (1 - 2 lam) f^2 + lam f^4 ]`, kappa > 0.

        `phi = sqrt(kappa) f`: m2 = (1 - 2 lam)/kappa - 2 D, lam here = lam_hopping / kappa^2. The two
        actions are equal, with no constant between them. Returns the target and `scale = sqrt(kappa)`.
        """
        if kappa <= 0:
            raise InputError(f"hopping parameter kappa = {kappa}: expected kappa > 0")
        dim = len(tuple(shape))
        return cls(shape=shape, m2=(1 - 2 * lam) / kappa - 2 * dim, lam=lam / kappa**2), math.sqrt(kappa)

    def to_hopping(self) -> dict[str, float]:
        """`{kappa, lam, scale}` of the hopping parametrisation; phi = scale * f.

        kappa solves `2 lam kappa^2 + (m2 + 2 D) kappa - 1 = 0`, kappa > 0. Raises `InputError` where
        there is none (lam = 0 with m2 + 2 D <= 0 cannot occur: m2 > 0 there).
        """
        b = self.m2 + 2 * len(self.shape)
        # the form of the root that does not cancel for b > 0 and holds for lam = 0 too
        root = math.sqrt(b * b + 8 * self.lam)
        kappa = 2 / (b + root) if b > 0 else (root - b) / (4 * self.lam)
        return {"kappa": kappa, "lam": self.lam * kappa**2, "scale": math.sqrt(kappa)}


@targets.add("free")
class FreeField(LatticeTarget):
    """The free scalar field: `Phi4` at lam = 0, with its exact sampler, spectrum and log Z.

    `S = sum_k (khat^2 + m2) |phi_k|^2`, `phi_k = V^{-1/2} sum_s phi(s) e^{-iks}`, so that
    `<|phi_k|^2> = 1 / (2 (khat^2 + m2))` (PHYSICS: free field). Raises `InputError` for m2 <= 0.
    """

    measure: ClassVar[str] = "lebesgue"
    m2: float

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if self.m2 <= 0:
            raise InputError(f"free field with m2 = {self.m2}: expected m2 > 0")

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.shape

    def action(self, x: Tensor) -> Tensor:
        self.check(x)
        return kinetic(self.lattice, x) + self.m2 * x.square().flatten(1).sum(1)

    def force(self, x: Tensor) -> Tensor:
        self.check(x)
        return linear_force(self.lattice, self.m2, x)

    @property
    def spectrum(self) -> np.ndarray:
        """`<|phi_k|^2>` for every momentum, float64 of `shape`."""
        return 1 / (2 * (self.lattice.khat2 + self.m2))

    @property
    def log_z(self) -> float:
        """`log Z = (1/2) sum_k log( pi / (khat^2 + m2) )`."""
        return 0.5 * float(np.log(np.pi / (self.lattice.khat2 + self.m2)).sum())

    def sample(self, n: int, rng: np.random.Generator, dtype=torch.float64, device="cpu") -> Tensor:
        """n independent configurations, `[n, *shape]`: white noise shaped by `sqrt(spectrum)` in Fourier space."""
        dims = tuple(range(1, 1 + len(self.shape)))
        noise = normal(rng, (n, *self.shape), dtype=dtype, device=device)
        amplitude = torch.from_numpy(np.sqrt(self.spectrum)).to(noise)
        return torch.fft.ifftn(torch.fft.fftn(noise, dim=dims) * amplitude, dim=dims).real.contiguous()
