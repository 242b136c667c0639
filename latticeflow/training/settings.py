"""What `[train]` in a deck may say, and the schedules that follow from it. Schedules count steps, never seconds."""

import math
from typing import Literal

from pydantic import Field

from ..errors import InputError
from ..spec import Spec


class TrainSettings(Spec):
    """Settings of one training run.

    `steps`: optimiser steps. `batch`: a number, or a schedule `[[fraction, batch], ...]`, the batch used
    from that fraction of all steps on. `lr`: Adam's rate at its peak, reached after `warmup` steps, then falling
    to 0 with half a cosine (`decay = "constant"`: staying). `clip`: largest norm of the gradient. `estimator`:
    "path" (sticking the landing) or "reparametrised". ESS is measured on `evaluate_draws` draws every
    `evaluate_every` steps, a checkpoint written every `checkpoint_every`, the last `keep` of which stay.
    """

    steps: int = Field(gt=0)
    batch: int | tuple[tuple[float, int], ...] = 64
    lr: float = Field(2e-3, gt=0)
    warmup: int = Field(100, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = Field(10.0, gt=0)
    estimator: Literal["path", "reparametrised"] = "path"
    precision: Literal["float32", "float64"] = "float32"
    evaluate_every: int = Field(500, gt=0)
    evaluate_draws: int = Field(16384, ge=1024)
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(3, ge=1)
    threads: int = Field(1, ge=1)

    def model_post_init(self, context) -> None:
        schedule = self.batches
        starts = [start for start, _ in schedule]
        if starts[0] != 0 or starts != sorted(starts) or starts[-1] >= 1 or min(b for _, b in schedule) < 1:
            raise InputError(
                f"train.batch = {self.batch}: expected a positive number or [[0.0, batch], [fraction, batch], ...] "
                "with fractions rising from 0 and below 1"
            )

    @property
    def batches(self) -> tuple[tuple[float, int], ...]:
        return ((0.0, self.batch),) if isinstance(self.batch, int) else self.batch

    def batch_at(self, step: int) -> int:
        """Batch of the step counted from 0."""
        return next(b for start, b in reversed(self.batches) if step >= start * self.steps)

    def lr_at(self, step: int) -> float:
        """Learning rate of the step counted from 0: linear warm-up, then the decay."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.decay == "constant":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))
