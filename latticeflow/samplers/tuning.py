"""Thermalisation and tuning of HMC: before the first draw, frozen after, and deterministic."""

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import FrozenSeries, StatisticsError, TooFewSamples
from ..statistics import autocorrelation, tau_int
from .integrators import FORCES

if TYPE_CHECKING:
    from .hmc import HMC

N_STEPS = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64)  # integration steps per trajectory to try
UPDATE = (
    2.5  # what momenta, accept/reject and log_prob cost, in force evaluations (measured, phi^4, one core)
)
GAIN = 0.2  # change of log(step) per unit of acceptance: too small a step grows by some 3 % per trajectory
ADAPT = 40  # trajectories that adapt the step size to a new number of steps
MEASURE = 120  # trajectories that measure tau_int
ENOUGH = 20  # tau_int of thermalisation with the final settings
SMALL = 0.1  # the small step, relative to the full one, that frees a stuck chain


class Tuning:
    """The chains of one stream on their way to equilibrium: x, log_prob, and the updates that move them."""

    def __init__(self, hmc: "HMC", x: Tensor, rng: np.random.Generator):
        self.hmc, self.rng = hmc, rng
        self.x, self.log_prob = x, hmc.target.log_prob(x.double())

    def move(self, step: float, n_steps: int):
        new = self.hmc.update(self.x, self.log_prob, self.rng, step, n_steps)
        self.x, self.log_prob = new.x, new.log_prob
        return new

    def tune(self) -> tuple[float, int]:
        """Thermalise, and choose `step` and `n_steps`.

        1. Half of `thermalisation` with four integration steps, from a step size of 0.01 up to the one that
           gives `acceptance`.
        2. For n_steps = 2, 3, 4, ...: adapt the step size, freeze it, measure tau_int of log_prob and of the
           squared mean field, the larger of the two. The cost is `(force evaluations + 2.5) tau_int`; stop
           where it has passed 1.5 times the least so far.
        3. With the cheapest, the other half of `thermalisation` and at least 20 tau_int.

        Raises `StatisticsError` where a chain stays stuck, or 20 tau_int passes ten times `thermalisation`.
        """
        spec = self.hmc.spec
        step = self.adapt(0.01, 4, spec.thermalisation // 2)
        costs = []
        for n_steps in N_STEPS:
            step = self.adapt(step, n_steps, ADAPT)
            tau = self.slowest(step, n_steps)
            costs.append(((FORCES[spec.integrator] * n_steps + UPDATE) * tau, tau, step, n_steps))
            if costs[-1] > (1.5 * min(costs)[0],):
                break
        _, tau, step, n_steps = min(costs)
        if not ENOUGH * tau <= 10 * spec.thermalisation:
            raise StatisticsError(
                f"hmc: tau_int is about {tau:.3g} trajectories at best (step {step:.3g}, {n_steps} steps "
                f"each), too long for thermalisation = {spec.thermalisation}; expected at least {ENOUGH} "
                "tau_int. Raise thermalisation, or look whether the target has modes that chains cannot leave"
            )
        self.thermalise(step, n_steps, max(spec.thermalisation // 2, math.ceil(ENOUGH * tau)))
        return step, n_steps

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
                f"hmc: {stuck} of {len(self.x)} chains had no trajectory accepted in the last half of "
                f"{trajectories} with step {step:.3g} and {n_steps} steps each; use a smaller step, or a "
                "higher acceptance to tune to, or a longer thermalisation"
            )

    def adapt(self, step: float, n_steps: int, trajectories: int) -> float:
        """`log step += GAIN (mean acceptance - wanted)` per trajectory; the last half's mean is taken."""
        log_step, kept = math.log(step), []
        for i in range(trajectories):
            new = self.move(math.exp(log_step), n_steps)
            # min(1, exp(-dH)) is the acceptance before it is rounded to 0 or 1
            mean = torch.exp(-new.dh).nan_to_num(nan=0.0).clamp(max=1.0).mean()
            log_step += GAIN * (float(mean) - self.hmc.spec.acceptance)
            if i >= trajectories // 2:
                kept.append(log_step)
        return math.exp(sum(kept) / len(kept))

    def slowest(self, step: float, n_steps: int) -> float:
        """The larger tau_int, in trajectories, of log_prob and of the squared mean field.

        Where the chains are too short for it: that of an exponential with the same rho(1).
        """
        series = np.empty((2, len(self.x), MEASURE))
        for i in range(MEASURE):
            self.move(step, n_steps)
            series[0, :, i] = self.log_prob.cpu().numpy()
            series[1, :, i] = self.x.double().flatten(1).mean(1).square().cpu().numpy()
        return max(_tau(one) for one in series)


def _tau(series: np.ndarray) -> float:
    try:
        return tau_int(series).value
    except TooFewSamples:
        rho = float(autocorrelation(series)[1])
        return 0.5 * (1 + rho) / (1 - rho) if rho < 1 else math.inf
    except FrozenSeries:
        return math.inf
