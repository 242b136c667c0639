"""Block files, ensembles and export: what is read is what was written, or an error that says why not."""

import json
import shutil

import h5py
import numpy as np
import pytest
import torch

from latticeflow.analysis.export import export_run
from latticeflow.config import Deck
from latticeflow.correction import metropolis
from latticeflow.errors import InputError, StatisticsError, StoreError
from latticeflow.files import write_atomic
from latticeflow.random import Purpose
from latticeflow.run import Run
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble
from latticeflow.store import block as block_files

BLOCK = 64
RECORD = {
    "sampler": "flow",
    "settings": {"block": BLOCK, "precision": "float32", "threads": 1},
    "target": {"kind": "phi4", "shape": (2, 2), "m2": -4.0, "lam": 8.0},
    "seed": 3,
    "weights": "ab" * 32,
    "chains": 0,
    "interacting": False,
    "weighted": True,
}
CHAINS = {**RECORD, "sampler": "hmc", "weights": None, "chains": 8, "weighted": False}
ABOUT = {"precision": "float32", "batch": 64, "threads": 1, "torch": "2", "host": "here"}


def fake_draws(number: int, weighted: bool = True, n: int = BLOCK) -> Draws:
    rng = np.random.default_rng(number)
    log_w = rng.normal(size=n) if weighted else None
    x = torch.from_numpy(rng.normal(size=(n, 2, 2)).astype(np.float32))
    return Draws(x, rng.normal(size=n), log_w, {} if weighted else {"acceptance": rng.random(n // 8)})


def fake_state(number: int) -> dict:
    rng = np.random.default_rng(number)
    return {
        "x": rng.normal(size=(8, 2, 2)),
        "step": np.array(0.1),
        "counts": np.arange(8),
        "none": np.empty(0),
    }


@pytest.fixture
def flow(tmp_path):
    ensemble = Ensemble.create(tmp_path / "run" / "ensembles" / "flow", **RECORD)
    for b in range(3):
        ensemble.write(b, 0, fake_draws(b), None, 0.5, **ABOUT)
    return ensemble


@pytest.fixture
def hmc(tmp_path):
    ensemble = Ensemble.create(tmp_path / "run" / "ensembles" / "hmc", **CHAINS)
    for s in range(2):
        for b in range(3):
            about = {**ABOUT, "start_seconds": 2.0} if b == 0 else ABOUT
            ensemble.write(s, b, fake_draws(10 * s + b, weighted=False), fake_state(b), 0.5, **about)
    return ensemble


def everything(ensemble, key) -> dict[str, bytes]:
    arrays = ensemble.read(*key, *ensemble.names(*key))
    return {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()}


def test_round_trip(flow, hmc):
    found, wrote = flow.read(1, 0), fake_draws(1)
    assert set(found) == {"x", "log_prob", "log_w"}
    assert found["x"].dtype == np.float32 and found["x"].tobytes() == wrote.x.numpy().tobytes()
    assert found["log_w"].tobytes() == wrote.log_w.tobytes()
    assert set(hmc.read(0, 1)) == {"x", "log_prob", "info/acceptance"}
    assert set(hmc.read(0, 1, "state/step")) == {"state/step"}
    state, expected = hmc.state(1, 2), fake_state(2)
    assert set(state) == set(expected)
    for name in expected:
        assert state[name].dtype == expected[name].dtype and state[name].shape == expected[name].shape
        assert state[name].tobytes() == expected[name].tobytes()


def test_an_ensemble_knows_itself(flow, hmc):
    again = Ensemble.open(flow.path)
    assert (again.sampler, again.chains, again.weighted, again.seed) == ("flow", 0, True, 3)
    assert again.blocks == [(0, 0), (1, 0), (2, 0)]
    assert again.draws == 3 * BLOCK and again.seconds == 1.5 and again.start_seconds == 0
    assert hmc.start_seconds == 4.0 and hmc.blocks[-1] == (1, 2)
    about = again.attributes(1, 0)
    assert about["n"] == BLOCK and about["host"] == "here" and about["identity"] == again.identity
    assert about["mean_log_w"] == pytest.approx(fake_draws(1).log_w.mean())
    assert [data["x"].shape for data in again.iterate("x")] == [(BLOCK, 2, 2)] * 3


def test_block_numbers_sort_as_numbers(flow):
    for b in (10, 1_000_000, 999_999):
        flow.write(b, 0, fake_draws(b), None, 0.5, **ABOUT)
    assert [s for s, _ in flow.blocks] == [0, 1, 2, 10, 999_999, 1_000_000]


def test_any_flipped_byte_is_noticed_or_harmless(hmc):
    path = hmc.path / block_files.block_name(0, 1)
    good, bytes_ = everything(hmc, (0, 1)), path.read_bytes()
    attributes = hmc.attributes(0, 1)
    noticed = 0
    places = np.random.default_rng(1).choice(len(bytes_), size=250, replace=False)
    for place in places:
        bad = bytearray(bytes_)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        try:
            assert everything(hmc, (0, 1)) == good
            assert hmc.attributes(0, 1) == attributes
        except StoreError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 50  # the rest is padding between HDF5's parts


def test_flipped_byte_in_the_data(flow):
    path = flow.path / block_files.block_name(1, 0)
    bytes_ = bytearray(path.read_bytes())
    place = bytes_.find(fake_draws(1).x.numpy().tobytes())
    assert place > 0
    bytes_[place + 100] ^= 1
    path.write_bytes(bytes_)
    with pytest.raises(StoreError, match=r"s000001_b000000\.h5 is damaged.*delete that file.*identically"):
        flow.read(1, 0, "x")
    flow.read(1, 0, "log_w")  # the other arrays are whole


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated(flow, share):
    path = flow.path / block_files.block_name(1, 0)
    bytes_ = path.read_bytes()
    path.write_bytes(bytes_[: int(share * len(bytes_))])
    with pytest.raises(StoreError, match=r"s000001_b000000\.h5 is damaged"):
        flow.read(1, 0)


def test_foreign_files(flow):
    path = flow.path / block_files.block_name(1, 0)
    path.write_text("not HDF5")
    with pytest.raises(StoreError, match="damaged or not a file of this package"):
        flow.read(1, 0)
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(StoreError, match="no format version"):
        flow.read(1, 0)
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        flow.read(1, 0)


def test_misnamed(flow):
    shutil.copy(
        flow.path / block_files.block_name(1, 0),
        flow.path / block_files.block_name(7, 0),
    )
    with pytest.raises(StoreError, match=r"s000007_b000000\.h5 holds stream 1, block 0.*s000001_b000000"):
        flow.read(7, 0)


def test_block_of_another_ensemble(flow, tmp_path):
    other = Ensemble.create(tmp_path / "other", **{**RECORD, "seed": 4})
    other.write(1, 0, fake_draws(1), None, 0.5, **ABOUT)
    name = block_files.block_name(1, 0)
    shutil.copy(other.path / name, flow.path / name)
    with pytest.raises(StoreError, match="belongs to another ensemble"):
        flow.read(1, 0)


def test_newer_format(flow, monkeypatch):
    monkeypatch.setattr(block_files, "FORMAT", block_files.FORMAT + 1)
    flow.write(5, 0, fake_draws(5), None, 0.5, **ABOUT)
    monkeypatch.undo()
    with pytest.raises(StoreError, match="format 2; this version of latticeflow reads format 1"):
        flow.read(5, 0)
    table = json.loads((flow.path / "ensemble.json").read_text())
    (flow.path / "ensemble.json").write_text(json.dumps({**table, "format": 2}))
    with pytest.raises(StoreError, match="format 2"):
        Ensemble.open(flow.path)


def test_altered_with_valid_checksums(flow):
    with h5py.File(flow.path / block_files.block_name(1, 0), "r+") as file:
        file["log_w"][3] += 0.1
    with pytest.raises(StoreError, match=r"<log_w> = .* recorded"):
        flow.read(1, 0, "log_w")


def test_disk_that_loses_a_bit(flow, monkeypatch):
    monkeypatch.setattr(block_files, "get", lambda file, name: file[name][()] * 2)
    with pytest.raises(StoreError, match="reads back different"):
        flow.write(5, 0, fake_draws(5), None, 0.5, **ABOUT)
    assert flow.present == [(0, 0), (1, 0), (2, 0)]
    assert not list(flow.path.glob(".*"))


def test_failed_write_leaves_nothing(tmp_path):
    def half(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", half)
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_on_two_hosts(tmp_path, monkeypatch):
    """Process ids agree, as they may on two nodes; each must still write its own file."""
    monkeypatch.setattr("os.getpid", lambda: 77)

    def outer(temporary):
        with open(temporary, "x") as handle:
            handle.write("whole")
        write_atomic(tmp_path / "file", lambda other: other.open("x").close())

    write_atomic(tmp_path / "file", outer)
    assert (tmp_path / "file").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


def test_hole_in_a_chain(hmc):
    (hmc.path / block_files.block_name(1, 1)).unlink()
    with pytest.raises(StoreError, match=r"s000001_b000001\.h5 is missing.*chain is broken"):
        list(hmc.iterate("x"))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"seed": 4}, "seed: 3, now 4"),
        ({"weights": "cd" * 32}, "weights"),
        ({"settings": {**RECORD["settings"], "block": 32}}, r"settings\.block: 64, now 32"),
        ({"settings": {**RECORD["settings"], "threads": 2}}, r"settings\.threads"),
        ({"target": {**RECORD["target"], "lam": 7.0}}, r"target\.lam: 8\.0, now 7\.0"),
    ],
)
def test_changed_settings(flow, change, key):
    with pytest.raises(InputError, match=key):
        Ensemble.create(flow.path, **{**RECORD, **change})
    assert Ensemble.create(flow.path, **RECORD).identity == flow.identity


