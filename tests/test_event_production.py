"""Events by the lattice's own commands: train, sample on ranks, resume, verify, measure, compare; and what goes wrong."""

import math
import shutil

import numpy as np
import pytest
import torch
from jobs import contents, kill_9
from test_production import SAMPLE

from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.export import export_run
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.statistics.weights import summarise_weights
from latticeflow.store import Ensemble

torch.set_num_threads(1)
FRACTION = 0.4585858813  # of three jets, y > 0.02 (JADE), alpha_s = 0.118
JOBS = ["flow:6000", "vegas:8192", "flat:8192", "emcee:12800"]


def deck(**changed):
    table = {
        "name": "jets",
        "seed": 3,
        "target": {
            "kind": "matrix_element",
            "energy": 91.2,
            "process": {"kind": "ee_qqg", "quark": "u"},
            "phase_space": "rambo",
            "cuts": {"y_min": 0.02},
        },
        "flow": {"kind": "spline_autoregressive", "bins": 8, "hidden": [24], "evaluations": 5000},
        "train": {
            "objective": "importance",
            "steps": 60,
            "batch": 256,
            "lr": 5e-3,
            "warmup": 10,
            "evaluate_every": 30,
            "evaluate_draws": 2048,
            "checkpoint_every": 20,
        },
        "sampler": {
            "flow": {"block": 2048, "batch": 512},
            "vegas": {"block": 2048, "evaluations": 5000},
            "flat": {"block": 2048},
            "emcee": {"walkers": 32, "streams": 2, "block": 3200, "thermalisation": 100},
        },
    }
    return Deck.parse(table | changed)


def write(folder, found):
    path = folder / "deck.toml"
    path.write_text(found.toml())
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jets")
    return train_run(write(folder, deck()), folder=folder / "jets", device="cpu").path


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    run = shutil.copytree(trained, tmp_path_factory.mktemp("drawn") / "jets")
    for job in JOBS:
        sampler, draws = job.split(":")
        sample_run(run, sampler=sampler, draws=int(draws), device="cpu")
    return run


@pytest.mark.mpi
def test_two_ranks_give_the_same_bytes(mpirun, trained, drawn, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    job = mpirun(2, "-c", SAMPLE, run, *JOBS, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert contents(run) == contents(drawn)


@pytest.mark.mpi
def test_training_on_two_ranks_is_that_on_one(mpirun, trained, tmp_path):
    """And a kill between them costs nothing: what goes on ends at the same weights."""
    path, run = write(tmp_path, deck()), tmp_path / "run"
    job = mpirun.start(2, "-m", "latticeflow", "train", path, "--run", run, "--device", "cpu", cwd=tmp_path)
    try:
        job.communicate(timeout=6)
    except Exception:
        kill_9(job)
    job = mpirun(
        2, "-m", "latticeflow", "train", path, "--run", run, "--resume", "--device", "cpu", cwd=tmp_path
    )
    assert job.returncode == 0, job.stderr
    ess = [(Run.open(path).path / "train.jsonl").read_text().splitlines()[-1] for path in (run, trained)]
    found, wanted = (float(line.split('"ess": ')[1].split(",")[0]) for line in ess)
    assert found == pytest.approx(wanted, rel=0.02)  # float32


def test_all_samplers_find_the_cross_section(drawn):
    """sigma = 3-jet fraction times sigma_0, whatever the map; 10 % more is told apart by the weighted ones."""
    target = Run.open(drawn).deck.target
    exact = math.log(FRACTION * target.process.sigma_0(target.energy))
    for sampler in ("flow", "vegas", "flat"):
        found = summarise_weights(Ensemble.open(drawn / "ensembles" / sampler).log_w)
        assert abs(found.log_z - exact) < 4 * found.log_z_error, sampler
    found = summarise_weights(Ensemble.open(drawn / "ensembles/flow").log_w)
    assert abs(found.log_z - math.log(1.1) - exact) > 4 * found.log_z_error


def test_cuts_reach_the_store_and_every_command(drawn, tmp_path, capsys):
    drawn = shutil.copytree(drawn, tmp_path / "measured")
    log_w = Ensemble.open(drawn / "ensembles/flow").log_w
    assert 0.01 < np.isneginf(log_w).mean() < 0.4
    verify_run(drawn)
    means = {}
    for sampler in ("flow", "vegas", "flat", "emcee"):
        rows = measure_run(drawn, sampler)
        means[sampler] = rows["x1"]
        export_run(drawn, drawn / f"{sampler}.npz", sampler=sampler)
        assert np.load(drawn / f"{sampler}.npz")["x"].shape[1:] == (5,)
    for sampler in ("vegas", "flat"):
        assert abs(means["flow"].pull(means[sampler])) < 4
    compare_run(drawn, samplers=["flow", "vegas", "flat"])
    printed = capsys.readouterr().out
    assert "pb" in printed and "unweighting" in printed
    assert (drawn / "compare/compare.html").stat().st_size > 1000


def test_resume_and_extension_give_the_same_bytes(trained, drawn, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    for job in JOBS:
        sampler, draws = job.split(":")
        sample_run(run, sampler=sampler, draws=int(draws) // 3, device="cpu")
        sample_run(run, sampler=sampler, draws=int(draws), device="cpu")
    assert contents(run) == contents(drawn)


def refused(tmp_path, error, match, **changed):
    with pytest.raises(error, match=match):
        train_run(write(tmp_path, deck(**changed)), folder=tmp_path / "run", device="cpu")


def test_bad_decks(tmp_path):
    target = deck().table()["target"]
    refused(tmp_path, InputError, "lives on a lattice", flow={"kind": "split"})
    lattice = {"kind": "phi4", "shape": [4, 4], "m2": 1.0, "lam": 1.0}
    refused(tmp_path, InputError, "lives on the unit cube", target=lattice)
    assert not (tmp_path / "run").exists()
    refused(tmp_path, InputError, "reverse divergence is infinite", train={"steps": 5})
    with pytest.raises(InputError, match="did you mean 'y_min'"):
        deck(target=target | {"cuts": {"y_mn": 0.02}})
    with pytest.raises(InputError, match="did you mean 'ee_qqg'"):
        deck(target=target | {"process": {"kind": "ee_qgq", "quark": "u"}})
    with pytest.raises(InputError, match="did you mean 'rambo'"):
        deck(target=target | {"phase_space": "ramb"})


def test_cuts_that_kill_everything(tmp_path, monkeypatch):
    table = deck().table()["target"] | {"cuts": {"pt_min": 60.0}}
    found = deck(target=table)
    monkeypatch.chdir(tmp_path)
    for attempt in (
        train_run,
        lambda path, **options: sample_run(path, sampler="vegas", draws=2000, **options),
    ):
        with pytest.raises(InputError, match=r"none of 100,000 flat points .*pt_min"):
            attempt(write(tmp_path, found), device="cpu")
        assert not (tmp_path / "runs").exists()
