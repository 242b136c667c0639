"""Production: the same bytes on any number of ranks and after any kill; failures end the job and say why."""

import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from jobs import contents, kill_9
from pydantic import Field

from latticeflow.analysis.info import print_info
from latticeflow.config import Deck
from latticeflow.errors import InputError, NumericalError, StoreError
from latticeflow.production import sample as sample_module
from latticeflow.production.sample import sample_run
from latticeflow.production.summary import summary_lines
from latticeflow.random import Purpose
from latticeflow.run import Run
from latticeflow.samplers import Draws, Sampler, SamplerSpec, samplers
from latticeflow.store import Ensemble
from latticeflow.training import TrainSettings, train

CHAINS = {"chains": 4, "block": 40, "thermalisation": 100, "step": 0.2}
DECK = {
    "name": "free",
    "seed": 11,
    "target": {"kind": "free", "shape": [2, 2], "m2": 1.0},
    "flow": {"kind": "split", "layers": 2, "sines": 2, "site_sines": 2},
    "sampler": {
        "exact": {"block": 100},
        "flow": {"block": 96, "batch": 40},
        "annealed": {"block": 96, "batch": 40, "steps": 2, "particles": 4, "base_m2": 2.0},
        "hmc": {**CHAINS, "streams": 3, "length": 1.0},
        "cluster": {**CHAINS, "streams": 2, "length": 0.6},
        "hybrid": {**CHAINS, "streams": 2, "length": 0.6, "trajectories": 2},
        "emcee": {"walkers": 12, "streams": 2, "block": 120, "thermalisation": 100},
    },
}
DRAWS = {
    "exact": 950,
    "flow": 600,
    "annealed": 192,
    "hmc": 240,
    "cluster": 160,
    "hybrid": 160,
    "emcee": 400,
}
SAMPLE = """
import sys
from latticeflow.cli import app, main
import latticeflow.cli as cli
run, *jobs = sys.argv[1:]
def body(**_):
    for job in jobs:
        sampler, draws = job.split(":")
        app(["sample", run, "--sampler", sampler, "--draws", draws], standalone_mode=False)
cli.app = body
main()
"""
JOBS = [f"{sampler}:{draws}" for sampler, draws in DRAWS.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run whose flow has had two steps of training: bad, and so with rejections."""
    run = Run.create(Deck.parse(DECK), tmp_path_factory.mktemp("production") / "run")
    target = run.deck.target
    settings = TrainSettings(steps=2, lr=0.05, warmup=0, evaluate_draws=1024)
    train(run.deck.flow.build(target.lattice, 1), target, settings, seed=1, weights=run.weights)
    return run.path


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(scope="module")
def reference(trained, tmp_path_factory) -> dict:
    """What one uninterrupted process draws."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("reference") / "run")
    for sampler, draws in DRAWS.items():
        sample_run(run, sampler=sampler, draws=draws)
    return contents(run)


def test_every_registered_sampler_has_a_row():
    own = {kind for kind, spec in samplers.classes.items() if spec.__module__.startswith("latticeflow.")}
    others = {
        "heatbath",
        "pseudofermions",
        "vegas",
        "flat",
        "model",
    }  # of gauge fields, events, data: tests of their own
    assert set(DRAWS) | others == own


def test_reference_is_whole(reference):
    files = [name for name in reference if name.endswith(".h5")]
    assert len([f for f in files if "/exact/blocks/" in f]) == 10
    assert len([f for f in files if "/flow/blocks/" in f]) == 7
    assert len([f for f in files if "/hmc/blocks/" in f]) == 6  # 3 streams of 2 blocks
    assert len([f for f in files if "/emcee/blocks/" in f]) == 4
    for sampler in ("annealed", "cluster", "hybrid"):
        assert len([f for f in files if f"/{sampler}/blocks/" in f]) == (2 if sampler == "annealed" else 4)
    assert "ensembles/flow/chain.h5" in files and "ensembles/hmc/chain.h5" not in files
    moves = np.unpackbits(np.frombuffer(reference["ensembles/flow/chain.h5"]["moves"], dtype=np.uint8))
    assert 0.2 < moves.mean() < 0.999  # the chain has something to reject


def test_blocks_differ(reference):
    x = [data["x"] for name, data in reference.items() if name.split("/")[-1].startswith("s")]
    assert len(set(x)) == len(x)


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3])  # mpirun of one rank: below, killed
def test_any_number_of_ranks_gives_the_same_bytes(mpirun, run, reference, n):
    job = mpirun(n, "-c", SAMPLE, run, *JOBS, cwd=run.parent)
    assert job.returncode == 0, job.stderr
    assert f"on {n} rank(s)" in job.stdout
    assert job.stdout.count("exact: 0 draws are there") == 1  # one rank speaks
    if n == 3:
        assert "1 ranks have nothing to do" in job.stdout  # emcee has two streams
    assert contents(run) == reference


