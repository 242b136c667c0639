"""Training a flow on a target's formula or on stored configurations.

Estimators, schedules, plans, the loop on any number of ranks, checkpoints, the log.
"""

from .data import Configurations
from .evaluation import evaluate
from .loop import train
from .settings import TrainSettings
from .stages import plan

__all__ = ["Configurations", "TrainSettings", "evaluate", "plan", "train"]
