"""Observables by name: functions of configurations (primary) and of their means (derived)."""

from . import scalar  # noqa: F401  (registers)
from .base import Derived, Observable, Primary, measure, observables, version

__all__ = ["Derived", "Observable", "Primary", "measure", "observables", "version"]
