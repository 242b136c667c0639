"""Events by the lattice's own commands: train, sample on ranks, resume, verify, measure, compare; and what goes wrong."""

import json
import math
import shutil
import time

import numpy as np
import pytest
import tomli_w
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
from latticeflow.training.checkpoint import checkpoints

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
def test_training_on_two_ranks_and_a_kill(mpirun, trained, tmp_path):
    """Killed as soon as there is a checkpoint, it goes on to the weights of one rank, to rounding."""
    path, run = write(tmp_path, deck()), tmp_path / "run"
    command = ["-m", "latticeflow", "train", path, "--run", run, "--device", "cpu"]
    job = mpirun.start(2, *command, cwd=tmp_path)
    while job.poll() is None and not checkpoints(run / "weights"):
        time.sleep(0.01)
    kill_9(job)
    assert checkpoints(run / "weights"), job.stderr.read()
    job = mpirun(2, *command, "--resume", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    lines = [(Run.open(one).path / "train.jsonl").read_text().splitlines()[-1] for one in (run, trained)]
    found, wanted = (json.loads(line) for line in lines)
    assert found["step"] == wanted["step"] == 60
    assert found["ess"] == pytest.approx(wanted["ess"], rel=0.02)  # float32


USERS = """
from latticeflow.cli import main
from latticeflow.collider import process

@process("users", incoming=(11, -11), outgoing=(13, -13))
def squared(p):
    return {result}

main()
"""


@pytest.mark.mpi
def test_a_user_s_process_on_two_ranks(mpirun, tmp_path):
    """And one that is NaN on some events ends the job on all ranks, with the momenta."""
    target = {"kind": "matrix_element", "energy": 91.2, "process": "users", "phase_space": "rambo"}
    (tmp_path / "deck.toml").write_text(tomli_w.dumps({"name": "users", "seed": 1, "target": target}))
    script = tmp_path / "script.py"
    arguments = [
        "sample",
        tmp_path / "deck.toml",
        "--sampler",
        "vegas",
        "--draws",
        "40000",
        "--device",
        "cpu",
    ]
    script.write_text(USERS.format(result="1 + (p[:, 2, 3] / p[:, 2, 0])**2"))
    job = mpirun(2, script, *arguments, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert (
        "sigma = " in job.stdout and len(Ensemble.open(tmp_path / "runs/users/ensembles/vegas").present) == 3
    )
    script.write_text(USERS.format(result="(0.3 - p[:, 2, 3] / p[:, 2, 0]).sqrt()"))
    job = mpirun(2, script, *arguments, "--set", "sampler.vegas.alpha=0.6", cwd=tmp_path / "runs")
    assert job.returncode not in (0, 75) and "|M|^2 = nan" in job.stderr and "GeV" in job.stderr


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
