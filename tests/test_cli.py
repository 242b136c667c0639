"""The command line from end to end on a 4x4 lattice, and what it answers to bad input: message and exit status."""

import io
import json
import os
import shutil
import sys
import threading
import time
from contextlib import redirect_stderr, redirect_stdout

import h5py
import numpy as np
import pytest
import torch
from jobs import contents

from latticeflow.cli import _forwarded, main
from latticeflow.run import Run
from latticeflow.training.checkpoint import load_flow

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
[sampler.emcee]
block = 1024
streams = 2
thermalisation = 200
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    (folder / "deck.toml").write_text(DECK)
    (folder / "nolam.toml").write_text(DECK.replace("lam = 8.0\n", ""))
    return folder


@pytest.fixture(scope="module")
def call(folder):
    """Run `latticeflow ...` in the folder, in this process; returns (status, what it printed)."""

    def call(*arguments: str) -> tuple[int, str]:
        out = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
            patch.chdir(folder)
            patch.setattr(sys, "argv", ["latticeflow", *arguments])
            with pytest.raises(SystemExit) as stop:
                main()
        return stop.value.code or 0, out.getvalue()

    return call


def ok(answer: tuple[int, str]) -> str:
    assert answer[0] == 0, answer[1]
    return answer[1]


@pytest.fixture(scope="module")
def run(call, folder):
    """A run folder, trained and with draws of every sampler. Tests that damage it copy it first."""
    assert "ESS" in ok(call("train", "deck.toml"))
    assert "ESS" in ok(call("sample", "runs/small", "--draws", "8000"))
    ok(call("sample", "runs/small", "--sampler", "hmc", "--draws", "16000"))
    ok(call("sample", "deck.toml", "--sampler", "emcee", "--draws", "4000"))
    return folder / "runs/small"


def test_what_is_there_is_not_made_again(call, run):
    assert "nothing to draw" in ok(call("sample", "runs/small", "--draws", "8000"))
    assert "trained already" in ok(call("train", "deck.toml", "--resume"))


def test_analysis(call, run):
    assert "χ₂" in ok(call("measure", "runs/small", "--sampler", "hmc"))
    assert "emcee" in ok(call("info", "runs/small"))
    out = ok(call("compare", "runs/small"))
    assert "log Z" in out and "pull" in out
    page = (run / "compare/compare.html").read_text()
    assert "data:image/png;base64," in page and "http://" not in page and "https://" not in page
    assert json.loads((run / "compare/compare.json").read_text())


def test_export_is_the_corrected_chain(call, run, folder):
    """Stored log_prob and log_w against S by this formula, and log q through the inverse in float64."""
    ok(call("export", "runs/small", "chain.npz"))
    ok(call("export", "runs/small", "raw.h5", "--proposals"))
    chain = np.load(folder / "chain.npz")
    with h5py.File(folder / "raw.h5") as raw:
        x, log_prob, log_w = (raw[name][()] for name in ("x", "log_prob", "log_w"))
    assert x.dtype == np.float32 and len(x) == len(log_w) == 8192
    np.testing.assert_array_equal(chain["x"], x[chain["index"]])
    x = x.astype(np.float64)
    s = sum((np.roll(x, -1, mu) - x) ** 2 for mu in (1, 2)).sum((1, 2)) + (-4 * x**2 + 8 * x**4).sum((1, 2))
    np.testing.assert_allclose(log_prob, -s, rtol=0, atol=1e-12)
    flow, _ = load_flow(run / "weights", Run.open(run).deck)
    with torch.no_grad():
        log_q = flow.double().log_prob(torch.from_numpy(x)).numpy()
    # x is the float32 image of its noise, so log q at the stored x differs by rounding
    np.testing.assert_allclose(log_w, -s - log_q, rtol=0, atol=3e-5)


def test_reversibility_on_request_changes_no_stored_draw(call, run, folder):
    """Every data set of x, log_prob and info, byte by byte, with the check switched on by --set."""
    shutil.copytree(run, folder / "checked", ignore=shutil.ignore_patterns("ensembles"))
    on = ("--set", "sampler.hmc.check_reversibility=true")
    assert "|x - x_back|" in ok(call("sample", "checked", "--sampler", "hmc", "--draws", "16000", *on))
    plain, checked = (
        {n: f for n, f in contents(r).items() if "/hmc/blocks/" in n} for r in (run, folder / "checked")
    )
    assert plain.keys() == checked.keys() and len(plain) == 8
    for name, arrays in plain.items():
        new = {one.removeprefix("state/") for one in checked[name].keys() - arrays.keys()}
        assert new == {"reversibility_dx", "reversibility_dh"}
        assert {one: checked[name][one] for one in arrays} == arrays


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
    "export exists": (["export", "runs/small", "deck.npz"], 2, "deck.npz: it exists"),
    "export suffix": (["export", "runs/small", "chain.csv"], 2, ".npz"),
}


@pytest.mark.parametrize("arguments, status, message", BAD.values(), ids=BAD)
def test_bad_input(call, run, folder, arguments, status, message, request):
    if "no GPU" in request.node.callspec.id and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    (folder / "deck.npz").touch()
    before = sorted(p for p in folder.rglob("*"))
    code, printed = call(*arguments)
    assert code == status, printed
    assert message in " ".join(printed.split()), printed
    assert "Traceback" not in printed
    assert sorted(p for p in folder.rglob("*")) == before  # nothing half made is left behind


def test_untrained_run_has_no_flow_to_sample(call, run, folder):
    shutil.copytree(run, folder / "untrained", ignore=shutil.ignore_patterns("weights"))
    ok(call("sample", "untrained", "--sampler", "hmc", "--draws", "100"))
    code, printed = call("sample", "untrained", "--draws", "99999")
    assert code == 2 and "train the flow first" in printed


def test_corrupted_block(call, run, folder):
    """What was measured while the block was whole stays valid and is shown; measuring anew names the block."""
    shutil.copytree(run, folder / "corrupted")
    ensemble = folder / "corrupted/ensembles/hmc"
    whole = ok(call("measure", "corrupted", "--sampler", "hmc"))
    block = sorted(ensemble.glob("blocks/*/s*.h5"))[0]
    block.write_bytes(block.read_bytes()[: block.stat().st_size // 2])
    assert ok(call("measure", "corrupted", "--sampler", "hmc")).strip() == whole.strip()
    shutil.rmtree(ensemble / "measured")
    code, printed = call("measure", "corrupted", "--sampler", "hmc")
    assert code == 1 and block.name in printed and "redrawn identically" in printed


def test_weights_of_another_deck(call, run, folder):
    ok(call("train", "deck.toml", "--run", "other", "--set", "flow.layers=2", "--set", "train.steps=2"))
    shutil.copy(run / "deck.toml", folder / "other/deck.toml")
    code, printed = call("sample", "other", "--draws", "10")
    assert code == 2 and "do not fit the deck's flow" in printed


def test_a_failing_rank_waits_until_its_words_are_read(tmp_path):
    """A pipe that is read after 0.3 s holds it up so long; an empty one, or a file, not at all."""
    read, write = os.pipe()
    with open(tmp_path / "log", "w") as log:
        log.write("gone")
        begun = time.monotonic()
        _forwarded(log.fileno())
        _forwarded(write)
        assert time.monotonic() - begun < 0.2
    os.write(write, b"gone")
    reader = threading.Timer(0.3, os.read, (read, 100))
    reader.start()
    begun = time.monotonic()
    _forwarded(write)
    assert 0.25 < time.monotonic() - begun < 4
    reader.join()
    os.close(read)
    os.close(write)
