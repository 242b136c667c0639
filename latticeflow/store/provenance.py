"""Where an ensemble and each of its blocks were made: recorded with them, never read by the code."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from .. import targets
from ..files import source_hash
from ..observables import version as observables_version

_PACKAGE = Path(__file__).parents[1]


def provenance(device: str) -> dict[str, Any]:
    """Versions, git commit (None outside a checkout), host, device and time (UTC)."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    return {
        "latticeflow": version("latticeflow"),
        "commit": git_commit(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": f"{device} {name or platform.machine()}".strip(),
        "time": now(),
    }


def now() -> str:
    """The time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def measured_by() -> dict[str, str]:
    """Hashes of the source of what measures observables: of themselves, and of the targets (action, virial)."""
    return {"observables": observables_version(), "targets": source_hash(Path(targets.__file__).parent)}


@cache
def git_commit(package: Path = _PACKAGE) -> str | None:
    """Commit of the checkout that `package` is run from, with "+changes" where tracked files differ from it.

    None where it is installed otherwise, or git is missing or refuses.
    """
    root = package.parent
    if not (root / ".git").exists():
        return None
    # inside a git hook GIT_DIR and others name another repository
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), "--no-optional-locks", *arguments]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}+changes" if changes else commit
