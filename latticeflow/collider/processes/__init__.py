"""Processes by name. A new one is one file here whose class carries `@processes.add(name)`."""

from ...spec import import_all
from .base import Process, process, processes

import_all(__name__, __path__)

__all__ = ["Process", "process", "processes"]
