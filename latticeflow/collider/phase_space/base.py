"""The phase-space map: the unit hypercube to momenta, with its Jacobian, and back."""

from typing import ClassVar

from torch import Tensor

from ...spec import Registry, Spec


class PhaseSpaceMap:
    """A bijection between `[0, 1]^dim` and n outgoing momenta of fixed masses in their centre-of-mass frame.

        dPhi_n = prod_i d^3 p_i / ((2 pi)^3 2 E_i) (2 pi)^4 delta^4(P - sum_i p_i),    P = (E, 0, 0, 0)

    Momenta are `[batch, n, 4]`, components (E, px, py, pz) in GeV. `masses`: of the n particles, GeV. `periodic`: coordinates
    of u that are azimuths. Batched, differentiable in nothing, on the device and in the precision of its arguments.
    """

    masses: tuple[float, ...]
    periodic: tuple[int, ...] = ()

    @property
    def dim(self) -> int:
        """`3 n - 4` as a rule."""
        return 3 * len(self.masses) - 4

    def forward(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        """u `[batch, dim]` and E `[batch]` (above threshold) to `(p, log_jac)`, `log_jac = log |dPhi_n / du|` `[batch]`,

        in units of GeV^(2 n - 4).
        """
        raise NotImplementedError

    def inverse(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """p `[batch, n, 4]` in the centre-of-mass frame to `(u, log_jac)` with `log_jac = log |du / dPhi_n|`, minus the forward one."""
        raise NotImplementedError


class PhaseSpace(Spec):
    """Settings of a map, `[target.phase_space]` of a deck; `build(masses)` makes it for n particles of these masses.

    Raises `InputError` for fewer than two particles, negative masses, or numbers of particles that the map does not know.
    """

    kind: ClassVar[str]

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        raise NotImplementedError


phase_spaces: Registry[PhaseSpace] = Registry("phase_space")
