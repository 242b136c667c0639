"""One Metropolis chain over all proposals, or one for each stream: both exact, and drawn by any rank in any order."""

import shutil

import numpy as np
import pytest
from jobs import contents
from known_samplers import ProposalSpec

from latticeflow.config import Deck
from latticeflow.correction import metropolis
from latticeflow.production.ranks import Ranks
from latticeflow.production.sample import sample_run
from latticeflow.production.worker import Worker, missing_blocks, share_out
from latticeflow.random import Purpose
from latticeflow.run import Run
from latticeflow.samplers import samplers
from latticeflow.samplers.flow import FlowSamplerSpec
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField

DECK = {"name": "modes", "seed": 7, "target": {"kind": "free", "shape": [2, 2], "m2": 1.0}}
STREAMS, BLOCKS, BLOCK = 24, 5, 512


class HeavierSpec(ProposalSpec):
    kind = "heavier"
    block: int = BLOCK
    m2: float = 1.3


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setitem(samplers.classes, "heavier", HeavierSpec)
    return Run.create(Deck.parse(DECK), tmp_path / "run")


def drawn(run: Run, streams: int, draws: int) -> Ensemble:
    return sample_run(run, sampler="heavier", draws=draws, overrides=[f"sampler.heavier.streams={streams}"])


def phi2(ensemble: Ensemble) -> np.ndarray:
    """phi^2, the mean over sites, of all proposals in block order."""
    return np.concatenate([(data["x"] ** 2).mean((1, 2)) for data in ensemble.iterate("x")])


def test_one_chain_a_stream_against_the_closed_form(run):
    """Chains are independent of one another, so the scatter of their means is an error that knows nothing of tau_int."""
    ensemble = drawn(run, STREAMS, STREAMS * BLOCKS * BLOCK)
    chain, values = ensemble.chain(), phi2(ensemble)
    assert len(chain.tracks) == STREAMS and all(len(track) == BLOCKS for track in chain.tracks)
    entries = dict(chain.walk())
    corrected = np.array(
        [values[np.concatenate([entries[k] for k in track])].mean() for track in chain.tracks]
    )
    raw = values.reshape(STREAMS, -1).mean(1)
    exact, other = (FreeField(shape=(2, 2), m2=m2).spectrum.mean() for m2 in (1.0, 1.3))

    def pull(means: np.ndarray, expected: float) -> float:
        return abs(means.mean() - expected) / (means.std(ddof=1) / np.sqrt(len(means)))

    assert pull(corrected, float(exact)) < 3.5
    assert (
        pull(raw, float(exact)) > 20 and pull(raw, float(other)) < 3.5
    )  # without the correction: the other mass


def test_each_stream_is_metropolis_on_its_own(run):
    ensemble = drawn(run, 3, 3 * 4 * BLOCK)
    index, size = ensemble.chain().index(), 4 * BLOCK
    for stream in range(3):
        keys = [(stream, block) for block in range(4)]

        class Joined:
            def standard_exponential(self, n):
                streams = [ensemble.generator(Purpose.METROPOLIS, *key) for key in keys]  # noqa: B023
                return np.concatenate([rng.standard_exponential(BLOCK) for rng in streams])

        log_w = np.concatenate([ensemble.read(*key, "log_w")["log_w"] for key in keys])
        expected = stream * size + metropolis(log_w, Joined()).index
        np.testing.assert_array_equal(index[stream * size : (stream + 1) * size], expected)
    assert len(set(index)) < len(index)  # something was rejected


def test_streams_do_not_change_what_a_block_holds(run):
    """Block (s, 0) is that of the one global chain; only which proposals a chain runs through differs."""
    one = drawn(run, 0, 2 * BLOCK)
    first = {key: one.read(*key)["x"].tobytes() for key in one.present}
    shutil.rmtree(one.path)
    many = drawn(run, 2, 4 * BLOCK)
    assert many.present == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {key: many.read(*key)["x"].tobytes() for key in first} == first


class Pretended(Ranks):
    def __init__(self, rank: int, size: int):
        super().__init__()
        self.rank, self.size = rank, size


def test_any_rank_draws_any_block(run):
    """Three ranks' shares, drawn last first, give the bytes of one rank; blocks of one stream go to several ranks."""
    ensemble = drawn(run, 2, 2 * 3 * BLOCK)
    expected = contents(run.path)
    record, spec = ensemble.record, ensemble.spec
    shutil.rmtree(ensemble.path)
    again = Ensemble.create(ensemble.path, **record)
    missing = missing_blocks(again, spec, 2 * 3 * BLOCK)
    assert missing == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]  # streams grow together
    shares = [share_out(missing, Pretended(rank, 3), chains=False) for rank in range(3)]
    assert sorted(key for share in shares for key in share) == sorted(missing)
    assert {rank for rank in range(3) for key in shares[rank] if key[0] == 0} == {0, 1, 2}
    for share in shares:
        worker = Worker(spec.build(run.deck.target), again, spec, "cpu")
        for key in reversed(share):
            worker.draw(*key)
    again.build_chain()
    assert contents(run.path) == expected


def test_extending_streams(run):
    short = drawn(run, 2, 2 * BLOCK).chain().index()
    longer = drawn(run, 2, 4 * BLOCK - 10)
    assert longer.draws == 4 * BLOCK and [len(track) for track in longer.chain().tracks] == [2, 2]
    np.testing.assert_array_equal(longer.chain().index()[:BLOCK], short[:BLOCK])


def test_a_stopped_job_leaves_streams_of_one_length(run):
    """HMC too: a stopped job loses no chain to the shortest one, however few ranks there were."""
    ensemble = drawn(run, 4, 4 * 3 * BLOCK)
    chains = Ensemble(ensemble.path / "none", {**ensemble.record, "chains": 8})
    order = share_out(missing_blocks(chains, ensemble.spec, 4 * 3 * BLOCK), Pretended(0, 1), chains=True)
    for done in range(1, len(order) + 1):
        lengths = [sum(s == stream for s, _ in order[:done]) for stream in range(4)]
        assert max(lengths) - min(lengths) <= 1


def test_the_deck_takes_streams():
    assert FlowSamplerSpec().streams == 0
    deck = Deck.parse({**DECK, "sampler": {"flow": {"streams": 3}}})
    assert deck.sampler_spec("flow").streams == 3


def test_a_job_may_leave_the_scan_to_the_first_reader(run):
    ensemble = sample_run(run, sampler="heavier", draws=3 * BLOCK, chain=False)
    chain = ensemble.path / "chain.h5"
    assert not chain.exists()
    left = ensemble.chain().index()
    chain.unlink()
    assert np.array_equal(left, sample_run(run, sampler="heavier", draws=3 * BLOCK).chain().index())
    assert chain.exists()
