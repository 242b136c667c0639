"""RAMBO on diet: n-body phase space with a constant weight where the particles have no mass (Plaetzer, 1308.2922)."""

import math

import torch
from torch import Tensor

from . import frames
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces


def massless_volume(n: int, energy: float) -> float:
    """`V_n = (pi/2)^(n-1) (2 pi)^(4-3n) E^(2n-4) / ((n-1)! (n-2)!)`, of massless n-body phase space, GeV^(2 n - 4)."""
    return math.exp(_log_volume(n)) * energy ** (2 * n - 4)


def _log_volume(n: int) -> float:
    found = (n - 1) * math.log(math.pi / 2) + (4 - 3 * n) * math.log(2 * math.pi)
    return found - math.lgamma(n) - math.lgamma(n - 1)


def shares(v: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """`(x, 1 - x)` with `v = (m + 1) x^m - m x^(m+1)`, the distribution function of `m (m + 1) x^(m-1) (1 - x)` on [0, 1].

    Both to 1e-14 of themselves, as far as v determines them. Closed forms for m = 1 and 2; else Newton's method, in log x
    below v = 1/2 and for `sqrt(1 - v)`, nearly linear in 1 - x, above: 7 steps from the leading terms leave less than
    rounding.
    """
    if m == 1:
        rest = (1 - v).sqrt()
        return v / (1 + rest), rest
    if m == 2:  # x = 1/2 - sin(asin(1 - 2 v) / 3), without its cancellation at 0
        return _third(v, 1 - v), _third(1 - v, v)
    low = v.clamp(max=0.5)
    z = ((low / (m + 1)).log()) / m
    for _ in range(7):
        x = z.exp()
        rest = 1 + m * (1 - x)
        z = z - (m * z + (rest / low).log()) * rest / (m * (m + 1) * (1 - x))
    below = z.exp()
    root = (1 - v).clamp(max=0.5).sqrt()
    t = root * math.sqrt(2 / (m * (m + 1)))
    for _ in range(7):
        terms = torch.full_like(t, m)  # 1 - v = t^2 sum_(j<=m) j (1 - t)^(j-1): nothing cancels
        for j in range(m - 1, 0, -1):
            terms = terms * (1 - t) + j
        now = t * terms.sqrt()
        slope = m * (m + 1) * t * (1 - t) ** (m - 1) / 2
        t = t - (now - root) * now / slope
    return torch.where(v < 0.5, below, 1 - t), torch.where(v < 0.5, 1 - below, t)


def _third(v: Tensor, rest: Tensor) -> Tensor:
    angle = torch.atan2(v.sqrt(), rest.sqrt()) / 3
    return 2 * (math.pi / 6 - angle).cos() * angle.sin()


@phase_spaces.add("rambo")
class Rambo(PhaseSpace):
    """RAMBO on diet (Plaetzer, 1308.2922): uniform in massless phase space, for any masses and any n >= 2.

    Particle i leaves the system of particles i, i + 1, ... isotropically. With `K = M - (sum of the masses in it)` of these
    systems, `x_i = (K_(i+1) / K_i)^2` follows `u = (m + 1) x^m - m x^(m+1)`, m = n - 1 - i, for i = 1 .. n - 2.
    Coordinates: these n - 2 numbers, then `((1 + cos theta) / 2, phi / 2 pi)` of each of the n - 1 decays, in the rest
    frame of what decays.

    Massless: `|dPhi_n/du| = (pi/2)^(n-1) (2 pi)^(4-3n) E^(2n-4) / ((n-1)! (n-2)!)`. Massive: that with `K_1` for E, times
    `prod_(i<n) rho(M_i, M_(i+1), m_i) / rho(K_i, K_(i+1), 0)  prod_(1<i<n) M_i / K_i`, with rho the momentum of either
    particle of a two-body decay over the mass of what decays.
    """

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        return RamboMap(check_masses("rambo", masses))


class RamboMap(PhaseSpaceMap):
    def __init__(self, masses: tuple[float, ...]):
        n = len(masses)
        self.masses = masses
        self.periodic = tuple(n - 1 + 2 * i for i in range(n - 1))
        self.tails = [math.fsum(masses[i:]) for i in range(n)]  # masses of particles i and later

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.masses)
        kinetic = energy - self.tails[0]
        ratio, rest = [], []
        for i in range(n - 2):
            x, t = shares(u[:, i], n - 2 - i)
            ratio.append(x.sqrt())
            rest.append(t / (1 + ratio[-1]))
        ratio.append(torch.zeros_like(energy))
        rest.append(torch.ones_like(energy))
        kinetics = [kinetic]
        for r in ratio:
            kinetics.append(kinetics[-1] * r)
        log_jac = _log_volume(n) + (2 * n - 4) * kinetic.log()
        frame = torch.zeros(len(u), 4, dtype=u.dtype, device=u.device)
        frame[:, 0] = energy
        mass, found = energy, []
        for i in range(n - 1):
            m, gap = self.masses[i], kinetics[i] * rest[i]
            below = kinetics[i + 1] + self.tails[i + 1]
            product = (mass + below + m) * (mass + below - m)
            momentum = (gap * (gap + 2 * m) * product).sqrt() / (2 * mass)
            if self.tails[0] > 0:
                log_jac = log_jac + self._massive(i, gap, product, kinetics, mass)
            unit = frames.direction(u[:, n - 2 + 2 * i], u[:, n - 1 + 2 * i])
            particle, frame = frames.decay(frame, mass, momentum, m, below, unit)
            found.append(particle)
            mass = below
        found.append(frame)
        return frames.on_shell(torch.stack(found, 1), u.new_tensor(self.masses)), log_jac

    def _massive(self, i: int, gap: Tensor, product: Tensor, kinetics: list[Tensor], mass: Tensor) -> Tensor:
        """log of `rho(M_i, M_(i+1), m_i) / rho(K_i, K_(i+1), 0)`, and of `M_i / K_i` for a system other than the whole."""
        sizes = torch.log1p(2 * self.masses[i] / gap) / 2 + product.log() / 2
        return (
            sizes - (kinetics[i] + kinetics[i + 1]).log() - (2 if i == 0 else 1) * (mass / kinetics[i]).log()
        )

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.masses)
        masses = p.new_tensor(self.masses)
        p = frames.on_shell(p, masses)
        pairs = frames.excess(p, masses)
        kinetics = []
        for i in range(n - 1):
            square = pairs[:, i:, i:].sum((1, 2))  # M^2 - (sum of masses)^2: each pair twice
            mass = (square + self.tails[i] ** 2).sqrt()
            kinetics.append(square / (mass + self.tails[i]))
        kinetics.append(torch.zeros_like(kinetics[0]))
        log_jac = _log_volume(n) + (2 * n - 4) * kinetics[0].log()
        levels: list[Tensor] = []
        angles: list[Tensor] = []
        for i in range(n - 1):
            mass, m = kinetics[i] + self.tails[i], self.masses[i]
            below = kinetics[i + 1] + self.tails[i + 1]
            gap = kinetics[i] - kinetics[i + 1]
            if i < n - 2:
                k = n - 2 - i
                x = (kinetics[i + 1] / kinetics[i]).square()
                levels.append(x**k * (1 + k * (1 - x)))
            if self.tails[0] > 0:
                product = (mass + below + m) * (mass + below - m)
                log_jac = log_jac + self._massive(i, gap, product, kinetics, mass)
            inside = frames.boost(p[:, i], p[:, i:].sum(1), mass, back=True)
            angles += frames.direction_inverse(inside[:, 1:])
        return torch.stack(levels + angles, 1), -log_jac
