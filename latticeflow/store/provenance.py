"""Where a block was made: recorded with it, never read by the code."""

import platform
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch


def provenance(device: str) -> dict[str, str]:
    """Versions, host, device and time (UTC) as attributes of a file."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor()
    return {
        "latticeflow": version("latticeflow"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "host": platform.node(),
        "device": f"{device} {name or platform.machine()}".strip(),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }
