"""Ensembles on disk: immutable block files, the corrected chain as an index, and where they came from."""

from .chain import Chain
from .ensemble import Ensemble

__all__ = ["Chain", "Ensemble"]
