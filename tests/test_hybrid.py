"""Flow proposals in turn with HMC, against quadrature; wrong ratios and HMC alone must fail the same checks."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from jobs import contents
from reference import two_by_two
from tables import scramble

import latticeflow.samplers.hybrid as hybrid_module
from latticeflow.analysis.compare import compare_series
from latticeflow.analysis.series import Series
from latticeflow.config import Deck
from latticeflow.errors import InputError, NumericalError
from latticeflow.flows import Flow, Split
from latticeflow.flows.base import Spectrum
from latticeflow.production.sample import sample_run
from latticeflow.production.summary import summary_lines
from latticeflow.production.train import train_run
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HMCSpec, HybridSpec
from latticeflow.statistics import mean
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField, Phi4
from latticeflow.training.log import read as read_log

torch.set_num_threads(1)
C, STEPS = 128, 400
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
SQUARE_EXACT = two_by_two(-4.0, 8.0)
# two wells at m = +-1.2, 13 apart in S: HMC stays where it is
BROKEN = Phi4(shape=(2, 2), m2=-4.0, lam=1.2)
BROKEN_EXACT = two_by_two(-4.0, 1.2, edge=2.7, h=0.15)
SHORT = {"chains": C, "block": C, "thermalisation": 100, "step": 0.15, "length": 0.3}


def gaussian(target, m2) -> Flow:
    """The free field of m2 as a flow: exact density, and the width of phi by choice."""
    return Flow(Spectrum(target.lattice, m2), [])


def split(target, m2) -> Flow:
    """Layers with an inverse worth the name, never trained."""
    return scramble(Split(layers=2, sines=2, base_m2=m2).build(target.lattice, seed=1), 5, scale=0.1)


def sampler_of(target, flow=None, **settings):
    if flow is None:
        return HMCSpec(**{**SHORT, **settings}).build(target)
    return HybridSpec(**{**SHORT, "trajectories": 1, **settings}).build(target, flow)


def run(target, flow=None, positive=False, steps=STEPS, **settings):
    """Draws, and their field `[chains, steps, V]`; without a flow by HMC. `positive`: every chain begins at m > 0."""
    sampler = sampler_of(target, flow, **settings)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    if positive:
        sign = np.sign(state["x"].mean((1, 2), keepdims=True))
        state = {**state, "x": sign * state["x"]}  # S is even: log_prob stays
    draws, _ = sampler.draw(state, steps * C, stream(1, Purpose.DRAW, 0, 0))
    return draws, draws.x.double().reshape(steps, C, -1).transpose(0, 1).numpy()


def pulls(x, reference):
    m = x.mean(-1)
    found = {"phi2": (x**2).mean(-1), "phi4": (x**4).mean(-1), "chi2": 4 * m**2, "abs_m": np.abs(m)}
    estimates = {name: mean(values) for name, values in found.items()}
    assert all(one.error < 0.015 * reference[name] for name, one in estimates.items())
    return {name: (one.value - reference[name]) / one.error for name, one in estimates.items()}


def worst(x, reference):
    return max(map(abs, pulls(x, reference).values()))


# known answers

CASES = {
    "narrow": (gaussian, 4.0, {}),
    "wide, K = 3, thin = 2": (gaussian, 0.3, {"trajectories": 3, "thin": 2, "steps": 200}),
    "layers, float32": (split, 1.0, {"precision": "float32", "steps": 250}),
}


@pytest.mark.parametrize("make, m2, settings", CASES.values(), ids=list(CASES))
def test_two_by_two_quadrature(make, m2, settings):
    draws, x = run(SQUARE, make(SQUARE, m2), **settings)
    assert 0.05 < draws.info["flow_acceptance"].mean() < 0.9  # neither idle nor exact by itself
    assert worst(x, SQUARE_EXACT) < 4
    assert draws.x.dtype == getattr(torch, settings.get("precision", "float64")) and draws.log_w is None
    np.testing.assert_array_equal(draws.log_prob, SQUARE.log_prob(draws.x.double()).numpy())
    creutz = draws.info["exp_minus_dh"]
    assert abs(creutz.mean() - 1) < 4 * creutz.std() / np.sqrt(len(creutz))


RIGHT = hybrid_module.log_ratio
WRONG = {
    "log q left out": lambda new_p, new_q, p, q: new_p - p,
    "log q with the wrong sign": lambda new_p, new_q, p, q: RIGHT(new_p, -new_q, p, -q),
    "log q of x left out": lambda new_p, new_q, p, q: RIGHT(new_p, new_q, p, 0 * q + new_q.mean()),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=list(WRONG))
def test_a_wrong_ratio_is_caught(monkeypatch, wrong):
    monkeypatch.setattr(hybrid_module, "log_ratio", wrong)
    assert worst(run(SQUARE, gaussian(SQUARE, 4.0))[1], SQUARE_EXACT) > 8


def test_a_log_q_from_before_the_trajectories_is_caught(monkeypatch):
    """HMC has moved x since: log q must be that of where it is now, not of where the flow put it."""

    class Stale(Flow):
        kept = None

        def log_prob(self, x):
            return super().log_prob(x) if self.kept is None else self.kept

    class Forgetful(hybrid_module.Hybrid):
        def flow_update(self, state, rng):
            ok, after = super().flow_update(state, rng)
            self.flow.kept = None
            self.flow.kept = self.flow.log_prob(torch.from_numpy(after["x"]))
            return ok, after

    monkeypatch.setattr(hybrid_module, "Hybrid", Forgetful)
    stale = Stale(Spectrum(SQUARE.lattice, 4.0), [])
    assert worst(run(SQUARE, stale)[1], SQUARE_EXACT) > 8


# what it is for


def flips(x):
    """Changes of the sign of m, per chain."""
    return (np.diff(np.sign(x.mean(-1)), axis=1) != 0).sum(1)


def test_two_wells_from_one():
    """Every chain begins in the right-hand well. A flow of a tenth's acceptance is enough to balance the two."""
    draws, x = run(BROKEN, gaussian(BROKEN, 0.15), positive=True)
    assert 0.05 < draws.info["flow_acceptance"].mean() < 0.15
    assert worst(x, BROKEN_EXACT) < 4
    assert flips(x).min() > 0 and flips(x).mean() > 10
    settled = mean(x.mean(-1)[:, 100:])
    assert abs(settled.value) < 4 * settled.error < 0.15
    _, x = run(BROKEN, positive=True)
    assert worst(x, BROKEN_EXACT) < 4  # HMC is right within a well,
    assert flips(x).max() == 0 and x.mean() > 1.2  # and never leaves it


