"""The command line from end to end on a 4x4 lattice, and what it answers to bad input: message and exit status."""

import json
import shutil
import sys

import h5py
import numpy as np
import pytest

from latticeflow.cli import main

DECK = """
name = "small"
seed = 7
[target]
kind = "phi4"
shape = [4, 4]
m2 = -4.0
lam = 8.0
[flow]
kind = "split"
layers = 3
sines = 3
[train]
steps = 200
warmup = 20
evaluate_every = 100
evaluate_draws = 2048
checkpoint_every = 100
[sampler.flow]
block = 2048
[sampler.hmc]
block = 2048
chains = 32
streams = 2
thermalisation = 200
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cli")


@pytest.fixture
def call(folder, monkeypatch, capsys):
    """Run `latticeflow ...` in the folder, in this process; returns (status, what it printed)."""
    monkeypatch.chdir(folder)
    (folder / "deck.toml").write_text(DECK)

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["latticeflow", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        printed = capsys.readouterr()
        return stop.value.code or 0, printed.out + printed.err

    return call


def ok(answer: tuple[int, str]) -> str:
    assert answer[0] == 0, answer[1]
    return answer[1]


def test_the_whole_pipeline(call, folder):
    assert "ESS" in ok(call("train", "deck.toml"))
    assert "ESS" in ok(call("sample", "runs/small", "--draws", "8000"))
    ok(call("sample", "runs/small", "--sampler", "hmc", "--draws", "16000"))
    assert "nothing to draw" in ok(call("sample", "runs/small", "--draws", "8000"))
    ok(call("sample", "deck.toml", "--sampler", "emcee", "--draws", "4000"))
    assert "χ₂" in ok(call("measure", "runs/small", "--sampler", "hmc"))
    assert "emcee" in ok(call("info", "runs/small"))
    out = ok(call("compare", "runs/small"))
    assert "log Z" in out and "pull" in out
    page = (folder / "runs/small/compare/compare.html").read_text()
    assert "data:image/png;base64," in page and "http://" not in page and "https://" not in page
    numbers = json.loads((folder / "runs/small/compare/compare.json").read_text())
    assert numbers
    assert "trained already" in ok(call("train", "deck.toml", "--resume"))


def test_export_is_the_corrected_chain(call, folder):
    ok(call("export", "runs/small", "chain.npz"))
    ok(call("export", "runs/small", "raw.h5", "--proposals"))
    chain = np.load(folder / "chain.npz")
    with h5py.File(folder / "raw.h5") as raw:
        x, log_w = raw["x"][()], raw["log_w"][()]
    assert len(x) == len(log_w) == 8192
    # log_w again from its definition at the stored fields: S by this formula, log q from log_prob - log_w
    s = sum((np.roll(x, -1, mu) - x) ** 2 for mu in (1, 2)).sum((1, 2)) + (-4 * x**2 + 8 * x**4).sum((1, 2))
    with h5py.File(folder / "raw.h5") as raw:
        np.testing.assert_allclose(raw["log_prob"][()], -s, rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(chain["x"], x[chain["index"]])


BAD = {
    "misspelt key": (["train", "deck.toml", "--set", "train.step=5"], 2, "did you mean 'steps'"),
    "misspelt sampler": (
        ["sample", "runs/small", "--sampler", "hcm", "--draws", "5"],
        2,
        "did you mean 'hmc'",
    ),
    "no such deck": (["train", "none.toml"], 2, "cannot read deck none.toml"),
    "missing physics": (["train", "nolam.toml"], 2, "lam: missing"),
    "negative lam": (["train", "deck.toml", "--set", "target.lam=-1.0"], 2, "expected lam > 0"),
    "odd lattice": (
        ["train", "deck.toml", "--set", "target.shape=[5, 5]", "--run", "odd"],
        2,
        "even sides, found (5, 5)",
    ),
    "run exists": (["train", "deck.toml"], 2, "exists; nothing was changed"),
    "deck changed": (
        ["train", "deck.toml", "--resume", "--set", "target.lam=7.0"],
        2,
        "target.lam: 8.0, now 7.0",
    ),
    "settings changed": (
        ["sample", "runs/small", "--draws", "9000", "--set", "sampler.flow.batch=99"],
        2,
        "settings.batch: 1024, now 99",
    ),
    "zero draws": (["sample", "runs/small", "--draws", "0"], 2, "expected at least 1"),
    "draws forgotten": (["sample", "runs/small"], 2, "expected at least 1"),
    "not a run": (["measure", "runs"], 2, "not a run folder"),
    "no ensemble": (["measure", "runs/small", "--sampler", "exact"], 2, "latticeflow sample"),
    "exact on phi4": (["sample", "runs/small", "--sampler", "exact", "--draws", "10"], 2, "exact"),
    "no GPU": (["sample", "runs/small", "--draws", "99999", "--device", "cuda"], 2, "no GPU"),
    "unknown command": (["smaple"], 2, "No such command"),
    "export exists": (["export", "runs/small", "chain.npz"], 2, "chain.npz"),
    "export suffix": (["export", "runs/small", "chain.csv"], 2, ".npz"),
}


@pytest.mark.parametrize("arguments, status, message", BAD.values(), ids=BAD)
def test_bad_input(call, folder, arguments, status, message, request):
    if "no GPU" in request.node.callspec.id:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    (folder / "nolam.toml").write_text(DECK.replace("lam = 8.0\n", ""))
    before = sorted(p for p in folder.rglob("*"))
    code, printed = call(*arguments)
    assert code == status, printed
    assert message in " ".join(printed.split()), printed
    assert "Traceback" not in printed
    assert sorted(p for p in folder.rglob("*")) == before  # nothing half made is left behind


def test_untrained_run_has_no_flow_to_sample(call, folder):
    ok(call("sample", "deck.toml", "--sampler", "hmc", "--draws", "100"))
    shutil.move(folder / "runs/small/weights", folder / "aside")
    try:
        code, printed = call("sample", "runs/small", "--draws", "99999")
        assert code == 2 and "train the flow first" in printed
    finally:
        shutil.move(folder / "aside", folder / "runs/small/weights")


def test_corrupted_block(call, folder):
    block = sorted((folder / "runs/small/ensembles/hmc").glob("s*.h5"))[0]
    whole = block.read_bytes()
    block.write_bytes(whole[: len(whole) // 2])
    try:
        code, printed = call("measure", "runs/small", "--sampler", "hmc")
        shutil.rmtree(folder / "runs/small/ensembles/hmc/measured")
        code, printed = call("measure", "runs/small", "--sampler", "hmc")
        assert code == 1 and block.name in printed and "redrawn identically" in printed
    finally:
        block.write_bytes(whole)


def test_weights_of_another_deck(call, folder):
    ok(call("train", "deck.toml", "--run", "other", "--set", "flow.layers=2", "--set", "train.steps=2"))
    shutil.copy(folder / "runs/small/deck.toml", folder / "other/deck.toml")
    code, printed = call("sample", "other", "--draws", "10")
    assert code == 2 and "do not fit the deck's flow" in printed
