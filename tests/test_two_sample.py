"""Two-sample distances: Gaussians with closed forms, scipy, uniform p-values under the same distribution."""

import math

import numpy as np
import pytest
from scipy import special, stats
from tables import rng

from latticeflow.errors import FrozenSeries, InputError
from latticeflow.statistics.two_sample import (
    Sample,
    auc,
    independent,
    kolmogorov_probability,
    kolmogorov_smirnov,
    sigmas,
)

SEEDS = 60


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def sample(x):
    return Sample(x, len(x))


def ar1(generator, chains, steps, a):
    """Gaussian chains with rho(t) = a^t, stationary from the start."""
    x = generator.normal(size=(chains, steps))
    for t in range(1, steps):
        x[:, t] = a * x[:, t - 1] + math.sqrt(1 - a * a) * x[:, t]
    return x


def uniform_enough(p):
    """scipy's exact test of uniformity, at 0.1 %."""
    return stats.kstest(p, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("d", [0.5, 1.0])
def test_gaussians_shifted_by_d(d):
    """D = 2 Phi(d/2) - 1 and AUC = Phi(d / sqrt 2); errors are those of many repetitions."""
    found = []
    for k in range(100):
        x, y = rng(1, k).normal(size=1500), d + rng(2, k).normal(size=1000)
        found.append((kolmogorov_smirnov(sample(x), sample(y)), auc(x, y)))
    for exact, one, bias in (
        (2 * phi(d / 2) - 1, [a for a, _ in found], 0.3),
        (phi(d / 2**0.5), [b for _, b in found], 0),
    ):
        values, errors = (np.array([getattr(o, name) for o in one]) for name in ("value", "error"))
        # a maximum over noise is biased upwards, by less than its error
        assert abs(values.mean() - exact) < 4 * values.std() / 10 + bias * errors.mean()
        assert 0.8 < errors.mean() / values.std() < 1.25


def test_against_scipy():
    x, y = rng(3).normal(size=400), rng(4).normal(size=300) * 1.1
    theirs = stats.ks_2samp(x, y, method="asymp")
    ours = kolmogorov_smirnov(sample(x), sample(y))
    assert ours.value == pytest.approx(theirs.statistic, abs=1e-15)
    assert ours.p == pytest.approx(stats.ks_2samp(x, y, method="exact").pvalue, rel=0.05)
    u = stats.mannwhitneyu(y, x).statistic
    assert auc(x, y).value == pytest.approx(u / (400 * 300), abs=1e-14)
    for l in (0.3, 0.7, 0.999, 1.0, 1.5, 3.0):
        assert kolmogorov_probability(l) == pytest.approx(special.kolmogorov(l), rel=1e-12, abs=1e-15)
    assert sigmas(2 * phi(-3.0)) == pytest.approx(3.0) and sigmas(1.0) == 0 and sigmas(0.0) == 38


@pytest.mark.parametrize("a", [0.0, 0.5, 0.9])
def test_p_values_of_chains_are_uniform(a):
    """Two sets of chains of one distribution: thinned the p-values are uniform, as they come (a = 0.9) they are not."""
    thinned, plain, heights = [], [], []
    for k in range(SEEDS):
        x, y = ar1(rng(5, k), 8, 1200, a), rng(6, k).normal(size=2000)
        one = kolmogorov_smirnov(independent(x), sample(y))
        thinned.append(one.p)
        heights.append(one.value / one.expected)
        plain.append(kolmogorov_smirnov(sample(x.ravel()), sample(y)).p)
    assert uniform_enough(thinned), thinned
    assert np.mean(heights) == pytest.approx(1, abs=4 * np.std(heights) / SEEDS**0.5)
    if a == 0.9:
        assert not uniform_enough(plain)


def test_thinning_keeps_independent_draws_and_knows_walkers():
    x = rng(7).normal(size=(4, 2000))
    assert len(independent(x).values) == 8000 and independent(x).size == pytest.approx(8000, rel=0.05)
    y = ar1(rng(8), 4, 4000, 0.9)
    tau = 6 / math.pi * sum(math.asin(0.9**t / 2) for t in range(1, 200)) + 0.5  # of ranks (Pearson 1907)
    assert independent(y).values.size == pytest.approx(16000 / (2 * tau), rel=0.15)
    twins = np.repeat(x, 2, axis=0)  # pairs of walkers that are one and the same
    assert independent(twins, walkers=2).size == pytest.approx(8000, rel=0.05)
    with pytest.raises(InputError, match="multiple of 3"):
        independent(x, walkers=3)
    with pytest.raises(FrozenSeries):
        independent(np.ones((2, 100)))


def test_auc_of_scores_that_tell_nothing():
    pulls = [auc(rng(9, k).normal(size=300), rng(10, k).normal(size=200)).sigma for k in range(SEEDS)]
    assert uniform_enough([phi(pull) for pull in pulls])


def test_auc_of_chains_against_obuchowskis_formula():
    """His structural components pair by pair, summed within groups; also that it is not the error of as many independent."""

    def variance(own, other, sign):
        shares = [[np.mean((sign * (a - other) > 0) + 0.5 * (a == other)) for a in group] for group in own]
        area, n = np.mean(shares), len(own)
        return area, n / ((n - 1) * own.size) * sum((sum(v) - len(v) * area) ** 2 for v in shares) / own.size

    x = rng(11).integers(6, size=(7, 5)) + rng(12).integers(4, size=(7, 1))
    y = rng(13).integers(1, 8, size=(9, 4)) + rng(14).integers(4, size=(9, 1))
    (area, one), (_, two) = variance(y, x, 1), variance(x, y, -1)
    found = auc(x, y)
    assert found.value == pytest.approx(area, abs=1e-14)
    assert found.error == pytest.approx(math.sqrt(one + two))
    assert auc(x.ravel(), y.ravel()).error < 0.8 * found.error


def test_edges():
    apart = auc([0.0, 1.0], [2.0, 3.0])
    assert apart.value == 1 and apart.error == 0.25
    assert auc([1.0] * 5, [1.0] * 7).value == 0.5
    far = kolmogorov_smirnov(sample(np.arange(50.0)), sample(np.arange(100.0, 150.0)))
    assert far.value == 1 and far.error > 0 and far.p < 1e-10
    for bad in ([], [math.nan]):
        with pytest.raises(InputError, match="expected"):
            kolmogorov_smirnov(sample(np.array(bad)), sample(np.ones(2)))
        with pytest.raises(InputError, match="expected"):
            auc(bad, [1.0, 2.0])
    with pytest.raises(InputError, match="two scores or chains"):
        auc(np.zeros((1, 5)), np.zeros((3, 5)))
