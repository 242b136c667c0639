"""The training loop: Adam on the reverse KL divergence, evaluated, logged and checkpointed by step count."""

import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..errors import InputError, TrainingDiverged
from ..flows import Flow
from ..random import Purpose, stream
from ..samplers.base import DTYPES
from ..statistics.weights import WeightSummary, summarise_weights
from ..targets import Target
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
) -> WeightSummary | None:
    """Train `flow` in place on `target`; returns the ESS at the end (None if already trained).

    With `weights`, a folder, checkpoints are written there; `resume` goes on from the newest one, if there is one, and
    the result is that of an uninterrupted training, bit for bit, on the same machine and number of threads.
    `report` gets a record after each evaluation: `step`, `loss` (mean of log q - log p over the steps since
    the last), `grad_norm`, `lr`, `batch`, `ess`, `ess_error`, `ess_draws`, `log_z`, `seconds` (of training, evaluation
    excluded). Raises `TrainingDiverged`, naming the last good checkpoint, when loss or gradient is not
    finite or the loss exceeds the first by ten times max(|first|, number of sites); `InputError` when flow
    and target differ in shape.
    """
    if flow.event_shape != target.event_shape:
        raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
    flow.to(DTYPES[settings.precision])
    optimizer = torch.optim.Adam(flow.parameters(), lr=settings.lr)
    estimator = ESTIMATORS[settings.estimator]
    begin, seconds, first, good = 0, 0.0, None, None
    if resume and weights is not None and ckpt.checkpoints(weights):
        good = ckpt.latest(weights)
        ckpt.load_weights(flow, good)
        ckpt.load_optimizer(optimizer, good)
        state = ckpt.load_state(good)
        begin, seconds, first = state["step"], state["seconds"], state["first_loss"]

    losses: list[float] = []
    summary = None
    clock = time.perf_counter()
    for step in range(begin, settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = settings.lr_at(step)
        noise = flow.noise(settings.batch_at(step), stream(seed, Purpose.TRAIN, step))
        surrogate, loss_tensor = estimator(flow, target, noise)
        optimizer.zero_grad()
        surrogate.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(flow.parameters(), settings.clip))
        loss = float(loss_tensor)
        first = loss if first is None else first
        limit = first + 10 * max(abs(first), math.prod(target.event_shape))
        if not (math.isfinite(loss) and math.isfinite(norm)) or loss > limit:
            raise TrainingDiverged(
                f"training diverged at step {step}: loss {loss:.4g} (first {first:.4g}, limit {limit:.4g}), "
                f"gradient norm {norm:.4g}. Last good checkpoint: {good or 'none yet'}. Try a smaller train.lr "
                "or train.clip, or a longer train.warmup"
            )
        optimizer.step()
        losses.append(loss)

        done = step + 1
        last = done == settings.steps
        evaluating = last or done % settings.evaluate_every == 0
        saving = last or done % settings.checkpoint_every == 0
        if evaluating or saving:
            seconds += time.perf_counter() - clock
        if evaluating:
            rng = stream(seed, Purpose.EVALUATE, done)
            summary = evaluate(flow, target, settings.evaluate_draws, rng)
            report(
                {
                    "step": done,
                    "loss": float(np.mean(losses)),
                    "grad_norm": norm,
                    "lr": settings.lr_at(step),
                    "batch": settings.batch_at(step),
                    "ess": summary.ess,
                    "ess_error": summary.ess_error,
                    "ess_draws": summary.n,
                    "log_z": summary.log_z,
                    "seconds": seconds,
                }
            )
            losses = []
        if saving and weights is not None:
            good = ckpt.save_checkpoint(
                weights,
                done,
                flow,
                optimizer,
                {"seed": seed, "seconds": seconds, "first_loss": first},
                settings.keep,
            )
        if evaluating or saving:
            clock = time.perf_counter()
    return summary