@pytest.mark.mpi
def test_kill_9_and_resume(mpirun, run, reference):
    rng = random.Random(5)
    for n in (2, 1):
        before = len(list(run.glob("ensembles/*/blocks/*/s*.h5")))
        if before == len([name for name in reference if "/blocks/" in name]):
            break
        job = mpirun.start(n, "-c", SAMPLE, run, *JOBS, cwd=run.parent)
        wanted = before + rng.randint(1, 8)
        while len(list(run.glob("ensembles/*/blocks/*/s*.h5"))) < wanted and job.poll() is None:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        kill_9(job)
        job.communicate()
        assert contents(run) != reference  # killed before its end
    for sampler, draws in DRAWS.items():
        sample_run(run, sampler=sampler, draws=draws)
    assert contents(run) == reference


@pytest.mark.mpi
def test_bad_input_is_said_once(mpirun, run):
    job = mpirun(2, "-m", "latticeflow", "sample", run, "--draws", "10", "--sampler", "hcm", cwd=run.parent)
    assert job.returncode == 2
    assert job.stderr.count("did you mean 'hmc'?") == 1


# Without a launcher


def test_extending_keeps_what_is_there(run, reference, capsys):
    sample_run(run, sampler="hmc", draws=100)
    sample_run(run, sampler="flow", draws=100)
    times = {path: path.stat().st_mtime_ns for path in run.glob("ensembles/*/blocks/*/s*.h5")}
    assert len(times) == 3 + 2
    for sampler in ("hmc", "flow"):
        sample_run(run, sampler=sampler, draws=DRAWS[sampler])
    assert {path: path.stat().st_mtime_ns for path in times} == times
    found = contents(run)
    assert found == {name: data for name, data in reference.items() if "/hmc/" in name or "/flow/" in name}
    capsys.readouterr()
    ensemble = sample_run(run, sampler="flow", draws=5)
    assert "672 draws are there, 5 asked for; nothing to draw" in capsys.readouterr().out
    assert ensemble.draws == 672


def test_damaged_block_is_named_and_redrawn(run, reference):
    sample_run(run, sampler="hmc", draws=120)
    path = run / "ensembles/hmc/blocks/s000000_b000000/s000001_b000000.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match=r"s000001_b000000\.h5 is damaged.*redrawn identically"):
        sample_run(run, sampler="hmc", draws=DRAWS["hmc"])
    path.unlink()
    sample_run(run, sampler="hmc", draws=DRAWS["hmc"])
    assert contents(run) == {name: data for name, data in reference.items() if "/hmc/" in name}


def test_lost_block_inside_a_stream_is_redrawn(run, reference):
    sample_run(run, sampler="hmc", draws=DRAWS["hmc"])
    (run / "ensembles/hmc/blocks/s000000_b000000/s000001_b000000.h5").unlink()
    sample_run(run, sampler="hmc", draws=DRAWS["hmc"])
    assert contents(run) == {name: data for name, data in reference.items() if "/hmc/" in name}


