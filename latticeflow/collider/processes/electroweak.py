"""Two leptons or quarks to two, and the muon's decay: processes without strong interactions."""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from ..kinematics import dot
from ..partons import pair_densities
from .base import ALPHA, Process, processes


class Fermion(NamedTuple):
    """PDG code, electric charge, third component of weak isospin (left-handed), colours."""

    code: int
    charge: float
    isospin: float
    colours: int


FERMIONS = {
    "mu": Fermion(13, -1, -0.5, 1),
    "tau": Fermion(15, -1, -0.5, 1),
    "nu_mu": Fermion(14, 0, 0.5, 1),
    "nu_tau": Fermion(16, 0, 0.5, 1),
    "d": Fermion(1, -1 / 3, -0.5, 3),
    "u": Fermion(2, 2 / 3, 0.5, 3),
    "s": Fermion(3, -1 / 3, -0.5, 3),
    "c": Fermion(4, 2 / 3, 0.5, 3),
    "b": Fermion(5, -1 / 3, -0.5, 3),
}
ELECTRON = Fermion(11, -1, -0.5, 1)


@processes.add("ee_ff")
class ElectronPositronToFermions(Process):
    """`e- e+ -> gamma*, Z -> f fbar`, massless, by helicities (Ellis, Stirling, Webber, QCD and Collider Physics, 8.1).

        |M|^2 = N_c e^4 / s^2 [ u^2 (|G_LL|^2 + |G_RR|^2) + t^2 (|G_LR|^2 + |G_RL|^2) ],

        G_ij = Q_e Q_f + g_i(e) g_j(f) s / (s - M_Z^2 + i M_Z Gamma_Z),
        g_L(f) = (I_f - Q_f sin^2) / (sin cos),  g_R(f) = -Q_f sin / cos,

    `t = (p_e- - p_f)^2 = -s (1 - cos theta) / 2`, `u = (p_e- - p_fbar)^2`, theta the angle of f to the electron, which moves
    along +z; `e^2 = 4 pi alpha`, fixed width, averaged over the spins of the beams. With a photon alone
    `sigma = 4 pi alpha^2 Q_f^2 N_c / (3 s)`: 86.8545 nb GeV^2 / s for muons. `fermion`: mu, tau, nu_mu, nu_tau, d, u, s,
    c, b. `z = false` leaves the photon alone. Not for f = e, nu_e, which have further diagrams."""

    incoming: ClassVar[tuple[int, ...]] = (11, -11)
    fermion: Literal["mu", "tau", "nu_mu", "nu_tau", "d", "u", "s", "c", "b"]
    z: bool
    alpha: float = Field(ALPHA, gt=0)
    z_mass: float = Field(91.1876, gt=0)
    z_width: float = Field(2.4952, gt=0)
    sin2: float = Field(0.2315, gt=0, lt=1)

    @property
    def outgoing(self) -> tuple[int, ...]:  # type: ignore[override]
        code = FERMIONS[self.fermion].code
        return (code, -code)

    def _couplings(self, f: Fermion) -> tuple[float, float]:
        sine, cosine = math.sqrt(self.sin2), math.sqrt(1 - self.sin2)
        return (f.isospin - f.charge * self.sin2) / (sine * cosine), -f.charge * sine / cosine

    def squared(self, p: Tensor) -> Tensor:
        f = FERMIONS[self.fermion]
        s, t, u = 2 * dot(p[:, 0], p[:, 1]), -2 * dot(p[:, 0], p[:, 2]), -2 * dot(p[:, 0], p[:, 3])
        electron, other = self._couplings(ELECTRON), self._couplings(f)
        pole = self.z_mass * self.z_width
        off = s - self.z_mass**2
        real, imag = s * off / (off.square() + pole**2), -s * pole / (off.square() + pole**2)
        found = torch.zeros_like(s)
        for i in range(2):
            for j in range(2):
                g = electron[i] * other[j] * self.z
                size = (ELECTRON.charge * f.charge + g * real).square() + (g * imag).square()
                found = found + size * (u if i == j else t).square()
        return f.colours * (4 * math.pi * self.alpha) ** 2 * found / s.square()


@processes.add("muon_decay")
class MuonDecay(Process):
    """`mu- -> e- nubar_e nu_mu` by Fermi's interaction, averaged over the muon's spin.

        |M|^2 = 64 G_F^2 (p_mu . p_nubar_e) (p_e . p_nu_mu),    Gamma = G_F^2 m_mu^5 / (192 pi^3) f(m_e^2 / m_mu^2),

    `f(x) = 1 - 8 x + 8 x^3 - x^4 - 12 x^2 log x` (Okun, Leptons and Quarks, section 3). The muon's mass is the target's
    `energy`; `fermi` is G_F in GeV^-2, `electron_mass` in GeV.
    """

    incoming: ClassVar[tuple[int, ...]] = (13,)
    outgoing: ClassVar[tuple[int, ...]] = (11, -12, 14)
    fermi: float = Field(gt=0)
    electron_mass: float = Field(ge=0)

    @property
    def masses(self) -> tuple[float, ...]:
        return (self.electron_mass, 0.0, 0.0)

    def squared(self, p: Tensor) -> Tensor:
        return 64 * self.fermi**2 * dot(p[:, 0], p[:, 2]) * dot(p[:, 1], p[:, 3])


@processes.add("drell_yan")
class DrellYan(Process):
    """`p p -> gamma* -> mu- mu+`, at leading order, with the toy densities of `partons`.

        |M|^2 = (e^4 Q_q^2 / 3) 2 (t^2 + u^2) / s^2,    sigma(q qbar) = 4 pi alpha^2 Q_q^2 / (9 s),

        d sigma / dM^2 = 4 pi alpha^2 / (9 M^2 S) sum_q Q_q^2 integral_tau^1 dx / x [ q(x) qbar(tau/x) + qbar(x) q(tau/x) ],

    `tau = M^2 / S`, q = u, d, s (Ellis, Stirling, Webber, QCD and Collider Physics, section 9.1). `mass_min`, `mass_max`: of
    the lepton pair, GeV.
    """

    incoming: ClassVar[tuple[int, ...]] = (2212, 2212)
    outgoing: ClassVar[tuple[int, ...]] = (13, -13)
    hadronic: ClassVar[bool] = True
    channels: ClassVar[tuple[tuple[int, int], ...]] = ((2, -2), (-2, 2), (1, -1), (-1, 1), (3, -3), (-3, 3))
    mass_min: float = Field(gt=0)
    mass_max: float = Field(gt=0)
    alpha: float = Field(ALPHA, gt=0)

    @property
    def mass_range(self) -> tuple[float, float]:
        return self.mass_min, self.mass_max

    def squared(self, p: Tensor) -> Tensor:
        s, t, u = 2 * dot(p[:, 0], p[:, 1]), -2 * dot(p[:, 0], p[:, 2]), -2 * dot(p[:, 0], p[:, 3])
        one = 2 * (4 * math.pi * self.alpha) ** 2 / 3 * (t.square() + u.square()) / s.square()
        charges = {f.code: f.charge for f in FERMIONS.values()}
        return one[:, None] * p.new_tensor([charges[abs(a)] ** 2 for a, _ in self.channels])

    def densities(self, x1: Tensor, x2: Tensor, q2: Tensor) -> Tensor:
        return pair_densities(self.channels, x1, x2)
