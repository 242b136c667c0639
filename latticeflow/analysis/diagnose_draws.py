"""Draws of an ensemble for tests that look at whole configurations: independent ones, no configuration twice.

And series of one number of all draws in a bounded memory, with how many independent draws they count as.
"""

import copy
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, StatisticsError
from ..precision import double
from ..run import Run
from ..statistics.two_sample import Sample, independent
from ..store.block import Key
from ..training.split import units
from .estimates import Row
from .series import Series, Stretch, open_ensemble, whole

SERIES = 1 << 20  # draws of a series that are looked at
BYTES = 1 << 28  # of configurations held in memory
LEFT = 0.03  # autocorrelation between draws that count as independent: errors of an AUC are too small by 3 %
REPEATS = 0.01  # share of repeated configurations up to which they are dropped; with more of them thinning is coarser


class Generated(Series):
    """Draws of a sampler on the unit cube without weights: where f = 0 they are no events, and left out."""

    def proposals(self, *names: str) -> Iterator[Stretch]:
        step = 0
        for key in self.blocks:
            inside = np.isfinite(self.ensemble.read(*key, "log_prob")["log_prob"])
            if inside.any():
                yield Stretch(
                    0, step, {name: a[inside][None] for name, a in self.measured.read(key, names).items()}
                )
            step += int(inside.sum())


def open_series(run: Run, sampler: str) -> Series:
    """Raises what `open_ensemble` does, and `InputError` for a generator none of whose draws is an event."""
    ensemble, target = open_ensemble(run, sampler), run.deck.target
    if target.measure != "hypercube" or ensemble.chains or ensemble.weighted:
        return Series(ensemble, target)
    series = Generated(ensemble, target)
    if next(series.proposals(), None) is None:
        raise InputError(f"{ensemble.path}: the target's density is zero at all {ensemble.draws:,} draws")
    return series


def unweighted(series: Series) -> bool:
    """Whether draws are independent as they come."""
    return series.independent and not series.ensemble.weighted


