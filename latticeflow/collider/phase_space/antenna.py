"""Massless n-body phase space as a chain of emissions 2 -> 3, which follows the poles of QCD antennas."""

import math

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from . import frames
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces


@phase_spaces.add("antenna")
class Antenna(PhaseSpace):
    """Massless phase space factorised into antennas, each with the density `1 / (y_ij y_jk)` of soft and collinear emission.

        dPhi_n = (1 / 8 pi) dOmega / 4 pi  prod_emissions  s_KL / (16 pi^2)  dy_ij dy_jk  dphi / 2 pi

    Particle j is emitted between K and L, which become i and k, with `y_ij = s_ij / s_KL` (hep-ph/0505111, section 3, in
    four dimensions; the factorisation holds however K and L recoil, as the directions are uniform). Recoil as in ARIADNE
    (Loennblad, 1992): in the rest frame i is at the angle `psi = (pi - theta_ik) E_k^2 / (E_i^2 + E_k^2)` from K, away from
    j. `chain`: all
    particles in the order of colour, by default 0, 2, 3, ..., n - 1, 1; the ends come first, then every next one is emitted
    between its predecessor and the far end. The density of the momenta is then about `1 / (s_01 s_12 ...)` along the chain
    where each gluon is softer than its predecessor. With 4 particles the chain and its reverse, as two channels of
    `multi_channel`, cover all poles of that order of colour.

    `y_min`: in units of s. Above it the density has its poles. Below, it levels off, `1 / ((y_ij + y_min) (y_jk + y_min))`,
    so that all of phase space is covered; or, if `sharp`, phase space below is left out: with three particles exactly what
    has a pair with `s_ij < y_min s`; with more, what has one among the last three of the chain, and the other emissions
    level off.

    `sigma = y_ij + y_jk` (shifted by what levels off) has a density that grows like its log does, `log(sigma / least) /
    sigma`, and `z = y_ij / sigma` follows `1 / (z (1 - z))`. u: (sigma, z) of each emission; `(1 + cos theta) / 2` and
    azimuth of the first two; azimuth of each emission about K.

    Raises `InputError` for masses, a chain that is not a permutation of the particles, and a sharp y_min of 2 / (n (n - 1))
    or more.
    """

    y_min: float = Field(gt=0, lt=1)
    sharp: bool = False
    chain: tuple[int, ...] | None = None

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        masses = check_masses("antenna", masses)
        n = len(masses)
        chain = [0, *range(2, n), 1] if self.chain is None else list(self.chain)
        if any(masses):
            raise InputError(f"antenna: masses {list(masses)}; expected particles without mass")
        if sorted(chain) != list(range(n)):
            raise InputError(f"antenna: chain = {chain}; expected an order of the {n} particles 0 to {n - 1}")
        if self.sharp and self.y_min * n * (n - 1) / 2 >= 1:
            raise InputError(
                f"antenna: no {n} particles have all pairs above y_min = {self.y_min}, as sum y_ij = 1; expected less than "
                f"{2 / (n * (n - 1)):.6g}"
            )
        return AntennaMap(masses, self, chain)


