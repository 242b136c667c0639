"""What log-weights `log w = log target - log proposal` say of an integral and of unweighting, piece by piece.

A draw is kept with probability `min(1, w / w_max)`; a kept one carries `max(1, w / w_max)`, so that no w_max biases
anything. With `w_max = w_q`, the q quantile of all weights, zeros included, the efficiency is

    eff = < min(w, w_q) > / w_q,       overweight share = sum_i max(0, w_i - w_q) / sum_i w_i.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError, StatisticsError
from .weights import WeightSummary, WeightSums, check_log_w

GROUPS = 32  # of the jackknife: errors are known to 1 / sqrt(2 * 32), and 15 % too large, w_q being no smooth function
FEWEST = 16


@dataclass(frozen=True)
class Unweighting:
    """Unweighting of N draws at a quantile of their weights.

    `log_max`: log w_q; `efficiency`: kept over drawn; `overweight`: share of the weight above w_q that kept draws carry;
    `survival`: share of draws of non-zero weight. Errors are one sigma; those of `efficiency` and `overweight` know of
    the fluctuations of w_q.
    """

    quantile: float
    log_max: float
    efficiency: float
    efficiency_error: float
    overweight: float
    overweight_error: float
    survival: float
    survival_error: float


class WeightTail:
    """The largest of N log-weights, fed in pieces: `Unweighting` at `quantile`, with some `2 (1 - quantile) N` in memory.

    N is fixed beforehand, so that the quantile is an order statistic and no estimate: `w_q` is number
    `ceil(quantile (N - 1))` of the sorted weights from 0, numpy's quantile by method "higher". Errors are by the jackknife
    over `GROUPS` stretches of consecutive draws, w_q being found anew without each of them.

    Raises `InputError` for a quantile outside (0, 1] and fewer than 16 draws.
    """

    def __init__(self, n: int, quantile: float = 0.999):
        if not 0 < quantile <= 1:
            raise InputError(f"quantile = {quantile}; expected 0 < quantile <= 1")
        if n < FEWEST:
            raise InputError(f"unweighting of {n} draws; expected at least {FEWEST}")
        self.n, self.quantile, self.fed = n, quantile, 0
        self.groups = min(GROUPS, n // 2)
        # twice what is above the quantile, since a group left out takes some of that along
        self._size = min(n, 2 * self._above(n) + 64)
        self._top, self._group = np.empty(0), np.empty(0, dtype=np.int64)
        self._scale = -math.inf  # log of what `_sums` are in units of
        self._sums, self._counts = np.zeros(self.groups), np.zeros(self.groups, dtype=np.int64)
        self._nonzero = 0

    def _above(self, n: int) -> int:
        """How many of n weights are the quantile or above it."""
        return n - int(np.ceil((n - 1) * self.quantile))

    def feed(self, log_w: np.ndarray) -> None:
        """Add log-weights `[n]`. Raises like `check_log_w`, and `InputError` for more than N in all."""
        log_w = check_log_w(log_w)
        if self.fed + len(log_w) > self.n:
            raise InputError(f"{self.fed + len(log_w)} log-weights; expected {self.n}")
        group = (self.fed + np.arange(len(log_w))) * self.groups // self.n
        self.fed += len(log_w)
        self._nonzero += int(np.count_nonzero(log_w > -np.inf))
        self._counts += np.bincount(group, minlength=self.groups)
        scale = max(self._scale, log_w.max(initial=-np.inf))
        if np.isfinite(scale):
            old = math.exp(self._scale - scale)
            new = np.bincount(group, np.exp(log_w - scale), minlength=self.groups)
            self._scale, self._sums = scale, old * self._sums + new
        top, group = np.concatenate([self._top, log_w]), np.concatenate([self._group, group])
        if len(top) > self._size:
            chosen = np.argpartition(top, len(top) - self._size)[-self._size :]
            top, group = top[chosen], group[chosen]
        self._top, self._group = top, group

    def summary(self) -> Unweighting:
        """Raises `StatisticsError` if w_q is zero, as where fewer than `1 - quantile` of the draws have a weight, and
        `InputError` if fewer than N were fed."""
        if self.fed < self.n:
            raise InputError(f"{self.fed} log-weights; expected {self.n}")
        order = np.argsort(-self._top, kind="stable")
        top, group = self._top[order], self._group[order]
        efficiency, overweight, log_max = self._ratios(top, float(self._sums.sum()), self.n)
        left = np.array(
            [
                self._ratios(top[group != g], float(self._sums.sum() - own), self.n - int(count))[:2]
                for g, (own, count) in enumerate(zip(self._sums, self._counts))
            ]
        )
        errors = np.sqrt((self.groups - 1) * np.square(left - left.mean(0)).mean(0))
        survival = self._nonzero / self.n
        return Unweighting(
            self.quantile,
            log_max,
            efficiency,
            float(errors[0]),
            overweight,
            float(errors[1]),
            survival,
            math.sqrt(survival * (1 - survival) / self.n),
        )

    def _ratios(self, top: np.ndarray, total: float, n: int) -> tuple[float, float, float]:
        """Efficiency, overweight share and log w_q of n weights of sum `total`, the largest of which are `top`."""
        above = top[: self._above(n)]
        log_max = float(above[-1])
        if np.isneginf(log_max):
            raise StatisticsError(
                f"the {self.quantile} quantile of the weights is zero: {self._nonzero} of {self.n} draws have a weight; "
                "choose a quantile nearer to 1, or train a better proposal"
            )
        w_max = math.exp(log_max - self._scale)
        excess = float((np.exp(above - self._scale) - w_max).sum())
        return (total - excess) / (n * w_max), excess / total, log_max


@dataclass(frozen=True)
class Step:
    """Z and its error from the first `blocks` blocks, `draws` draws."""

    blocks: int
    draws: int
    value: float
    error: float


@dataclass(frozen=True)
class Integration:
    """`Z = <w>` over all blocks, and how it came about.

    `steps`: after 1, 2, 4, ... blocks and after all. Blocks are combined by their number of draws: weights of `1 / error^2`
    would bias, since a block that misses the tail is low and believes it is precise. `chi2`, `dof`, `p`: of the blocks'
    values around Z, `sum_b n_b (Z_b - Z)^2 / var(w)`, with the variance of all draws. `unweighting`: None where there is
    none, for the reason `problem`.
    """

    weights: WeightSummary
    steps: list[Step]
    chi2: float
    dof: int
    unweighting: Unweighting | None
    problem: str = ""

    @property
    def p(self) -> float:
        return chi2_probability(self.chi2, self.dof)


def chi2_probability(chi2: float, dof: int) -> float:
    """Probability of a chi2 at least as large with `dof` degrees of freedom; 1 for none."""
    if dof < 1:
        return 1.0
    half = torch.tensor([dof / 2, chi2 / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def integrate(blocks: Iterable[np.ndarray], n: int, quantile: float = 0.999) -> Integration:
    """From the log-weights of one block after another, n in all, in constant memory.

    Raises `StatisticsError` if every weight is zero or there are fewer than two, `NumericalError` for NaN or +inf.
    """
    sums, tail, means = WeightSums(), WeightTail(n, quantile) if n >= FEWEST else None, WeightSums()
    steps: list[Step] = []
    number = 0
    for number, log_w in enumerate(blocks, start=1):
        sums.feed(log_w)
        if tail is not None:
            tail.feed(log_w)
        own = WeightSums()
        own.feed(log_w)
        means.feed(np.array([own.log_max + (math.log(own.m1) if own.m1 > 0 else 0.0)]))
        if number & (number - 1) == 0 and sums.n > 1 and np.isfinite(sums.log_max):
            steps.append(_step(number, sums))
    weights = sums.summary()
    if steps[-1].blocks < number:
        steps.append(_step(number, sums))
    chi2, dof = 0.0, number - 1
    if dof and sums.M2 > 0:
        # spread of the blocks' means over that of single draws, both in units of the mean
        chi2 = n / number * (means.M2 / means.m1**2) / (sums.M2 / (sums.n * sums.m1**2))
    unweighting, problem = None, f"{n} draws; expected at least {FEWEST}"
    try:
        unweighting, problem = (tail.summary(), "") if tail is not None else (None, problem)
    except StatisticsError as error:
        problem = str(error)
    return Integration(weights, steps, chi2, dof, unweighting, problem)


def _step(blocks: int, sums: WeightSums) -> Step:
    found = sums.summary()
    return Step(blocks, sums.n, found.z, found.z_error)
