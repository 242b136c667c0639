"""Are two samples from one distribution? The Kolmogorov-Smirnov distance, also of chains, and the AUC of scores."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import InputError
from .autocorrelation import tau_int

_MOST_SIGMA = 38.0  # where the two-sided probability leaves float64


@dataclass(frozen=True)
class Sample:
    """Numbers `values` `[n]` that fluctuate as `size` independent ones, size <= n."""

    values: np.ndarray
    size: float


@dataclass(frozen=True)
class Distance:
    """`value`: `sup_a |F(a) - G(a)|`; `error`: of one sigma where F and G differ; `expected`: the mean of the value where
    they do not; `p`: the probability of a value at least as large then."""

    value: float
    error: float
    expected: float
    p: float


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve, the probability that a positive has the greater score, with an error of one sigma."""

    value: float
    error: float

    @property
    def sigma(self) -> float:
        """How far it is above the 1/2 of scores that tell nothing, in errors."""
        return (self.value - 0.5) / self.error


def independent(series, walkers: int = 1) -> Sample:
    """Every `max(1, round(2 tau))`-th step of a series `[chains, steps]`, and as how many independent numbers they count.

    tau: tau_int of the ranks of its values. A distribution function is a mean of indicators `1(x < a)`, whose
    autocorrelations averaged over a are those of the ranks; those of the values themselves would depend on the
    variable that is looked at. Correlation that is left is in `size = n / (2 max(tau', 1/2))`, tau' of the thinned ranks.
    `walkers`: so many chains in a row depend on one another (emcee); tau is then that of their mean, and `size` is
    smaller by what the variance of their mean is greater than that of independent ones.

    Raises `InputError` for a bad shape or a number of chains that is no multiple of walkers, and what `tau_int` raises.
    """
    x = np.asarray(series, dtype=np.float64)
    if x.ndim != 2 or x.size == 0 or len(x) % walkers:
        raise InputError(
            f"series of shape {x.shape}; expected [chains, steps], chains a multiple of {walkers}"
        )
    ranks = _share_below(x, x)
    grouped = ranks.reshape(-1, walkers, x.shape[1]).mean(1)
    step = max(1, round(2 * tau_int(grouped).value))
    left = tau_int(grouped[:, ::step]).value if step > 1 else tau_int(grouped).value
    together = max(1.0, walkers * float(grouped.var() / ranks.var()))
    values = x[:, ::step].ravel()
    return Sample(values, len(values) / (2 * max(left, 0.5) * together))


def kolmogorov_smirnov(x: Sample, y: Sample) -> Distance:
    """The largest distance of two empirical distribution functions.

    `D = max_a |F(a) - G(a)|`; with `n = n_x n_y / (n_x + n_y)`, n_x and n_y being the sizes, and
    `l = (sqrt(n) + 0.12 + 0.11 / sqrt(n)) D` (Stephens 1970) the probability of a larger D, if the distributions are the
    same and continuous, is `2 sum_{k>=1} (-1)^(k-1) exp(-2 k^2 l^2)` (Kolmogorov 1933, Smirnov 1948); of discrete ones it is
    smaller than that. The mean of D is then `sqrt(pi / 2) log(2) / sqrt(n)`. Where they differ, D is normal with variance
    `F (1 - F) / n_x + G (1 - G) / n_y` at the maximum (Raghavachari 1973).

    Raises `InputError` for an empty sample or NaN.
    """
    for one in (x, y):
        if not len(one.values) or np.isnan(one.values).any():
            raise InputError(
                f"a sample of {len(one.values)} numbers, {np.isnan(one.values).sum()} NaN; expected some, and none"
            )
    a, b = np.sort(x.values), np.sort(y.values)
    at = np.concatenate([a, b])
    f, g = np.searchsorted(a, at, "right") / len(a), np.searchsorted(b, at, "right") / len(b)
    k = int(np.argmax(np.abs(f - g)))
    value = float(abs(f[k] - g[k]))
    variance = f[k] * (1 - f[k]) / x.size + g[k] * (1 - g[k]) / y.size
    root = math.sqrt(x.size * y.size / (x.size + y.size))
    error = math.sqrt(variance) or 1 / (root**2 + 2)  # nothing overlaps: a share of 0 in so many
    expected = math.sqrt(math.pi / 2) * math.log(2) / root
    return Distance(value, error, expected, kolmogorov_probability((root + 0.12 + 0.11 / root) * value))


def kolmogorov_probability(l: float) -> float:
    """`2 sum_{k>=1} (-1)^(k-1) exp(-2 k^2 l^2)`, the probability that Kolmogorov's variable exceeds l.

    For small l by the other series, `1 - (sqrt(2 pi) / l) sum_{k>=1} exp(-(2k - 1)^2 pi^2 / (8 l^2))`: Jacobi's identity.
    """
    if l < 0.05:  # there the other series underflows: 1 to more digits than float64 has
        return 1.0
    k = np.arange(1, 21)
    if l < 1:
        terms = np.exp(-((2 * k - 1) ** 2) * np.pi**2 / (8 * l * l))
        return float(np.clip(1 - math.sqrt(2 * math.pi) / l * terms.sum(), 0, 1))
    return float(np.clip(2 * (np.where(k % 2, 1, -1) * np.exp(-2.0 * k * k * l * l)).sum(), 0, 1))


def auc(negative, positive) -> Auc:
    """Area under the ROC curve of scores of negatives and of positives: `[n]`, all independent, or `[chains, steps]`.

    `AUC = P(s+ > s-) + P(s+ = s-) / 2`, the Mann-Whitney statistic. With V+ of a positive the share of negatives below it,
    V- of a negative the share of positives above, and V+_i, V-_j their means over chains i = 1 ... n, j = 1 ... m,

        AUC = <V+> = <V->,    error^2 = var(V+_i) / n + var(V-_j) / m

    as DeLong and others have it for independent scores (Biometrics 44 (1988) 837), which are chains of one step, and
    Obuchowski for groups of dependent ones (Biometrics 53 (1997) 567): right for any autocorrelation in chains that know
    nothing of one another. Where all positives are above all negatives, which has no variance, it is `1 / (min(m, n) + 2)`.

    Raises `InputError` for fewer than two scores or chains of either, other shapes, or NaN.
    """
    s, t = (np.asarray(one, dtype=np.float64) for one in (negative, positive))
    if any(one.ndim not in (1, 2) or len(one) < 2 or not one.size or np.isnan(one).any() for one in (s, t)):
        raise InputError(
            f"scores of shapes {s.shape} and {t.shape}, {np.isnan(s).sum() + np.isnan(t).sum()} NaN; expected [n] or "
            "[chains, steps], two scores or chains of each, and none"
        )
    above, below = 1 - _share_below(s, t), _share_below(t, s)
    variance = sum(one.reshape(len(one), -1).mean(1).var(ddof=1) / len(one) for one in (below, above))
    return Auc(float(below.mean()), math.sqrt(variance) or 1 / (min(len(s), len(t)) + 2))


def _share_below(at: np.ndarray, of: np.ndarray) -> np.ndarray:
    """For each number of `at`, the share of `of` below it, ties counted half."""
    order = np.sort(of, axis=None)
    return 0.5 * (np.searchsorted(order, at, "left") + np.searchsorted(order, at, "right")) / of.size


def sigmas(p: float) -> float:
    """How many sigma a normal variable is off with two-sided probability p; at most 38, where float64 ends."""
    if p <= 0:
        return _MOST_SIGMA
    return min(_MOST_SIGMA, -float(torch.special.ndtri(torch.tensor(p / 2, dtype=torch.float64))))
