"""Toy densities of partons in the proton: the input of the Les Houches evolution benchmark, unevolved (hep-ph/0204316)."""

import torch
from torch import Tensor

from ..errors import InputError


def momentum_densities(x: Tensor) -> dict[int, Tensor]:
    """`x f(x)` of each parton by its PDG code, at the input scale of 2 GeV^2 (Giele et al., hep-ph/0204316).

        x u_v = 5.107200 x^0.8 (1 - x)^3        x g    = 1.700000 x^-0.1 (1 - x)^5
        x d_v = 3.064320 x^0.8 (1 - x)^4        x dbar = 0.1939875 x^-0.1 (1 - x)^6
        x ubar = (1 - x) x dbar                 x s = x sbar = 0.2 x (ubar + dbar)

    with u = u_v + ubar, d = d_v + dbar. They hold 2 u_v, 1 d_v and all of the momentum. x in (0, 1), any shape.
    """
    rest, sea, valence = 1 - x, x**-0.1, x**0.8
    dbar = 0.1939875 * sea * rest**6
    ubar = rest * dbar
    strange = 0.2 * (ubar + dbar)
    return {
        21: 1.7 * sea * rest**5,
        2: 5.1072 * valence * rest**3 + ubar,
        1: 3.06432 * valence * rest**4 + dbar,
        3: strange,
        -2: ubar,
        -1: dbar,
        -3: strange,
    }


def density(parton: int, x: Tensor) -> Tensor:
    """`f(x)` of one parton by its PDG code. Raises `InputError` for a code that the proton here does not hold."""
    found = momentum_densities(x)
    if parton not in found:
        raise InputError(f"no parton {parton} in this proton; known: {sorted(found)}")
    return found[parton] / x


def pair_densities(channels: tuple[tuple[int, int], ...], x1: Tensor, x2: Tensor) -> Tensor:
    """`f_a(x_1) f_b(x_2)` for each pair (a, b) of `channels`, `[batch, K]`."""
    one, two = momentum_densities(x1), momentum_densities(x2)
    return torch.stack([one[a] * two[b] for a, b in channels], 1) / (x1 * x2)[:, None]
