"""The Metropolis chain over an ensemble's proposals, on disk."""

import h5py
import numpy as np
import pytest
from fake_ensembles import ABOUT, BLOCK, RECORD, fake_draws

from latticeflow.correction import metropolis
from latticeflow.errors import InputError, StatisticsError, StoreError, WriteFailed
from latticeflow.random import Purpose
from latticeflow.samplers.base import Draws
from latticeflow.statistics import summarise_weights
from latticeflow.store import Ensemble
from latticeflow.store import block as block_files
from latticeflow.store.block import block_path


class Joined:
    """The random numbers of several blocks, one after another."""

    def __init__(self, ensemble, keys):
        self.streams = [ensemble.generator(Purpose.METROPOLIS, *key) for key in keys]

    def standard_exponential(self, n):
        return np.concatenate([rng.standard_exponential(BLOCK) for rng in self.streams])


def by_hand(ensemble, keys) -> np.ndarray:
    """The chain over the blocks `keys`, proposals counted from the first of them."""
    log_w = np.concatenate([ensemble.read(*key, "log_w")["log_w"] for key in keys])
    return metropolis(log_w, Joined(ensemble, keys)).index


def with_weights(number: int, log_w: np.ndarray) -> Draws:
    draws = fake_draws(number)
    return Draws(draws.x, draws.log_prob, log_w)


def test_chain_is_the_scan_with_a_stream_for_each_block(flow):
    flow.build_chain()
    chain, expected = flow.chain(), by_hand(flow, flow.present)
    np.testing.assert_array_equal(chain.index(), expected)
    assert chain.index().dtype == np.int64
    moves = np.count_nonzero(np.diff(expected))
    assert chain.acceptance == moves / (3 * BLOCK - 1) and chain.proposals == 3 * BLOCK
    assert chain.tracks == [[(0, 0), (1, 0), (2, 0)]] and chain.starts.tolist() == [0]
    assert flow.summary().acceptance == chain.acceptance
    found, log_w = flow.summary().weights, np.concatenate([fake_draws(b).log_w for b in range(3)])
    assert found == summarise_weights(log_w) or found.ess == pytest.approx(summarise_weights(log_w).ess)
    assert chain.longest == np.diff(np.flatnonzero(np.diff(expected, prepend=-1, append=-1))).max() - 1
    assert flow.seconds == 1.5


def test_walk_gives_each_block_its_entries(flow):
    """Also where the chain starts in the second block: nothing for the proposals before its start."""
    block_path(flow.path, 0, 0).unlink()
    block_path(flow.path, 1, 0).unlink()
    flow.write(0, 0, with_weights(0, np.full(BLOCK, -np.inf)), None, 0.5, **ABOUT)
    late = fake_draws(1).log_w
    late[:5] = -np.inf
    flow.write(1, 0, with_weights(1, late), None, 0.5, **ABOUT)
    chain, expected = flow.chain(), by_hand(flow, flow.present)
    assert chain.starts.tolist() == [BLOCK + 5]
    walked = list(chain.walk())
    assert [key for key, _ in walked] == flow.present
    assert [len(entries) for _, entries in walked] == [0, BLOCK - 5, BLOCK]
    np.testing.assert_array_equal(np.concatenate([entries for _, entries in walked]), expected)


def test_reader_builds_the_chain(flow):
    """Missing or not covering what is there: as after a job that was stopped, or while another draws."""
    first = flow.chain().index()
    flow.write(3, 0, fake_draws(3), None, 0.5, **ABOUT)
    longer = flow.chain()
    assert longer.proposals == 4 * BLOCK
    np.testing.assert_array_equal(longer.index()[: len(first)], first)
    path = flow.path / "chain.h5"
    time, bytes_ = path.stat().st_mtime_ns, path.read_bytes()
    flow.build_chain()  # covers all: stays
    assert path.stat().st_mtime_ns == time
    path.unlink()
    flow.chain()
    assert path.read_bytes() == bytes_  # two builders write the same
    flow.check_chain()


def test_damaged_chain(flow):
    path = flow.path / "chain.h5"
    flow.build_chain()
    good = path.read_bytes()
    for bad in (b"damaged", good[:-100]):
        path.write_bytes(bad)
        for call in (flow.chain, flow.check_chain):
            with pytest.raises(StoreError, match=r"chain\.h5 is damaged.*delete that file"):
                call()
    assert flow.seconds == 1.5  # from the blocks
    flow.build_chain()  # as sample does
    assert path.read_bytes() == good


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f["moves"].__setitem__((1, 3), f["moves"][1, 3] ^ 4), r"s000001_b000000\.h5 is not that"),
        (lambda f: f["starts"].__setitem__(0, 1), r"starts = \[1\], but the blocks give \[0\]"),
        (lambda f: f.attrs.__setitem__("acceptance", 0.9), r"acceptance = 0\.9, but the blocks give"),
        (lambda f: f.attrs.__setitem__("weights_ess", 1.0), r"weights_ess = 1\.0, but"),
        (lambda f: f.attrs.__setitem__("mine", 1), r"mine = 1, but the blocks give None"),
    ],
)
def test_edited_chain(flow, change, said):
    flow.build_chain()
    flow.check_chain()
    with h5py.File(flow.path / "chain.h5", "r+") as file:
        change(file)
    with pytest.raises(StoreError, match=said):
        flow.check_chain()


