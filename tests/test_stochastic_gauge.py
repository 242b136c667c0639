"""The stochastic flow of gauge fields: Jarzynski's equality against the character expansion, with wrong weights that must
fail; gradients; training; in production."""

import copy

import numpy as np
import pytest
import torch
from tables import rng, scramble

from latticeflow import exact
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.flows.stochastic_gauge import StochasticGauge, StochasticGaugeFlow, generator
from latticeflow.observables import measure
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import summarise_weights
from latticeflow.targets import Phi4, Schwinger, Wilson
from latticeflow.training import TrainSettings, train
from latticeflow.training.loss import path, reparametrised

torch.set_num_threads(1)
POINTS = [  # group, shape, from beta0 to beta
    ("su2", (2, 4), 1.5, 2.5),
    ("su3", (2, 2), 3.0, 5.0),
]
N = 4096


def made(group, shape, beta0, beta, *key, **settings):
    """A flow whose layers do whatever they do."""
    target = Wilson(shape=shape, group=group, beta=beta)
    spec = StochasticGauge(**{"beta0": beta0, "steps": 3, "thermalisation": 12, **settings})
    return target, scramble(spec.build_for(target, 1), *key, scale=0.06)


def pulls(target, flow, *key):
    """Of `<w> / (Z / Z0) - 1` and of `<w (P - <P>)>`, P the plaquette; independent draws."""
    beta0 = flow.base.target.beta
    group, shape = target.group, target.shape
    draws, _ = FlowSampler(target, flow, batch=N).draw(None, N, rng(*key))
    ratio = exact.log_z(group, shape, target.beta) - exact.log_z(group, shape, beta0)
    w = np.exp(draws.log_w - ratio)
    p = measure(target, draws.x, "plaquette")["plaquette"]
    terms = (w - 1, w * (p - exact.plaquette(group, shape, target.beta)))
    return [abs(t.mean()) / (t.std() / np.sqrt(N)) for t in terms], summarise_weights(draws.log_w)


@pytest.mark.parametrize("point", POINTS)
def test_mean_weight_is_the_ratio_of_partition_functions(point):
    target, flow = made(*point, 1, overrelaxation=1)
    found, weights = pulls(target, flow, 2)
    assert max(found) < 4
    assert 0.2 < weights.ess < 0.99 and weights.log_z_error < 0.05


class NoJacobian(StochasticGaugeFlow):
    def push(self, noise):
        x, log_q = self.start(noise)
        for l, (layers, b, own) in enumerate(self.blocks(noise)):
            for layer in layers:
                x, _ = layer(x)
            if l < len(self.ends) - 1:
                before, x = x, self.update(x, l, own)
                log_q = log_q + self.action(before, b) - self.action(x, b)
        return x, log_q


class TooMuchHeat(StochasticGaugeFlow):
    """A tenth too much; none at all would fail by weights without a finite error."""

    def action(self, x, b):
        return 1.1 * super().action(x, b)


class OtherAction(StochasticGaugeFlow):
    """Heat of the actions b_l, updates at another beta."""

    def update(self, x, l, rng):
        right, self.b = self.b, self.b - 0.6
        after = super().update(x, l, rng)
        self.b = right
        return after


@pytest.mark.parametrize("wrong", [NoJacobian, TooMuchHeat, OtherAction])
def test_wrong_weights_are_caught(wrong):
    target, flow = made(*POINTS[0], 1)
    flow.__class__ = wrong
    assert max(pulls(target, flow, 2)[0]) > 6


def test_the_base_is_the_ensemble_it_says():
    """Plaquette of base draws from links 1; after one sweep they are not there yet."""
    group, shape, beta0, beta = POINTS[0]
    _, flow = made(group, shape, beta0, beta, 3)
    known = exact.plaquette(group, shape, beta0)
    for sweeps, inside in ((12, True), (1, False)):
        flow.base.sweeps = sweeps
        x, log_r = flow.base.push(flow.noise(N, rng(4)))
        torch.testing.assert_close(log_r, flow.base.target.log_prob(x))
        p = measure(flow.base.target, x, "plaquette")["plaquette"]
        assert (abs(p.mean() - known) < 4 * p.std() / np.sqrt(N)) == inside


def test_the_base_has_all_sectors_of_the_centre(monkeypatch):
    """SU(3), deconfined: Polyakov loops average to zero, which few sweeps from links 1 would not find."""
    target = Wilson(shape=(2, 2, 2, 2), group="su3", beta=8.0)
    base = StochasticGauge(beta0=6.0, steps=1, thermalisation=3).build_for(target, 1).base
    noise = base.noise(200, rng(31))

    def mean_loop():
        x, log_r = base.push(noise)
        loop = x[:, 3].select(4, 0) @ x[:, 3].select(4, 1)
        re = target.links.trace(loop).real.flatten(1).mean(1).double()
        return float(re.mean() / (re.std() / len(re) ** 0.5)), log_r

    pull, log_r = mean_loop()
    monkeypatch.setattr("latticeflow.flows.stochastic_gauge.turn_by_centre", lambda x, *_: x)
    control, log_r_control = mean_loop()
    assert abs(pull) < 4 and control > 20
    torch.testing.assert_close(log_r, log_r_control, rtol=0, atol=1e-3)  # a symmetry of the action


