"""Curves from one conditional flow against quadrature, runs at other couplings, and the two commands."""

import csv
import json
import shutil
import sys

import numpy as np
import pytest
import reference
import torch

from latticeflow.analysis import curve as module
from latticeflow.analysis.curve import curve, draw_nodes, log_weights
from latticeflow.analysis.curve_run import curve_run
from latticeflow.analysis.verify import verify_run
from latticeflow.cli import main
from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.production.at import at_run
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.training.checkpoint import load_family, load_flow

DECK = """
name = "line"
seed = 3
[target]
kind = "phi4"
shape = [2, 2]
m2 = -4.0
lam = 8.0
[flow]
kind = "conditional"
degree = 2
[flow.range]
lam = [4.0, 10.0]
[flow.flow]
kind = "affine"
layers = 4
hidden = [6]
z2 = true
[train]
steps = 70
optimizer = "soap"
lr = 1.5e-2
warmup = 5
evaluate_every = 35
evaluate_draws = 1024
[sampler.flow]
block = 2048
"""
AT = (4.0, 4.7, 6.1, 8.3, 10.0)  # two of them nodes
NAMES = ("phi2", "phi4", "chi2", "abs_m")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    (folder / "deck.toml").write_text(DECK)
    return train_run(folder / "deck.toml", folder=folder / "line", device="cpu")


@pytest.fixture(scope="module")
def nodes(run):
    family, _ = load_family(run.weights, run.deck)
    points = [{"lam": lam} for lam in (4.0, 7.0, 10.0)]
    return draw_nodes(family, run.deck.target, points, 4096, seed=4)


def pulls(found) -> np.ndarray:
    """(curve - quadrature) / sigma of log Z and all observables, `[points, 1 + names]`."""
    rows = []
    for i, lam in enumerate(AT):
        exact = reference.two_by_two(-4.0, lam, edge=2.2)
        row = [(found.log_z[i] - exact["log_z"]) / (found.log_z_error[i] + 1e-12)]  # unit weights have none
        rows.append(row + [(found.values[n][i] - exact[n]) / found.errors[n][i] for n in NAMES])
    return np.array(rows)


def test_the_curve_is_that_of_quadrature(nodes):
    """4 sigma at every point; one overall too small an error would show in the mean square of the pulls."""
    found = curve(nodes, [{"lam": lam} for lam in AT], NAMES)
    pull = pulls(found)
    assert np.abs(pull).max() < 4 and np.square(pull).mean() < 3
    assert (found.ess > 0.2).all() and (found.errors["chi2"] < 0.03 * found.values["chi2"]).all()


@pytest.mark.parametrize("wrong", ["none", "as drawn", "one node"])
def test_wrong_weights_fail_it(nodes, monkeypatch, wrong):
    """Not reweighted at all; reweighted from each node's target; a mixture of which one node's density was forgotten."""

    def weights(nodes, point):
        right = log_weights(nodes, point)
        if wrong == "none":
            return np.zeros_like(right)
        if wrong == "as drawn":  # 1 / q and exp(-S) at the middle of the line, whatever the point
            return log_weights(nodes, {"lam": 7.0})
        return right + np.log1p(-0.9 * (np.arange(3) == 0))  # draws of the first node count a tenth

    monkeypatch.setattr(module, "log_weights", weights)
    assert np.abs(pulls(curve(nodes, [{"lam": lam} for lam in AT], NAMES))).max() > 8


def test_the_mixture_is_the_mean_of_the_densities(run, nodes):
    """Recomputed in float64. Of one node alone it is that node's: a mixture of equal flows would hide a wrong index."""
    family, _ = load_family(run.weights, run.deck)
    with torch.no_grad():
        q = [family.at_point(p).double().log_prob(nodes.x[:50, 1].double()).exp() for p in nodes.points]
    assert np.allclose(np.exp(nodes.log_q[:50, 1]), (sum(q) / 3).numpy(), rtol=1e-3)
    assert not np.allclose(np.exp(nodes.log_q[:50, 1]), q[1].numpy(), rtol=1e-1)
    alone = draw_nodes(family, run.deck.target, nodes.points[:1], 128, seed=4)
    assert torch.equal(alone.x[:, 0], nodes.x[:128, 0])
    with torch.no_grad():
        own = family.at_point(nodes.points[0]).double().log_prob(alone.x[:, 0].double())
    assert np.allclose(alone.log_q[:, 0], own.numpy(), atol=1e-3)


