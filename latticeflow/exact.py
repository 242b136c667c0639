"""Lattice gauge theory on a two-dimensional torus of V plaquettes, solved exactly by the character expansion.

`exp((beta / N) Re tr P) = sum_r d_r c_r chi_r(P)` (U(1): `exp(beta cos P)`), r the irreducible representations, of
dimension d_r, `c_r = (1 / d_r) int dP chi_r(P) exp((beta / N) Re tr P)` with Haar's measure normalised to one. All integrals
over links can then be done (Migdal, Sov. Phys. JETP 42 (1975) 413), and `Z = sum_r c_r^V`. Coefficients:

U(1): `c_n = I_n(beta)`, n any integer; SU(2): `c_n = 2 I_n(beta) / beta`, n = d_r = 1, 2, ...;
SU(3): `d_r c_r = sum_l det_ij I_{h_j - j + i + l}(beta / 3)`, h = (p + q, q, 0) (Bars and Green, Phys. Rev. D 20 (1979)
3311).

Groups are "u1", "su2", "su3"; `shape` is that of the lattice. All functions raise `InputError` for other groups, for a
lattice that has not two dimensions and at least 4 sites, for beta < 0, and for a loop that is larger than the torus.
"""

import math
from functools import lru_cache

import numpy as np
from scipy.special import ive

from .errors import InputError

Label = tuple[int, ...]
NEGLIGIBLE = (
    1e-13  # c_r / c_0 of representations that are left out: their terms hold at least four such factors
)
NODES = 400  # of Gauss and Legendre, for Fourier transforms of the weight of one plaquette


def log_z(group: str, shape: tuple[int, ...], beta: float) -> float:
    """`log Z = log sum_r c_r^V`."""
    volume = _volume(shape)
    c, log_c0 = _coefficients(group, beta)
    return volume * log_c0 + math.log(sum(value**volume for value in c.values()))


def plaquette(group: str, shape: tuple[int, ...], beta: float) -> float:
    """`<Re tr P> / N = (1 / V) d log Z / d beta`, as the loop of area one."""
    return wilson_loop(group, shape, beta, 1)


def wilson_loop(group: str, shape: tuple[int, ...], beta: float, area: int) -> float:
    """`<Re tr W> / N` of a loop that encloses `area` plaquettes and does not wind around the torus:

    `(1 / (N Z)) sum_s sum_{r in f x s} (d_r / d_s)^{-1} c_s^A c_r^{V - A}`, f the fundamental representation.
    """
    volume = _volume(shape)
    if not 0 <= area <= volume:
        raise InputError(f"a loop of {area} plaquettes on {tuple(shape)}; expected 0 to {volume}")
    c, _ = _coefficients(group, beta)
    z = sum(value**volume for value in c.values())
    total = 0.0
    for s, inside in c.items():
        for r in _times_fundamental(group, s):
            total += dimension(s) / dimension(r) * inside**area * c.get(r, 0.0) ** (volume - area)
    return total / (_rows(group) * z)


def string_tension(group: str, beta: float) -> float:
    """`-log(c_f / c_0)` of the infinite volume, where loops of area A are `exp(-string_tension A)`."""
    c, _ = _coefficients(group, beta)
    fundamental = _times_fundamental(group, _trivial(group))[0]
    return -math.log(c[fundamental])


def log_one_plaquette(group: str, beta: float) -> float:
    """`log c_0`: the mean of the weight of one plaquette over Haar's measure."""
    _require(beta, group)
    return math.log(_scaled(group, _trivial(group), beta)) + beta


def charges(shape: tuple[int, ...], beta: float) -> tuple[np.ndarray, np.ndarray]:
    """U(1): topological charges Q = -k, ..., k and their probabilities, those that are left out below 1e-14.

    `Z(theta) = sum_n f(n + theta / 2 pi)^V`, `f(nu) = int_{-pi}^{pi} dP / 2 pi exp(beta cos P) cos(nu P)`, and
    `p(Q) Z = int_0^{2 pi} d theta / 2 pi exp(-i Q theta) Z(theta) = int d nu cos(2 pi nu Q) f(nu)^V`.
    """
    volume = _volume(shape)
    _require(beta)
    x, weight = np.polynomial.legendre.leggauss(NODES)
    p, weight = np.pi * x, weight / 2 * np.exp(beta * (np.cos(np.pi * x) - 1))
    largest = volume // 2  # |Q| <= V / 2, so that the integral over nu is a sum of steps below 1 / V, exactly
    step = 1 / (2 * largest + 2)
    nu = np.arange(0, 100, step)  # f falls as 1 / nu, and f^V as its V-th power
    f = (weight @ np.cos(np.outer(p, nu)) / weight.sum()) ** volume
    f[0] /= 2
    q = np.arange(-largest, largest + 1)
    found = np.cos(2 * np.pi * np.outer(q, nu)) @ f
    found = np.maximum(found / found.sum(), 0)
    keep = abs(q) <= abs(q[found > 1e-14]).max()
    return q[keep], found[keep]


