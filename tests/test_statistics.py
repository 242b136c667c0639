"""Autocorrelation times and errors against AR(1) chains, emcee, pyerrors and closed forms."""

import numpy as np
import pytest
from emcee.autocorr import integrated_time

from latticeflow.errors import FrozenSeries, InputError, StatisticsError, TooFewSamples
from latticeflow.random import Purpose, stream
from latticeflow.statistics import autocorrelation, jackknife, mean, tau_int


def ar1(a, chains, steps, seed=1):
    """`x(i+1) = a x(i) + noise`, stationary, variance 1: rho(t) = a^t, tau_int = (1 + a) / (1 - a) / 2."""
    noise = stream(seed, Purpose.ANALYSIS).standard_normal((chains, steps))
    x = noise.copy()
    for i in range(1, steps):
        x[:, i] = a * x[:, i - 1] + np.sqrt(1 - a * a) * noise[:, i]
    return x


def exact_tau(a):
    return (1 + a) / (1 - a) / 2


@pytest.mark.parametrize(
    "a, chains, steps",
    [
        (0.0, 1, 50_000),
        (0.8, 1, 50_000),
        (0.8, 1000, 60),
        (0.8, 64, 1000),
        (0.95, 8, 5000),
        (-0.5, 1, 50_000),
    ],
)
def test_tau_int_of_ar1_within_4_sigma(a, chains, steps):
    tau = tau_int(ar1(a, chains, steps))
    assert abs(tau.value - exact_tau(a)) < 4 * tau.error
    assert tau.error < 0.2 * exact_tau(a)
    assert (tau.chains, tau.steps) == (chains, steps) and 1 <= tau.window <= steps // 2


def test_independent_draws_give_one_half():
    tau = tau_int(ar1(0.0, 1, 100_000))
    assert tau.value == pytest.approx(0.5, abs=4 * tau.error)
    assert tau.error < 0.02


def test_quoted_errors_cover():
    """Pulls of tau and of the mean over 200 repeats have width 1; 200 repeats know it to 5 %, 4 sigma allowed.

    tau's own error formula drops a term that makes it smaller (W + 1/2 - tau for W + 1/2): up to 30 % too large.
    """
    estimates = [mean(x) for x in ar1(0.8, 200 * 8, 2000).reshape(200, 8, 2000)]
    pulls = np.array([e.value / e.error for e in estimates])
    assert 0.8 < np.sqrt(np.square(pulls).mean()) < 1.2
    tau_pulls = np.array([(e.tau.value - exact_tau(0.8)) / e.tau.error for e in estimates])
    assert 0.6 < np.sqrt(np.square(tau_pulls).mean()) < 1.2
    naive = np.array([e.value / (e.error / np.sqrt(2 * e.tau.value)) for e in estimates])
    assert np.sqrt(np.square(naive).mean()) > 2.5  # control: errors without tau_int fail the same test


def test_many_short_chains_are_not_biased():
    """With each chain's own mean subtracted, as a control, the same chains give a tau 20 % too small."""
    a, steps = 0.8, 60
    x = ar1(a, 4000, steps)
    tau = tau_int(x)
    assert abs(tau.value - exact_tau(a)) < 4 * tau.error
    assert tau.value == pytest.approx(exact_tau(a), rel=0.05)
    own = x - x.mean(axis=1, keepdims=True)
    gamma = [(own[:, t:] * own[:, : steps - t]).mean() for t in range(tau.window + 1)]
    assert 0.5 + sum(gamma[1:]) / gamma[0] < 0.85 * exact_tau(a)


def test_autocorrelation_of_ar1():
    rho = autocorrelation(ar1(0.8, 100, 5000))
    assert rho.shape == (5000,) and rho[0] == 1
    np.testing.assert_allclose(rho[:10], 0.8 ** np.arange(10), atol=0.015)  # sigma is 0.003 to 0.005