class _Reader:
    """In the place of `Measured`: "log_prob" as a primary among the others."""

    def __init__(self, series: Series):
        self.series = series

    def read(self, key: Key, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        if names == ("log_prob",):
            return self.series.ensemble.read(*key, "log_prob")
        return self.series.measured.read(key, names)


def history(series: Series, name: str = "log_prob", most: int = SERIES) -> np.ndarray:
    """One scalar of every draw, corrected, `[chains, steps]`: a primary or log_prob. The first steps of all chains, so many

    that it is `most` numbers at most. Walkers of interacting chains are chains of their own. Raises `StatisticsError` where
    there is none (a generator that never meets the cuts).
    """
    reading = copy.copy(series)
    reading.measured = _Reader(series)  # type: ignore[assignment]
    ensemble = series.ensemble
    chains = len(ensemble.streams) * ensemble.chains if ensemble.chains else len(ensemble.tracks)
    limit = max(1, most // max(1, chains))
    found = [one for one in reading.walk(name, walkers=True) if one.step < limit]
    if not found:
        raise StatisticsError(f"{ensemble.path}: no draw lies where the target's density is not zero")
    return whole(iter(found), name)[:, :limit]


def sample_of(series: Series, name: str = "log_prob") -> Sample:
    """`history` thinned to independent numbers. Raises `StatisticsError` where tau_int cannot be told."""
    x = history(series, name)
    if unweighted(series):
        return Sample(x.ravel(), x.size)
    return independent(x, series.ensemble.chains if series.ensemble.interacting else 1)


def action_name(series: Series) -> str:
    """The primary that is the target's action; log_prob where there is none."""
    return next((name for name in ("action", "gauge_action") if name in series.names), "log_prob")


@dataclass(frozen=True)
class Draws:
    """Configurations x, float64 `[n, *event_shape]`, every `thin`-th step; `units` int64 `[n]`: the chain or block each is
    from; `dropped`: share of repeated ones that were left out."""

    x: Tensor
    units: np.ndarray
    thin: int
    dropped: float

    def halves(self) -> tuple[Tensor, Tensor]:
        """Two parts that do not know of one another: chains, or blocks, by turns; of one alone its two halves."""
        there = np.unique(self.units)
        if len(there) < 2:
            cut = len(self.x) // 2
            return self.x[:cut], self.x[cut:]
        second = torch.from_numpy(np.isin(self.units, there[1::2]))
        return self.x[~second], self.x[second]


def draws(series: Series, rows: dict[str, Row], n: int) -> Draws:
    """At most n configurations, distributed as the corrected ensemble, independent, spread evenly over it.

    A Metropolis chain, of proposals or of HMC, repeats what it does not leave, and whoever compares configurations would see
    the repetitions and not the physics. To drop them from the chain itself would be wrong: those that are often repeated
    are the ones that count most. So it is thinned, by `apart` of the largest tau_int of `rows`, then by twice as much until
    fewer than 1 % are repeated; these are dropped, which moves an AUC by 0.005 at most.
    Draws of a generator without weights are independent and are taken as they are, repeated or not.

    Raises `InputError` where fields are not kept, `StatisticsError` where fewer than four remain.
    """
    ensemble = series.ensemble
    if not ensemble.keep_fields:
        raise InputError(f"{ensemble.path} keeps no fields (keep_fields = 0): nothing to look at")
    size = math.prod(series.target.event_shape) * (
        16 if series.target.field_dtype(torch.float64).is_complex else 8
    )
    n = max(4, min(n, BYTES // size))
    taus = [row.tau.value for row in rows.values() if row.tau]
    thin = 1 if unweighted(series) else apart(max(taus, default=0.5))
    while True:
        chosen = _rows(series, thin)
        count = sum(len(one) for _, one in chosen)
        x, owners = _load(series, chosen, count, n)
        keep = torch.arange(len(x)) if unweighted(series) else distinct(x)
        dropped = 1 - len(keep) / max(1, len(x))
        if dropped <= REPEATS or count < 128:
            break
        thin *= 2
    if len(keep) < 4:
        raise StatisticsError(
            f"{ensemble.path}: {len(keep)} independent configurations, every {thin}-th; draw more"
        )
    return Draws(x[keep], owners[keep.numpy()], thin, dropped)


def apart(tau: float) -> int:
    """Steps after which one exponential of this tau_int, `rho(t) = ((2 tau - 1) / (2 tau + 1))^t`, is down to `LEFT`.

    Some 3.5 tau_int: after 2 tau_int, where exp(-2) is left, errors of n draws that are taken for independent would be too
    small by 14 %.
    """
    if tau <= 0.5:
        return 1
    return max(1, round(math.log(LEFT) / math.log((2 * tau - 1) / (2 * tau + 1))))


def _rows(series: Series, thin: int) -> list[tuple[Key, np.ndarray]]:
    """Rows of each block's "x" at every thin-th step, an entry of a Metropolis chain as often as it is there."""
    ensemble, block = series.ensemble, series.ensemble.settings["block"]
    kept = ensemble.kept_rows
    if series.chain is not None:
        return list(_entries(series, thin))
    if series.independent:
        return [(key, np.arange(len(kept))) for key in series.blocks]
    steps = kept // ensemble.chains
    return [
        (key, np.flatnonzero((steps + key[1] * (block // ensemble.chains)) % thin == 0))
        for key in series.blocks
    ]


def _entries(series: Series, thin: int) -> Iterator[tuple[Key, np.ndarray]]:
    """Of those proposals whose fields are kept, which does not depend on what they are."""
    chain, kept, first = series.chain, series.ensemble.kept_rows, 0
    order = [key for track in chain.tracks for key in track]  # type: ignore[union-attr]
    row_of = np.full(chain.size, -1)  # type: ignore[union-attr]
    row_of[kept] = np.arange(len(kept))
    for _, entries in chain.walk():  # type: ignore[union-attr]
        used = entries[-first % thin :: thin]
        first += len(entries)
        block, row = np.divmod(used, chain.size)  # type: ignore[union-attr]
        for b in np.unique(block):
            rows = row_of[row[block == b]]
            yield order[b], rows[rows >= 0]


def _load(
    series: Series, chosen: list[tuple[Key, np.ndarray]], count: int, n: int
) -> tuple[Tensor, np.ndarray]:
    """n of `count` configurations, evenly spread, and their units."""
    taken = np.unique(np.linspace(0, count - 1, min(n, count)).round().astype(int))
    parts: list[Tensor] = []
    owners: list[np.ndarray] = []
    at = 0
    for key, rows in chosen:
        own = rows[taken[(taken >= at) & (taken < at + len(rows))] - at]
        at += len(rows)
        if len(own):
            read = series.ensemble.read(*key, "x", "log_prob")
            inside = np.isfinite(read["log_prob"][series.ensemble.kept_rows][own])
            parts.append(double(torch.from_numpy(read["x"][own[inside]])))
            owners.append(units(series.ensemble, key)[own[inside]])
    if not parts:
        raise StatisticsError(f"{series.ensemble.path}: no draws to look at; draw more")
    return torch.cat(parts), np.concatenate(owners)


def distinct(x: Tensor) -> Tensor:
    """Numbers of the configurations that are met for the first time, in order, int64."""
    found = np.unique(fingerprints(x), return_index=True)[1]
    return torch.from_numpy(np.sort(found))


def fingerprints(x: Tensor) -> np.ndarray:
    """A 64-bit number of each configuration, the same for the same numbers, uint64 `[n]`."""
    flat = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    rows = np.ascontiguousarray(flat.numpy()).reshape(len(x), -1)
    digests = b"".join(hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows)
    return np.frombuffer(digests, dtype=np.uint64)
