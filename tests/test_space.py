"""Room on the disk: more draws than it holds are refused before anything is made."""

import shutil
from types import SimpleNamespace

import pytest

from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.production.sample import sample_run
from latticeflow.run import Run

DECK = {
    "name": "free",
    "seed": 11,
    "target": {"kind": "free", "shape": [2, 2], "m2": 1.0},
    "sampler": {"exact": {"block": 100, "precision": "float64"}},
}


@pytest.fixture
def run(tmp_path):
    return Run.create(Deck.parse(DECK), tmp_path / "run")


def test_any_number_is_refused_at_once(run):
    """A list of the blocks alone would be larger than the memory."""
    with pytest.raises(InputError, match=r"--draws 1000000000000000000: .* GB at least .* are free"):
        sample_run(run, sampler="exact", draws=10**18)
    assert not (run.path / "ensembles").exists()


def test_what_is_there_needs_no_room(run, monkeypatch):
    sample_run(run, sampler="exact", draws=300)
    room = 100 * (8 + 8 * 4)  # of each draw one number and four sites
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=room))
    sample_run(run, sampler="exact", draws=400)
    with pytest.raises(InputError, match=r"beside the 400 draws .*keep_fields=k"):
        sample_run(run, sampler="exact", draws=501)


def test_fields_that_are_not_kept_need_no_room(run, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 100))
    with pytest.raises(InputError, match="Ask for fewer"):
        sample_run(run, sampler="exact", draws=100)
    sample_run(run, sampler="exact", draws=100, overrides=["sampler.exact.keep_fields=0"])
