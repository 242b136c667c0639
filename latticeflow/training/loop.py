"""The training loop: Adam on the reverse KL divergence, evaluated, logged and checkpointed by step count.

On several ranks each computes its part of the global batch (`parallel.py`); rank 0 alone writes. Every rank goes through the
same steps with the same numbers, so that a divergence, a stop or the end come to all at the same step.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, LatticeflowError, Stopped, TrainingDiverged
from ..flows import Flow
from ..samplers.base import DTYPES
from ..statistics.weights import WeightSummary
from ..targets import Target
from ..threads import threads
from . import checkpoint as ckpt
from .evaluation import evaluate
from .loss import ESTIMATORS
from .parallel import ALONE, Group, broadcast, noise, require_equal_weights, sum_gradients
from .settings import TrainSettings

Record = dict[str, float]


def train(
    flow: Flow,
    target: Target,
    settings: TrainSettings,
    *,
    seed: int,
    weights: Path | None = None,
    resume: bool = False,
    report: Callable[[Record], None] = lambda record: None,
    tick: Callable[[int], None] = lambda done: None,
    stop: Callable[[], str | None] = lambda: None,
    group: Group = ALONE,
) -> WeightSummary | None:
    """Train `flow` in place on `target`; returns the ESS at the end (None if already trained).

    With `weights`, a folder, checkpoints are written there; `resume` goes on from the newest one, if there is
    one, and the result is that of an uninterrupted training, bit for bit, on the same machine and number of ranks.
    `tick` gets the number of steps done after each; `report` gets a record after each evaluation: `step`, `loss`
    (mean of log q - log p over the steps since the last), `grad_norm`, `lr`, `batch`, `ess`, `ess_error`,
    `ess_draws`, `log_z`, `seconds` (of training, evaluation excluded).

    Every rank of `group` calls this; what differs between numbers of ranks is rounding. `stop` is asked before every step
    for a reason to stop: as soon as any rank has one, a checkpoint is written and every rank raises `Stopped`, with
    `together` set and its own reason, if it has one.

    A checkpoint of k steps is written during the next step, when the loss of its weights has been seen to be
    sound. Raises, on every rank, `TrainingDiverged`, naming the newest one, when loss or gradient is not finite, the
    loss exceeds the first by ten times max(|first|, number of sites), or an evaluation fails; `NumericalError` when the
    ranks' weights have come to differ. Raises `StoreError` when a checkpoint cannot be written or read, `InputError` when
    flow and target differ in shape, when `weights` holds checkpoints and `resume` is False, or when they were made
    with another seed or other settings.
    """
    if flow.event_shape != target.event_shape:
        raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
    with threads(settings.threads):
        training = _Training(flow, target, settings, seed, weights, group)
        training.begin(resume)
        for _ in range(training.done, settings.steps):
            training.step(stop)
            tick(training.done)
            if training.done % settings.evaluate_every == 0 or training.done == settings.steps:
                report(training.evaluate())
        if training.summary is not None:
            training.save()
        return training.summary


class _Training:
    """A training in progress: `done` steps, `losses` since the last evaluation, `good` the newest checkpoint."""

    def __init__(
        self,
        flow: Flow,
        target: Target,
        settings: TrainSettings,
        seed: int,
        weights: Path | None,
        group: Group,
    ):
        self.flow = flow.to(DTYPES[settings.precision])
        self.target, self.settings, self.seed, self.weights = target, settings, seed, weights
        self.group = group
        self.optimizer = torch.optim.Adam(flow.parameters(), lr=settings.lr)
        self.done, self.seconds = 0, 0.0
        self.first: float | None = None
        self.losses: list[float] = []
        self.norm = math.nan
        self.good: Path | None = None
        self.summary: WeightSummary | None = None

    def begin(self, resume: bool) -> None:
        """Go on from the checkpoint that rank 0 finds newest, where there is one."""
        found = ckpt.checkpoints(self.weights) if self.weights is not None and self.group.root else []
        newest = torch.tensor([ckpt.step_of(found[-1]) if found else -1], dtype=torch.float64)
        broadcast([newest], self.group)
        if self.weights is not None and newest >= 0:
            if not resume:
                raise InputError(
                    f"{self.weights} holds checkpoints of an earlier training; go on with resume=True, or choose "
                    "another folder"
                )
            self.good = ckpt.place(self.weights, int(newest))
            state = ckpt.load_state(self.good, seed=self.seed, settings=self.settings)
            ckpt.load_weights(self.flow, self.good)
            ckpt.load_optimizer(self.optimizer, self.good)
            self.done, self.seconds = state["step"], state["seconds"]
            self.first, self.losses = state["first_loss"], state["losses"]
        broadcast(list(self.flow.state_dict().values()), self.group)

    def save(self) -> None:
        """Have rank 0 write a checkpoint of `done` steps, where there is a folder for it."""
        if self.weights is None:
            return
        if self.group.root:
            state = {"seconds": self.seconds, "first_loss": self.first, "losses": self.losses}
            ckpt.save_checkpoint(
                self.weights, self.done, self.flow, self.optimizer, self.seed, self.settings, state
            )
        self.good = ckpt.place(self.weights, self.done)

    def step(self, stop: Callable[[], str | None]) -> None:
        """One optimiser step; first, if one is due or a stop is asked for, the checkpoint of the weights it starts from."""
        settings = self.settings
        clock = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.done)
        reason = stop()
        loss, stopping = self._gradient(reason is not None)
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.flow.parameters(), settings.clip))
        self._check(loss)
        self.seconds += time.perf_counter() - clock

        if self.done and (stopping or self.done % settings.checkpoint_every == 0) and self._unsaved():
            self.save()
        if stopping:
            raise Stopped("; ".join(filter(None, (reason, self._progress()))), together=True)
        clock = time.perf_counter()
        self.optimizer.step()
        self.losses.append(loss)
        self.done += 1
        self.seconds += time.perf_counter() - clock

    def _gradient(self, asked: bool) -> tuple[float, bool]:
        """Gradient of the whole batch, into `.grad`; its loss, and whether any rank was asked to stop."""
        batch = self.settings.batch_at(self.done)
        part = self.group.share(batch)
        self.optimizer.zero_grad()
        own = 0.0
        if part:
            white = noise(self.flow, self.seed, self.done, batch, part)
            surrogate, value = ESTIMATORS[self.settings.estimator](self.flow, self.target, white, batch)
            surrogate.backward()
            own = float(value)
        loss, asking = sum_gradients(self.flow.parameters(), [own, float(asked)], self.group)
        return loss, asking > 0

    def _progress(self) -> str:
        place = f" in {self.good}" if self.good and not self._unsaved() else ""
        return f"{self.done} of {self.settings.steps} training steps are done{place}"

    def _unsaved(self) -> bool:
        return self.good is None or ckpt.step_of(self.good) != self.done

    def _check(self, loss: float) -> None:
        self.first = loss if self.first is None else self.first
        limit = self.first + 10 * max(abs(self.first), math.prod(self.target.event_shape))
        if not (math.isfinite(loss) and math.isfinite(self.norm)) or loss > limit:
            raise self._diverged(
                f"loss {loss:.4g} (first {self.first:.4g}, limit {limit:.4g}), gradient norm {self.norm:.4g}"
            )

    def _diverged(self, what: str) -> TrainingDiverged:
        return TrainingDiverged(
            f"training diverged at step {self.done}: {what}. Last good checkpoint: {self.good or 'none yet'}. "
            "Try a smaller train.lr or train.clip, or a longer train.warmup"
        )

    def evaluate(self) -> Record:
        """ESS of the present weights, as a record for the log."""
        settings = self.settings
        require_equal_weights(self.flow, self.done, self.group)
        try:
            self.summary = evaluate(
                self.flow,
                self.target,
                settings.evaluate_draws,
                seed=self.seed,
                step=self.done,
                group=self.group,
            )
        except LatticeflowError as error:
            raise self._diverged(f"its evaluation failed ({error})") from None
        record = {
            "step": self.done,
            "loss": float(np.mean(self.losses)),
            "grad_norm": self.norm,
            "lr": settings.lr_at(self.done - 1),
            "batch": settings.batch_at(self.done - 1),
            "ess": self.summary.ess,
            "ess_error": self.summary.ess_error,
            "ess_draws": self.summary.n,
            "log_z": self.summary.log_z,
            "seconds": self.seconds,
        }
        self.losses = []
        return record
