"""Integration and unweighting against closed forms; overweights are what keeps unweighting unbiased."""

import math

import numpy as np
import pytest
from cube_samplers import draw

from latticeflow.analysis.events import MODES, Events
from latticeflow.config import Deck
from latticeflow.correction import keep, unweight
from latticeflow.errors import InputError, NumericalError, StatisticsError
from latticeflow.random import Purpose
from latticeflow.run import Run
from latticeflow.statistics import WeightTail, chi2_probability, integrate


@pytest.fixture
def run(tmp_path):
    return Run.create(
        Deck.parse({"name": "camel", "seed": 1, "target": {"kind": "camel", "dimensions": 2}}),
        tmp_path / "camel",
    )


def tail(log_w, quantile=0.999, pieces=7):
    found = WeightTail(len(log_w), quantile)
    for piece in np.array_split(log_w, pieces):
        found.feed(piece)
    return found.summary()


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize("n", [16, 1000, 1001, 4099])
def test_quantile_is_numpys(n, quantile):
    rng = np.random.default_rng(n)
    w = rng.exponential(size=n) * (rng.random(n) < 0.8)
    with np.errstate(divide="ignore"):
        found = tail(np.log(w), quantile)
    w_q = np.quantile(w, quantile, method="higher")
    assert math.exp(found.log_max) == pytest.approx(w_q, rel=1e-14)
    assert found.efficiency == pytest.approx(np.minimum(w, w_q).mean() / w_q, rel=1e-12)
    assert found.overweight == pytest.approx(np.maximum(0, w - w_q).sum() / w.sum(), rel=1e-9, abs=1e-14)
    assert found.survival == np.count_nonzero(w) / n


def test_efficiency_in_closed_form():
    """w uniform in [0, 1]: 1 - q/2 and (1 - q)^2. w exponential: q / -log(1 - q) and 1 - q; also with zeros."""
    rng, n, q = np.random.default_rng(3), 400_000, 0.99
    found = tail(np.log(rng.random(n)), q)
    assert found.efficiency == pytest.approx(1 - q / 2, abs=4 * found.efficiency_error)
    assert found.overweight == pytest.approx((1 - q) ** 2, abs=4 * found.overweight_error)
    found = tail(np.log(rng.exponential(size=n)), q)
    assert found.efficiency == pytest.approx(q / -math.log(1 - q), abs=4 * found.efficiency_error)
    assert found.overweight == pytest.approx(1 - q, abs=4 * found.overweight_error)
    # the q quantile of all is that at 1 - (1 - q) / s of the survivors
    s = 0.25
    with np.errstate(divide="ignore"):
        found = tail(np.log(rng.exponential(size=n) * (rng.random(n) < s)), q)
    w_q = -math.log((1 - q) / s)
    assert found.efficiency == pytest.approx(s * -math.expm1(-w_q) / w_q, abs=4 * found.efficiency_error)
    assert found.survival == pytest.approx(s, abs=4 * found.survival_error)
    assert found.survival_error == pytest.approx(math.sqrt(s * (1 - s) / n), rel=0.02)


def test_errors_are_those_of_repeated_runs():
    rng = np.random.default_rng(8)
    found = [tail(np.log(rng.exponential(size=16384)), 0.99) for _ in range(100)]
    for name in ("efficiency", "overweight"):
        values = np.array([getattr(one, name) for one in found])
        errors = np.array([getattr(one, f"{name}_error") for one in found])
        assert 0.8 < errors.mean() / values.std(ddof=1) < 1.5, name  # 1.2, and 0.07 of chance


def test_what_the_tail_refuses():
    with pytest.raises(InputError, match=r"quantile = 1\.5"):
        WeightTail(100, 1.5)
    with pytest.raises(InputError, match="3 draws; expected at least 16"):
        WeightTail(3)
    found = WeightTail(20)
    with pytest.raises(InputError, match="21 log-weights; expected 20"):
        found.feed(np.zeros(21))
    with pytest.raises(InputError, match="0 log-weights; expected 20"):
        found.summary()
    with pytest.raises(NumericalError, match="NaN"):
        found.feed(np.array([np.nan]))
    few = np.full(4000, -np.inf)
    few[:2] = 0
    with pytest.raises(StatisticsError, match="quantile of the weights is zero: 2 of 4000"):
        tail(few)


