"""Thermalisation and tuning of HMC: before the first draw, frozen after, and deterministic."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import StatisticsError
from ..precision import double
from ..statistics import tau_int
from .fourier import FourierMass
from .integrators import FORCES

if TYPE_CHECKING:
    from .hmc import HMC

N_STEPS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # integration steps per trajectory to try
UPDATE = (
    2.5  # what momenta, accept/reject and log_prob cost, in force evaluations (measured, phi^4, one core)
)
GAIN = 0.2  # change of log(step) per unit of acceptance: too small a step grows by some 3 % per trajectory
ADAPT = 40  # trajectories that adapt the step size to a new number of steps
MEASURE = (120, 600)  # trajectories that measure tau_int; the second where the first is too short for all
ENOUGH = 20  # tau_int of thermalisation with the final settings
MASSES = (
    1.0,
    2.0,
    4.0,
)  # of Fourier acceleration to try: 2 was best at 8x8, 0.5 to 4 much alike at 14x14 and 20x20
SMALL = 0.1  # the small step, relative to the full one, that frees a stuck chain


class Tuning:
    """The chains of one stream on their way to equilibrium: x, log_prob, and the updates that move them."""

    def __init__(self, hmc: "HMC", x: Tensor, rng: np.random.Generator):
        self.hmc, self.rng = hmc, rng
        self.x, self.log_prob = x, hmc.target.log_prob(double(x))
        given = hmc.spec.fourier_mass
        tried = MASSES if hmc.spec.acceleration and given is None else (given,)
        self.masses = [hmc.mass(one) for one in tried]
        self.mass = self.masses[0]

    def move(self, step: float, n_steps: int):
        new = self.hmc.update(self.x, self.log_prob, self.rng, step, n_steps, self.mass)
        self.x, self.log_prob = new.x, new.log_prob
        return new

    def tune(self) -> tuple[float, int]:
        """Thermalise, and choose `step` and `n_steps`.

        1. Half of `thermalisation` with four integration steps, from a step size of 0.01 up to the one that
           gives `acceptance`.
        2. For n_steps = 2, 3, 4, 6, ...: adapt the step size, freeze it, measure tau_int of log_prob and of
           the squared mean field, the larger of the two. The cost is `(force evaluations + 2.5) tau_int`, with
           `FourierMass.cost` added for each force and for each of the two other products with M, these 0.5
           more, and the sampler's `overhead`; stop where it has passed 1.25 times the least so far. With
           Fourier acceleration so for each of `MASSES`, unless one is given.
        3. With the cheapest, the other half of `thermalisation` and at least 20 tau_int.

        Raises `StatisticsError` where a chain stays stuck or no tau_int can be measured.
        """
        spec = self.hmc.spec
        step = self.adapt(0.01, 4, spec.thermalisation // 2)
        for measure in MEASURE:
            found = [(self.cheapest(step, measure, mass), mass) for mass in self.masses]
            (cost, tau, step, n_steps), self.mass = min(found, key=lambda one: one[0])
            if math.isfinite(cost):
                self.thermalise(step, n_steps, max(spec.thermalisation // 2, math.ceil(ENOUGH * tau)))
                return step, n_steps
        raise StatisticsError(
            f"{spec.kind}: after {MEASURE[-1]} trajectories of up to {N_STEPS[-1]} steps of {step:.3g} tau_int cannot be "
            "told: the chains do not mix, or sit in modes that they cannot leave. Raise thermalisation, or fix "
            "step and length, or use another sampler"
        )

    def cheapest(
        self, step: float, trajectories: int, mass: FourierMass | None
    ) -> tuple[float, float, float, int]:
        """The least cost, and with it tau_int, step and n_steps, with this mass matrix; inf where none is known."""
        self.mass = mass
        one_force = FORCES[self.hmc.spec.integrator] * (1 if mass is None else 1 + mass.cost)
        beside = UPDATE + self.hmc.overhead + (0 if mass is None else 2 * (0.5 + mass.cost))
        best = (math.inf, math.inf, step, N_STEPS[0])
        for n_steps in N_STEPS:
            step = self.adapt(step, n_steps, ADAPT)
            tau = self.slowest(step, n_steps, trajectories)
            cost = (one_force * n_steps + beside) * tau
            best = min(best, (cost, tau, step, n_steps))
            if math.isfinite(cost) and cost > 1.25 * best[0]:
                break
        return best

    def thermalise(self, step: float, n_steps: int, trajectories: int) -> None:
        """Trajectories of the given step size and of a tenth of it: a quarter small, then in turn.

        A chain whose forces are too strong for the step moves with the small one. Raises
        `StatisticsError` if a chain was never accepted at full size in the last half.
        """
        accepted = torch.zeros(len(self.x), dtype=torch.int64, device=self.x.device)
        for i in range(trajectories):
            small = i < trajectories // 4 or i % 2 == 1
            new = self.move(SMALL * step if small else step, n_steps)
            if not small and i >= trajectories // 2:
                accepted += new.accepted
        stuck = int((accepted == 0).sum())
        if stuck:
            raise StatisticsError(
                f"{self.hmc.spec.kind}: {stuck} of {len(self.x)} chains had no trajectory accepted in the last half of "
                f"{trajectories} with step {step:.3g} and {n_steps} steps each; use a smaller step, or a "
                "higher acceptance to tune to, or a longer thermalisation"
            )

    def adapt(self, step: float, n_steps: int, trajectories: int) -> float:
        """`log step += GAIN (mean acceptance - wanted)` per trajectory; the last half's mean is taken."""
        log_step, kept = math.log(step), []
        for i in range(trajectories):
            new = self.move(math.exp(log_step), n_steps)
            # min(1, exp(-dH)) is the acceptance before it is rounded to 0 or 1
            mean = new.weight.clamp(max=1.0).mean()
            log_step += GAIN * (float(mean) - self.hmc.spec.acceptance)
            if i >= trajectories // 2:
                kept.append(log_step)
        return math.exp(sum(kept) / len(kept))

    def slowest(self, step: float, n_steps: int, trajectories: int) -> float:
        """The larger tau_int, in trajectories, of log_prob and of the squared mean field; inf if unknown."""
        series = np.empty((2, len(self.x), trajectories))
        for i in range(trajectories):
            self.move(step, n_steps)
            series[0, :, i] = self.log_prob.cpu().numpy()
            series[1, :, i] = self.hmc.target.slow(double(self.x)).cpu().numpy()
        try:
            return max(tau_int(one).value for one in series)
        except StatisticsError:  # too few for a slow candidate, or none accepted: no candidate then
            return math.inf
