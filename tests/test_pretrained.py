"""Flows that come with the library: each is sampled, and its ESS is what its own log says."""

import pytest
from tables import rng

import latticeflow as lf
from latticeflow import pretrained
from latticeflow.errors import InputError
from latticeflow.flows import Split
from latticeflow.run import Run
from latticeflow.samplers import FlowSampler
from latticeflow.statistics.weights import summarise_weights


@pytest.mark.parametrize("name", pretrained.names())
def test_each_is_what_its_log_says(name):
    one = lf.load(name)
    n = 4096 if one.target.lattice.volume < 500 else 1024 if one.target.lattice.volume < 2000 else 128
    # a draw of 32x32 takes some 20 ms, one of 64x64 100
    draws, _ = FlowSampler(one.target, one.flow, batch=min(n, 512)).draw(None, n, rng(1))
    summary = summarise_weights(draws.log_w)
    last = one.log[-1]
    assert summary.ess == pytest.approx(last["ess"], abs=6 * (summary.ess_error + last["ess_error"]))
    assert abs(summary.log_z - last["log_z"]) < 5 * summary.log_z_error + 0.01
    # negative control: an untrained flow of the same deck
    untrained = one.deck.flow.build(one.target.lattice, 1)
    draws, _ = FlowSampler(one.target, untrained, batch=512).draw(None, n, rng(1))
    assert summarise_weights(draws.log_w).ess < 0.5 * summary.ess
    size = sum(path.stat().st_size for path in (pretrained.HERE / name).rglob("*") if path.is_file())
    assert size < 1_000_000


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="no pretrained flow 'phi5'; known: "):
        lf.load("phi5")


def test_a_run_is_published_once(tmp_path):
    table = {"name": "r", "seed": 1, "target": {"kind": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 8.0}}
    deck = lf.Deck.parse({**table, "flow": {"kind": "split"}, "train": {"steps": 4, "evaluate_draws": 1024}})
    run = Run.create(deck, tmp_path / "run")
    flow = Split().build(deck.target.lattice, 1)
    lf.train(flow, deck.target, deck.train, seed=1, weights=run.weights)
    run.log.write_text("")
    place = pretrained.publish(run, "mine", tmp_path)
    assert (place / "deck.toml").is_file() and not list(place.rglob("optimizer*"))
    with pytest.raises(InputError, match="exists; nothing was changed"):
        pretrained.publish(run, "mine", tmp_path)