def test_missing_damaged_or_edited_record(flow, tmp_path):
    with pytest.raises(InputError, match=r"latticeflow sample .*run --sampler hmc --draws N"):
        Ensemble.open(tmp_path / "run" / "ensembles" / "hmc")
    path = flow.path / "ensemble.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({**table, "seed": 5}))
    with pytest.raises(StoreError, match="edited"):
        Ensemble.open(flow.path)
    for text in ("{", "[]", "{}", '{"format": 1, "identity": ""}'):
        path.write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            Ensemble.open(flow.path)


def test_wrong_block_size(flow):
    with pytest.raises(InputError, match="32 draws for a block of 64"):
        flow.write(5, 0, fake_draws(5, n=32), None, 0.5)


def test_chain_is_the_scan_with_a_stream_for_each_block(flow):
    flow.build_chain()
    chain = flow.chain()

    class Joined:
        """All blocks' random numbers one after another."""

        def standard_exponential(self, n):
            streams = [flow.generator(Purpose.METROPOLIS, b, 0) for b in range(3)]
            return np.concatenate([rng.standard_exponential(BLOCK) for rng in streams])

    expected = metropolis(flow.log_w, Joined())
    np.testing.assert_array_equal(chain.index, expected.index)
    moves = np.count_nonzero(np.diff(chain.index))
    assert chain.acceptance == moves / (3 * BLOCK - 1) and chain.proposals == 3 * BLOCK
    assert flow.summary().acceptance == chain.acceptance


