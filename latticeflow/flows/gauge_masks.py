"""Masks of gauge coupling layers: which links a layer moves, each with a plaquette of its own (2101.08176, sec. IV B).

A mask has a direction mu, a plane (mu, nu) and a set of active sites. Its active links are `U_mu(x)`, x active, and
the active plaquette of each is `P_mu_nu(x)`, which may hold no other active link. Other plaquettes with an active link are
passive: they change, too, and nothing may depend on them. What holds no active link is frozen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from ..lattice import Lattice
from ..transforms.paths import Step, links_on

PERIOD = 4  # of stripes: an active row, two frozen ones, a passive one


@dataclass(frozen=True)
class Mask:
    """Active links `U_mu(x)` where `active` (bool, of the lattice's shape), moved by their plaquettes of the plane (mu, nu).

    Raises `InputError` where the active plaquettes do not tile: where one holds another active link.
    """

    lattice: Lattice
    mu: int
    nu: int
    active: np.ndarray

    def __post_init__(self):
        if self.active.shape != self.lattice.shape or not self.active.any():
            raise InputError(
                f"mask of shape {self.active.shape} with {int(self.active.sum())} active sites: expected some, of the "
                f"lattice's shape {self.lattice.shape}"
            )
        clash = ~self.frozen(self.ahead, self.staple)
        if clash.any():
            place = tuple(int(c) for c in self.lattice.coordinates[self.sites[clash][0]])
            raise InputError(
                f"the mask does not tile the lattice {self.lattice.shape}: the plaquette ({self.mu}, {self.nu}) of the "
                f"active link of direction {self.mu} at {place} holds another active link"
            )

    @property
    def sites(self) -> np.ndarray:
        """Numbers of the active sites, `[n]`."""
        return np.flatnonzero(self.active)

    @property
    def links(self) -> np.ndarray:
        """Numbers of the active links, `[n]`."""
        return self.mu * self.lattice.volume + self.sites

    @property
    def staple(self) -> list[Step]:
        """The rest of the active plaquette, from x + mu back to x."""
        return staple(self.mu, self.nu, 1)

    @property
    def ahead(self) -> np.ndarray:
        """Numbers of the sites x + mu, x active."""
        place = self.lattice.coordinates[self.sites]
        place[:, self.mu] = (place[:, self.mu] + 1) % self.lattice.shape[self.mu]
        return np.ravel_multi_index(tuple(place.T), self.lattice.shape)

    def frozen(self, sites: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
        """Whether the path from each site holds no active link, bool `[n]`."""
        active = np.isin(links_on(self.lattice, sites, steps), self.links)
        return np.logical_not(active.any(0))


def staple(mu: int, nu: int, sign: int) -> list[Step]:
    """From x + mu along +-nu and back to x: with `U_mu(x)` in front a plaquette."""
    return [(nu, sign), (mu, -1), (nu, -sign)]


def stripes(lattice: Lattice) -> list[Mask]:
    """The masks of 2101.08176 in two dimensions: every fourth row of links, 8 layers to reach all.

    Raises `InputError` for sides that are no multiples of 4 and for other dimensions.
    """
    if lattice.dim != 2 or any(side % PERIOD for side in lattice.shape):
        raise InputError(
            f"mask 'stripes' on {lattice.shape}: expected two dimensions and sides that are multiples of {PERIOD}; "
            "mask 'checkerboard' needs even sides in any dimension"
        )
    rows = [lattice.coordinates[:, nu].reshape(lattice.shape) % PERIOD for nu in range(2)]
    return [Mask(lattice, mu, 1 - mu, rows[1 - mu] == row) for row in range(PERIOD) for mu in range(2)]


def checkerboard(lattice: Lattice, plane: int = 0) -> list[Mask]:
    """Links of one direction from sites of one parity, as in a heat bath: 2 D layers to reach all, in any dimension.

    Every plaquette with a link of direction mu holds one active link; nu is the `plane`-th (cyclically) of the other
    directions. Raises `InputError` for odd sides.
    """
    lattice.require_even("mask 'checkerboard'")
    found = []
    for parity in range(2):
        for mu in range(lattice.dim):
            nu = (mu + 1 + plane % (lattice.dim - 1)) % lattice.dim
            found.append(Mask(lattice, mu, nu, lattice.parity == parity))
    return found


def require_every_link(masks: Sequence[Mask]) -> None:
    """Raise `InputError` unless each link is active in one of the masks."""
    lattice = masks[0].lattice
    missed = np.setdiff1d(
        np.arange(lattice.dim * lattice.volume), np.concatenate([mask.links for mask in masks])
    )
    if len(missed):
        raise InputError(
            f"the {len(masks)} masks never move {len(missed)} of {lattice.dim * lattice.volume} links, the first of "
            f"direction {missed[0] // lattice.volume}: they do not tile the lattice {lattice.shape}"
        )
