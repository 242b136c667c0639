"""Massless n-body phase space in transverse momenta and rapidities along the beam, for jets of hadron collisions."""

import math
from itertools import permutations

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from . import frames
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces
from .densities import peaked_angle, peaked_angle_inverse, power, power_inverse


@phase_spaces.add("pt_rapidity")
class PtRapidity(PhaseSpace):
    """Massless phase space in transverse momenta, azimuths and gaps of rapidity, for 3 or more jets along a beam.

    For each of the n! orders of the rapidities

        dPhi_n = (2 pi)^(4-3n) 2^-n  prod_(i<n) d^2 pT_i  d^(n-2) f  D^(n-1) / sum_(i<j) pT_i pT_j d_ij sinh(d_ij)

    with `d_ij` the distance of two in rapidity, D that of the outermost, f the gaps between neighbours over D, flat on the
    simplex, and D from `E^2 = sum_ij pT_i pT_j cosh(d_ij)`. The outermost two and all others but one have `pT^2 = t` with
    the density `(t + pt_scale^2)^-power`, from pt_min to what the energy allows; the last one balances them. Azimuths are
    about the recoil of those before, with a density `1 / (rest^2 + pt_min^2 + pt_scale^2)`, rest the pT that is left to
    balance. Where rapidities lie far apart `|M|^2` of n gluons is `E^4 / prod_i pT_i^2` (multi-Regge limit), which this
    follows.

    u: pT (n - 1); azimuths (n - 1), of which the first says by which of n! intervals it is in how the particles are
    ordered, and by where in it the azimuth of the whole event: what is symmetric in all particles and about the beam does
    not depend on it; gaps (n - 2). With pt_min = 0 all of phase space is covered, else what has all pT > pt_min, with some
    of the rest.

    Raises `InputError` for fewer than 3 or more than 8 particles, for masses, where pt_min and pt_scale are both 0, and for
    an energy below `n pt_min`.
    """

    pt_min: float = Field(ge=0)
    pt_scale: float = Field(default=0.0, ge=0)
    power: float = 1.5

    def model_post_init(self, context) -> None:
        if self.pt_min + self.pt_scale <= 0:
            raise InputError(
                "pt_rapidity: pt_min = pt_scale = 0; expected one of them above 0, to bound the density"
            )

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        masses = check_masses("pt_rapidity", masses, 3)
        if any(masses) or len(masses) > 8:
            raise InputError(f"pt_rapidity: masses {list(masses)}; expected 3 to 8 particles without mass")
        return PtRapidityMap(masses, self)