def test_check_of_a_chain_over_other_blocks(flow):
    """None yet, or one that is shorter: a job was stopped. One over a block that is gone: something was lost."""
    flow.check_chain()
    flow.build_chain()
    flow.write(3, 0, fake_draws(3), None, 0.5, **ABOUT)
    flow.check_chain()
    flow.build_chain()
    block_path(flow.path, 2, 0).unlink()
    with pytest.raises(
        StoreError, match=r"s000002_b000000\.h5 is missing: the chain in chain\.h5 is over it"
    ):
        flow.check_chain()


def test_walk_of_a_chain_replaced_meanwhile(flow):
    old = flow.chain()
    flow.write(3, 0, fake_draws(3), None, 0.5, **ABOUT)
    flow.chain()
    with pytest.raises(StoreError, match=r"built anew while it was read.*Run this again"):
        list(old.walk())


def test_chain_that_cannot_be_written(flow, monkeypatch):
    def refuse(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("latticeflow.files.os.replace", refuse)
    with pytest.raises(
        WriteFailed, match=r"chain over .*is not there yet.*Read-only file system.*copy the run"
    ):
        flow.chain()
    assert not list(flow.path.glob(".*")) and not (flow.path / "chain.h5").exists()


def test_seconds_of_a_large_ensemble_open_one_file(flow, monkeypatch):
    flow.build_chain()
    for name in ("open_block", "read_weights", "read_attributes"):
        monkeypatch.setattr(block_files, name, lambda *_: pytest.fail("a block was opened"))
    assert flow.seconds == 1.5 and flow.start_seconds == 0 and flow.summary().weights.n == 3 * BLOCK


def test_no_chain_without_weights(hmc, flow):
    for call in (hmc.build_chain, hmc.chain, hmc.check_chain, lambda: hmc.log_w):
        with pytest.raises(InputError, match="stores no log-weights"):
            call()
    for b in range(3):
        block_path(flow.path, b, 0).unlink()
    with pytest.raises(StatisticsError, match="holds no finished block"):
        flow.chain()
    for b in range(3):
        flow.write(b, 0, with_weights(b, np.full(BLOCK, -np.inf)), None, 0.5, **ABOUT)
    with pytest.raises(StatisticsError, match="every weight is zero"):
        flow.build_chain()
    assert not (flow.path / "chain.h5").exists()


@pytest.fixture
def streams(tmp_path):
    """Two streams of three blocks, of the second of which one is not drawn yet."""
    settings = {**RECORD["settings"], "streams": 2}
    ensemble = Ensemble.create(tmp_path / "streams", **{**RECORD, "settings": settings})
    for number, key in enumerate([(0, 0), (0, 1), (0, 2), (1, 0), (1, 2)]):
        log_w = fake_draws(number).log_w
        if key == (0, 2):
            log_w[-1] = 9.0  # the first stream ends where a global chain would stay for long
        ensemble.write(*key, with_weights(number, log_w), None, 0.5, **ABOUT)
    return ensemble


def test_one_chain_a_stream(streams):
    chain = streams.chain()
    tracks = [[(0, 0), (0, 1), (0, 2)], [(1, 0), (1, 2)]]  # proposals are independent: a hole breaks no chain
    assert chain.tracks == tracks and chain.starts.tolist() == [0, 3 * BLOCK]
    expected = [by_hand(streams, tracks[0]), 3 * BLOCK + by_hand(streams, tracks[1])]
    np.testing.assert_array_equal(chain.index(), np.concatenate(expected))
    assert [key for key, _ in chain.walk()] == streams.blocks
    moves = sum(np.count_nonzero(np.diff(one)) for one in expected)
    assert chain.acceptance == moves / (5 * BLOCK - 2)
    streams.check_chain()
    # not the global chain: that would enter the second stream with the first one's last proposal
    assert by_hand(streams, streams.present).tolist() != chain.index().tolist()


def test_a_stream_that_never_starts_is_named(streams):
    for b in (0, 2):
        block_path(streams.path, 1, b).unlink()
        streams.write(1, b, with_weights(b, np.full(BLOCK, -np.inf)), None, 0.5, **ABOUT)
    with pytest.raises(StatisticsError, match="stream 1: every weight is zero"):
        streams.chain()


def test_a_single_proposal_has_no_acceptance(tmp_path):
    settings = {**RECORD["settings"], "block": 1}
    ensemble = Ensemble.create(tmp_path / "one", **{**RECORD, "settings": settings})
    ensemble.write(0, 0, fake_draws(0, n=1), None, 0.5, **ABOUT)
    assert np.isnan(ensemble.chain().acceptance) and ensemble.chain().index().tolist() == [0]
    with pytest.raises(StatisticsError, match="one proposal has no acceptance"):
        ensemble.summary()
