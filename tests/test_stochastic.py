"""The stochastic flow against quadrature, with wrong heats that must fail the same check; its gradients; in production."""

import copy

import numpy as np
import pytest
import torch
from reference import free_field, two_by_two
from tables import rng, scramble
from test_exactness import worst

from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.correction import metropolis
from latticeflow.errors import InputError
from latticeflow.flows import Flow, Split, Symmetrised
from latticeflow.flows.stochastic import Stochastic, StochasticFlow
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HybridSpec
from latticeflow.statistics import summarise_weights
from latticeflow.targets import FreeField, Phi4
from latticeflow.training import TrainSettings, train
from latticeflow.training.loss import path, reparametrised
from latticeflow.training.members import require_trainable

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
SPEC = Stochastic(layers=3, blocks=3, sines=2, modes=3, updates=2, kicks=2)
N = 32768


@pytest.fixture(scope="module")
def flow():
    """Trained for a moment only, in float64: a good flow would hide wrong weights."""
    built = SPEC.build_for(SQUARE, seed=1)
    settings = TrainSettings(
        steps=30, warmup=5, lr=5e-3, evaluate_draws=1024, precision="float64", estimator="reparametrised"
    )
    train(built, SQUARE, settings, seed=1)
    return built


def draw(flow):
    draws, _ = FlowSampler(SQUARE, flow).draw(None, N, stream(90, Purpose.DRAW, 0))
    return draws.x.flatten(1).numpy(), draws.log_w


def pulls(flow):
    """Those of fresh draws."""
    return pulls_of(*draw(flow))


def pulls_of(x, log_w):
    """Pulls of `<w f> / Z - <f>` for the quadrature's Z, and of `<w> / Z - 1`: means of independent numbers."""
    known = two_by_two(-4.0, 8.0)
    w = np.exp(log_w - known["log_z"])
    terms = {
        "log_z": w - 1,
        "phi2": w * ((x**2).mean(1) - known["phi2"]),
        "phi4": w * ((x**4).mean(1) - known["phi4"]),
        "chi2": w * (4 * x.mean(1) ** 2 - known["chi2"]),
    }
    return {name: abs(t.mean()) / (t.std() / np.sqrt(N)) for name, t in terms.items()}


def test_known_answers(flow):
    x, log_w = draw(flow)
    assert 0.2 < summarise_weights(log_w).ess < 0.95
    assert max(pulls_of(x, log_w).values()) < 4
    observables, _ = worst(x, log_w, two_by_two(-4.0, 8.0), metropolis)
    assert observables < 4


class NoHeat(StochasticFlow):
    """Weights of the layers alone."""

    def push(self, noise):
        x, log_q = self.base.push(noise[:, 0])
        for l, (layers, _, momenta, log_u) in enumerate(self.blocks(noise)):
            for layer in layers:
                x, log_det = layer(x)
                log_q = log_q - log_det
            if l < len(self.ends) - 1:
                x = self.update(x, l, momenta, log_u)
        return x, log_q


class TooMuchHeat(NoHeat):
    """A tenth too much; all of it with the other sign would fail by weights without a finite error."""

    def push(self, noise):
        x, log_q = StochasticFlow.push(self, noise)
        return x, log_q + 0.1 * (log_q - super().push(noise)[1])


class OtherAction(StochasticFlow):
    """Heat of the actions b_l, updates at another b."""

    def update(self, x, l, momenta, log_u):
        right, self.b = self.b, 1.5 * self.b
        after = super().update(x, l, momenta, log_u)
        self.b = right
        return after


@pytest.mark.parametrize("wrong", [NoHeat, TooMuchHeat, OtherAction])
def test_wrong_heat_is_caught(flow, wrong):
    other = copy.deepcopy(flow)
    other.__class__ = wrong
    assert max(pulls(other).values()) > 6


def test_free_field_to_free_field_untrained():
    """m2 = 1 to m2 = 2 with layers that do whatever they do: `<w>` is Z within 4 sigma, in float32, on other shapes."""
    for shape in ((6,), (4, 2), (2, 2, 4)):
        target = FreeField(shape=shape, m2=2.0)
        spec = Stochastic(layers=4, blocks=3, sines=2, path_m2=1.0)
        flow = scramble(spec.build_for(target, 3), 91, scale=0.008).float()
        draws, _ = FlowSampler(target, flow).draw(None, 8192, rng(92))
        found = summarise_weights(draws.log_w)
        assert abs(found.log_z - free_field(shape, 2.0)["log_z"]) < 4 * found.log_z_error
        assert 0.05 < found.ess < 0.999 and found.log_z_error < 0.05


