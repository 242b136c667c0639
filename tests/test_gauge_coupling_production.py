"""Coupling flows of gauge fields by deck: training, production, correction, `measure` and `verify`, the code of scalars."""

import pytest
import torch

from latticeflow import exact
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run

torch.set_num_threads(1)


def deck(group, shape, beta, **flow):
    return {
        "name": group,
        "seed": 5,
        "target": {"kind": "wilson", "shape": shape, "group": group, "beta": beta},
        "flow": {"kind": "gauge_coupling", "sweeps": 1, "bins": 5, "hidden": [8], **flow},
        "train": {"steps": 10, "lr": 0.01, "warmup": 2, "batch": 32, "evaluate_draws": 1024},
        "sampler": {"flow": {"block": 1024, "batch": 512}},
    }


DECKS = {
    "u1": deck("u1", [4, 4], 1.0, mask="stripes", coupling="ncp"),
    "su2": deck("su2", [2, 4], 1.0),
    "su3": deck("su3", [2, 4], 2.0, loops=[[1, 1]]),
}


def written(table, folder):
    path = folder / "deck.toml"
    path.write_text(Deck.parse(table).toml())
    return path


@pytest.mark.parametrize("name", DECKS)
def test_trained_by_deck_and_corrected(name, tmp_path, capsys):
    table = DECKS[name]
    run = train_run(written(table, tmp_path), folder=tmp_path / "run", device="cpu").path
    sample_run(run, sampler="flow", draws=2048, device="cpu")
    plaquette = measure_run(run, "flow")["plaquette"]
    target = table["target"]
    expected = exact.plaquette(target["group"], tuple(target["shape"]), target["beta"])
    assert abs(plaquette.value - expected) < 4 * plaquette.error
    findings = verify_run(run)["flow"]
    assert not findings.problems and findings.blocks == 2 and findings.log_w_error < 1e-3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"target": {"shape": [3, 4]}}, "needs a lattice with even sides"),
        ({"flow": {"mask": "stripes"}, "target": {"shape": [4, 6]}}, "multiples of 4"),
        ({"flow": {"coupling": "ncp"}, "target": {"group": "su2"}}, "'ncp' is of u1; found su2"),
        ({"flow": {"base": "independent"}, "target": {"group": "su3"}}, "'independent' is of u1"),
    ],
)
def test_decks_that_cannot_be_are_refused(change, message, tmp_path):
    table = {**DECKS["u1"], "flow": {"kind": "gauge_coupling"}}
    table |= {key: {**table[key], **values} for key, values in change.items()}
    with pytest.raises(InputError, match=message):
        train_run(written(table, tmp_path), folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
