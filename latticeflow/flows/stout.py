"""Gauge-equivariant layers that move each link along the gradient of its own plaquettes (2412.00200; `transforms/stout.py`).

The masks are those of a heat bath: links of one direction on sites of one parity share no plaquette, so that the staples of
the links that move are all held fixed and the Jacobian is a product over links. 2 D masks move every link once.
"""

import torch
from torch import Tensor, nn

from ..errors import InputError, LatticeflowError
from ..groups import SU, Group
from ..lattice import Lattice
from ..transforms import stout
from ..transforms.heatbath import matrix_staples, neighbourhood
from .flow import Layer

WITHIN = 0.9  # of the rho up to which a move can be undone everywhere
ITERATIONS = 400  # of the inverse, a contraction by less than WITHIN


class Stout(Layer):
    """Every link of SU(N) once, direction by direction, even sites before odd ones, of links `[n, D, *shape, N, N]`.

    `rho = 0.9 tanh(w) / (D - 1)` with a weight w for each direction and parity: 2 D parameters, invertible whatever they
    are, zero (the identity) at the start. No parameter knows the lattice. Raises `InputError` for U(1) and for odd sides.
    """

    def __init__(self, group: Group, lattice: Lattice):
        super().__init__()
        if not isinstance(group, SU):
            raise InputError(f"stout layers of {group.name}: expected SU(2) or SU(3)")
        lattice.require_even("stout: the mask of one direction and one parity")
        self.group, self.lattice = group, lattice
        self.weight = nn.Parameter(torch.zeros(lattice.dim, 2))

    def rho(self) -> Tensor:
        """`[D, 2]`: of directions and parities."""
        return WITHIN / (self.lattice.dim - 1) * self.weight.tanh()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat, rho = x.flatten(2, self.lattice.dim + 1), self.rho()
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for mu, parity in self._masks():
            here, u, a = self._at(flat, mu, parity)
            moved, log_det = stout.move(self.group, u, a, rho[mu, parity])
            flat = self._put(flat, mu, here, moved)
            total = total + log_det.sum(1, dtype=torch.float64)
        return flat.view_as(x), total

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """By `U <- exp(-i v(U)) U'` to rounding, the last mask first."""
        flat, rho = y.flatten(2, self.lattice.dim + 1), self.rho()
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        for mu, parity in reversed(self._masks()):
            here, end, a = self._at(flat, mu, parity)
            u = self._undo(end, a, rho[mu, parity])
            flat = self._put(flat, mu, here, u)
            total = total - stout.move(self.group, u, a, rho[mu, parity])[1].sum(1, dtype=torch.float64)
        return flat.view_as(y), total

    def _masks(self) -> list[tuple[int, int]]:
        """(direction, parity) in the order in which links move."""
        return [(mu, parity) for mu in range(self.lattice.dim) for parity in (0, 1)]

    def _at(self, flat: Tensor, mu: int, parity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sites of a mask, their links and their staples."""
        here, around = neighbourhood(self.lattice, mu, parity)
        return here, flat[:, mu, here], matrix_staples(flat, mu, here, around)

    def _put(self, flat: Tensor, mu: int, here: Tensor, links: Tensor) -> Tensor:
        """`flat` with other links at `[:, mu, here]`; not in place, for autograd."""
        places = (mu * self.lattice.volume + here).to(flat.device)
        return flat.flatten(1, 2).index_copy(1, places, links).view_as(flat)

    def _undo(self, end: Tensor, a: Tensor, rho: Tensor) -> Tensor:
        u, allowed = end, 16 * torch.finfo(end.real.dtype).eps
        for _ in range(ITERATIONS):
            last, u = u, self.group.exp(-rho * self.group.gradient(u @ a)) @ end
            if not (u - last).detach().abs().max() > allowed:
                return u
        raise LatticeflowError(
            f"inverse of a stout layer: not within {allowed:.2g} after {ITERATIONS} iterations. Are the links on "
            f"{self.group.name} and the weights finite?"
        )
