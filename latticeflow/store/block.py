"""Block files: a fixed number of draws, written once, immutable after that.

One HDF5 file a block: `x` `[n, *event_shape]`, `log_prob` and (where the sampler has a density) `log_w`, both
float64 `[n]`, `info/NAME`, `state/NAME` (the chain's state after the block), all with fletcher32 checksums;
the newer HDF5 format checksums everything else. What made the block is in the attributes of the file.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..errors import StoreError
from ..files import write_atomic
from ..samplers.base import Draws, State

FORMAT = 1
_NAME = re.compile(r"s(\d{6,})_b(\d{6,})\.h5")
_CHUNK = 1 << 20  # bytes
REDRAW = "delete that file and run the same 'latticeflow sample' again: it is redrawn identically"


def block_name(stream: int, block: int) -> str:
    return f"s{stream:06d}_b{block:06d}.h5"


def list_blocks(folder: Path) -> list[tuple[int, int]]:
    """(stream, block) of every block file in `folder`, sorted as numbers."""
    found = (_NAME.fullmatch(path.name) for path in Path(folder).iterdir())
    return sorted((int(name[1]), int(name[2])) for name in found if name)


@contextmanager
def open_h5(path: Path, remedy: str = REDRAW) -> Iterator[h5py.File]:
    """Open read-only; whatever HDF5 finds wrong, then or while reading, is a `StoreError` naming the file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; {remedy}") from None
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        raise StoreError(f"{path} is damaged or not a file of this package ({error}); {remedy}") from None


def write_h5(path: Path, arrays: dict[str, np.ndarray], attributes: dict) -> None:
    """Write arrays and attributes; whole, durable, read back and compared before the file has its name."""

    def write(temporary: Path) -> None:
        with h5py.File(temporary, "x", libver=("v110", "v110"), locking=False) as file:
            file.attrs.update(attributes)
            for name, array in arrays.items():
                put(file, name, array)

    def check(temporary: Path) -> None:
        with open_h5(temporary, "the disk did not keep what was written") as file:
            for name, array in arrays.items():
                back = get(file, name)
                if back.dtype != array.dtype or back.tobytes() != array.tobytes():
                    raise StoreError(f"{path}: '{name}' reads back different from what was written")

    write_atomic(path, write, check)


def put(file: h5py.File, name: str, array: np.ndarray) -> None:
    """One checksummed dataset. HDF5 checksums chunks, so a number becomes an array of one, marked as such."""
    data = np.atleast_1d(array)
    if not data.size:
        file.create_dataset(name, data=data)
        return
    rows = max(1, min(len(data), _CHUNK // max(1, data[0].nbytes)))
    dataset = file.create_dataset(name, data=data, chunks=(rows, *data.shape[1:]), fletcher32=True)
    if array.ndim == 0:
        dataset.attrs["scalar"] = True


def get(file: h5py.File, name: str) -> np.ndarray:
    dataset = file[name]
    return dataset[()].reshape(()) if dataset.attrs.get("scalar", False) else dataset[()]


def names(file: h5py.File) -> list[str]:
    """Names of all datasets, `info/acceptance` and so on."""
    found: list[str] = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def write_block(
    folder: Path, stream: int, block: int, draws: Draws, state: State | None, attributes: dict
) -> None:
    """Store one block. `attributes`: at least `identity`, `sampler`, `seed`, `seconds`."""
    arrays = {"x": draws.x.numpy(), "log_prob": draws.log_prob}
    if draws.log_w is not None:
        arrays["log_w"] = draws.log_w
    arrays |= {f"info/{name}": np.asarray(value) for name, value in draws.info.items()}
    arrays |= {f"state/{name}": np.asarray(value) for name, value in (state or {}).items()}
    about = {"format": FORMAT, "stream": stream, "block": block, "n": len(draws), **attributes}
    about |= {f"mean_{name}": arrays[name].mean() for name in ("log_prob", "log_w") if name in arrays}
    write_h5(Path(folder) / block_name(stream, block), arrays, about)


@contextmanager
def open_block(folder: Path, stream: int, block: int, identity: str) -> Iterator[h5py.File]:
    """A block, read-only, with its format, its ensemble and its name checked. Raises `StoreError`."""
    path = Path(folder) / block_name(stream, block)
    with open_h5(path) as file:
        check_format(path, file, identity)
        named = int(file.attrs["stream"]), int(file.attrs["block"])
        if named != (stream, block):
            raise StoreError(
                f"{path} holds stream {named[0]}, block {named[1]}: it was renamed or copied. "
                f"Give it its name back ({block_name(*named)}), or {REDRAW}"
            )
        yield file


def check_format(path: Path, file: h5py.File, identity: str) -> None:
    version = file.attrs.get("format")
    if version is None:
        raise StoreError(f"{path} is not a file of this package: no format version; {REDRAW}")
    if version != FORMAT:
        raise StoreError(f"{path} has format {version}; this version of latticeflow reads format {FORMAT}")
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
        arrays = {name: get(file, name) for name in chosen}
        for name in {"log_prob", "log_w"} & set(chosen):
            mean, stored = arrays[name].mean(), file.attrs[f"mean_{name}"]
            # another summation order, on another machine, moves the last bits only
            if not np.isclose(mean, stored, rtol=1e-9, atol=1e-9):
                raise StoreError(
                    f"{file.filename}: <{name}> = {mean}, recorded {stored}; it was altered: {REDRAW}"
                )
        return arrays


def read_attributes(folder: Path, stream: int, block: int, identity: str) -> dict:
    """Attributes of a block as plain Python values."""
    with open_block(folder, stream, block, identity) as file:
        return {key: value.item() if hasattr(value, "item") else value for key, value in file.attrs.items()}
