"""The phase-space map: the unit hypercube to momenta, with its Jacobian, and back."""

from typing import ClassVar

import torch
from torch import Tensor

from ...errors import InputError
from ...spec import Registry, Spec


class PhaseSpaceMap:
    """A bijection between `[0, 1]^dim` and n outgoing momenta of fixed masses in their centre-of-mass frame.

        dPhi_n = prod_i d^3 p_i / ((2 pi)^3 2 E_i) (2 pi)^4 delta^4(P - sum_i p_i),    P = (E, 0, 0, 0)

    Momenta are `[batch, n, 4]`, components (E, px, py, pz) in GeV. `masses`: of the n particles, GeV. `periodic`:
    coordinates of u that are azimuths. Batched, differentiable in nothing, on the device and in the precision of its
    arguments: they are worked on in float64 and the results rounded. Coordinates are kept 2^-52 away from the walls of the
    cube, where some particle has no energy or two are parallel.

    A map gives `momenta(u, energy)` and `coordinates(p)`, which `forward` and `inverse` check and call.
    """

    masses: tuple[float, ...]
    periodic: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """`3 n - 4` as a rule."""
        return 3 * len(self.masses) - 4

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """`forward` in float64, for u off the walls and energies above threshold."""
        raise NotImplementedError

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """`inverse` in float64."""
        raise NotImplementedError

    def forward(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """u `[batch, dim]` and E `[batch]` (above threshold) to `(p, log_jac)`, `log_jac = log |dPhi_n / du|` `[batch]`,

        in units of GeV^(2 n - 4). Raises `InputError` for other shapes and for an energy not above the sum of the masses.
        """
        if u.dim() != 2 or u.shape[1] != self.dim or energy.shape != u.shape[:1]:
            raise InputError(
                f"phase space of {len(self.masses)} particles: u {list(u.shape)} and energy {list(energy.shape)}; expected "
                f"[batch, {self.dim}] and [batch]"
            )
        low = ~(energy > sum(self.masses))  # NaN too
        if low.any():
            raise InputError(
                f"phase space: energy = {float(energy[low][0])} GeV; expected more than {sum(self.masses)} GeV, "
                "the sum of the masses"
            )
        eps = torch.finfo(torch.float64).eps
        p, log_jac = self.momenta(u.double().clamp(eps, 1 - eps), energy.double())
        return p.to(u.dtype), log_jac.to(u.dtype)

    def inverse(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """p `[batch, n, 4]` in the centre-of-mass frame to `(u, log_jac)`, log_jac being minus that of `forward`.

        `exp(log_jac) = |du/dPhi_n|` is the density of the momenta for uniform u: 0, log_jac = -inf, where the map does not
        reach. Only the three-momenta are read: the energies are those of the masses. Raises `InputError` for another shape.
        """
        if p.dim() != 3 or p.shape[1:] != (len(self.masses), 4):
            raise InputError(
                f"phase space: momenta of shape {list(p.shape)}; expected [batch, {len(self.masses)}, 4]"
            )
        u, log_jac = self.coordinates(p.double())
        reached = ((u > -1e-9) & (u < 1 + 1e-9)).all(
            1
        )  # rounding, where one u is a difference of two numbers
        log_jac = torch.where(reached, log_jac, -torch.inf)
        return u.clamp(0, 1).to(p.dtype), log_jac.to(p.dtype)


def check_masses(kind: str, masses: tuple[float, ...], least: int = 2) -> tuple[float, ...]:
    """The masses as floats; raises `InputError` for fewer than `least` particles and for masses negative or not finite."""
    masses = tuple(float(m) for m in masses)
    if len(masses) < least:
        raise InputError(f"phase space '{kind}' of {len(masses)} particles: expected at least {least}")
    if not all(0 <= m < float("inf") for m in masses):
        raise InputError(f"phase space '{kind}': masses {list(masses)} GeV; expected finite and not negative")
    return masses


class PhaseSpace(Spec):
    """Settings of a map, `[target.phase_space]` of a deck; `build(masses)` makes it for n particles of these masses.

    Raises `InputError` for fewer than two particles, negative masses, or numbers of particles that the map does not know.
    """

    kind: ClassVar[str]

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        raise NotImplementedError


phase_spaces: Registry[PhaseSpace] = Registry("phase_space")