def test_one_block_is_the_split_flow():
    flow = scramble(Stochastic(layers=2, blocks=1, sines=2).build_for(SQUARE, 4), 93)
    noise = flow.noise(5, rng(94))
    assert noise.shape == (5, 1, 2, 2)
    x, log_q = flow.push(noise)
    y, other = Flow.push(flow, noise[:, 0])
    assert torch.equal(x, y) and torch.equal(log_q, other)


def gradient(estimator, flow, target, *key):
    flow.zero_grad()
    surrogate, value = estimator(flow, target, flow.noise(256, rng(95, *key)))
    surrogate.backward()
    return torch.cat([p.grad.flatten() for p in flow.parameters()]), float(value)


def test_gradient_is_that_of_the_blocks_own_objectives(flow):
    """Against finite differences of `S_l(y_l) - log_det_l` by hand, what enters each block held fixed."""
    flow = scramble(copy.deepcopy(flow), 97, scale=0.05)
    noise = flow.noise(256, rng(95, 0))
    with torch.no_grad():
        entering, x = [], flow.base.push(noise[:, 0])[0]
        for l, (layers, _, momenta, log_u) in enumerate(flow.blocks(noise)):
            entering.append(x)
            for layer in layers:
                x = layer(x)[0]
            if l < 2:
                x = flow.update(x, l, momenta, log_u)

    @torch.no_grad()
    def objective(l):
        x, log_det = flow.layers[l](entering[l])
        s = -SQUARE.log_prob(x) if l == 2 else flow.bridge.action(x, float(flow.b[l]))
        return float((s - log_det).mean())

    gradient(reparametrised, flow, SQUARE, 0)
    for l in range(3):
        for parameter in (flow.layers[l].log_slope, flow.layers[l].kernel, flow.layers[l].log_frequencies):
            h, values = 1e-5, []
            along = torch.linspace(1, 2, parameter.numel()).double().view_as(parameter)
            for sign in (1, -1):
                with torch.no_grad():
                    parameter += sign * h * along
                    values.append(objective(l))
                    parameter -= sign * h * along
            wanted = (values[0] - values[1]) / (2 * h)
            assert abs(wanted) > 1e-4
            assert abs(float((parameter.grad * along).sum()) - wanted) < 1e-6 * max(1, abs(wanted))


def test_both_estimators_have_the_same_mean():
    """5 sigma for each parameter, off the optimum, after updates enough to leave nothing of what entered them.

    Path terms that forget what enters the second block must fail.
    """
    target = FreeField(shape=(4,), m2=2.0)
    spec = Stochastic(layers=2, blocks=2, sines=2, updates=6, path_m2=1.0)
    flow = scramble(spec.build_for(target, 8), 98, scale=0.05)
    a, b = (
        torch.stack([gradient(estimator, flow, target, which, k)[0] for k in range(40)])
        for which, estimator in enumerate((reparametrised, path))
    )
    error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b)).clamp(
        min=1e-6
    )  # kernels of no effect have none
    assert float(((a.mean(0) - b.mean(0)).abs() / error).max()) < 5

    class Forgets(StochasticFlow):
        def path_terms(self, noise, target):
            self.bridge.force = lambda x, b: torch.zeros_like(x)
            return super().path_terms(noise, target)

    flow.__class__ = Forgets
    c = torch.stack([gradient(path, flow, target, 2, k)[0] for k in range(40)])
    error = torch.sqrt(a.var(0) / len(a) + c.var(0) / len(c)).clamp(min=1e-6)
    assert float(((a.mean(0) - c.mean(0)).abs() / error).max()) > 10


def test_path_gradient_vanishes_where_every_block_is_exact():
    """A path between equal free fields, layers that do nothing: zero draw by draw, where the other estimator is not."""
    target = FreeField(shape=(4, 4), m2=0.8)
    flow = Stochastic(layers=2, blocks=2, sines=2, base_m2=0.8).build_for(target, 9).double()
    flow.base.set_free_field(0.8)
    assert float(gradient(path, flow, target, 3)[0].abs().max()) < 1e-10
    assert float(gradient(reparametrised, flow, target, 3)[0].abs().max()) > 1e-3