def test_layers_at_their_start_leave_the_path_without_layers():
    """x and log q of the path by hand, from the same random numbers."""
    group, shape, beta0, beta = POINTS[1]
    target = Wilson(shape=shape, group=group, beta=beta)
    flow = StochasticGauge(beta0=beta0, steps=3, thermalisation=2, updates=2).build_for(target, 1).double()
    noise = flow.noise(5, rng(5))
    x, log_q = flow.push(noise)
    y, log_r = flow.base.push(noise)
    work = -log_r
    for l, now in enumerate((11 / 3, 13 / 3)):  # beta after a third and two thirds of the path
        there = target.at(beta=now)
        before, y = y, flow.update(y, l, generator(noise, l + 1))
        work = work + there.action(y) - there.action(before)
    torch.testing.assert_close(x, y, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_q, -work, rtol=0, atol=1e-10)


def gradient(estimator, flow, target, noise):
    flow.zero_grad()
    surrogate, value = estimator(flow, target, noise)
    surrogate.backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters()]), float(value)


def test_gradient_is_that_of_the_blocks_own_objectives():
    """Against finite differences of `S_l(y_l) - log_det_l` by hand, what enters each block held fixed; both estimators."""
    target, flow = made(*POINTS[1], 6)
    noise = flow.noise(64, rng(7))
    a, loss = gradient(path, flow, target, noise)
    b, other = gradient(reparametrised, flow, target, noise)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        x, log_q = flow.push(noise)
        assert abs(float((log_q - target.log_prob(x)).mean()) - loss) < 1e-9 and abs(loss - other) < 1e-9
        entering, x = [], flow.start(noise)[0]
        for l, (layers, _, own) in enumerate(flow.blocks(noise)):
            entering.append(x)
            x = layers[0](x)[0]
            x = flow.update(x, l, own) if l < 2 else x

        for l, slope in enumerate(a.view(3, 2, 2)):
            along, ends = torch.tensor([[1.0, -0.5], [2.0, 1.5]], dtype=torch.float64), []
            for sign in (1, -1):
                flow.layers[l].weight += sign * 1e-5 * along
                y, log_det = flow.layers[l](entering[l])
                s = target.at(beta=3.0 + 2.0 * (l + 1) / 3).action(y)
                ends.append(float((s - log_det).mean()))
                flow.layers[l].weight -= sign * 1e-5 * along
            wanted = (ends[0] - ends[1]) / 2e-5
            assert abs(wanted) > 1e-3 and abs(float((slope * along).sum()) - wanted) < 1e-6


def test_training_improves_the_weights():
    """Against the very same path without layers: ESS by 10 of its errors and more."""
    target = Wilson(shape=(2, 4), group="su2", beta=4.0)
    flow = StochasticGauge(beta0=1.5, steps=2, thermalisation=6).build_for(target, 1)
    plain = copy.deepcopy(flow)
    train(flow, target, TrainSettings(steps=24, lr=0.03, warmup=3, batch=16, evaluate_draws=1024), seed=2)
    before, after = (
        summarise_weights(FlowSampler(target, f).draw(None, 2048, stream(3, Purpose.DRAW, 0))[0].log_w)
        for f in (plain, flow)
    )
    assert after.ess - before.ess > 10 * (before.ess_error**2 + after.ess_error**2) ** 0.5


def test_production(tmp_path, capsys):
    """A deck: trained, sampled in two calls as in one, measured and verified."""
    table = {
        "name": "stochastic_gauge",
        "seed": 7,
        "target": {"kind": "wilson", "shape": [2, 4], "group": "su2", "beta": 2.5},
        "flow": {"kind": "stochastic_gauge", "beta0": 1.5, "steps": 2, "thermalisation": 8},
        "train": {"steps": 10, "batch": 32, "lr": 0.02, "warmup": 2, "evaluate_draws": 1024},
        "sampler": {"flow": {"block": 1024, "batch": 512}},
    }
    deck = tmp_path / "deck.toml"
    deck.write_text(Deck.parse(table).toml())
    run = train_run(deck, folder=tmp_path / "run", device="cpu")
    sample_run(run, sampler="flow", draws=1024, device="cpu")
    ensemble = sample_run(run, sampler="flow", draws=4096, device="cpu")
    value, error = measure_run(run.path, "flow")["plaquette"].reweighted
    assert abs(value - exact.plaquette("su2", (2, 4), 2.5)) < 4 * error
    weights = ensemble.summary().weights
    ratio = exact.log_z("su2", (2, 4), 2.5) - exact.log_z("su2", (2, 4), 1.5)
    assert abs(weights.log_z - ratio) < 4 * weights.log_z_error
    assert verify_run(run)["flow"].of_paths
    assert "log w not recomputed: they are those of paths" in " ".join(capsys.readouterr().out.split())


def test_what_cannot_be_is_refused():
    spec = StochasticGauge(beta0=1.0)
    for target, message in (
        (Wilson(shape=(4, 4), group="u1", beta=2.0), r"stout layers of U\(1\)"),
        (Wilson(shape=(4, 3), group="su2", beta=2.0), "even sides"),
        (Schwinger(shape=(4, 4), beta=2.0, kappa=0.2), "heat baths are known for target 'wilson'"),
        (Phi4(shape=(4, 4), m2=1.0, lam=1.0), "found 'phi4'"),
    ):
        with pytest.raises(InputError, match=message):
            spec.build_for(target, 1)
    target, flow = made(*POINTS[0], 8)
    with pytest.raises(InputError, match="use build_for"):
        spec.build(target.lattice, 1)
    x = flow.push(flow.noise(2, rng(9)))[0]
    for call in (flow.log_prob, flow.inverse):
        with pytest.raises(InputError, match="weights are those of paths"):
            call(x)
    with pytest.raises(InputError, match="beta0"):
        StochasticGauge(beta0=-1.0)
