"""What of an ensemble is held out, and how far apart configurations are that are learned from.

A configuration of a chain resembles its neighbours in Monte Carlo time: a test set made of configurations chosen at random
would hold near copies of what was trained on. So whole chains are held out, which have never met those that stay.
"""

import numpy as np
import torch

from ..errors import InputError, StatisticsError
from ..precision import double
from ..random import Purpose, stream
from ..statistics import tau_int
from ..store import Ensemble
from ..store.block import Key
from ..targets import Target


def units(ensemble: Ensemble, key: Key) -> np.ndarray:
    """What each row of the block's "x" belongs to, int64: the units that are held out or stay as a whole.

    Of a chain sampler its chain, numbered over all streams; of interacting chains (emcee) their stream. Of independent
    proposals their block: one proposal, as often as the Metropolis chain repeats it, lies in one block.
    """
    chains = ensemble.chains
    if not chains:
        return np.full(len(ensemble.kept_rows), key[0] << 32 | key[1], dtype=np.int64)
    if ensemble.interacting:
        return np.full(len(ensemble.kept_rows), key[0], dtype=np.int64)
    return key[0] * chains + ensemble.kept_rows % chains


def held_out(ensemble: Ensemble, share: float, seed: int) -> np.ndarray:
    """The units that are held out, chosen at random by the stream (seed, DATA, 3): `share` of them, one at least.

    Raises `InputError` where there is only one, which cannot be divided.
    """
    there = np.unique(np.concatenate([np.unique(units(ensemble, key)) for key in ensemble.blocks]))
    if len(there) < 2:
        what = "block" if not ensemble.chains else "stream" if ensemble.interacting else "chain"
        raise InputError(
            f"train.test_share = {share}: {ensemble.path} has one {what} only, and a part of it would not be independent of "
            f"the rest. Draw more than one {what}, or set train.test_share = 0"
        )
    count = min(max(1, round(share * len(there))), len(there) - 1)
    return np.sort(stream(seed, Purpose.DATA, 3).choice(there, size=count, replace=False))


def auto_thin(ensemble: Ensemble, target: Target) -> int:
    """`2 tau_int` steps, rounded, tau_int the larger of those of S and of `target.slow`; 1 of draws that are independent.

    Of steps whose fields are kept, where those are every k-th, and then a multiple of k. Raises `InputError` where no
    tau_int can be told: chains too short for it, or frozen ones.
    """
    if not ensemble.chains:
        return _thin_of(ensemble, _metropolis(ensemble)) if ensemble.weighted else 1
    return ensemble.keep_fields * max(_thin_of(ensemble, series) for series in _series(ensemble, target))


def _thin_of(ensemble: Ensemble, series: np.ndarray) -> int:
    try:
        return max(1, round(2 * tau_int(series).value))
    except StatisticsError as error:
        raise InputError(
            f"train.thin = 'auto': {ensemble.path} does not tell its autocorrelation time ({error}). Draw longer chains, "
            "or say train.thin = a number of steps"
        ) from None


def _series(ensemble: Ensemble, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """S and `target.slow` of the kept steps, `[chains, steps]` each; of interacting chains their mean, one a stream."""
    rows: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for blocks in ensemble.streams.values():
        parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for key in blocks:
            data = ensemble.read(*key, "x", "log_prob")
            with torch.no_grad():
                slow = target.slow(double(torch.from_numpy(data["x"]))).numpy()
            for part, values in zip(parts, (data["log_prob"][ensemble.kept_rows], slow)):
                part.append(values.reshape(-1, ensemble.chains).T)
        for row, part in zip(rows, parts):
            chains = np.concatenate(part, axis=1)
            row.append(chains.mean(0, keepdims=True) if ensemble.interacting else chains)
    return np.concatenate(rows[0]), np.concatenate(rows[1])


def _metropolis(ensemble: Ensemble) -> np.ndarray:
    """S along the Metropolis chain, `[1, entries]`."""
    chain = ensemble.chain()
    order = [key for track in chain.tracks for key in track]
    log_prob = np.concatenate([ensemble.read(*key, "log_prob")["log_prob"] for key in order])
    return log_prob[chain.index()][None]
