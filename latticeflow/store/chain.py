"""The corrected chain of an independent sampler: an index over its stored proposals."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..correction import MetropolisScan
from ..errors import StatisticsError, StoreError
from ..files import write_atomic
from .block import FORMAT, check_format
from .hdf5 import create_h5, open_h5

NAME = "chain.h5"
_REBUILD = "run the same 'latticeflow sample' again: it rebuilds the chain and draws nothing that is there"


@dataclass(frozen=True)
class Chain:
    """Independence Metropolis over all proposals, in block order.

    `index` int64 `[proposals - start]`: the proposal, counted over all blocks, that entry i of the chain
    repeats; `start`: first proposal of non-zero weight; `acceptance`: accepted over tried; `longest`: longest
    run of rejections.
    """

    index: np.ndarray
    proposals: int
    start: int
    acceptance: float
    longest: int


def write_chain(
    folder: Path,
    identity: str,
    blocks: list[tuple[int, int]],
    pieces: Iterable[tuple[np.ndarray, np.random.Generator]],
) -> None:
    """Scan `pieces`, (log_w, generator) of each block, into the chain's file, in constant memory."""

    def write(temporary: Path) -> None:
        scan = MetropolisScan()
        with create_h5(temporary) as file:
            options = {"maxshape": (None,), "chunks": (1 << 16,), "fletcher32": True}
            index = file.create_dataset("index", shape=(0,), dtype=np.int64, **options)
            for log_w, rng in pieces:
                entries = scan.feed(log_w, rng)
                index.resize(len(index) + len(entries), axis=0)
                index[len(index) - len(entries) :] = entries
            if scan.start < 0:
                raise StatisticsError("every weight is zero: the proposal never meets the target's support")
            file.create_dataset("blocks", data=np.array(blocks, dtype=np.int64), chunks=True, fletcher32=True)
            tried = scan.proposals - scan.start - 1
            file.attrs.update(
                format=FORMAT,
                identity=identity,
                proposals=scan.proposals,
                start=scan.start,
                acceptance=scan.acceptance if tried else np.nan,
                longest=scan.longest,
            )

    def check(temporary: Path) -> None:
        with open_h5(temporary, "the disk did not keep what was written") as file:
            for part in file["index"].iter_chunks():
                file["index"][part]

    write_atomic(Path(folder) / NAME, write, check)


def covered(folder: Path, identity: str, blocks: list[tuple[int, int]]) -> bool:
    """Whether a sound chain over exactly these blocks is stored."""
    try:
        read_chain(folder, identity, blocks)
    except StoreError:
        return False
    return True


def read_chain(folder: Path, identity: str, blocks: list[tuple[int, int]]) -> Chain:
    """The stored chain. Raises `StoreError` where it is damaged or does not cover exactly `blocks`."""
    path = Path(folder) / NAME
    with open_h5(path, _REBUILD) as file:
        check_format(path, file, identity)
        if [tuple(row) for row in file["blocks"][()].tolist()] != blocks:
            raise StoreError(
                f"{path} covers {len(file['blocks'])} blocks, not the {len(blocks)} present; {_REBUILD}"
            )
        return Chain(
            index=file["index"][()],
            proposals=int(file.attrs["proposals"]),
            start=int(file.attrs["start"]),
            acceptance=float(file.attrs["acceptance"]),
            longest=int(file.attrs["longest"]),
        )
