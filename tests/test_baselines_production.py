"""Models by the commands: training that resumes bit for bit, draws that do not depend on ranks, and every misuse."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from baseline_data import FREE, store_chains
from jobs import contents

from latticeflow.analysis import model_plots
from latticeflow.analysis.approximate import approximate_metropolis
from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.events import Events
from latticeflow.analysis.export import export_run
from latticeflow.analysis.info import print_info
from latticeflow.analysis.verify import verify_run
from latticeflow.baselines import models
from latticeflow.config import Deck
from latticeflow.errors import InputError, Stopped, StoreError, TrainingDiverged
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField
from latticeflow.training import Configurations, FitSettings, fit, log
from latticeflow.training import checkpoint as ckpt

torch.set_num_threads(1)
DECK = """
name = "tiny"
seed = 7
[target]
kind = "free"
shape = [4, 4]
m2 = 0.5
[model]
kind = "vae"
latent = 3
hidden = [4]
[train]
data = "DATA"
steps = 60
lr = 0.01
batch = 33
evaluate_every = 20
checkpoint_every = 15
keep = 100
[sampler.model]
block = 256
batch = 100
density_samples = 4
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with chains to learn from, a deck, and the run trained from it, with draws."""
    path = tmp_path_factory.mktemp("models")
    store_chains(path / "data", steps=128, a=0.5)
    (path / "deck.toml").write_text(DECK.replace("DATA", str(path / "data")))
    run = train_run(path / "deck.toml", folder=path / "run")
    sample_run(run, sampler="model", draws=1000)
    return path


def weights(run) -> dict[str, torch.Tensor]:
    return ckpt.load_model(run / "weights", Run.open(run).deck)[0].state_dict()


def same(one: dict, two: dict) -> bool:
    return all(torch.equal(value, two[name]) for name, value in one.items())


def deck_with(place, **changes) -> dict:
    """The tables of the deck, with others in their place; None leaves one out."""
    table = Deck.read(place / "deck.toml").table()
    for name, value in changes.items():
        table.pop(name, None)
        if value is not None:
            table[name] = value
    return table


# training


def test_same_seed_same_bytes_other_seed_others(place, tmp_path):
    again = train_run(place / "deck.toml", folder=tmp_path / "again")
    assert same(weights(place / "run"), weights(again.path))
    newest = [ckpt.latest(path / "weights") for path in (place / "run", again.path)]
    assert len({(path / "flow.safetensors").read_bytes() for path in newest}) == 1
    other = train_run(place / "deck.toml", overrides=["seed=8"], folder=tmp_path / "other")
    assert not same(weights(place / "run"), weights(other.path))


@pytest.mark.parametrize("kind", ["vae", "gaussian_autoencoder", "linear_autoencoder"])
def test_resume_is_the_uninterrupted_training_bit_for_bit(place, tmp_path, kind):
    """Stopped between checkpoints, again right after one, and gone on: weights, Gaussian and log are the same."""
    more = {} if kind == "linear_autoencoder" else {"hidden": (4,)}
    spec, settings = models.parse({"kind": kind, "latent": 3, **more}), Deck.read(place / "deck.toml").train

    def run(name, stops=(), resume=False):
        lines, model = [], spec.build(FREE, 7)
        asked = iter(range(1000))
        fit(
            model,
            FREE,
            settings,
            seed=7,
            weights=tmp_path / name,
            resume=resume,
            report=lines.append,
            stop=lambda: "asked to" if next(asked) in stops else None,
        )
        return model.state_dict(), lines

    whole, log_whole = run("whole")
    parts = []
    for stops in ([22], [9]):
        with pytest.raises(Stopped, match=r"asked to; .* of 60 training steps are done"):
            run("parts", stops, resume=True)
        parts.append(ckpt.step_of(ckpt.latest(tmp_path / "parts")))
    assert parts == [22, 31]
    found, log_parts = run("parts", resume=True)
    assert same(whole, found)
    for one in log_parts:
        two = next(line for line in log_whole if line["step"] == one["step"])
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    assert fit(spec.build(FREE, 7), FREE, settings, seed=7, weights=tmp_path / "parts", resume=True) is None


def test_a_signal_ends_the_command_and_resume_goes_on(place, tmp_path, monkeypatch):
    append = log.append

    def append_and_ask(path, record):
        append(path, record)
        if record["step"] == 20:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(log, "append", append_and_ask)
    with pytest.raises(Stopped, match=r"signal SIGUSR1; 20 of 60 training steps are done in .*step_00000020"):
        train_run(place / "deck.toml", folder=tmp_path / "run")
    monkeypatch.undo()
    run = train_run(tmp_path / "run", resume=True)
    assert same(weights(place / "run"), weights(run.path))
    lines = [log.read(path / "train.jsonl") for path in (place / "run", run.path)]
    assert all({**a, "seconds": 0} == {**b, "seconds": 0} for a, b in zip(*lines, strict=True))


def test_log_and_checkpoint_say_what_was_done(place):
    lines = log.read(place / "run" / "train.jsonl")
    assert [line["step"] for line in lines] == [20, 40, 60]
    # tau_int of quadratic observables at a = 0.5 is 0.83: every second step, of 13 of 16 chains
    assert {line["thin"] for line in lines} == {2} and lines[-1]["configurations"] == 13 * 128
    assert lines[-1]["loss model"] < lines[0]["loss model"] and "trained_on" not in lines[-1]
    state = json.loads((ckpt.latest(place / "run" / "weights") / "state.json").read_text())
    assert state["finished"] and state["data"] == [Configurations(place / "data", FREE, 7).checksum]


@pytest.mark.parametrize(
    "more, label", [({}, "on held-out chains"), ({"trained_on": 1}, "on training chains")]
)
def test_the_plot_says_whether_chains_were_held_out(more, label):
    log_ = [{"step": step, "loss model": 1.0, "held_out": 1.1, **more} for step in (10, 20)]
    (axes,) = model_plots.losses.__wrapped__(log_).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["in training", label]


def test_pca_is_trained_by_the_same_command_without_steps(place, tmp_path):
    table = deck_with(
        place, model={"kind": "pca", "latent": 5}, train={"data": str(place / "data"), "augment": False}
    )
    (tmp_path / "deck.toml").write_text(Deck.parse(table).toml())
    run = train_run(tmp_path / "deck.toml", folder=tmp_path / "run")
    ensemble = sample_run(run, sampler="model", draws=256, overrides=["sampler.model.density_samples=0"])
    x = torch.from_numpy(ensemble.read(0, 0, "x")["x"]).double().flatten(1)
    assert int(torch.linalg.matrix_rank(x - x.mean(0), rtol=1e-4)) == 5
    verify_run(run)


def test_a_checkpoint_of_other_data_is_not_gone_on_with(place, tmp_path):
    shutil.copytree(place / "data", tmp_path / "data")
    settings = Deck.read(place / "deck.toml").train.model_copy(update={"data": str(tmp_path / "data")})
    spec, asked = Deck.read(place / "deck.toml").model, iter(range(100))
    keywords = {"seed": 7, "weights": tmp_path / "weights"}
    with pytest.raises(Stopped):
        fit(spec.build(FREE, 7), FREE, settings, stop=lambda: "now" if next(asked) == 9 else None, **keywords)
    blocks = sorted((tmp_path / "data" / "blocks").rglob("*.h5"))
    blocks[-1].unlink()
    with pytest.raises(InputError, match="has changed since the checkpoint"):
        fit(spec.build(FREE, 7), FREE, settings, resume=True, **keywords)


def test_a_loss_that_is_not_finite_names_the_checkpoint(place, tmp_path):
    class Breaks(type(models.parse({"kind": "vae", "latent": 3}).build(FREE, 1))):
        def loss(self, player, x, generator):
            return super().loss(player, x, generator) * (float("nan") if self.mean.isnan().any() else 1)

        def moved(self, player):
            if float(self.log_variance.detach()) != 0 and ckpt.checkpoints(tmp_path / "w"):
                self.mean.fill_(float("nan"))

    model = Breaks(FREE, 3, (4,), 1.0, np.random.default_rng(1))
    settings = Deck.read(place / "deck.toml").train
    with pytest.raises(TrainingDiverged, match=r"diverged at step 16.*step_00000015"):
        fit(model, FREE, settings, seed=7, weights=tmp_path / "w")


# drawing


DRAW_AND_TRAIN = """
import runpy, sys
from latticeflow.production.sample import sample_run
sample_run("run", sampler="model", draws=1000)
sys.argv = ["latticeflow", "train", sys.argv[1], "--run", "two"]
runpy.run_module("latticeflow", run_name="__main__")
"""


def test_two_ranks_draw_the_same_bytes_and_are_refused_to_train(place, tmp_path, mpirun):
    shutil.copytree(place / "run", tmp_path / "run", ignore=shutil.ignore_patterns("ensembles"))
    job = mpirun(2, "-c", DRAW_AND_TRAIN, str(place / "deck.toml"), cwd=tmp_path)
    assert "approximate" in job.stdout, job.stderr
    one, two = contents(place / "run"), contents(tmp_path / "run")
    assert one == two and len(one) == 5  # four blocks and the record
    assert job.returncode == 2 and "a [model] is trained on one rank, and 2 were started" in job.stderr
    assert not (tmp_path / "two").exists()


def test_estimated_densities_are_stored_and_marked(place, capsys):
    ensemble = Ensemble.open(place / "run/ensembles/model")
    assert not ensemble.weighted and not ensemble.exact and ensemble.chains == 0
    estimate, error = (ensemble.info(f"log_w_{name}").ravel() for name in ("estimate", "error"))
    assert estimate.shape == error.shape == (1024,) and (error > 0).all()
    # again, with many more samples: the same to the errors that are recorded
    model, _ = ckpt.load_model(place / "run/weights", Deck.read(place / "deck.toml"))
    data = [block for block in ensemble.iterate("x", "log_prob")]
    x = torch.from_numpy(np.concatenate([block["x"] for block in data])).double()
    log_q, small = model.double().log_q(x, np.random.default_rng(5), 128)
    better = np.concatenate([block["log_prob"] for block in data]) - log_q.numpy()
    pulls = (estimate - better) / np.hypot(error, small.numpy())
    assert abs(np.median(pulls)) < 0.6 and 0.4 < np.median(np.abs(pulls)) / 0.6745 < 2.5
    print_info(place / "run")
    printed = capsys.readouterr().out
    assert "a lower bound and an estimate of its density" in printed and "for study only" in printed


def test_approximate_metropolis_says_what_it_is(place):
    ensemble = Ensemble.open(place / "run/ensembles/model")
    found = approximate_metropolis(ensemble)
    assert str(found).startswith("APPROXIMATE Metropolis, for study only")
    assert len(found.selection) == 1024 and 0 < found.acceptance < 1
    estimate = ensemble.info("log_w_estimate").ravel()
    # entries of the chain have larger weights than the draws: the correction goes in the right direction
    assert estimate[found.selection.index].mean() > estimate.mean()
    other = store_chains(place / "other", steps=4)
    with pytest.raises(InputError, match="no estimates of log w"):
        approximate_metropolis(other)


def test_exact_corrections_are_refused_with_the_reason(place, tmp_path):
    ensemble = Ensemble.open(place / "run/ensembles/model")
    reason = "has no exact density"
    for correct in (ensemble.chain, ensemble.build_chain, ensemble.summary, lambda: ensemble.log_w):
        with pytest.raises(InputError, match=reason):
            correct()
    with pytest.raises(InputError, match=reason):
        export_run(place / "run", tmp_path / "x.npz", sampler="model")
    with pytest.raises(InputError, match=reason):
        export_run(place / "run", tmp_path / "x.json.gz", sampler="model")
    with pytest.raises(InputError, match=reason):
        Events(ensemble, FREE)
    with pytest.raises(InputError, match="are near the target's and not of it"):
        Configurations(ensemble.path, FREE, 3)
    export_run(place / "run", tmp_path / "raw.npz", sampler="model", proposals=True)
    with np.load(tmp_path / "raw.npz") as raw:
        assert len(raw["x"]) == 1024 and "weight" not in raw
    assert not (ensemble.path / "chain.h5").exists()


def test_verify_and_compare_know_models(place, tmp_path, capsys):
    shutil.copytree(place / "run", tmp_path / "run")
    sample_run(tmp_path / "run", sampler="exact", draws=2048, overrides=["sampler.exact.block=2048"])
    assert verify_run(tmp_path / "run")["model"].problems == []
    compare_run(tmp_path / "run", samplers=["model", "exact"])
    assert (tmp_path / "run/compare/training.png").is_file()
    assert "APPROXIMATE" in capsys.readouterr().out
    newest = ckpt.latest(tmp_path / "run/weights") / "flow.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1] + b"\x01")
    with pytest.raises(StoreError):
        verify_run(tmp_path / "run")


# misuse


def test_bad_decks_are_named(place):
    train = Deck.read(place / "deck.toml").table()["train"]
    flow = {"kind": "split", "layers": 2, "sines": 2}

    def refused(message, **changes):
        with pytest.raises(InputError, match=message):
            Deck.parse(deck_with(place, **changes))

    refused(r"both \[flow\] and \[model\]", flow=flow)
    refused("train.data is missing", train={k: v for k, v in train.items() if k != "data"})
    refused(r"\[train\] but no \[flow\] or \[model\]", model=None, train={"steps": 10})
    refused("stpes: unknown key; did you mean 'steps'", train={**train, "stpes": 10})
    refused("unknown model 'gam'", model={"kind": "gam"})
    refused("latent: missing", model={"kind": "autoencoder"})
    refused("objective", train={**train, "objective": "forward"})  # of flows
    for key, kind in (("hidden", "vae"), ("critic", "wgan"), ("generator", "gan")):
        refused(f"{key}.*greater than 0", model={"kind": kind, key: [0]})
    refused(r"expected two numbers in \[0, 1\)", train={**train, "betas": [0.9, 1.0]})


def refused_training(place, tmp_path, message, **changes):
    (tmp_path / "deck.toml").write_text(Deck.parse(deck_with(place, **changes)).toml())
    with pytest.raises(InputError, match=message):
        train_run(tmp_path / "deck.toml", folder=tmp_path / "run")
    assert not (tmp_path / "run" / "weights").exists()


def test_trainings_that_cannot_be(place, tmp_path):
    train = Deck.read(place / "deck.toml").table()["train"]
    refused_training(place, tmp_path, r"needs both \[model\] and \[train\]", train=None)
    refused_training(place, tmp_path, "takes none; leave it out", model={"kind": "pca", "latent": 3})
    refused_training(place, tmp_path, "train.steps is missing", train={**train, "steps": 0})
    refused_training(
        place, tmp_path, "no such player; known: model", train={**train, "rates": {"critic": 2.0}}
    )
    other = {"kind": "free", "shape": [4, 4], "m2": 0.6}
    refused_training(
        place, tmp_path, "drawn from another target than is trained on: m2: 0.5, now 0.6", target=other
    )
    refused_training(place, tmp_path, "no ensemble in", train={**train, "data": "nowhere"})


def test_draws_that_cannot_be(place, tmp_path):
    run = place / "run"
    with pytest.raises(InputError, match=r"the deck has no \[flow\]: its \[model\] has the sampler 'model'"):
        sample_run(run, sampler="flow", draws=10)
    with pytest.raises(InputError, match="one sample tells no error"):
        sample_run(run, sampler="model", draws=10, overrides=["sampler.model.density_samples=1"])
    with pytest.raises(InputError, match="train the model first"):
        sample_run(Run(tmp_path / "none", Deck.read(place / "deck.toml")), sampler="model", draws=10)
    flow = deck_with(place, model=None, train=None, flow={"kind": "split", "layers": 2, "sines": 2})
    with pytest.raises(InputError, match=r"no \[model\]: its \[flow\] has the sampler 'flow'"):
        sample_run(Run(tmp_path / "flow", Deck.parse(flow)), sampler="model", draws=10)
    plain = models.parse({"kind": "autoencoder", "latent": 3, "hidden": (4,)}).build(FREE, 1)
    spec = Deck.read(place / "deck.toml").sampler_spec("model")
    with pytest.raises(InputError, match="Autoencoder generates nothing"):
        spec.build(FREE, flow=plain)
    naive = models.parse({"kind": "gaussian_autoencoder", "latent": 3, "hidden": (4,)}).build(FREE, 1)
    with pytest.raises(InputError, match="has no density, and no bound"):
        spec.build(FREE, flow=naive)
    with pytest.raises(InputError, match="needs a trained model"):
        spec.build(FREE)
    with pytest.raises(InputError, match="shapes must agree"):
        fit(naive, FreeField(shape=(2, 2), m2=1.0), FitSettings(data="x", steps=1), seed=1)
