"""The jackknife: errors of functions of means, such as chi2, a Binder cumulant or a pole mass."""

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import FrozenSeries, InputError, TooFewSamples
from .autocorrelation import tau_int

FEWEST = 16  # with B bins the error itself is known to 1 / sqrt(2 B)
BIN_IN_TAU = 10  # bins of n tau_int make the error too small by about 1 / (2 n), here 5 %


def jackknife(
    f: Callable[[dict[str, np.ndarray]], np.ndarray | float],
    series: Mapping[str, np.ndarray],
    bins: int = 128,
    weights: np.ndarray | None = None,
    tau: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`f(means)` and its error, f being a function of the (weighted) means of several series.

    `error^2 = (B - 1)/B sum_b ( f_b - <f_b> )^2`, f_b from the means without bin b.

    series: arrays `[chains, steps, ...]`; f takes a dict of their means, each `[...]`, and returns a number
    or an array; value and error have its shape (0-dimensional for a number). The bias of `f(means)`, of order
    1/N, is left in. weights: `[chains, steps]`, not negative; the means are then `sum w x / sum w`.

    With at least `bins` chains a bin is a group of whole chains, right for any autocorrelation. With fewer,
    every chain is cut into segments of at least 10 tau_int, so that there may be fewer bins than asked for.
    tau: the largest tau_int of the series, in steps (1/2 for independent draws); measured where it is None
    and needed. Chains must not know of one another: average over an emcee ensemble's walkers first.

    Raises `InputError` for shapes that do not match, NaN or bad weights, `TooFewSamples` for fewer than 16
    bins, and what `tau_int` raises.
    """
    arrays, w = _checked(series, weights, bins)
    chains, steps = w.shape
    segments = 1
    if chains < bins:
        tau = _largest_tau(arrays, w) if tau is None else tau
        segments = max(1, min(-(-bins // chains), int(steps / (BIN_IN_TAU * tau))))
    count = min(chains, bins) * segments
    if count < FEWEST:
        raise TooFewSamples(
            f"jackknife of {chains} chains of {steps} steps: {count} bins of at least {BIN_IN_TAU} tau_int, "
            f"tau_int = {tau:.3g}; expected at least {FEWEST} bins: draw chains of at least "
            f"{int(np.ceil(FEWEST / chains) * BIN_IN_TAU * tau) + 1} steps"
        )

    def bin_sums(a: np.ndarray) -> np.ndarray:
        first = np.linspace(0, steps, segments, endpoint=False).astype(int)
        by_segment = np.add.reduceat(a, first, axis=1)
        first = np.linspace(0, chains, count // segments, endpoint=False).astype(int)
        return np.add.reduceat(by_segment, first, axis=0).reshape(count, *a.shape[2:])

    w_bins = bin_sums(w)
    w_left = w_bins.sum() - w_bins
    if (w_left <= 0).any():
        raise TooFewSamples(f"jackknife: one of {count} bins holds all the weight; nothing else to compare")
    value, left = {}, {}
    for name, a in arrays.items():
        sums = bin_sums(a * _spread(w, a))
        total = sums.sum(axis=0)
        value[name] = total / w_bins.sum()
        left[name] = (total - sums) / _spread(w_left, sums)
    f_left = np.array([f({name: means[b] for name, means in left.items()}) for b in range(count)])
    error = np.sqrt((count - 1) * np.square(f_left - f_left.mean(axis=0)).mean(axis=0))
    return np.asarray(f(value), dtype=np.float64), error


def _checked(series, weights, bins) -> tuple[dict[str, np.ndarray], np.ndarray]:
    if bins < FEWEST:
        raise InputError(f"jackknife with {bins} bins; expected at least {FEWEST}")
    arrays = {name: np.asarray(a, dtype=np.float64) for name, a in series.items()}
    if not arrays:
        raise InputError("jackknife of no series; expected at least one")
    shape = next(iter(arrays.values())).shape[:2] if weights is None else np.shape(weights)
    for name, a in arrays.items():
        if a.ndim < 2 or a.shape[:2] != shape or len(shape) != 2 or a.size == 0:
            raise InputError(f"jackknife: series '{name}' of shape {a.shape}; expected [chains, steps, ...], "
                             f"with {list(shape)} in front")  # fmt: skip
        if not np.isfinite(a).all():
            raise InputError(f"jackknife: series '{name}' holds values that are not finite")
    w = np.ones(shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0:
        raise InputError("jackknife: weights must be finite, not negative, and not all zero")
    return arrays, w


def _spread(w: np.ndarray, a: np.ndarray) -> np.ndarray:
    """w with axes of length 1 appended, to multiply a."""
    return w.reshape(w.shape + (1,) * (a.ndim - w.ndim))


def _largest_tau(arrays: dict[str, np.ndarray], w: np.ndarray) -> float:
    """The largest tau_int of any component of `w (x - mean)`, which errors of weighted means come from."""
    found = []
    for a in arrays.values():
        deviation = a - (a * _spread(w, a)).sum((0, 1)) / w.sum()
        for component in (deviation * _spread(w, a)).reshape(*w.shape, -1).transpose(2, 0, 1):
            try:
                found.append(tau_int(component).value)
            except FrozenSeries:  # a component without fluctuations adds no error
                continue
    if not found:
        raise FrozenSeries("jackknife: every series is constant; no error can be known")
    return max(found)