def test_integration_and_its_convergence():
    """Z of exponential weights is 1; chi2 of equal blocks follows its distribution, and sees a block that is off."""
    rng = np.random.default_rng(2)
    blocks = list(np.log(rng.exponential(size=(40, 4096))))
    found = integrate(blocks, 40 * 4096)
    assert [step.blocks for step in found.steps] == [1, 2, 4, 8, 16, 32, 40]
    w = np.exp(np.concatenate(blocks[:8]))
    assert found.steps[3].draws == len(w)
    assert found.steps[3].value == pytest.approx(w.mean(), rel=1e-12)
    assert found.steps[3].error == pytest.approx(w.std(ddof=1) / math.sqrt(len(w)), rel=1e-4)
    for step in found.steps:
        assert step.value == pytest.approx(1, abs=4 * step.error)
    w = np.exp(np.array(blocks))
    assert found.chi2 == pytest.approx(4096 * np.square(w.mean(1) - w.mean()).sum() / w.var(), rel=1e-9)
    assert found.dof == 39 and 0.001 < found.p < 0.999
    assert found.weights.deviation == pytest.approx(w.std() / w.mean(), rel=1e-9)
    ps = [integrate(np.log(rng.exponential(size=(16, 256))), 4096).p for _ in range(200)]
    assert abs(np.mean(ps) - 0.5) < 4 * math.sqrt(1 / 12 / 200)
    blocks[7] = blocks[7] + 0.2
    assert integrate(blocks, 40 * 4096).p < 1e-6
    assert chi2_probability(3.841459, 1) == pytest.approx(0.05, rel=1e-6)  # the table's


def test_a_block_of_zeros_counts():
    blocks = [np.zeros(64), np.full(64, -np.inf), np.zeros(64), np.zeros(64)]
    found = integrate(blocks, 256)
    assert found.weights.z == pytest.approx(0.75, rel=1e-12)
    assert found.unweighting.efficiency == pytest.approx(0.75) and found.unweighting.survival == 0.75
    with pytest.raises(StatisticsError, match="every weight is zero"):
        integrate([np.full(64, -np.inf)], 64)


def test_kept_by_hand():
    log_w, rng = np.log([0.5, 1.0, 3.0, 1e-300]), np.random.default_rng(4)
    count, weights = np.zeros(4), np.zeros(4)
    for _ in range(4000):
        found = keep(log_w, 0.0, rng)
        count[found.index] += 1
        weights[found.index] += found.weight
    assert count[1] == count[2] == 4000 and count[3] == 0
    assert abs(count[0] / 4000 - 0.5) < 4 * 0.5 / math.sqrt(4000)
    np.testing.assert_allclose(weights[1:3] / 4000, [1.0, 3.0], rtol=1e-12)
    with pytest.raises(InputError, match="log w_max = -inf"):
        keep(log_w, -math.inf, rng)
    # with its own quantile as the maximum it is `unweight`
    a, b = (np.random.default_rng(6) for _ in range(2))
    x = np.random.default_rng(5).normal(size=999)
    one, two = unweight(x, a, 0.9), keep(x, float(np.quantile(x, 0.9, method="higher")), b)
    assert (one.index == two.index).all() and (one.weight == two.weight).all()


def estimate(events, weighted=True):
    """Mean of u_0^2 and its error over all events, which are independent but in a chain."""
    x = np.concatenate([piece[:, 0] for _, piece, _ in events.pieces()])
    w = np.concatenate([weight for _, _, weight in events.pieces()]) if weighted else np.ones(len(x))
    mean = (w * x**2).sum() / w.sum()
    return mean, math.sqrt((w**2 * (x**2 - mean) ** 2).sum()) / w.sum()


def second_moment():
    """<u_0^2> of the camel, by a fine sum over one coordinate; the two peaks count alike."""
    u = (np.arange(200_000) + 0.5) / 200_000
    f = sum(np.exp(-((u - c) ** 2) / 0.2**2) for c in (1 / 3, 2 / 3))
    return (f * u**2).sum() / f.sum()


