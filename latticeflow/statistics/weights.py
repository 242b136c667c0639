"""Estimates from log-weights `log w = log target - log proposal`, in log space and float64.

With independent draws from the proposal: `Z = <w>`, `ESS = (sum w)^2 / (N sum w^2)`.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, NumericalError, StatisticsError
from .notation import bracket


@dataclass(frozen=True)
class WeightSummary:
    """What a set of N log-weights says of the proposal.

    `ess`: effective sample size over N, between 1/N and 1; `log_z`: log <w>, the log of the target's integral
    for a normalised proposal; `largest_share`: largest weight over the sum. Errors are one sigma, by
    the delta method.
    """

    n: int
    ess: float
    ess_error: float
    log_z: float
    log_z_error: float
    largest_share: float

    def __str__(self) -> str:
        return f"ESS {bracket(self.ess, self.ess_error)} at N = {self.n:,}"


def check_log_w(log_w: np.ndarray) -> np.ndarray:
    """Log-weights as float64 `[N]`.

    Raises `NumericalError` for NaN or +inf, naming the first; `InputError` for another number of dimensions.
    """
    log_w = np.asarray(log_w, dtype=np.float64)
    if log_w.ndim != 1:
        raise InputError(f"log-weights of shape {log_w.shape}; expected one dimension, [proposals]")
    bad = np.flatnonzero(np.isnan(log_w) | np.isposinf(log_w))
    if len(bad):
        raise NumericalError(
            f"{len(bad)} of {len(log_w)} log-weights are NaN or +inf, the first ({log_w[bad[0]]}) at "
            f"{bad[0]}; legal are finite numbers and -inf"
        )
    return log_w


def largest(log_w: np.ndarray) -> float:
    """The largest log-weight. Raises `StatisticsError` if every weight is zero."""
    top = log_w.max(initial=-np.inf)
    if np.isneginf(top):
        raise StatisticsError("every weight is zero: the proposal never meets the target's support")
    return float(top)


def summarise_weights(log_w: np.ndarray) -> WeightSummary:
    """ESS, log Z and largest share of log-weights `[N]`.

    `ess = m1^2 / m2` with `m_k = <w^k>`; its error is the standard deviation of
    `ess [2 (w/m1 - 1) - (w^2/m2 - 1)]` over sqrt(N). `log_z = log m1`, error `sigma(w) / (m1 sqrt N)`.
    -inf is a weight of zero. Raises like `check_log_w`, `StatisticsError` if every weight is zero or there are
    fewer than two.
    """
    log_w = check_log_w(log_w)
    if log_w.size < 2:
        raise StatisticsError(f"{log_w.size} log-weights; expected at least 2")
    top = largest(log_w)
    n = log_w.size
    w = np.exp(log_w - top)
    m1, m2 = w.mean(), np.square(w).mean()
    ess = m1**2 / m2
    influence = ess * (2 * (w / m1 - 1) - (np.square(w) / m2 - 1))
    return WeightSummary(
        n=n,
        ess=float(ess),
        ess_error=float(influence.std(ddof=1) / np.sqrt(n)),
        log_z=float(top + np.log(m1)),
        log_z_error=float(w.std(ddof=1) / (m1 * np.sqrt(n))),
        largest_share=float(1 / w.sum()),
    )
