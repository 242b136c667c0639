"""Primary observables of an ensemble as Monte Carlo series, measured once and kept beside the blocks.

`RUN/ensembles/SAMPLER/measured/STREAM_BLOCK.h5` holds the primaries of one block, one row a draw. A file is
written once and never changed; it counts only for the block and the version of the observables that it names.
"""

from functools import cached_property
from pathlib import Path

import h5py
import numpy as np
from rich.progress import track

from ..errors import InputError, StatisticsError, StoreError
from ..files import write_atomic
from ..observables import Primary, measure, observables, version
from ..run import Run
from ..store.ensemble import Ensemble
from ..targets import Target


class Series:
    """The primaries of one ensemble, by name: float64 `[chains, steps, ...]` with every correction applied.

    Independent samplers: one chain, the proposals taken through the Metropolis index. Chains: streams x C.
    Interacting chains (emcee's walkers) are averaged over the walkers of a stream, which is then one chain.
    Streams of unequal length are cut to the shortest, which leaves out `left_out` draws.
    """

    def __init__(self, ensemble: Ensemble, target: Target):
        self.ensemble, self.target = ensemble, target
        if not ensemble.blocks:
            raise StatisticsError(f"{ensemble.path} holds no finished block; run sample again")
        self.files = [self._measured(*key) for key in self._progress()]
        self.names = [one.name for one in observables.of(target) if isinstance(one, Primary)]

    @classmethod
    def open(cls, run: Run, sampler: str) -> "Series":
        """Raises `InputError` with the command to run where the run has no ensemble of that sampler."""
        path = run.ensemble(sampler)
        if not path.is_dir() or not Ensemble.open(path).blocks:
            raise InputError(
                f"{run.path} has no ensemble of sampler '{sampler}'. Draw one with\n"
                f"  latticeflow sample {run.path} --sampler {sampler} --draws 65536"
            )
        return cls(Ensemble.open(path), run.deck.target)

    @property
    def independent(self) -> bool:
        return self.ensemble.chains == 0

    @cached_property
    def log_w(self) -> np.ndarray | None:
        """log of target over proposal of every proposal, float64 `[N]`; None for chains."""
        return self._column("log_w") if self.independent else None

    @cached_property
    def index(self) -> np.ndarray | None:
        """The Metropolis chain as an index over the proposals; None for chains."""
        return self.ensemble.chain().index if self.independent else None

    @property
    def weights(self) -> np.ndarray | None:
        """Importance weights over their largest, `[1, N]`; None for chains."""
        return None if self.log_w is None else np.exp(self.log_w - self.log_w.max())[None]

    @property
    def steps(self) -> int:
        """Steps of one chain in `self[name]`."""
        return len(self.index) if self.index is not None else self._stream_steps

    @property
    def left_out(self) -> int:
        """Draws that no series uses: of streams longer than the shortest."""
        if self.independent:
            return 0
        return self.ensemble.draws - len(self._streams) * self._stream_steps * self.ensemble.chains

    def __getitem__(self, name: str) -> np.ndarray:
        """The series of primary `name`, float64 `[chains, steps, ...]`."""
        if self.index is not None:
            return self._column(name)[self.index][None]
        walkers = self.walkers(name)
        if self.ensemble.interacting:
            return walkers.reshape(len(self._streams), -1, *walkers.shape[1:]).mean(axis=1)
        return walkers

    def walkers(self, name: str) -> np.ndarray:
        """Like `self[name]`, but with every walker of interacting chains on its own."""
        if self.index is not None:
            return self[name]
        C, n = self.ensemble.chains, self._stream_steps
        chains = []
        for files in self._streams.values():
            values = np.concatenate([self._read(file, name) for file in files])[: n * C]
            chains.append(values.reshape(n, C, *values.shape[1:]).swapaxes(0, 1))
        return np.concatenate(chains)

    def proposals(self, name: str) -> np.ndarray:
        """Primary `name` of the proposals of an independent sampler, without correction, `[1, N, ...]`."""
        return self._column(name)[None]

    @cached_property
    def _streams(self) -> dict[int, list[Path]]:
        streams: dict[int, list[Path]] = {}
        for (stream, _), file in zip(self.ensemble.blocks, self.files):
            streams.setdefault(stream, []).append(file)
        return streams

    @cached_property
    def _stream_steps(self) -> int:
        draws = [sum(self._length(file) for file in files) for files in self._streams.values()]
        return min(draws) // self.ensemble.chains

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([self._read(file, name) for file in self.files])

    @staticmethod
    def _read(path: Path, name: str) -> np.ndarray:
        try:
            with h5py.File(path, "r") as file:
                return file[name][...]
        except (OSError, KeyError) as error:
            raise StoreError(
                f"cannot read '{name}' of {path}: {error}. Delete the file; it is measured again"
            ) from None

    @staticmethod
    def _length(path: Path) -> int:
        with h5py.File(path, "r") as file:
            return int(file.attrs["n"])

    def _progress(self):
        missing = sum(not self._path(*key).exists() for key in self.ensemble.blocks)
        return track(
            self.ensemble.blocks,
            f"measuring {self.ensemble.sampler}",
            transient=True,
            disable=missing * 4 < len(self.ensemble.blocks),
        )

    def _path(self, stream: int, block: int) -> Path:
        return Path(self.ensemble.path) / "measured" / f"{stream:06d}_{block:06d}.h5"

    def _measured(self, stream: int, block: int) -> Path:
        """The file with the block's primaries; written if there is none, or one of another version."""
        path = self._path(stream, block)
        stamp = {"observables": version(), "block": self._fingerprint(stream, block)}
        if not _current(path, stamp):
            wanted = ("x",) if not self.independent else ("x", "log_w")
            arrays = self.ensemble.read(stream, block, *wanted)
            values = measure(self.target, arrays["x"])
            if self.independent:
                values["log_w"] = arrays["log_w"]
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, lambda temporary: _write(temporary, values, stamp))
        return path

    def _fingerprint(self, stream: int, block: int) -> str:
        return f"{self.ensemble.identity} {stream} {block}"


def _write(path: Path, values: dict[str, np.ndarray], stamp: dict[str, str]) -> None:
    with h5py.File(path, "w") as file:
        for name, array in values.items():
            file.create_dataset(name, data=array, fletcher32=True)
        file.attrs.update(stamp)
        file.attrs["n"] = len(next(iter(values.values())))


def _current(path: Path, stamp: dict[str, str]) -> bool:
    """Whether `path` holds the measurement that `stamp` names; a damaged file is measured again."""
    try:
        with h5py.File(path, "r") as file:
            return all(file.attrs.get(key) == value for key, value in stamp.items())
    except OSError:
        return False
