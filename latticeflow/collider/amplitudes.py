"""Tree amplitudes of gluons, and of a quark line with gluons, ordered in colour: recursion, spinors, sums over colours.

Conventions of Dixon (hep-ph/9601359): generators with `tr T_a T_b = delta_ab`, coupling constants taken out, all momenta
outgoing and massless. What comes in has its components last, `[..., 4]`, (t, x, y, z); vectors in here have them first,
`[4, ...]`, and so have two-spinors, `[2, ...]`: what is multiplied then lies side by side. Complex128 where polarisations
are.
"""

import math
from functools import lru_cache, reduce
from itertools import permutations

import numpy as np
import torch
from torch import Tensor

Word = tuple[int, ...]


def lorentz(a: Tensor, b: Tensor) -> Tensor:
    """`a.b` of vectors `[4, ...]` with the metric (+, -, -, -), bilinear (nothing is conjugated)."""
    return a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3]


def polarisations(p: Tensor) -> Tensor:
    """Both circular polarisations of physical massless momenta `[..., 4]`, `[2, ..., 4]`: transverse, without a time
    component.

    `eps_+- = (e_theta +- i e_phi) / sqrt(2)`, `eps_+ . eps_- = -1`.
    """
    across = torch.hypot(p[..., 1], p[..., 2])
    length = torch.hypot(across, p[..., 3])
    off = across > 0
    safe = torch.where(off, across, 1)
    cos_phi = torch.where(off, p[..., 1] / safe, 1)
    sin_phi = torch.where(off, p[..., 2] / safe, 0)
    cos, sin = p[..., 3] / length, across / length
    zero = torch.zeros_like(cos)
    theta = torch.stack([zero, cos * cos_phi, cos * sin_phi, -sin], -1)
    azimuth = torch.stack([zero, -sin_phi, cos_phi, zero], -1)
    return torch.stack([torch.complex(theta, azimuth), torch.complex(theta, -azimuth)]) / math.sqrt(2)


class Currents:
    """Off-shell currents of ordered gluons, `J(1, ..., n)` (Berends and Giele, Nucl. Phys. B306 (1988) 759).

        P^2 J(1..n) = sum_i [J(1..i), J(i+1..n)] / sqrt(2) + sum_(i<j) {J(1..i), J(i+1..j), J(j+1..n)},
        [A, B]    = 2 (P_B.A) B - 2 (P_A.B) A + (A.B) (P_A - P_B),
        {A, B, C} = (A.C) B - (B.C) A / 2 - (A.B) C / 2

    k `[..., n, 4]`: outgoing momenta, real; eps `[..., n, 4]`: their polarisations; batch dimensions are broadcast.
    """

    def __init__(self, k: Tensor, eps: Tensor):
        k = k[(None,) * (eps.dim() - k.dim())]
        self.k, self.eps = (one.movedim((-2, -1), (0, 1)).contiguous() for one in (k, eps))  # [n, 4, ...]
        self.found: dict[Word, Tensor] = {}

    def momentum(self, word: Word) -> Tensor:
        return self.k[list(word)].sum(0)

    def current(self, word: Word) -> Tensor:
        """`J(word)`, `[4, ...]`."""
        if word not in self.found:
            if len(word) == 1:
                self.found[word] = self.eps[word[0]]
            elif word[::-1] in self.found:  # J(n..1) = (-1)^(n+1) J(1..n)
                self.found[word] = self.found[word[::-1]] * (-1) ** (len(word) + 1)
            else:
                p = self.momentum(word)
                self.found[word] = self.source(word) * (1 / lorentz(p, p))
        return self.found[word]

    def source(self, word: Word) -> Tensor:
        """`P^2 J(word)`, which exists on the mass shell as well."""
        terms = []
        for i in range(1, len(word)):
            left, right = word[:i], word[i:]
            a, b, p, q = self.current(left), self.current(right), self.momentum(left), self.momentum(right)
            three = 2 * lorentz(q, a) * b - 2 * lorentz(p, b) * a
            terms.append((three + lorentz(a, b) * (p - q)) * math.sqrt(0.5))
            for j in range(i + 1, len(word)):
                b, c = self.current(word[i:j]), self.current(word[j:])
                terms.append(lorentz(a, c) * b)
                terms.append((lorentz(b, c) * a + lorentz(a, b) * c) * -0.5)
        return reduce(torch.add, terms)

    def amplitude(self, word: Word) -> Tensor:
        """The ordered amplitude of these gluons, `[...]`, up to a phase: `P^2 J(first..) . eps_last`, on the mass shell."""
        return lorentz(self.source(word[:-1]), self.current(word[-1:]))


def spinors(p: Tensor) -> Tensor:
    """Right-handed two-spinors of physical massless momenta `[..., 4]`, `[2, ...]` with `lambda lambda^+ = E + p.sigma`."""
    z, across = p[..., 3], torch.complex(p[..., 1], p[..., 2])
    large = (p[..., 1:].square().sum(-1).sqrt() + z.abs()).sqrt().to(across.dtype)
    up = torch.stack([large, across / large])
    down = torch.stack([across.conj() / large, large])
    return torch.where(z >= 0, up, down)


def products(p: Tensor) -> Tensor:
    """Spinor products `<ij> = lambda_i^1 lambda_j^2 - lambda_i^2 lambda_j^1` of momenta `[..., n, 4]`, `[..., n, n]`.

    `|<ij>|^2 = 2 p_i.p_j`. Incoming particles come with their physical momenta: a common phase of all Parke-Taylor
    denominators is left out.
    """
    one, two = spinors(p)
    both = one[..., :, None] * two[..., None, :]
    return both - both.transpose(-1, -2)


