"""Shared fixtures."""

import os

import pytest
from jobs import Launcher, find_mpirun


@pytest.fixture(scope="session")
def mpirun() -> Launcher:
    """A real launcher. Skips where there is none, but never in CI."""
    program = find_mpirun()
    if program is None:
        if os.environ.get("CI"):
            pytest.fail("no mpirun in CI: install 'latticeflow[mpi]'")
        pytest.skip("no mpirun: pip install 'latticeflow[mpi]'")
    return Launcher(program)