def test_autocorrelation_is_the_plain_double_sum():
    x = ar1(0.5, 3, 40) + np.array([[0.0], [0.3], [-0.2]])
    y = x - x.mean()
    plain = np.array([sum((c[: 40 - t] * c[t:]).sum() for c in y) / (3 * (40 - t)) for t in range(40)])
    rho = autocorrelation(x)
    shift = (plain[1] - rho[1] * plain[0]) / (rho[1] - 1)  # the constant of the bias correction, from t = 1
    np.testing.assert_allclose(rho, (plain + shift) / (plain[0] + shift), atol=1e-12)
    assert 0 < shift < 0.2


def test_agrees_with_emcee_which_counts_twice():
    x = ar1(0.8, 1, 100_000)
    assert tau_int(x).value == pytest.approx(float(integrated_time(x[0])[0]) / 2, rel=0.05)


def test_agrees_with_pyerrors():
    pe = pytest.importorskip("pyerrors")
    x = ar1(0.8, 2, 20_000) + 3
    obs = pe.Obs([x[0], x[1]], ["e|r1", "e|r2"])
    obs.gamma_method(S=2.0)
    ours = mean(x)
    assert ours.value == pytest.approx(obs.value, rel=1e-12)
    assert ours.error == pytest.approx(obs.dvalue, rel=0.02)
    assert ours.tau.value == pytest.approx(obs.e_tauint["e"], rel=0.03)


def test_chains_that_sit_apart_are_not_averaged_over():
    x = ar1(0.0, 10, 1000)
    x[5:] += 10
    with pytest.raises(TooFewSamples, match="sit in different places"):
        tau_int(x)


def test_a_rare_stuck_chain_shows():
    """One chain of 64 that stays at 5 sigma: tau_int grows far beyond that of the others, or is refused."""
    x = ar1(0.5, 64, 500)
    x[0] = 5.0
    with pytest.raises(TooFewSamples):
        tau_int(x)


@pytest.mark.parametrize("value", [1.0, 0.0, 1e-300, -3e8])
def test_a_constant_series_is_frozen(value):
    with pytest.raises(FrozenSeries, match="no autocorrelation time"):
        mean(np.full((3, 100), value))


def test_rounding_is_not_motion():
    charge = 2 + 1e-15 * ar1(0.0, 1, 100)
    with pytest.raises(FrozenSeries):
        tau_int(charge)


def test_too_short_series_say_what_is_enough():
    with pytest.raises(TooFewSamples, match="at least"):
        tau_int(ar1(0.99, 4, 100))
    with pytest.raises(TooFewSamples, match=r"30 samples.*at least"):
        tau_int(ar1(0.0, 1, 30))
    with pytest.raises(TooFewSamples, match="3 steps"):
        tau_int(ar1(0.0, 100, 3))


def test_an_alternating_series_has_no_error():
    with pytest.raises(StatisticsError, match="alternates"):
        mean(np.tile([1.0, -1.0], (1, 50)))


@pytest.mark.parametrize("bad", [np.zeros(10), np.zeros((2, 3, 4)), np.zeros((0, 10)), np.zeros((1, 0))])
def test_bad_shapes(bad):
    with pytest.raises(InputError, match=r"expected \[chains, steps\]"):
        tau_int(bad)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_an_error(bad):
    x = ar1(0.0, 2, 100)
    x[1, 3] = bad
    for estimate in (autocorrelation, tau_int, mean, lambda s: jackknife(lambda m: m["x"], {"x": s})):
        with pytest.raises(InputError, match="not finite"):
            estimate(x)


# the jackknife


def test_jackknife_of_a_mean_is_its_standard_error():
    """With bins of one sample the jackknife of the mean is `s / sqrt(N)`, identically."""
    x = ar1(0.0, 100, 1)
    value, error = jackknife(lambda m: m["x"], {"x": x}, bins=100)
    assert value == pytest.approx(x.mean(), abs=1e-14)
    assert error == pytest.approx(x.std(ddof=1) / 10, rel=1e-12)