def vector(row: Tensor, column: Tensor) -> Tensor:
    """`row sigma^mu column` of two-spinors `[2, ...]`, `[4, ...]` (contravariant)."""
    (a, b), (c, d) = row, column
    return torch.stack([a * c + b * d, a * d + b * c, 1j * (b * c - a * d), a * c - b * d])


def slashed(a: Tensor, spinor: Tensor, bar: bool = False, row: bool = False) -> Tensor:
    """`a_mu sigma^mu = a^0 - a.sigma` of a vector `[4, ...]` times a column `[2, ...]`; `row`: a row times it; `bar`:

    `a^0 + a.sigma` instead.
    """
    t, x, y, z = a
    if not bar:
        x, y, z = -x, -y, -z
    if row:
        y = -y  # the transposed matrix
    up, down = spinor
    return torch.stack([(t + z) * up + (x - 1j * y) * down, (x + 1j * y) * up + (t - z) * down])


class QuarkLine:
    """A right-handed quark that leaves with its antiquark and ordered gluons: `J^mu = ubar(q) ... gamma^mu ... v(qbar)`.

    The gluons of `word` stand between quark and antiquark; those up to a place leave before the vector boson that couples to
    `J^mu`, the others behind it. `ubar(q; w) = -(1/sqrt 2) sum_(w = w1 w2) ubar(q; w1) Jslash(w2) Kslash / K^2` with K
    the momentum of q and w, the antiquark's likewise from the other side with the opposite sign. q, qbar `[..., 4]`."""

    def __init__(self, q: Tensor, qbar: Tensor, gluons: Currents):
        self.ends, self.gluons = (q.movedim(-1, 0), qbar.movedim(-1, 0)), gluons
        self.found: dict[tuple[int, Word], Tensor] = {(0, ()): spinors(q).conj(), (1, ()): spinors(qbar)}

    def _end(self, side: int, word: Word) -> Tensor:
        if (side, word) not in self.found:
            k = self.ends[side] + self.gluons.momentum(word)
            inner = []
            for i in range(len(word)):
                if side == 0:
                    inner.append(slashed(self.gluons.current(word[i:]), self._end(0, word[:i]), row=True))
                else:
                    inner.append(slashed(self.gluons.current(word[: i + 1]), self._end(1, word[i + 1 :])))
            line = slashed(k, reduce(torch.add, inner), bar=True, row=side == 0)
            self.found[side, word] = line * ((2 * side - 1) / (math.sqrt(2) * lorentz(k, k)))
        return self.found[side, word]

    def current(self, word: Word) -> Tensor:
        """`J^mu`, `[4, ...]`: conserved, and 0 where a polarisation is its gluon's momentum."""
        places = range(len(word) + 1)
        return reduce(torch.add, [vector(self._end(0, word[:i]), self._end(1, word[i:])) for i in places])


@lru_cache
def generators() -> np.ndarray:
    """Gell-Mann's matrices over sqrt(2), `[8, 3, 3]`: `tr T_a T_b = delta_ab`."""
    found = np.zeros((8, 3, 3), complex)
    for a, (i, j) in {0: (0, 1), 3: (0, 2), 5: (1, 2)}.items():
        found[a, i, j] = found[a, j, i] = 1
        found[a + 1, i, j], found[a + 1, j, i] = -1j, 1j
    found[2] = np.diag([1, -1, 0])
    found[7] = np.diag([1, 1, -2]) / math.sqrt(3)
    return found / math.sqrt(2)


@lru_cache
def line_colours(gluons: int) -> tuple[list[Word], np.ndarray]:
    """Orders of gluons on a quark line and `sum_colours tr(T_a1 .. T_an (T_b1 .. T_bn)^+)`, real `[n!, n!]`."""
    words, t = list(permutations(range(gluons))), generators()
    chain = np.eye(3, dtype=complex)[None]
    for _ in range(gluons):
        chain = np.einsum("xij,ajk->xaik", chain, t).reshape(-1, 3, 3)
    chain = chain.reshape(*(8,) * gluons, 9)
    rows = []
    for word in words:  # the axis of gluon g is the place where g stands in the chain
        places = [word.index(g) for g in range(gluons)]
        rows.append(chain.transpose(*places, gluons).reshape(-1))
    return words, np.array([[np.vdot(b, a).real for b in rows] for a in rows])


@lru_cache
def ring_colours(gluons: int) -> tuple[list[Word], np.ndarray]:
    """Orders of the gluons between the first and the last, and the sum over colours of products of their factors,
    `[(n-2)!]^2`.

    The factors are `(F_s2 .. F_s(n-1))_(1 n)` with `(F_a)_bc = i sqrt(2) f_bac`: the amplitude is `sum_s factor(s) A(1,
    s, n)`, exactly (Del Duca, Dixon, Maltoni, hep-ph/9910563)."""
    t = generators()
    bracket = np.einsum("aij,bjk->abik", t, t)
    structure = np.einsum("abik,cki->abc", bracket - bracket.transpose(1, 0, 2, 3), t)  # tr([T_a, T_b] T_c)
    f = structure.transpose(1, 0, 2)  # (F_a)_bc = tr([T_b, T_a] T_c)
    middle = gluons - 2
    chain = np.eye(8, dtype=complex)
    for _ in range(middle):
        chain = np.einsum("...b,abc->...ac", chain, f)
    words = list(permutations(range(1, gluons - 1)))
    rows = []
    for word in words:
        places = [1 + word.index(g) for g in range(1, gluons - 1)]
        rows.append(chain.transpose(0, *places, gluons - 1).reshape(-1))
    return words, np.array([[np.vdot(b, a).real for b in rows] for a in rows])
