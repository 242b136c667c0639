"""Targets by name. A new theory is one file here whose class carries `@targets.add(name)`."""

from ..spec import import_all
from .base import LatticeTarget, Target, targets
from .gauge import Wilson
from .hypercube import Camel, Hypercube
from .scalar import FreeField, Phi4
from .schwinger import Schwinger

import_all(__name__, __path__)

__all__ = [
    "Camel",
    "FreeField",
    "Hypercube",
    "LatticeTarget",
    "Phi4",
    "Schwinger",
    "Target",
    "Wilson",
    "targets",
]