def test_chain_must_cover_the_blocks(flow):
    with pytest.raises(StoreError, match=r"chain\.h5 is missing"):
        flow.chain()
    flow.build_chain()
    first = flow.chain()
    flow.write(3, 0, fake_draws(3), None, 0.5, **ABOUT)
    with pytest.raises(StoreError, match="covers 3 blocks, not the 4 present"):
        flow.chain()
    flow.build_chain()
    np.testing.assert_array_equal(flow.chain().index[: len(first.index)], first.index)
    time = (flow.path / "chain.h5").stat().st_mtime_ns
    flow.build_chain()  # covers all: stays
    assert (flow.path / "chain.h5").stat().st_mtime_ns == time
    (flow.path / "chain.h5").write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"chain\.h5 is damaged"):
        flow.chain()
    flow.build_chain()
    assert flow.chain().proposals == 4 * BLOCK


def test_no_chain_without_weights(hmc, flow):
    for call in (hmc.build_chain, hmc.chain, lambda: hmc.log_w):
        with pytest.raises(InputError, match="stores no log-weights"):
            call()
    for b in range(3):
        draws = fake_draws(b)
        (flow.path / block_files.block_name(b, 0)).unlink()
        flow.write(b, 0, Draws(draws.x, draws.log_prob, np.full(BLOCK, -np.inf)), None, 0.5, **ABOUT)
    with pytest.raises(StatisticsError, match="every weight is zero"):
        flow.build_chain()
    assert not (flow.path / "chain.h5").exists()


