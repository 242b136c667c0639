"""The corrected chain of an independent sampler: which of its stored proposals independence Metropolis accepts.

`chain.h5` holds one bit a proposal, `moves` `[blocks, ceil(size / 8)]`, 1 where it was accepted; the entry of the
chain at a proposal is the last accepted one, itself included. It is a pure function of the log-weights in the
blocks: whoever needs it and finds it missing makes it, and all make the same. Written and read in constant memory.
"""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..correction import MetropolisScan
from ..errors import StatisticsError, StoreError
from ..files import write_atomic
from ..statistics import WeightSummary, WeightSums
from .block import FORMAT, Key, block_name, check_format
from .hdf5 import create_h5, open_h5, plain

NAME = "chain.h5"
_REBUILD = "delete that file: it is built again from the blocks when it is needed"
_CHUNK = 1 << 16  # bytes
# log-weights of a block, the random numbers of its accept and reject, seconds that drawing it took
Piece = tuple[np.ndarray, np.random.Generator, float]


@dataclass(frozen=True)
class Chain:
    """Independence Metropolis over all proposals, in block order.

    Proposals are counted over all blocks: p is row p % size of block number p // size. `tracks`: the blocks of each
    chain, one list for the global chain, or one for each stream; `starts` int64, one a chain: its first proposal of
    non-zero weight; `acceptance`: accepted over tried, all chains together, NaN where none was tried; `longest`: longest
    run of rejections in any chain; `weights`: what the log-weights say, None for fewer than two proposals; `seconds`:
    of drawing, summed over blocks.
    """

    path: Path
    size: int
    tracks: list[list[Key]]
    starts: np.ndarray
    proposals: int
    acceptance: float
    longest: int
    weights: WeightSummary | None
    seconds: float

    def walk(self) -> Iterator[tuple[Key, np.ndarray]]:
        """For every block, in block order, its key and the chain's entries for its proposals.

        Entries: int64 proposals, one for each of the block's, none for those before the chain's start. Constant
        memory. Raises `StoreError` where the file is damaged or was replaced meanwhile.
        """
        with open_h5(self.path, _REBUILD) as file:
            if file.attrs["proposals"] != self.proposals:
                raise StoreError(
                    f"{self.path} was built anew while it was read: more was drawn. Run this again"
                )
            rows, number = _rows(file["moves"]), 0
            for track in self.tracks:
                current = np.int64(-1)
                for key in track:
                    move = np.unpackbits(next(rows), count=self.size).astype(bool)
                    own = np.arange(number * self.size, (number + 1) * self.size)
                    entries = np.maximum.accumulate(np.where(move, own, current))
                    current, number = entries[-1], number + 1
                    yield key, entries[entries >= 0]

    def index(self) -> np.ndarray:
        """All entries, int64: 8 bytes a proposal, for small ensembles."""
        return np.concatenate([entries for _, entries in self.walk()])


def _rows(moves: h5py.Dataset) -> Iterator[np.ndarray]:
    step = moves.chunks[0]
    for at in range(0, len(moves), step):
        yield from moves[at : at + step]


class _Scan:
    """Scans `pieces`, one for each block of `tracks`, chain by chain."""

    def __init__(self, size: int, tracks: list[list[Key]], pieces: Iterable[Piece]):
        self.size, self.tracks, self.pieces = size, tracks, iter(pieces)
        self.starts: list[int] = []
        self.proposals = self.accepted = self.tried = self.longest = 0
        self.seconds, self.sums = 0.0, WeightSums()

    def rows(self) -> Iterator[tuple[Key, np.ndarray]]:
        """Key and moves of every block, packed bits. Raises `StatisticsError` where a chain never starts."""
        for track in self.tracks:
            scan = MetropolisScan()
            for key in track:
                log_w, rng, seconds = next(self.pieces)
                self.sums.feed(log_w)
                self.seconds += seconds
                entries = scan.feed(log_w, rng)
                move = np.zeros(self.size, dtype=bool)
                # a proposal was accepted where the chain's entry is itself
                own = np.arange(scan.proposals - len(entries), scan.proposals)
                move[self.size - len(entries) :] = entries == own
                yield key, np.packbits(move)
            if scan.start < 0:
                which = f"stream {track[0][0]}: " if len(self.tracks) > 1 else ""
                raise StatisticsError(
                    f"{which}every weight is zero: the proposal never meets the target's support"
                )
            self.starts.append(self.proposals + scan.start)
            self.proposals += scan.proposals
            self.accepted += scan.accepted
            self.tried += scan.proposals - scan.start - 1
            self.longest = max(self.longest, scan.longest)

    def attributes(self, identity: str) -> dict[str, Any]:
        """What is stored beside the moves, once all are scanned."""
        found = {
            "format": FORMAT,
            "identity": identity,
            "proposals": self.proposals,
            "acceptance": self.accepted / self.tried if self.tried else np.nan,
            "longest": self.longest,
            "seconds": self.seconds,
        }
        if self.proposals < 2:
            return found
        return found | {f"weights_{key}": value for key, value in asdict(self.sums.summary()).items()}


