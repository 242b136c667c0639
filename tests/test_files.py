"""Files are whole or absent, and what the system refuses is said."""

import pytest

from latticeflow.files import write_atomic


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
