"""Heat bath and over-relaxation of gauge links: every link in turn from its distribution given all others,

`p(U) ~ exp((beta / N) Re tr U A)`, A the sum of its staples. Links of one direction on sites of one parity do not meet in a
plaquette and are updated together.

- U(1): `theta + arg A` is von Mises distributed with kappa = beta |A|.
- SU(2): with `U A = k V`, V in SU(2), U becomes `X V^dagger U`, `X = a0 + i a . sigma` with
  `p(a0) ~ sqrt(1 - a0^2) exp(kappa a0)`, kappa = beta k, a in any direction; a0 as Kennedy and Pendleton (Phys. Lett. B
  156 (1985) 393), and as Creutz (Phys. Rev. D 21 (1980) 2308) where kappa is small.
- SU(3): the same in each of three SU(2) subgroups, `kappa = (2 beta / N) k`, k V the part of the subgroup's block of
  U A that is a multiple of SU(2) (Cabibbo and Marinari, Phys. Lett. B 119 (1982) 387).

Over-relaxation takes U A to its mirror image, with the same action: `(V^dagger)^2 U`, for U(1)
`theta -> -theta - 2 arg A` (Creutz, Phys. Rev. D 36 (1987) 515).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..groups import wrap
from ..lattice import Lattice
from ..targets import Wilson

CREUTZ = 1.5  # kappa below which Creutz's way to draw a0 accepts more often than Kennedy and Pendleton's
# nu, and the sites x + mu, x + nu, x - nu, x + mu - nu
Around = list[tuple[int, Tensor, Tensor, Tensor, Tensor]]


def update_links(target: Wilson, x: Tensor, rng: np.random.Generator | None) -> Tensor:
    """Links x `[n, D, *shape, *tail]` after one update of each: from its heat bath, or with rng None by over-relaxation.

    Sides must be even.
    """
    lattice, group, beta = target.lattice, target.links, target.beta
    flat = x.reshape(len(x), lattice.dim, lattice.volume, *group.tail).clone()
    for mu in range(lattice.dim):
        for parity in (0, 1):
            here, around = neighbourhood(lattice, mu, parity)
            u = flat[:, mu, here]
            if group.n == 1:
                flat[:, mu, here] = _angles(u, _angle_staples(flat, mu, here, around), beta, rng)
            else:
                flat[:, mu, here] = _matrices(
                    u, matrix_staples(flat, mu, here, around), 2 * beta / group.n, rng
                )
    return flat.view_as(x)


@lru_cache(maxsize=64)
def neighbourhood(lattice: Lattice, mu: int, parity: int) -> tuple[Tensor, Around]:
    """Sites x of one parity, and for each nu != mu: nu and the sites x + mu, x + nu, x - nu, x + mu - nu."""
    sites = np.arange(lattice.volume).reshape(lattice.shape)

    def at(*moves: tuple[int, int]) -> Tensor:
        moved = sites
        for axis, step in moves:
            moved = np.roll(moved, -step, axis)
        return torch.from_numpy(moved[lattice.parity == parity].copy())

    around = [
        (nu, at((mu, 1)), at((nu, 1)), at((nu, -1)), at((mu, 1), (nu, -1)))
        for nu in range(lattice.dim)
        if nu != mu
    ]
    return at(), around


def _angle_staples(flat: Tensor, mu: int, here: Tensor, around: Around) -> Tensor:
    """A of the links `flat[:, mu, here]` of U(1), complex `[C, sites]`; `Re tr U A = Re exp(i theta) A`."""
    angles = []
    for nu, ahead, beside, behind, corner in around:
        u, v = flat[:, mu], flat[:, nu]
        angles.append(v[:, ahead] - u[:, beside] - v[:, here])
        angles.append(v[:, behind] - u[:, behind] - v[:, corner])
    angle = torch.stack(angles)
    return torch.polar(torch.ones_like(angle), angle).sum(0)


def matrix_staples(flat: Tensor, mu: int, here: Tensor, around: Around) -> Tensor:
    """A of the links `flat[:, mu, here]` of SU(N), `[C, sites, N, N]`."""
    total: Tensor | float = 0.0
    for nu, ahead, beside, behind, corner in around:
        u, v = flat[:, mu], flat[:, nu]
        total = total + v[:, ahead] @ (v[:, here] @ u[:, beside]).mH
        total = total + (u[:, behind] @ v[:, corner]).mH @ v[:, behind]
    return total  # type: ignore[return-value]


def _angles(theta: Tensor, a: Tensor, beta: float, rng: np.random.Generator | None) -> Tensor:
    """New angles of U(1)."""
    if rng is None:
        return wrap(-theta - 2 * a.angle())
    drawn = rng.vonmises(0.0, beta * a.abs().double().cpu().numpy())
    return wrap(torch.from_numpy(drawn).to(theta) - a.angle())


def _matrices(u: Tensor, a: Tensor, coupling: float, rng: np.random.Generator | None) -> Tensor:
    """New links of SU(N), subgroup after subgroup; `coupling` = 2 beta / N."""
    n = u.shape[-1]
    for i, j in [(0, 1)] if n == 2 else [(0, 1), (0, 2), (1, 2)]:
        rows, w = u[..., [i, j], :], (u[..., [i, j], :] @ a)[..., [i, j]]
        v = torch.stack(
            [
                w[..., 0, 0].real + w[..., 1, 1].real,
                w[..., 0, 1].imag + w[..., 1, 0].imag,
                w[..., 0, 1].real - w[..., 1, 0].real,
                w[..., 0, 0].imag - w[..., 1, 1].imag,
            ],
            -1,
        )
        v = v / 2  # k V = v0 + i v . sigma, the part of w that is a multiple of SU(2)
        k = torch.linalg.vector_norm(v, dim=-1)
        inverse = _conjugate(v / k.clamp_min(torch.finfo(k.dtype).tiny)[..., None])
        if rng is None:
            g = _product(inverse, inverse)
        else:
            g = _product(su2_heat_bath(coupling * k, rng), inverse)
        u = u.clone()
        u[..., [i, j], :] = _as_matrix(g) @ rows
    return u


def _conjugate(q: Tensor) -> Tensor:
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def _product(p: Tensor, q: Tensor) -> Tensor:
    """Of `p0 + i p . sigma` and `q0 + i q . sigma`."""
    a, b, c, d = p.unbind(-1)
    e, f, g, h = q.unbind(-1)
    return torch.stack(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e - c * h + d * g,
            a * g + c * e - d * f + b * h,
            a * h + d * e - b * g + c * f,
        ],
        -1,
    )


def _as_matrix(q: Tensor) -> Tensor:
    """`q0 + i q . sigma`, complex `[..., 2, 2]`."""
    a, b, c, d = q.unbind(-1)
    rows = [torch.complex(a, d), torch.complex(c, b), torch.complex(-c, b), torch.complex(a, -d)]
    return torch.stack(rows, -1).unflatten(-1, (2, 2))


def su2_heat_bath(kappa: Tensor, rng: np.random.Generator) -> Tensor:
    """Quaternions X with density `exp(kappa a0)` on SU(2), `[..., 4]`, for kappa `[...]`, not negative."""
    strength = kappa.double().cpu().numpy().ravel()
    a0, missing = np.empty_like(strength), np.arange(len(strength))
    while len(missing):
        k = strength[missing]
        r = 1 - rng.random((4, len(missing)))  # in (0, 1]
        # Kennedy and Pendleton: 1 - a0 is the sum of a Gaussian's square and an exponential variate
        found = 1 + (np.log(r[0]) + np.cos(2 * np.pi * r[1]) ** 2 * np.log(r[2])) / np.maximum(k, CREUTZ)
        ok = r[3] ** 2 <= (1 + found) / 2
        # Creutz: a0 from exp(kappa a0) on [-1, 1]
        weak = k < CREUTZ
        small = np.maximum(k[weak], 1e-9)
        found[weak] = np.log(np.exp(-small) + r[0, weak] * 2 * np.sinh(small)) / small
        ok[weak] = r[3, weak] ** 2 <= 1 - found[weak] ** 2
        a0[missing[ok]] = np.clip(found[ok], -1, 1)
        missing = missing[~ok]
    z = 2 * rng.random(len(a0)) - 1
    angle, length = 2 * np.pi * rng.random(len(a0)), np.sqrt(1 - a0**2)
    across = np.sqrt(1 - z**2) * length
    x = np.stack([a0, across * np.cos(angle), across * np.sin(angle), z * length], -1)
    return torch.from_numpy(x).to(kappa).view(*kappa.shape, 4)
