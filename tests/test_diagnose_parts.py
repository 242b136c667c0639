"""Calibration of each diagnostic: uniform p-values where nothing is wrong, known values where something is."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from tables import rng

from latticeflow.analysis.diagnose_classifier import classify
from latticeflow.analysis.diagnose_draws import Draws, apart, fingerprints
from latticeflow.analysis.diagnose_memory import looks, nearness
from latticeflow.analysis.diagnose_modes import Shares, agreement, missing
from latticeflow.analysis.diagnose_profile import Profile, f_probability
from latticeflow.analysis.diagnose_profile import agreement as profile_agreement
from latticeflow.errors import StatisticsError
from latticeflow.statistics import chi2_probability
from latticeflow.statistics.two_sample import auc
from latticeflow.targets import Camel, FreeField

torch.set_num_threads(1)
FIELD = FreeField(shape=(4, 4), m2=0.5)
CUBE = Camel(dimensions=5)


def phi(x):
    return 0.5 * math.erfc(-x / math.sqrt(2))


def uniform_enough(p):
    """scipy's exact test of uniformity, at 0.1 %."""
    return stats.kstest(p, "uniform").pvalue > 1e-3


def some(x, blocks=8):
    return Draws(x, np.arange(len(x)) * blocks // len(x), 1, 0.0)


def points(n, shift, *key):
    """Points of the cube whose normal quantiles are Gaussian, the first shifted."""
    y = torch.from_numpy(rng(*key).normal(size=(n, CUBE.dim)))
    y[:, 0] += shift
    return torch.special.ndtr(y)


@pytest.mark.parametrize("d", [0.5, 1.0])
def test_classifier_of_events_comes_near_the_best(d):
    """Two Gaussians: the best AUC is Phi(d / sqrt 2); no classifier is better, and this one not much worse."""
    test = classify(CUBE, some(points(1500, 0, 1)), some(points(1500, d, 2)), seed=1)
    best = phi(d / 2**0.5)
    assert -0.05 - 3 * test.auc.error < test.auc.value - best < 3 * test.auc.error
    assert test.auc.sigma > 5


def test_classifier_of_fields_comes_near_the_best():
    """Free fields of two masses: the best score is log p - log p', whose AUC is measured on many draws."""
    other = FreeField(shape=FIELD.shape, m2=1.0)
    x, y = FIELD.sample(20_000, rng(3)), other.sample(20_000, rng(4))
    best = auc(*((other.log_prob(one) - FIELD.log_prob(one)).numpy() for one in (x, y))).value
    test = classify(FIELD, some(x[:2000]), some(y[:2000]), seed=1)
    assert (
        test.auc.sigma > 5 and best - 0.04 - 3 * test.auc.error < test.auc.value < best + 3 * test.auc.error
    )
    two = [classify(FIELD, some(x[:200]), some(y[:200]), seed=1) for _ in range(2)]
    np.testing.assert_array_equal(two[0].model, two[1].model)


def test_classifier_of_one_distribution_finds_nothing():
    """40 pairs: pulls of the AUC from 1/2 are normal, though networks overfit their training halves."""
    pulls = []
    for k in range(40):
        x, y = (FIELD.sample(n, rng(5 + i, k)) for i, n in enumerate((200, 160)))
        pulls.append(classify(FIELD, some(x), some(y), seed=k).auc.sigma)
    assert uniform_enough([phi(pull) for pull in pulls]), pulls
    assert max(map(abs, pulls)) < 3.5


def test_too_few_for_a_classifier():
    with pytest.raises(StatisticsError, match="12 configurations in a half"):
        classify(FIELD, some(FIELD.sample(100, rng(7))), some(FIELD.sample(24, rng(8))), seed=1)


@pytest.mark.parametrize("a", [0.0, 0.3, 0.9, 0.99])
def test_draws_are_taken_so_far_apart_that_errors_hold(a):
    """AR(1): `tau_int = (1 + a) / (2 (1 - a))`. The error of n draws every t-th step, taken for independent, is too small by

    `sqrt((1 + a^t) / (1 - a^t))`: by 5 % at most, and t is no longer than that needs. Every (2 tau)-th would be 14 % off.
    """
    t = apart(0.5 * (1 + a) / (1 - a))
    off = math.sqrt((1 + a**t) / (1 - a**t)) - 1
    assert 0 <= off < 0.05
    assert t == 1 or a ** (t - 1) > 0.02
    assert apart(0.4) == 1  # alternating chains


def profile_of(generator, bins, mixing):
    """The mean of `bins` Gaussian vectors with covariance `mixing mixing^T`, and its covariance from their scatter."""
    x = generator.normal(size=(bins, len(mixing))) @ mixing.T
    return Profile(x.mean(0), np.cov(x.T) / bins, bins)


def test_chi2_knows_that_its_covariance_is_measured():
    """From 24 bins and 6 numbers: p-values of T^2 are uniform (exactly so), those of a chi2 are not."""
    mixing = np.tril(rng(9).normal(size=(6, 6))) + 2 * np.eye(6)
    exact = Profile(np.zeros(6), np.zeros((6, 6)), 10**6)
    found = [profile_agreement(profile_of(rng(10, k), 24, mixing), exact) for k in range(200)]
    assert uniform_enough([one.p for one in found])
    assert not uniform_enough([chi2_probability(one.chi2, one.dof) for one in found])
    both = [
        profile_agreement(profile_of(rng(11, k), 64, mixing), profile_of(rng(12, k), 64, mixing))
        for k in range(200)
    ]
    assert np.mean([one.p < 0.05 for one in both]) < 0.09  # conservative
    pulls = np.concatenate([one.pulls for one in found])
    assert pulls.std() == pytest.approx(stats.t(23).std(), rel=0.1)


def test_chi2_sees_what_single_pulls_do_not():
    """Two numbers that fluctuate together, and a difference against their correlation: pulls of 1, chi2 of 50."""
    c = np.array([[1, 0.98], [0.98, 1]])
    one = Profile(np.array([0.7, -0.7]), c, 10**6)
    found = profile_agreement(one, Profile(np.zeros(2), np.zeros((2, 2)), 10**6))
    assert found.chi2 == pytest.approx(2 * 0.49 / 0.02) and np.abs(found.pulls).max() < 1
    assert found.p == pytest.approx(stats.chi2.sf(found.chi2, 2), rel=1e-3)
    with pytest.raises(StatisticsError, match="does not fluctuate"):
        profile_agreement(
            Profile(np.ones(2), np.zeros((2, 2)), 10), Profile(np.ones(2), np.zeros((2, 2)), 10)
        )
    with pytest.raises(StatisticsError, match="from 2 bins"):
        profile_agreement(Profile(np.ones(2), c, 2), one)


@pytest.mark.parametrize("f, a, b", [(0.01, 1, 3), (1.0, 5, 20), (3.0, 17, 110), (20.0, 5, 120), (0.0, 2, 2)])
def test_f_distribution(f, a, b):
    assert f_probability(f, a, b) == pytest.approx(stats.f.sf(f, a, b), rel=1e-4)


def gaussians(n, scale, *key):
    return torch.from_numpy(rng(*key).normal(size=(n, 6)) * scale)


def test_copies_are_told_from_smooth_draws():
    """Model, training and held-out data of one distribution: normal pulls. Draws too near the centre are nearer to the

    data and are no copies; copies are. 40 pairs each.
    """
    ratio, share, smooth = [], [], []
    for k in range(40):
        train, held = gaussians(300, 1, 13, k), [gaussians(100, 1, 14, k)]
        own = nearness(gaussians(200, 1, 15, k), [train], held, k)
        ratio.append(own.ratio_pull)
        share.append(own.share_pull)
        near = nearness(gaussians(200, 0.5, 16, k), [train], held, k)
        smooth.append((near.ratio[0], near.share_pull))
    assert own.chance == 0.75
    for pulls in (ratio, share, [pull for _, pull in smooth]):
        assert uniform_enough([phi(pull) for pull in pulls]), pulls
    assert max(one for one, _ in smooth) < 0.9
    copies = nearness(train[:100] + 0.01 * gaussians(100, 1, 17), [train], held, 1)
    assert copies.share == 1 and copies.share_pull > 4 and copies.ratio[0] < 0.1
    one = nearness(gaussians(1, 1, 18).repeat(200, 1), [train], held, 1)
    assert abs(one.share_pull) < 2  # a draw that is repeated is one draw


def test_copies_in_any_position():
    """Copies moved by random symmetries: seen in amplitudes by orbits of momenta, which no symmetry changes; else not."""
    lattice = FIELD.lattice
    train, held = FIELD.sample(600, rng(27)), FIELD.sample(300, rng(28))
    group, generator, moved = list(lattice.point_group()), rng(29), []
    for x in train[:200].unsqueeze(1):
        x = lattice.transform(x, *group[generator.integers(len(group))])
        shift = generator.integers(4, size=2).tolist()
        moved.append(float(generator.choice([-1, 1])) * torch.roll(x, shift, (1, 2)))
    x = torch.cat(moved)
    torch.testing.assert_close(looks(FIELD, x, True), looks(FIELD, train[:200], True))
    x += 0.02 * torch.from_numpy(generator.normal(size=x.shape))
    for symmetries in (False, True):
        one, two, three = (looks(FIELD, y, symmetries) for y in (x, train, held))
        found = nearness(one, [two], [three], 1)
        assert (found.share_pull > 5) == symmetries and (found.ratio_pull < -10) == symmetries
        fresh = nearness(looks(FIELD, FIELD.sample(200, rng(30)), symmetries), [two], [three], 1)
        assert abs(fresh.share_pull) < 3 and abs(fresh.ratio_pull) < 3


def test_distances_do_not_depend_on_pieces():
    x, train, held = gaussians(50, 1, 19), gaussians(2500, 1, 20), gaussians(400, 1, 21)
    whole, pieces = nearness(x, [train], [held], 1), nearness(x, train.split(170), [*held.split(90)], 1)
    np.testing.assert_allclose(whole.model, pieces.model, rtol=1e-6)
    assert whole.share == pieces.share and whole.error == pytest.approx(pieces.error)
    exact = (x[:, None] - train[None]).square().sum(2).min(1).values.sqrt()
    np.testing.assert_allclose(whole.model, exact, rtol=1e-6)


def test_fingerprints():
    x = torch.from_numpy(rng(22).normal(size=(5, 2, 2)))
    twice = torch.cat([x, x[1:3]])
    assert len(np.unique(fingerprints(twice))) == 5
    complex_ = torch.complex(x, x.flip(0))
    assert len(np.unique(fingerprints(torch.cat([complex_, complex_.conj(), complex_])))) == 10


def counted(q, size=None):
    labels, count = np.unique(q, return_counts=True)
    return Shares(labels, count / len(q), len(q) if size is None else size)


def test_sectors():
    p = np.array([0.005, 0.1, 0.79, 0.1, 0.005])
    labels = np.arange(-2, 3)
    found = []
    for k in range(200):
        one, two = (counted(rng(i, k).choice(labels, n, p=p)) for i, n in ((23, 1500), (24, 3000)))
        found.append(agreement(one, two)[2])
    assert uniform_enough(found)
    narrow, wide = counted(rng(25).choice([-1, 0, 1], 3000)), Shares(labels, p, 1e5)
    lost, share, chance = missing(narrow, wide)
    assert list(lost) == [-2, 2] and share == pytest.approx(0.01)
    # 500 of the 1e5 draws are in either: drawn without replacement, all from the reference; of five modes
    among = np.prod([(1e5 - i) / (1.03e5 - i) for i in range(500)])
    assert chance == pytest.approx(1 - (1 - among) ** 5, rel=1e-3)
    assert missing(counted(rng(26).choice(labels, 20)), wide)[2] > 1e-3
    assert agreement(narrow, wide)[2] < 1e-10
    few = Shares(narrow.labels, narrow.share, 5.0)  # as many draws of a chain that hardly moves say little
    assert agreement(few, wide)[2] > 1e-3


def test_rare_sectors_of_many_that_are_missing_are_no_fault():
    """Two sets of draws of one wide distribution of charges: 3 sigma in 1 of 370 at most, though some sector that one has

    and the other has not is there in every second pair. Control: sectors that are left out are seen.
    """
    found, absent, cut = [], 0, []
    for k in range(300):
        q, r = (np.round(rng(i, k).normal(scale=4, size=n)).astype(int) for i, n in ((31, 1000), (32, 4000)))
        labels, _, p = missing(counted(q), counted(r))
        found.append(p)
        absent += len(labels) > 0
        cut.append(missing(counted(q[np.abs(q) <= 5]), counted(r))[2])
    assert np.mean(np.array(found) < 0.0027) <= 0.0034 and np.mean(np.array(found) < 0.05) < 0.08
    assert absent > 100 and max(cut) < 1e-3


def test_shares_and_their_errors():
    none = Shares(np.array([0]), np.array([1.0]), 100.0)
    assert none.of(1) == 0 and none.error_of(1) > 0.005
    assert none.pull(0.5) == pytest.approx(-10)
    assert Shares(np.array([0, 1]), np.array([0.4, 0.6]), 100.0).error[0] == pytest.approx(0.049, rel=0.02)
