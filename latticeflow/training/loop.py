"""The training loop: Adam on a Kullback-Leibler divergence, evaluated, logged and checkpointed by step count.

On several ranks each computes its part of the global batch (`parallel.py`); rank 0 alone writes. Every rank goes through the
same steps with the same numbers, so that a divergence, a stop or the end come to all at the same step.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import InputError, LatticeflowError, Stopped, TrainingDiverged
from ..flows import Flow
from ..precision import DTYPES
from ..statistics.weights import WeightSummary
from ..targets import Target
from ..threads import threads
from . import checkpoint as ckpt
from .data import Configurations, find_data
from .evaluation import evaluate_all, refine
from .importance import Pool, renyi
from .loss import ESTIMATORS, NEED_MEAN, forward
from .members import of_batch, parameter_groups, require_trainable
from .parallel import ALONE, Group, broadcast, noise, require_equal_weights, sum_gradients
from .settings import TrainSettings
from .soap import Soap
from .stages import Stage, plan

Record = dict[str, float]
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "soap": Soap}
Build = Callable[[Target], Flow]


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
    build: Build | None = None,
) -> WeightSummary | None:
    """Train `flow` in place on `target`; returns the ESS at the end (None if already trained).

    With `weights`, a folder, checkpoints are written there; `resume` goes on from the newest one, if there is
    one, and the result is that of an uninterrupted training, bit for bit, on the same machine and number of ranks.
    `tick` gets the number of steps done after each; `report` gets a record after each evaluation: `step`, `loss`
    (mean over the steps since the last: of log q - log p for the reverse objective), `grad_norm`, `lr`, `batch`, `ess`,
    `ess_error`, `ess_draws`, `log_z`, `seconds` (of training, evaluation excluded), of a plan also `stage`. Of a conditional
    flow `ess` and `log_z` are those at the worst of its probes, and `ess lam=4.5` and so on are there, too.

    A plan (`settings.stage`) is walked in order. `build(target)` makes the flow of a stage on another lattice than `flow`.
    `settings.data` is looked for beside `weights` first. Every stage ends with a checkpoint, and checkpoints say which
    stage they are of.

    Every rank of `group` calls this; what differs between numbers of ranks is rounding. `stop` is asked before every step
    for a reason to stop: as soon as any rank has one, a checkpoint is written and every rank raises `Stopped`, with
    `together` set and its own reason, if it has one.

    A checkpoint of k steps is written during the next step, when the loss of its weights has been seen to be
    sound. Raises, on every rank, `TrainingDiverged`, naming the newest one, when loss or gradient is not finite, the
    loss exceeds the stage's first by ten times max(|first|, number of sites), or an evaluation fails; `NumericalError` when
    the ranks' weights have come to differ. Raises `StoreError` when a checkpoint cannot be written or read, `InputError`
    when flow and target differ in shape, when `weights` holds checkpoints and `resume` is False, when they were made with
    another seed, other settings or other data, and for a bad plan.
    """
    if flow.event_shape != target.event_shape:
        raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
    stages = plan(settings, target)
    for stage in stages:
        require_trainable(flow, stage.settings)
    with threads(settings.threads):
        training = _Training(flow, stages, settings, seed, weights, group, build)
        for stage in stages[training.begin(resume) - 1 :]:
            training.enter(stage)
            while training.done < stage.end:
                training.step(stop)
                tick(training.done)
                if training.own_steps % stage.settings.evaluate_every == 0 or training.done == stage.end:
                    report(training.evaluate())
            if training.summary is not None:
                training.save()
        return training.summary


class _Training:
    """A training in progress: `done` steps of the plan, `losses` since the last evaluation, `good` the newest checkpoint."""

    def __init__(
        self,
        flow: Flow,
        stages: tuple[Stage, ...],
        whole: TrainSettings,
        seed: int,
        weights: Path | None,
        group: Group,
        build: Build | None,
    ):
        self.last_flow = flow.to(DTYPES[whole.precision])
        self.stages, self.whole, self.seed, self.weights = stages, whole, seed, weights
        self.group, self.build = group, build
        self.done, self.seconds = 0, 0.0
        self.norm = math.nan
        self.good: Path | None = None
        self.summary: WeightSummary | None = None
        self._start(stages[0], self._flow_of(stages[0]))

    def _flow_of(self, stage: Stage) -> Flow:
        """A flow for the stage: the one that is to be trained, as soon as no other lattice follows."""
        shape = self.last_flow.event_shape
        if all(later.target.event_shape == shape for later in self.stages[stage.number - 1 :]):
            return self.last_flow
        if self.build is None:
            raise InputError(f"{stage} is not on the flow's lattice {shape}: give train() build=")
        device = next(self.last_flow.parameters()).device
        return self.build(stage.target).to(device=device, dtype=DTYPES[self.whole.precision])

    def _start(self, stage: Stage, flow: Flow) -> None:
        """Be at the first step of a stage, with its own optimiser."""
        self.stage, self.settings, self.target, self.flow = stage, stage.settings, stage.target, flow
        self.optimizer = OPTIMIZERS[self.settings.optimizer](parameter_groups(flow), lr=self.settings.lr)
        if self.whole.compile:
            flow.compile_parts()
        self.first: float | None = None
        self.losses: list[float] = []
        self.data: Configurations | None = None
        self.pool: Pool | None = None

    @property
    def own_steps(self) -> int:
        """Steps done of this stage, which its schedules count."""
        return self.done - self.stage.start

    def begin(self, resume: bool) -> int:
        """Go on from the checkpoint that rank 0 finds newest, where there is one; returns the number of its stage."""
        found = ckpt.checkpoints(self.weights) if self.weights is not None and self.group.root else []
        newest = torch.tensor([ckpt.step_of(found[-1]) if found else -1], dtype=torch.float64)
        broadcast([newest], self.group)
        recorded = None
        if self.weights is not None and newest >= 0:
            if not resume:
                raise InputError(
                    f"{self.weights} holds checkpoints of an earlier training; go on with resume=True, or choose "
                    "another folder"
                )
            self.good = ckpt.place(self.weights, int(newest))
            state = ckpt.load_state(self.good, seed=self.seed, settings=self.whole)
            stage = self.stages[state.get("stage", {}).get("number", 1) - 1]
            self._start(stage, self._flow_of(stage))
            ckpt.load_weights(self.flow, self.good)
            ckpt.load_optimizer(self.optimizer, self.good)
            self.done, self.seconds = state["step"], state["seconds"]
            self.first, self.losses = state["first_loss"], state["losses"]
            recorded = state.get("data")
            self.pool = self._stored_pool()
        elif self.group.root:
            self.flow.start_on(self.target, self.seed)
        broadcast(list(self.flow.state_dict().values()), self.group)
        if self.done < self.stage.end:
            self._find_data(recorded)
        return self.stage.number

    def enter(self, stage: Stage) -> None:
        """Go over to a stage that comes after the present one: the weights travel, the optimiser starts anew."""
        if stage is self.stage:
            return
        flow = self.flow
        if stage.target.event_shape != flow.event_shape:
            flow = self._flow_of(stage)
            flow.adopt(self.flow)
        self._start(stage, flow)
        self._find_data(None)

    def _find_data(self, recorded: str | None) -> None:
        """Open the stage's ensemble; `recorded`: the checksum of the data that the checkpoint was trained on."""
        if self.settings.objective in ("forward", "mixed"):
            self.data = find_data(self.settings, self.target, self.seed, self.weights, recorded, self.group)

    def save(self) -> None:
        """Have rank 0 write a checkpoint of `done` steps, where there is a folder for it."""
        if self.weights is None:
            return
        if self.group.root:
            state: dict[str, Any] = {"seconds": self.seconds, "first_loss": self.first, "losses": self.losses}
            if self.whole.stage:
                state["stage"] = self.stage.record()
            if self.data is not None:
                state["data"] = self.data.checksum
            ckpt.save_checkpoint(
                self.weights, self.done, self.flow, self.optimizer, self.seed, self.whole, state, self._left()
            )
        self.good = ckpt.place(self.weights, self.done)

    def _left(self) -> dict[str, torch.Tensor] | None:
        """The pool, where steps of its window are still to come."""
        if self.pool is None or self.own_steps % self.settings.window == 0:
            return None
        return self.pool.tensors()

    def _stored_pool(self) -> Pool | None:
        """What `_left` stored with the checkpoint that training goes on from; every rank reads it."""
        tensors = ckpt.load_pool(self.good) if self.good else None
        return Pool.of(tensors, next(self.flow.parameters())) if tensors else None

    def step(self, stop: Callable[[], str | None]) -> None:
        """One optimiser step; first, if one is due or a stop is asked for, the checkpoint of the weights it starts from."""
        settings = self.settings
        clock = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr_at(self.own_steps)
        reason = stop()
        loss, stopping = self._gradient(reason is not None)
        self.norm = float(torch.nn.utils.clip_grad_norm_(self.flow.parameters(), settings.clip))
        self._check(loss)
        self.seconds += time.perf_counter() - clock

        due = self.own_steps > 0 and self.own_steps % settings.checkpoint_every == 0
        if self.done and (stopping or due) and self._unsaved():
            self.save()
        if stopping:
            raise Stopped("; ".join(filter(None, (reason, self._progress()))), together=True)
        clock = time.perf_counter()
        self._shrink(settings.lr_at(self.own_steps) * settings.weight_decay)
        self.optimizer.step()
        self.losses.append(loss)
        self.done += 1
        self.seconds += time.perf_counter() - clock

    @torch.no_grad()
    def _shrink(self, share: float) -> None:
        """Every parameter that is trained by this share of itself: decoupled weight decay."""
        if share:
            for p in self.flow.parameters():
                if p.requires_grad:
                    p.mul_(1 - min(share, 1.0))

    def _gradient(self, asked: bool) -> tuple[float, bool]:
        """Gradient of the whole batch, into `.grad`; its loss, and whether any rank was asked to stop."""
        self.optimizer.zero_grad()
        batch = self.settings.batch_at(self.own_steps)
        part = self.group.share(batch)
        if self.settings.objective == "importance":
            own = self._importance(batch, part)
        else:
            reverse = {"reverse": 1.0, "forward": 0.0, "mixed": 1 - self.settings.alpha}[
                self.settings.objective
            ]
            own = (reverse and self._reverse(reverse, batch, part)) + self._forward(1 - reverse, batch, part)
        loss, asking = sum_gradients(self.flow.parameters(), [own, float(asked)], self.group)
        return loss, asking > 0

    def _reverse(self, weight: float, batch: int, part: range) -> float:
        """This rank's part of the reverse divergence: its gradient is added to `.grad`, its value returned."""
        estimator, found = self.settings.estimator, 0.0
        white = noise(self.flow, self.seed, self.done, batch, part) if part else torch.empty(0)
        for flow, target, n, rows in of_batch(self.flow, self.target, self.done, batch, part):
            if rows.start == rows.stop:
                if estimator in NEED_MEAN:
                    self.group.sum(torch.zeros((), dtype=torch.float64))
                continue
            share = weight * (n / batch)
            surrogate, value = ESTIMATORS[estimator](flow, target, white[rows], n, self.group.sum)
            (surrogate * share).backward()
            found += float(value) * share
        return found

    def _forward(self, weight: float, batch: int, part: range) -> float:
        """The same of the forward divergence, on stored configurations."""
        if not part or self.data is None:
            return 0.0
        x = self.data.draw(self.done, batch, part).to(next(self.flow.parameters()))
        surrogate, value = forward(self.flow, self.target, x, batch)
        (surrogate * weight).backward()
        return float(value) * weight

    def _importance(self, batch: int, part: range) -> float:
        """This rank's part of a Renyi divergence over the pool, which is drawn anew where its window is over."""
        settings = self.settings
        if self.pool is None or self.own_steps % settings.window == 0:
            self.pool = Pool.draw(
                self.flow,
                self.target,
                settings.pool_at(self.own_steps),
                seed=self.seed,
                step=self.done,
                group=self.group,
                explore=settings.explore,
            )
        rows = self.pool.rows(self.done, batch, part, self.seed)
        surrogate, value = renyi(self.flow, rows, settings.order_at(self.own_steps), batch, self.group.sum)
        if part:
            surrogate.backward()
        return float(value)

    def _progress(self) -> str:
        place = f" in {self.good}" if self.good and not self._unsaved() else ""
        return f"{self.done} of {self.stages[-1].end} training steps are done{place}"

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
        keys: dict[str, Any] = {"seed": self.seed, "step": self.done, "group": self.group}
        try:
            error = refine(self.flow, settings.density_tolerance, **keys)
            found = evaluate_all(self.flow, self.target, settings.evaluate_draws, **keys)
        except LatticeflowError as failure:
            raise self._diverged(f"its evaluation failed ({failure})") from None
        self.summary = next(iter(found.values()))
        record = {
            "step": self.done,
            "loss": float(np.mean(self.losses)),
            "grad_norm": self.norm,
            "lr": settings.lr_at(self.own_steps - 1),
            "batch": settings.batch_at(self.own_steps - 1),
            "ess": self.summary.ess,
            "ess_error": self.summary.ess_error,
            "ess_draws": self.summary.n,
            "log_z": self.summary.log_z,
            "seconds": self.seconds,
        }
        record |= {f"ess {name}": one.ess for name, one in sorted(found.items()) if name}
        if self.flow.approximate:
            record["density_error"] = error
        if self.whole.stage:
            record["stage"] = self.stage.number
        self.losses = []
        return record
