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
from .streams import Moments, Piece, Walk, autocovariance, moments

S = 2.0  # tau_exp / tau_int in Wolff's rule; 1 to 2 is usual, pyerrors takes 2 as well
SOKAL = 5.0  # Sokal's window in tau_int, which leaves out exp(-5) of one exponential
ENOUGH = 100  # samples wanted per tau_int; emcee's rule (50 times its own, doubled tau)
LAGS = 256  # looked at first, eight times as many where no window closes


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
    unknown and left out.

    Raises `InputError` for a bad shape or NaN, `FrozenSeries` where no chain ever moves.
    """
    walk, shape = _in_memory(series)
    gamma = autocovariance(walk, shape.mean, shape.steps, shape.steps - 1)[0]
    window = _window(gamma[: shape.steps // 2 + 1], shape.n)
    if window is not None:
        gamma = unbiased(gamma, window, shape.n)
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
    return mean(series).tau


def mean(series) -> Estimate:
    """Mean of a series `[chains, steps]`, error `sigma sqrt(2 tau_int / N)`. Raises what `tau_int` raises."""
    walk, shape = _in_memory(series)
    found = means(walk, shape.mean, shape)[0]
    if isinstance(found, StatisticsError):
        raise found
    return found


def _in_memory(series) -> tuple[Walk, Moments]:
    x = np.asarray(series, dtype=np.float64)
    if x.ndim != 2 or x.size == 0:
        raise InputError(f"series of shape {x.shape}; expected [chains, steps], one chain as [1, steps]")

    def walk():
        yield Piece(0, 0, x[None])

    shape = moments(walk)
    shape.check(0)
    return walk, shape


def means(
    walk: Walk, mean: np.ndarray, shape: Moments, most: int | None = None
) -> list[Estimate | StatisticsError]:
    """`mean(series)` of each of K columns, or why there is none, from pieces walked as often as it takes.

    `mean` `[K]`: the columns' means; `shape`: says how many samples, chains and steps there are. Lags up to `LAGS` are
    looked at first, then eight times as many for the columns where Wolff's window has not closed, up to half a chain,
    or to `most` where that is less: then windows count as not closed beyond it.
    """
    found: list[Estimate | StatisticsError | None] = [None] * len(mean)
    last = shape.steps // 2 if most is None else min(most, shape.steps // 2)
    lags = min(LAGS, last)
    while undecided := [k for k, one in enumerate(found) if one is None]:
        for k, gamma in zip(undecided, autocovariance(walk, mean, shape.steps, lags, undecided)):
            if lags == last or _closes(gamma, shape.n, sokal=False):
                try:
                    found[k] = _estimate(gamma, float(mean[k]), shape)
                except StatisticsError as error:
                    found[k] = error
        lags = min(8 * lags, last)
    return found  # type: ignore[return-value]


def _closes(gamma: np.ndarray, n: int, sokal: bool) -> int | None:
    """The first W = 1, 2, ... at which the window closes, None where it does not within gamma."""
    W = np.arange(1, len(gamma))
    tau = np.maximum(0.5 + np.cumsum(np.abs(gamma[W] / gamma[0])), 0.5 + 1e-12)
    tau_exp = S / np.log((2 * tau + 1) / (2 * tau - 1))
    closed = W >= SOKAL * tau if sokal else np.exp(-W / tau_exp) < tau_exp / np.sqrt(W * n)
    return int(W[np.argmax(closed)]) if closed.any() else None


def _window(gamma: np.ndarray, n: int) -> int | None:
    """Wolff's window if it closes within `gamma`, else Sokal's, None where neither does."""
    return _closes(gamma, n, sokal=False) or _closes(gamma, n, sokal=True)


def unbiased(gamma: np.ndarray, window: int, n: int) -> np.ndarray:
    """Gamma with the variance of the mean of n samples added back, `(Gamma(0) + 2 sum_{t<=W} Gamma(t)) / n`."""
    return gamma + (gamma[0] + 2 * gamma[1 : window + 1].sum()) / n


def _estimate(gamma: np.ndarray, mean: float, shape: Moments) -> Estimate:
    """From Gamma(0) ... Gamma(lags), not yet corrected for the mean's own variance."""
    chains, steps, n = shape.chains, shape.steps, shape.n
    if not gamma[0] > 0:
        raise FrozenSeries("a series without fluctuations has no autocorrelation time")
    window = _window(gamma, n)
    if window is None:
        seen, lags = 0.5 + (gamma[1:] / gamma[0]).sum(), len(gamma) - 1
        where = "half a chain" if lags == steps // 2 else f"{lags} steps, the most that are looked at"
        raise TooFewSamples(
            f"{chains} chains of {steps} steps: the autocorrelation has not died out within {where} "
            f"(sum so far {seen:.3g} steps), or chains sit in different places; expected chains of some 20 "
            f"tau_int, at least {max(2 * steps, int(40 * abs(seen)))} steps"
        )
    gamma = unbiased(gamma, window, n)
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
    found = TauInt(tau, float(tau * np.sqrt(2 * (2 * window + 1) / n)), window, chains, steps)
    return Estimate(mean, float(np.sqrt(gamma[0] * 2 * tau / n)), found)