def test_both_estimators_give_the_loss_of_log_q_minus_log_p(flow):
    a, b = (gradient(estimator, flow, SQUARE, 1)[1] for estimator in (reparametrised, path))
    with torch.no_grad():
        x, log_q = flow.push(flow.noise(256, rng(95, 1)))
    assert abs(a - b) < 1e-9 and abs(float((log_q - SQUARE.log_prob(x)).mean()) - a) < 1e-9


def test_updates_help():
    """The same layers, equally trained, with and without the updates of their blocks, in the same number of steps."""
    settings = TrainSettings(steps=15, warmup=5, lr=5e-3, evaluate_draws=8192)
    target = Phi4(shape=(4, 4), m2=-4.0, lam=6.0)
    ess = [
        train(
            Stochastic(layers=2, blocks=k, sines=2, modes=3, updates=3).build_for(target, 6),
            target,
            settings,
            seed=6,
        ).ess
        for k in (1, 2)
    ]
    assert ess[1] > ess[0] + 0.03


def test_no_density_at_given_x(flow):
    x = torch.zeros(1, 2, 2, dtype=torch.float64)
    assert not FlowSampler(SQUARE, flow).any_density
    for call in (flow.log_prob, flow.inverse):
        with pytest.raises(InputError, match="weights are those of paths"):
            call(x)
    with pytest.raises(InputError, match="reparametrised"):
        flow.push_with_score(flow.noise(2, rng(96)))
    with pytest.raises(InputError, match="layer a block"):
        Stochastic(layers=2, blocks=3)
    with pytest.raises(InputError, match="build_for"):
        SPEC.build(SQUARE.lattice, 1)


def test_who_needs_that_density_refuses_at_once(flow):
    with pytest.raises(InputError, match="hybrid: StochasticFlow has no density at given x"):
        HybridSpec(chains=8, block=8).build(SQUARE, flow)
    with pytest.raises(InputError, match="symmetrised: StochasticFlow has no density at given x"):
        Symmetrised(flow=SPEC).build_for(SQUARE, 1)
    for settings in (dict(estimator="log_variance"), dict(objective="forward", data="nowhere")):
        with pytest.raises(InputError, match=r"train\.(estimator|objective) = .* no density at given x"):
            require_trainable(flow, TrainSettings(steps=2, **settings))
    split = Split(layers=2, sines=2)  # the same calls with a density
    HybridSpec(chains=8, block=8).build(SQUARE, split.build(SQUARE.lattice, 1))
    Symmetrised(flow=split).build_for(SQUARE, 1)


def test_production(tmp_path, capsys):
    """A deck: trained, interrupted and resumed, sampled, measured and verified."""
    deck = {
        "name": "stochastic",
        "seed": 7,
        "target": {"kind": "phi4", "shape": [2, 2], "m2": -4.0, "lam": 8.0},
        "flow": {"kind": "stochastic", "layers": 2, "sines": 2, "path_m2": 1.5},
        "train": {"steps": 30, "batch": 32, "evaluate_draws": 1024, "checkpoint_every": 10, "keep": 9},
        "sampler": {"flow": {"block": 4096}},
    }
    path = tmp_path / "deck.toml"
    path.write_text(Deck.parse(deck).toml())
    run = train_run(path, folder=tmp_path / "run")
    again = train_run(path, folder=tmp_path / "again")
    for step in ("step_00000020", "step_00000030"):
        for file in (again.weights / step).iterdir():
            file.unlink()
        (again.weights / step).rmdir()
    train_run(again.path, resume=True)
    name = "step_00000030/flow.safetensors"
    assert (run.weights / name).read_bytes() == (again.weights / name).read_bytes()

    ensemble = sample_run(run, sampler="flow", draws=16384)
    known = two_by_two(-4.0, 8.0)
    rows = measure_run(run.path, "flow")
    for observable in ("phi2", "phi4", "chi2"):
        value, error = rows[observable].reweighted
        assert abs(value - known[observable]) < 4 * error
    weights = ensemble.summary().weights
    assert abs(weights.log_z - known["log_z"]) < 4 * weights.log_z_error
    assert np.isfinite(weights.ess)
    assert verify_run(run)["flow"].of_paths
    assert "log w not recomputed: they are those of paths" in " ".join(capsys.readouterr().out.split())
