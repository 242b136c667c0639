"""Configurations of a stored ensemble, for objectives that learn from data: exact ones, in random order, augmented.

A batch is cut into pieces of 64 as the noise is (`parallel.py`); piece j of step t has the stream (seed, DATA, 1, t, j). Of
an ensemble larger than `MEMORY` a part is held at a time: as many blocks as fit, chosen anew every `WINDOW` steps by the
stream (seed, DATA, 0, step // WINDOW). So a batch depends on seed and step alone, not on ranks or on a resume. Held-out
configurations have 5 in place of 1; those that are walked one after another the stream (seed, DATA, 4, walk, block).
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..precision import double
from ..random import Purpose, stream
from ..spec import differences
from ..store import Ensemble
from ..store.block import Key
from ..targets import LatticeTarget, Target, targets
from .fit_settings import FitSettings
from .parallel import Group, cut
from .settings import TrainSettings
from .split import auto_thin, held_out, units

MEMORY = 1 << 28  # bytes of fields held by a rank; with WINDOW part of what a seed means: never change
WINDOW = 512
ALIKE = 1e-9  # allowed |log p(g x) - log p(x)| / (1 + |log p|) of a symmetry g, in float64


class Configurations:
    """Draws of `target` stored in the ensemble at `path`, as it is now; blocks that a job adds later are no part.

    Chains (HMC, emcee, hybrid) are their own draws, every `thin`-th step of each. Of a sampler with weights (a flow) the
    entries of its Metropolis chain are taken, every `thin`-th: what is learned from is distributed as p and not as q.
    `thin = "auto"`: by the autocorrelation time (`split.auto_thin`); what it came to is then `thin`. `test_share`: of the
    chains that are held out (`split.held_out`), whose configurations are those of `held_out()` and never among these.

    Raises `InputError` for an ensemble of another target, of a sampler that is only near it, or without fields or draws, for
    weighted draws whose fields are not all kept, where `augment` is asked for and the target has not all those symmetries,
    and what `split` raises.
    """

    def __init__(
        self,
        path: Path,
        target: Target,
        seed: int,
        thin: int | Literal["auto"] = 1,
        augment: bool = True,
        test_share: float = 0.0,
    ):
        self.ensemble, self.target, self.seed = Ensemble.open(path).snapshot(), target, seed
        self._check()
        self.keys = self.ensemble.blocks
        if not self.keys:
            raise InputError(f"{path} holds no configuration to learn from; draw some")
        self.thin = auto_thin(self.ensemble, target) if thin == "auto" else int(thin)
        rows = self._entries(self.thin) if self.ensemble.weighted else self._steps(self.thin)
        self._rows, self._held = self._split(rows, test_share)
        self._require_some("holds")
        self._stream, self._window, self._x = 1, -1, torch.empty(0)
        self._symmetries = self._find_symmetries() if augment else None

    def __len__(self) -> int:
        """Configurations, an entry of a Metropolis chain as often as it is there."""
        return sum(map(len, self._rows))

    def held_out(self) -> "Configurations":
        """The configurations of the chains that are held out. Raises `InputError` where there are none."""
        found = copy.copy(self)
        found._rows, found._held = self._held, self._rows
        found._stream, found._window, found._x = 5, -1, torch.empty(0)
        found._require_some("holds out")
        return found

    def walk(self, walk: int = 0) -> Iterator[Tensor]:
        """Every configuration once, block by block, `[n, *event_shape]`, float64; augmented by streams named by `walk`."""
        for i, (key, rows) in enumerate(zip(self.keys, self._rows)):
            if len(rows):
                x = double(torch.from_numpy(self._read(key, rows)))
                rng = stream(self.seed, Purpose.DATA, 4, walk, i)
                yield x if self._symmetries is None else self._move(x, rng)

    def _split(self, rows: list[np.ndarray], share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """`rows` of the chains that stay, and of those that are held out."""
        if not share:
            return rows, [one[:0] for one in rows]
        chosen = held_out(self.ensemble, share, self.seed)
        out = [np.isin(units(self.ensemble, key)[one], chosen) for key, one in zip(self.keys, rows)]
        return [one[~is_out] for one, is_out in zip(rows, out)], [
            one[is_out] for one, is_out in zip(rows, out)
        ]

    def _require_some(self, holds: str) -> None:
        if not len(self):
            raise InputError(
                f"{self.ensemble.path} {holds} no configuration to learn from; draw some, or lower train.thin"
            )

    def _check(self) -> None:
        ensemble = self.ensemble
        wanted = json.loads(json.dumps(targets.table(self.target)))
        changed = differences(ensemble.target, wanted)
        if changed:
            raise InputError(
                f"{ensemble.path} was drawn from another target than is trained on: {'; '.join(changed)}"
            )
        if not ensemble.exact:
            raise InputError(
                f"{ensemble.path} holds draws of sampler '{ensemble.sampler}', which are near the target's and not of it: "
                "what learns from them learns their faults. Learn from hmc's, or a flow's"
            )
        if not ensemble.keep_fields:
            raise InputError(f"{ensemble.path} holds no fields to learn from: draw it with keep_fields = 1")
        if ensemble.weighted and ensemble.keep_fields != 1:
            raise InputError(
                f"{ensemble.path} keeps fields of every {ensemble.keep_fields}th draw; its Metropolis chain, which is what "
                "is distributed as the target, needs those of all: draw it with keep_fields = 1"
            )

    def _steps(self, thin: int) -> list[np.ndarray]:
        """Rows of each block's "x" that are used: every thin-th step of every chain."""
        block, chains = self.ensemble.settings["block"], max(1, self.ensemble.chains)
        steps = self.ensemble.kept_rows // chains  # within the block
        return [np.flatnonzero((steps + b * (block // chains)) % thin == 0) for _, b in self.keys]

    def _entries(self, thin: int) -> list[np.ndarray]:
        """The rows of each block that the Metropolis chain holds, as often as it holds them."""
        chain = self.ensemble.chain()
        order = {key: i for i, key in enumerate(key for track in chain.tracks for key in track)}
        count, first = np.zeros(len(order) * chain.size, dtype=np.int32), 0
        for _, entries in chain.walk():
            used = entries[-first % thin :: thin]
            first += len(entries)
            np.add.at(count, used, 1)
        by_block = count.reshape(-1, chain.size)
        return [np.repeat(np.arange(chain.size), by_block[order[key]]) for key in self.keys]

    @cached_property
    def checksum(self) -> str:
        """SHA-256 over the ensemble's identity and the mean action of every block: another one, other configurations."""
        found = hashlib.sha256(self.ensemble.identity.encode())
        for key in self.keys:
            mean = float(self.ensemble.attributes(*key)["mean_log_prob"])
            found.update(f"{key} {mean.hex()}".encode())
        return found.hexdigest()

    def draw(self, step: int, batch: int, part: range) -> Tensor:
        """Configurations `part` (not empty) of the batch of `step`, `[len(part), *event_shape]`, float64."""
        self._load(step)
        return cut(
            batch, part, lambda j, n: self._piece(n, stream(self.seed, Purpose.DATA, self._stream, step, j))
        )

    def _piece(self, n: int, rng: np.random.Generator) -> Tensor:
        x = double(self._x[torch.from_numpy(rng.integers(len(self._x), size=n))])
        return x if self._symmetries is None else self._move(x, rng)

    def _load(self, step: int) -> None:
        """Hold the fields that batches of `step` are taken from."""
        size = self._bytes_of_block()
        fit, used = max(1, MEMORY // size), np.array([i for i, rows in enumerate(self._rows) if len(rows)])
        window = 0 if fit >= len(used) else 1 + step // WINDOW
        if window == self._window:
            return
        chosen = used
        if window:
            rng = stream(self.seed, Purpose.DATA, 0, window)
            chosen = np.sort(used[rng.choice(len(used), size=fit, replace=False)])
        parts = [self._read(self.keys[i], self._rows[i]) for i in chosen]
        self._x, self._window = torch.from_numpy(np.concatenate(parts)), window

    def _bytes_of_block(self) -> int:
        rows = max(map(len, self._rows))
        width = 4 if self.ensemble.settings.get("precision") == "float32" else 8
        return max(1, rows * width * int(np.prod(self.target.event_shape)))

    def _read(self, key: Key, rows: np.ndarray) -> np.ndarray:
        return self.ensemble.read(*key, "x")["x"][rows]

    def _move(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """Each configuration by its own symmetry: `x'(s) = +- x(g(s + t))`, of links all directions together."""
        group, coordinates, shape = self._symmetries  # type: ignore[misc]
        n, volume = len(x), len(coordinates)
        g, t = rng.integers(len(group), size=n), rng.integers(volume, size=n)
        sign = torch.from_numpy(rng.choice([-1.0, 1.0], size=(n, 1, 1)))
        shifted = (coordinates[None] + coordinates[t][:, None]) % shape  # [n, V, D]
        site = np.ravel_multi_index(tuple(np.moveaxis(shifted, -1, 0)), tuple(shape))
        fields = x.view(n, -1, volume)
        moved = fields.gather(2, torch.from_numpy(group[g[:, None], site])[:, None].expand_as(fields))
        return (sign * moved).view_as(x)

    def _find_symmetries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The point group as permutations of sites `[G, V]`, coordinates `[V, D]`, sides `[D]`; tried out on the target.

        Of angles on links, which rotations and reflections exchange, translations and theta -> -theta alone.
        """
        target = self.target
        links = isinstance(target, LatticeTarget) and target.event_shape == (
            target.lattice.dim,
            *target.shape,
        )
        if not isinstance(target, LatticeTarget) or not (links or target.event_shape == target.shape):
            raise InputError(
                f"train.augment: target '{target.kind}' is no scalar field on a lattice, nor has it links of U(1); set it "
                "to false"
            )
        lattice = target.lattice
        sites = torch.arange(lattice.volume).view(1, *lattice.shape)
        elements = [] if links else lattice.point_group()
        group = [lattice.transform(sites, *element).flatten().numpy() for element in elements]
        group = group or [np.arange(lattice.volume)]
        found = np.stack(group), lattice.coordinates, np.array(lattice.shape)

        self._symmetries = found
        self._load(0)
        rng = stream(self.seed, Purpose.DATA, 2)
        x = double(self._x[torch.from_numpy(rng.integers(len(self._x), size=64))])
        before, after = target.log_prob(x), target.log_prob(self._move(x, rng))
        if float(((after - before).abs() / (1 + before.abs())).max()) > ALIKE:
            raise InputError(
                f"train.augment: the action of '{target.kind}' changes under translations, reflections, rotations or "
                "phi -> -phi; set train.augment = false"
            )
        return found


def find_data(
    settings: TrainSettings | FitSettings,
    target: Target,
    seed: int,
    weights: Path | None,
    recorded: str | None,
    group: Group,
    data: str | None = None,
) -> Configurations:
    """The configurations of `data` (default: of the settings): a path as seen from the folder that holds `weights`, or else
    from here.

    Raises `InputError` where they are not those that a checkpoint records by their checksum, and, on every rank, where
    the ranks see different ones.
    """
    found = Configurations(
        data_path(data or str(settings.data or ""), weights),
        target,
        seed,
        settings.thin,
        settings.augment,
        settings.test_share,
    )
    if recorded not in (None, found.checksum):
        raise InputError(
            f"{found.ensemble.path} has changed since the checkpoint that is to go on: its checksum is "
            f"{found.checksum[:16]}..., recorded is {str(recorded)[:16]}... Blocks were added or redrawn with other "
            "numbers: put the old ensemble back, or train in another run folder"
        )
    own = torch.tensor([float(int(found.checksum[:12], 16))], dtype=torch.float64)  # 48 bits: exact
    if float(group.broadcast(own.clone())) != float(own):
        raise InputError(
            f"{found.ensemble.path} is still being drawn: ranks see different blocks of it; wait for its end"
        )
    return found


def data_path(data: str, weights: Path | None) -> Path:
    """Where `data` is: a path as seen from the folder that holds `weights`, where it is there, or else from here."""
    beside = Path(data) if weights is None else Path(weights).parent / data
    return beside if beside.is_dir() else Path(data)
