"""Functions of four-momenta `[..., 4]`, components (E, px, py, pz); energies in any unit, angles in radians."""

import math
from functools import lru_cache
from itertools import combinations, product

import torch
from torch import Tensor

from ..errors import InputError

HBARC2 = 389379372.1  # (hbar c)^2 in pb GeV^2

_THRUST_MOST = 14  # particles: 2^13 sums an event


def dot(p: Tensor, q: Tensor) -> Tensor:
    """`p.q = E_p E_q - p q`."""
    return p[..., 0] * q[..., 0] - (p[..., 1:] * q[..., 1:]).sum(-1)


def mass2(p: Tensor) -> Tensor:
    """`p^2`, below zero by rounding at most for a real particle."""
    return dot(p, p)


def mass(p: Tensor) -> Tensor:
    """`sqrt(max(p^2, 0))`."""
    return mass2(p).clamp(min=0).sqrt()


def pt(p: Tensor) -> Tensor:
    """Transverse momentum, `sqrt(px^2 + py^2)`."""
    return torch.hypot(p[..., 1], p[..., 2])


def momentum(p: Tensor) -> Tensor:
    """Length of the three-momentum."""
    return p[..., 1:].square().sum(-1).sqrt()


def phi(p: Tensor) -> Tensor:
    """Azimuth `atan2(py, px)` in (-pi, pi]."""
    return torch.atan2(p[..., 2], p[..., 1])


def rapidity(p: Tensor) -> Tensor:
    """`y = (1/2) log( (E + pz) / (E - pz) )`; along the beam a large finite number."""
    z = p[..., 3]
    least = torch.finfo(p.dtype).tiny
    small = (p[..., 0] - z.abs()).clamp(min=least)
    return torch.copysign(0.5 * ((p[..., 0] + z.abs()).clamp(min=least).log() - small.log()), z)


def pseudorapidity(p: Tensor) -> Tensor:
    """`eta = -log tan(theta / 2) = arsinh(pz / pT)`; along the beam a large finite number."""
    across, z = pt(p), p[..., 3]
    ratio = (torch.hypot(across, z) + z.abs()) / across.clamp(min=torch.finfo(p.dtype).tiny ** 0.5)
    return torch.copysign(ratio.log(), z)


def cos_theta(p: Tensor) -> Tensor:
    """`pz / |p|`."""
    return p[..., 3] / momentum(p)


def delta_phi(p: Tensor, q: Tensor) -> Tensor:
    """The angle between two transverse momenta, in [0, pi]."""
    apart = (phi(p) - phi(q)).abs()
    return torch.minimum(apart, 2 * math.pi - apart)


def delta_r(p: Tensor, q: Tensor) -> Tensor:
    """`Delta R = sqrt( (y_p - y_q)^2 + (phi_p - phi_q)^2 )`, with rapidities."""
    return torch.hypot(rapidity(p) - rapidity(q), delta_phi(p, q))


@lru_cache
def pair_indices(n: int) -> tuple[list[int], list[int]]:
    """All pairs i < j of n particles, as two lists: the order of what is given "for all pairs"."""
    found = list(combinations(range(n), 2))
    return [i for i, _ in found], [j for _, j in found]


def pairs(p: Tensor) -> tuple[Tensor, Tensor]:
    """Both members of all pairs of particles, `[..., n, 4]` to twice `[..., n (n - 1) / 2, 4]`."""
    i, j = pair_indices(p.shape[-2])
    return p[..., i, :], p[..., j, :]


def jade(p: Tensor, q: Tensor, energy: Tensor) -> Tensor:
    """`y = (p + q)^2 / E^2`, which is the JADE measure `2 E_p E_q (1 - cos theta) / E^2` for massless particles."""
    return mass2(p + q) / energy.square()


def durham(p: Tensor, q: Tensor, energy: Tensor) -> Tensor:
    """`y = 2 min(E_p, E_q)^2 (1 - cos theta) / E^2` (Catani et al., Phys. Lett. B 269 (1991) 432)."""
    unit_p, unit_q = p[..., 1:] / momentum(p)[..., None], q[..., 1:] / momentum(q)[..., None]
    apart = (unit_p - unit_q).square().sum(-1)  # 2 (1 - cos), without cancellation
    return torch.minimum(p[..., 0], q[..., 0]).square() * apart / energy.square()


@lru_cache
def _signs(n: int) -> tuple[tuple[float, ...], ...]:
    return tuple((1.0, *rest) for rest in product((1.0, -1.0), repeat=n - 1))


def thrust(p: Tensor) -> Tensor:
    """`T = max_n sum_i |p_i.n| / sum_i |p_i|` of momenta `[..., n, 4]`, exact: it is the maximum over the signs s_i = +-1 of

    `|sum_i s_i p_i| / sum_i |p_i|`. Between 1/2 and 1. Raises `InputError` for more than 14 particles (2^13 sums).
    """
    n = p.shape[-2]
    if n > _THRUST_MOST:
        raise InputError(f"thrust of {n} particles; at most {_THRUST_MOST}, as it takes 2^(n - 1) sums")
    sums = torch.einsum("sn,...nk->...sk", p.new_tensor(_signs(n)), p[..., 1:])
    return sums.square().sum(-1).amax(-1).sqrt() / momentum(p).sum(-1)
