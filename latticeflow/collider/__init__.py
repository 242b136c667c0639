"""Collider physics: phase-space maps, processes, cuts, and the target on the unit hypercube that they make."""

from .cuts import Cuts
from .phase_space import PhaseSpace, PhaseSpaceMap, phase_spaces
from .processes import Process, process, processes
from .target import Event, MatrixElement

__all__ = [
    "Cuts",
    "Event",
    "MatrixElement",
    "PhaseSpace",
    "PhaseSpaceMap",
    "Process",
    "phase_spaces",
    "process",
    "processes",
]
