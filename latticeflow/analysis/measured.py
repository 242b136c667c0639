"""The primary observables of every block: stored inside it, or measured once and kept beside it.

`ENSEMBLE/measured/` holds one file a block with its primaries, one row a draw. A file is written once and never
changed; it counts only for the ensemble, block and versions of observables and targets that it names. Where
nothing can be written, measurements are made in memory. Blocks that do not keep the fields of all draws hold the
primaries themselves, as they were measured when the block was drawn.
"""

from pathlib import Path

import numpy as np
from rich.progress import track

from ..console import console
from ..errors import StoreError, WriteFailed
from ..files import make_folder
from ..observables import Primary, measure, observables
from ..production.ranks import Ranks
from ..store import Ensemble
from ..store.block import Key, block_path
from ..store.hdf5 import get, open_h5, write_h5
from ..store.provenance import measured_by
from ..targets import Target
from ..threads import threads

_REMEDY = "delete that file; it is measured again"


class Measured:
    """Primaries of an ensemble's blocks. Making one measures what is missing, shared out over the ranks.

    `names`: the primaries that can be read; `not_stored`: why others that exist on the target cannot, by name;
    `remarks`: what a reader of the numbers should know.
    """

    def __init__(self, ensemble: Ensemble, target: Target, ranks: Ranks):
        self.ensemble, self.target = ensemble, target
        self.names = [one.name for one in observables.of(target) if isinstance(one, Primary)]
        self.not_stored: dict[str, str] = {}
        self.remarks: list[str] = []
        self.stamp = measured_by()
        self._unsaved: dict[Key, dict[str, np.ndarray]] = {}
        self._inside = ensemble.keep_fields != 1
        if self._inside:
            self._look_inside()
        else:
            with threads(ensemble.settings.get("threads", 1)):  # any number of ranks gives the same numbers
                self._measure_missing(ranks)

    def read(self, key: Key, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Primaries of one block's draws, float64 `[n, ...]` by name."""
        if self._inside:
            found = self.ensemble.read(*key, *(f"measured/{name}" for name in names))
            return {name: found[f"measured/{name}"] for name in names}
        if key in self._unsaved:
            return {name: self._unsaved[key][name] for name in names}
        with open_h5(self._path(key), _REMEDY) as file:
            return {name: get(file, name) for name in names}

    def _look_inside(self) -> None:
        """Which primaries all blocks have; fields are not all there, so that no other can be measured."""
        there, stamps = set(self.names), set()
        for key in self.ensemble.blocks:
            about = self.ensemble.attributes(*key)
            stamps.add(tuple(about.get(name) for name in self.stamp))
            there &= {name.removeprefix("measured/") for name in self.ensemble.names(*key)}
        reason = "not measured when the ensemble was drawn, and the fields of all draws are not kept"
        self.not_stored = {name: reason for name in self.names if name not in there}
        self.names = [name for name in self.names if name in there]
        if stamps - {tuple(self.stamp.values())}:
            self.remarks.append(
                "observables were measured by another version of their source or the target's, and cannot be measured "
                "again: the fields of all draws are not kept"
            )

    def _path(self, key: Key) -> Path:
        return block_path(self.ensemble.path, *key, part="measured")

    def _wanted(self, key: Key) -> dict[str, str | int]:
        return {**self.stamp, "identity": self.ensemble.identity, "stream": key[0], "block": key[1]}

    def _is_measured(self, key: Key) -> bool:
        """Whether the block's file is there, readable, and of this ensemble and version."""
        if not self._path(key).exists():
            return False
        try:
            with open_h5(self._path(key), _REMEDY) as file:
                return all(file.attrs.get(name) == value for name, value in self._wanted(key).items())
        except StoreError:
            return False

    def _measure_missing(self, ranks: Ranks) -> None:
        """Every rank takes its part of the missing blocks; no field is touched."""
        missing = None
        if ranks.root:
            missing = [key for key in self.ensemble.blocks if not self._is_measured(key)]
        mine = ranks.broadcast(missing)[ranks.rank :: ranks.size]
        out, hidden = console(), len(mine) < 8 or ranks.size > 1
        for key in track(
            mine, f"measuring {self.ensemble.sampler}", console=out, transient=True, disable=hidden
        ):
            values = measure(self.target, self.ensemble.read(*key, "x")["x"], *self.names)
            if self._unsaved:  # one block could not be stored: nor could the next
                self._unsaved[key] = values
                continue
            try:
                make_folder(self._path(key).parent)
                write_h5(self._path(key), values, self._wanted(key))
            except WriteFailed as error:  # somebody else's folder, a read-only or a full disk
                if ranks.size > 1:  # the rank that estimates would not have these
                    raise
                out.print(f"measurements are not kept, the next call makes them again: {error}")
                self._unsaved[key] = values
        ranks.barrier()
