"""Autocorrelation functions, integrated autocorrelation times and means with honest errors.

Convention: `tau_int = 1/2 + sum_{t=1}^{W} rho(t)`, so that independent draws give 1/2. emcee's
`integrated_time` is `1 + 2 sum rho`, twice as large.

A series has shape `[chains, steps]`: chains that do not know of one another and share one mean. Interacting
chains (the walkers of one emcee ensemble) are no such thing: average over the walkers of a stream first, and
give that average as one chain.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import FrozenSeries, InputError, StatisticsError, TooFewSamples
from .notation import bracket

S = 2.0  # tau_exp / tau_int in Wolff's rule; 1 to 2 is usual, pyerrors takes 2 as well
SOKAL = 5.0  # Sokal's window in tau_int, which leaves out exp(-5) of one exponential
ENOUGH = 100  # samples wanted per tau_int; emcee's rule (50 times its own, doubled tau)


@dataclass(frozen=True)
class TauInt:
    """tau_int in units of steps, its error, the window W, and how many chains and steps it is from."""

    value: float
    error: float
    window: int
    chains: int
    steps: int

    def __str__(self) -> str:
        return f"{self.value:.3g}({self.error:.2g})"


@dataclass(frozen=True)
class Estimate:
    """A mean, its error of one sigma, and the autocorrelation time that went into it."""

    value: float
    error: float
    tau: TauInt

    def __str__(self) -> str:
        return f"{bracket(self.value, self.error)}, tau_int {bracket(self.tau.value, self.tau.error)}"


def autocorrelation(series) -> np.ndarray:
    """`rho(t) = Gamma(t) / Gamma(0)`, float64 `[steps]`, of a series `[chains, steps]`.

    `Gamma(t) = sum_c sum_i (x_c(i) - m) (x_c(i+t) - m) / (chains (steps - t))`, m the mean over all chains
    (Wolff, hep-lat/0306017, with replicas), so a chain counts by its variance, and chains that sit in
    different places show as a rho that does not fall. Taking m from the same data lowers every Gamma(t) by
    the mean's variance `2 tau_int Gamma(0) / (chains steps)`, which is added back (eq. 49). Subtracting each
    chain's own mean would make that bias `chains` times as large. Where no window closes the correction is
    unknown and left out. The transforms are emcee's `function_1d`.

    Raises `InputError` for a bad shape or NaN, `FrozenSeries` where no chain ever moves.
    """
    x = _checked(series)
    gamma = _covariance(x)
    window = _window(gamma, x.size)
    if window is not None:
        gamma = _unbiased(gamma, window, x.size)
    return gamma / gamma[0]


def tau_int(series) -> TauInt:
    """Integrated autocorrelation time of a series `[chains, steps]`, in steps; independent draws give 1/2.

    `tau = 1/2 + sum_{t=1}^{W} rho(t)` with rho of `autocorrelation` and W the first window where
    `exp(-W/tau_exp) < tau_exp / sqrt(W N)`, `tau_exp = S / log((2 tau + 1) / (2 tau - 1))`, S = 2,
    N = chains * steps (automatic windowing of hep-lat/0306017). That W grows with N; where it passes half a
    chain, as with many short chains, W is the first with `W >= 5 tau` (Madras and Sokal). The error is
    `tau sqrt(2 (2W + 1) / N)`. The window's own tau sums |rho|: for rho >= 0 the same, and it does not close
    at once on an alternating chain.

    Raises `InputError` for a bad shape or NaN; `FrozenSeries` where no chain ever moves; `TooFewSamples`
    where neither window closes within half a chain, or N < 100 max(tau, 1/2); `StatisticsError` where the
    sum is not positive.
    """
    return _estimate(_checked(series))[0]


def mean(series) -> Estimate:
    """Mean of a series `[chains, steps]`, error `sigma sqrt(2 tau_int / N)`. Raises what `tau_int` raises."""
    x = _checked(series)
    tau, variance = _estimate(x)
    return Estimate(float(x.mean()), float(np.sqrt(variance * 2 * tau.value / x.size)), tau)


def _checked(series) -> np.ndarray:
    x = np.asarray(series, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise InputError(f"series of shape {x.shape}; expected [chains, steps], one chain as [1, steps]")
    if not np.isfinite(x).all():
        raise InputError(f"series holds {np.count_nonzero(~np.isfinite(x))} values that are not finite")
    if x.shape[1] < 4:
        raise TooFewSamples(
            f"chains of {x.shape[1]} steps; tau_int needs at least 4 and some 20 tau_int: draw longer chains"
        )
    if not _moves(x).any():
        raise FrozenSeries(
            f"no chain of {x.shape[0]} ever moves in {x.shape[1]} steps (first value {x[0, 0]:.6g}): "
            "a constant series has no autocorrelation time, and its error cannot be known"
        )
    return x


def _moves(x: np.ndarray) -> np.ndarray:
    """Which chains change by more than float64's rounding; a topological charge is a sum of angles."""
    return np.ptp(x, axis=1) > 1e-13 * np.abs(x).max()


