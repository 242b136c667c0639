"""Gauge fields through the same production, correction and analysis as scalars: angles, and complex matrices."""

import shutil

import h5py
import numpy as np
import pytest
import torch
from jobs import contents
from test_production import SAMPLE
from test_verify import edit as forge

from latticeflow import exact
from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.export import export_run
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.store import Ensemble

torch.set_num_threads(1)
CHAINS = {"chains": 16, "block": 320, "streams": 2, "thermalisation": 100}


def deck(group, beta, step):
    table = {
        "name": group,
        "seed": 5,
        "target": {"kind": "wilson", "shape": [4, 4], "group": group, "beta": beta},
        "sampler": {
            "hmc": {**CHAINS, "step": step, "length": 2 * step},
            "heatbath": {**CHAINS, "thermalisation": 20, "overrelaxation": 1},
        },
    }
    if group == "u1":
        table["flow"] = {"kind": "plaquettes", "steps": 4, "harmonics": 2, "modes": 2}
        table["train"] = {"steps": 12, "optimizer": "soap", "warmup": 2, "batch": 32, "evaluate_draws": 1024}
        table["sampler"]["flow"] = {"block": 1024, "batch": 256}
    return Deck.parse(table)


DECKS = {"u1": deck("u1", 2.0, 0.4), "su3": deck("su3", 6.0, 0.5)}
JOBS = {
    "u1": ["flow:4096", "hmc:1280", "heatbath:1280"],
    "su3": ["hmc:1280", "heatbath:1280"],
}


def empty(group, folder):
    run = Run.create(DECKS[group], folder / group)
    if DECKS[group].flow is not None:
        (run.path / "deck.toml").unlink()
        run.path.rmdir()
        path = folder / "deck.toml"
        path.write_text(DECKS[group].toml())
        run = train_run(path, folder=folder / group, device="cpu")
    return run.path


@pytest.fixture(scope="module", params=DECKS)
def runs(request, tmp_path_factory):
    """A group, a run without ensembles, and one whose ensembles one process has drawn."""
    folder = tmp_path_factory.mktemp(request.param)
    path = empty(request.param, folder)
    drawn = shutil.copytree(path, folder / "drawn")
    for job in JOBS[request.param]:
        sampler, draws = job.split(":")
        sample_run(drawn, sampler=sampler, draws=int(draws), device="cpu")
    return request.param, path, drawn


@pytest.mark.mpi
def test_two_ranks_give_the_same_bytes(mpirun, runs, tmp_path):
    group, path, drawn = runs
    run = shutil.copytree(path, tmp_path / "run")
    job = mpirun(2, "-c", SAMPLE, run, *JOBS[group], cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert contents(run) == contents(drawn)


def test_stored_links_and_measured_plaquette(runs, capsys):
    """Right type and shape, on the group; means against the character expansion; every command runs."""
    group, _, drawn = runs
    target = DECKS[group].target
    for job in JOBS[group]:
        sampler = job.split(":")[0]
        ensemble = Ensemble.open(drawn / "ensembles" / sampler)
        x = torch.from_numpy(ensemble.read(*ensemble.present[0], "x")["x"])
        precision = torch.float32 if sampler == "flow" else torch.float64
        assert x.dtype == target.field_dtype(precision) and x.shape[1:] == target.event_shape
        target.check_field(x)
        rows = measure_run(drawn, sampler)
        row = rows["plaquette"]
        assert abs(row.value - exact.plaquette(group, (4, 4), target.beta)) < 4 * row.error
        printed = capsys.readouterr().out
        assert "schwinger_dyson identity" in printed and "holds" in printed and "φ" not in printed
        export_run(drawn, drawn / f"{sampler}.npz", sampler=sampler)
        assert np.load(drawn / f"{sampler}.npz")["x"].shape[1:] == target.event_shape
    verify_run(drawn)
    if group == "u1":
        compare_run(drawn)
        assert (drawn / "compare/compare.html").stat().st_size > 1000


def test_an_edited_link_is_noticed(runs, tmp_path):
    _, _, drawn = runs
    run = shutil.copytree(drawn, tmp_path / "run")
    ensemble = Ensemble.open(run / "ensembles" / "heatbath")
    path = next((ensemble.path / "blocks").rglob("*.h5"))
    path.chmod(0o644)
    with h5py.File(path, "r+") as file:
        file["x"][0, 0, 0, 0] *= 1.01
    with pytest.raises(StoreError):
        verify_run(run)


def test_links_off_the_group_are_named(tmp_path, capsys):
    """By their place, also where digest and means were made anew."""
    path = empty("su3", tmp_path)
    sample_run(path, sampler="heatbath", draws=128, device="cpu")
    file = next((path / "ensembles/heatbath/blocks").rglob("*.h5"))
    file.chmod(0o644)
    forge(file, lambda arrays: np.multiply(arrays["x"], 1.001, out=arrays["x"]))
    with pytest.raises(StoreError):
        verify_run(path)
    assert "hold links off SU(3), by up to 0.00" in capsys.readouterr().out


def test_a_flow_of_another_group_is_refused(tmp_path):
    table = DECKS["u1"].table()
    table["target"]["group"], table["flow"] = "su2", {"kind": "loops"}
    path = tmp_path / "deck.toml"
    path.write_text(Deck.parse(table).toml())
    with pytest.raises(InputError, match="loops: a flow of u1 in two dimensions; found su2"):
        train_run(path, folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
    table["flow"] = {"kind": "split"}
    path.write_text(Deck.parse(table).toml())
    with pytest.raises(InputError, match="kind = 'split' makes fields of shape"):
        train_run(path, folder=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()
