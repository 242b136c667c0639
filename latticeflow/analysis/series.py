"""Primary observables of an ensemble as Monte Carlo series, measured once and kept beside the blocks.

`RUN/ensembles/SAMPLER/measured/` holds one file a block with its primaries, one row a draw. A file is written
once and never changed; it counts only for the ensemble, block and versions of observables and targets that it
names. Where nothing can be written, measurements are made in memory.
"""

import math
from functools import cached_property
from pathlib import Path

import numpy as np
from rich.progress import track

from .. import targets
from ..console import console
from ..correction import CorrectionSummary
from ..errors import InputError, StatisticsError, StoreError, WriteFailed
from ..files import make_folder, source_hash
from ..observables import Primary, measure, observables, version
from ..run import Run
from ..samplers import samplers
from ..store import Chain, Ensemble
from ..store.block import block_path
from ..store.hdf5 import get, open_h5, write_h5
from ..targets import Target

_TARGETS = Path(targets.__file__).parent  # action and virial are the target's
_REMEDY = "delete that file; it is measured again"


class Series:
    """The primaries of one ensemble, by name: float64 `[chains, steps, ...]` with every correction applied.

    Independent samplers: one chain, the proposals taken through the Metropolis index (as they are where there
    are no log-weights). Chain samplers: streams x chains. Interacting chains (emcee's walkers) are averaged
    over the walkers of a stream, which is then one chain. Streams of unequal length are cut to the shortest,
    which leaves out `left_out` draws.
    """

    def __init__(self, ensemble: Ensemble, target: Target):
        self.ensemble, self.target = ensemble, target
        self.blocks = ensemble.blocks
        if not self.blocks:
            raise StatisticsError(f"{ensemble.path} holds no finished block; run sample again")
        self.names = [one.name for one in observables.of(target) if isinstance(one, Primary)]
        self._read_before: dict[str, np.ndarray] = {}
        self._unsaved: dict[tuple[int, int], dict[str, np.ndarray]] = {}
        self.stamp = {
            "observables": version(),
            "targets": source_hash(_TARGETS),
            "identity": ensemble.identity,
        }
        self._measure_all()

    @classmethod
    def open(cls, run: Run, sampler: str) -> "Series":
        """Raises `InputError` with the command to run where the run has no ensemble of that sampler."""
        path = run.ensemble(sampler)
        if not path.is_dir():
            samplers.find(sampler)
        if not path.is_dir() or not Ensemble.open(path).present:
            raise InputError(
                f"{run.path} has no ensemble of sampler '{sampler}'. Draw one with:\n"
                f"  latticeflow sample {run.path} --sampler {sampler} --draws 65536"
            )
        return cls(Ensemble.open(path), run.deck.target)

    @property
    def volume(self) -> int:
        """V, the number of components of one configuration."""
        return math.prod(self.target.event_shape)

    @property
    def independent(self) -> bool:
        return self.ensemble.chains == 0

    @cached_property
    def log_w(self) -> np.ndarray | None:
        """log of target over proposal of every proposal, float64 `[N]`; None where there are none."""
        return self.ensemble.log_w if self.ensemble.weighted else None

    @cached_property
    def chain(self) -> Chain | None:
        """The Metropolis chain over the proposals; None where there are no log-weights."""
        return self.ensemble.chain() if self.ensemble.weighted else None

    @cached_property
    def summary(self) -> CorrectionSummary | None:
        """Acceptance, longest run of rejections, ESS, log Z; None where there are no log-weights."""
        return self.ensemble.summary() if self.ensemble.weighted else None

    @property
    def left_out(self) -> int:
        """Draws that no series uses: of streams longer than the shortest."""
        if self.independent:
            return 0
        used = sum(map(len, self._streams.values()))
        return (len(self.blocks) - used) * self.ensemble.settings["block"]

    def __getitem__(self, name: str) -> np.ndarray:
        """The series of primary `name`, float64 `[chains, steps, ...]`."""
        values = self.walkers(name)
        if self.ensemble.interacting:
            return values.reshape(len(self._streams), -1, *values.shape[1:]).mean(axis=1)
        return values

    def walkers(self, name: str) -> np.ndarray:
        """Like `self[name]`, but with every walker of interacting chains on its own."""
        if self.independent:
            values = self.proposals(name)
            return values if self.chain is None else values[:, self.chain.index]
        values = self._all(name, [key for keys in self._streams.values() for key in keys])
        steps = values.reshape(len(self._streams), -1, self.ensemble.chains, *values.shape[1:])
        return steps.swapaxes(1, 2).reshape(-1, steps.shape[1], *values.shape[1:])

    def proposals(self, name: str) -> np.ndarray:
        """Primary `name` of the draws of an independent sampler, without correction, `[1, N, ...]`."""
        return self._all(name, self.blocks)[None]

    @cached_property
    def _streams(self) -> dict[int, list[tuple[int, int]]]:
        return self.ensemble.streams

    def _path(self, key: tuple[int, int]) -> Path:
        return block_path(self.ensemble.path, *key, part="measured")

    def _all(self, name: str, keys: list[tuple[int, int]]) -> np.ndarray:
        """Primary `name` of all draws of `keys`, `[N, ...]`; read once, since several estimates use each."""
        if name not in self._read_before:
            self._read_before[name] = np.concatenate([self._read(key, name) for key in keys])
        return self._read_before[name]

    def _read(self, key: tuple[int, int], name: str) -> np.ndarray:
        if key in self._unsaved:
            return self._unsaved[key][name]
        with open_h5(self._path(key), _REMEDY) as file:
            return get(file, name)

    def _measure_all(self) -> None:
        missing = [key for key in self.blocks if not self._is_measured(key)]
        out, few = console(), len(missing) < 8
        bar = track(missing, f"measuring {self.ensemble.sampler}", console=out, transient=True, disable=few)
        for key in bar:
            values = measure(self.target, self.ensemble.read(*key, "x")["x"], *self.names)
            if self._unsaved:  # one block could not be stored: nor could the next
                self._unsaved[key] = values
                continue
            try:
                make_folder(self._path(key).parent)
                write_h5(self._path(key), values, {**self.stamp, "stream": key[0], "block": key[1]})
            except WriteFailed as error:  # somebody else's folder, a read-only or a full disk
                out.print(f"measurements are not kept, the next call makes them again: {error}")
                self._unsaved[key] = values

    def _is_measured(self, key: tuple[int, int]) -> bool:
        """Whether the block's file is there, readable, and of this ensemble and version."""
        if not self._path(key).exists():
            return False
        wanted = {**self.stamp, "stream": key[0], "block": key[1]}
        try:
            with open_h5(self._path(key), _REMEDY) as file:
                return all(file.attrs.get(name) == value for name, value in wanted.items())
        except StoreError:
            return False
