"""NERSC's format: against a file written byte by byte here, there and back, and damaged in every way."""

import struct

import numpy as np
import pytest
import torch
from tables import rng

from latticeflow.errors import InputError, StoreError
from latticeflow.groups import GROUPS
from latticeflow.store.nersc import read_nersc, write_nersc

SHAPE = (2, 3, 4, 2)


@pytest.fixture
def links():
    return GROUPS["su3"].haar((4, *SHAPE), rng(1), torch.float64)


def by_hand(u, rows, form, byte_order):
    """Header and data as the format says, by loops over sites; u numpy `[4, X, Y, Z, T, 3, 3]`."""
    code = byte_order + 2 * {"4": "f", "8": "d"}[form[-1]]
    data, plaquette = b"", 0.0
    step = np.eye(4, dtype=int)
    for t in range(SHAPE[3]):
        for z in range(SHAPE[2]):
            for y in range(SHAPE[1]):
                for x in range(SHAPE[0]):
                    for mu in range(4):
                        for row in range(rows):
                            for column in range(3):
                                number = u[mu, x, y, z, t, row, column]
                                data += struct.pack(code, number.real, number.imag)
                    site = np.array([x, y, z, t])
                    for mu in range(4):
                        for nu in range(mu):
                            a, b = (site + step[mu]) % SHAPE, (site + step[nu]) % SHAPE
                            p = u[(mu, *site)] @ u[(nu, *a)] @ u[(mu, *b)].conj().T @ u[(nu, *site)].conj().T
                            plaquette += p.trace().real / 3 / 6 / np.prod(SHAPE)
    checksum = (
        sum(struct.unpack(byte_order + "I", data[i : i + 4])[0] for i in range(0, len(data), 4)) % 2**32
    )
    header = {
        "DATATYPE": "4D_SU3_GAUGE" + ("_3x3" if rows == 3 else ""),
        **{f"DIMENSION_{i + 1}": side for i, side in enumerate(SHAPE)},
        "CHECKSUM": f"{checksum:x}",
        "LINK_TRACE": f"{np.trace(u, axis1=-2, axis2=-1).real.mean() / 3:.10f}",
        "PLAQUETTE": f"{plaquette:.10f}",
        "FLOATING_POINT": form[:-1],
        "ENSEMBLE_LABEL": "hand made",
    }
    lines = "".join(f"{key} = {value}\n" for key, value in header.items())
    return f"BEGIN_HEADER\n{lines}END_HEADER\n".encode() + data


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize(
    "form, order", [("IEEE32BIG4", ">"), ("IEEE324", ">"), ("IEEE64LITTLE8", "<"), ("IEEE64BIG8", ">")]
)
def test_reads_the_format(tmp_path, links, rows, form, order):
    (tmp_path / "c").write_bytes(by_hand(links.numpy(), rows, form, order))
    found = read_nersc(tmp_path / "c")
    torch.testing.assert_close(found.links, links, rtol=0, atol=1e-6 if form[-1] == "4" else 1e-14)
    assert found.header["ENSEMBLE_LABEL"] == "hand made"


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_there_and_back(tmp_path, links, precision):
    path = write_nersc(tmp_path / "c", links, precision, ENSEMBLE_ID="test")
    found = read_nersc(path)
    torch.testing.assert_close(found.links, links, rtol=0, atol=1e-6 if precision == "float32" else 0)
    form = "IEEE32BIG4" if precision == "float32" else "IEEE64BIG8"
    mine, other = path.read_bytes(), by_hand(links.numpy(), 3, form, ">")
    assert mine[mine.find(b"END_HEADER") :] == other[other.find(b"END_HEADER") :]
    assert found.header["ENSEMBLE_ID"] == "test"


def edit(raw, old, new):
    assert old in raw
    return raw.replace(old, new, 1)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda raw: raw[:-1] + bytes([raw[-1] ^ 1]), "checksum of the links is .* it is damaged"),
        (lambda raw: raw[:-8], "bytes of links; a lattice of"),
        (lambda raw: edit(raw, b"DIMENSION_4 = 2", b"DIMENSION_4 = 3"), "bytes of links"),
        (
            lambda raw: edit(raw, b"DIMENSION_4 = 2", b"DIMENSION_4 = two"),
            "DIMENSION_4 = two; expected a number",
        ),
        (lambda raw: edit(raw, b"PLAQUETTE = ", b"PLAQUETTE = 0.5\nWAS = "), "PLAQUETTE of the links is"),
        (lambda raw: edit(raw, b"LINK_TRACE = ", b"LINK_TRACE = 0.5\nWAS = "), "LINK_TRACE of the links is"),
        (lambda raw: edit(raw, b"CHECKSUM", b"CHEKSUM"), "the header has no CHECKSUM"),
        (lambda raw: edit(raw, b"SU3_GAUGE_3x3", b"SU2_GAUGE"), "DATATYPE 4D_SU2_GAUGE"),
        (lambda raw: raw[5:], "no file of NERSC's gauge archive"),
        (lambda raw: b"", "no file of NERSC's gauge archive"),
    ],
)
def test_damaged_files_are_refused(tmp_path, links, change, message):
    path = write_nersc(tmp_path / "c", links)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(StoreError, match=message):
        read_nersc(path)


def test_headers_with_fewer_digits(tmp_path, links):
    """A header is right to its last digit: six are taken as six, and a wrong sixth is refused."""
    path = write_nersc(tmp_path / "c", links)
    raw = path.read_bytes()
    said = float(raw.split(b"PLAQUETTE = ")[1].split(b"\n")[0])
    for number, good in ((f"{said:.6f}", True), (f"{said + 1e-6:.6f}", False), (f"{said:.1e}", False)):
        path.write_bytes(edit(raw, b"PLAQUETTE = ", b"PLAQUETTE = " + number.encode() + b"\nWAS = "))
        if good:
            read_nersc(path)
        else:
            with pytest.raises(StoreError, match="PLAQUETTE of the links"):
                read_nersc(path)


def test_another_order_of_sites_is_noticed(tmp_path, links):
    """The same numbers, and so the same checksum and link trace, with x and z exchanged: the plaquette tells."""
    u = links[:, :, :2, :2]  # 2 x 2 x 2 x 2
    path = write_nersc(tmp_path / "c", u[:, :, :, :2])
    raw = path.read_bytes()
    end = raw.find(b"END_HEADER\n") + len(b"END_HEADER\n")
    data = np.frombuffer(raw[end:], ">f8").reshape(2, 2, 2, 2, 4, 18).transpose(0, 3, 2, 1, 4, 5)
    path.write_bytes(raw[:end] + np.ascontiguousarray(data).tobytes())
    with pytest.raises(StoreError, match="PLAQUETTE of the links"):
        read_nersc(path)


def test_bad_input(tmp_path, links):
    for wrong, message in [
        (links[:3], "expected \\[4, X, Y, Z, T, 3, 3\\]"),
        (1.1 * links, "links off SU\\(3\\)"),
    ]:
        with pytest.raises(InputError, match=message):
            write_nersc(tmp_path / "c", wrong)
    with pytest.raises(InputError, match="float16"):
        write_nersc(tmp_path / "c", links, "float16")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="No such file"):
        read_nersc(tmp_path / "c")