def test_a_draw_that_overflows_is_named(run, monkeypatch):
    """log w = +inf in the second block: status 1, naming the block and the way out."""

    second = -1

    class Overflowing(Sampler):
        own_density = True

        def draw(self, state, n, rng):
            log_w = np.zeros(n)
            if rng.integers(2**62) == second:
                log_w[5] = np.inf
            return Draws(torch.zeros(n, 2, 2), np.zeros(n), log_w), None

    class OverflowingSpec(SamplerSpec):
        kind = "overflowing"
        block: int = Field(8, gt=0)
        precision: str = "float32"

        def build(self, target, flow=None, device="cpu"):
            return Overflowing()

    monkeypatch.setitem(samplers.classes, "overflowing", OverflowingSpec)
    ensemble = sample_run(run, sampler="overflowing", draws=8)  # the first block is sound
    second = ensemble.generator(Purpose.DRAW, 1, 0).integers(2**62)
    wanted = r'stream 1, block 0: 1 of 8 draws, the first draw 5, have log_w .*precision = "float64"'
    with pytest.raises(NumericalError, match=wanted) as caught:
        sample_run(run, sampler="overflowing", draws=16)
    assert caught.value.status == 1


def test_error_of_exp_minus_dh_uses_all_steps(tmp_path):
    """White noise of width 0.1 over 2 x 2,000 steps: error 0.1 / sqrt(4000), whatever the two streams' means."""
    record = dict(sampler="hmc", settings={"block": 8000}, target={}, seed=1, weights=None)
    ensemble = Ensemble.create(tmp_path / "hmc", **record, chains=4, interacting=False, weighted=False)
    rng = np.random.default_rng(3)
    noise = 1 + 0.1 * rng.normal(size=(2, 2000))
    noise += 1 - noise.mean(1, keepdims=True)  # equal means: their scatter would say no error at all
    for stream in range(2):
        info = {"exp_minus_dh": noise[stream], "acceptance": np.full(2000, 0.8)}
        ensemble.write(stream, 0, Draws(torch.zeros(8000, 1), np.zeros(8000), info=info), {}, 1.0)
    (line,) = [line for line in summary_lines(ensemble) if "exp(-dH)" in line]
    found = re.fullmatch(r"<exp\(-dH\)> = 1\.0000\((\d+)\) \(1 if correct\)", line)
    assert found, line
    assert int(found[1]) * 1e-4 == pytest.approx(0.1 / np.sqrt(4000), rel=0.1)


def test_a_temporary_file_that_a_reader_finished_meanwhile(run, monkeypatch):
    monkeypatch.setattr(sample_module, "leftovers", lambda folder: [folder / ".chain.h5.host.ab.tmp"])
    assert sample_run(run, sampler="exact", draws=10).draws


def test_leftovers_of_killed_jobs_go(run):
    folder = sample_run(run, sampler="exact", draws=10).path
    old, new = (
        folder / "blocks/s000000_b000000/.s000001_b000000.h5.77.tmp",
        folder / ".s000002_b000000.h5.78.tmp",
    )
    old.write_text("half")
    new.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    sample_run(run, sampler="exact", draws=10)
    assert not old.exists() and new.exists()


def test_threads_are_set_and_put_back(run, monkeypatch):
    seen = []

    class Counting(Sampler):
        def draw(self, state, n, rng):
            seen.append(torch.get_num_threads())
            return Draws(torch.zeros(n, 2, 2), np.zeros(n)), state

    class CountingSpec(SamplerSpec):
        kind = "counting"
        block: int = Field(6, gt=0)
        streams: int = 1
        chains: int = 0

        def build(self, target, flow=None, device="cpu"):
            sampler = Counting()
            sampler.chains = self.chains
            return sampler

    monkeypatch.setitem(samplers.classes, "counting", CountingSpec)
    before = torch.get_num_threads()
    sample_run(run, sampler="counting", draws=12, overrides=["sampler.counting.threads=2"])
    assert seen == [2, 2] and torch.get_num_threads() == before
    with pytest.raises(InputError, match="block = 6 is not a multiple of its 4 chains"):
        sample_run(run, sampler="counting", draws=12, overrides=["sampler.counting.chains=4"])


@pytest.mark.parametrize("draws", [0, -5])
def test_zero_draws(run, draws):
    with pytest.raises(InputError, match=f"--draws {draws}: expected at least 1"):
        sample_run(run, sampler="exact", draws=draws)
    assert not (run / "ensembles").exists()


def test_changed_settings(run):
    sample_run(run, sampler="hmc", draws=10)
    with pytest.raises(InputError, match=r"settings\.step: 0\.2, now 0\.3.*use another run folder"):
        sample_run(run, sampler="hmc", draws=10, overrides=["sampler.hmc.step=0.3"])


