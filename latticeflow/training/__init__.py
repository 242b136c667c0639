"""Training a flow on a target's formula or on stored configurations.

Estimators, schedules, plans, the loop on any number of ranks, checkpoints, the log; the loop of models that learn from
configurations alone.
"""

from .data import Configurations
from .evaluation import evaluate
from .fit import fit
from .fit_settings import FitSettings
from .loop import train
from .settings import TrainSettings
from .stages import plan

__all__ = ["Configurations", "FitSettings", "TrainSettings", "evaluate", "fit", "plan", "train"]
