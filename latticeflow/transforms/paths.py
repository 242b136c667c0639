"""Products of links along lattice paths from many sites at once, and rectangular loops.

A path is a sequence of steps `(mu, +1)`, along `U_mu(x)` to x + mu, or `(mu, -1)`, to x - mu and so along
`U_mu(x - mu)^dagger`. Links come flat, `[batch, D V, *tail]`: the link of direction mu at site s (C order) has the number
`mu V + s`.
"""

from collections.abc import Iterator, Sequence
from functools import reduce

import numpy as np
import torch
from torch import Tensor, nn

from ..groups import Group
from ..lattice import Lattice

Step = tuple[int, int]


def rectangle(mu: int, nu: int, a: int, b: int) -> list[Step]:
    """The loop of a links along mu, b along nu and back."""
    return [(mu, 1)] * a + [(nu, 1)] * b + [(mu, -1)] * a + [(nu, -1)] * b


def rectangles(dim: int, sizes: Sequence[tuple[int, int]]) -> Iterator[list[Step]]:
    """`rectangle` in every plane mu < nu, of every size."""
    for mu in range(dim):
        for nu in range(mu + 1, dim):
            for a, b in sizes:
                yield rectangle(mu, nu, a, b)


def links_on(lattice: Lattice, sites: np.ndarray, steps: Sequence[Step]) -> np.ndarray:
    """Numbers of the links on the paths from `sites` (numbers, `[n]`), int64 `[steps, n]`."""
    sides, place = np.array(lattice.shape), lattice.coordinates[sites]
    found = []
    for mu, sign in steps:
        ahead = place.copy()
        ahead[:, mu] = (place[:, mu] + sign) % sides[mu]
        tail = place if sign > 0 else ahead
        found.append(mu * lattice.volume + np.ravel_multi_index(tuple(tail.T), lattice.shape))
        place = ahead
    return np.stack(found)


class Paths(nn.Module):
    """The same steps from each of `sites`."""

    links: Tensor

    def __init__(self, lattice: Lattice, sites: np.ndarray, steps: Sequence[Step]):
        super().__init__()
        self.signs = [sign for _, sign in steps]
        self.register_buffer("links", torch.from_numpy(links_on(lattice, sites, steps)), persistent=False)

    def forward(self, group: Group, flat: Tensor) -> Tensor:
        """`[batch, n, *tail]`."""
        parts = []
        for numbers, sign in zip(self.links, self.signs):
            u = flat.index_select(1, numbers)
            parts.append(u if sign > 0 else group.dagger(u))
        return reduce(group.mul, parts)
