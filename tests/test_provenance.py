"""Every ensemble and every block says where it comes from; `info` shows it; edits of it are found."""

import json
import os
import subprocess
from importlib.metadata import version

import numpy as np
import pytest
import torch

from latticeflow.analysis import info as info_module
from latticeflow.analysis.info import print_info
from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.store import Ensemble
from latticeflow.store.provenance import git_commit, provenance

DECK = {
    "name": "origin",
    "seed": 7,
    "target": {"kind": "free", "shape": [2, 2], "m2": 1.0},
    "sampler": {"exact": {"block": 50}},
}


@pytest.fixture
def run(tmp_path) -> Run:
    return Run.create(Deck.parse(DECK), tmp_path / "run")


def repository(folder):
    """A checkout with one commit, and the package folder in it."""
    package = folder / "latticeflow"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1\n")
    who = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", folder, *arguments], check=True)
    told = subprocess.run(
        ["git", "-C", folder, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    return package, told.stdout.strip()


def test_commit_of_the_checkout(tmp_path, monkeypatch):
    package, commit = repository(tmp_path / "one")
    assert git_commit.__wrapped__(package) == commit
    (package / "mine.txt").write_text("not tracked")
    assert git_commit.__wrapped__(package) == commit
    (package / "code.py").write_text("2\n")
    assert git_commit.__wrapped__(package) == commit + "+changes"
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))  # as inside a git hook of another repository
    assert git_commit.__wrapped__(package) == commit + "+changes"


def test_no_commit_without_git(tmp_path, monkeypatch):
    package, _ = repository(tmp_path / "one")
    installed = (
        package / "site-packages" / "latticeflow"
    )  # a virtual environment inside somebody's repository
    installed.mkdir(parents=True)
    assert git_commit.__wrapped__(installed) is None
    (tmp_path / "two" / ".git").mkdir(parents=True)  # no repository at all
    assert git_commit.__wrapped__(tmp_path / "two" / "latticeflow") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit.__wrapped__(package) is None


def test_git_is_asked_once_a_process(monkeypatch):
    first = provenance("cpu")["commit"]
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("asked again"))
    assert provenance("cpu")["commit"] == first


def test_origin_of_ensemble_and_blocks(run):
    ensemble = sample_run(run, sampler="exact", draws=100)
    origin, block = Ensemble.open(ensemble.path).origin, ensemble.attributes(1, 0)
    assert Deck.parse(DECK).toml() == origin["deck"] == run.deck.toml()
    for found in (origin, block):
        assert found["latticeflow"] == version("latticeflow") and found["h5py"] == version("h5py")
        assert found["numpy"] == np.__version__ and found["torch"] == torch.__version__
        assert found["host"] == os.uname().nodename and found["device"].startswith("cpu")
        assert (found["precision"], found["threads"], found["batch"]) == ("float64", 1, 50)
        assert found.get("commit") == git_commit()
        # 1000 eps sqrt(V): what verify allows between stored and recomputed log-weights
        assert found["tolerance"] == pytest.approx(1000 * 2.0**-52 * 2)
    assert block["time"] >= origin["time"]


def test_origin_is_no_part_of_the_identity(tmp_path, run):
    ensemble = sample_run(run, sampler="exact", draws=50)
    other = Ensemble.create(tmp_path / "other", origin={"host": "there"}, **ensemble.record)
    assert other.identity == ensemble.identity and other.origin == {"host": "there"}
    again = Ensemble.create(tmp_path / "other", origin={"host": "here"}, **ensemble.record)
    assert again.origin == {"host": "there"}  # where it was begun stays


@pytest.mark.parametrize(
    "change", [("origin", "host"), ("origin", "deck"), ("settings", "threads"), ("weights",)]
)
def test_edited_record(run, change):
    ensemble = sample_run(run, sampler="exact", draws=50)
    path = ensemble.path / "ensemble.json"
    whole = json.loads(path.read_text())
    inner = whole
    for key in change[:-1]:
        inner = inner[key]
    inner[change[-1]] = "another"
    path.write_text(json.dumps(whole))
    with pytest.raises(StoreError, match="was edited"):
        Ensemble.open(ensemble.path)


def test_info_shows_it(run, capsys, monkeypatch):
    sample_run(run, sampler="exact", draws=250)
    capsys.readouterr()
    print_info(run)
    text = " ".join(capsys.readouterr().out.split())
    ensemble = Ensemble.open(run.ensemble("exact"))
    for part in (
        f"identity {ensemble.identity}",
        "seed 7",
        "stored: fields of all draws",
        f"latticeflow: {version('latticeflow')} (5 blocks)",
        f"host: {os.uname().nodename} (5 blocks)",
        "precision: float64 (5 blocks)",
        "batch: 50 (5 blocks)",
        "begun: precision float64",
    ):
        assert part in text
    assert "were looked at" not in text and "its deck is not" not in text
    monkeypatch.setattr(info_module, "_LOOKED_AT", 2)
    print_info(run)
    text = " ".join(capsys.readouterr().out.split())
    assert "of 5 blocks, 2 were looked at" in text and "(2 blocks)" in text


def test_info_of_a_deck_that_was_changed(run, capsys):
    """Settings of another sampler may change; what an ensemble was begun with is still said."""
    sample_run(run, sampler="exact", draws=50)
    changed = Deck.parse({**DECK, "sampler": {**DECK["sampler"], "hmc": {"chains": 4, "block": 8}}})
    (run.path / "deck.toml").write_text(changed.toml())
    print_info(run.path)
    assert "its deck is not the run's deck.toml of today" in capsys.readouterr().out


def test_info_where_nothing_can_be_written(run, capsys, monkeypatch):
    """A chain that is not there yet, in somebody else's folder: said, and the rest shown."""
    path = sample_run(run, sampler="exact", draws=50).path
    (path / "chain.h5").unlink()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("latticeflow.files.os.replace", refuse)
    print_info(run)
    text = capsys.readouterr().out
    assert "Permission denied" in text and "precision: float64 (1 blocks)" in text


def test_info_of_no_run(tmp_path):
    with pytest.raises(InputError, match="not a run folder"):
        print_info(tmp_path)
