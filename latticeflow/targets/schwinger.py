"""The Schwinger model: U(1) in two dimensions with two degenerate Wilson flavours."""

from typing import Literal

import torch
from torch import Tensor

from ..errors import InputError
from .base import targets
from .dirac import Dirac, dirac, gamma, pieces
from .gauge import Wilson

LARGEST_KAPPA = 0.5


@targets.add("schwinger")
class Schwinger(Wilson):
    """Two-dimensional QED with two flavours, fermions integrated out, with respect to normalised Haar measure:

    `S = -beta sum_x cos P(x) - log |det D|^2`, `D = 1 - kappa H`,
    `(H psi)(x) = sum_mu [ (1 - gamma_mu) U_mu(x) psi(x + mu) + (1 + gamma_mu) U_mu(x - mu)^* psi(x - mu) ]`,

    gamma_0 = sigma_1, gamma_1 = sigma_2, Wilson's r = 1. Fermions are periodic in space (direction 0) and antiperiodic in
    time (direction 1). Fields are those of `Wilson` with group "u1": angles, float `[batch, 2, L_0, L_1]`. The bare mass is
    `m = 1 / (2 kappa) - 2`. The determinant is exact, `det D = det(1 - kappa^2 H_eo H_oe)`, a matrix of V rows, and in
    float64 whatever the fields' precision; a configuration costs V^3. Where a real eigenvalue of D crosses zero, det D
    changes its sign and `exp(-S)` vanishes: HMC does not get across. (2202.11712, there beta = 2, kappa = 0.276 on 16x16.)

    Raises `InputError` for beta < 0, for kappa outside [0, 1/2) (free fermions are massless at 1/4, others beyond),
    for another number of dimensions than two, and for odd sides.
    """

    group: Literal["u1"] = "u1"
    kappa: float

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if len(self.shape) != 2:
            raise InputError(f"{self.kind} on {self.shape}: expected two dimensions, space and time")
        if not 0 <= self.kappa < LARGEST_KAPPA:
            raise InputError(f"{self.kind} with kappa = {self.kappa}: expected 0 <= kappa < {LARGEST_KAPPA}")
        self.lattice.require_even(self.kind)

    def dirac(self, x: Tensor) -> Dirac:
        """The Dirac operator's tables on x's device."""
        return dirac(self.lattice, x.device)

    def log_det(self, x: Tensor) -> Tensor:
        """`log |det D|`, of one flavour, float64 `[batch]`; differentiable."""
        d, volume = self.dirac(x), self.lattice.volume
        parts = [
            torch.linalg.slogdet(d.matrix(d.phases(part), self.kappa)).logabsdet
            for part in pieces(x, volume**2)
        ]
        return torch.cat(parts)

    def action(self, x: Tensor) -> Tensor:
        """S, `[batch]`."""
        return super().action(x) - 2 * self.log_det(x).to(x.dtype)

    def force(self, x: Tensor) -> Tensor:
        """`-dS/dtheta`, `[batch, 2, L_0, L_1]`; of the determinant `2 Re tr[ M^-1 dM/dtheta ]`, by one inverse."""
        d, found = self.dirac(x), []
        for part in pieces(self.check(x).detach(), self.lattice.volume**2):
            phases = d.phases(part)
            inverse = torch.linalg.inv(d.matrix(phases, self.kappa))
            found.append(d.log_det_gradient(phases, self.kappa, inverse))
        return super().force(x) + torch.cat(found).view(x.shape).to(x.dtype)

    def laplacian(self, x: Tensor) -> Tensor:
        """`sum_links d^2 S / dtheta^2`. With G = D^-1, a link U from x to y and `A = U tr[ (1 - gamma_mu) G(y, x) ]`,

        `d^2 log det D / dtheta^2 = 2 kappa Re A + 2 kappa^2 Re( A^2 - C )`,
        `C = tr[ G(x,x) (1 - gamma_mu) G(y,y) (1 + gamma_mu) ]`.
        """
        d, found = self.dirac(x), []
        for part in pieces(x, 4 * self.lattice.volume**2):
            found.append(self._log_det_laplacian(part, d.propagator(d.phases(part), self.kappa)))
        return super().laplacian(x) - 2 * torch.cat(found).to(x.dtype)

    def _log_det_laplacian(self, x: Tensor, g: Tensor) -> Tensor:
        """`sum_links d^2 log det D / dtheta^2` from D^-1 `[batch, V, 2, V, 2]`."""
        sites = torch.arange(self.lattice.volume, device=x.device)
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        one = torch.eye(2, dtype=g.dtype, device=x.device)
        here = g[:, sites, :, sites]  # [V, batch, 2, 2]: indices side by side come first
        for mu in (0, 1):
            y = torch.roll(sites.view(self.shape), -1, mu).flatten()
            theta = x[:, mu].double().flatten(1).T
            sign = torch.ones_like(theta)
            if mu == 1:
                sign[sites % self.shape[1] == self.shape[1] - 1] = -1
            minus, plus = (one + s * gamma(mu).to(x.device) for s in (-1, 1))
            a = sign * torch.complex(theta.cos(), theta.sin()) * _trace(minus @ g[:, y, :, sites])
            c = _trace(here @ minus @ here[y] @ plus)
            total += 2 * (self.kappa * a + self.kappa**2 * (a * a - c)).real.sum(0)
        return total


def _trace(m: Tensor) -> Tensor:
    return m.diagonal(dim1=-2, dim2=-1).sum(-1)
