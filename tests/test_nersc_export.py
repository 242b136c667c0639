"""Ensembles written in NERSC's format, and such files verified and imported, by the command line."""

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout

import h5py
import numpy as np
import pytest
import torch
from tables import rng

from latticeflow.analysis import export_nersc
from latticeflow.analysis.export import export_run
from latticeflow.cli import main
from latticeflow.config import Deck
from latticeflow.errors import InputError, WriteFailed
from latticeflow.groups import GROUPS
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble
from latticeflow.store.nersc import read_nersc, write_nersc

torch.set_num_threads(1)


def call(*arguments):
    """Status and words of `latticeflow ...` in this process."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", ["latticeflow", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
    return stop.value.code or 0, out.getvalue()


def made(folder, group="su3", shape=(2, 2, 4, 2), **sampler):
    deck = {
        "name": "small",
        "seed": 5,
        "target": {"kind": "wilson", "shape": list(shape), "group": group, "beta": 5.7},
        "sampler": {
            "heatbath": {
                **{"chains": 3, "streams": 2, "block": 6, "thermalisation": 2, "overrelaxation": 1},
                **sampler,
            }
        },
    }
    run = Run.create(Deck.parse(deck), folder / group)
    sample_run(run, sampler="heatbath", draws=24, device="cpu")
    return run.path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Six chains of four steps."""
    return made(tmp_path_factory.mktemp("run"))


def test_export_and_import_bring_the_same_links(run, tmp_path):
    status, words = call("export", run, tmp_path / "all.nersc", "--sampler", "heatbath")
    assert status == 0, words
    export_run(run, tmp_path / "all.npz", sampler="heatbath")
    known = np.load(tmp_path / "all.npz")
    files = sorted((tmp_path / "all.nersc").iterdir())
    assert len(files) == len(known["x"]) == 24
    for x, chain, step, log_prob in zip(*(known[k] for k in ("x", "chain", "step", "log_prob"))):
        found = read_nersc(tmp_path / "all.nersc" / f"c{chain:04}_{step:06}.nersc")
        np.testing.assert_array_equal(found.links.numpy(), x)
        assert (found.header["CHAIN"], found.header["SEQUENCE_NUMBER"]) == (str(chain), str(step))
        assert float(found.header["LOG_PROB"]) == log_prob and float(found.header["BETA"]) == 5.7
        assert found.header["ENSEMBLE_ID"] == "small" and found.header["FLOATING_POINT"] == "IEEE64BIG"
        plaquette = log_prob / (5.7 * 6 * 32)  # S = -beta sum Re tr P / 3, six planes of 32 sites
        assert abs(float(found.header["PLAQUETTE"]) - plaquette) < 1e-10
    for suffix in ("npz", "h5"):
        status, words = call("nersc", *files, "--out", tmp_path / f"back.{suffix}")
        assert status == 0 and words.count("ok   ") == 24 and "2x2x4x2, plaquette 0." in words
        back = np.load(tmp_path / "back.npz") if suffix == "npz" else h5py.File(tmp_path / "back.h5")
        order = np.lexsort((known["step"], known["chain"]))
        np.testing.assert_array_equal(back["x"], known["x"][order])
        text = back["nersc"] if suffix == "npz" else back.attrs["nersc"]
        assert [one["CHAIN"] for one in json.loads(str(text))] == [str(c) for c in known["chain"][order]]


def test_proposals_have_their_weights(tmp_path):
    """Of a flow: raw draws in single precision by their number."""
    target = {"kind": "wilson", "shape": (2, 2, 2, 2), "group": "su3", "beta": 1.0}
    deck = Deck.parse({"name": "raw", "seed": 5, "target": {**target, "shape": [2, 2, 2, 2]}})
    run = Run.create(deck, tmp_path / "run")
    record = {
        "sampler": "flow",
        "settings": {"block": 8, "precision": "float32", "threads": 1},
        "target": target,
        "seed": deck.seed,
        "weights": "ab" * 32,
        "chains": 0,
        "interacting": False,
        "weighted": True,
    }
    about = {"precision": "float32", "batch": 8, "threads": 1, "torch": "2", "host": "here"}
    ensemble = Ensemble.create(run.path / "ensembles" / "flow", **record)
    x, log_w = GROUPS["su3"].haar((8, 4, 2, 2, 2, 2), rng(1), torch.float32), rng(2).normal(size=8)
    ensemble.write(0, 0, Draws(x, rng(3).normal(size=8), log_w), None, 0.5, **about)
    export_run(run, tmp_path / "raw.nersc", proposals=True)
    for i in range(8):
        found = read_nersc(tmp_path / "raw.nersc" / f"{i:06}.nersc")
        np.testing.assert_array_equal(found.links.numpy(), x[i].numpy().astype(np.complex128))
        assert float(found.header["LOG_WEIGHT"]) == log_w[i] and "CHAIN" not in found.header
        assert found.header["FLOATING_POINT"] == "IEEE32BIG"


def test_bad_files_are_named_and_the_status_is_not_zero(run, tmp_path):
    links = GROUPS["su3"].haar((4, 2, 2, 2, 2), rng(4), torch.float64)
    good, bad, short = (write_nersc(tmp_path / name, links) for name in ("good", "bad", "short"))
    raw = bad.read_bytes()
    bad.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    short.write_bytes(raw[:-8])
    status, words = call("nersc", good, bad, short, tmp_path / "absent", "--out", tmp_path / "x.npz")
    assert status == 1 and "3 of 4 files are bad" in words and words.count("ok   ") == 1
    for message in ("bad: the checksum of the links", "short: ", "absent: No such file"):
        assert message in words
    assert not (tmp_path / "x.npz").exists()
    other = write_nersc(tmp_path / "other", links.repeat(1, 1, 1, 1, 2, 1, 1))
    status, words = call("nersc", good, other, "--out", tmp_path / "x.npz")
    assert status == 2 and "expected one lattice" in words and not (tmp_path / "x.npz").exists()
    assert call("nersc", good, other)[0] == 0
    status, words = call("nersc", good, "--out", tmp_path / "x.json.gz")
    assert status == 2 and "expected .npz, .h5" in words


def test_what_cannot_be_exported_is_refused(run, tmp_path):
    other = made(tmp_path, group="su2")
    with pytest.raises(InputError, match=r"links of SU\(3\) in four dimensions; found su2 on"):
        export_run(other, tmp_path / "x.nersc", sampler="heatbath")
    (tmp_path / "flat").mkdir()
    flat = made(tmp_path / "flat", shape=(4, 4))
    with pytest.raises(InputError, match=r"found su3 on \(4, 4\)"):
        export_run(flat, tmp_path / "x.nersc", sampler="heatbath")
    with pytest.raises(InputError, match="expected links"):
        export_run(run, tmp_path / "x.nersc", sampler="heatbath", observables=True)
    (tmp_path / "there.nersc").mkdir()
    status, words = call("export", run, tmp_path / "there.nersc", "--sampler", "heatbath")
    assert status == 2 and "exists; nothing was changed" in words
    assert not (tmp_path / "x.nersc").exists()


def test_a_disk_that_refuses_leaves_nothing(run, tmp_path, monkeypatch):
    written = []

    def refuses(path, *arguments, **header):
        if len(written) == 5:
            raise OSError(28, "No space left on device")
        written.append(write_nersc(path, *arguments, **header))

    monkeypatch.setattr(export_nersc, "write_nersc", refuses)
    with pytest.raises(WriteFailed, match="No space left"):
        export_run(run, tmp_path / "x.nersc", sampler="heatbath")
    assert len(written) == 5 and not list(tmp_path.iterdir())
