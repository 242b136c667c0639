"""Estimates from log-weights `log w = log target - log proposal`, in log space and float64.

With independent draws from the proposal: `Z = <w>`, `ESS = (sum w)^2 / (N sum w^2)`. Log-weights may be fed piece by
piece, in memory that does not grow.

With draws from the target instead (forward): `<w>_p = <w^2>_q / Z` and `<1/w>_p = 1/Z`, so that
`ESS = 1 / (<w>_p <1/w>_p)`. The first estimate cannot know of a mode that the proposal never draws; the second does.
"""

from dataclasses import dataclass

import numpy as np

from ..errors import InputError, NumericalError, StatisticsError
from .jackknife import jackknife
from .notation import bracket

_ALL_ZERO = "every weight is zero: the proposal never meets the target's support"


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

    @property
    def z(self) -> float:
        """Z itself, `<w>`: of a matrix element the cross section."""
        return float(np.exp(self.log_z))

    @property
    def z_error(self) -> float:
        return self.z * self.log_z_error

    @property
    def deviation(self) -> float:
        """Standard deviation of the weights over their mean, zeros included: `sqrt(1 / ess - 1)`."""
        return float(np.sqrt(max(0.0, 1 / self.ess - 1)))

    @property
    def deviation_error(self) -> float:
        return self.ess_error / (2 * self.deviation * self.ess**2) if self.deviation else 0.0

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
        raise StatisticsError(_ALL_ZERO)
    return float(top)


@dataclass
class WeightSums:
    """N, the largest log-weight, and of `w / w_max` the mean `m1` and the central sums `M_k = sum (w - m1)^k`.

    Fed in pieces of any size, or added up over ranks: two sets are merged exactly (Pebay, Sandia report
    SAND2008-6212, eqs. 1.1 to 1.6; the scale is the larger of the two maxima). Central sums lose nothing where
    all weights are nearly equal, as with `1 - ess = 1e-13`.
    """

    n: int = 0
    log_max: float = -np.inf
    m1: float = 0.0
    M2: float = 0.0
    M3: float = 0.0
    M4: float = 0.0

    def feed(self, log_w: np.ndarray) -> None:
        """Add log-weights `[n]`; -inf is a weight of zero. Raises like `check_log_w`."""
        log_w = check_log_w(log_w)
        if not len(log_w):
            return
        log_max = float(log_w.max())
        w = np.exp(log_w - log_max) if np.isfinite(log_max) else np.zeros(len(log_w))
        m1 = float(w.mean())
        d = w - m1
        squared = d * d
        self.merge(
            WeightSums(
                len(w), log_max, m1, float(squared.sum()), float(squared @ d), float(squared @ squared)
            )
        )

    def merge(self, other: "WeightSums") -> None:
        """Add another set of weights."""
        log_max = max(self.log_max, other.log_max)
        a, b = self._scaled(log_max), other._scaled(log_max)
        n, delta = a.n + b.n, b.m1 - a.m1
        if not n:
            return
        p, q = a.n / n, b.n / n
        self.n, self.log_max = n, log_max
        self.m1 = a.m1 + delta * q
        self.M2 = a.M2 + b.M2 + delta**2 * n * p * q
        self.M3 = a.M3 + b.M3 + delta**3 * n * p * q * (p - q) + 3 * delta * (p * b.M2 - q * a.M2)
        self.M4 = (
            a.M4
            + b.M4
            + delta**4 * n * p * q * (p * p - p * q + q * q)
            + 6 * delta**2 * (p * p * b.M2 + q * q * a.M2)
            + 4 * delta * (p * b.M3 - q * a.M3)
        )

    def _scaled(self, log_max: float) -> "WeightSums":
        f = float(np.exp(self.log_max - log_max)) if np.isfinite(self.log_max) else 0.0
        return WeightSums(self.n, log_max, f * self.m1, f**2 * self.M2, f**3 * self.M3, f**4 * self.M4)

    def summary(self) -> WeightSummary:
        """ESS, log Z and largest share.

        `ess = <w>^2 / <w^2> = 1 / (1 + v)` with `e = w / <w> - 1`, `v = <e^2>`; its error is the standard deviation
        of `ess [2 e - (w^2/<w^2> - 1)] = ess (2 v e - e^2 + v) / (1 + v)` over sqrt(N). `log_z = log <w>`, error
        `sigma(e) / sqrt(N)`. Raises `StatisticsError` if every weight is zero or there are fewer than two.
        """
        if self.n < 2:
            raise StatisticsError(f"{self.n} log-weights; expected at least 2")
        if np.isneginf(self.log_max):
            raise StatisticsError(_ALL_ZERO)
        n, m1 = self.n, self.m1
        v, e3, e4 = self.M2 / (n * m1**2), self.M3 / (n * m1**3), self.M4 / (n * m1**4)
        ess = 1 / (1 + v)
        variance = max(0.0, 4 * v**3 - 4 * v * e3 + e4 - v**2) * ess**4
        return WeightSummary(
            n=n,
            ess=ess,
            ess_error=float(np.sqrt(variance / (n - 1))),
            log_z=self.log_max + float(np.log(m1)),
            log_z_error=float(np.sqrt(v / (n - 1))),
            largest_share=1 / (n * m1),
        )


