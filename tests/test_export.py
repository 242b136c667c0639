"""Exported files hold what the blocks hold, row by row, in any storage mode; pyerrors reads its own."""

import gzip
import json
import resource
import shutil

import h5py
import numpy as np
import pytest
from fake_ensembles import ABOUT, BLOCK, RECORD, fake_draws

from latticeflow.analysis import export as export_module
from latticeflow.analysis.estimates import estimates
from latticeflow.analysis.export import export_run
from latticeflow.analysis.series import Series
from latticeflow.config import Deck
from latticeflow.errors import InputError, WriteFailed
from latticeflow.observables import measure
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble

TEXTS = {"deck", "ensemble"}


@pytest.fixture
def run(flow, hmc):
    flow.build_chain()
    deck = Deck.parse({"name": "run", "seed": 3, "target": RECORD["target"]})
    (flow.path.parent.parent / "deck.toml").write_text(deck.toml())
    return Run.open(flow.path.parent.parent)


def load(path):
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file}
    with h5py.File(path) as file:
        found, names = dict(file.attrs), []
        file.visit(names.append)
        return found | {name: file[name][()] for name in names if isinstance(file[name], h5py.Dataset)}


def exported(run, folder, **options):
    path = folder / f"{len(list(folder.iterdir()))}.npz"
    export_run(run, path, **options)
    return load(path)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
def test_export(run, flow, tmp_path, suffix):
    export_run(run, tmp_path / f"chain{suffix}")
    found, index = load(tmp_path / f"chain{suffix}"), flow.chain().index()
    draws = [fake_draws(b) for b in range(3)]
    x = np.concatenate([one.x.numpy() for one in draws])
    assert set(found) == {"x", "log_prob", "index", "chain", "step"} | TEXTS
    assert found["x"].dtype == np.float32
    np.testing.assert_array_equal(found["x"], x[index])
    np.testing.assert_array_equal(found["log_prob"], np.concatenate([one.log_prob for one in draws])[index])
    np.testing.assert_array_equal(found["index"], index)
    assert (found["chain"] == 0).all() and found["step"].tolist() == list(range(len(index)))
    assert 'kind = "phi4"' in str(found["deck"])
    export_run(run.path, tmp_path / f"raw{suffix}", proposals=True)
    found = load(tmp_path / f"raw{suffix}")
    assert set(found) == {"x", "log_prob", "log_w", "weight", "index"} | TEXTS
    np.testing.assert_array_equal(found["x"], x)
    log_w = np.concatenate([one.log_w for one in draws])
    np.testing.assert_array_equal(found["log_w"], log_w)
    np.testing.assert_allclose(found["weight"], np.exp(log_w) / np.exp(log_w).mean(), rtol=1e-12)
    export_run(run, tmp_path / f"hmc{suffix}", sampler="hmc")
    found = load(tmp_path / f"hmc{suffix}")
    assert set(found) == {"x", "log_prob", "chain", "step"} | TEXTS
    record = json.loads(str(found["ensemble"]))
    assert (record["sampler"], record["chains"], record["seed"]) == ("hmc", 8, 3)
    # step 11 of chain 5 of stream 1: 8 steps a block, so step 3 of block 1, draw 3 * 8 + 5 of it
    (at,) = np.flatnonzero((found["chain"] == 8 + 5) & (found["step"] == 11))
    np.testing.assert_array_equal(found["x"][at], fake_draws(11, weighted=False).x[29])
    for chain in range(16):
        assert found["step"][found["chain"] == chain].tolist() == list(range(24))