class AntennaMap(PhaseSpaceMap):
    def __init__(self, masses: tuple[float, ...], spec: Antenna, chain: list[int]):
        n = len(masses)
        self.masses = masses
        self.spec = spec
        self.chain = chain
        self.emissions = n - 2
        self.periodic = tuple(range(2 * n - 3, 3 * n - 4))

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        first = 2 * self.emissions
        unit = frames.direction(u[:, first], u[:, first + 1])
        half, zero = energy[:, None] / 2, torch.zeros_like(energy)
        before, end = torch.cat([half, half * unit], 1), torch.cat([half, -half * unit], 1)
        s, frame = energy.square(), torch.stack([energy, zero, zero, zero], 1)
        log_jac, found = torch.full_like(energy, -math.log(8 * math.pi)), []
        for m in range(self.emissions):
            simplex = _Simplex(*self._bounds(m, energy.square() / s))
            ij, jk, slope = simplex.point(u[:, 2 * m], u[:, 2 * m + 1])
            log_jac = log_jac + slope + (s / (16 * math.pi**2)).log()
            inside = _emit(frames.boost(before, frame, s.sqrt(), back=True), ij, jk, s, u[:, first + 2 + m])
            i, before, end = (frames.boost(x, frame, s.sqrt()) for x in inside)
            found.append(i)
            s, frame = s * jk, before + end
        p = torch.stack([*found, before, end], 1)[:, torch.tensor(self.chain, device=u.device).argsort()]
        return frames.on_shell(p, u.new_zeros(len(self.masses))), log_jac

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        p = frames.on_shell(p, p.new_zeros(len(self.masses)))
        energy = p[..., 0].sum(1)
        *found, before, end = p[:, self.chain].unbind(1)
        log_jac = torch.full_like(energy, -math.log(8 * math.pi))
        points: list[Tensor] = []
        turns: list[Tensor] = []
        for m in reversed(range(self.emissions)):
            trio = torch.stack([found.pop(), before, end], 1)
            pairs = 2 * frames.excess(trio, p.new_zeros(3))
            s = pairs[:, 0, 1] + pairs[:, 1, 2] + pairs[:, 0, 2]
            simplex = _Simplex(*self._bounds(m, energy.square() / s))
            *point, slope = simplex.shares(pairs[:, 0, 1] / s, pairs[:, 1, 2] / s)
            log_jac = log_jac + slope + (s / (16 * math.pi**2)).log()
            frame = trio.sum(1)
            inside = frames.boost(trio, frame[:, None], s.sqrt()[:, None], back=True)
            unit, turn = _absorb(inside)
            half = s.sqrt()[:, None] / 2
            before = frames.boost(torch.cat([half, half * unit], 1), frame, s.sqrt())
            end = frames.boost(torch.cat([half, -half * unit], 1), frame, s.sqrt())
            points = [*point, *points]
            turns = [turn, *turns]
        angles = frames.direction_inverse(before[:, 1:])
        return torch.stack([*points, *angles, *turns], 1), -log_jac

    def _bounds(self, m: int, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Least y_ij, y_jk, y_ik of emission m, and what is added to the first two; scale is `s / s_KL`.

        If sharp, what j and k become, or i, j and k after the last emission, must be heavy enough for pairs above y_min.
        """
        y, none = self.spec.y_min * scale, torch.zeros_like(scale)
        level = y.clamp(max=1)  # flat enough, and small enough to be taken off again without loss
        if not self.spec.sharp:
            return none, none, none, level, level
        rest = self.emissions - 1 - m
        if rest == 0:
            return y, y, y, none, none
        return none, (rest + 2) * (rest + 1) / 2 * y, none, level, none


class _Simplex:
    """`y_1, y_2, 1 - y_1 - y_2` above their least values, with the density of the class above in `y + shift`."""

    def __init__(self, least_1: Tensor, least_2: Tensor, least_3: Tensor, shift_1: Tensor, shift_2: Tensor):
        self.shifts = shift_1, shift_2
        self.least = least_1 + shift_1, least_2 + shift_2
        self.floor = self.least[0] + self.least[1]
        self.range = ((1 - least_1 - least_2 - least_3) / self.floor).log1p()

    def point(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(y_1, y_2)` and `log |dy_1 dy_2 / du dv|`."""
        level = self.range * u.sqrt()
        excess = self.floor * level.expm1()
        total = self.floor + excess
        low, width = self._width(excess)
        odds = low + width * v
        y_1, y_2 = total * odds.sigmoid(), total * (-odds).sigmoid()
        slope = self._slope(y_1, y_2, level, width)
        least = torch.finfo(u.dtype).eps ** 2  # rounding may leave nothing, of which no frame can be made
        return (y_1 - self.shifts[0]).clamp(min=least), (y_2 - self.shifts[1]).clamp(min=least), slope

    def shares(self, y_1: Tensor, y_2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(u, v)` and the log-Jacobian of `point`; u or v is out of [0, 1] outside."""
        y_1, y_2 = y_1 + self.shifts[0], y_2 + self.shifts[1]
        excess = y_1 + y_2 - self.floor
        level = (excess / self.floor).log1p()
        low, width = self._width(excess)
        share = level / self.range
        return share * share.abs(), ((y_1 / y_2).log() - low) / width, self._slope(y_1, y_2, level, width)

    def _width(self, excess: Tensor) -> tuple[Tensor, Tensor]:
        """The least of `log(y_1 / y_2)` where their sum exceeds its least by this, and the length of its range."""
        a, b = self.least
        return (a / (b + excess)).log(), torch.log1p(excess / a) + torch.log1p(excess / b)

    def _slope(self, y_1: Tensor, y_2: Tensor, level: Tensor, width: Tensor) -> Tensor:
        """`dy_1 dy_2 = (y_1 y_2) dlog(sum) dlog(y_1 / y_2)`, with `dlog(sum)/du = range^2 / (2 level)`."""
        return y_1.log() + y_2.log() + 2 * self.range.log() - (2 * level).log() + width.log()


def _tilt(e_i: Tensor, e_k: Tensor, opening: Tensor) -> Tensor:
    """psi; opening is `pi - theta_ik`."""
    return opening * e_k.square() / (e_i.square() + e_k.square())


def _emit(k_before: Tensor, ij: Tensor, jk: Tensor, s: Tensor, turn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Momenta i, j, k in the rest frame of K + L, from K there, y_ij, y_jk, `s_KL` and the azimuth over 2 pi."""
    ik = (1 - ij - jk).clamp(min=torch.finfo(s.dtype).tiny)
    e_i, e_j, e_k = (s.sqrt() * (1 - y) / 2 for y in (jk, ik, ij))
    opening = 2 * torch.atan2(
        (ij * jk).sqrt(), ik.sqrt()
    )  # pi - theta_ik: tan^2 of its half is y_ij y_jk / y_ik
    apart = 2 * torch.atan2(ij.sqrt(), (jk * ik).sqrt())  # theta_ij
    psi = _tilt(e_i, e_k, opening)
    axis = k_before[:, 1:] / k_before[:, 1:].square().sum(1, keepdim=True).sqrt()
    one, two = _across(axis)
    phi = 2 * math.pi * turn[:, None]
    side = phi.cos() * one + phi.sin() * two

    def particle(e: Tensor, angle: Tensor) -> Tensor:
        return torch.cat(
            [e[:, None], e[:, None] * (angle.cos()[:, None] * axis + angle.sin()[:, None] * side)], 1
        )

    return particle(e_i, psi), particle(e_j, psi - apart), particle(e_k, psi + math.pi - opening)


def _absorb(p: Tensor) -> tuple[Tensor, Tensor]:
    """Direction of K and azimuth of `_emit`, from i, j, k in their rest frame."""
    i, j, k = p.unbind(1)
    pairs = frames.excess(p, p.new_zeros(3))
    ij, jk, ik = pairs[:, 0, 1], pairs[:, 1, 2], pairs[:, 0, 2]
    opening = 2 * torch.atan2((ij * jk).sqrt(), (ik * (ij + jk + ik)).sqrt())
    psi = _tilt(i[:, 0], k[:, 0], opening)[:, None]
    normal = _unit(torch.linalg.cross(j[:, 1:], i[:, 1:]))
    along = _unit(i[:, 1:])
    axis = _unit(psi.cos() * along - psi.sin() * torch.linalg.cross(normal, along))
    side = torch.linalg.cross(normal, axis)
    one, two = _across(axis)
    return axis, torch.atan2((side * two).sum(1), (side * one).sum(1)) / (2 * math.pi) % 1.0


def _unit(v: Tensor) -> Tensor:
    return v / v.square().sum(1, keepdim=True).sqrt().clamp(min=torch.finfo(v.dtype).tiny)


def _across(axis: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors that make a right-handed frame with the axis `[batch, 3]`, the first in its plane with z."""
    beam = torch.zeros_like(axis)
    beam[:, 2] = 1
    two = _unit(torch.linalg.cross(beam, axis))
    return torch.linalg.cross(two, axis), two
