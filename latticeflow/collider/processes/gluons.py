"""Gluons to gluons at tree level, all colours and helicities."""

import math
from functools import lru_cache
from itertools import permutations, product
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ..amplitudes import Currents, polarisations, products, ring_colours
from ..kinematics import dot, pt
from .base import ALPHA_S, Process, processes


def invariants(p: Tensor) -> Tensor:
    """`|s_ij| = 2 p_i.p_j` of massless momenta `[batch, n, 4]`, `[batch, n, n]`, 1 on the diagonal."""
    s = 2 * dot(p[:, :, None], p[:, None])
    eye = torch.eye(p.shape[1], dtype=torch.bool, device=p.device)
    return torch.where(eye, torch.ones_like(s), s)


@lru_cache
def _rings(n: int) -> tuple[list[list[int]], list[list[int]]]:
    """The (n - 1)! / 2 rings of n, each as its members and as their right neighbours."""
    rings = [(0, *rest) for rest in permutations(range(1, n)) if rest[0] < rest[-1]]
    return [list(ring) for ring in rings], [[*ring[1:], ring[0]] for ring in rings]


class Gluons(Process):
    """`g g -> (n - 2) g`; `|M|^2` is averaged over 2 * 2 * 8 * 8 spins and colours, with 1 / (n - 2)!, `g^2 = 4 pi
    alpha_s`. `scale`: the least transverse momentum, so that a shower adds nothing harder than the matrix element has."""

    incoming: ClassVar[tuple[int, ...]] = (21, 21)
    alpha_s: float = Field(ALPHA_S, gt=0)

    def factor(self) -> float:
        n = len(self.outgoing)
        return (4 * math.pi * self.alpha_s) ** n / (256 * math.factorial(n))

    def scale(self, p: Tensor) -> Tensor:
        return pt(p[:, 2:]).amin(1)

    def squared(self, p: Tensor) -> Tensor:
        """Parke and Taylor: all amplitudes of four and five gluons are maximally helicity violating."""
        n, s = p.shape[1], invariants(p)
        members, neighbours = _rings(n)
        rings = (1 / s)[:, members, neighbours].prod(2).sum(1)
        helicities = (s.pow(4).sum((1, 2)) - n) / 2 * (2 if n == 5 else 1)
        return self.factor() * 3 ** (n - 2) * 8 * 2 * rings * helicities


@processes.add("gg_gg")
class GluonsToTwo(Gluons):
    """`g g -> g g`, with `N = 3`, `g^2 = 4 pi alpha_s` (Parke and Taylor, Phys. Rev. Lett. 56 (1986) 2459).

        sum |M|^2 = g^4 N^2 (N^2 - 1) sum_(i<j) s_ij^4 sum_rings 2 / (s_12 s_23 s_34 s_41),

    over the three rings of four. Averaged over 2 * 2 * 8 * 8 spins and colours and with 1/2! it is
    `(9/4) g^4 (3 - t u / s^2 - s u / t^2 - s t / u^2)`.
    """

    outgoing: ClassVar[tuple[int, ...]] = (21, 21)


@processes.add("gg_ggg")
class GluonsToThree(Gluons):
    """`g g -> g g g`, with `N = 3`, `g^2 = 4 pi alpha_s` (Parke and Taylor, Phys. Rev. Lett. 56 (1986) 2459).

        sum |M|^2 = 2 g^6 N^3 (N^2 - 1) sum_(i<j) s_ij^4 sum_rings 2 / (s_12 s_23 s_34 s_45 s_51),

    over the twelve rings of five, exact in the number of colours. Averaged over 2 * 2 * 8 * 8 spins and colours, with 1/3!.
    """

    outgoing: ClassVar[tuple[int, ...]] = (21, 21, 21)


@lru_cache
def _three_and_three() -> tuple[tuple[int, ...], ...]:
    """Helicities (0 or 1) of six gluons, three of each, the first 0: those with the first 1 have the same squares by
    parity."""
    return tuple(h for h in product((0, 1), repeat=6) if sum(h) == 3 and h[0] == 0)


@processes.add("gg_gggg")
class GluonsToFour(Gluons):
    """`g g -> g g g g`, with `N = 3`, `g^2 = 4 pi alpha_s`.

        sum |M|^2 = g^8 sum_helicities sum_(r, s) C_rs A(1, r, 6) A(1, s, 6)^*

    over the 4! orders r, s of the other gluons, C their exact colour sums (Del Duca, Dixon, Maltoni, hep-ph/9910563). A
    by Parke and Taylor's formula where two helicities differ from the other four, by Berends and Giele's recursion where
    three do. Averaged over 2 * 2 * 8 * 8 spins and colours, with 1/4!."""

    outgoing: ClassVar[tuple[int, ...]] = (21, 21, 21, 21)

    def squared(self, p: Tensor) -> Tensor:
        # some 130 currents of 10 helicities: pieces that stay in a cache take two thirds of the time
        return torch.cat([self._squared(piece) for piece in p.split(1024)])

    def _squared(self, p: Tensor) -> Tensor:
        orders, colours = ring_colours(6)
        mixed = torch.tensor(colours, dtype=p.dtype, device=p.device)
        words = [(0, *order, 5) for order in orders]
        spin = products(p)
        right = [[*word[1:], 0] for word in words]
        rings = 1 / spin[:, [list(word) for word in words], right].prod(2)  # [batch, 24]
        s = invariants(p)
        violating = (s.pow(4).sum((1, 2)) - 6) / 2 * summed(rings, mixed)

        helicities = torch.tensor(_three_and_three(), device=p.device)
        sign = p.new_tensor([-1, -1, 1, 1, 1, 1])[:, None]
        both = polarisations(p)  # [2, batch, 6, 4]
        eps = both[
            helicities[:, None],
            torch.arange(len(p), device=p.device)[:, None],
            torch.arange(6, device=p.device),
        ]
        currents = Currents(sign * p, eps)  # [10, batch, 6, 4]
        amplitudes = torch.stack([currents.amplitude(word) for word in words], -1)
        other = summed(amplitudes, mixed).sum(0)
        return 2 * self.factor() * (violating + other)


def summed(amplitudes: Tensor, colours: Tensor) -> Tensor:
    """`sum_rs C_rs A_r A_s^*` of amplitudes `[..., orders]`, C `[orders, orders]` real and symmetric, `[...]`."""
    parts = torch.view_as_real(amplitudes)
    return torch.einsum("...ri,rs,...si->...", parts, colours, parts)