def test_every_mode_has_the_same_means_and_dropping_overweights_has_not(run):
    ensemble = draw(run, "test_power", 48, power=2.2)
    target, exact = run.deck.target, second_moment()
    for mode in MODES:
        # at a quantile that low a third of the weight is above it
        events = Events(ensemble, target, mode, quantile=0.7 if mode == "unweighted" else None)
        mean, error = estimate(events)
        # the chain's error by its tau_int, which is below 3 here
        assert abs(mean - exact) < 4 * error * (2.5 if mode == "metropolis" else 1), (
            mode,
            mean,
            exact,
            error,
        )
        weights = np.concatenate([weight for _, _, weight in events.pieces()])
        assert len(weights) == events.n and weights.max() == pytest.approx(events.largest)
        assert weights.mean() == pytest.approx(events.z, rel=1e-12)
        assert events.z == pytest.approx(target.integral, abs=4 * events.z_error)
    mean, error = estimate(Events(ensemble, target, "unweighted", quantile=0.7), weighted=False)
    assert abs(mean - exact) > 8 * error


def test_what_is_kept_says_z_again(run):
    """Kept with their weights, times w_max, over all proposals: unbiased for any maximum."""
    ensemble = draw(run, "test_flat", 16)
    n = ensemble.draws
    for maximum in (1.0, 2.0, 20.0):
        events = Events(ensemble, run.deck.target, maximum=maximum)
        weights = np.concatenate([weight for _, _, weight in events.pieces()])
        relative = weights / weights.min()  # 1 for all but overweights
        z = relative.sum() * maximum / n
        error = maximum * math.sqrt(np.square(relative).sum()) / n
        assert z == pytest.approx(run.deck.target.integral, abs=4 * error), maximum
        assert events.unit_weights == (maximum == 20.0)
    assert events.n < 16 * 2048 / 10


def test_selection_is_the_blocks_own(run):
    """More blocks, another order: with w_max given the same draws are kept. Blocks have streams of their own."""
    target = run.deck.target
    ensemble = draw(run, "test_flat", 4)
    before = {key: piece for key, piece, _ in Events(ensemble, target, maximum=3.0).pieces()}
    ensemble = draw(run, "test_flat", 6)
    after = {key: piece for key, piece, _ in Events(ensemble, target, maximum=3.0).pieces()}
    assert len(before) == 4 and len(after) == 6
    for key, piece in before.items():
        np.testing.assert_array_equal(piece, after[key])
    found = keep(
        ensemble.read(3, 0, "log_w")["log_w"], math.log(3.0), ensemble.generator(Purpose.UNWEIGHT, 3, 0)
    )
    np.testing.assert_array_equal(ensemble.read(3, 0, "x")["x"][found.index], after[3, 0])
    # negative control: as Metropolis' stream, so another selection
    other = keep(
        ensemble.read(3, 0, "log_w")["log_w"], math.log(3.0), ensemble.generator(Purpose.METROPOLIS, 3, 0)
    )
    assert len(other) != len(found) or (other.index != found.index).any()


def test_what_events_refuse(run):
    ensemble, target = draw(run, "test_flat", 1), run.deck.target
    with pytest.raises(InputError, match="events = 'all'; expected unweighted, weighted, metropolis"):
        Events(ensemble, target, "all")
    with pytest.raises(InputError, match="maximum weight -1"):
        Events(ensemble, target, maximum=-1.0)
    with pytest.raises(StatisticsError, match="no event is left"):
        Events(ensemble, target, maximum=1e12)
    ensemble.weighted = False
    with pytest.raises(InputError, match="knows no cross section"):
        Events(ensemble, target)


def test_fields_kept_of_every_other_draw(run):
    ensemble, target = draw(run, "test_flat", 4, keep_fields=4), run.deck.target
    for mode in MODES:
        events = Events(ensemble, target, mode)
        x, w = zip(*((piece, weight) for _, piece, weight in events.pieces()))
        assert sum(map(len, x)) == events.n and np.concatenate(w).mean() == pytest.approx(events.z)
        kept = {row.tobytes() for data in ensemble.iterate("x") for row in data["x"]}
        assert {row.tobytes() for row in np.concatenate(x)} <= kept
    assert Events(ensemble, target, "weighted").n == 4 * 512


def test_memory_of_the_tail():
    """A piece at a time of 2e6 weights: what is kept is some 2 (1 - q) N of them."""
    n = 2_000_000
    found, rng = WeightTail(n), np.random.default_rng(7)
    for _ in range(100):
        found.feed(np.log(rng.exponential(size=n // 100)))
        assert len(found._top) <= 2 * n // 1000 + 66
    one = found.summary()
    assert one.efficiency == pytest.approx(0.999 / math.log(1000), abs=4 * one.efficiency_error)