@pytest.mark.parametrize("chains, steps", [(1, 40_000), (16, 2500), (500, 80)])
def test_jackknife_pulls_and_closed_form(chains, steps):
    """f = <x>^2 of AR(1) with mean 2: error `2 * 2 sqrt(2 tau / N)`; pulls over 100 repeats within 4 sigma of 1."""
    expected = 4 * np.sqrt(2 * exact_tau(0.8) / (chains * steps))
    pulls, errors = [], []
    for x in 2 + ar1(0.8, 100 * chains, steps).reshape(100, chains, steps):
        value, error = jackknife(lambda m: m["x"] ** 2, {"x": x}, tau=exact_tau(0.8))
        pulls.append((value - 4) / error)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(expected, rel=0.1)
    assert 0.72 < np.sqrt(np.mean(np.square(pulls))) < 1.28


def test_jackknife_measures_tau_itself_and_its_bins_are_long_enough():
    x = 2 + ar1(0.9, 2, 20_000)
    error = jackknife(lambda m: m["x"] ** 2, {"x": x})[1]
    assert error == pytest.approx(4 * np.sqrt(2 * exact_tau(0.9) / x.size), rel=0.25)
    short = jackknife(lambda m: m["x"] ** 2, {"x": x}, bins=20_000, tau=0.5)[1]
    assert short < 0.8 * error  # control: bins shorter than tau


def test_jackknife_of_arrays_and_several_series():
    """A ratio of correlated means: the error follows the fluctuation of the ratio, not of its parts."""
    x = 5 + ar1(0.0, 1, 10_000)
    y = np.stack([2 * x, 3 * x + 1e-3 * ar1(0.0, 1, 10_000, seed=2)], axis=-1)
    value, error = jackknife(lambda m: m["y"] / m["x"], {"x": x, "y": y}, tau=0.5)
    np.testing.assert_allclose(value, [2, 3], rtol=1e-4)
    assert value.shape == error.shape == (2,)
    assert error[0] < 1e-12 and error[1] == pytest.approx(1e-3 / 5 / 100, rel=0.3)


def test_weighted_jackknife_reweights():
    """N(0, 1) reweighted to N(d, 1) by exp(d x): mean d, error by the delta method within 25 % (4 sigma)."""
    x, d = ar1(0.0, 1, 40_000), 0.5
    w = np.exp(d * x)
    value, error = jackknife(lambda m: m["x"], {"x": x}, weights=w, tau=0.5)
    delta = np.sqrt(np.square(w * (x - value)).sum()) / w.sum()
    assert error == pytest.approx(delta, rel=0.25)
    assert abs(value - d) < 4 * error
    assert abs(jackknife(lambda m: m["x"], {"x": x}, tau=0.5)[0] - d) > 4 * error  # control: weights left out


def test_jackknife_errors():
    x = ar1(0.0, 1, 1000)
    with pytest.raises(TooFewSamples, match="chains of at least"):
        jackknife(lambda m: m["x"], {"x": x}, tau=10)
    with pytest.raises(InputError, match="bins"):
        jackknife(lambda m: m["x"], {"x": x}, bins=4)
    with pytest.raises(InputError, match="'y' of shape"):
        jackknife(lambda m: m["x"], {"x": x, "y": x[:, :10]})
    with pytest.raises(InputError, match="no series"):
        jackknife(lambda m: 0.0, {})
    with pytest.raises(InputError, match="weights"):
        jackknife(lambda m: m["x"], {"x": x}, weights=-np.ones_like(x))
    with pytest.raises(FrozenSeries):
        jackknife(lambda m: m["x"], {"x": np.ones_like(x)})
    with pytest.raises(TooFewSamples, match="all the weight"):
        jackknife(lambda m: m["x"], {"x": x}, weights=np.eye(1, 1000), tau=0.5)
