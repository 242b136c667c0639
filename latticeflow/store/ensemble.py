"""The ensemble: everything one sampler drew from one target, in one folder.

`ensemble.json` says once what was drawn; block files hold the draws; `chain.h5` is the corrected chain of an
independent sampler.
"""

import copy
import hashlib
import json
import zlib
from collections.abc import Iterator
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ..correction import CorrectionSummary
from ..errors import InputError, StatisticsError, StoreError, WriteFailed
from ..files import make_folder, write_text
from ..random import Purpose, stream
from ..samplers import SamplerSpec, samplers
from ..samplers.base import Draws, State
from ..spec import differences
from . import block as files
from .block import Key
from .chain import NAME as CHAIN
from .chain import Chain, Piece, check_chain, covered_blocks, read_chain, write_chain

NAME = "ensemble.json"


class Ensemble:
    """Stored draws of one sampler.

    `sampler`: its kind; `settings`, `target`: their tables; `seed`; `weights`: SHA-256 of a flow's weights or
    None; `chains`: chains in one stream, 0 for an independent sampler; draw i of a block belongs to chain
    i % chains and step i // chains; `interacting`: chains of a stream depend on one another; `weighted`: draws
    have log_w; `identity`: SHA-256 of all these, the mark that every block file carries. `origin`: where it was
    begun (deck, versions, host ...), no part of the identity.
    """

    def __init__(self, path: Path, record: dict[str, Any], origin: dict[str, Any] | None = None):
        self.path, self.record, self.origin = Path(path), record, origin or {}
        self.sampler: str = record["sampler"]
        self.settings: dict[str, Any] = record["settings"]
        self.target: dict[str, Any] = record["target"]
        self.seed: int = record["seed"]
        self.weights: str | None = record["weights"]
        self.chains: int = record["chains"]
        self.interacting: bool = record["interacting"]
        self.weighted: bool = record["weighted"]
        self.identity = _hash(record)
        self._frozen: list[Key] | None = None

    @classmethod
    def open(cls, path: Path | str) -> "Ensemble":
        """An existing ensemble. Raises `InputError` where there is none, `StoreError` for a damaged one."""
        path = Path(path)
        file = path / NAME
        if not file.is_file():
            raise InputError(
                f"no ensemble in {path}; draw it with: latticeflow sample {path.parent.parent} "
                f"--sampler {path.name} --draws N"
            )
        try:
            whole = json.loads(file.read_text(encoding="utf-8"))
            version = whole["format"]
            if version == files.FORMAT:
                checksum, found = whole.pop("checksum"), _hash(whole)
                identity, origin = whole.pop("identity"), whole.pop("origin")
                ensemble = cls(path, {key: value for key, value in whole.items() if key != "format"}, origin)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"{file} is damaged ({type(error).__name__}: {error}); restore it, or move {path} away"
            ) from None
        files.check_version(file, version)
        if found != checksum or ensemble.identity != identity:
            raise StoreError(
                f"{file} was edited: what it says no longer gives its checksum. Restore it, or move {path} away"
            )
        return ensemble

    @classmethod
    def create(cls, path: Path | str, origin: dict[str, Any] | None = None, **record: Any) -> "Ensemble":
        """The ensemble in `path`, made if there is none; `record` as in the class, without identity.

        Raises `InputError` naming the keys in which an existing one differs; its origin stays.
        """
        path = Path(path)
        record, origin = json.loads(json.dumps([record, origin or {}]))  # tuples become lists, as in the file
        if (path / NAME).is_file():
            ensemble = cls.open(path)
            changed = differences(ensemble.record, record)
            if changed:
                raise InputError(
                    f"{path} was drawn with other settings: {'; '.join(changed)}. One ensemble holds one "
                    "sampler: go on with the old settings, move the folder away, or use another run folder"
                )
            return ensemble
        ensemble = cls(path, record, origin)
        steps = record["settings"]["block"] // max(1, ensemble.chains)
        if ensemble.keep_fields > 1 and steps % ensemble.keep_fields:
            raise InputError(
                f"sampler.{ensemble.sampler}.keep_fields = {ensemble.keep_fields} does not divide the {steps} steps of a "
                "block: choose a divisor, or another block"
            )
        make_folder(path)
        whole = {"format": files.FORMAT, "identity": ensemble.identity, **record, "origin": ensemble.origin}
        write_text(path / NAME, json.dumps({**whole, "checksum": _hash(whole)}, indent=1) + "\n")
        return ensemble

    def generator(self, purpose: Purpose, *key: int) -> np.random.Generator:
        """The stream of random numbers named by seed, purpose, sampler and key.

        The sampler is part of the name: two samplers of one run must not share their noise, or comparing
        them would compare a noise with itself.
        """
        return stream(self.seed, purpose, zlib.crc32(self.sampler.encode()), *key)

    @property
    def present(self) -> list[Key]:
        """(stream, block) of every block file, sorted."""
        return files.list_blocks(self.path) if self._frozen is None else list(self._frozen)

    def snapshot(self) -> "Ensemble":
        """This ensemble as it is now, for readers: blocks that a job adds meanwhile are no part of it."""
        found = copy.copy(self)
        found._frozen = self.present
        return found

    @property
    def blocks(self) -> list[Key]:
        """`present`, with every chain whole. Raises `StoreError` naming a block missing inside a chain sampler's stream."""
        present = self.present
        there = set(present) if self.chains else set()
        for stream_, block in present if self.chains else []:
            if block and (stream_, block - 1) not in there:
                gone = files.block_path(self.path, stream_, block - 1)
                raise StoreError(
                    f"{gone} is missing while later blocks of its stream exist: the chain is "
                    "broken. Run the same 'latticeflow sample' again: it is redrawn identically"
                )
        return present

    @property
    def streams(self) -> dict[int, list[Key]]:
        """Blocks of each stream, as many of each as the shortest stream has."""
        found: dict[int, list[Key]] = {}
        for key in self.blocks:
            found.setdefault(key[0], []).append(key)
        shortest = min(map(len, found.values()), default=0)
        return {stream_: keys[:shortest] for stream_, keys in found.items()}

    def info(self, name: str) -> np.ndarray | None:
        """What the sampler recorded at each step, `[streams, steps]`; None if it recorded no such thing."""
        return self.infos(name).get(name)

    def infos(self, *names: str) -> dict[str, np.ndarray]:
        """`info` of those `names` that were recorded; every block is opened once."""
        streams = list(self.streams.values())
        there = self.names(*streams[0][0]) if streams else []
        keys = [f"info/{name}" for name in names if f"info/{name}" in there]
        if not keys:
            return {}
        read = [[self.read(*at, *keys) for at in blocks] for blocks in streams]
        return {
            key.removeprefix("info/"): np.stack([np.concatenate([one[key] for one in row]) for row in read])
            for key in keys
        }

    @property
    def draws(self) -> int:
        """Configurations stored."""
        return len(self.present) * self.settings["block"]

    @property
    def spec(self) -> SamplerSpec:
        """The sampler's settings as they were when the ensemble was begun."""
        return samplers.find(self.sampler)(**self.settings)

    @property
    def keep_fields(self) -> int:
        """Fields of every k-th step are stored; 1: all, 0: none."""
        return self.settings.get("keep_fields", 1)

    @cached_property
    def kept_rows(self) -> np.ndarray:
        """The draws of a block whose fields are stored, int64: row i of "x" is that of draw `kept_rows[i]`."""
        draws = np.arange(self.settings["block"])
        if not self.keep_fields:
            return draws[:0]
        return draws[draws // max(1, self.chains) % self.keep_fields == 0]

    def read(self, stream: int, block: int, *names: str) -> dict[str, np.ndarray]:
        """Arrays of one block: "x" (see `kept_rows`), "log_prob", "log_w", "info/NAME", "state/NAME", "measured/NAME".

        Default: all but the state. Raises `InputError` for "x" where no fields are kept.
        """
        if "x" in names and not self.keep_fields:
            raise InputError(
                f"{self.path} holds observables only, no fields: it was drawn with keep_fields = 0"
            )
        return files.read_block(self.path, stream, block, self.identity, *names)

    def names(self, stream: int, block: int) -> list[str]:
        """Names of all arrays of a block."""
        with files.open_block(self.path, stream, block, self.identity) as file:
            return files.names(file)

    def iterate(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        """`read` of every block, in block order."""
        for stream_, block in self.blocks:
            yield self.read(stream_, block, *names)

    def attributes(self, stream: int, block: int) -> dict[str, Any]:
        """What is recorded with a block: n, seconds, precision, batch, threads, versions, host, time."""
        return files.read_attributes(self.path, stream, block, self.identity)

    @property
    def density_error(self) -> float:
        """The largest change of log q at twice the solver's resolution that is recorded with the blocks; 0 where the density
        is exact. log Z is uncertain by up to that much. Looked at are 100 blocks at most, spread evenly.
        """
        keys = self.present
        some = [keys[i] for i in np.unique(np.linspace(0, len(keys) - 1, min(len(keys), 100)).astype(int))]
        return max((float(self.attributes(*key).get("density_error", 0.0)) for key in some), default=0.0)

    def check_block(self, stream: int, block: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """All arrays (the state too) and attributes of a block, read and checked whole.

        Raises `StoreError` naming what is wrong: a checksum, the digest, the format, the ensemble, the name, the
        recorded means, a length.
        """
        n = self.settings["block"]
        rows = {"log_prob": n} | ({"log_w": n} if self.weighted else {})
        if self.keep_fields:
            rows["x"] = len(self.kept_rows)
        return files.check_block(self.path, stream, block, self.identity, rows)

    def state(self, stream: int, block: int) -> State:
        """The chain's state after a block."""
        with files.open_block(self.path, stream, block, self.identity) as file:
            return {name: files.get(file["state"], name) for name in file["state"]}

    def write(
        self,
        stream: int,
        block: int,
        draws: Draws,
        state: State | None,
        seconds: float,
        measured: dict[str, np.ndarray] | None = None,
        **about: Any,
    ) -> None:
        """Store one block; `seconds`: wall-clock that drawing it took; `measured`: primaries of all draws, by name."""
        if len(draws) != self.settings["block"]:
            raise InputError(f"{len(draws)} draws for a block of {self.settings['block']}")
        attributes = {
            "identity": self.identity,
            "sampler": self.sampler,
            "seed": self.seed,
            "chains": self.chains,
            "seconds": seconds,
            **{name: value for name, value in about.items() if value is not None},
        }
        files.write_block(self.path, stream, block, draws, self.kept_rows, state, measured or {}, attributes)

    def _total(self, name: str, keys: list[Key]) -> float:
        return sum(float(self.attributes(*key).get(name, 0.0)) for key in keys)

    @property
    def seconds(self) -> float:
        """Seconds of drawing, summed over blocks, without thermalisation; as on one rank."""
        chain = self._stored_chain() if self.weighted else None
        return self._total("seconds", self.present) if chain is None else chain.seconds

    @property
    def start_seconds(self) -> float:
        """Seconds of thermalisation and tuning, summed over streams; 0 for independent samplers."""
        return self._total(
            "start_seconds", [key for key in self.present if key[1] == 0] if self.chains else []
        )

    @property
    def log_w(self) -> np.ndarray:
        """Log-weights of all proposals in block order, float64 `[draws]`: for small ensembles."""
        self._require_weighted()
        pieces = [data["log_w"] for data in self.iterate("log_w")]
        return np.concatenate(pieces) if pieces else np.empty(0)

    @property
    def exact(self) -> bool:
        """Whether draws, by their log-weights where they have any, are of the target; True of an unregistered sampler."""
        return getattr(samplers.classes.get(self.sampler), "exact", True)

    def require_exact(self, what: str) -> None:
        """Raise `InputError` where the draws are those of a model without a density, so that `what` cannot be made."""
        if not self.exact:
            raise InputError(
                f"{self.path}: no {what} from draws of sampler '{self.sampler}': a model learned from data has no exact "
                "density q (a GAN none at all, a VAE a bound), so no log-weight log p - log q to correct with; its draws "
                "stay approximate. Take a flow, or hmc"
            )

    def _require_weighted(self) -> None:
        self.require_exact("Metropolis chain")
        if not self.weighted:
            raise InputError(
                f"{self.path}: sampler '{self.sampler}' stores no log-weights, nothing to correct"
            )

    @property
    def tracks(self) -> list[list[Key]]:
        """Blocks of each Metropolis chain: one chain over all of them, or one a stream where `streams` are set."""
        present = self.present
        if not self.settings.get("streams"):
            return [present]
        return [list(keys) for _, keys in groupby(present, key=lambda key: key[0])]

    def _pieces(self, tracks: list[list[Key]]) -> Iterator[Piece]:
        for key in (key for track in tracks for key in track):
            log_w, seconds = files.read_weights(self.path, *key, self.identity)
            yield log_w, self.generator(Purpose.METROPOLIS, *key), seconds

    def _chain_of(self, tracks: list[list[Key]]) -> Chain | None:
        return read_chain(self.path, self.identity, self.settings["block"], tracks)

    def _stored_chain(self) -> Chain | None:
        """The chain if a sound one over the blocks present is stored."""
        try:
            return self._chain_of(self.tracks)
        except StoreError:
            return None

    def build_chain(self) -> None:
        """Scan the log-weights of all blocks into `chain.h5`, unless a sound one covers them already."""
        self._require_weighted()
        if self._stored_chain() is None:
            self._build(self.tracks)

    def _build(self, tracks: list[list[Key]]) -> None:
        if not any(tracks):
            raise StatisticsError(f"{self.path} holds no finished block; run sample again")
        try:
            write_chain(self.path, self.identity, self.settings["block"], tracks, self._pieces(tracks))
        except WriteFailed as error:
            raise WriteFailed(
                f"the Metropolis chain over {self.path} is not there yet, and {error}"
            ) from None

    def chain(self) -> Chain:
        """The corrected chain; built where none is stored that covers the blocks present.

        Raises `StoreError` where the stored one is damaged, `WriteFailed` where it has to be built and cannot be
        written, `StatisticsError` where there is nothing to build it from.
        """
        self._require_weighted()
        tracks = self.tracks
        chain = self._chain_of(tracks)
        if chain is None:
            self._build(tracks)
            chain = self._chain_of(tracks)
        if chain is None:
            raise StoreError(
                f"{self.path}: another job is drawing and has built a longer chain. Run this again"
            )
        return chain

    def check_chain(self) -> None:
        """Scan again and compare with the stored chain; one that is missing or older than the last blocks is no fault.

        Raises `StoreError` saying what differs, or which block it is over that is not there.
        """
        self._require_weighted()
        tracks = self.tracks
        there = {key for track in tracks for key in track}
        covered = set(covered_blocks(self.path, self.identity))
        for key in sorted(covered - there):
            raise StoreError(
                f"{files.block_path(self.path, *key)} is missing: the chain in {CHAIN} is over it; run the same "
                "'latticeflow sample' again: it is redrawn identically"
            )
        if covered == there and there:
            check_chain(self.path, self.identity, self.settings["block"], tracks, self._pieces(tracks))

    def summary(self) -> CorrectionSummary:
        """Acceptance and longest run of rejections of the chain, and what its weights say."""
        chain = self.chain()
        if chain.weights is None or not np.isfinite(chain.acceptance):
            raise StatisticsError(f"{self.path}: a chain of one proposal has no acceptance; draw more")
        return CorrectionSummary(chain.acceptance, chain.longest, chain.weights)


def _hash(table: dict[str, Any]) -> str:
    text = json.dumps(table, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
