"""Observables by name: functions of configurations (primary) and of their means (derived)."""

from . import events, fermions, gauge, gradient_flow, scalar  # noqa: F401 (they register their observables)
from .base import Derived, Observable, Primary, measure, observables, version

__all__ = ["Derived", "Observable", "Primary", "measure", "observables", "version"]
