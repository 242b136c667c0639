"""Block files: a fixed number of draws, written once, immutable after that.

One HDF5 file a block: `x` `[kept, *event_shape]`, the fields that are kept; `log_prob` and (where the sampler has a
density) `log_w`, both float64 `[n]`; `info/NAME`; `state/NAME`, the chain's state after the block; `measured/NAME`
float64 `[n, ...]`, the primary observables, where not all fields are kept. Checksummed and with a digest, see
`hdf5.py`. What made the block is in the attributes of the file.

Folders hold few files each, for the sake of parallel file systems: block (s, b) lies in `blocks/sS_bB/`, S and
B rounded down to thousands, so a thousand blocks of independent draws a folder.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..errors import StoreError
from ..files import make_folder
from ..samplers.base import Draws, State
from .hdf5 import REDRAW, get, names, open_h5, plain, read_whole, write_h5

FORMAT = 2
Key = tuple[int, int]  # (stream, block)
_NAME = re.compile(r"s(\d{6,})_b(\d{6,})\.h5")
_FAN = 1000


def block_name(stream: int, block: int) -> str:
    return f"s{stream:06d}_b{block:06d}.h5"


def block_path(folder: Path, stream: int, block: int, part: str = "blocks") -> Path:
    """Where a block of the ensemble in `folder` lies; `part` "measured": what was measured of it later."""
    return Path(folder) / part / _fan_name(stream, block) / block_name(stream, block)


def _fan_name(stream: int, block: int) -> str:
    return block_name(stream // _FAN * _FAN, block // _FAN * _FAN).removesuffix(".h5")


def list_blocks(folder: Path) -> list[Key]:
    """(stream, block) of every block file of the ensemble in `folder`, sorted as numbers; none is opened."""
    return sorted(key for _, _, key in _walk(folder) if key)


def strangers(folder: Path) -> list[Path]:
    """Files among the blocks that are none: misplaced, misnamed, or left by killed jobs."""
    return sorted(Path(where) / name for where, name, key in _walk(folder) if not key)


def leftovers(folder: Path) -> list[Path]:
    """Temporary files under `folder`: of jobs that were killed, or are writing."""
    return sorted(Path(folder).rglob(".*.tmp"))


def _walk(folder: Path) -> Iterator[tuple[str, str, Key | None]]:
    """Every file under `folder/blocks`: where, name, and its key where it is a block in its place."""
    root = os.path.join(folder, "blocks")
    for where, _, files in os.walk(root):
        for name in files:
            found = _NAME.fullmatch(name)
            key = (int(found[1]), int(found[2])) if found else None
            right = key and block_name(*key) == name and where == os.path.join(root, _fan_name(*key))
            yield where, name, key if right else None


def write_block(
    folder: Path,
    stream: int,
    block: int,
    draws: Draws,
    kept: np.ndarray,
    state: State | None,
    measured: dict[str, np.ndarray],
    attributes: dict,
) -> None:
    """Store one block. `kept`: its draws whose fields are; `attributes`: at least `identity` and `seconds`."""
    arrays = {"log_prob": draws.log_prob}
    if len(kept):
        x = draws.x.numpy()
        arrays["x"] = x if len(kept) == len(x) else x[kept]
    if draws.log_w is not None:
        arrays["log_w"] = draws.log_w
    for part, values in (("info", draws.info), ("state", state or {}), ("measured", measured)):
        arrays |= {f"{part}/{name}": np.asarray(value) for name, value in values.items()}
    about = {"format": FORMAT, "stream": stream, "block": block, "n": len(draws), **attributes}
    about |= {f"mean_{name}": arrays[name].mean() for name in ("log_prob", "log_w") if name in arrays}
    path = block_path(folder, stream, block)
    make_folder(path.parent)
    write_h5(path, arrays, about)


@contextmanager
def open_block(folder: Path, stream: int, block: int, identity: str) -> Iterator[h5py.File]:
    """A block, read-only, with its format, its ensemble and its name checked. Raises `StoreError`."""
    path = block_path(folder, stream, block)
    with open_h5(path) as file:
        check_format(path, file, identity)
        named = int(file.attrs["stream"]), int(file.attrs["block"])
        if named != (stream, block):
            raise StoreError(
                f"{path} holds stream {named[0]}, block {named[1]}: it was renamed or copied. "
                f"Give it its name back ({block_name(*named)}), or {REDRAW}"
            )
        yield file


def check_version(path: Path, version: int) -> None:
    """Raises `StoreError` for a file of another format than this version of the package writes."""
    if version == FORMAT:
        return
    age = "a newer" if version > FORMAT else "an older"
    raise StoreError(
        f"{path} has format {version}, written by {age} version of latticeflow; this one reads format {FORMAT}. "
        f"Use {age} version for this run, or draw into another run folder"
    )


def check_format(path: Path, file: h5py.File, identity: str) -> None:
    version = file.attrs.get("format")
    if version is None:
        raise StoreError(f"{path} is not a file of this package: no format version; {REDRAW}")
    check_version(path, int(version))
    if file.attrs["identity"] != identity:
        raise StoreError(
            f"{path} belongs to another ensemble (identity {file.attrs['identity'][:12]}, expected "
            f"{identity[:12]}): other settings, seed, target or weights. Move it back where it came from, "
            f"or {REDRAW}"
        )


def read_block(folder: Path, stream: int, block: int, identity: str, *wanted: str) -> dict[str, np.ndarray]:
    """Arrays by name; without names all but the state.

    Raises `StoreError`, also where a mean is not the recorded one.
    """
    with open_block(folder, stream, block, identity) as file:
        chosen = wanted or [name for name in names(file) if not name.startswith("state/")]
        return {name: _checked(file, name) for name in chosen}


def read_weights(folder: Path, stream: int, block: int, identity: str) -> tuple[np.ndarray, float]:
    """Log-weights `[n]`, and the seconds that drawing them took."""
    with open_block(folder, stream, block, identity) as file:
        return _checked(file, "log_w"), float(file.attrs["seconds"])


def _checked(file: h5py.File, name: str) -> np.ndarray:
    """An array; where its mean is recorded, that is compared."""
    array = get(file, name)
    if name in ("log_prob", "log_w"):
        mean, stored = array.mean(), file.attrs[f"mean_{name}"]
        # another summation order, on another machine, moves the last bits only
        if not np.isclose(mean, stored, rtol=1e-9, atol=1e-9):
            raise StoreError(
                f"{file.filename}: <{name}> = {mean}, recorded {stored}; it was altered: {REDRAW}"
            )
    return array


def check_block(
    folder: Path, stream: int, block: int, identity: str, rows: dict[str, int]
) -> tuple[dict[str, np.ndarray], dict]:
    """Everything in a block, arrays by name and attributes, once its digest is right.

    `rows`: arrays that must be there, with their lengths; `measured/NAME` are as long as `log_prob`.
    """
    path = block_path(folder, stream, block)
    with open_block(folder, stream, block, identity) as file:
        arrays, attributes = read_whole(path, file)
    for name in [*rows, *(name for name in arrays if name.startswith("measured/"))]:
        found, wanted = len(arrays.get(name, ())), rows.get(name, rows["log_prob"])
        if found != wanted:
            raise StoreError(f"{path}: '{name}' has {found} rows; expected {wanted}; {REDRAW}")
    return arrays, attributes


def read_attributes(folder: Path, stream: int, block: int, identity: str) -> dict:
    """Attributes of a block as plain Python values."""
    with open_block(folder, stream, block, identity) as file:
        return plain(file.attrs)
