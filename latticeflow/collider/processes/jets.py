"""Electron and positron to quarks and gluons, through a photon."""

import math
from itertools import product
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..amplitudes import Currents, QuarkLine, line_colours, lorentz, polarisations, spinors, vector
from ..kinematics import HBARC2, dot, pairs
from .base import ALPHA, ALPHA_S, Process, processes
from .electroweak import FERMIONS
from .gluons import summed


def ordered_squares(p: Tensor) -> Tensor:
    """`sum |M|^2 / (e^4 Q_q^2 g^(2 n))` of `e- e+ -> gamma* -> q qbar + n gluons` by recursion, over all spins and colours.

    p `[batch, 4 + n, 4]`: e-, e+, q, qbar, gluons; `[batch]`. g goes with `tr T_a T_b = delta_ab / 2`, as everywhere: the
    amplitudes' other normalisation and that of `line_colours` cancel.
    """
    gluons = p.shape[1] - 4
    words, colours = line_colours(gluons)
    mixed = torch.tensor(colours, dtype=p.dtype, device=p.device)
    lepton = vector(spinors(p[:, 1]).conj(), spinors(p[:, 0]))
    leptons = (lepton, lepton.conj())  # both helicities of the electron; the quark's other one by parity
    both = polarisations(p[:, 4:])
    total = torch.zeros_like(p[:, 0, 0])
    for helicities in product((0, 1), repeat=gluons):
        eps = torch.stack([both[h, :, g] for g, h in enumerate(helicities)], 1) if gluons else both[0]
        line = QuarkLine(p[:, 2], p[:, 3], Currents(p[:, 4:], eps))
        for one in leptons:
            amplitudes = torch.stack([lorentz(line.current(word), one) for word in words], -1)
            total = total + 2 * summed(amplitudes, mixed)
    return total / (2 * dot(p[:, 0], p[:, 1])).square()


class Hadrons(Process):
    """`e- e+ -> gamma* -> q qbar + gluons`, all massless. `scale`: sqrt of the least s_ij of a pair, so that a shower adds

    nothing harder than the matrix element has."""

    incoming: ClassVar[tuple[int, ...]] = (11, -11)
    quark: Literal["d", "u", "s", "c", "b"]
    alpha: float = Field(ALPHA, gt=0)
    alpha_s: float = Field(ALPHA_S, gt=0)

    gluons: ClassVar[int]

    @property
    def outgoing(self) -> tuple[int, ...]:  # type: ignore[override]
        code = FERMIONS[self.quark].code
        return (code, -code, *(21,) * self.gluons)

    def sigma_0(self, energy: float) -> float:
        """`sigma(e- e+ -> gamma* -> q qbar) = 4 pi alpha^2 Q_q^2 / s` of three colours in pb, at sqrt(s) = energy in GeV."""
        return HBARC2 * 4 * math.pi * (self.alpha * FERMIONS[self.quark].charge / energy) ** 2

    def scale(self, p: Tensor) -> Tensor:
        one, two = pairs(p[:, 2:])
        return (2 * dot(one, two)).amin(1).clamp(min=0).sqrt()

    def factor(self) -> float:
        """`e^4 Q_q^2 g^(2 n) / (4 n!)`: couplings, the average over spins, identical gluons."""
        couplings = (4 * math.pi * self.alpha) ** 2 * FERMIONS[self.quark].charge ** 2
        return couplings * (4 * math.pi * self.alpha_s) ** self.gluons / (4 * math.factorial(self.gluons))


@processes.add("ee_qqg")
class ThreeJets(Hadrons):
    """`e- e+ -> gamma* -> q qbar g`, massless, of one flavour of `quark` (Ellis, Gaillard, Ross, Nucl. Phys. B111 (1976)
    253).

        |M|^2 = 16 e^4 Q_q^2 g^2 [ (p_- q)^2 + (p_- qbar)^2 + (p_+ q)^2 + (p_+ qbar)^2 ] / ( s (q g) (qbar g) ),

    products of four-momenta in brackets, p_-+ those of the electron and positron; averaged over their spins, `g^2 = 4 pi
    alpha_s`, three colours. Integrated over directions it is

        (1/sigma_0) d sigma / dx_1 dx_2 = (C_F alpha_s / 2 pi) (x_1^2 + x_2^2) / ((1 - x_1) (1 - x_2)),

    with `x_i = 2 E_i / sqrt(s)`, `sigma_0 = 4 pi alpha^2 Q_q^2 / s`.
    """

    gluons: ClassVar[int] = 1

    def squared(self, p: Tensor) -> Tensor:
        s, charge = 2 * dot(p[:, 0], p[:, 1]), FERMIONS[self.quark].charge
        top = sum(dot(p[:, i], p[:, j]).square() for i in (0, 1) for j in (2, 3))
        bottom = s * dot(p[:, 2], p[:, 4]) * dot(p[:, 3], p[:, 4])
        couplings = (4 * math.pi * self.alpha) ** 2 * charge**2 * 4 * math.pi * self.alpha_s
        return 16 * couplings * top / bottom


@processes.add("ee_qqgg")
class FourJets(Hadrons):
    """`e- e+ -> gamma* -> q qbar g g`, massless, of one flavour of `quark`, all diagrams with two gluons.

        sum |M|^2 = e^4 Q_q^2 g^4 / s^2 sum_helicities sum_(r, s) C_rs (L.J(r)) (L.J(s))^*,

    L the current of the leptons, J(r) that of the quark line with the gluons in order r = 12, 21 by Berends and Giele's
    recursion (Nucl. Phys. B306 (1988) 759; helicity amplitudes: Bern, Dixon, Kosower, hep-ph/9708239), C_rs the exact sum
    over colours. Averaged over the spins of the beams, with 1/2! of the gluons; `g^2 = 4 pi alpha_s`."""

    gluons: ClassVar[int] = 2

    def squared(self, p: Tensor) -> Tensor:
        return self.factor() * ordered_squares(p)