def test_a_flow_that_is_the_target_is_always_accepted():
    target = FreeField(shape=(4, 4), m2=0.7)
    draws, x = run(target, gaussian(target, 0.7), steps=100)
    assert (draws.info["flow_acceptance"] == 1).all()
    assert draws.info["acceptance"].mean() < 1
    chi2 = mean(16 * x.mean(-1) ** 2)
    assert abs(chi2.value - 1 / (2 * 0.7)) < 4 * chi2.error


# state, bookkeeping


def test_resume_equals_one_longer_run():
    sampler = sampler_of(SQUARE, split(SQUARE, 1.0), chains=8, block=8, trajectories=2, thin=2)
    state = sampler.start(3, stream(9, Purpose.START, 3))
    assert state["accepted"].sum() == 0 == state["trajectories"]
    rng = stream(9, Purpose.DRAW, 3, 0)
    whole, end = sampler.draw(state, 80, rng)
    rng = stream(9, Purpose.DRAW, 3, 0)
    first, middle = sampler.draw(state, 32, rng)
    second, last = sampler.draw({k: v.copy() for k, v in middle.items()}, 48, rng)
    assert torch.equal(whole.x, torch.cat([first.x, second.x]))
    np.testing.assert_array_equal(whole.log_prob, np.concatenate([first.log_prob, second.log_prob]))
    names = {"flow_acceptance", "acceptance", "exp_minus_dh", "smallest_acceptance"}
    assert set(whole.info) == names and all(values.shape == (10,) for values in whole.info.values())
    for name in names:
        np.testing.assert_array_equal(whole.info[name], np.concatenate([first.info[name], second.info[name]]))
    assert end.keys() == last.keys() and end["trajectories"] == 40
    for name in end:
        np.testing.assert_array_equal(end[name], last[name])
    assert end["accepted"].min() / 40 == whole.info["smallest_acceptance"][-1]
    np.testing.assert_array_equal(whole.x[-8:].numpy(), end["x"])


