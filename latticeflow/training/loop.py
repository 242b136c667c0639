"""The training loop: Adam on the reverse KL divergence, evaluated, logged and checkpointed by step count."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, LatticeflowError, TrainingDiverged
from ..flows import Flow
from ..random import Purpose, stream
from ..samplers.base import DTYPES
from ..statistics.weights import WeightSummary, summarise_weights
from ..targets import Target
from ..threads import threads
from . import checkpoint as ckpt
from .loss import ESTIMATORS
from .settings import TrainSettings

EVALUATION_BATCH = 1024
Record = dict[str, float]


@torch.no_grad()
def evaluate(flow: Flow, target: Target, draws: int, rng: np.random.Generator) -> WeightSummary:
    """ESS, log Z and their errors from `draws` fresh draws of the flow, in batches of 1,024."""
    log_w = []
    for start in range(0, draws, EVALUATION_BATCH):
        x, log_q = flow.sample(min(EVALUATION_BATCH, draws - start), rng)
        log_w.append((target.log_prob(x.double()) - log_q).cpu().numpy())
    return summarise_weights(np.concatenate(log_w))


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
) -> WeightSummary | None:
    """Train `flow` in place on `target`; returns the ESS at the end (None if already trained).

    With `weights`, a folder, checkpoints are written there; `resume` goes on from the newest one, if there is
    one, and the result is that of an uninterrupted training, bit for bit, on the same machine.
    `tick` gets the number of steps done after each; `report` gets a record after each evaluation: `step`, `loss`
    (mean of log q - log p over the steps since the last), `grad_norm`, `lr`, `batch`, `ess`, `ess_error`,
    `ess_draws`, `log_z`, `seconds` (of training, evaluation excluded).

    A checkpoint of k steps is written during the next step, when the loss of its weights has been seen to be
    sound. Raises `TrainingDiverged`, naming the newest one, when loss or gradient is not finite, the loss exceeds
    the first by ten times max(|first|, number of sites), or an evaluation fails. Raises `InputError` when
    flow and target differ in shape, when `weights` holds checkpoints and `resume` is False, or when they were made
    with another seed or other settings.
    """
    if flow.event_shape != target.event_shape:
        raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
    with threads(settings.threads):
        training = _Training(flow, target, settings, seed, weights)
        training.begin(resume)
        for _ in range(training.done, settings.steps):
            training.step()
            tick(training.done)
            if training.done % settings.evaluate_every == 0 or training.done == settings.steps:
                report(training.evaluate())
        if training.summary is not None:
            training.save()
        return training.summary


class _Training:
    """A training in progress: `done` steps, `losses` since the last evaluation, `good` the newest checkpoint."""

    def __init__(self, flow: Flow, target: Target, settings: TrainSettings, seed: int, weights: Path | None):
        self.flow = flow.to(DTYPES[settings.precision])
        self.target, self.settings, self.seed, self.weights = target, settings, seed, weights
        self.optimizer = torch.optim.Adam(flow.parameters(), lr=settings.lr)
        self.done, self.seconds = 0, 0.0
        self.first: float | None = None
        self.losses: list[float] = []
        self.norm = math.nan
        self.good: Path | None = None
        self.summary: WeightSummary | None = None

    def begin(self, resume: bool) -> None:
        """Go on from the newest checkpoint, where there is one."""
        found = ckpt.checkpoints(self.weights) if self.weights is not None else []
        if not found:
            return
        if not resume:
            raise InputError(
                f"{self.weights} holds checkpoints of an earlier training; go on with resume=True, or choose "
                "another folder"
            )
        self.good = found[-1]
        state = ckpt.load_state(self.good, seed=self.seed, settings=self.settings)
        ckpt.load_weights(self.flow, self.good)
        ckpt.load_optimizer(self.optimizer, self.good)
        self.done, self.seconds = state["step"], state["seconds"]
        self.first, self.losses = state["first_loss"], state["losses"]

    def save(self) -> None:
        """Write a checkpoint of `done` steps, where there is a folder for it."""
        if self.weights is not None:
            state = {"seconds": self.seconds, "first_loss": self.first, "losses": self.losses}
            self.good = ckpt.save_checkpoint(
                self.weights, self.done, self.flow, self.optimizer, self.seed, self.settings, state
            )

    def step(self) -> None:
        """One optimiser step; first, if one is due, the checkpoint of the weights it starts from."""
        settings = self.settings
        clock = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.done)
        noise = self.flow.noise(settings.batch_at(self.done), stream(self.seed, Purpose.TRAIN, self.done))
        surrogate, loss = ESTIMATORS[settings.estimator](self.flow, self.target, noise)
        self.optimizer.zero_grad()
        surrogate.backward()
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.flow.parameters(), settings.clip))
        self._check(float(loss))
        self.seconds += time.perf_counter() - clock

        if self.done and self.done % settings.checkpoint_every == 0 and self._unsaved():
            self.save()
        clock = time.perf_counter()
        self.optimizer.step()
        self.losses.append(float(loss))
        self.done += 1
        self.seconds += time.perf_counter() - clock

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
        rng = stream(self.seed, Purpose.EVALUATE, self.done)
        try:
            self.summary = evaluate(self.flow, self.target, settings.evaluate_draws, rng)
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
