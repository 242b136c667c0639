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

from functools import lru_cache, partial

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
    links = by_component(x, lattice.dim)
    for mu in range(lattice.dim):
        for parity in (0, 1):
            here, around = neighbourhood(lattice, mu, parity, x.device)
            u = links[mu].index_select(-2, here)
            if group.n == 1:
                new = _angles(u, _angle_staples(links, mu, here, around), beta, rng)
            else:
                new = _matrices(u, matrix_staples(links, mu, here, around), 2 * beta / group.n, rng)
            links[mu].index_copy_(-2, here, new)
    return by_configuration(links, lattice.shape)


def by_component(x: Tensor, dim: int) -> Tensor:
    """Links `[D, *tail, V, n]` of links `[n, D, *shape, *tail]`: products of small matrices are fast number by number."""
    flat = x.flatten(2, dim + 1)
    return flat.permute(1, *range(3, flat.dim()), 2, 0).clone(memory_format=torch.contiguous_format)


def by_configuration(links: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `by_component`."""
    x = links.permute(-1, 0, -2, *range(1, links.dim() - 2))
    return x.unflatten(2, shape).contiguous()


@lru_cache(maxsize=64)
def neighbourhood(lattice: Lattice, mu: int, parity: int, device: torch.device) -> tuple[Tensor, Around]:
    """Sites x of one parity, and for each nu != mu: nu and the sites x + mu, x + nu, x - nu, x + mu - nu."""
    sites = np.arange(lattice.volume).reshape(lattice.shape)

    def at(*moves: tuple[int, int]) -> Tensor:
        moved = sites
        for axis, step in moves:
            moved = np.roll(moved, -step, axis)
        return torch.from_numpy(moved[lattice.parity == parity].copy()).to(device)

    around = [
        (nu, at((mu, 1)), at((nu, 1)), at((nu, -1)), at((mu, 1), (nu, -1)))
        for nu in range(lattice.dim)
        if nu != mu
    ]
    return at(), around


def _angle_staples(links: Tensor, mu: int, here: Tensor, around: Around) -> Tensor:
    """A of the links `links[mu, here]` of U(1), complex `[sites, n]`; `Re tr U A = Re exp(i theta) A`."""
    angles = []
    for nu, ahead, beside, behind, corner in around:
        u, v = links[mu], links[nu]
        angles.append(v[ahead] - u[beside] - v[here])
        angles.append(v[behind] - u[behind] - v[corner])
    angle = torch.stack(angles)
    return torch.polar(torch.ones_like(angle), angle).sum(0)


def matrix_staples(links: Tensor, mu: int, here: Tensor, around: Around) -> Tensor:
    """A of the links `links[mu, :, :, here]` of SU(N), `[N, N, sites, n]`; links `[D, N, N, V, n]`."""
    total: Tensor | float = 0.0
    for nu, ahead, beside, behind, corner in around:
        u, v = (partial(links[direction].index_select, -2) for direction in (mu, nu))
        total = total + product(v(ahead), dagger(product(v(here), u(beside))))
        total = total + product(dagger(product(u(behind), v(corner))), v(behind))
    return total  # type: ignore[return-value]


def product(a: Tensor, b: Tensor) -> Tensor:
    """`A B` of matrices `[N, N, ...]`."""
    c = a[:, 0, None] * b[0]
    for j in range(1, len(b)):
        c = c.addcmul_(a[:, j, None], b[j])
    return c


def dagger(a: Tensor) -> Tensor:
    """Of matrices `[N, N, ...]`."""
    return a.transpose(0, 1).conj_physical()


def _angles(theta: Tensor, a: Tensor, beta: float, rng: np.random.Generator | None) -> Tensor:
    """New angles of U(1)."""
    if rng is None:
        return wrap(-theta - 2 * a.angle())
    drawn = rng.vonmises(0.0, beta * a.abs().double().cpu().numpy())
    return wrap(torch.from_numpy(drawn).to(theta) - a.angle())


def _matrices(u: Tensor, a: Tensor, coupling: float, rng: np.random.Generator | None) -> Tensor:
    """New links of SU(N), `[N, N, ...]`, subgroup after subgroup; `coupling` = 2 beta / N.

    A matrix of SU(2) is `[[p, q], [-q*, p*]]`, `p = a0 + i a3`, `q = a2 + i a1`.
    """
    n = len(u)
    both = torch.stack([u, product(u, a)], 2)  # rows of U and of U A are turned alike
    for i, j in [(0, 1)] if n == 2 else [(0, 1), (0, 2), (1, 2)]:
        w = both[:, :, 1]
        p, q = (w[i, i] + w[j, j].conj()) / 2, (w[i, j] - w[j, i].conj()) / 2  # k V
        k = (p.real.square() + p.imag.square() + q.real.square() + q.imag.square()).sqrt()
        scale = 1 / k.clamp_min(torch.finfo(k.dtype).tiny)
        p, q = p.conj() * scale, -q * scale  # V^dagger
        x = (p, q) if rng is None else su2_heat_bath(coupling * k, rng)
        p, q = x[0] * p - x[1] * q.conj(), x[0] * q + x[1] * p.conj()
        upper, lower = both[i], both[j]
        both[i], both[j] = p * upper + q * lower, p.conj() * lower - q.conj() * upper
    return both[:, :, 0]


def su2_heat_bath(kappa: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """`p = a0 + i a3` and `q = a2 + i a1` of X with density `exp(kappa a0)` on SU(2), for kappa `[...]`, not negative."""
    strength = kappa.double().cpu().numpy().ravel()
    a0 = _first_component(strength, rng)
    z, angle = 2 * rng.random(len(a0)) - 1, 2 * np.pi * rng.random(len(a0))
    length = np.sqrt(1 - a0**2)
    across = np.sqrt(1 - z**2) * length
    pair = torch.from_numpy(np.stack([a0 + 1j * (z * length), across * np.exp(1j * angle)]))
    p, q = pair.to(kappa.device, kappa.dtype.to_complex()).view(2, *kappa.shape)
    return p, q


def _first_component(kappa: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """a0 with density `sqrt(1 - a0^2) exp(kappa a0)`, float64 `[m]`."""
    a0, missing, k = np.empty_like(kappa), np.arange(len(kappa)), kappa
    while len(missing):
        r = 1 - rng.random((4, len(missing)))  # in (0, 1]
        # Kennedy and Pendleton: 1 - a0 is the sum of a Gaussian's square and an exponential variate
        found = 1 + (np.log(r[0]) + np.cos(2 * np.pi * r[1]) ** 2 * np.log(r[2])) / np.maximum(k, CREUTZ)
        ok = r[3] ** 2 <= (1 + found) / 2
        weak = np.flatnonzero(k < CREUTZ)
        if len(weak):  # Creutz: a0 from exp(kappa a0) on [-1, 1]
            small = np.maximum(k[weak], 1e-9)
            found[weak] = np.log(np.exp(-small) + r[0, weak] * 2 * np.sinh(small)) / small
            ok[weak] = r[3, weak] ** 2 <= 1 - found[weak] ** 2
        a0[missing[ok]] = np.clip(found[ok], -1, 1)
        missing = missing[~ok]
        k = kappa[missing]
    return a0