def test_samplers_share_no_noise(flow, hmc):
    assert flow.seed == hmc.seed
    noise = [e.generator(Purpose.DRAW, 0, 0).random(4).tolist() for e in (flow, hmc)]
    assert noise[0] != noise[1]


@pytest.fixture
def run(flow, hmc):
    flow.build_chain()
    deck = Deck.parse({"name": "run", "seed": 3, "target": RECORD["target"]})
    (flow.path.parent.parent / "deck.toml").write_text(deck.toml())
    return Run.open(flow.path.parent.parent)


@pytest.mark.parametrize("suffix", [".npz", ".h5", ".hdf5"])
def test_export(run, flow, tmp_path, suffix):
    def load(path):
        if suffix == ".npz":
            with np.load(path) as file:
                return {name: file[name] for name in file}
        with h5py.File(path) as file:
            return {name: file[name][()] for name in file} | dict(file.attrs)

    export_run(run, tmp_path / f"chain{suffix}")
    found, index = load(tmp_path / f"chain{suffix}"), flow.chain().index
    x = np.concatenate([fake_draws(b).x.numpy() for b in range(3)])
    assert set(found) == {"x", "log_prob", "index", "deck", "ensemble"}
    np.testing.assert_array_equal(found["x"], x[index])
    np.testing.assert_array_equal(found["index"], index)
    assert 'kind = "phi4"' in str(found["deck"])
    export_run(run.path, tmp_path / f"raw{suffix}", proposals=True)
    found = load(tmp_path / f"raw{suffix}")
    assert set(found) == {"x", "log_prob", "log_w", "weight", "deck", "ensemble"}
    np.testing.assert_array_equal(found["x"], x)
    assert found["weight"].mean() == pytest.approx(1)
    export_run(run, tmp_path / f"hmc{suffix}", sampler="hmc")
    found = load(tmp_path / f"hmc{suffix}")
    assert set(found) == {"x", "log_prob", "chain", "step", "deck", "ensemble"}
    record = json.loads(str(found["ensemble"]))
    assert (record["sampler"], record["chains"], record["seed"]) == ("hmc", 8, 3)
    # step 11 of chain 5 of stream 1: 8 steps a block, so step 3 of block 1, draw 3 * 8 + 5 of it
    (at,) = np.flatnonzero((found["chain"] == 8 + 5) & (found["step"] == 11))
    np.testing.assert_array_equal(found["x"][at], fake_draws(11, weighted=False).x[29])
    for chain in range(16):
        assert found["step"][found["chain"] == chain].tolist() == list(range(24))


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
