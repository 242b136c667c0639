"""The Metropolis chain over an ensemble's proposals, on disk."""

import numpy as np
import pytest
from fake_ensembles import ABOUT, BLOCK, fake_draws

from latticeflow.correction import metropolis
from latticeflow.errors import InputError, StatisticsError, StoreError
from latticeflow.random import Purpose
from latticeflow.samplers.base import Draws
from latticeflow.store import block as block_files


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
        (block_files.block_path(flow.path, b, 0)).unlink()
        flow.write(b, 0, Draws(draws.x, draws.log_prob, np.full(BLOCK, -np.inf)), None, 0.5, **ABOUT)
    with pytest.raises(StatisticsError, match="every weight is zero"):
        flow.build_chain()
    assert not (flow.path / "chain.h5").exists()
