"""What `[train]` in a deck may say, and the schedules that follow from it. Schedules count steps, never seconds."""

import math
from typing import Any, Literal

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from ..errors import InputError
from ..spec import Spec
from ..threads import MAX_THREADS

LARGEST = 10_000_000  # points of a pool
WHOLE = {"stage", "precision", "threads", "compile", "keep"}  # what a stage cannot change


class TrainSettings(Spec):
    """Settings of one training run.

    `steps`: optimiser steps. `optimizer`: "adam", or "soap" (`training/soap.py`), which wants a few thousand parameters
    at most and then learns much faster. `batch`: a number, or a schedule `[[fraction, batch], ...]`, the batch used
    from that fraction of all steps on. `lr`: the optimiser's rate at its peak, reached after `warmup` steps, then falling
    to 0 with half a cosine (`decay = "constant"`: staying). `weight_decay` d: every step first shrinks all parameters by
    `1 - lr d` (decoupled, 1711.05101), so that directions which the divergence does not see do not walk away.
    `clip`: largest norm of the gradient. `estimator` of the reverse divergence's gradient: "path" (sticking the landing),
    "reparametrised" or "log_variance". ESS is measured on `evaluate_draws` draws every `evaluate_every` steps, a
    checkpoint written every `checkpoint_every`, the last `keep` of
    which stay.

    `compile`: the repeated parts of split and continuous flows (no others) by torch.compile, 20 to 60 s once for each
    lattice and batch; steps are 1.6 to 2 times as fast on a CPU (by hand), with other rounding.

    `density_tolerance`: of a flow that is solved in steps, the largest change of log q at twice the resolution that is
    allowed over 4,096 draws. It is looked at with each evaluation, and the number of steps raised until it is met.

    `objective`: "reverse" KL divergence, which needs no data; "forward", over configurations of the stored ensemble
    `data` (a path, as seen from the run folder or from here), `batch` of them a step; or "mixed", `alpha` forward +
    (1 - alpha) reverse, `batch` of either. `thin`: of each of its chains every thin-th step is used ("auto": by tau_int);
    `test_share` of the chains are left out (`training/split.py`), as for the models that a flow is compared with. `augment`:
    every configuration is moved by a random symmetry of the lattice, and half of them by phi -> -phi.

    "importance": Renyi divergences by importance sampling (`training/importance.py`), which is what flows on the unit cube
    are trained by: no derivative of the integrand, and cuts do no harm. `order` of the divergence: a number, or
    `[[fraction, order], ...]`, straight lines between; 1 is the forward KL divergence, 2 the variance of the weights, more
    looks at their tail. Every `window` steps points are drawn, as many as have each of them used `reuse` times on average;
    of a flow on the unit cube the share `explore` of them by its VEGAS grid alone, so that what the flow has lost it sees
    again: without, an early pool whose weight a few points hold can make it lose a peak for good.

    `stage`: a plan, walked in order (`training/stages.py`). Each stage is a table of these keys, but for `precision`,
    `threads`, `compile` and `keep`; what it does not say is said here (`steps` need not be, where every stage has its own).
    Also `target`, any keys of the target's table.
    """

    steps: int = Field(gt=0)
    optimizer: Literal["adam", "soap"] = "adam"
    batch: int | tuple[tuple[float, int], ...] = 64
    lr: float = Field(2e-3, gt=0)
    warmup: int = Field(100, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(10.0, gt=0)
    estimator: Literal["path", "reparametrised", "log_variance"] = "path"
    objective: Literal["reverse", "forward", "mixed", "importance"] = "reverse"
    alpha: float = Field(0.5, gt=0, lt=1)
    data: str | None = None
    order: float | tuple[tuple[float, float], ...] = ((0.0, 1.0), (0.2, 1.0), (0.3, 2.0), (0.9, 4.0))
    window: int = Field(32, ge=1)
    reuse: float = Field(2.0, gt=0)
    explore: float = Field(0.1, ge=0, lt=1)
    thin: PositiveInt | Literal["auto"] = 1
    test_share: float = Field(0.0, ge=0, lt=1)
    augment: bool = True
    precision: Literal["float32", "float64"] = "float32"
    evaluate_every: int = Field(500, gt=0)
    evaluate_draws: int = Field(16384, ge=1024)
    density_tolerance: float = Field(0.01, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(3, ge=1)
    threads: int = Field(1, ge=1, le=MAX_THREADS)
    compile: bool = False
    stage: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _steps(cls, values: Any) -> Any:
        """`steps` of the last stage where all have their own and [train] has none."""
        tables = values.get("stage") if isinstance(values, dict) else None
        if not tables or "steps" in values or not all(isinstance(table, dict) for table in tables):
            return values
        for number, table in enumerate(tables, start=1):
            if "steps" not in table:
                raise InputError(
                    f"train.stage {number}: 'steps' is missing, here and in [train]; it has no default"
                )
        return {**values, "steps": tables[-1]["steps"]}

    def model_post_init(self, context) -> None:
        schedule = self.batches
        starts = [start for start, _ in schedule]
        if (
            not starts
            or starts[0] != 0
            or starts != sorted(starts)
            or starts[-1] >= 1
            or min(b for _, b in schedule) < 1
        ):
            raise InputError(
                f"train.batch = {self.batch}: expected a positive number or [[0.0, batch], [fraction, batch], ...] "
                "with fractions rising from 0 and below 1"
            )
        orders = self.orders
        fractions = [fraction for fraction, _ in orders]
        rising = orders and fractions[0] == 0 and fractions == sorted(fractions) and fractions[-1] <= 1
        if not rising or min(o for _, o in orders) < 1:
            raise InputError(
                f"train.order = {self.order}: expected a number >= 1 or [[0.0, order], [fraction, order], ...] with "
                "fractions rising from 0 to 1 at most and orders >= 1"
            )
        largest = self.window * max(b for _, b in schedule) / self.reuse
        if self.reuse > self.window or largest > LARGEST:
            raise InputError(
                f"train.window = {self.window}, reuse = {self.reuse}: a pool of window * batch / reuse points; expected at "
                f"least a batch (reuse <= window) and at most {LARGEST:,} points, found up to {largest:,.0f}"
            )
        for settings in self.stages():  # raises
            if settings.objective in ("forward", "mixed") and settings.data is None:
                raise InputError(
                    f"train.objective = '{settings.objective}' learns from configurations: say where they are, "
                    "for example train.data = 'ensembles/hmc' (latticeflow sample RUN --sampler hmc --draws N)"
                )

    def stages(self) -> "tuple[TrainSettings, ...]":
        """The settings of each stage, these where there are none. Raises `InputError` naming stage and key."""
        return tuple(self._of_stage(k, table) for k, table in enumerate(self.stage, start=1)) or (self,)

    def _of_stage(self, number: int, table: dict[str, Any]) -> "TrainSettings":
        fixed = sorted(WHOLE & set(table))
        if fixed:
            raise InputError(
                f"train.stage {number}: '{fixed[0]}' is the same for all stages; set train.{fixed[0]}"
            )
        own = {key: getattr(self, key) for key in type(self).model_fields if key != "stage"}
        try:
            return TrainSettings(**own | {key: value for key, value in table.items() if key != "target"})
        except InputError as error:
            raise InputError(f"train.stage {number}: {error}") from None

    @property
    def batches(self) -> tuple[tuple[float, int], ...]:
        return ((0.0, self.batch),) if isinstance(self.batch, int) else self.batch

    @property
    def orders(self) -> tuple[tuple[float, float], ...]:
        return self.order if isinstance(self.order, tuple) else ((0.0, self.order),)

    def order_at(self, step: int) -> float:
        """Order of the divergence at the step counted from 0."""
        fractions, orders = zip(*self.orders)
        return float(np.interp(step / self.steps, fractions, orders))

    def pool_at(self, step: int) -> int:
        """Points to draw at the step counted from 0, for `window` steps."""
        return max(1, math.ceil(self.window * self.batch_at(step) / self.reuse))

    def batch_at(self, step: int) -> int:
        """Batch of the step counted from 0."""
        return next(b for start, b in reversed(self.batches) if step >= start * self.steps)

    def lr_at(self, step: int) -> float:
        """Learning rate of the step counted from 0: linear warm-up, then the decay."""
        return learning_rate(step, self.steps, self.lr, self.warmup, self.decay)


def learning_rate(step: int, steps: int, lr: float, warmup: int, decay: str) -> float:
    """Rate of a step counted from 0: linear warm-up to `lr`, then half a cosine to 0, or constant."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay == "constant":
        return lr
    done = (step - warmup) / max(1, steps - warmup)
    return lr * 0.5 * (1 + math.cos(math.pi * done))
