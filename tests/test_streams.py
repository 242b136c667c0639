"""Statistics of series fed piece by piece, against plain sums over the whole array, worked out here by numpy."""

import numpy as np
import pytest
from test_statistics import ar1, exact_tau

from latticeflow.errors import FrozenSeries, InputError, TooFewSamples
from latticeflow.statistics import Bins, mean
from latticeflow.statistics.autocorrelation import LAGS, means
from latticeflow.statistics.streams import Piece, autocovariance, moments


def cut(groups, longest=90, seed=0):
    """Pieces of groups of chains `[K, C, steps]`, of random length."""

    def walk():
        rng, chain = np.random.default_rng(seed), 0
        for x in groups:
            at = 0
            while at < x.shape[2]:
                n = int(rng.integers(1, longest))
                yield Piece(chain, at, x[:, :, at : at + n])
                at += n
            chain += x.shape[1]

    return walk


@pytest.fixture(scope="module")
def groups():
    """Two groups of chains of unequal length, three columns on very different scales."""
    x = np.stack([ar1(a, 5, 1100, seed) for seed, a in enumerate((0.5, 0.95, -0.4))])
    x = x * np.array([1.0, 30.0, 1e-4])[:, None, None] + np.array([0.0, 1e6, 2.0])[:, None, None]
    return [x[:, :2], x[:, 2:, :900]]


def test_moments_are_numpys(groups):
    found = moments(cut(groups))
    for k in range(3):
        every = np.concatenate([x[k].ravel() for x in groups])
        assert found.mean[k] == pytest.approx(every.mean(), rel=1e-12)
        assert found.variance[k] == pytest.approx(every.var(), rel=1e-9)
        assert (found.low[k], found.high[k]) == (every.min(), every.max())
    assert (found.n, found.chains, found.steps) == (2 * 1100 + 3 * 900, 5, 900) and found.moves.all()


def test_motion_is_within_a_chain(groups):
    """Chains that differ and never move are frozen, however they are cut; one that moves once, late, is not."""
    still = np.repeat(np.arange(3.0)[None, :, None], 400, axis=2)
    found = moments(cut([still, still + 5]))
    assert found.variance[0] > 0 and not found.moves[0]
    with pytest.raises(FrozenSeries, match="no chain of 6 ever moves in 400 steps"):
        found.check(0)
    late = still.copy()
    late[0, 1, 399] += 1e-3
    assert moments(cut([still, late])).moves[0]


