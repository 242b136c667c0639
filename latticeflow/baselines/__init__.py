"""Models that learn from stored configurations. A new one is one file here whose settings carry `@models.add(name)`."""

from ..spec import import_all
from .base import Model, ModelSpec, models

import_all(__name__, __path__)

__all__ = ["Model", "ModelSpec", "models"]