def test_a_configuration_that_outlives_its_block(tmp_path, run, flow):
    """The second and third block are refused entirely but for their last proposal: repeats cross two blocks."""
    new = Ensemble.create(tmp_path / "run" / "ensembles" / "stuck", **{**RECORD, "sampler": "stuck"})
    for b in range(4):
        log_w = np.full(BLOCK, -1000.0)
        if b == 0:
            log_w[:7], log_w[10] = -np.inf, 0.0
        if b == 2:
            log_w[-1] = 50.0
        draws = fake_draws(b)
        new.write(b, 0, Draws(draws.x, draws.log_prob, log_w), None, 0.5, **ABOUT)
    found = exported(run, tmp_path, sampler="stuck")
    repeats = dict(zip(*np.unique(found["index"], return_counts=True)))
    assert repeats[10] == 3 * BLOCK - 1 - 10 and repeats[3 * BLOCK - 1] == BLOCK + 1
    x = np.concatenate([fake_draws(b).x.numpy() for b in range(4)])
    np.testing.assert_array_equal(found["x"], x[found["index"]])
    assert found["step"].tolist() == list(range(4 * BLOCK - 7))


def test_one_chain_a_stream(tmp_path, run):
    """Two chains of two blocks: chain and step say which, and proposals are counted over all blocks."""
    record = {**RECORD, "sampler": "two", "settings": {**RECORD["settings"], "streams": 2}}
    new = Ensemble.create(tmp_path / "run" / "ensembles" / "two", **record)
    for number, key in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        new.write(*key, fake_draws(number), None, 0.5, **ABOUT)
    found, n = exported(run, tmp_path, sampler="two"), 2 * BLOCK
    assert found["chain"].tolist() == [0] * n + [1] * n
    assert found["step"].tolist() == [*range(n), *range(n)]
    np.testing.assert_array_equal(found["index"], new.chain().index())
    assert found["index"][n] == n  # begins anew
    x = np.concatenate([fake_draws(number).x.numpy() for number in range(4)])
    np.testing.assert_array_equal(found["x"], x[found["index"]])


def test_export_refuses(run, tmp_path):
    with pytest.raises(InputError, match=r"'\.txt'; expected"):
        export_run(run, tmp_path / "out.txt")
    (tmp_path / "out.npz").write_text("mine")
    with pytest.raises(InputError, match="exists; nothing was changed"):
        export_run(run, tmp_path / "out.npz")
    assert (tmp_path / "out.npz").read_text() == "mine"
    with pytest.raises(InputError, match="no folder"):
        export_run(run, tmp_path / "nowhere" / "out.npz")
    with pytest.raises(InputError, match="--sampler emcee"):
        export_run(run, tmp_path / "new.npz", sampler="emcee")
    with pytest.raises(InputError, match="not a run folder"):
        export_run(tmp_path, tmp_path / "new.npz")
    with pytest.raises(InputError, match="no log-weights and no proposals"):
        export_run(run, tmp_path / "new.npz", sampler="hmc", proposals=True)
    with pytest.raises(InputError, match="Obs are of chains"):
        export_run(run, tmp_path / "new.json.gz", proposals=True)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".json.gz"])
