"""The path from a free field to a target, and Monte Carlo steps on it: `S_b = (1 - b) S_0 + b S`, 0 <= b <= 1.

S_0 is the action of the free field of mass m0 and S = -log_prob the target's. In white coordinates `z = A^{-1} x`,
`A = F^{-1} [2 (khat^2 + m0^2)]^{-1/2} F` (F Fourier, A symmetric),

    S_0 = z^2 / 2,    S_b = z^2 / 2 + b D(A z),    D = S - S_0.

HMC in z (that is, Fourier-accelerated HMC in x) follows the Gaussian part exactly, by rotation, and takes steps for D
alone (Shahbaba, Lan, Johnson, Neal 2014; Beskos, Pinski, Sanz-Serna, Stuart 2011). For phi^4 the kinetic terms cancel
in D, which is then a sum over sites: a step costs two products with A and no derivative of the action.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..random import normal
from ..targets import FreeField, Phi4
from ..targets.base import LatticeTarget
from ..transforms.fourier import fourier_scale

DENSE = 400  # up to this volume a product with the V x V matrix A is no slower than two FFTs (one CPU core)
RIGHT_ANGLE = math.pi / 2  # a trajectory that refreshes every mode of a free field


def gap_mass(target: LatticeTarget) -> float:
    """m0^2 of the free field nearest to phi^4 in `KL(free || phi^4)`, the solution of the gap equation

    `m0^2 = m2 + 6 lam G(m0^2)`, `G(m0^2) = <phi^2>_0 = (1/V) sum_k 1 / [2 (khat^2 + m0^2)]`;

    `m2` itself for a free field. One solution: the left side rises and the right side falls. Raises `InputError` for a
    target that is neither.
    """
    if isinstance(target, FreeField):
        return target.m2
    if not isinstance(target, Phi4):
        raise InputError(f"no free field is known to lie near target '{target.kind}': set base_m2")
    khat2 = target.lattice.khat2

    def excess(m2: float) -> float:
        return m2 - target.m2 - 6 * target.lam * float((0.5 / (khat2 + m2)).mean())

    low, high = 1e-12, 1.0
    while excess(high) < 0:
        high *= 2
    while high - low > 1e-12 * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    return high


@dataclass(frozen=True)
class Walkers:
    """n points of the path: `z` and `x = A z` `[n, V]`, `excess` D(x) float64 `[n]`, `slope` dD/dz `[n, V]`."""

    z: Tensor
    x: Tensor
    excess: Tensor
    slope: Tensor

    def where(self, chosen: Tensor, other: "Walkers") -> "Walkers":
        """`self` where `chosen` `[n]` (bool), else `other`."""
        column = chosen[:, None]
        return Walkers(
            torch.where(column, self.z, other.z),
            torch.where(column, self.x, other.x),
            torch.where(chosen, self.excess, other.excess),
            torch.where(column, self.slope, other.slope),
        )

    def take(self, index: Tensor) -> "Walkers":
        return Walkers(self.z[index], self.x[index], self.excess[index], self.slope[index])


class Bridge:
    """The path of the module's docstring from the free field of `base_m2` (None: `gap_mass`) to `target`.

    Raises `InputError` for a target that is not on a lattice with the flat measure, and for base_m2 <= 0.
    """

    def __init__(
        self,
        target: LatticeTarget,
        base_m2: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        if not isinstance(target, LatticeTarget) or target.measure != "lebesgue":
            raise InputError(
                f"target '{target.kind}': a path from the free field needs a field on a lattice with the flat measure"
            )
        self.target, self.dtype, self.device = target, dtype, device
        self.base = FreeField(shape=target.event_shape, m2=gap_mass(target) if base_m2 is None else base_m2)
        self.log_amplitude = torch.from_numpy(0.5 * np.log(self.base.spectrum)).to(device, dtype)
        self.matrix = None
        if target.lattice.volume <= DENSE:
            sites = torch.eye(target.lattice.volume, dtype=torch.float64)
            log_a = torch.from_numpy(0.5 * np.log(self.base.spectrum))
            self.matrix = self._fourier(sites, log_a).to(device, dtype)

    def _fourier(self, z: Tensor, log_amplitude: Tensor) -> Tensor:
        field = z.view(-1, *self.target.event_shape)
        return fourier_scale(field, log_amplitude, self.target.lattice.dim)[0].flatten(1)

    def colour(self, z: Tensor) -> Tensor:
        """`A z`, `[n, V]`."""
        return z @ self.matrix if self.matrix is not None else self._fourier(z, self.log_amplitude)

    def whiten(self, x: Tensor) -> Tensor:
        """`A^{-1} x`, `[n, V]`."""
        return self._fourier(x, -self.log_amplitude)

    def action(self, x: Tensor, b: float) -> Tensor:
        """`S_b`, float64 `[n]`, of fields `[n, *shape]`; differentiable."""
        x = x.double()
        return (1 - b) * self.base.action(x) - b * self.target.log_prob(x)

    def force(self, x: Tensor, b: float) -> Tensor:
        """`-dS_b/dx`, shape of x `[n, *shape]`."""
        return (1 - b) * self.base.force(x) + b * self.target.force(x)

    def at(self, z: Tensor, x: Tensor | None = None) -> Walkers:
        """Walkers at z; `x`: A z, where it is known."""
        x = self.colour(z) if x is None else x
        return Walkers(z, x, self.excess(z, x), self.slope(z, x))

    def excess(self, z: Tensor, x: Tensor) -> Tensor:
        """`D = S - S_0`; for phi^4 `sum_s [ (m2 - m0^2) x^2 + lam x^4 ]`. Float64 `[n]`."""
        if isinstance(self.target, Phi4 | FreeField):
            x2 = x.double().square()
            d = (self.target.m2 - self.base.m2) * x2.sum(1)
            lam = getattr(self.target, "lam", 0.0)
            return d + lam * x2.square().sum(1) if lam else d
        s = -self.target.log_prob(x.double().view(-1, *self.target.event_shape))
        return s - 0.5 * z.double().square().sum(1)

    def slope(self, z: Tensor, x: Tensor) -> Tensor:
        """`dD/dz = A dD/dx`; for phi^4 `dD/dx = 2 (m2 - m0^2) x + 4 lam x^3`."""
        if isinstance(self.target, Phi4 | FreeField):
            a, lam = self.target.m2 - self.base.m2, getattr(self.target, "lam", 0.0)
            return self.colour(x * (2 * a + 4 * lam * x.square()))
        force = self.target.force(x.view(-1, *self.target.event_shape)).flatten(1)
        return -self.colour(force) - z

    def start(self, n: int, rng: np.random.Generator) -> Walkers:
        """n independent walkers of b = 0."""
        return self.at(normal(rng, (n, self.target.lattice.volume), dtype=self.dtype, device=self.device))

    def update(
        self, now: Walkers, b: float, angle: float, kicks: int, p: Tensor, log_u: Tensor
    ) -> tuple[Walkers, Tensor]:
        """One trajectory of `H = p^2 / 2 + S_b` and its accept/reject; leaves `exp(-S_b)` invariant.

        A step is `p -= (angle/2) b dD/dz`, rotation of (z, p) by `angle`, `p -= (angle/2) b dD/dz`; `kicks` steps are made,
        and neighbouring half kicks are one. p: standard normal `[n, V]`; log_u: log of uniform variates, float64 `[n]`;
        accepted where `log u < -dH`. Returns the walkers and dH, float64 `[n]`; NaN is rejected.
        """
        c, s = math.cos(angle), math.sin(angle)
        z, x, q, slope = now.z, now.x, p, now.slope
        for _ in range(kicks):
            q = torch.sub(q, slope, alpha=0.5 * angle * b)
            z, q = c * z + s * q, c * q - s * z
            x = self.colour(z)
            slope = self.slope(z, x)
            q = torch.sub(q, slope, alpha=0.5 * angle * b)
        new = Walkers(z, x, self.excess(z, x), slope)
        dh = self._hamiltonian(new, q, b) - self._hamiltonian(now, p, b)
        return new.where(log_u < -dh, now), dh

    def _hamiltonian(self, at: Walkers, p: Tensor, b: float) -> Tensor:
        gaussian = at.z.double().square().sum(1) + p.double().square().sum(1)
        return 0.5 * gaussian + b * at.excess


def move(
    bridge: Bridge, now: Walkers, b: float, angle: float, kicks: int, rng: np.random.Generator
) -> tuple[Walkers, Tensor]:
    """`Bridge.update` with noise from `rng`."""
    p = normal(rng, now.z.shape, dtype=now.z.dtype, device=now.z.device)
    log_u = -torch.from_numpy(rng.standard_exponential(len(now.z))).to(now.z.device)
    return bridge.update(now, b, angle, kicks, p, log_u)


# The pilot: walkers, values of b, and trajectories at each
PILOT_WALKERS, PILOT_GRID, PILOT_MOVES = 256, 33, 6
GAIN = 0.3  # change of log(angle) per unit of acceptance


@dataclass(frozen=True)
class Pilot:
    """What a slow walk up the path has found, on a grid of b: the spread of D and the angle of the wanted acceptance."""

    b: np.ndarray
    spread: np.ndarray
    angle: np.ndarray

    def schedule(self, steps: int) -> np.ndarray:
        """b_1 < ... < b_steps = 1 at equal distances of thermodynamic length, `int_0^b sigma(D) db`.

        The variance of the work of a step is `(db)^2 var D`: equal for all steps (Crooks, PRL 99 (2007) 100602, which for
        a given number of steps is the best schedule of walkers in equilibrium).
        """
        length = np.concatenate(
            [[0], np.cumsum(np.diff(self.b) * 0.5 * (self.spread[1:] + self.spread[:-1]))]
        )
        if not length[-1] > 0:  # D is constant: every schedule is right
            return linear(steps)
        b = np.interp(length[-1] * np.arange(1, steps + 1) / steps, length, self.b)
        return np.append(b[:-1], 1.0)

    def angles(self, b: np.ndarray) -> np.ndarray:
        return np.exp(np.interp(b, self.b, np.log(self.angle)))


def linear(steps: int, power: float = 1.0) -> np.ndarray:
    """`b_t = (t / steps)^power`, t = 1 ... steps."""
    return (np.arange(1, steps + 1) / steps) ** power


@torch.no_grad()
def pilot(bridge: Bridge, kicks: int, acceptance: float, rng: np.random.Generator) -> Pilot:
    """Walk 256 walkers up the path, six trajectories at each of 33 values of b, adapting the angle on the way.

    `log angle += 0.3 (mean acceptance - wanted)` per trajectory, kicks x angle <= pi / 2.
    """
    grid = np.linspace(0, 1, PILOT_GRID)
    now, log_angle = bridge.start(PILOT_WALKERS, rng), math.log(RIGHT_ANGLE / kicks)
    spread, angle = np.empty(PILOT_GRID), np.empty(PILOT_GRID)
    for i, b in enumerate(grid):
        kept = []
        for _ in range(PILOT_MOVES):
            now, dh = move(bridge, now, float(b), math.exp(log_angle), kicks, rng)
            mean = float(torch.exp(-dh).nan_to_num(nan=0.0).clamp(max=1.0).mean())
            log_angle = min(log_angle + GAIN * (mean - acceptance), math.log(RIGHT_ANGLE / kicks))
            kept.append(log_angle)
        spread[i], angle[i] = float(now.excess.std()), math.exp(float(np.mean(kept)))
    return Pilot(grid, spread, angle)
