"""Files are whole or absent, and what the system refuses is said."""

import errno
import os
import subprocess
import sys

import h5py
import numpy as np
import pytest
from fake_ensembles import ABOUT, RECORD, fake_draws

from latticeflow.errors import StatisticsError, StoreError, WriteFailed
from latticeflow.files import make_folder, write_atomic, write_text
from latticeflow.store import Ensemble
from latticeflow.store.hdf5 import create_h5, open_h5, read_whole, write_h5


def test_failed_write_leaves_nothing(tmp_path):
    def half(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", half)
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_on_two_hosts(tmp_path, monkeypatch):
    """Process ids agree, as they may on two nodes; each must still write its own file."""
    monkeypatch.setattr("os.getpid", lambda: 77)

    def outer(temporary):
        with open(temporary, "x") as handle:
            handle.write("whole")
        write_atomic(tmp_path / "file", lambda other: other.open("x").close())

    write_atomic(tmp_path / "file", outer)
    assert (tmp_path / "file").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1


REFUSALS = [
    (errno.ENOSPC, "No space left on device.*make room on that disk"),
    (errno.EDQUOT, "Disk quota exceeded.*within your quota"),
    (errno.EROFS, "Read-only file system.*mounted read-only"),
    (errno.EACCES, "Permission denied.*get permission"),
    (errno.EFBIG, "File too large.*ulimit -f"),
    (errno.EIO, "Input/output error.*see to the disk"),
]


def refusal(number: int):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize(("number", "said"), REFUSALS)
@pytest.mark.parametrize("call", ["pwrite", "fsync", "replace", "ftruncate"])
def test_whatever_the_system_refuses_is_said(tmp_path, monkeypatch, number, said, call):
    """While HDF5 writes, when the data go to the disk, when the file gets its name."""
    monkeypatch.setattr(os, call, refusal(number))
    wanted = rf"{tmp_path}/a\.h5 cannot be written: {said}.*, then run the same command again"
    with pytest.raises(WriteFailed, match=wanted) as caught:
        write_h5(tmp_path / "a.h5", {"x": np.arange(1000.0)}, {"format": 2})
    assert "finished before is kept" in str(caught.value) and caught.value.status == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_folders_and_texts_too(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.mkdir", refusal(number))
        with pytest.raises(WriteFailed, match=r"a/b cannot be written"):
            make_folder(tmp_path / "a" / "b")
    monkeypatch.setattr(os, "fsync", refusal(number))
    with pytest.raises(WriteFailed, match=r"c\.json cannot be written"):
        write_text(tmp_path / "c.json", "{}")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_anywhere(tmp_path, monkeypatch):
    """HDF5 crashes the process where a write fails while it closes a file; the n-th write fails, for every n."""
    arrays = {
        "x": np.random.default_rng(1).random((3000, 100)),
        "log_w": np.arange(3000.0),
        "none": np.empty(0),
    }
    real, calls = os.pwrite, 0

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == last:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    last = -1
    monkeypatch.setattr(os, "pwrite", counted)
    write_h5(tmp_path / "a.h5", arrays, {"format": 2})
    (tmp_path / "a.h5").unlink()
    writes, calls = calls, 0
    assert writes > 4
    for last in range(1, writes + 1):  # noqa: B007 (read by `counted`)
        calls = 0
        with pytest.raises(WriteFailed, match="No space left"):
            write_h5(tmp_path / "a.h5", arrays, {"format": 2})
        assert not list(tmp_path.iterdir())


def test_a_disk_that_takes_little_at_a_time(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda handle, data, at: real(handle, data[:1000], at))
    write_h5(tmp_path / "a.h5", {"x": np.arange(10000.0)}, {"format": 2})
    with open_h5(tmp_path / "a.h5") as file:
        arrays, _ = read_whole(tmp_path / "a.h5", file)
    np.testing.assert_array_equal(arrays["x"], np.arange(10000.0))


def test_a_file_written_piece_by_piece(tmp_path):
    """What `create_h5` writes, any HDF5 library reads, also where chunks were written twice."""
    with create_h5(tmp_path / "a.h5") as file:
        data = file.create_dataset("x", (1000, 50), chunks=(100, 50), fletcher32=True, dtype="f8")
        for row in range(1000):
            data[row] = row
        data[500] = -1
    with h5py.File(tmp_path / "a.h5") as file:
        expected = np.repeat(np.arange(1000.0), 50).reshape(1000, 50)
        expected[500] = -1
        np.testing.assert_array_equal(file["x"][()], expected)


LIMITED = """
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from fake_ensembles import ABOUT, RECORD, fake_draws
from latticeflow.store import Ensemble
from latticeflow.errors import WriteFailed
ensemble = Ensemble.open({path!r})
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
for call in (lambda: ensemble.write(7, 0, fake_draws(7), None, 0.5, **ABOUT), ensemble.chain):
    try:
        call()
    except WriteFailed as error:
        print(error)
"""


@pytest.mark.parametrize("limit", [100, 3000])
def test_a_real_limit_on_the_size_of_files(tmp_path, limit):
    """Block and chain are refused, nothing half is left, and the process ends in good order."""
    ensemble = Ensemble.create(tmp_path / "flow", **RECORD)
    ensemble.write(0, 0, fake_draws(0), None, 0.5, **ABOUT)
    before = sorted(tmp_path.rglob("*"))
    script = LIMITED.format(tests=os.path.dirname(__file__), path=str(ensemble.path), limit=limit)
    job = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert job.returncode == 0 and not job.stderr
    said = job.stdout.splitlines()
    assert len(said) == 2 and all("File too large" in line and "ulimit -f" in line for line in said)
    assert "s000007_b000000.h5 cannot be written" in said[0] and "chain.h5 cannot be written" in said[1]
    assert sorted(tmp_path.rglob("*")) == before
    assert ensemble.chain().proposals == 64


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_one_may_not_read_is_not_called_damaged(flow, monkeypatch, number):
    monkeypatch.setattr(h5py, "File", refusal(number))
    with pytest.raises(
        StoreError, match=rf"cannot be read: {os.strerror(number)}\. It may well be whole"
    ) as caught:
        flow.read(0, 0)
    assert "delete" not in str(caught.value)


def test_an_error_of_the_reader_is_not_called_damage(tmp_path):
    write_h5(tmp_path / "a.h5", {"x": np.arange(3.0)}, {"n": 3})
    with pytest.raises(StatisticsError, match="too few"), open_h5(tmp_path / "a.h5"):
        raise StatisticsError("too few")