@pytest.mark.parametrize("lags", [1, 7, 300, 899])
@pytest.mark.parametrize("longest", [20, 5000])
def test_autocovariance_is_the_plain_double_sum(groups, lags, longest):
    m = moments(cut(groups))
    found = autocovariance(cut(groups, longest), m.mean, m.steps, lags)
    assert found.shape == (3, lags + 1)
    for t in {0, 1, lags // 2, lags}:
        for k in range(3):
            y = [x[k] - m.mean[k] for x in groups]
            plain = sum((a[:, : a.shape[1] - t] * a[:, t:]).sum() for a in y)
            pairs = sum(a.shape[0] * (a.shape[1] - t) for a in y)
            assert found[k, t] == pytest.approx(plain / pairs, abs=1e-12 * m.variance[k] + 1e-18)


def test_chosen_columns(groups):
    m = moments(cut(groups))
    every = autocovariance(cut(groups), m.mean, m.steps, 50)
    np.testing.assert_allclose(
        autocovariance(cut(groups), m.mean, m.steps, 50, [2, 0]), every[[2, 0]], rtol=1e-12
    )


def test_lags_grow_until_the_window_closes():
    """tau_int = 100 needs some 1,000 lags: beyond the first look, and the same as of the array in one piece."""
    a = 199 / 201
    x = np.stack([ar1(a, 2, 60_000), ar1(0.3, 2, 60_000)])
    shape = moments(cut([x], 4000))
    slow, quick = means(cut([x], 4000), shape.mean, shape)
    assert slow.tau.window > LAGS > quick.tau.window
    assert abs(slow.tau.value - exact_tau(a)) < 4 * slow.tau.error and exact_tau(a) == pytest.approx(100)
    for found, whole in ((slow, mean(x[0])), (quick, mean(x[1]))):
        assert found.error == pytest.approx(whole.error, rel=1e-10)
        assert (found.tau.value, found.tau.window) == (
            pytest.approx(whole.tau.value, rel=1e-10),
            whole.tau.window,
        )


def test_lags_are_bounded():
    """Where no more may be looked at: Sokal's shorter window if that closes, else the truth about it."""
    x = ar1(199 / 201, 2, 60_000)[None]
    shape = moments(cut([x], 4000))
    sokal, none = (means(cut([x], 4000), shape.mean, shape, most)[0] for most in (640, 256))
    assert 450 < sokal.tau.window < 640 and abs(sokal.tau.value - 100) < 4 * sokal.tau.error
    assert isinstance(none, TooFewSamples) and "256 steps, the most that are looked at" in str(none)


def test_not_finite_in_a_later_piece():
    x = ar1(0.0, 2, 300)[None]
    x[0, 1, 299] = np.inf
    with pytest.raises(InputError, match="1 values that are not finite"):
        moments(cut([x]))


@pytest.mark.parametrize(("chains", "steps"), [(1, 5000), (20, 700), (300, 40)])
def test_jackknife_bins_are_sums_over_slices(chains, steps):
    """Weighted means of a vector and a number; pieces may cut any bin. The bins are worked out by array_split."""
    rng, tau = np.random.default_rng(1), 3.0
    x, y, w = (rng.normal(1, 1, (chains, steps, *more)) for more in ((), (2,), ()))
    w = np.abs(w)

    def f(means):
        return means["x"] ** 2 / means["y"].sum()

    groups = min(chains, 128)
    segments = max(1, min(-(-128 // chains), int(steps / 30))) if chains < 128 else 1
    rows = np.linspace(0, chains, groups + 1).astype(int)
    columns = np.linspace(0, steps, segments + 1).astype(int)
    found = Bins(chains, steps, tau=tau)
    for piece in cut([np.moveaxis(np.concatenate([x[..., None], y, w[..., None]], -1), -1, 0)], 23)():
        at, n = piece.step, piece.x.shape[2]
        here = slice(at, at + n)
        found.feed(0, at, {"x": x[:, here], "y": y[:, here]}, w[:, here])
    assert found.count == groups * segments
    left = []
    for i in range(groups):
        for j in range(segments):
            kept = np.ones((chains, steps), dtype=bool)
            kept[rows[i] : rows[i + 1], columns[j] : columns[j + 1]] = False
            u = w[kept]
            left.append(f({"x": (u * x[kept]).sum() / u.sum(), "y": (u[:, None] * y[kept]).sum(0) / u.sum()}))
    value, error = found.jackknife(f)
    assert value == pytest.approx(
        f({"x": (w * x).sum() / w.sum(), "y": (w[..., None] * y).sum((0, 1)) / w.sum()})
    )
    assert error == pytest.approx(np.sqrt((len(left) - 1) * np.var(left)), rel=1e-9)


def test_bins_are_never_empty_slices():
    """An alternating series has tau_int = 0.03: bins of 10 of that would be more than there are steps."""
    bins = Bins(1, 100, tau=0.03)
    bins.feed(0, 0, {"x": np.ones((1, 100))})
    assert bins.weight.sum() == bins.sums["x"].sum() == 100 and bins.weight.min() == 5


def test_jackknife_of_chains_of_unequal_length():
    """Bins as long in a long chain as in a short one: four chains, one ten times as long, white noise."""
    errors = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        chains = [rng.normal(size=(1, n)) for n in (8000, 800, 800, 800)]
        m = moments(cut([x[None] for x in chains]))
        assert (m.longest, m.steps) == (8000, 800)
        bins = Bins(m.chains, m.longest, tau=0.5)
        for number, x in enumerate(chains):
            bins.feed(number, 0, {"x": x})
        errors.append(bins.jackknife(lambda means: means["x"])[1])
    assert np.mean(errors) == pytest.approx(m.n**-0.5, rel=0.05) and np.std(errors) < 0.2 * np.mean(errors)
