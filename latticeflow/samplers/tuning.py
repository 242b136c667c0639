"""Thermalisation and tuning of HMC: happens before the first draw, frozen after, and deterministic."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import FrozenSeries, StatisticsError, TooFewSamples
from ..statistics import autocorrelation, tau_int
from .integrators import FORCES

if TYPE_CHECKING:
    from .hmc import HMCSpec

N_STEPS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # integration steps per trajectory that are tried
GAIN = 0.2  # d log(step) per unit of acceptance: a step that is too small grows by 4 % per trajectory
ADAPT = 60  # trajectories that adapt the step to a new number of steps
MEASURE = 200  # trajectories that measure tau_int
SETTLED = 20  # tau_int of thermalisation with the final settings
SMALL = 0.1  # the small step, relative to the tuned one, that frees stuck chains


def tune(
    update: Callable, x: Tensor, log_prob: Tensor, rng: np.random.Generator, spec: "HMCSpec"
) -> tuple[Tensor, Tensor, float, int]:
    """Thermalise and choose `step` and `n_steps`; returns x, log_prob, step, n_steps.

    1. Half of `spec.thermalisation` with four integration steps, from a step size of 0.01 up to the one that gives
       `spec.acceptance`: a hot start has forces that would be rejected for ever at the final size.
    2. For n_steps = 1, 2, 3, 4, 6, ...: adapt the step size, freeze it, measure tau_int of log_prob and of the
       squared mean field, whichever is larger. The cost is force evaluations per trajectory times tau_int; stop
       where it has passed twice the least so far.
    3. With the cheapest, the other half of the thermalisation, at least 20 tau_int.

    Raises `StatisticsError` where a chain stays stuck or 20 tau_int is beyond ten times `spec.thermalisation`.
    """
    x, log_prob, step = _adapt(update, x, log_prob, rng, 0.01, 4, spec.thermalisation // 2, spec.acceptance)
    best = (math.inf, math.inf, step, 4)
    for n_steps in N_STEPS:
        x, log_prob, step = _adapt(update, x, log_prob, rng, step, n_steps, ADAPT, spec.acceptance)
        x, log_prob, tau = _measure(update, x, log_prob, rng, step, n_steps)
        cost = FORCES[spec.integrator] * n_steps * tau
        best = min(best, (cost, tau, step, n_steps))
        if cost > 2 * best[0]:
            break
    cost, tau, step, n_steps = best
    trajectories = max(spec.thermalisation // 2, math.ceil(SETTLED * tau) if math.isfinite(tau) else 0)
    if not math.isfinite(cost) or trajectories > 10 * spec.thermalisation:
        raise StatisticsError(
            f"hmc: tau_int is about {tau:.3g} trajectories at best (step {step:.3g}, {n_steps} steps each), and "
            f"thermalisation = {spec.thermalisation} is too short for it; expected at least "
            f"{SETTLED} tau_int: raise thermalisation, or check that the target has a single mode"
        )
    x, log_prob = thermalise(update, x, log_prob, rng, step, n_steps, trajectories)
    return x, log_prob, step, n_steps


def thermalise(
    update: Callable,
    x: Tensor,
    log_prob: Tensor,
    rng: np.random.Generator,
    step: float,
    n_steps: int,
    trajectories: int,
) -> tuple[Tensor, Tensor]:
    """Trajectories of the given step size, every other one of a tenth of it, the first tenth all small.

    Raises `StatisticsError` if a chain is never accepted at full size.
    """
    accepted = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for i in range(trajectories):
        small = i % 2 == 1 or i < trajectories // 10
        new = update(x, log_prob, rng, SMALL * step if small else step, n_steps)
        x, log_prob = new.x, new.log_prob
        if not small:
            accepted += new.accepted
    if not bool((accepted > 0).all()):
        raise StatisticsError(
            f"hmc: {int((accepted == 0).sum())} of {len(x)} chains had no trajectory accepted in thermalisation "
            f"with step {step:.3g} and {n_steps} steps; use a smaller step (or a higher acceptance to tune "
            "to), or a longer thermalisation"
        )
    return x, log_prob


def _adapt(
    update: Callable,
    x: Tensor,
    log_prob: Tensor,
    rng: np.random.Generator,
    step: float,
    n_steps: int,
    trajectories: int,
    acceptance: float,
) -> tuple[Tensor, Tensor, float]:
    """Move `log step` by `GAIN (mean acceptance - wanted)` per trajectory; its mean over the last half is the step."""
    log_step, total = math.log(step), 0.0
    for i in range(trajectories):
        new = update(x, log_prob, rng, math.exp(log_step), n_steps)
        x, log_prob = new.x, new.log_prob
        # min(1, exp(-dH)) is the acceptance with less noise than 0 or 1
        mean = torch.exp(-new.dh).nan_to_num(nan=0.0).clamp(max=1.0).mean()
        log_step += GAIN * (float(mean) - acceptance)
        if i >= trajectories // 2:
            total += log_step
        new = update(x, log_prob, rng, SMALL * math.exp(log_step), n_steps)
        x, log_prob = new.x, new.log_prob
    return x, log_prob, math.exp(total / (trajectories - trajectories // 2))


def _measure(
    update: Callable, x: Tensor, log_prob: Tensor, rng: np.random.Generator, step: float, n_steps: int
) -> tuple[Tensor, Tensor, float]:
    """The larger tau_int, in trajectories, of log_prob and the squared mean field.

    Where the chains are too short for tau_int it is that of an exponential with the same rho(1).
    """
    series = np.empty((2, len(x), MEASURE))
    for i in range(MEASURE):
        new = update(x, log_prob, rng, step, n_steps)
        x, log_prob = new.x, new.log_prob
        series[0, :, i] = log_prob.cpu().numpy()
        series[1, :, i] = x.flatten(1).mean(1).square().cpu().numpy()
    return x, log_prob, max(_tau(one) for one in series)


def _tau(series: np.ndarray) -> float:
    try:
        return tau_int(series).value
    except TooFewSamples:
        rho = autocorrelation(series)[1]
        return 0.5 * (1 + rho) / (1 - rho) if rho < 1 else math.inf
    except FrozenSeries:
        return math.inf
