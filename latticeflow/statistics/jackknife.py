"""The jackknife: errors of functions of means, such as chi2, a Binder cumulant or a pole mass."""

from collections.abc import Callable, Mapping

import numpy as np

from ..errors import FrozenSeries, InputError, TooFewSamples
from .autocorrelation import tau_int

Function = Callable[[dict[str, np.ndarray]], np.ndarray | float]

BINS = 128
FEWEST = 16  # with B bins the error itself is known to 1 / sqrt(2 B)
BIN_IN_TAU = 10  # bins of n tau_int make the error too small by about 1 / (2 n), here 5 %


class Bins:
    """Sums of several series in bins, fed piece by piece, and the jackknife from them.

    For `chains` chains of `steps` steps. With at least `bins` chains a bin is a group of whole chains, right for any
    autocorrelation. With fewer, every chain is cut into segments of at least 10 `tau`, so that there may be fewer bins
    than asked for. `tau`: the largest tau_int of the series, in steps, taken as 1/2 where it is less: an alternating series
    has correlations longer than its tau_int. Not needed with that many chains. Chains may be of unequal length: `steps`
    is that of the longest, so that no bin is longer than others.

    Raises `InputError` for fewer than 16 bins asked for, `TooFewSamples` where there would be fewer.
    """

    def __init__(self, chains: int, steps: int, bins: int = BINS, tau: float | None = None):
        if bins < FEWEST:
            raise InputError(f"jackknife with {bins} bins; expected at least {FEWEST}")
        segments, groups = 1, min(chains, bins)
        if chains < bins:
            if tau is None:
                raise InputError(f"jackknife of {chains} chains; bins of {bins} need their tau_int")
            tau = max(tau, 0.5)
            segments = max(1, min(-(-bins // chains), int(steps / (BIN_IN_TAU * tau))))
        self.count = groups * segments
        if self.count < FEWEST:
            raise TooFewSamples(
                f"jackknife of {chains} chains of {steps} steps: {self.count} bins of at least {BIN_IN_TAU} tau_int, "
                f"tau_int = {tau:.3g}; expected at least {FEWEST} bins: draw chains of at least "
                f"{int(np.ceil(FEWEST / chains) * BIN_IN_TAU * tau) + 1} steps"
            )
        # where each group of chains and each segment begins
        self._chains = np.linspace(0, chains, groups, endpoint=False).astype(int)
        self._steps = np.linspace(0, steps, segments, endpoint=False).astype(int)
        self.weight = np.zeros((groups, segments))
        self.sums: dict[str, np.ndarray] = {}

    def feed(
        self, chain: int, step: int, arrays: Mapping[str, np.ndarray], w: np.ndarray | None = None
    ) -> None:
        """Add steps `step, ...` of chains `chain, ...`: arrays `[C, n, ...]`, weights `[C, n]` (default 1)."""
        C, n = next(iter(arrays.values())).shape[:2]
        at: list[slice] = []
        first: list[np.ndarray] = []
        for begins, low, size in ((self._chains, chain, C), (self._steps, step, n)):
            bins = slice(np.searchsorted(begins, low, "right") - 1, np.searchsorted(begins, low + size))
            at.append(bins)
            first.append(np.maximum(begins[bins] - low, 0))

        def bin_sums(a: np.ndarray) -> np.ndarray:
            return np.add.reduceat(np.add.reduceat(a, first[1], axis=1), first[0], axis=0)

        w = np.ones((C, n)) if w is None else w
        self.weight[*at] += bin_sums(w)
        for name, a in arrays.items():
            if name not in self.sums:
                self.sums[name] = np.zeros((*self.weight.shape, *a.shape[2:]))
            self.sums[name][*at] += bin_sums(a * _spread(w, a))

    def jackknife(self, f: Function) -> tuple[np.ndarray, np.ndarray]:
        """`f(means)` and its error, as `jackknife` has them. `TooFewSamples` where one bin has all the weight."""
        w = self.weight.reshape(self.count)
        w_left = w.sum() - w
        if (w_left <= 0).any():
            raise TooFewSamples(
                f"jackknife: one of {self.count} bins holds all the weight; nothing else to compare"
            )
        value, left = {}, {}
        for name, binned in self.sums.items():
            sums = binned.reshape(self.count, *binned.shape[2:])
            total = sums.sum(axis=0)
            value[name] = total / w.sum()
            left[name] = (total - sums) / _spread(w_left, sums)
        f_left = np.array([f({name: means[b] for name, means in left.items()}) for b in range(self.count)])
        error = np.sqrt((self.count - 1) * np.square(f_left - f_left.mean(axis=0)).mean(axis=0))
        return np.asarray(f(value), dtype=np.float64), error


def jackknife(
    f: Function,
    series: Mapping[str, np.ndarray],
    bins: int = BINS,
    weights: np.ndarray | None = None,
    tau: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`f(means)` and its error, f being a function of the (weighted) means of several series.

    `error^2 = (B - 1)/B sum_b ( f_b - <f_b> )^2`, f_b from the means without bin b; the bins are those of `Bins`.

    series: arrays `[chains, steps, ...]`; f takes a dict of their means, each `[...]`, and returns a number
    or an array; value and error have its shape (0-dimensional for a number). The bias of `f(means)`, of order
    1/N, is left in. weights: `[chains, steps]`, not negative; the means are then `sum w x / sum w`.

    tau: the largest tau_int of the series, in steps (1/2 for independent draws); measured where it is None
    and needed. Chains must not know of one another: average over an emcee ensemble's walkers first.

    Raises `InputError` for shapes that do not match, NaN or bad weights, `TooFewSamples` for fewer than 16
    bins, and what `tau_int` raises.
    """
    arrays, w = _checked(series, weights)
    chains, steps = w.shape
    if tau is None and FEWEST <= bins and chains < bins:
        tau = _largest_tau(arrays, w)
    sums = Bins(chains, steps, bins, tau)
    sums.feed(0, 0, arrays, w)
    return sums.jackknife(f)


def _checked(series, weights) -> tuple[dict[str, np.ndarray], np.ndarray]:
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
