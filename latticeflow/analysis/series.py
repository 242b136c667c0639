"""Primary observables of an ensemble as Monte Carlo series, walked piece by piece in constant memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..correction import CorrectionSummary
from ..errors import InputError, StatisticsError
from ..production.ranks import Ranks
from ..run import Run
from ..samplers import samplers
from ..statistics import Integration, WeightSummary, integrate
from ..statistics.autocorrelation import unbiased
from ..statistics.streams import Moments, Piece, autocovariance
from ..store import Chain, Ensemble
from ..store.block import Key
from ..targets import Target
from .measured import Measured


@dataclass(frozen=True)
class Stretch:
    """Primaries at steps `step, step + 1, ...` of chains `chain, chain + 1, ...`: float64 `[C, n, ...]` by name.

    Chains are counted over the whole ensemble. Those of one stretch go on together from step 0 to their end.
    """

    chain: int
    step: int
    values: dict[str, np.ndarray]

    def piece(self, *names: str) -> Piece:
        """The components of these primaries (default: all) as columns, `[K, C, n]`."""
        parts = []
        for name in names or self.values:
            a = self.values[name]
            parts.append(np.moveaxis(a.reshape(*a.shape[:2], -1), -1, 0))
        return Piece(self.chain, self.step, np.concatenate(parts))


class PrimaryMoments:
    """Mean, standard deviation, lowest and highest value of each primary, `[...]` by name; `all`: their `Moments`."""

    def __init__(self, stretches: Iterator[Stretch]):
        self.all = Moments()
        self._at: dict[str, tuple[slice, tuple[int, ...]]] = {}
        for stretch in stretches:
            if not self._at:
                end = 0
                for name, a in stretch.values.items():
                    begin, end = end, end + math.prod(a.shape[2:])
                    self._at[name] = slice(begin, end), a.shape[2:]
            self.all.feed(stretch.piece())
        self.mean = self._split(self.all.mean)
        self.std = self._split(np.sqrt(self.all.variance))
        self.low, self.high = self._split(self.all.low), self._split(self.all.high)
        self.moves = self._split(self.all.moves)

    def _split(self, columns: np.ndarray) -> dict[str, np.ndarray]:
        return {name: columns[at].reshape(shape) for name, (at, shape) in self._at.items()}

    def check(self, name: str) -> None:
        """Raises `TooFewSamples` below 4 steps, `FrozenSeries` where no chain of the primary ever moves."""
        self.all.check(self._at[name][0].start + int(np.argmax(self.moves[name])))


class Series:
    """The primaries of one ensemble with every correction applied; `walk` gives them piece by piece.

    Independent samplers: the proposals taken through the Metropolis index, one chain or one a stream (as they
    are where there are no log-weights). Chain samplers: streams x chains. Interacting chains (emcee's walkers) are
    averaged over the walkers of a stream, which is then one chain. Streams of unequal length are cut to the shortest,
    which leaves out `left_out` draws.

    A piece is a block, so that memory does not grow with the number of draws. `series[name]` is a whole series
    `[chains, steps, ...]` in memory, for notebooks and small ensembles.
    """

    def __init__(self, ensemble: Ensemble, target: Target, ranks: Ranks | None = None):
        self.ensemble, self.target = ensemble, target
        self.blocks = ensemble.blocks
        if not self.blocks:
            raise StatisticsError(f"{ensemble.path} holds no finished block; run sample again")
        self.measured = Measured(ensemble, target, ranks or Ranks())
        self.names: list[str] = self.measured.names

    @classmethod
    def open(cls, run: Run, sampler: str) -> "Series":
        """Raises what `open_ensemble` does."""
        return cls(open_ensemble(run, sampler), run.deck.target)

    @property
    def independent(self) -> bool:
        return self.ensemble.chains == 0

    @cached_property
    def chain(self) -> Chain | None:
        """The Metropolis chain over the proposals; None where there are no log-weights."""
        return self.ensemble.chain() if self.ensemble.weighted else None

    @cached_property
    def summary(self) -> CorrectionSummary | None:
        """Acceptance, longest run of rejections, ESS, log Z; None where there are no log-weights."""
        return self.ensemble.summary() if self.ensemble.weighted else None

    @property
    def weights(self) -> WeightSummary:
        """What the proposals' weights say, where there are log-weights."""
        return self.integration.weights if self.integration else self.summary.weights  # type: ignore[union-attr]

    @property
    def importance(self) -> bool:
        """Whether values are means over the proposals with their weights: of integrands on the unit cube.

        Elsewhere they are means over the Metropolis chain, which a poor proposal (flat) would rarely move.
        """
        return self.target.measure == "hypercube" and self.independent and self.ensemble.weighted

    @cached_property
    def integration(self) -> Integration | None:
        """Z of an integrand on the unit cube, from all proposals; None for other targets and without log-weights."""
        if not self.importance:
            return None
        return integrate(self.log_weights(), len(self.blocks) * self.ensemble.settings["block"])

    @cached_property
    def moments(self) -> PrimaryMoments:
        """Of every primary, over the chains that the estimates are made of."""
        return PrimaryMoments(self.walk(*self.names))

    @cached_property
    def walker_moments(self) -> PrimaryMoments:
        """The same with every walker of interacting chains on its own."""
        if not self.ensemble.interacting:
            return self.moments
        return PrimaryMoments(self.walk(*self.names, walkers=True))

    @property
    def left_out(self) -> int:
        """Draws that no series uses: of streams longer than the shortest."""
        if self.independent:
            return 0
        used = sum(map(len, self._streams.values()))
        return (len(self.blocks) - used) * self.ensemble.settings["block"]

    @cached_property
    def _streams(self) -> dict[int, list[Key]]:
        return self.ensemble.streams

    def walk(self, *names: str, walkers: bool = False) -> Iterator[Stretch]:
        """The series of these primaries from the beginning; `walkers`: interacting chains each on its own."""
        if not self.independent:
            yield from self._walk_streams(names, walkers)
        elif self.chain is None:
            yield from self.proposals(*names)
        else:
            yield from self._walk_chain(names, self.chain)

    def _walk_streams(self, names: tuple[str, ...], walkers: bool) -> Iterator[Stretch]:
        C = self.ensemble.chains
        averaged = self.ensemble.interacting and not walkers
        for number, keys in enumerate(self._streams.values()):
            step = 0
            for key in keys:
                values = {}
                for name, a in self.measured.read(key, names).items():
                    a = a.reshape(-1, C, *a.shape[1:]).swapaxes(0, 1)  # draw i is step i // C of chain i % C
                    values[name] = a.mean(axis=0, keepdims=True) if averaged else a
                yield Stretch(number if averaged else number * C, step, values)
                step += self.ensemble.settings["block"] // C

    def _walk_chain(self, names: tuple[str, ...], chain: Chain) -> Iterator[Stretch]:
        """Each block's proposals by the chain's entries for it; an entry of an earlier block is the current state."""
        track_of = {key: number for number, keys in enumerate(chain.tracks) for key in keys}
        track, chains, step = -1, -1, 0
        current: dict[str, np.ndarray] = {}
        for number, (key, entries) in enumerate(chain.walk()):
            if not len(entries):  # every proposal so far has zero weight
                continue
            if track_of[key] != track:
                track, chains, step = track_of[key], chains + 1, 0
            row = entries - number * self.ensemble.settings["block"]
            values = {}
            for name, a in self.measured.read(key, names).items():
                corrected = a[np.maximum(row, 0)]
                if row[0] < 0:
                    corrected[row < 0] = current[name]
                current[name] = corrected[-1].copy()
                values[name] = corrected[None]
            yield Stretch(chains, step, values)
            step += len(entries)

    def proposals(self, *names: str) -> Iterator[Stretch]:
        """Primaries of the draws of an independent sampler without correction, as one chain in block order.

        Where there are log-weights `values["log_w"]` holds them.
        """
        step = 0
        for key in self.blocks:
            values = {name: a[None] for name, a in self.measured.read(key, names).items()}
            if self.ensemble.weighted:
                values["log_w"] = self.ensemble.read(*key, "log_w")["log_w"][None]
            yield Stretch(0, step, values)
            step += self.ensemble.settings["block"]

    def log_weights(self) -> Iterator[np.ndarray]:
        """log of target over proposal of all proposals in block order, float64 `[n]` a block."""
        for key in self.blocks:
            yield self.ensemble.read(*key, "log_w")["log_w"]

    def rho(self, name: str, lags: int, window: int) -> np.ndarray:
        """rho(t), t = 0 ... lags, of a scalar primary, as `statistics.autocorrelation` has it with this window."""
        shape, last = self.moments.all, min(max(lags, window), self.moments.all.steps - 1)
        mean = self.moments.mean[name][None]
        gamma = autocovariance(lambda: (one.piece() for one in self.walk(name)), mean, shape.steps, last)[0]
        gamma = unbiased(gamma, window, shape.n)
        return gamma[: lags + 1] / gamma[0]

    def __getitem__(self, name: str) -> np.ndarray:
        """The whole series of primary `name` in memory, float64 `[chains, steps, ...]`."""
        return whole(self.walk(name), name)

    def walkers(self, name: str) -> np.ndarray:
        """Like `self[name]`, but with every walker of interacting chains on its own."""
        return whole(self.walk(name, walkers=True), name)


def whole(stretches: Iterator[Stretch], name: str) -> np.ndarray:
    """One primary of all stretches, `[chains, steps, ...]`; chains of unequal length are cut to the shortest."""
    groups: list[list[np.ndarray]] = []
    for stretch in stretches:
        if stretch.step == 0:
            groups.append([])
        groups[-1].append(stretch.values[name])
    chains = [np.concatenate(parts, axis=1) for parts in groups]
    steps = min(one.shape[1] for one in chains)
    return np.concatenate([one[:, :steps] for one in chains])


def open_ensemble(run: Run, sampler: str) -> Ensemble:
    """A snapshot of an ensemble: a job may go on drawing while it is read.

    Raises `InputError` with the command to run where the run has no draws of that sampler.
    """
    path = run.ensemble(sampler)
    if not path.is_dir():
        samplers.find(sampler)
    if not path.is_dir() or not (ensemble := Ensemble.open(path).snapshot()).present:
        raise InputError(
            f"{run.path} has no ensemble of sampler '{sampler}'. Draw one with:\n"
            f"  latticeflow sample {run.path} --sampler {sampler} --draws 65536"
        )
    return ensemble