def _covariance(x: np.ndarray) -> np.ndarray:
    """Gamma(t) about the mean of all chains, `[steps]`, not yet corrected for that mean's own variance."""
    from emcee.autocorr import (
        function_1d,
    )  # here: emcee loads scipy.stats, a third of the start of every rank

    chains, steps = x.shape
    total = np.zeros(steps)
    for chain, shift, moves in zip(x, x.mean(axis=1) - x.mean(), _moves(x)):
        centred = chain - chain.mean()
        if moves:
            total += function_1d(chain) * (centred @ centred)
        # function_1d subtracts the chain's own mean; with y = centred + shift instead,
        # sum_i y(i) y(i+t) has two partial sums of `centred`, over i < steps - t and over i >= t, more.
        partial = np.cumsum(centred)
        both = partial[::-1] + (partial[-1] - np.concatenate([[0.0], partial[:-1]]))
        total += shift * both + shift**2 * (steps - np.arange(steps))
    return total / (chains * (steps - np.arange(steps)))


def _window(gamma: np.ndarray, n: int) -> int | None:
    """Wolff's window if it closes within half a chain, else Sokal's, None where neither does."""
    W = np.arange(1, len(gamma) // 2 + 1)
    tau = np.maximum(0.5 + np.cumsum(np.abs(gamma[W] / gamma[0])), 0.5 + 1e-12)
    tau_exp = S / np.log((2 * tau + 1) / (2 * tau - 1))
    for closed in (np.exp(-W / tau_exp) < tau_exp / np.sqrt(W * n), W >= SOKAL * tau):
        if closed.any():
            return int(W[np.argmax(closed)])
    return None


def _unbiased(gamma: np.ndarray, window: int, n: int) -> np.ndarray:
    return gamma + (gamma[0] + 2 * gamma[1 : window + 1].sum()) / n


def _estimate(x: np.ndarray) -> tuple[TauInt, float]:
    """tau_int and the variance of one sample."""
    chains, steps = x.shape
    n = x.size
    gamma = _covariance(x)
    window = _window(gamma, n)
    if window is None:
        seen = 0.5 + (gamma[1 : steps // 2 + 1] / gamma[0]).sum()
        raise TooFewSamples(
            f"{chains} chains of {steps} steps: the autocorrelation has not died out within half a chain "
            f"(sum so far {seen:.3g} steps), or chains sit in different places; expected chains of some 20 "
            f"tau_int, at least {max(2 * steps, int(40 * abs(seen)))} steps"
        )
    gamma = _unbiased(gamma, window, n)
    tau = float(0.5 + gamma[1 : window + 1].sum() / gamma[0])
    needed = int(np.ceil(ENOUGH * max(tau, 0.5)))
    if n < needed:
        raise TooFewSamples(
            f"{n} samples ({chains} chains of {steps} steps) with tau_int about {tau:.3g}: expected at least "
            f"{needed} samples, {ENOUGH} times the larger of tau_int and 1/2"
        )
    if tau <= 0:
        raise StatisticsError(
            f"tau_int = {tau:.3g} from {chains} chains of {steps} steps is not positive: the series "
            "alternates, and its error cannot be told; change the trajectory length or thin by an odd number"
        )
    error = tau * np.sqrt(2 * (2 * window + 1) / n)
    return TauInt(tau, float(error), window, chains, steps), float(gamma[0])