def test_a_run_at_another_coupling(run, tmp_path):
    """Sampled, it agrees with quadrature there; verified; trained from its own deck, it has the same weights."""
    made = at_run(run, ["target.lam=5.2", "seed=9"], tmp_path / "there")
    assert made.deck.target.lam == 5.2 and made.deck.seed == 9 and Run.open(made.path).deck == made.deck
    ensemble = sample_run(made, sampler="flow", draws=8192, device="cpu")
    verify_run(made)
    summary, exact = ensemble.summary().weights, reference.two_by_two(-4.0, 5.2, edge=2.2)
    assert abs(summary.log_z - exact["log_z"]) < 4 * summary.log_z_error < 0.1
    other = reference.two_by_two(-4.0, 8.0)
    assert (
        abs(summary.log_z - other["log_z"]) > 20 * summary.log_z_error
    )  # the deck's own point would fail it

    same = at_run(run, ["target.lam=5.2"], tmp_path / "same")
    (tmp_path / "deck.toml").write_text(same.deck.toml())
    again = train_run(tmp_path / "deck.toml", folder=tmp_path / "again", device="cpu")
    assert load_flow(again.weights, again.deck)[1] == load_flow(same.weights, same.deck)[1]
    assert train_run(same.path, resume=True, device="cpu").path == same.path  # nothing to do


def test_the_log_has_every_probe(run):
    records = [json.loads(line) for line in run.log.read_text().splitlines()]
    probes = [records[-1][f"ess lam={lam}"] for lam in ("4", "5.5", "7", "8.5", "10")]
    assert len(records) == 2 and records[-1]["ess"] == min(probes)


def test_the_command_writes_table_and_plot(run, capsys):
    found = curve_run(run, along="lam=4:10:4", nodes=3, draws=512, names=["chi2", "binder"])
    lines = [line for line in (run.path / "curve/curve.csv").read_text().splitlines() if line[0] != "#"]
    rows = list(csv.DictReader(lines))
    assert [float(row["lam"]) for row in rows] == [4, 6, 8, 10]
    assert [float(row["chi2_error"]) for row in rows] == list(found.errors["chi2"])
    assert (run.path / "curve/curve.png").read_bytes()[:4] == b"\x89PNG"
    printed = capsys.readouterr().out
    assert "ESS" in printed and "χ₂" in printed


def test_a_batch_that_is_left_to_a_measurement(run, tmp_path):
    """The deck's `batch = "auto"` is settled with an ensemble; a curve has none."""
    table = run.deck.table() | {"sampler": {"flow": {"batch": "auto", "density_tolerance": 0.5}}}
    shutil.copytree(run.path, tmp_path / "auto")
    (tmp_path / "auto/deck.toml").write_text(Deck.parse(table).toml())
    found = curve_run(tmp_path / "auto", along="lam=5:6:2", nodes=1, draws=128, names=["chi2"])
    assert len(found.ess) == 2


def test_both_from_the_command_line(run, tmp_path, monkeypatch):
    new = tmp_path / "new"
    for words in (
        ["at", run.path, "--set", "target.lam=6.5", "--run", new],
        ["curve", new, "--along", "lam=5:6:2", "--nodes", 2, "--draws", 128, "--observables", "chi2,xi"],
    ):
        monkeypatch.setattr(sys, "argv", ["latticeflow", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
    assert "lam,ess,log_z,log_z_error,chi2,chi2_error,xi,xi_error" in (new / "curve/curve.csv").read_text()


def test_bad_questions(run, nodes, tmp_path):
    family, _ = load_family(run.weights, run.deck)
    for along, message in [
        ("lam=4:11:3", "outside"),
        ("m2=1:2:3", "expected a coupling of lam"),
        ("lam=4-7", "NAME=FROM:TO:POINTS"),
        ("lam=4:7:0", "one point at least"),
    ]:
        with pytest.raises(InputError, match=message):
            curve_run(run, along=along)
    with pytest.raises(InputError, match="curve from 0 nodes"):
        curve_run(run, nodes=0)
    with pytest.raises(InputError, match="is a vector"):
        curve(nodes, [{"lam": 5.0}], ["correlator"])
    with pytest.raises(InputError, match="unknown observable"):
        curve(nodes, [{"lam": 5.0}], ["chi3"])
    with pytest.raises(InputError, match="expected 128 draws"):
        draw_nodes(family, run.deck.target, [{"lam": 5.0}], 100, seed=1)
    for change, message in [
        ("target.m2=-3.0", "was not trained for this: target.m2"),
        ("target.lam=12.0", "outside"),
        ("train.steps=3", "expected couplings"),
    ]:
        with pytest.raises(InputError, match=message):
            at_run(run, [change], tmp_path / "no")
    assert not (tmp_path / "no").exists()
    plain = run.deck.table() | {"flow": run.deck.table()["flow"]["flow"], "name": "plain"}
    ordinary = Run.create(Deck.parse(plain), tmp_path / "plain")
    with pytest.raises(InputError, match="no conditional flow"):
        at_run(ordinary, [], tmp_path / "no")
    weights = next(run.weights.glob("step_*/flow.safetensors"))
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-1] + b"?")
        with pytest.raises(StoreError, match="damaged"):
            at_run(run, ["target.lam=5.0"], tmp_path / "no")
    finally:
        weights.write_bytes(kept)