class PtRapidityMap(PhaseSpaceMap):
    def __init__(self, masses: tuple[float, ...], spec: PtRapidity):
        n = len(masses)
        self.masses = masses
        self.spec = spec
        self.floor = n * spec.pt_min
        self.periodic = tuple(range(n, 2 * n - 2))
        self.orders = list(permutations(range(n)))
        self.places = [0, n - 1, *range(1, n - 1)]  # in which order the places in rapidity get their pT
        self.constant = (4 - 3 * n) * math.log(2 * math.pi) - (2 * n - 1) * math.log(2) - math.lgamma(n - 1)

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.masses)
        if (energy <= self.floor).any():
            raise InputError(
                f"pt_rapidity: energy = {float(energy.min())} GeV; expected more than {n} pt_min = {self.floor} GeV"
            )
        order = (u[:, n - 1] * len(self.orders)).floor().clamp(max=len(self.orders) - 1)
        turn = u[:, n - 1] * len(self.orders) - order
        sums = u.new_zeros(len(u), 2)
        left, log_jac, found = energy, u.new_full((len(u),), self.constant), []
        for i in range(n - 1):
            low, high, shift = self._range(i, sums, left)
            t, slope = power(u[:, i], low, high, self.spec.power, shift)
            log_jac = log_jac + slope
            pt = t.sqrt()
            if i == 0:
                unit = frames.direction(torch.full_like(turn, 0.5), turn)[:, :2]
                log_jac = log_jac + math.log(2 * math.pi * len(self.orders))
            else:
                angle, slope = peaked_angle(u[:, n - 1 + i], *self._peak(pt, sums, left))
                log_jac = log_jac + slope
                unit = _turned(-sums, angle)
            found.append(pt[:, None] * unit)
            sums = sums + found[-1]
            left = left - pt
        found.append(-sums)
        across = torch.stack([found[self.places.index(k)] for k in range(n)], 1)
        pt = across.square().sum(-1).sqrt().clamp(min=torch.finfo(u.dtype).tiny)
        shares = self._gaps(u[:, 2 * n - 2 :])
        span = _span(pt, shares, energy)
        down = shares * span[:, None]  # below the highest
        top = ((pt * down.exp()).sum(1) / (pt * (-down).exp()).sum(1)).log() / 2
        along = pt * (top[:, None] - down).sinh()
        p = torch.cat([along[..., None], across, along[..., None]], -1)
        table = torch.tensor(self.orders, device=u.device)[order.long()].argsort(1)
        p = p.gather(1, table[..., None].expand_as(p))
        return frames.on_shell(p, u.new_zeros(n)), log_jac + self._measure(pt, down, span)

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.masses)
        p = frames.on_shell(p, p.new_zeros(n))
        energy = p[..., 0].sum(1)
        pt = p[..., 1:3].square().sum(-1).sqrt().clamp(min=torch.finfo(p.dtype).tiny)
        rapidity, order = (p[..., 3] / pt).asinh().sort(1, descending=True)
        across, pt = p[..., 1:3].gather(1, order[..., None].expand(-1, -1, 2)), pt.gather(1, order)
        rank = torch.zeros_like(energy)
        for k in range(n - 1):
            rank = rank + (order[:, k + 1 :] < order[:, k : k + 1]).sum(1) * math.factorial(n - 1 - k)
        sums = p.new_zeros(len(p), 2)
        left, log_jac = energy, p.new_full((len(p),), self.constant)
        sizes, turns = [], []
        for i in range(n - 1):
            place = self.places[i]
            low, high, shift = self._range(i, sums, left)
            coordinate, slope = power_inverse(pt[:, place].square(), low, high, self.spec.power, shift)
            log_jac = log_jac + slope
            sizes.append(coordinate)
            if i == 0:
                turn = torch.atan2(across[:, place, 1], across[:, place, 0]) / (2 * math.pi) % 1.0
                turns.append((rank + turn) / len(self.orders))
                log_jac = log_jac + math.log(2 * math.pi * len(self.orders))
            else:
                angle = _between(-sums, across[:, place])
                coordinate, slope = peaked_angle_inverse(angle, *self._peak(pt[:, place], sums, left))
                log_jac = log_jac + slope
                turns.append(coordinate)
            sums = sums + across[:, place]
            left = left - pt[:, place]
        down = rapidity[:, :1] - rapidity
        span = down[:, -1]
        gaps, rest = [], torch.ones_like(span)
        for k in range(1, n - 1):
            gap = (down[:, k] - down[:, k - 1]) / span / rest
            gaps.append(-((n - 1 - k) * torch.log1p(-gap)).expm1())
            rest = rest * (1 - gap)
        return torch.stack(sizes + turns + gaps, 1), -(log_jac + self._measure(pt, down, span))

    def _range(self, i: int, sums: Tensor, left: Tensor) -> tuple[Tensor, Tensor, float]:
        """Bounds of pT^2 of the i-th in turn, and its shift: what is `left` of sum pT <= E must do for the rest and its
        balance."""
        rest = len(self.masses) - 1 - i
        high = torch.minimum((left + sums.square().sum(1).sqrt()) / 2, left - rest * self.spec.pt_min)
        return torch.full_like(high, self.spec.pt_min**2), high.square(), self.spec.pt_scale**2

    def _peak(self, pt: Tensor, sums: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Width of the peak in azimuth about -sums, and the largest angle from it that the energy allows."""
        size = sums.square().sum(1).sqrt()
        soft = self.spec.pt_min**2 + self.spec.pt_scale**2
        k = (((size - pt).square() + soft) / ((size + pt).square() + soft)).sqrt()
        bound = (left * (left - 2 * pt) - size.square()) / (2 * size * pt)
        return k, (-bound).clamp(-1, 1).acos()

    def _gaps(self, u: Tensor) -> Tensor:
        """Places in rapidity below the highest over the span, `[batch, n]`, from 0 to 1."""
        n = len(self.masses)
        found, rest = [u.new_zeros(len(u))], u.new_ones(len(u))
        for k in range(1, n - 1):
            gap = -(torch.log1p(-u[:, k - 1]) / (n - 1 - k)).expm1()
            found.append(found[-1] + rest * gap)
            rest = rest * (1 - gap)
        return torch.stack([*found, u.new_ones(len(u))], 1)

    def _measure(self, pt: Tensor, down: Tensor, span: Tensor) -> Tensor:
        apart = (down[:, :, None] - down[:, None, :]).abs()
        total = (pt[:, :, None] * pt[:, None, :] * apart * apart.sinh()).sum((1, 2)) / 2
        return (len(self.masses) - 1) * span.log() - total.log()


def _turned(v: Tensor, angle: Tensor) -> Tensor:
    """The unit vector along v `[batch, 2]`, turned by the angle."""
    unit = v / v.square().sum(1, keepdim=True).sqrt().clamp(min=torch.finfo(v.dtype).tiny)
    c, s = angle.cos(), angle.sin()
    return torch.stack([unit[:, 0] * c - unit[:, 1] * s, unit[:, 0] * s + unit[:, 1] * c], 1)


def _between(v: Tensor, w: Tensor) -> Tensor:
    """The angle from v to w, in (-pi, pi]."""
    return torch.atan2(v[:, 0] * w[:, 1] - v[:, 1] * w[:, 0], (v * w).sum(1))


def _span(pt: Tensor, shares: Tensor, energy: Tensor) -> Tensor:
    """D with `sum_(i<j) 4 pT_i pT_j sinh^2(|shares_i - shares_j| D / 2) = E^2 - (sum pT)^2`.

    Its log is convex in log D, a series with positive coefficients: Newton's method in log D comes down from above, where
    the outermost two alone make up the right side, without passing the solution.
    """
    total = pt.sum(1)
    goal = ((energy - total) * (energy + total)).clamp(min=torch.finfo(pt.dtype).tiny)
    apart = (shares[:, :, None] - shares[:, None, :]).abs()
    pairs = 2 * pt[:, :, None] * pt[:, None, :]
    span = 2 * (goal / (4 * pt[:, 0] * pt[:, -1])).sqrt().asinh()
    for _ in range(8):
        half = apart * span[:, None, None] / 2
        value = (pairs * half.sinh().square()).sum((1, 2))
        slope = (pairs * half * (2 * half).sinh()).sum((1, 2)) / value
        span = span * (-((value / goal).log()) / slope).exp()
    return span
