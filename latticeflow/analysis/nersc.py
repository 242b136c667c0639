"""`latticeflow nersc`: files of NERSC's gauge archive, verified, and as arrays."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from ..errors import InputError, LatticeflowError, StoreError
from ..store.nersc import read_nersc
from .export import check_arrays, write_arrays


class Files:
    """Configurations of NERSC files of one lattice as rows of an export (`Rows`), read one at a time."""

    def __init__(self, paths: list[Path]):
        self.paths, self.n = paths, len(paths)

    @cached_property
    def columns(self) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
        first = read_nersc(self.paths[0]).links
        return {"x": (np.dtype(np.complex128), tuple(first.shape))}

    def pieces(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        shape = self.columns["x"][1]
        for path in self.paths:
            links = read_nersc(path).links
            if links.shape != shape:
                raise InputError(
                    f"{path}: a lattice of {tuple(links.shape[1:5])}, {self.paths[0]} of {shape[1:5]}; expected one lattice "
                    "in a file of arrays"
                )
            yield {"x": links.numpy()[None]}


def nersc_run(paths: list[Path], out: Path | None = None) -> None:
    """Verify NERSC files (`latticeflow nersc`), one line each: lattice, plaquette, link trace, checksum, precision.

    With `out`, .npz or .h5, all of them as `x`, complex128 `[n, 4, *shape, 3, 3]` in the layout of this package's targets,
    and as text `nersc`, the headers in JSON. Raises `StoreError` that counts the bad files, each of which has been named
    with what is wrong; nothing is written then. `InputError` as `export_run` for `out`, and where lattices differ.
    """
    if out is not None:
        check_arrays(out)
    headers, problems = [], 0
    for path in paths:
        try:
            found = read_nersc(path)
        except LatticeflowError as error:
            problems += 1
            print(f"BAD  {error}")
            continue
        headers.append(found.header)
        shape = "x".join(map(str, found.links.shape[1:5]))
        print(
            f"ok   {path}: {shape}, plaquette {found.header['PLAQUETTE']}, link trace {found.header['LINK_TRACE']}, "
            f"checksum {found.header['CHECKSUM']}, {found.header['FLOATING_POINT']}"
        )
    if problems:
        raise StoreError(f"{problems} of {len(paths)} files are bad, named above")
    if out is not None:
        write_arrays(out, Files(paths), {"nersc": json.dumps(headers)})
