"""Shared fixtures."""

import os

import pytest
from fake_ensembles import flow, hmc  # noqa: F401 (fixtures)
from jobs import Launcher, kill_9, launchers


def _launcher(name: str) -> Launcher:
    """Skips where there is none, but never in CI."""
    found = launchers().get(name)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail(f"no mpirun of {name} in CI: make install")
        pytest.skip(f"no mpirun of {name}: make install")
    return found


@pytest.fixture(scope="session")
def mpirun() -> Launcher:
    """A real launcher: the mpirun beside python, or the system's."""
    return _launcher("mpich")


@pytest.fixture(scope="session")
def openmpi() -> Launcher:
    """The mpirun of Open MPI."""
    return _launcher("openmpi")


@pytest.fixture(scope="session", params=["mpich", "openmpi"])
def any_mpirun(request) -> Launcher:
    """The same test under MPICH and under Open MPI."""
    return _launcher(request.param)


@pytest.fixture(autouse=True)
def no_job_survives():
    """A job that a failed test has left would take the others' cores."""
    yield
    for job in Launcher.started:
        if job.poll() is None:
            kill_9(job)
    Launcher.started.clear()