def summarise_weights(log_w: np.ndarray) -> WeightSummary:
    """ESS, log Z and largest share of log-weights `[N]`: `WeightSums`, fed once. Raises what it raises."""
    sums = WeightSums()
    sums.feed(log_w)
    return sums.summary()


@dataclass(frozen=True)
class ForwardSummary:
    """What `log w = log target - log proposal` at N draws of the target says of the proposal.

    `ess`, `log_z` as in `WeightSummary`, one sigma each. A mode without proposals has huge weights: its ess is nearly 0.
    """

    n: int
    ess: float
    ess_error: float
    log_z: float
    log_z_error: float

    def __str__(self) -> str:
        return f"forward ESS {bracket(self.ess, self.ess_error)} at N = {self.n:,}"


def forward_weights(log_w: np.ndarray, tau: float | None = None) -> ForwardSummary:
    """ESS and log Z of a proposal from draws of the target: log-weights `[chains, steps]` of Markov chains.

    `ESS = <w>_q^2 / <w^2>_q = 1 / (<w>_p <1/w>_p)`, since `<w>_q = Z` and `<f>_p = <w f>_q / Z`; `log Z = -log <1/w>_p`
    (2302.14082; 2107.00734). Errors by `jackknife`: over whole chains where there are at least 128, else over bins
    of `tau`, the tau_int of w and 1/w, which is measured where it is None. Chains that never leave the mode they began in
    thus need to be many.

    Raises `InputError` for another shape, `NumericalError` for log-weights that are not finite, and what `jackknife` raises.
    """
    log_w = np.asarray(log_w, dtype=np.float64)
    if log_w.ndim != 2 or log_w.size < 2:
        raise InputError(
            f"log-weights of shape {log_w.shape}; expected [chains, steps], two numbers at least"
        )
    if not np.isfinite(log_w).all():
        raise NumericalError(
            f"{np.count_nonzero(~np.isfinite(log_w))} of {log_w.size} log-weights at draws of the target are not finite"
        )
    low, high = log_w.min(), log_w.max()
    n = log_w.size
    if high == low:  # the proposal is the target
        return ForwardSummary(n, 1.0, 0.0, float(low), 0.0)

    def ess_and_log_z(mean: dict[str, np.ndarray]) -> np.ndarray:
        log_w, log_inverse = np.log(mean["w"]) + high, np.log(mean["inverse"]) - low
        return np.array([np.exp(-log_w - log_inverse), -log_inverse])

    series = {"w": np.exp(log_w - high), "inverse": np.exp(low - log_w)}
    value, error = jackknife(ess_and_log_z, series, tau=tau)
    return ForwardSummary(n, float(value[0]), float(error[0]), float(value[1]), float(error[1]))
