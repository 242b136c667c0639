"""Massless n-body phase space in transverse momenta and rapidities along the beam, for jets of hadron collisions."""

import math
from itertools import permutations

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from . import frames
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces
from .densities import onset, onset_inverse, peaked_angle, peaked_angle_inverse, power, power_inverse

RISE = 1.0  # width of the rise of `onset`, of no effect on what is integrated


@phase_spaces.add("pt_rapidity")
class PtRapidity(PhaseSpace):
    """Massless phase space in transverse momenta, azimuths and gaps of rapidity, for 3 or more jets along a beam.

    For each of the n! orders of the rapidities

        dPhi_n = (2 pi)^(4-3n) 2^-n  prod_(i<n) d^2 pT_i  d^(n-2) f  D^(n-1) / sum_(i<j) pT_i pT_j d_ij sinh(d_ij)

    with `d_ij` the distance of two in rapidity, D that of the outermost, f the gaps between neighbours over D, flat on the
    simplex, and D from `E^2 = sum_ij pT_i pT_j cosh(d_ij)`. Where rapidities lie far apart `|M|^2` of n gluons is `E^4 /
    prod_i pT_i^2` (multi-Regge limit), which the transverse momenta follow: those between the outermost two have `pT^2 = t`
    with the density `(t + pt_scale^2)^-power` and an azimuth about the recoil of those before with the density `1 / (rest^2
    + pt_min^2 + pt_scale^2)`, rest the pT that is left to balance; the outermost two, which balance all, nearly `d^2 b /
    (b^2 c^2)`, in elliptic coordinates: `|b| + |c| = a cosh(xi)`, `|b| - |c| = a cos(v)`, a the pT that they balance.

    Covered is exactly what has all pT > pt_min: all of phase space with pt_min = 0.

    u: pT (n - 2); azimuths (n - 2), of which the first says by which of n! intervals it is in how the particles are ordered,
    and by where in it the azimuth of the whole event, so that what is symmetric in all particles and about the beam does not
    depend on it; xi and v of the outermost two; gaps (n - 2).

    Raises `InputError` for fewer than 3 or more than 8 particles, for masses, where pt_min and pt_scale are both 0, and for
    an energy below `n pt_min`.
    """

    pt_min: float = Field(ge=0)
    pt_scale: float = Field(default=0.0, ge=0)
    power: float = Field(default=1.5, ge=-4, le=10)

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
        self.free = n - 2  # whose pT is drawn
        self.floor = n * spec.pt_min
        self.periodic = (*range(self.free + 1, 2 * self.free), 2 * self.free + 1)
        self.orders = list(permutations(range(n)))
        self.constant = (4 - 3 * n) * math.log(2 * math.pi) - n * math.log(2) - math.lgamma(n - 1)
        self.constant += math.log(2 * math.pi * len(self.orders)) - self.free * math.log(2)

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        n, m = len(self.masses), self.free
        if (energy <= self.floor).any():
            raise InputError(
                f"pt_rapidity: energy = {float(energy.min())} GeV; expected more than {n} pt_min = {self.floor} GeV"
            )
        order = (u[:, m] * len(self.orders)).floor().clamp(max=len(self.orders) - 1)
        turn = u[:, m] * len(self.orders) - order
        sums = u.new_zeros(len(u), 2)
        left, log_jac, found = energy, u.new_full((len(u),), self.constant), []
        for i in range(m):
            low, high, shift = self._range(i, sums, left)
            t, slope = power(u[:, i], low, high, self.spec.power, shift)
            log_jac = log_jac + slope
            pt = t.sqrt()
            if i == 0:
                unit = frames.direction(torch.full_like(turn, 0.5), turn)[:, :2]
            else:
                angle, slope = peaked_angle(u[:, m + i], *self._peak(pt, sums, left))
                log_jac = log_jac + slope
                unit = _turned(-sums, angle)
            found.append(pt[:, None] * unit)
            sums = sums + found[-1]
            left = left - pt
        pair, slope = _Ellipse(self.spec, sums, left).point(u[:, 2 * m], u[:, 2 * m + 1])
        across = torch.stack([pair[0], *found, pair[1]], 1)
        pt = _size(across)
        shares = self._gaps(u[:, 2 * m + 2 :])
        span = _span(pt, shares, energy)
        down = shares * span[:, None]  # below the highest
        top = ((pt * down.exp()).sum(1) / (pt * (-down).exp()).sum(1)).log() / 2
        along = pt * (top[:, None] - down).sinh()
        p = torch.cat([along[..., None], across, along[..., None]], -1)
        table = torch.tensor(self.orders, device=u.device)[order.long()].argsort(1)
        p = p.gather(1, table[..., None].expand_as(p))
        return frames.on_shell(p, u.new_zeros(n)), log_jac + slope + self._measure(pt, down, span)

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        n, m = len(self.masses), self.free
        p = frames.on_shell(p, p.new_zeros(n))
        energy = p[..., 0].sum(1)
        rapidity, order = (p[..., 3] / _size(p[..., 1:3])).asinh().sort(1, descending=True)
        across = p[..., 1:3].gather(1, order[..., None].expand(-1, -1, 2))
        pt = _size(across)
        rank = torch.zeros_like(energy)
        for k in range(n - 1):
            rank = rank + (order[:, k + 1 :] < order[:, k : k + 1]).sum(1) * math.factorial(n - 1 - k)
        turn = torch.atan2(across[:, 1, 1], across[:, 1, 0]) / (2 * math.pi) % 1.0
        sums = p.new_zeros(len(p), 2)
        left, log_jac = energy, p.new_full((len(p),), self.constant)
        sizes, turns = [], [(rank + turn) / len(self.orders)]
        for i in range(m):
            here, size = across[:, i + 1], pt[:, i + 1]
            low, high, shift = self._range(i, sums, left)
            coordinate, slope = power_inverse(size.square(), low, high, self.spec.power, shift)
            log_jac = log_jac + slope
            sizes.append(coordinate)
            if i > 0:
                angle = _between(-sums, here)
                coordinate, slope = peaked_angle_inverse(angle, *self._peak(size, sums, left))
                log_jac = log_jac + slope
                turns.append(coordinate)
            sums = sums + here
            left = left - size
        *pair, slope = _Ellipse(self.spec, sums, left).shares(across[:, 0], across[:, -1])
        down = rapidity[:, :1] - rapidity
        span = down[:, -1]
        gaps, rest = [], torch.ones_like(span)
        for k in range(1, n - 1):
            gap = (down[:, k] - down[:, k - 1]) / span / rest
            gaps.append(-((n - 1 - k) * torch.log1p(-gap)).expm1())
            rest = rest * (1 - gap)
        return torch.stack([*sizes, *turns, *pair, *gaps], 1), -(
            log_jac + slope + self._measure(pt, down, span)
        )

    def _range(self, i: int, sums: Tensor, left: Tensor) -> tuple[Tensor, Tensor, float]:
        """Bounds of pT^2 of the i-th, and its shift: what is `left` of sum pT <= E must do for the others and their
        balance."""
        rest = len(self.masses) - 1 - i
        high = torch.minimum((left + _size(sums)) / 2, left - rest * self.spec.pt_min)
        return torch.full_like(high, self.spec.pt_min**2), high.square(), self.spec.pt_scale**2

    def _peak(self, pt: Tensor, sums: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
        """Width of the peak in azimuth about -sums, and the largest angle from it that the energy allows."""
        size = _size(sums)
        soft = self.spec.pt_min**2 + self.spec.pt_scale**2
        k = (((size - pt).square() + soft) / ((size + pt).square() + soft)).sqrt()
        square = (
            (left - size) * (left + size - 2 * pt) / (4 * size * pt)
        )  # rest^2 = (size - pt)^2 + 4 size pt sin^2
        return k, 2 * square.clamp(0, 1).sqrt().asin()

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


class _Ellipse:
    """Two vectors b and c that balance `sums`, with `|b| + |c| <= left` and neither below pt_min, in elliptic coordinates.

    `d^2 b = |b| |c| dxi dv`, so that what is wanted, `d^2 b / (b^2 c^2)`, is `4 / a^2  dxi dv / (sinh^2 xi + sin^2 v)`.
    `tan(v - pi/2) = tan(t) / theta`, theta = tanh xi, makes t uniform for given xi, where pt_min leaves
    `|cos v| < (|b| + |c| - 2 pt_min) / a`. The integral over v is `4 atan(theta tan(v_max - pi/2)) / theta` in theta, which
    `1 / (theta + width)` after an `onset` follows, of a width as pt_min and pt_scale set it.
    """

    def __init__(self, spec: PtRapidity, sums: Tensor, left: Tensor):
        self.least = spec.pt_min
        self.size = _size(sums)
        self.unit = -sums / self.size[:, None]
        width = (spec.pt_min / self.size).sqrt() + spec.pt_scale / (self.size + spec.pt_scale)
        self.soft = spec.pt_scale / (self.size + spec.pt_scale)
        self.start = self._fall(self.size.clamp(min=2 * spec.pt_min))
        self.length = self.start - self._fall(torch.maximum(left, self.size.clamp(min=2 * spec.pt_min)))
        self.shift = 1 - self.start + width.clamp(max=1)
        open_ = (
            (1 - 2 * spec.pt_min / self.size).clamp(min=0) * 2 / 3
        )  # share of the density where xi is least
        self.rise = open_ / (1 - open_) + 0.02

    def _fall(self, total: Tensor) -> Tensor:
        """`1 - tanh xi` of a sum of sizes."""
        square = (self.size / total).square()
        return square / (1 + (1 - square).clamp(min=0).sqrt())

    def point(self, u: Tensor, turn: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """`(b, c)` and `log |d^2 b / du dturn|`."""
        w, rise = onset(u, self.rise, RISE)
        x, slope = power(w, torch.zeros_like(u), self.length, 1.0, self.shift)
        slope = slope + rise
        fall, theta = self.start - x, 1 - self.start + x
        total = self.size / (fall * (1 + theta)).sqrt()
        k, end = self._turn(theta, total)
        side = torch.where(turn < 0.5, 1.0, -1.0).to(turn)
        t = end * (4 * turn - torch.where(turn < 0.5, 1.0, 3.0).to(turn)) * side
        cos, sin = -t.sin(), k * t.cos()
        norm = torch.hypot(cos, sin)
        cos, sin = cos / norm, sin / norm * side
        x, y = total * cos / 2, total * theta * sin / 2
        along, across = self.unit, torch.stack([-self.unit[:, 1], self.unit[:, 0]], 1)
        b = along * (self.size / 2 + x)[:, None] + across * y[:, None]
        c = along * (self.size / 2 - x)[:, None] - across * y[:, None]
        return (b, c), slope + self._slope(total, fall * (1 + theta), cos, t, k, end)

    def shares(self, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(u, turn)` and what `point` gives."""
        size_b, size_c = _size(b), _size(c)
        total = size_b + size_c
        fall = self._fall(total)
        apart = _size(b / size_b[:, None] - c / size_c[:, None])
        theta = (size_b * size_c).sqrt() * apart / total  # sqrt(1 - (a / total)^2), also where that is small
        from_start = torch.where(theta < 0.5, theta - (1 - self.start), self.start - fall)
        w, slope = power_inverse(from_start, torch.zeros_like(fall), self.length, 1.0, self.shift)
        u, rise = onset_inverse(w, self.rise, RISE)
        slope = slope + rise
        x = ((b - c) * self.unit).sum(1)  # total cos v
        y = (self.unit[:, 0] * (b - c)[:, 1] - self.unit[:, 1] * (b - c)[:, 0]) / theta
        k, end = self._turn(theta, total)
        side = torch.where(y < 0, -1.0, 1.0).to(y)
        t = torch.atan2(-k * x, y.abs())
        share = torch.where((t / end).abs() < 1 + 1e-9, t / end, torch.nan)  # not on to the other side
        turn = (share * side + torch.where(y < 0, 3.0, 1.0).to(y)) / 4
        return u, turn, slope + self._slope(total, fall * (1 + theta), x / torch.hypot(x, y), t, k, end)

    def _turn(self, theta: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
        """k in `tan t = k tan(v - pi/2)`, t uniform, and the end of its range, where the smaller of b and c is pt_min."""
        k = ((theta.square() + self.soft.square()) / (1 + self.soft.square())).sqrt()
        most = ((total - 2 * self.least) / self.size).clamp(0, 1)  # |cos v|
        return k, torch.atan2(k * most, ((1 - most) * (1 + most)).sqrt())

    def _slope(self, total: Tensor, rest: Tensor, cos: Tensor, t: Tensor, k: Tensor, end: Tensor) -> Tensor:
        """`|b| |c| dxi dv` over `dtheta dturn`, `dxi = dtheta / rest`, `dv/dturn = 4 end k / (sin^2 t + k^2 cos^2 t)`."""
        product = (total + self.size * cos) * (total - self.size * cos) / 4
        turn = math.log(4) + end.log() + k.log() - (t.sin().square() + (k * t.cos()).square()).log()
        return product.log() - rest.log() + turn


def _size(v: Tensor) -> Tensor:
    """Length, of which products and quotients are numbers even where rounding leaves nothing."""
    return v.square().sum(-1).sqrt().clamp(min=1e-100)


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
