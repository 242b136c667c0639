"""Training a flow on a target's formula: estimators, schedules, the loop on any number of ranks, checkpoints, the log."""

from .evaluation import evaluate
from .loop import train
from .settings import TrainSettings

__all__ = ["TrainSettings", "evaluate", "train"]
