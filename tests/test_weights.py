"""Weights summed piece by piece against the plain formulas on the whole array, worked out here by numpy."""

import numpy as np
import pytest

from latticeflow.errors import NumericalError, StatisticsError
from latticeflow.statistics import WeightSums, summarise_weights

RNG = np.random.default_rng(4)
CASES = {
    "a good flow": RNG.normal(5, 0.3, 20_000),
    "one weight has almost all": RNG.normal(-700, 8, 20_000),
    "zeros": np.where(RNG.random(2000) < 0.5, -np.inf, 1.0),
    "ever larger": np.linspace(-2000, 2000, 3001),
}


def whole(log_w):
    """ESS, its error, log Z, its error and the largest share, all formulas as they are written."""
    n, top = len(log_w), log_w.max()
    w = np.exp(log_w - top)
    ess = w.sum() ** 2 / (n * np.square(w).sum())
    influence = ess * (2 * (w / w.mean() - 1) - (w**2 / np.square(w).mean() - 1))
    return (
        ess,
        influence.std(ddof=1) / np.sqrt(n),
        top + np.log(w.mean()),
        w.std(ddof=1) / (w.mean() * np.sqrt(n)),
        1 / w.sum(),
    )


def fed(log_w, pieces):
    sums = WeightSums()
    for piece in np.array_split(log_w, pieces):
        sums.feed(piece)
    return sums


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("pieces", [1, 7, 500])
def test_summary_is_that_of_the_plain_formulas(case, pieces):
    one = fed(CASES[case], pieces).summary()
    found = one.ess, one.ess_error, one.log_z, one.log_z_error, one.largest_share
    np.testing.assert_allclose(found, whole(CASES[case]), rtol=1e-9)
    assert one.n == len(CASES[case])


def test_nearly_equal_weights_lose_nothing():
    """w = 1 + s x: 1 - ESS = s^2 and the error of log Z = s / sqrt(N), to 4 sigma, at s = 3e-8."""
    s, n = 3e-8, 100_000
    sums = fed(-300 + np.log1p(s * np.random.default_rng(5).standard_normal(n)), 40)
    v = sums.M2 / (n * sums.m1**2)
    # float64 rounds log w = -300 at 6e-14, a millionth of the fluctuations
    assert v == pytest.approx(s**2, rel=4 * np.sqrt(2 / n))
    assert sums.summary().log_z_error == pytest.approx(s / np.sqrt(n), rel=0.02)


def test_order_and_ranks_do_not_matter():
    log_w = CASES["a good flow"]
    a, b = fed(log_w[:3000], 3), fed(log_w[3000:], 50)
    b.merge(a)
    b.merge(WeightSums())
    expected = whole(log_w)
    np.testing.assert_allclose((b.summary().ess, b.summary().ess_error), expected[:2], rtol=1e-10)


def test_what_cannot_be_summed():
    sums = WeightSums()
    for _ in range(3):
        sums.feed(np.full(4, -np.inf))
    with pytest.raises(StatisticsError, match="every weight is zero"):
        sums.summary()
    with pytest.raises(NumericalError, match="1 of 2 log-weights are NaN"):
        sums.feed(np.array([0.0, np.nan]))
    sums.feed(np.zeros(4))  # weights after a long stretch of zeros
    assert sums.summary().ess == pytest.approx(0.25)
    with pytest.raises(StatisticsError, match="1 log-weights"):
        summarise_weights(np.zeros(1))
