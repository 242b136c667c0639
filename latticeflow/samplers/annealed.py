"""Annealed importance sampling and sequential Monte Carlo: independent draws with the weights of their paths.

AIS (Neal 2001, physics/9803008; on the lattice Caselle, Cellini, Nada, Panero, 2201.08862). A path starts at a draw x_0 of
the free field of mass m0 and follows the actions `S_b = (1 - b) S_0 + b S`, `0 = b_0 < ... < b_T = 1`. For t = 1 ... T,

    log w += -[ S_{b_t}(x_{t-1}) - S_{b_{t-1}}(x_{t-1}) ] = -(b_t - b_{t-1}) D(x_{t-1}),    D = S - S_0,

then, for t < T, x_t from x_{t-1} by updates that leave `exp(-S_{b_t})` invariant. With `log w = log Z_0` at the start,
`<w f(x)> = Z <f>` exactly, for any T, schedule and updates (Jarzynski's equality, cond-mat/9610209): Z = <w>, and
Metropolis between paths is exact on the space of paths, of which the last point is kept.

SMC (Del Moral, Doucet, Jasra 2006): paths in groups of P; where a group's weights have become unequal its paths are drawn
again by their weights, all weights then being their mean. The group's estimate of Z, `Z^ = prod (mean weights)`, is without
bias. Paths of a group depend on one another, so one draw is one group: one of its last points, drawn by weight,
with `log w = log Z^`. That makes independent draws again, `<Z^ f(x)> = Z <f>`, and Metropolis between them is exact
(particle independent Metropolis-Hastings, Andrieu, Doucet, Holenstein 2010, sec. 2.4.2). The other points are not used.
"""

from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ..errors import InputError
from ..flows.bridge import Bridge, Pilot, Walkers, linear, move, pilot
from ..precision import DTYPES, double
from ..random import Purpose, stream
from ..targets import Target
from .base import Draws, Sampler, SamplerSpec, State, samplers


@samplers.add("annealed")
class AnnealedSpec(SamplerSpec):
    """`[sampler.annealed]`: AIS from the free field, or SMC.

    `steps`: T, increments of b from 0 to 1; 1 is plain importance sampling from the free field. `updates`: HMC
    trajectories after each, of `kicks` steps. `acceptance`: what the steps' angle is tuned to. `power`: b_t =
    (t / T)^power; None: steps of equal thermodynamic length. `base_m2`: m0^2 of the free field; None: that of the gap
    equation. `particles`: P, paths of a group that is one draw; 1 is AIS. `resample`: a group's paths are drawn again where
    its ESS / P is below this. `batch`: paths in one call, a multiple of P.
    """

    block: int = Field(8192, ge=1)
    batch: int = Field(1024, ge=1)
    streams: int = Field(0, ge=0)
    steps: int = Field(32, ge=1)
    updates: int = Field(1, ge=1)
    kicks: int = Field(4, ge=1)
    acceptance: float = Field(0.8, gt=0.1, lt=0.999)
    power: float | None = Field(None, gt=0)
    base_m2: float | None = Field(None, gt=0)
    particles: int = Field(1, ge=1)
    resample: float = Field(0.5, ge=0, le=1)
    precision: Literal["float32", "float64"] = "float32"

    def model_post_init(self, context) -> None:
        if self.batch % self.particles:
            raise InputError(
                f"annealed: batch = {self.batch} is not a multiple of particles = {self.particles}; expected e.g. batch = "
                f"{max(1, self.batch // self.particles) * self.particles}"
            )

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "Annealed":
        """The sampler. Raises `InputError` for a target that is not on a lattice with the flat measure."""
        return Annealed(target, self, device)


