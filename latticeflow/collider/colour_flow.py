"""Colour flows of leading colour, which parton showers need to begin."""

from itertools import permutations

import numpy as np

from ..errors import InputError

FIRST = 501  # the first tag, by custom


def colour_flow(ids: tuple[int, ...], incoming: int, p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Colour and anticolour tags of every particle, int64 `[batch, n, 2]`, 0 for none; they are ICOLUP of Les Houches.

    ids: PDG codes, the `incoming` first; p `[batch, n, 4]`; u `[batch]` uniform in [0, 1). In the limit of many colours an
    amplitude is a sum over orders of the gluons, along the line from quark to antiquark or round a ring where there are
    none; tags connect neighbours. An order is chosen with probability proportional to `prod 1 / (p_i . p_j)` over
    neighbours: to the square of the ordered amplitude, where that is maximally helicity violating (Parke and Taylor, Phys.
    Rev. Lett. 56, 2459; so are all tree amplitudes of four and five gluons). With several pairs of
    quarks, quark k is connected to antiquark k, and the gluons lie on the first line. More than seven gluons keep the
    order in which they are listed.

    Raises `InputError` where the coloured particles cannot be a singlet.
    """
    # as if all were outgoing: an incoming quark is an outgoing antiquark
    out = [-one if at < incoming and one != 21 else one for at, one in enumerate(ids)]
    quarks, antis = ([at for at, one in enumerate(out) if 1 <= sign * one <= 6] for sign in (1, -1))
    gluons = [at for at, one in enumerate(out) if one == 21]
    if len(quarks) != len(antis) or (len(gluons) == 1 and not quarks):
        raise InputError(
            f"particles {ids}, {incoming} incoming: no colour flow, they are not a singlet of colour"
        )
    tags = np.zeros((len(p), len(ids), 2), dtype=np.int64)
    if gluons or quarks:
        chains = _chains(quarks, antis, gluons)
        chosen = _choose(chains, p, u) if len(chains) > 1 else np.zeros(len(p), dtype=int)
        for number, (chain, ring) in enumerate(chains):
            own = np.flatnonzero(chosen == number)
            for tag, (a, b) in enumerate(_neighbours(chain, ring), start=FIRST):
                tags[own, a, 0] = tags[own, b, 1] = tag
        for tag, (a, b) in enumerate(zip(quarks[1:], antis[1:]), start=FIRST + len(gluons) + 1):
            tags[:, a, 0] = tags[:, b, 1] = tag
    tags[:, :incoming] = tags[:, :incoming, ::-1]
    return tags


def _chains(quarks: list[int], antis: list[int], gluons: list[int]) -> list[tuple[list[int], bool]]:
    """Every order of the gluons with what is at its ends, and whether it closes to a ring."""
    fixed, free = ([], gluons) if quarks else (gluons[:1], gluons[1:])
    orders = list(permutations(free)) if len(free) <= 7 else [tuple(free)]
    if quarks:
        return [([quarks[0], *order, antis[0]], False) for order in orders]
    return [([*fixed, *order], True) for order in orders]


def _neighbours(chain: list[int], ring: bool) -> list[tuple[int, int]]:
    return list(zip(chain, [*chain[1:], chain[0]] if ring else chain[1:]))


def _choose(chains: list[tuple[list[int], bool]], p: np.ndarray, u: np.ndarray) -> np.ndarray:
    """The number of a chain for each event."""
    metric = np.array([1.0, -1.0, -1.0, -1.0])
    products = np.abs(np.einsum("bim,bjm,m->bij", p, p, metric))
    logs = np.log(np.maximum(products, np.finfo(float).tiny))
    weight = np.stack([-sum(logs[:, a, b] for a, b in _neighbours(*chain)) for chain in chains], axis=1)
    weight = np.exp(weight - weight.max(axis=1, keepdims=True)).cumsum(axis=1)
    return (weight < u[:, None] * weight[:, -1:]).sum(axis=1)
