"""Targets by name. A new theory is one file here whose class carries `@targets.add(name)`."""

from .base import LatticeTarget, Target, targets
from .scalar import FreeField, Phi4

__all__ = ["FreeField", "LatticeTarget", "Phi4", "Target", "targets"]
