"""HMC of the Schwinger model with pseudofermions: the determinant as an integral over a complex field phi."""

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError, NumericalError
from ..precision import double
from ..random import normal
from ..targets import Schwinger, Target, Wilson
from ..targets.dirac import Dirac
from .base import samplers
from .fourier import FourierMass
from .hmc import HMC, HMCSpec, Update

LOOK = 8  # iterations of conjugate gradients between two looks at the residuals, each of which waits for the device


@samplers.add("pseudofermions")
class PseudofermionsSpec(HMCSpec):
    """`[sampler.pseudofermions]`: the settings of HMC, and `tolerance`: the relative residual at which a solution ends;

    `iterations`: of the solver, at most. Fields of `precision = "float32"` have their solutions in float64, too.
    """

    tolerance: float = Field(1e-10, gt=1e-14, lt=1e-2)
    iterations: int = Field(2000, ge=1)

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "Pseudofermions":
        """The sampler. Raises `InputError` for another target than the Schwinger model, and for Fourier acceleration."""
        if not isinstance(target, Schwinger):
            raise InputError(
                f"{self.kind}: target '{target.kind}' has no fermions; expected 'schwinger'. Use hmc"
            )
        self.require_unbounded(target)
        return Pseudofermions(target, self, device)


class Pseudofermions(HMC):
    """HMC in whose every trajectory phi is drawn anew (D. Weingarten and D. Petcher, Phys. Lett. B 99 (1981) 333; S. Duane
    et al., Phys. Lett. B 195 (1987) 216). With M the preconditioned operator (`targets.dirac`),

    `|det D|^2 = det(M M^dagger) ~ int dphi exp(-phi^dagger (M M^dagger)^-1 phi)`;

    `phi = M eta`, `eta ~ exp(-eta^dagger eta)`, then H = p^2 / 2 + S_gauge + S_phi at fixed phi, with the force
    `2 Re[ X^dagger dM/dtheta Y ]`, `M M^dagger X = phi`, `Y = M^dagger X`. X is found by conjugate gradients from zero (from
    anything else the trajectory would not be reversible), to `tolerance |phi|`, for all chains at once.

    Stored log_prob is the target's own, with the exact determinant, found after each trajectory. State and
    `Draws.info`: HMC's. Raises `NumericalError` where a solution needs more than `iterations`.
    """

    target: Schwinger
    spec: PseudofermionsSpec

    def followed(self, x: Tensor, log_prob: Tensor, rng: np.random.Generator) -> tuple[Target, Tensor]:
        """The theory at a fixed phi that is drawn at x, and its log_prob there."""
        d = self.target.dirac(x)
        noise = normal(rng, (self.chains, d.half, 2, 2), dtype=torch.float64, device=x.device)
        eta = torch.view_as_complex(noise) * 0.5**0.5
        fixed = _AtFixedPhi(
            **self.target.model_dump(), tolerance=self.spec.tolerance, iterations=self.spec.iterations
        )
        fixed._phi = schur(d, d.phases(x), self.target.kappa, eta)
        return fixed, -Wilson.action(self.target, double(x)) - _norm2(eta)

    def update(
        self,
        x: Tensor,
        log_prob: Tensor,
        rng: np.random.Generator,
        step: float,
        n_steps: int,
        mass: FourierMass | None = None,
    ) -> Update:
        new = super().update(x, log_prob, rng, step, n_steps, mass)
        return replace(new, log_prob=self.target.log_prob(double(new.x)))


class _AtFixedPhi(Schwinger):
    """`S = S_gauge + phi^dagger (M M^dagger)^-1 phi`."""

    kind: ClassVar[str] = "schwinger"
    tolerance: float
    iterations: int
    _phi: Tensor  # [chains, V / 2, 2]

    def action(self, x: Tensor) -> Tensor:
        return Wilson.action(self, x) + _norm2(self._solve(x)[2])

    def force(self, x: Tensor) -> Tensor:
        phases, left, right = self._solve(x)
        pseudofermions = self.dirac(x).bilinear_gradient(phases, self.kappa, left, right)
        return Wilson.force(self, x) + pseudofermions.view(x.shape).to(x.dtype)

    def _solve(self, x: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        """Phases, `X = (M M^dagger)^-1 phi` and `Y = M^dagger X`."""
        d = self.dirac(x)
        phases = d.phases(x)
        solution = conjugate_gradients(d, phases, self.kappa, self._phi, self.tolerance, self.iterations)
        return phases, solution, schur_dagger(d, phases, self.kappa, solution)


def schur(d: Dirac, phases: tuple[Tensor, Tensor], kappa: float, psi: Tensor) -> Tensor:
    """`M psi`, psi `[batch, V / 2, 2]` on even sites."""
    return psi - kappa**2 * d.hop(phases, 0, d.hop(phases, 1, psi))


def schur_dagger(d: Dirac, phases: tuple[Tensor, Tensor], kappa: float, psi: Tensor) -> Tensor:
    """`M^dagger psi = gamma_5 M gamma_5 psi`."""
    gamma5 = torch.tensor([1.0, -1.0], dtype=torch.float64, device=psi.device)
    return gamma5 * schur(d, phases, kappa, gamma5 * psi)


def _norm2(psi: Tensor) -> Tensor:
    return torch.view_as_real(psi.resolve_conj()).square().flatten(1).sum(1)


def conjugate_gradients(
    d: Dirac, phases: tuple[Tensor, Tensor], kappa: float, phi: Tensor, tolerance: float, iterations: int
) -> Tensor:
    """X with `|M M^dagger X - phi| <= tolerance |phi|` for each of the batch (M. Hestenes and E. Stiefel 1952).

    Those that are done stay as they are while others go on. Raises `NumericalError` after `iterations`.
    """
    x, r, p = torch.zeros_like(phi), phi.clone(), phi.clone()
    rr = _norm2(r)
    goal = tolerance**2 * rr
    for k in range(iterations):
        going = rr > goal
        if k % LOOK == 0 and not going.any():
            return x
        q = schur_dagger(d, phases, kappa, p)
        # at zero residual there is nothing to divide by
        a = torch.where(going, rr / _norm2(q).clamp_min(torch.finfo(rr.dtype).tiny), 0.0)
        x = x + a[:, None, None] * p
        r = r - a[:, None, None] * schur(d, phases, kappa, q)
        new = torch.where(going, _norm2(r), rr)
        b = torch.where(going, new / rr.clamp_min(torch.finfo(rr.dtype).tiny), 0.0)
        p, rr = r + b[:, None, None] * p, new
    if not (rr > goal).any():
        return x
    raise NumericalError(
        f"pseudofermions: {int((rr > goal).sum())} of {len(phi)} solutions have a relative residual of up to "
        f"{float((rr / (goal / tolerance**2)).max().sqrt()):.2g} after {iterations} iterations, wanted {tolerance:.2g}: "
        "raise sampler.pseudofermions.iterations, or lower kappa"
    )
