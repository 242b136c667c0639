"""Functions of distance, and their agreement with a reference: two-point function, correlator, Wilson loops."""

from dataclasses import dataclass

import numpy as np
import torch

from ..errors import StatisticsError
from ..statistics import Bins
from .estimates import Row
from .series import Series

FUNCTIONS = ("two_point", "correlator", "wilson_loops")


@dataclass(frozen=True)
class Profile:
    """Means `[K]` of a vector with the covariance `[K, K]` of these means, from `bins` bins of the jackknife."""

    value: np.ndarray
    covariance: np.ndarray
    bins: int

    @property
    def error(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))


@dataclass(frozen=True)
class Agreement:
    """chi2 of a difference, `dof` degrees of freedom, p: of a larger one; `pulls` `[K]`."""

    chi2: float
    dof: int
    p: float
    pulls: np.ndarray


def profile(series: Series, name: str, rows: dict[str, Row]) -> Profile:
    """Means of a vector, of f(t) = f(L - t) those of t = 0 ... L // 2.

    The covariance is the jackknife's, `(B - 1)/B sum_b (f_b - <f_b>)(f_b - <f_b>)^T`, over bins of ten of the largest
    tau_int in `rows`. Raises `StatisticsError` where there are too few.
    """
    taus = [row.tau.value for row in rows.values() if row.tau]
    shape, size = series.moments.all, len(series.moments.mean[name])
    if name != "wilson_loops":
        size = size // 2 + 1
    bins = Bins(shape.chains, shape.longest, tau=max(taus, default=0.5))
    for stretch in series.walk(name):
        bins.feed(stretch.chain, stretch.step, {name: stretch.values[name][..., :size]})
    weight = bins.weight.reshape(bins.count, 1)
    sums = bins.sums[name].reshape(bins.count, size)
    left = (sums.sum(0) - sums) / (weight.sum() - weight)
    centred = left - left.mean(0)
    return Profile(
        sums.sum(0) / weight.sum(), (bins.count - 1) / bins.count * centred.T @ centred, bins.count
    )


def agreement(one: Profile, other: Profile) -> Agreement:
    """chi2 of `one - other` with the covariance of the difference, C = C_1 + C_2.

    `chi2 = d^T C^-1 d`, over the directions in which the correlation matrix is not singular to rounding. C is itself known
    from finitely many bins, so that chi2 is Hotelling's T^2 and not a chi2: with nu = `min(B_1, B_2) - 1`,
    `F = T^2 (nu - K + 1) / (nu K)` has an F distribution with K and nu - K + 1 degrees of freedom (exact where one of the
    two errors is negligible, conservative otherwise). Raises `StatisticsError` for as many directions as bins, or none.
    """
    d, c = one.value - other.value, one.covariance + other.covariance
    scale = np.sqrt(np.diag(c))
    if not (scale > 0).all():
        raise StatisticsError("a function of distance that does not fluctuate has no chi2")
    values, vectors = np.linalg.eigh(c / np.outer(scale, scale))
    good = values > 1e-10 * values.max()
    chi2 = float(((vectors.T @ (d / scale))[good] ** 2 / values[good]).sum())
    dof, nu = int(good.sum()), min(one.bins, other.bins) - 1
    if nu - dof < 1:
        raise StatisticsError(f"{dof} numbers from {nu + 1} bins have no chi2; draw more")
    f = chi2 * (nu - dof + 1) / (nu * dof)
    return Agreement(chi2, dof, f_probability(f, dof, nu - dof + 1), d / scale)


def f_probability(f: float, one: int, two: int) -> float:
    """Probability that a variable with the F distribution of `one` and `two` degrees of freedom exceeds f.

    `I_x(two/2, one/2)`, x = two / (two + one f), the regularised incomplete beta function, here by the integral of
    the F density in `s = log f`, whose integrand is smooth and falls exponentially on both sides.
    """
    if f <= 0:
        return 1.0
    a, b = one / 2, two / 2
    # of the density in s: a s - (a + b) log(1 + (one / two) e^s)
    s = np.linspace(np.log(f), np.log(f) + 60 / min(a, b) + 20, 200_001)
    log_density = a * s - (a + b) * np.logaddexp(0, s + np.log(one / two)) + a * np.log(one / two)
    gamma = torch.lgamma(torch.tensor([a, b, a + b], dtype=torch.float64))
    log_beta = float(gamma[0] + gamma[1] - gamma[2])
    density = np.exp(log_density - log_beta)
    return float(min(1.0, (density.sum() - 0.5 * (density[0] + density[-1])) * (s[1] - s[0])))
