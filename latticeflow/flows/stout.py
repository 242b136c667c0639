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
from ..transforms.heatbath import by_component, by_configuration, matrix_staples, neighbourhood
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
        links, rho = by_component(x, self.lattice.dim), self.rho()
        total = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for mu, parity in self._masks():
            here, u, a = self._at(links, mu, parity)
            moved, log_det = stout.move(self.group, u, a, rho[mu, parity])
            links = self._put(links, mu, here, moved)
            total = total + log_det.sum(0, dtype=torch.float64)
        return by_configuration(links, self.lattice.shape), total

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """By `U <- exp(-i v(U)) U'` to rounding, the last mask first."""
        links, rho = by_component(y, self.lattice.dim), self.rho()
        total = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        for mu, parity in reversed(self._masks()):
            here, end, a = self._at(links, mu, parity)
            u = self._undo(end, a, rho[mu, parity])
            links = self._put(links, mu, here, u)
            total = total - stout.move(self.group, u, a, rho[mu, parity])[1].sum(0, dtype=torch.float64)
        return by_configuration(links, self.lattice.shape), total

    def _masks(self) -> list[tuple[int, int]]:
        """(direction, parity) in the order in which links move."""
        return [(mu, parity) for mu in range(self.lattice.dim) for parity in (0, 1)]

    def _at(self, links: Tensor, mu: int, parity: int) -> tuple[Tensor, Tensor, Tensor]:
        """Sites of a mask, their links and their staples, `[sites, n, N, N]`."""
        here, around = neighbourhood(self.lattice, mu, parity, links.device)
        u, a = links[mu].index_select(-2, here), matrix_staples(links, mu, here, around)
        return here, u.permute(2, 3, 0, 1), a.permute(2, 3, 0, 1)

    def _put(self, links: Tensor, mu: int, here: Tensor, u: Tensor) -> Tensor:
        """`links` with others at `[mu, :, :, here]`; not in place, for autograd."""
        own = links[mu].index_copy(-2, here, u.permute(2, 3, 0, 1))
        return torch.cat([links[:mu], own[None], links[mu + 1 :]])

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
