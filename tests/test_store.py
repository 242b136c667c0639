"""Block files and ensembles: what is read is what was written, or an error that says why not."""

import json
import shutil

import h5py
import numpy as np
import pytest
from fake_ensembles import ABOUT, BLOCK, RECORD, fake_draws, fake_state

from latticeflow.errors import InputError, StoreError
from latticeflow.random import Purpose
from latticeflow.store import Ensemble, hdf5
from latticeflow.store import block as block_files


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
    """Flips in arrays are met on reading them, those in attributes (HDF5 leaves strings unchecked) by the digest."""
    path = block_files.block_path(hmc.path, 0, 1)
    good, bytes_ = everything(hmc, (0, 1)), path.read_bytes()
    attributes = hmc.check_block(0, 1)[1]
    noticed = 0
    places = np.random.default_rng(1).choice(len(bytes_), size=250, replace=False)
    for place in places:
        bad = bytearray(bytes_)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        try:
            assert everything(hmc, (0, 1)) == good
        except StoreError as error:
            assert str(path) in str(error)
        try:
            assert hmc.check_block(0, 1)[1] == attributes
        except StoreError as error:
            assert str(path) in str(error)
            noticed += 1
    assert noticed > 50  # the rest is padding between HDF5's parts


@pytest.mark.parametrize("name", ["x", "log_w"])
def test_an_edit_that_keeps_every_checksum(flow, name):
    path = block_files.block_path(flow.path, 1, 0)
    with h5py.File(path, "r+") as file:  # h5py writes new checksums
        file[name][3], file[name][4] = file[name][4], file[name][3]  # the mean stays
    flow.read(1, 0)
    with pytest.raises(StoreError, match=r"s000001_b000000\.h5 was edited: its digest"):
        flow.check_block(1, 0)
    flow.check_block(0, 0)


@pytest.mark.parametrize("change", [{"host": "there"}, {"seconds": 0.4}, {"mine": 1}])
def test_an_edited_attribute(flow, change):
    with h5py.File(block_files.block_path(flow.path, 1, 0), "r+") as file:
        file.attrs.update(change)
    with pytest.raises(StoreError, match=r"was edited: its digest"):
        flow.check_block(1, 0)


def test_only_blocks_in_their_place_count(flow):
    """A thousand streams a folder; a block elsewhere is none, and is named."""
    flow.write(1234, 0, fake_draws(1), None, 0.5, **ABOUT)
    folder = flow.path / "blocks"
    assert (folder / "s001000_b000000" / "s001234_b000000.h5").is_file()
    lost = folder / "s000000_b000000" / "s001234_b000000.h5"
    shutil.move(folder / "s001000_b000000" / "s001234_b000000.h5", lost)
    half = folder / "s000000_b000000" / ".s000007_b000000.h5.host.ab.tmp"
    half.write_bytes(b"half")
    assert flow.present == [(0, 0), (1, 0), (2, 0)]
    assert block_files.strangers(flow.path) == [half, lost]
    assert block_files.leftovers(flow.path) == [half]


def test_flipped_byte_in_the_data(flow):
    path = block_files.block_path(flow.path, 1, 0)
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
    path = block_files.block_path(flow.path, 1, 0)
    bytes_ = path.read_bytes()
    path.write_bytes(bytes_[: int(share * len(bytes_))])
    with pytest.raises(StoreError, match=r"s000001_b000000\.h5 is damaged"):
        flow.read(1, 0)


def test_foreign_files(flow):
    path = block_files.block_path(flow.path, 1, 0)
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
        block_files.block_path(flow.path, 1, 0),
        block_files.block_path(flow.path, 7, 0),
    )
    with pytest.raises(StoreError, match=r"s000007_b000000\.h5 holds stream 1, block 0.*s000001_b000000"):
        flow.read(7, 0)


def test_block_of_another_ensemble(flow, tmp_path):
    other = Ensemble.create(tmp_path / "other", **{**RECORD, "seed": 4})
    other.write(1, 0, fake_draws(1), None, 0.5, **ABOUT)
    shutil.copy(block_files.block_path(other.path, 1, 0), block_files.block_path(flow.path, 1, 0))
    with pytest.raises(StoreError, match="belongs to another ensemble"):
        flow.read(1, 0)


@pytest.mark.parametrize(("shift", "age"), [(1, "a newer"), (-1, "an older")])
def test_another_format(flow, monkeypatch, shift, age):
    other = block_files.FORMAT + shift
    monkeypatch.setattr(block_files, "FORMAT", other)
    flow.write(5, 0, fake_draws(5), None, 0.5, **ABOUT)
    monkeypatch.undo()
    wanted = f"format {other}, written by {age} version of latticeflow; this one reads format 2"
    with pytest.raises(StoreError, match=wanted):
        flow.read(5, 0)
    table = json.loads((flow.path / "ensemble.json").read_text())
    (flow.path / "ensemble.json").write_text(json.dumps({**table, "format": other}))
    with pytest.raises(StoreError, match=wanted):
        Ensemble.open(flow.path)


def test_altered_with_valid_checksums(flow):
    with h5py.File(block_files.block_path(flow.path, 1, 0), "r+") as file:
        file["log_w"][3] += 0.1
    with pytest.raises(StoreError, match=r"<log_w> = .* recorded"):
        flow.read(1, 0, "log_w")


def test_disk_that_loses_a_bit(flow, monkeypatch):
    put = hdf5.put

    def lose(file, name, array):
        wrong = np.array(array)
        if name == "x":
            wrong.reshape(-1).view(np.uint8)[-5] ^= 1
        put(file, name, wrong)

    monkeypatch.setattr(hdf5, "put", lose)
    with pytest.raises(StoreError, match="reads back different"):
        flow.write(5, 0, fake_draws(5), None, 0.5, **ABOUT)
    assert flow.present == [(0, 0), (1, 0), (2, 0)]
    assert not list(flow.path.glob(".*"))


def test_hole_in_a_chain(hmc):
    (block_files.block_path(hmc.path, 1, 1)).unlink()
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
    for text in ("{", "[]", "{}", '{"format": 2, "identity": ""}'):
        path.write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            Ensemble.open(flow.path)


def test_wrong_block_size(flow):
    with pytest.raises(InputError, match="32 draws for a block of 64"):
        flow.write(5, 0, fake_draws(5, n=32), None, 0.5)


def test_samplers_share_no_noise(flow, hmc):
    assert flow.seed == hmc.seed
    noise = [e.generator(Purpose.DRAW, 0, 0).random(4).tolist() for e in (flow, hmc)]
    assert noise[0] != noise[1]
