"""U(1) on a two-dimensional torus in terms of its plaquettes: what maps of plaquettes do to links, and back.

`P(x) = theta_0(x) + theta_1(x + e0) - theta_0(x + e1) - theta_1(x)`, the curl of theta; angles `[batch, 2, L0, L1]` and
plaquettes `[batch, L0, L1]`. V - 1 plaquettes, two Polyakov loops and V - 1 angles of gauge transformations are coordinates
of all links, and Haar's measure is flat in them: a map that changes plaquettes only, by d with `sum_x d(x) = 0`, is a map of
the links, `theta -> theta + lift(d)`, with the Jacobian that it has on the V - 1 plaquettes.
"""

import numpy as np
import torch
from torch import Tensor

from ..groups import GROUPS, wrap


def curl(theta: Tensor) -> Tensor:
    """P of links, not wrapped."""
    a, b = theta[:, 0], theta[:, 1]
    return a - torch.roll(a, -1, 2) + torch.roll(b, -1, 1) - b


def lift(d: Tensor) -> Tensor:
    """Link angles a with `curl(a) = d`, for d with `sum_x d(x) = 0`: zero but for direction 1, and 0 of the last x_0.

    `a_1(k, y) = sum_{j < k} d(j, y)`, `a_0(L0 - 1, y) = -sum_{z < y} sum_j d(j, z)`.
    """
    up = torch.zeros_like(d)
    up[:, 1:] = d[:, :-1].cumsum(1)
    rows = d.sum(1)
    across = torch.zeros_like(d)
    across[:, -1, 1:] = -rows[:, :-1].cumsum(1)
    return torch.stack([across, up], 1)


def independent(n: int, shape: tuple[int, ...], kappa: float, rng: np.random.Generator) -> Tensor:
    """Links of n configurations, float64 on the CPU: all plaquettes but that at the origin independent and von Mises
    distributed, `p(P) ~ exp(kappa cos P)`, that one what the torus leaves, the rest of the links Haar distributed.
    """
    theta = GROUPS["u1"].haar((n, 2, *shape), rng, torch.float64)
    if not kappa:
        return theta
    return wrap(theta + lift(closed(torch.from_numpy(rng.vonmises(0.0, kappa, (n, *shape))) - curl(theta))))


def closed(d: Tensor) -> Tensor:
    """d with its value at the origin such that the sum vanishes."""
    d = d.clone()
    d[:, 0, 0] = 0
    d[:, 0, 0] = -d.flatten(1).sum(1)
    return d


def curl_transposed(s: Tensor) -> Tensor:
    """`d/dtheta` of a function of plaquettes from its `d/dP` = s, `[batch, 2, L0, L1]`."""
    return torch.stack([s - torch.roll(s, 1, 2), torch.roll(s, 1, 1) - s], 1)


def score_of_plaquettes(score: Tensor) -> Tensor:
    """The s with `curl_transposed(s) = score`, s = 0 at the origin; there is one where the function is gauge invariant."""
    s = torch.zeros_like(score[:, 0])
    s[:, 0, 1:] = score[:, 0, 0, 1:].cumsum(1)
    s[:, 1:] = -score[:, 1, 1:].cumsum(1)
    s[:, 1:] = s[:, 1:] + s[:, :1]
    return s
