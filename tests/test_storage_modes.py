"""Fields of all draws, of every k-th, or observables only: the same draws, the same numbers, less on disk."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from fake_ensembles import ABOUT, CHAINS, RECORD, fake_draws, fake_state
from jobs import contents

from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.observables import measure
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.store import Ensemble
from latticeflow.store.block import block_path, read_whole, write_h5
from latticeflow.store.hdf5 import open_h5
from latticeflow.training import TrainSettings, train

DECK = {
    "name": "modes",
    "seed": 7,
    "target": {"kind": "phi4", "shape": [4, 4], "m2": -1.0, "lam": 4.0},
    "flow": {"kind": "split", "layers": 2, "sines": 2, "site_sines": 2},
    "sampler": {
        "flow": {"block": 64, "batch": 40},
        "hmc": {"chains": 4, "streams": 2, "block": 48, "thermalisation": 100, "step": 0.2, "length": 1.0},
    },
}
DRAWS = {"flow": 192, "hmc": 192}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """All fields kept."""
    run = Run.create(Deck.parse(DECK), tmp_path_factory.mktemp("modes") / "run")
    settings = TrainSettings(steps=2, lr=0.01, warmup=0, evaluate_draws=1024)
    train(
        run.deck.flow.build(run.deck.target.lattice, 1),
        run.deck.target,
        settings,
        seed=1,
        weights=run.weights,
    )
    for sampler, draws in DRAWS.items():
        sample_run(run, sampler=sampler, draws=draws)
    return run.path


@pytest.fixture
def empty(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("ensembles"))


def thinned(run: Path, sampler: str, keep: int, draws: int | None = None) -> Ensemble:
    overrides = [f"sampler.{sampler}.keep_fields={keep}"]
    return sample_run(run, sampler=sampler, draws=draws or DRAWS[sampler], overrides=overrides)


@pytest.mark.parametrize("keep", [0, 4])
@pytest.mark.parametrize("sampler", DRAWS)
def test_the_same_draws_and_what_was_measured_of_them(whole, empty, sampler, keep):
    full, found = Ensemble.open(whole / "ensembles" / sampler), thinned(empty, sampler, keep)
    target = Run.open(whole).deck.target
    assert found.present == full.present
    for key in full.present:
        expected = full.read(*key, *full.names(*key))
        stored, about = found.check_block(*key)
        x = expected.pop("x")
        for name, array in measure(target, x).items():
            assert stored.pop(f"measured/{name}").tobytes() == array.tobytes()
        kept = stored.pop("x", None)
        if keep:
            steps = np.arange(len(x)) // max(1, full.chains)
            assert kept.dtype == x.dtype and kept.tobytes() == x[steps % keep == 0].tobytes()
        else:
            assert kept is None
        assert set(stored) == set(expected)  # log_prob, log_w, info and the chain's state
        assert all(stored[name].tobytes() == expected[name].tobytes() for name in expected)
        assert {"observables", "targets"} <= set(about)
        assert ("log_w" in stored) == full.weighted and stored["log_prob"].dtype == np.float64
    if full.weighted:
        assert expected["log_w"].dtype == np.float64 and x.dtype == np.float32
        np.testing.assert_array_equal(found.chain().index(), full.chain().index())
        assert found.summary() == full.summary()


def test_observables_only_resumes_and_extends(empty):
    """A chain goes on from its stored state, which no thinning touches."""
    thinned(empty, "hmc", 0)
    expected = contents(empty)
    shutil.rmtree(empty / "ensembles")
    thinned(empty, "hmc", 0, draws=96)
    thinned(empty, "hmc", 0)
    assert contents(empty) == expected


def test_kept_rows(tmp_path):
    """Every 2nd step of 8 chains: draws 0 to 7, 16 to 23, and so on. Every 4th draw of a flow."""
    settings = {**RECORD["settings"], "keep_fields": 2}
    hmc = Ensemble.create(tmp_path / "hmc", **{**CHAINS, "settings": settings})
    assert hmc.kept_rows.tolist() == [i for i in range(64) if i // 8 % 2 == 0]
    flow = Ensemble.create(tmp_path / "flow", **{**RECORD, "settings": {**settings, "keep_fields": 4}})
    assert flow.kept_rows.tolist() == list(range(0, 64, 4))
    hmc.write(0, 0, fake_draws(1, weighted=False), fake_state(1), 0.5, **ABOUT)
    assert hmc.read(0, 0)["x"].tobytes() == fake_draws(1, weighted=False).x.numpy()[hmc.kept_rows].tobytes()


@pytest.mark.parametrize(("sampler", "keep"), [("hmc", 5), ("flow", 7), ("hmc", 24)])
def test_a_thinning_that_does_not_divide_the_block(empty, sampler, keep):
    with pytest.raises(InputError, match=rf"keep_fields = {keep} does not divide the \d+ steps of a block"):
        thinned(empty, sampler, keep)
    assert not list(empty.rglob("ensemble.json"))


def test_storage_is_part_of_the_identity(empty):
    thinned(empty, "flow", 0)
    with pytest.raises(InputError, match=r"settings\.keep_fields: 0, now 1"):
        sample_run(empty, sampler="flow", draws=192)


def test_asking_for_fields_that_are_not_kept(empty):
    ensemble = thinned(empty, "flow", 0)
    with pytest.raises(InputError, match=r"observables only, no fields.*keep_fields = 0"):
        ensemble.read(0, 0, "x")
    assert "x" not in ensemble.read(0, 0)


@pytest.mark.parametrize("name", ["x", "log_w", "measured/phi2"])
def test_an_array_of_another_length(empty, name):
    """Rewritten with a right digest: the lengths still have to fit."""
    ensemble = thinned(empty, "flow", 4)
    path = block_path(ensemble.path, 1, 0)
    with open_h5(path) as file:
        arrays, attributes = read_whole(path, file)
    arrays[name] = arrays[name][:-1]
    attributes["mean_log_w"] = arrays["log_w"].mean()
    write_h5(path, arrays, {key: value for key, value in attributes.items() if key != "digest"})
    with pytest.raises(StoreError, match=rf"'{name}' has \d+ rows; expected \d+"):
        ensemble.check_block(1, 0)