def topological_susceptibility(shape: tuple[int, ...], beta: float) -> float:
    """U(1): `chi_Q = <Q^2> / V`."""
    q, p = charges(shape, beta)
    return float((q**2 * p).sum()) / _volume(shape)


def dimension(r: Label) -> int:
    """Of U(1)'s (n,), SU(2)'s (0, n) and SU(3)'s (0, p, q)."""
    if len(r) == 1:
        return 1
    if len(r) == 2:
        return r[1]
    return (r[1] + 1) * (r[2] + 1) * (r[1] + r[2] + 2) // 2


def _rows(group: str) -> int:
    return {"u1": 1, "su2": 2, "su3": 3}[group]


def _trivial(group: str) -> Label:
    return {"u1": (0,), "su2": (0, 1), "su3": (0, 0, 0)}[group]


def _times_fundamental(group: str, s: Label) -> list[Label]:
    """The representations in fundamental x s, each of which is there once."""
    if group == "u1":
        return [(s[0] + 1,)]
    if group == "su2":
        return [(0, n) for n in (s[1] - 1, s[1] + 1) if n > 0]
    _, p, q = s
    return [r for r in ((0, p + 1, q), (0, p - 1, q + 1), (0, p, q - 1)) if min(r) >= 0]


@lru_cache(maxsize=256)
def _coefficients(group: str, beta: float) -> tuple[dict[Label, float], float]:
    """`c_r / c_0` of all r that are not negligible, and `log c_0`."""
    _require(beta, group)
    trivial = _trivial(group)
    c0 = _scaled(group, trivial, beta)
    found, front = {trivial: 1.0}, [trivial]
    while front:  # outwards from the trivial one: c_r falls monotonously
        beyond = {r for s in front for r in _times_fundamental(group, s) + _times_antifundamental(group, s)}
        front = []
        for r in beyond - set(found):
            ratio = _scaled(group, r, beta) / c0
            if ratio > NEGLIGIBLE:
                found[r] = ratio
                front.append(r)
    return found, math.log(c0) + beta


def _times_antifundamental(group: str, s: Label) -> list[Label]:
    if group == "u1":
        return [(s[0] - 1,)]
    return [(0, q, p) for _, p, q in _times_fundamental(group, (0, s[2], s[1]))] if group == "su3" else []


def _scaled(group: str, r: Label, beta: float) -> float:
    """`exp(-beta) c_r`."""
    if group == "u1":
        return float(ive(r[0], beta))
    if group == "su2":
        return float(2 * ive(r[1], beta) / beta) if beta else float(r[1] == 1)
    h = np.array([r[1] + r[2], r[2], 0])
    reach = 60 + 2 * int(beta) + int(h[0])  # I_n(x) is negligible for n well above x
    i = np.arange(3)
    orders = (h - i)[None, None, :] + i[None, :, None] + np.arange(-reach, reach + 1)[:, None, None]
    return float(np.linalg.det(ive(orders, beta / 3)).sum()) / dimension(r)


def _volume(shape: tuple[int, ...]) -> int:
    if len(shape) != 2 or math.prod(shape) < 4:
        raise InputError(f"exact results on {tuple(shape)}: expected two dimensions and at least 4 sites")
    return math.prod(shape)


def _require(beta: float, group: str = "u1") -> None:
    if group not in ("u1", "su2", "su3"):
        raise InputError(f"exact results for the group '{group}': expected u1, su2 or su3")
    if not 0 <= beta < math.inf:
        raise InputError(f"beta = {beta}: expected a finite beta >= 0")
