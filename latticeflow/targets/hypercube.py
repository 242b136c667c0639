"""Integrands on the unit hypercube: what collider phase space is pulled back to, and test functions with known integrals."""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import InputError
from ..random import Purpose, stream, uniform
from .base import Target, targets

_PIECE = 20_000  # points looked at in one go when their share is counted


class Hypercube(Target):
    """An integrand `f(u) >= 0` on `[0, 1]^dim`: `log_prob(u) = log f(u)`, so that Z is the integral of f.

    u has shape `[batch, dim]`; outside the cube, and where f vanishes (cuts), log_prob is -inf. A subclass gives `dim` and
    `log_integrand(u)` for u inside. `periodic`: coordinates that are angles over 2 pi, f being the same at 0 and 1.
    `unit`: of Z.
    """

    measure: ClassVar[str] = "hypercube"

    @property
    def dim(self) -> int:  # type: ignore[override]
        raise NotImplementedError

    @property
    def periodic(self) -> tuple[int, ...]:
        return ()

    @property
    def unit(self) -> str:
        return ""

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (self.dim,)

    def log_integrand(self, u: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, u: Tensor) -> Tensor:
        self.check(u)
        inside = ((u >= 0) & (u <= 1)).all(1)
        if inside.all():
            return self.log_integrand(u)
        found = u.new_full((len(u),), -math.inf)
        if inside.any():
            found[inside] = self.log_integrand(u[inside])
        found[u.isnan().any(1)] = math.nan  # whoever stores draws raises on it
        return found

    def inside(self, u: Tensor) -> Tensor:
        """Where f > 0, bool `[batch]`; of phase space: inside the cuts."""
        return self.log_prob(u) > -math.inf

    def flat(self, n: int) -> Iterator[Tensor]:
        """The same n points, uniform in the cube and float64, whoever asks; in pieces."""
        rng = stream(0, Purpose.ANALYSIS)
        for first in range(0, n, _PIECE):
            yield uniform(rng, (min(_PIECE, n - first), self.dim), dtype=torch.float64)

    def survival(self, n: int = 100_000) -> tuple[float, float]:
        """Share of flat points that are `inside`, with its error `sqrt(p (1 - p) / n)`, p = (k + 1) / (n + 2) of k found."""
        k = sum(int(self.inside(u).sum()) for u in self.flat(n))
        p = (k + 1) / (n + 2)
        return k / n, math.sqrt(p * (1 - p) / n)

    def require_support(self, n: int = 100_000) -> None:
        """Raises `InputError` if none of n flat points is `inside`, with what is known about why: for who has found no draw

        that weighs anything.
        """
        if not any(bool(self.inside(u).any()) for u in self.flat(n)):
            raise InputError(f"{self.kind}: none of {n:,} flat points has f > 0{self._why_empty(n)}")

    def _why_empty(self, n: int) -> str:
        return ""

    def check_field(self, x: Tensor) -> Tensor:
        outside = ~((x >= 0) & (x <= 1)).all(1)  # NaN too
        if outside.any():
            raise InputError(
                f"{self.kind}: {int(outside.sum())} of {len(x)} points lie outside the unit cube, the first "
                f"{int(outside.nonzero()[0])}: {x[outside][0].tolist()}"
            )
        return self.check(x)

    def start(self, noise: Tensor) -> Tensor:
        """Uniform points of the cube, `Phi(noise)`."""
        return torch.special.ndtr(noise)

    def force(self, x: Tensor) -> Tensor:
        raise InputError(
            f"{self.kind}: a force on the unit cube, whose walls Hamiltonian dynamics does not know. "
            "Use flow, vegas, flat or emcee"
        )


@targets.add("camel")
class Camel(Hypercube):
    """Two peaks on the diagonal, the integrand on which integrators are compared (i-flow, 2001.05486, eq. 19).

    `f(u) = (1/2) sum_{c in {1/3, 2/3}} (sigma sqrt(pi))^{-d} exp( - sum_i (u_i - c)^2 / sigma^2 )`

    on `[0, 1]^dim`. Its integral is `( [erf(1/(3 sigma)) + erf(2/(3 sigma))] / 2 )^dim`: 0.928635 in 8 and 0.862363 in 16
    dimensions at sigma = 0.2. Raises `InputError` for dim < 1 or sigma <= 0.
    """

    dimensions: int
    sigma: float = 0.2

    def model_post_init(self, context) -> None:
        if self.dimensions < 1 or self.sigma <= 0:
            raise InputError(
                f"camel in {self.dimensions} dimensions with sigma = {self.sigma}: expected at least 1 and sigma > 0"
            )

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.dimensions

    @property
    def integral(self) -> float:
        """Z in closed form."""
        s = self.sigma
        return (0.5 * (math.erf(1 / (3 * s)) + math.erf(2 / (3 * s)))) ** self.dim

    def log_integrand(self, u: Tensor) -> Tensor:
        peaks = torch.stack([-(u - c).square().sum(1) / self.sigma**2 for c in (1 / 3, 2 / 3)])
        norm = math.log(2) + self.dim * math.log(self.sigma * math.sqrt(math.pi))
        return peaks.logsumexp(0) - norm
