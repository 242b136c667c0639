"""The batch of the flow sampler, measured: the fastest is found, and an ensemble keeps the one it was begun with."""

from pathlib import Path

import pytest

from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers import FlowSampler
from latticeflow.samplers import flow as module
from latticeflow.training import TrainSettings, train

DECK = {
    "name": "free",
    "seed": 1,
    "target": {"kind": "free", "shape": [2, 2], "m2": 1.0},
    "flow": {"kind": "split", "layers": 1, "sines": 2, "site_sines": 2},
    "sampler": {"flow": {"block": 96, "batch": "auto"}},
}


@pytest.fixture
def run(tmp_path) -> Path:
    run = Run.create(Deck.parse(DECK), tmp_path / "run")
    target = run.deck.target
    settings = TrainSettings(steps=1, evaluate_draws=1024)
    train(run.deck.flow.build(target.lattice, 1), target, settings, seed=1, weights=run.weights)
    return run.path


@pytest.mark.parametrize("fastest, block, found", [(1024, 8192, 1024), (4096, 1500, 1024), (64, 100, 100)])
def test_fastest_batch(monkeypatch, fastest, block, found):
    deck, now = Deck.parse(DECK), [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def draw(self, state, n, rng):
        now[0] += max(n, fastest)  # no batch below `fastest` takes less time

    monkeypatch.setattr(FlowSampler, "draw", draw)
    sampler = FlowSampler(deck.target, deck.flow.build(deck.target.lattice, 1))
    assert module.fastest_batch(sampler, block) == found


def test_memory_of_a_gpu_ends_the_search(monkeypatch):
    deck = Deck.parse(DECK)

    def draw(self, state, n, rng):
        if n > 1024:
            raise module.torch.OutOfMemoryError("asked for too much")

    monkeypatch.setattr(FlowSampler, "draw", draw)
    monkeypatch.setattr(
        module.time, "perf_counter", iter(range(100)).__next__
    )  # a call takes 1 s, whatever its size
    sampler = FlowSampler(deck.target, deck.flow.build(deck.target.lattice, 1))
    assert module.fastest_batch(sampler, 8192) == 1024


def test_an_ensemble_keeps_its_batch(run, monkeypatch):
    assert sample_run(run, draws=10).settings["batch"] == 96  # that of a block
    monkeypatch.setattr(module, "fastest_batch", lambda *_: 32)
    assert sample_run(run, draws=200).draws == 288
    assert sample_run(run, draws=300, overrides=["sampler.flow.batch=96"]).draws == 384
    with pytest.raises(InputError, match=r"settings\.batch: 96, now 32"):
        sample_run(run, draws=400, overrides=["sampler.flow.batch=32"])


@pytest.mark.parametrize("batch", ['"large"', "0"])
def test_bad_batch(run, batch):
    with pytest.raises(InputError, match=r"FlowSamplerSpec\.batch"):
        sample_run(run, draws=10, overrides=[f"sampler.flow.batch={batch}"])
