"""Decks: what they accept, what they refuse, and that a resolved deck reads back as itself."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import latticeflow
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.flows import Split
from latticeflow.run import Run
from latticeflow.targets import Phi4
from latticeflow.training.checkpoint import build_flow

DECKS = Path(__file__).parent.parent / "configs"
TEXT = """
name = "test"
seed = 3
[target]
kind = "phi4"
shape = [4, 4]
m2 = -4.0
lam = 8.0
[flow]
kind = "split"
layers = 2
[train]
steps = 10
batch = [[0.0, 16], [0.5, 32]]
[sampler.hmc]
chains = 16
"""


@pytest.fixture
def write(tmp_path):
    def write(text=TEXT, old="", new=""):
        path = tmp_path / "deck.toml"
        path.write_text(text.replace(old, new) if old else text)
        return path

    return write


def test_a_deck_is_the_library_s_own_classes(write):
    deck = Deck.read(write())
    assert deck.target == Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    assert deck.flow == Split(layers=2)
    assert deck.train.batch_at(5) == 32
    assert deck.sampler_spec("hmc").chains == 16
    assert deck.sampler_spec("flow").block > 0  # no table: defaults


def test_resolved_deck_reads_back(write, tmp_path):
    deck = Deck.read(write())
    (tmp_path / "resolved.toml").write_text(deck.toml())
    assert Deck.read(tmp_path / "resolved.toml") == deck
    assert "sines = 4" in deck.toml()  # defaults are spelt out


def test_overrides(write):
    deck = Deck.read(
        write(), ["train.steps=500", "target.lam=7.5", "name=other", "train.estimator=reparametrised"]
    )
    assert (deck.train.steps, deck.target.lam, deck.name, deck.train.estimator) == (
        500,
        7.5,
        "other",
        "reparametrised",
    )


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("lam = 8.0", "lambda = 8.0", "lam: missing.*lambda: unknown key; did you mean 'lam'"),
        ("m2 = -4.0\n", "", "m2: missing"),
        ("lam = 8.0", "lam = -8.0", "expected lam > 0"),
        ('kind = "phi4"', 'kind = "phi5"', "unknown target 'phi5'; did you mean 'phi4'"),
        ('kind = "phi4"\n', "", "'kind' is missing"),
        ('kind = "split"', 'kind = "splt"', "did you mean 'split'"),
        ("layers = 2", "layer = 2", "did you mean 'layers'"),
        ("steps = 10", "step = 10", "did you mean 'steps'"),
        ("[sampler.hmc]", "[sampler.hcm]", "unknown sampler 'hcm'; did you mean 'hmc'"),
        ("chains = 16", "chain = 16", "did you mean 'chains'"),
        ("seed = 3\n", "", "seed: missing"),
        ("seed = 3", "sed = 3", "did you mean 'seed'"),
        ("[train]", "[trian]", "did you mean 'train'"),
        ('name = "test"', 'name = "a/b"', "name"),
        ("seed = 3", "seed = ", "not valid TOML"),
        ('[flow]\nkind = "split"\nlayers = 2\n', "", r"\[train\] but no \[flow\]"),
        ("shape = [4, 4]", "shape = 4", "shape"),
        ("batch = [[0.0, 16], [0.5, 32]]", "batch = []", "expected a positive number"),
        ("steps = 10", "steps = 10\nthreads = 100000", "threads.*1024"),
        ('kind = "phi4"', 'kind = ["phi4"]', "unknown target"),
        ('kind = "split"', "kind = 3", "unknown flow"),
    ],
)
def test_bad_decks_name_the_key(write, old, new, message):
    with pytest.raises(InputError, match=message):
        Deck.read(write(old=old, new=new))


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot read deck"):
        Deck.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    "item, message",
    [
        ("train.steps", "expected key=value"),
        ("=3", "expected key=value"),
        ("seed.deep=3", "'seed' is a value, not a table"),
        (
            "train.stage.0.steps=3",
            r"no train\.stage\.0: 'train\.stage' is no list in this deck.*\[\[train\.stage\]\]",
        ),
        (
            "train.batch.2.1=3",
            r"no train\.batch\.2: train\.batch has 2 entries, counted from 0; .*train\.batch\.1$",
        ),
        ("train.batch.-1=3", r"no train\.batch\.-1"),
        ("train.batch.last=3", r"no train\.batch\.last"),
    ],
)
def test_bad_overrides(write, item, message):
    with pytest.raises(InputError, match=f"--set {re.escape(item)}: .*{message}"):
        Deck.read(write(), [item])


def test_overrides_inside_a_list(write):
    stages = "[[train.stage]]\nsteps = 4\n[[train.stage]]\nlr = 1e-3\n[sampler.hmc]"
    path = write(old="[sampler.hmc]", new=stages)
    one = Deck.read(
        path, ["train.stage.0.steps=100", "train.stage.0.target.lam=7.5", "train.batch.1=[0.7, 64]"]
    )
    assert one.train.stage == ({"steps": 100, "target": {"lam": 7.5}}, {"lr": 1e-3})
    assert one.train.batch == ((0.0, 16), (0.7, 64))
    with pytest.raises(InputError, match=r"train\.stage 2: .*did you mean 'lr'"):
        Deck.read(path, ["train.stage.1.lrr=1e-4"])


def test_run_folder(write, tmp_path):
    deck = Deck.read(write())
    run = Run.create(deck, tmp_path / "run")
    assert Run.open(tmp_path / "run").deck == deck
    with pytest.raises(InputError, match="exists; nothing was changed"):
        Run.create(deck, tmp_path / "run")
    run.require_same(deck)
    with pytest.raises(InputError, match=r"target.lam: 8.0, now 7.0"):
        run.require_same(Deck.read(write(), ["target.lam=7.0"]))
    with pytest.raises(InputError, match="not a run folder"):
        Run.open(tmp_path / "elsewhere")


def test_a_new_target_is_one_file(tmp_path, monkeypatch):
    """A file dropped into targets/ is found by its deck name, with no other line changed."""
    package = tmp_path / "latticeflow"
    shutil.copytree(Path(latticeflow.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "targets" / "gauss.py").write_text(
        "from .base import LatticeTarget, targets\n"
        "@targets.add('gauss')\n"
        "class Gauss(LatticeTarget):\n"
        "    measure = 'lebesgue'\n"
    )
    code = "from latticeflow.targets import targets; print(targets.find('gauss').kind)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert out.stdout.strip() == "gauss", out.stderr


@pytest.mark.parametrize("path", sorted(DECKS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_decks_that_come_with_the_code_are_good(path):
    """Each is named after its file, and its flow can be trained on its target."""
    deck = Deck.read(path)
    assert deck.name == path.stem
    assert deck.flow is None or build_flow(deck).event_shape == deck.target.event_shape


def test_a_target_of_a_later_package_says_what_to_import():
    """Of targets alone, before anything imports latticeflow.collider; afterwards the name is known."""
    code = (
        "from latticeflow.targets import targets\n"
        "from latticeflow.errors import InputError\n"
        "try:\n    targets.find('matrix_element')\n"
        "except InputError as error:\n    print(error)\n"
        "import latticeflow.collider\n"
        "print(targets.find('matrix_element').__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "unknown target 'matrix_element'; it is known after `import latticeflow.collider`",
        "MatrixElement",
    ]
