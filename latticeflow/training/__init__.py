"""Training a flow on a target's formula: estimators, schedules, the loop, checkpoints, the log."""

from .loop import evaluate, train
from .settings import TrainSettings

__all__ = ["TrainSettings", "evaluate", "train"]
