"""Flow and correction against quadrature and transfer matrix, with wrong ones that must fail the same check.

The flows are trained for a moment only: a flow that is nearly exact would hide a wrong correction.
"""

import copy

import numpy as np
import pytest
import torch
from reference import transfer_matrix, two_by_two

from latticeflow.correction import Selection, metropolis, reweight
from latticeflow.flows import Affine, Flow, Split
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, FlowSamplerSpec
from latticeflow.statistics import mean, summarise_weights
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, train

torch.set_num_threads(1)
N = 65536
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
RING = Phi4(shape=(6,), m2=-4.0, lam=8.0)
CASES = {
    "split 2x2": (Split(layers=3, sines=3), SQUARE, two_by_two(-4.0, 8.0), 15),
    "split ring": (Split(layers=3, sines=3), RING, transfer_matrix(6, -4.0, 8.0), 22),
    "affine 2x2": (Affine(layers=4, hidden=(4,)), SQUARE, two_by_two(-4.0, 8.0), 250),
}


@pytest.fixture(scope="module", params=CASES.values(), ids=list(CASES))
def case(request):
    """(flow in float64, target, reference, x `[N, V]`, log_w `[N]`)."""
    spec, target, reference, steps = request.param
    flow = spec.build(target.lattice, seed=1)
    settings = TrainSettings(steps=steps, warmup=10, lr=5e-3, evaluate_draws=1024, precision="float64")
    train(flow, target, settings, seed=1)
    return flow, target, reference, *draw(flow, target)


def draw(flow, target):
    draws, _ = FlowSampler(target, flow).draw(None, N, stream(2, Purpose.DRAW, 0))
    return draws.x.flatten(1).numpy(), draws.log_w


def pulls(x, reference, selection):
    """Pull of every observable that the reference knows: of the chain `x[index]`, or of the weighted mean.

    The error of `sum w O / sum w` is that of the mean of `w (O - that)`.
    """
    x, w = x[selection.index], selection.weight
    m = x.mean(1)
    volume = x.shape[1]
    observables = {
        "phi2": (x**2).mean(1),
        "phi4": (x**4).mean(1),
        "chi2": volume * m**2,
        "abs_m": np.abs(m),
    }
    found = {}
    for name in observables.keys() & reference.keys():
        value = np.average(observables[name], weights=w)
        estimate = mean((value + w * (observables[name] - value))[None])
        assert estimate.error < 0.02 * value
        found[name] = (estimate.value - reference[name]) / estimate.error
    return found


def worst(x, log_w, reference, correct=metropolis):
    """The largest |pull| of the observables, and |pull| of log Z."""
    found = pulls(x, reference, correct(log_w, stream(3, Purpose.METROPOLIS)))
    assert len(found) >= 3
    weights = summarise_weights(log_w)
    return max(map(abs, found.values())), abs(weights.log_z - reference["log_z"]) / weights.log_z_error


def by_weight(log_w, rng):
    return reweight(log_w)


@pytest.mark.parametrize("correct", [metropolis, by_weight])
def test_known_answers(case, correct):
    _, _, reference, x, log_w = case
    assert (
        0.2 < summarise_weights(log_w).ess < 0.95
    )  # good enough to be measured, bad enough to need correction
    observables, log_z = worst(x, log_w, reference, correct)
    assert observables < 4 and log_z < 4


class NoLogDet(Flow):
    """The density of z in place of that of x."""

    def push(self, noise):
        return super().push(noise)[0], self.base.push(noise)[1]


def keeps_the_rejected(log_w, rng):
    """Metropolis that counts acceptances and yet keeps every proposal."""
    return Selection(np.arange(len(log_w)), np.ones(len(log_w)))


def keeps_the_one_before(log_w, rng):
    """After a rejection the proposal before, in place of the chain's configuration before."""
    index = metropolis(log_w, rng).index
    wrong = np.maximum(np.arange(len(index)) - (index != np.arange(len(index))), 0)
    return Selection(wrong, np.ones(len(index)))


@pytest.mark.parametrize("wrong", [keeps_the_rejected, keeps_the_one_before])
def test_a_wrong_index_is_caught(case, wrong):
    _, _, reference, x, log_w = case
    assert worst(x, log_w, reference, wrong)[0] > 6


@pytest.mark.parametrize("correct", [metropolis, by_weight])
def test_a_missing_log_det_is_caught(case, correct):
    flow, target, reference, *_ = case
    x, log_w = draw(NoLogDet(flow.base, flow.layers), target)
    assert min(worst(x, log_w, reference, correct)) > 6


@pytest.mark.parametrize("correct", [metropolis, by_weight])
def test_a_missing_log_q_is_caught(case, correct):
    _, target, reference, x, _ = case
    log_p = target.log_prob(torch.from_numpy(x).view(-1, *target.event_shape)).numpy()
    assert min(worst(x, log_p, reference, correct)) > 6


@pytest.mark.parametrize("precision, tolerance", [("float64", 1e-12), ("float32", 3e-5)])
def test_stored_log_w_is_log_prob_minus_log_q_at_the_stored_x(case, precision, tolerance):
    """S by its formula in numpy, log q through the inverse in float64; float32 x is a rounded image of its noise."""
    flow, target, *_ = case
    sampler = FlowSamplerSpec(precision=precision).build(target, copy.deepcopy(flow))
    draws, _ = sampler.draw(None, 8192, stream(4, Purpose.DRAW, 0))
    assert draws.x.dtype == getattr(torch, precision)
    x = draws.x.double()
    kinetic = sum((np.roll(x.numpy(), -1, mu) - x.numpy()) ** 2 for mu in range(1, x.dim()))
    s = (kinetic + target.m2 * x.numpy() ** 2 + target.lam * x.numpy() ** 4).reshape(len(x), -1).sum(1)
    with torch.no_grad():
        log_q = copy.deepcopy(sampler.flow).double().log_prob(x).numpy()
    np.testing.assert_allclose(draws.log_w, -s - log_q, rtol=0, atol=tolerance)
