"""One SU(3) configuration in four dimensions as a file of NERSC's gauge archive (QCD archive format, "4D_SU3_GAUGE").

A text header, then the links: for each site, x fastest and t slowest, the matrices of the directions x, y, z, t, row by
row as complex numbers; of "4D_SU3_GAUGE" the first two rows only, of "4D_SU3_GAUGE_3x3" all three. CHECKSUM is the sum of
all data as 32-bit words, modulo 2^32; PLAQUETTE the mean of `Re tr P / 3`, LINK_TRACE that of `Re tr U / 3`.

Directions 0, 1, 2, 3 of this package are x, y, z, t there: DIMENSION_1, ..., DIMENSION_4 are `shape`.
"""

from dataclasses import dataclass
from decimal import Decimal
from math import isfinite
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, StoreError
from ..files import write_atomic
from ..groups import GROUPS
from ..targets import Wilson

ROWS = {"4D_SU3_GAUGE": 2, "4D_SU3_GAUGE_3x3": 3}
FORMATS = {
    "IEEE32": ">f4",
    "IEEE32BIG": ">f4",
    "IEEE32LITTLE": "<f4",
    "IEEE64BIG": ">f8",
    "IEEE64LITTLE": "<f8",
}
# How far plaquette and link trace may be off: they are written with some ten digits, of links in that precision
ALLOWED = {4: 1e-6, 8: 1e-9}
HEADER = 1 << 16  # bytes in which the header must end


@dataclass(frozen=True)
class Configuration:
    """`links` complex128 `[4, *shape, 3, 3]`, and the `header`'s entries as they stand."""

    links: Tensor
    header: dict[str, str]


def write_nersc(path: Path | str, links: Tensor, precision: str = "float64", **header: str) -> Path:
    """Write links `[4, *shape, 3, 3]`, all three rows, big-endian; `header`: further entries, such as ENSEMBLE_ID.

    The file appears whole or not at all. Raises `InputError` for another shape, another precision than float32 and
    float64, and for links off SU(3).
    """
    path, links = Path(path), links.detach().cpu().to(torch.complex128)
    if links.dim() != 7 or links.shape[0] != 4 or links.shape[-2:] != (3, 3):
        raise InputError(f"NERSC file of links of shape {tuple(links.shape)}; expected [4, X, Y, Z, T, 3, 3]")
    if precision not in ("float32", "float64"):
        raise InputError(f"NERSC file in precision '{precision}'; expected float32 or float64")
    target = _target(links)
    target.check_field(links[None])
    name = "IEEE32BIG" if precision == "float32" else "IEEE64BIG"
    numbers = torch.view_as_real(links.permute(4, 3, 2, 1, 0, 5, 6)).numpy().astype(FORMATS[name])
    data = np.ascontiguousarray(numbers).tobytes()
    plaquette, trace = _means(target, links)
    entries = {
        "HDR_VERSION": "1.0",
        "DATATYPE": "4D_SU3_GAUGE_3x3",
        "STORAGE_FORMAT": "1.0",
        **{f"DIMENSION_{mu + 1}": str(side) for mu, side in enumerate(target.shape)},
        "LINK_TRACE": f"{trace:.12g}",
        "PLAQUETTE": f"{plaquette:.12g}",
        **{f"BOUNDARY_{mu + 1}": "PERIODIC" for mu in range(4)},
        "CHECKSUM": f"{_checksum(data, name):x}",
        "FLOATING_POINT": name,
        **header,
    }
    text = "".join(f"{key} = {value}\n" for key, value in entries.items())
    write_atomic(path, lambda place: place.write_bytes(f"BEGIN_HEADER\n{text}END_HEADER\n".encode() + data))
    return path