def write_chain(
    folder: Path, identity: str, size: int, tracks: list[list[Key]], pieces: Iterable[Piece]
) -> None:
    """Scan `pieces`, one for each block of `tracks`, into the chain's file, in constant memory.

    Raises `StatisticsError` for a chain whose weights are all zero, `WriteFailed`.
    """
    blocks = [key for track in tracks for key in track]

    def write(temporary: Path) -> None:
        scan, width = _Scan(size, tracks, pieces), -(-size // 8)
        shape, chunks = (len(blocks), width), (min(len(blocks), max(1, _CHUNK // width)), width)
        with create_h5(temporary) as file:
            moves = file.create_dataset("moves", shape, dtype=np.uint8, chunks=chunks, fletcher32=True)
            for number, (_, row) in enumerate(scan.rows()):
                moves[number] = row
            for name, values in (("blocks", blocks), ("starts", scan.starts)):
                file.create_dataset(name, data=np.array(values, dtype=np.int64), chunks=True, fletcher32=True)
            file.attrs.update(scan.attributes(identity))

    def check(temporary: Path) -> None:
        with open_h5(temporary, "the disk did not keep what was written") as file:
            for _ in _rows(file["moves"]):
                pass

    write_atomic(Path(folder) / NAME, write, check)


def read_chain(folder: Path, identity: str, size: int, tracks: list[list[Key]]) -> Chain | None:
    """The stored chain, None where there is none or it covers other blocks. Raises `StoreError` for a damaged one."""
    path = Path(folder) / NAME
    if not path.exists():
        return None
    with open_h5(path, _REBUILD) as file:
        check_format(path, file, identity)
        if not np.array_equal(file["blocks"][()], [key for track in tracks for key in track]):
            return None
        expected = sum(map(len, tracks)), -(-size // 8)
        if file["moves"].shape != expected:
            raise StoreError(f"{path}: moves {file['moves'].shape}, expected {expected}; {_REBUILD}")
        about = plain(file.attrs)
        weights = {key.removeprefix("weights_"): about[key] for key in about if key.startswith("weights_")}
        return Chain(
            path=path,
            size=size,
            tracks=tracks,
            starts=file["starts"][()],
            proposals=about["proposals"],
            acceptance=about["acceptance"],
            longest=about["longest"],
            weights=WeightSummary(**weights) if weights else None,
            seconds=about["seconds"],
        )


def covered_blocks(folder: Path, identity: str) -> list[Key]:
    """The blocks that the stored chain is over, none where there is no chain. Raises `StoreError` for a damaged one."""
    path = Path(folder) / NAME
    if not path.exists():
        return []
    with open_h5(path, _REBUILD) as file:
        check_format(path, file, identity)
        return [(int(stream), int(block)) for stream, block in file["blocks"][()]]


def check_chain(
    folder: Path, identity: str, size: int, tracks: list[list[Key]], pieces: Iterable[Piece]
) -> None:
    """Scan again and compare. Raises `StoreError` naming the first block, or the number, that differs."""
    path = Path(folder) / NAME
    if read_chain(folder, identity, size, tracks) is None:
        raise StoreError(f"{path} is missing, or covers other blocks than those that are there; {_REBUILD}")
    scan = _Scan(size, tracks, pieces)
    with open_h5(path, _REBUILD) as file:
        stored = _rows(file["moves"])
        for key, row in scan.rows():
            if not np.array_equal(row, next(stored)):
                raise StoreError(
                    f"{path}: the chain in block {block_name(*key)} is not that of its log-weights; {_REBUILD}"
                )
        expected, found = scan.attributes(identity), plain(file.attrs)
        expected["starts"], found["starts"] = scan.starts, file["starts"][()].tolist()
    for name in expected | found:
        if not _equal(found.get(name), expected.get(name)):
            raise StoreError(
                f"{path}: {name} = {found.get(name)}, but the blocks give {expected.get(name)}; {_REBUILD}"
            )


def _equal(a: Any, b: Any) -> bool:
    """The same number, to rounding of another machine's arithmetic; NaN is NaN."""
    if isinstance(a, float) and isinstance(b, float):
        return bool(np.isclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True))
    return a == b