def test_a_disk_that_refuses_leaves_nothing(run, tmp_path, suffix):
    Series.open(run, "flow")  # measured now, while there is room
    before = sorted(tmp_path.iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(WriteFailed, match=f"out{suffix} cannot be written: File too large"):
            export_run(run, tmp_path / f"out{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(tmp_path.iterdir()) == before


# storage modes, from real draws

DECK = {
    "name": "small",
    "seed": 7,
    "target": {"kind": "phi4", "shape": [2, 2], "m2": -4.0, "lam": 8.0},
    "flow": {"kind": "split", "layers": 1, "sines": 2},
    "train": {"steps": 20, "warmup": 5, "evaluate_every": 20, "evaluate_draws": 1024},
    "sampler": {
        "flow": {"block": 1024, "batch": 1024},
        "hmc": {"chains": 8, "block": 2048, "streams": 2, "thermalisation": 100, "step": 0.2, "length": 0.6},
    },
}
SAMPLERS = {"flow": 4096, "hmc": 8192}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Runs of the same draws that keep every field, every fourth, and none."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "deck.toml").write_text(Deck.parse(DECK).toml())
    trained = train_run(folder / "deck.toml", folder=folder / "trained")
    runs = {}
    for keep in (1, 4, 0):
        shutil.copytree(trained.path, folder / f"keep{keep}")
        runs[keep] = Run.open(folder / f"keep{keep}")
        for sampler, draws in SAMPLERS.items():
            sample_run(
                runs[keep], sampler=sampler, draws=draws, overrides=[f"sampler.{sampler}.keep_fields={keep}"]
            )
    return runs


@pytest.mark.parametrize("options", [{}, {"proposals": True}, {"sampler": "hmc"}], ids=str)
def test_thinned_fields_are_rows_of_all_fields(drawn, tmp_path, options):
    whole, thin = (exported(drawn[keep], tmp_path, **options) for keep in (1, 4))
    counted = "step" if "sampler" in options else "index"
    rows = whole[counted] % 4 == 0
    assert set(whole) == set(thin) and 0 < len(thin["x"]) == rows.sum() < len(whole["x"]) / 2
    for name in set(whole) - TEXTS:
        np.testing.assert_array_equal(thin[name], whole[name][rows])


@pytest.mark.parametrize("options", [{}, {"proposals": True}, {"sampler": "hmc"}], ids=str)
def test_observables_are_of_the_same_rows(drawn, tmp_path, options):
    """By choice or because no field is kept: every draw, whatever the storage mode."""
    fields = exported(drawn[1], tmp_path, **options)
    tables = [exported(drawn[keep], tmp_path, observables=True, **options) for keep in (1, 4)]
    tables.append(exported(drawn[0], tmp_path, **options))
    expected = measure(drawn[1].deck.target, fields["x"])
    for table in tables:
        assert set(table) - {f"observables/{name}" for name in expected} == set(fields) - {"x"}
        for name, values in expected.items():
            np.testing.assert_allclose(table[f"observables/{name}"], values, rtol=1e-12)
        for name in set(fields) - TEXTS - {"x"}:
            np.testing.assert_array_equal(table[name], fields[name])


# pyerrors


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_pyerrors_reads_our_numbers(drawn, tmp_path, sampler):
    """Means to rounding; errors by another windowing of the same data, to a few per cent."""
    pyerrors = pytest.importorskip("pyerrors")
    from pyerrors.input.json import load_json

    export_run(drawn[1], tmp_path / "obs.json.gz", sampler=sampler)
    read = load_json(str(tmp_path / "obs.json.gz"), verbose=False, full_output=True)
    (listed,) = read["obsdata"]
    found = {one.tag: one for one in listed}
    rows = estimates(Series.open(drawn[1], sampler))
    assert {"phi2", "chi2", "abs_m", "action"} <= set(found) <= set(rows)
    for name, obs in found.items():
        obs.gamma_method()
        assert isinstance(obs, pyerrors.Obs) and len(obs.names) == (1 if sampler == "flow" else 16)
        assert obs.value == pytest.approx(rows[name].value, rel=1e-10, abs=1e-12)
        assert obs.dvalue == pytest.approx(rows[name].error, rel=0.3)
    assert read["description"]["ensemble"]["sampler"] == sampler
    assert 'name = "small"' in read["description"]["deck"]
    # derived by pyerrors itself, with the correlation of the two: the Binder cumulant
    binder = 1 - found["m4"] / (3 * (found["chi2"] / 4) ** 2)
    binder.gamma_method()
    assert binder.value == pytest.approx(rows["binder"].value, abs=0.5 * rows["binder"].error)
    assert binder.dvalue == pytest.approx(rows["binder"].error, rel=0.3)
    assert json.loads(gzip.open(tmp_path / "obs.json.gz").read())["program"].startswith("pyerrors")


def test_no_pyerrors(run, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pyerrors is not installed; pip install 'latticeflow\[analysis\]'"):
        export_run(run, tmp_path / "obs.json.gz")