def read_nersc(path: Path | str) -> Configuration:
    """A configuration, its checksum, plaquette and link trace compared with those of the header.

    A third row that is not in the file is the conjugate cross product of the first two. Raises `StoreError` naming what is
    wrong, what was found and what the header says; `InputError` where there is no such file.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    header, data = _header(path, raw)
    rows, name = ROWS.get(_entry(path, header, "DATATYPE")), _entry(path, header, "FLOATING_POINT")
    if rows is None or name not in FORMATS:
        raise StoreError(
            f"{path}: DATATYPE {header['DATATYPE']}, FLOATING_POINT {name}; readable are {', '.join(ROWS)} in "
            f"{', '.join(FORMATS)}"
        )
    shape = tuple(_number(path, header, f"DIMENSION_{mu + 1}", int) for mu in range(4))
    dtype = np.dtype(FORMATS[name])
    expected = 4 * int(np.prod(shape)) * rows * 3 * 2 * dtype.itemsize
    if min(shape) < 1 or len(data) != expected:
        raise StoreError(f"{path}: {len(data)} bytes of links; a lattice of {shape} has {expected}")
    checksum = _number(path, header, "CHECKSUM", lambda text: int(text, 16))
    if (found := _checksum(data, name)) != checksum:
        raise StoreError(
            f"{path}: the checksum of the links is {found:x}, the header says {checksum:x}: it is damaged"
        )
    numbers = np.frombuffer(data, dtype).astype(np.float64).reshape(*shape[::-1], 4, rows, 3, 2)
    links = torch.view_as_complex(torch.from_numpy(numbers)).permute(4, 3, 2, 1, 0, 5, 6)
    if rows == 2:
        third = torch.linalg.cross(links[..., 0, :], links[..., 1, :], dim=-1).conj()
        links = torch.cat([links, third.unsqueeze(-2)], -2)
    links = links.resolve_conj().contiguous()
    target = _target(links)
    try:
        target.check_field(links[None])
    except InputError as error:
        raise StoreError(f"{path}: {error}") from None
    for key, value in zip(("PLAQUETTE", "LINK_TRACE"), _means(target, links)):
        said = _number(path, header, key, float)
        if not abs(said - value) <= max(ALLOWED[dtype.itemsize], _half_a_digit(header[key])):
            raise StoreError(
                f"{path}: {key} of the links is {value:.12g}, the header says {said:.12g}: they are other links, or "
                "in another order"
            )
    return Configuration(links, header)


def _half_a_digit(number: str) -> float:
    """Half a unit, and a little, of a decimal number's last digit, at most 1e-5: some headers have six digits."""
    if not isfinite(float(number)):
        return 0.0
    return min(1e-5, 0.51 * 10.0 ** int(Decimal(number).as_tuple().exponent))


def _target(links: Tensor) -> Wilson:
    return Wilson(shape=tuple(links.shape[1:5]), group="su3", beta=1.0)


def _means(target: Wilson, links: Tensor) -> tuple[float, float]:
    """Plaquette and link trace."""
    group = GROUPS["su3"]
    traces = [float(group.trace(p).mean()) for _, _, p in target.plaquettes(links[None])]
    return float(np.mean(traces)), float(group.trace(links).mean())


def _checksum(data: bytes, name: str) -> int:
    words = np.frombuffer(data, ">u4" if FORMATS[name].startswith(">") else "<u4")
    return int(words.sum(dtype=np.uint64) % (1 << 32))


def _header(path: Path, raw: bytes) -> tuple[dict[str, str], bytes]:
    end = raw.find(b"END_HEADER", 0, HEADER)
    if not raw.startswith(b"BEGIN_HEADER") or end < 0:
        raise StoreError(f"{path} is no file of NERSC's gauge archive: it has no BEGIN_HEADER ... END_HEADER")
    begin = raw.find(b"\n", end) + 1
    lines = raw[:end].decode("latin-1").splitlines()[1:]
    pairs = (line.partition("=") for line in lines if "=" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}, raw[begin:]


def _entry(path: Path, header: dict[str, str], key: str) -> str:
    if key not in header:
        raise StoreError(f"{path}: the header has no {key}")
    return header[key]


def _number(path: Path, header: dict[str, str], key: str, kind):
    text = _entry(path, header, key)
    try:
        return kind(text)
    except ValueError:
        raise StoreError(f"{path}: {key} = {text}; expected a number") from None
