"""Sums over Monte Carlo series that are fed piece by piece: moments and autocovariances of K columns at once.

A series is a set of chains. A `Piece` is a stretch of some of them: the chains from number `chain` on, from step `step`
on, `x` `[K, C, n]`. The pieces of a chain follow one another, from step 0, and the chains of one piece stay together; a
piece with step 0 begins new chains. An array `[K, C, n]` held in memory is a series of one piece.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import FrozenSeries, InputError, TooFewSamples


@dataclass(frozen=True)
class Piece:
    """Steps `step, step + 1, ...` of chains `chain, chain + 1, ...`: x float64 `[K, C, n]`."""

    chain: int
    step: int
    x: np.ndarray


Walk = Callable[[], Iterator[Piece]]  # the pieces of a series from its beginning, as often as called


class Moments:
    """Of K columns: mean, variance, lowest and highest value, and whether any chain ever moves.

    `chains`; `steps` of the shortest chain; `n` samples of all chains. Mean and sum of squares are merged piece by piece
    (Chan, Golub and LeVeque 1983), so that nothing is lost where the mean is large.
    """

    def __init__(self) -> None:
        self.n = self.chains = 0
        self._lengths: dict[int, int] = {}  # steps so far, by the first chain of each group

    def feed(self, piece: Piece) -> None:
        """Raises `InputError` for values that are not finite."""
        x = piece.x
        K, C, n = x.shape
        if not np.isfinite(x).all():
            raise InputError(f"series holds {np.count_nonzero(~np.isfinite(x))} values that are not finite")
        low, high, mean = x.min(axis=2), x.max(axis=2), x.mean(axis=(1, 2))
        squares = np.square(x - mean[:, None, None]).sum(axis=(1, 2))
        if not self.n:
            self.first, self.mean, self._squares = x[:, 0, 0], np.zeros(K), np.zeros(K)
            self.low, self.high, self._range = low.min(axis=1), high.max(axis=1), np.zeros(K)
        if piece.step == 0:
            self._low, self._high = low, high
            self.chains += C
        self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        self._range = np.maximum(self._range, (self._high - self._low).max(axis=1))
        self.low, self.high = np.minimum(self.low, low.min(axis=1)), np.maximum(self.high, high.max(axis=1))
        self._lengths[piece.chain] = piece.step + n
        m, self.n = C * n, self.n + C * n
        delta = mean - self.mean
        self._squares += squares + delta**2 * (m * (self.n - m) / self.n)
        self.mean = self.mean + delta * (m / self.n)

    @property
    def steps(self) -> int:
        return min(self._lengths.values())

    @property
    def longest(self) -> int:
        """Steps of the longest chain."""
        return max(self._lengths.values())

    @property
    def variance(self) -> np.ndarray:
        """`sum (x - mean)^2 / n`, `[K]`."""
        return self._squares / self.n

    @property
    def moves(self) -> np.ndarray:
        """Whether any chain changes by more than float64's rounding, `[K]`; a topological charge is a sum of angles."""
        return self._range > 1e-13 * np.maximum(np.abs(self.low), np.abs(self.high))

    def check(self, k: int) -> None:
        """Raises `TooFewSamples` below 4 steps, `FrozenSeries` where no chain of column k ever moves."""
        if self.steps < 4:
            raise TooFewSamples(
                f"chains of {self.steps} steps; tau_int needs at least 4 and some 20 tau_int: draw longer chains"
            )
        if not self.moves[k]:
            raise FrozenSeries(
                f"no chain of {self.chains} ever moves in {self.steps} steps (first value {self.first[k]:.6g}): "
                "a constant series has no autocorrelation time, and its error cannot be known"
            )


def moments(walk: Walk) -> Moments:
    found = Moments()
    for piece in walk():
        found.feed(piece)
    return found


def autocovariance(walk: Walk, mean: np.ndarray, steps: int, lags: int, columns=None) -> np.ndarray:
    """Gamma(t), t = 0 ... lags, of K columns (or of those chosen) about their `mean` `[K]`: `[K, lags + 1]`.

    `Gamma(t) = sum_c sum_i (x_c(i) - m) (x_c(i+t) - m) / pairs(t)`, `pairs(t) = sum_c (steps_c - t)`; 0 where no chain
    is that long. By FFT in stretches of s steps with the last `lags` before them: the cross-spectra
    of all stretches are summed, so that memory is that of one stretch, at most 8 K C max(lags, 256) numbers.
    `steps`: of a chain, about; stretches are no longer.
    """
    chosen = np.arange(len(mean)) if columns is None else np.asarray(columns)
    mean = mean[chosen, None, None]
    # of one transform: history, then stretch
    size = 1 << int(np.ceil(np.log2(min(lags + steps, 4 * max(lags, 256)))))
    spectrum = np.zeros((len(chosen), size // 2 + 1), dtype=np.complex128)
    lengths: dict[int, tuple[int, int]] = {}  # chains and steps, by the first chain
    held = np.empty((len(chosen), 0, size))
    end = (
        lags  # held[..., :lags] is history, zero at the start of a chain; held[..., lags:end] is to be added
    )

    def add() -> None:
        """`sum_{i in stretch} y(i) y(i - t)`, as product of the stretch's and of all held numbers' transforms."""
        held[..., end:] = 0
        for column, y in zip(spectrum, held):
            everything = np.fft.rfft(y)
            y[:, :lags], history = 0, y[:, :lags].copy()
            column += np.einsum("cf,cf->f", np.conj(everything), np.fft.rfft(y))
            y[:, :lags] = history

    for piece in walk():
        y = piece.x[chosen] - mean
        C, n = y.shape[1:]
        if piece.step == 0:
            if end > lags:
                add()
            held, end = np.zeros((len(chosen), C, size)), lags
        lengths[piece.chain] = (C, piece.step + n)
        at = 0
        while at < n:
            part = min(n - at, size - end)
            held[..., end : end + part] = y[..., at : at + part]
            at, end = at + part, end + part
            if end == size:
                add()
                held[..., :lags], end = held[..., size - lags :].copy(), lags
    if end > lags:
        add()
    t = np.arange(lags + 1)
    pairs = sum(C * np.maximum(0, length - t) for C, length in lengths.values())
    return np.fft.irfft(spectrum, size)[:, : lags + 1] / np.maximum(pairs, 1)
