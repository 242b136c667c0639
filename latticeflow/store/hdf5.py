"""HDF5 files of arrays and attributes: written once, whole, checksummed, and with a digest of all they hold.

Every chunk of data has a fletcher32 checksum and the newer HDF5 format checksums everything else, so that damage is
found on reading. The attribute `digest`, SHA-256 of all arrays and attributes, also finds what was edited by
a tool that keeps the checksums right.
"""

import errno
import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from ..errors import LatticeflowError, StoreError
from ..files import write_atomic

REDRAW = "delete that file and run the same 'latticeflow sample' again: it is redrawn identically"
_CHUNK = 1 << 20  # bytes
# What the system says of a file that it does not let be read, whatever is in it.
_UNREADABLE = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOTCONN)


@contextmanager
def open_h5(path: Path, remedy: str = REDRAW) -> Iterator[h5py.File]:
    """Open read-only; whatever HDF5 finds wrong, then or while reading, is a `StoreError` naming the file."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; {remedy}") from None
    except LatticeflowError:  # some are ValueErrors, too
        raise
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = getattr(error, "errno", None)
        if reason in _UNREADABLE:
            raise StoreError(
                f"{path} cannot be read: {os.strerror(reason)}. It may well be whole: see to the disk or the "
                "permission, then run this again"
            ) from None
        raise StoreError(f"{path} is damaged or not a file of this package ({error}); {remedy}") from None


class _Disk(io.RawIOBase):
    """A new file for HDF5 to write to, which never tells it of a failure but keeps the first in `error`.

    HDF5 1.14 crashes the process when a write fails while it closes a file, as on a full disk.
    """

    def __init__(self, path: Path):
        self.handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self.position = self.size = 0
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = start + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def readinto(self, buffer) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = os.pread(self.handle, len(view), self.position).ljust(len(view), b"\0")
        self.position += len(view)
        return len(view)

    def write(self, data) -> int:
        view, done = memoryview(data).cast("B"), 0
        try:
            while self.error is None and done < len(view):
                done += os.pwrite(self.handle, view[done:], self.position + done)
        except OSError as error:
            self.error = error
        self.position += len(view)
        self.size = max(self.size, self.position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self.size = self.position if size is None else size
        try:
            os.ftruncate(self.handle, self.size)
        except OSError as error:
            self.error = self.error or error
        return self.size

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self.handle)


@contextmanager
def create_h5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file for writing. Raises `OSError` at the end where the disk did not take all of it."""
    disk = _Disk(path)
    try:
        try:
            with h5py.File(disk, "w", libver=("v110", "v110")) as file:
                yield file
        finally:
            disk.close()
    except (OSError, RuntimeError):  # HDF5 stumbling over what was not written
        if disk.error is None:
            raise
    if disk.error is not None:
        raise disk.error


def write_h5(path: Path, arrays: dict[str, np.ndarray], attributes: dict) -> None:
    """Write arrays and attributes (strings and numbers), and `digest`, into a file that must not be there half.

    Durable, read back and compared before the file has its name. Raises `WriteFailed`, or `StoreError` where
    it reads back different.
    """
    whole = {**attributes, "digest": digest(arrays, attributes)}

    def write(temporary: Path) -> None:
        with create_h5(temporary) as file:
            file.attrs.update(whole)
            for name, array in arrays.items():
                put(file, name, array)

    def check(temporary: Path) -> None:
        with open_h5(temporary, "the disk did not keep what was written") as file:
            for name, array in arrays.items():
                if not _reads_back(file[name], array):
                    raise StoreError(f"{path}: '{name}' reads back different from what was written")

    write_atomic(path, write, check)


def _reads_back(dataset: h5py.Dataset, array: np.ndarray) -> bool:
    """Whether the dataset holds `array` bit for bit, NaN and the sign of 0 too; read in pieces that fit a cache."""
    data = np.atleast_1d(array)
    if dataset.dtype != data.dtype or dataset.shape != data.shape:
        return False
    step = dataset.chunks[0] if dataset.chunks else 1
    return all(
        np.array_equal(_integers(dataset[at : at + step]), _integers(data[at : at + step]))
        for at in range(0, len(data), step)
    )


def _integers(array: np.ndarray) -> np.ndarray:
    """The bytes of an array, as integers."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"u{flat.itemsize}") if flat.dtype.kind == "f" else flat


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


def plain(attributes) -> dict:
    """Attributes as plain Python values."""
    return {key: value.item() if hasattr(value, "item") else value for key, value in attributes.items()}


def digest(arrays: dict[str, np.ndarray], attributes: dict) -> str:
    """SHA-256, hex, of the attributes, and of name, dtype, shape and bytes of each array in order of names."""
    found = hashlib.sha256(json.dumps(plain(attributes), sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        found.update(f"\n{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def read_whole(path: Path, file: h5py.File, remedy: str = REDRAW) -> tuple[dict[str, np.ndarray], dict]:
    """All arrays and attributes. Raises `StoreError` where they are not those that the digest was taken of."""
    arrays, attributes = {name: get(file, name) for name in names(file)}, plain(file.attrs)
    stored = attributes.pop("digest")
    if digest(arrays, attributes) != stored:
        raise StoreError(f"{path} was edited: its digest is not that of what it holds; {remedy}")
    return arrays, {**attributes, "digest": stored}