class Annealed(Sampler):
    """AIS and SMC for any lattice field; see the module's docstring for the weights, `flows/bridge.py` for the updates.

    Angles and schedule are found once, by a pilot run on noise of its own that depends on nothing: every rank finds the
    same. The weights are right whatever it finds. `Draws.info`, per step: `b`; `acceptance` of the updates after
    it (1 after the last, where there are none); `ess`, of the paths' weights so far, within their groups and on average.
    """

    own_density = True

    def __init__(self, target: Target, spec: AnnealedSpec, device: str = "cpu"):
        self.target, self.spec, self.batch = target, spec, spec.batch
        self.bridge = Bridge(target, spec.base_m2, DTYPES[spec.precision], device)  # type: ignore[arg-type]

    @cached_property
    def pilot(self) -> Pilot:
        return pilot(self.bridge, self.spec.kicks, self.spec.acceptance, stream(0, Purpose.START))

    @cached_property
    def path(self) -> tuple[np.ndarray, np.ndarray]:
        """`b_1 ... b_T` and the angle of the updates after each."""
        spec = self.spec
        b = self.pilot.schedule(spec.steps) if spec.power is None else linear(spec.steps, spec.power)
        return b, self.pilot.angles(b)

    @cached_property
    def increments(self) -> np.ndarray:
        """`b_t - b_{t-1}`, t = 1 ... T."""
        return np.diff(self.path[0], prepend=0.0)

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, None]:
        if n < 1:
            raise InputError(f"annealed: {n} draws; expected at least 1")
        groups = self.batch // self.spec.particles
        parts = [self._groups(min(groups, n - k), rng) for k in range(0, n, groups)]
        x = torch.cat([part[0] for part in parts]).view(n, *self.target.event_shape)
        sizes = [len(part[0]) for part in parts]
        acceptance, ess = (np.average([part[i] for part in parts], axis=0, weights=sizes) for i in (2, 3))
        log_prob = self.target.log_prob(double(x)).numpy()
        info = {"b": self.path[0], "acceptance": acceptance, "ess": ess}
        return Draws(x, log_prob, np.concatenate([part[1] for part in parts]), info), None

    def _groups(
        self, groups: int, rng: np.random.Generator
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
        """x `[groups, V]` on the CPU, log w `[groups]`, acceptance and ESS of the steps."""
        spec = self.spec
        b, angle = self.path
        now = self.bridge.start(groups * spec.particles, rng)
        log_z = np.full(groups, self.bridge.base.log_z)
        log_w = np.zeros((groups, spec.particles))
        acceptance, ess = np.ones(spec.steps), np.empty(spec.steps)
        for t in range(spec.steps):
            log_w -= self.increments[t] * now.excess.cpu().numpy().reshape(log_w.shape)
            shares = _shares(log_w)
            ess_of_group = 1 / (spec.particles * np.square(shares).sum(1))
            ess[t] = ess_of_group.mean()
            if t == spec.steps - 1:
                break
            poor = ess_of_group < spec.resample
            if poor.any():
                now = _resample(now, shares, poor, rng)
                log_z[poor] += _log_mean(log_w[poor])
                log_w[poor] = 0.0
            rates = []
            for _ in range(spec.updates):
                now, dh = move(self.bridge, now, float(b[t]), float(angle[t]), spec.kicks, rng)
                rates.append(float(torch.exp(-dh).nan_to_num(nan=0.0).clamp(max=1.0).mean()))
            acceptance[t] = np.mean(rates)
        chosen = systematic(shares, rng.random(groups), 1)[:, 0]
        x = now.x[torch.from_numpy(chosen + spec.particles * np.arange(groups)).to(now.x.device)]
        return x.cpu(), log_z + _log_mean(log_w), acceptance, ess


def _log_mean(log_w: np.ndarray) -> np.ndarray:
    """`log mean exp(log w)` of each row."""
    top = log_w.max(1)
    return top + np.log(np.exp(log_w - top[:, None]).mean(1))


def _shares(log_w: np.ndarray) -> np.ndarray:
    """`w / sum w` of each row."""
    w = np.exp(log_w - log_w.max(1, keepdims=True))
    return w / w.sum(1, keepdims=True)


def systematic(shares: np.ndarray, u: np.ndarray, count: int) -> np.ndarray:
    """Systematic resampling: `count` columns of each row of `shares` `[rows, P]`, int64 `[rows, count]`.

    Column i is taken as often as points `(u + j) / count`, j = 0 ... count - 1, lie between the cumulated shares before
    and after it: `count * share` times on average, for u `[rows]` uniform in [0, 1).
    """
    points = (u[:, None] + np.arange(count)) / count
    cumulated = np.cumsum(shares, axis=1)[:, :-1]  # the last column takes all that is left
    return (points[:, :, None] >= cumulated[:, None, :]).sum(2)


def _resample(now: Walkers, shares: np.ndarray, poor: np.ndarray, rng: np.random.Generator) -> Walkers:
    """Walkers of the `poor` groups drawn again by their shares; all others stay."""
    groups, particles = shares.shape
    index = np.arange(groups * particles).reshape(shares.shape)
    rows = np.flatnonzero(poor)
    index[rows] = rows[:, None] * particles + systematic(shares[rows], rng.random(len(rows)), particles)
    return now.take(torch.from_numpy(index.ravel()).to(now.z.device))