class InABox(Phi4):
    measure: ClassVar[str] = "hypercube"


class Overflows(Flow):
    def log_prob(self, x):
        return super().log_prob(x) * float("nan")


def test_refuses():
    with pytest.raises(InputError, match="train one first"):
        HybridSpec().build(SQUARE)
    with pytest.raises(InputError, match=r"hybrid: target 'phi4' has the measure 'hypercube'"):
        HybridSpec().build(InABox(shape=(2, 2), m2=1.0, lam=1.0), gaussian(SQUARE, 1.0))
    with pytest.raises(InputError, match="shapes must agree"):
        HybridSpec().build(Phi4(shape=(4, 2), m2=1.0, lam=1.0), gaussian(SQUARE, 1.0))
    with pytest.raises(InputError, match="hybrid: block = 100 is not a multiple of chains = 64"):
        HybridSpec(chains=64, block=100)
    sampler = sampler_of(SQUARE, gaussian(SQUARE, 1.0), chains=8, block=8)
    with pytest.raises(InputError, match="hybrid: no state"):
        sampler.draw(None, 8, stream(1, Purpose.DRAW, 0, 0))
    sampler = sampler_of(SQUARE, Overflows(Spectrum(SQUARE.lattice), []), chains=8, block=8)
    with pytest.raises(NumericalError, match="at 8 of 8 chains and 0 of as many proposals"):
        sampler.start(0, stream(1, Purpose.START, 0))


# under the command line's functions

CHAINS = {"chains": 64, "block": 1024, "streams": 2, "thermalisation": 100, "step": 0.2, "length": 0.8}
DECK = {
    "name": "small",
    "seed": 7,
    "target": {"kind": "phi4", "shape": [2, 2], "m2": -4.0, "lam": 8.0},
    "flow": {"kind": "split", "layers": 2, "sines": 2},
    "train": {"steps": 60, "warmup": 10, "evaluate_every": 60, "evaluate_draws": 1024},
    "sampler": {"hybrid": {**CHAINS, "trajectories": 2}, "hmc": CHAINS},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")
    path = folder / "deck.toml"
    path.write_text(Deck.parse(DECK).toml())
    return train_run(path, folder=folder / "run")


def test_production(trained, tmp_path):
    """Extended block by block or at once: the same bytes; weights recorded; figures shown."""
    at_once = train_run(
        trained.path / "deck.toml", folder=tmp_path / "run"
    )  # the same deck, the same weights
    sample_run(at_once, sampler="hybrid", draws=4096)
    for draws in (2048, 4096):
        sample_run(trained, sampler="hybrid", draws=draws)
    one, other = contents(trained.path), contents(at_once.path)
    assert one == other and sum("s000001" in name and name.endswith(".h5") for name in one) == 2
    ensemble = Ensemble.open(trained.ensemble("hybrid"))
    assert len(ensemble.weights) == 64 and not ensemble.weighted and ensemble.chains == 64
    assert any("acceptance of the flow's proposals 0." in line for line in summary_lines(ensemble))
    sample_run(trained, sampler="hmc", draws=8192)
    series = {name: Series.open(trained, name) for name in ("hybrid", "hmc")}
    found = compare_series(trained, series, read_log(trained.log))
    assert found.quality["hybrid"]["flow_acceptance"].value > 0.1
    assert "training_seconds" in found.quality["hybrid"] and "training_seconds" not in found.quality["hmc"]
    assert abs(found.pull("phi2", "hmc")) < 4
