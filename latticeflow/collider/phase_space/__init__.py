"""Phase-space maps by name. A new one is one file here whose settings carry `@phase_spaces.add(name)`."""

from ...spec import import_all
from .base import PhaseSpace, PhaseSpaceMap, phase_spaces
from .multi_channel import optimise_weights

import_all(__name__, __path__)

__all__ = ["PhaseSpace", "PhaseSpaceMap", "optimise_weights", "phase_spaces"]