def test_overrides(run):
    with pytest.raises(InputError, match=r"--set target\.m2=2: sample takes sampler\.\* keys only"):
        sample_run(run, sampler="exact", draws=10, overrides=["target.m2=2"])
    with pytest.raises(InputError, match="did you mean 'block'"):
        sample_run(run, sampler="exact", draws=10, overrides=["sampler.exact.blok=2"])
    ensemble = sample_run(run, sampler="exact", draws=10, overrides=["sampler.exact.block=7"])
    assert ensemble.draws == 14 and ensemble.settings["block"] == 7


def test_weights_missing_or_changed(run):
    shutil.copytree(run / "weights", run.parent / "old")
    sample_run(run, sampler="flow", draws=10)
    target, flow = Run.open(run).deck.target, Run.open(run).deck.flow
    shutil.rmtree(run / "weights")
    with pytest.raises(InputError, match="no weights"):
        sample_run(run, sampler="flow", draws=10)
    settings = TrainSettings(steps=3, lr=0.05, warmup=0, evaluate_draws=1024)
    train(flow.build(target.lattice, 1), target, settings, seed=1, weights=run / "weights")
    with pytest.raises(InputError, match=r"weights: '.*', now '"):
        sample_run(run, sampler="flow", draws=10)


def test_from_a_deck(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    deck = Deck.parse(DECK)
    Path("deck.toml").write_text(deck.toml())
    with pytest.raises(InputError, match="did you mean 'exact'"):
        sample_run("deck.toml", sampler="exakt", draws=10)
    assert not Path("runs").exists()
    with pytest.raises(InputError, match="no weights"):
        sample_run("deck.toml", sampler="flow", draws=10)  # not trained
    assert not Path("runs").exists()
    Path("runs/free").mkdir(parents=True)
    Path("runs/free/mine").touch()
    with pytest.raises(InputError, match="exists; nothing was changed"):
        sample_run("deck.toml", sampler="exact", draws=10)
    Path("runs/free/mine").unlink()
    ensemble = sample_run("deck.toml", sampler="exact", draws=10)
    assert ensemble.path == Path("runs/free/ensembles/exact")
    assert sample_run("deck.toml", sampler="exact", draws=150).draws == 200
    Path("deck.toml").write_text(Deck.parse({**DECK, "seed": 12}).toml())
    with pytest.raises(InputError, match="seed: 11, now 12"):
        sample_run("deck.toml", sampler="exact", draws=10)
    for path in ("nowhere", "deck.txt"):
        with pytest.raises(InputError, match="neither a run folder nor a deck"):
            sample_run(path, sampler="exact", draws=10)
    with pytest.raises(InputError, match="cannot read deck"):
        sample_run("nowhere.toml", sampler="exact", draws=10)


def test_lines_are_printed_as_they_are(trained, tmp_path, capsys):
    """No markup in a path; and what ASCII does not have costs a letter, not the run."""
    run = shutil.copytree(trained, tmp_path / "a[b]")
    sample_run(run, sampler="exact", draws=1000)
    assert f"{run}, sampler exact" in capsys.readouterr().out
    command = [sys.executable, "-m", "latticeflow", "measure", run, "--sampler", "exact"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    job = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert job.returncode == 0, job.stderr
    assert "?_int" in job.stdout and "virial identity" in job.stdout


def test_info(run, capsys):
    for sampler in ("flow", "hmc"):
        sample_run(run, sampler=sampler, draws=100)
    capsys.readouterr()
    print_info(run)
    text = capsys.readouterr().out
    for part in (
        'kind = "free"',
        "step_00000002",
        "Metropolis acceptance",
        "192 draws",
        "<exp(-dH)>",
        "torch: 2",
    ):
        assert part in text
    (run / "train.jsonl").write_text('{"step": 7, "loss": 1.5}\n{"step": 8, "lo')
    print_info(run)
    assert "last line of the training log: step 7, loss 1.5" in capsys.readouterr().out
    path = run / "ensembles/hmc/blocks/s000000_b000000/s000001_b000000.h5"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(StoreError, match="ensembles with problems, shown above: hmc"):
        print_info(run)
    assert "Metropolis acceptance" in capsys.readouterr().out
    with pytest.raises(InputError, match="not a run folder"):
        print_info(run / "weights")
