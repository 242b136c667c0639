"""The rows of an exported ensemble, block by block in constant memory."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from ..errors import InputError
from ..production.ranks import Ranks
from ..statistics import WeightSums
from ..store import Ensemble
from ..store.block import Key
from ..targets import Target
from .measured import Measured

GROUP = "observables/"
# rows of a block's draws, -1 for the chain's configuration before the block; and columns that say where they stand
Places = tuple[Key, np.ndarray, dict[str, np.ndarray]]


class Columns(Protocol):
    """Rows of named columns: `columns`, dtype and shape of one row by name; `n`, how many; `pieces`, some at a time."""

    @property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]: ...

    n: int

    def pieces(self, *names: str) -> Iterator[dict[str, np.ndarray]]: ...


class Rows:
    """`columns`: dtype and shape of one row, by name; `n`: rows in all; `pieces(names)`: columns, block by block.

    What the columns are is said in `export_run`.
    """

    def __init__(self, ensemble: Ensemble, target: Target, proposals: bool, observables: bool):
        self.ensemble = ensemble
        self.size, self.C = ensemble.settings["block"], ensemble.chains
        self.corrected = ensemble.weighted and not proposals
        if not proposals:
            ensemble.require_exact("chain to export (--proposals exports the raw draws)")
        elif ensemble.exact and not ensemble.weighted:
            raise InputError(
                f"{ensemble.path}: sampler '{ensemble.sampler}' has no log-weights and no proposals; export it "
                "without --proposals"
            )
        only_observables = observables or ensemble.keep_fields == 0
        self.measured = Measured(ensemble, target, Ranks()) if only_observables else None
        names = ["x"] if self.measured is None else [GROUP + name for name in self.measured.names]
        names += ["log_prob", "log_w", "weight"] if proposals and ensemble.weighted else ["log_prob"]
        # draws of a block that are exported
        self.kept = np.arange(self.size) if self.measured else ensemble.kept_rows
        self.log_mean = self._log_mean_weight() if proposals and ensemble.weighted else 0.0
        key, _, places = next(self._places())
        first = self._read(key, names) | places
        self.columns = {name: (a.dtype, a.shape[1:]) for name, a in first.items()}
        self.n = sum(len(at) for _, at, _ in self._places())

    def pieces(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """These columns for the rows of one block after another."""
        return (piece for _, piece in self.keyed(*names))

    def keyed(self, *names: str) -> Iterator[tuple[Key, dict[str, np.ndarray]]]:
        """`pieces`, each with the block's key."""
        carried: dict[str, np.ndarray] = {}
        for key, at, places in self._places():
            rows = {name: places[name] for name in names if name in places}
            data = self._read(key, [name for name in names if name not in places]) if len(at) else {}
            for name, a in data.items():
                rows[name] = a[np.searchsorted(self.kept, at) if name == "x" else np.maximum(at, 0)]
                if at[0] < 0:
                    rows[name][at < 0] = carried[name]
                carried[name] = rows[name][-1].copy()
            if len(at):
                yield key, {name: rows[name] for name in names}

    def _read(self, key: Key, names: list[str]) -> dict[str, np.ndarray]:
        """Columns of one block's draws; `x` has the kept ones alone."""
        stored = [name for name in ("x", "log_prob", "log_w") if name in names]
        if "weight" in names and "log_w" not in names:
            stored.append("log_w")
        found = self.ensemble.read(*key, *stored) if stored else {}
        if "weight" in names:
            found["weight"] = np.exp(found["log_w"] - self.log_mean)
        wanted = tuple(name.removeprefix(GROUP) for name in names if name.startswith(GROUP))
        if self.measured and wanted:
            found |= {GROUP + name: a for name, a in self.measured.read(key, wanted).items()}
        return {name: found[name] for name in names}

    def _places(self) -> Iterator[Places]:
        if self.corrected:
            return self._selection()
        return self._chains() if self.C else self._draws()

    def _chains(self) -> Iterator[Places]:
        """Draw i of a block is step i // C of chain i % C of its stream."""
        step, chain = self.kept // self.C, self.kept % self.C
        for stream, block in self.ensemble.blocks:
            places = {"chain": stream * self.C + chain, "step": block * (self.size // self.C) + step}
            yield (stream, block), self.kept, places

    def _draws(self) -> Iterator[Places]:
        for number, key in enumerate(self.ensemble.blocks):
            yield key, self.kept, {"index": number * self.size + self.kept}

    def _selection(self) -> Iterator[Places]:
        """The corrected chains. Entries of an earlier block are the configuration that the chain came with."""
        chain, is_kept = self.ensemble.chain(), np.zeros(self.size, dtype=bool)
        is_kept[self.kept] = True
        track_of = {key: number for number, keys in enumerate(chain.tracks) for key in keys}
        track, begun = -1, 0
        for number, (key, entries) in enumerate(chain.walk()):
            if track_of[key] != track:
                track, begun = track_of[key], 0
            step = begun + np.arange(len(entries))
            begun += len(entries)
            chosen = is_kept[entries % self.size]
            index = entries[chosen]
            places = {"chain": np.full(len(index), track), "step": step[chosen], "index": index}
            yield key, np.maximum(index - number * self.size, -1), places

    def _log_mean_weight(self) -> float:
        sums = WeightSums()
        for data in self.ensemble.iterate("log_w"):
            sums.feed(data["log_w"])
        return sums.summary().log_z
