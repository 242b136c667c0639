"""The loop that trains a model on stored configurations: Adam, player by player, logged and checkpointed by step count.

Step t takes its batch from the streams of `data.py` and all its other randomness from the stream (seed, TRAIN, t), so that
a resumed training is the uninterrupted one, bit for bit, on the same machine. It runs on one rank: the models are small.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..baselines import Model
from ..errors import InputError, Stopped, TrainingDiverged
from ..precision import DTYPES
from ..random import Purpose, stream
from ..store import Ensemble
from ..targets import Target
from ..threads import threads
from . import checkpoint as ckpt
from .data import MEMORY, Configurations, data_path, find_data
from .fit_settings import FitSettings
from .members import name_of
from .parallel import ALONE

Record = dict[str, Any]


def fit(
    model: Model,
    target: Target,
    settings: FitSettings,
    *,
    seed: int,
    weights: Path | None = None,
    resume: bool = False,
    report: Callable[[Record], None] = lambda record: None,
    tick: Callable[[int], None] = lambda done: None,
    stop: Callable[[], str | None] = lambda: None,
) -> Record | None:
    """Train `model` in place on the ensemble `settings.data` of `target`; returns the last record (None if it was trained).

    With `weights`, a folder, checkpoints are written there, as `train` does; `resume` goes on from the newest one. `report`
    gets a record after each evaluation: `step`, `loss PLAYER` (mean over that player's steps since the last), `grad_norm`,
    `lr`, `seconds` (of training), `configurations` trained on, `thin`, and what the model reports of held-out ones
    (`Model.report`; of the training ones where none are held out, under `trained_on: 1`). `stop` is asked before every step
    for a reason to stop: then a checkpoint is written and `Stopped` raised, with `together` set.

    Raises `TrainingDiverged` naming the newest checkpoint when a loss or a gradient is not finite; `StoreError` when a
    checkpoint cannot be written or read; `InputError` when model and target differ in shape, when `weights` holds
    checkpoints and `resume` is False, when they were made with another seed, other settings or other data, for steps that
    the model does not take or needs, rates of unknown players, and what `Configurations` raises.
    """
    if model.event_shape != target.event_shape:
        raise InputError(f"model on {model.event_shape}, target on {target.event_shape}: shapes must agree")
    require_fitting(model, settings)
    with threads(settings.threads):
        fitting = _Fit(model, target, settings, seed, weights)
        if fitting.begin(resume):
            return None
        while fitting.done < settings.steps:
            fitting.step(stop)
            tick(fitting.done)
            if fitting.done % settings.evaluate_every == 0 and fitting.done < settings.steps:
                report(fitting.evaluate())
        model.finish(fitting.walk(settings.steps))
        record = fitting.evaluate()
        report(record)
        fitting.save(finished=True)
        return record


def require_fitting(model: Model, settings: FitSettings) -> None:
    """Raise `InputError` for steps that the model does not take or needs, and for rates of unknown players."""
    players = model.players()
    if players and not settings.steps:
        raise InputError(f"train.steps is missing: {type(model).__name__} is trained by steps")
    if settings.steps and not players:
        raise InputError(
            f"train.steps = {settings.steps}: {type(model).__name__} is computed from the data and takes none; leave it out"
        )
    if settings.others and not model.couplings:
        raise InputError("train.others: ensembles at other couplings are for a conditional model")
    count = len(settings.ensembles)
    if model.couplings and count < model.terms_needed:
        raise InputError(
            f"train.others: {count} ensembles with train.data, for {model.terms_needed} polynomials of "
            f"{', '.join(model.couplings)}; expected as many or more, or a lower model.degree"
        )
    unknown = sorted(set(settings.rates) - set(players))
    if unknown:
        raise InputError(f"train.rates.{unknown[0]}: no such player; known: {', '.join(sorted(players))}")


class _Walk:
    """All training configurations in pieces, as often as asked for, on the model's device."""

    def __init__(self, sources: list[Configurations], number: int, device: torch.device):
        self.sources, self.number, self.device = sources, number, device

    def __iter__(self) -> Iterator[Tensor]:
        return (x.to(self.device) for data in self.sources for x in data.walk(self.number))


class _Fit:
    """A training in progress: `done` steps, `losses` of each player since the last evaluation, `good` newest checkpoint.

    `sources`: the configurations of each ensemble, of which there are several for a family; `held_out`: theirs.
    """

    def __init__(self, model: Model, target: Target, settings: FitSettings, seed: int, weights: Path | None):
        self.model = model.to(DTYPES[settings.precision])
        self.target, self.settings, self.seed, self.weights = target, settings, seed, weights
        groups = [{"params": own, "name": name} for name, own in model.players().items()]
        self.optimizer = torch.optim.Adam(groups, lr=settings.lr, betas=settings.betas) if groups else None
        self.losses: dict[str, list[float]] = {name: [] for name in model.players()}
        self.done, self.seconds, self.norm = 0, 0.0, 0.0
        self.good: Path | None = None
        self.whole: dict[int, Tensor] = {}

    @property
    def like(self) -> Tensor:
        """A tensor of the model's precision on its device."""
        return self.model.mean

    def walk(self, number: int) -> _Walk:
        return _Walk(self.sources, number, self.like.device)

    def begin(self, resume: bool) -> bool:
        """Go on from the newest checkpoint, where there is one; returns whether nothing is left to do."""
        found = ckpt.checkpoints(self.weights) if self.weights is not None else []
        recorded: list[str] | None = None
        if found:
            if not resume:
                raise InputError(
                    f"{self.weights} holds checkpoints of an earlier training; go on with resume=True, or choose "
                    "another folder"
                )
            self.good = found[-1]
            state = ckpt.load_state(self.good, self.seed, self.settings)
            ckpt.load_weights(self.model, self.good)
            if state["finished"]:
                return True
            if self.optimizer is not None:
                ckpt.load_optimizer(self.optimizer, self.good)
            self.done, self.seconds = state["step"], state["seconds"]
            self.losses, recorded = state["losses"], state["data"]
        self.sources = self._sources(recorded)
        held = self.settings.test_share > 0
        self.held_out = [data.held_out() for data in self.sources] if held else self.sources
        if not found:
            self.model.begin(self.walk(0))
        return False

    def _sources(self, recorded: list[str] | None) -> list[Configurations]:
        """The ensembles to learn from: one of the target, or for a family those of the target at their couplings."""
        found = []
        for i, path in enumerate(self.settings.ensembles):
            target = self.target
            if self.model.couplings:
                table = Ensemble.open(data_path(path, self.weights)).target
                target = target.at(**{name: table[name] for name in self.model.couplings if name in table})
                self.model.at(target)  # raises for couplings out of range
            checksum = recorded[i] if recorded else None
            found.append(
                find_data(self.settings, target, self.seed, self.weights, checksum, ALONE, data=path)
            )
        self.model.require_points([data.target for data in found])
        return found

    def save(self, finished: bool = False) -> None:
        """A checkpoint of `done` steps, where there is a folder for it."""
        if self.weights is not None:
            state = {
                "seconds": self.seconds,
                "losses": self.losses,
                "data": [data.checksum for data in self.sources],
            }
            state |= {"finished": finished}
            self.good = ckpt.save_checkpoint(
                self.weights, self.done, self.model, self.optimizer, self.seed, self.settings, state
            )

    def _source(self) -> int:
        """The ensemble of this step: one at random, by the stream (seed, DATA, 6, step), where there are several."""
        n = len(self.sources)
        return int(stream(self.seed, Purpose.DATA, 6, self.done).integers(n)) if n > 1 else 0

    def _batch(self, i: int) -> Tensor:
        batch = self.settings.batch
        if batch != "all":
            return self.sources[i].draw(self.done, batch, range(batch)).to(self.like)
        if self.settings.augment:
            return self._all(self.sources[i], 1 + self.done)
        if i not in self.whole:
            self.whole[i] = self._all(self.sources[i], 0)
        return self.whole[i]

    def _all(self, data: Configurations, number: int) -> Tensor:
        size = len(data) * math.prod(self.target.event_shape) * self.like.element_size()
        if size > MEMORY:
            raise InputError(
                f"train.batch = 'all': {len(data):,} configurations take {size / 2**20:.0f} MiB, at most "
                f"{MEMORY >> 20} MiB are held; give a number"
            )
        return torch.cat([x.to(self.like) for x in data.walk(number)])

    def step(self, stop: Callable[[], str | None]) -> None:
        """One optimiser step; first, if one is due or a stop is asked for, the checkpoint of the weights it starts from."""
        clock, model = time.perf_counter(), self.model
        player, reason = model.turn(self.done), stop()
        own = model.players()[player]
        i = self._source()
        rng = stream(self.seed, Purpose.TRAIN, self.done)
        loss = model.loss_at(self.sources[i].target, player, self._batch(i), rng)
        for p, gradient in zip(own, torch.autograd.grad(loss, own, allow_unused=True)):
            p.grad = gradient
        self.norm = float(torch.nn.utils.clip_grad_norm_(own, self.settings.clip))
        self._check(player, float(loss.detach()))
        self.seconds += time.perf_counter() - clock

        due = self.done > 0 and self.done % self.settings.checkpoint_every == 0
        if self.done and (due or reason) and (self.good is None or ckpt.step_of(self.good) != self.done):
            self.save()
        if reason:
            place = f" in {self.good}" if self.good else ""
            raise Stopped(
                f"{reason}; {self.done} of {self.settings.steps} training steps are done{place}",
                together=True,
            )
        clock = time.perf_counter()
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.lr_at(self.done) * self.settings.rates.get(group["name"], 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()  # of all players: the others' gradients must not move them at their turn
        model.moved(player)
        self.losses[player].append(float(loss.detach()))
        self.done += 1
        self.seconds += time.perf_counter() - clock

    @property
    def _optimizer(self) -> torch.optim.Optimizer:
        if self.optimizer is None:
            raise InputError("a model without players takes no steps")
        return self.optimizer

    def _check(self, player: str, loss: float) -> None:
        if not (math.isfinite(loss) and math.isfinite(self.norm)):
            raise TrainingDiverged(
                f"training diverged at step {self.done}: loss {loss:.4g} of {player}, gradient norm {self.norm:.4g}. Last "
                f"good checkpoint: {self.good or 'none yet'}. Try a smaller train.lr or train.clip, or a longer train.warmup"
            )

    def evaluate(self) -> Record:
        """Means of the losses since the last evaluation, and what the model reports of held-out configurations."""
        record: Record = {
            "step": self.done,
            **{f"loss {name}": sum(values) / len(values) for name, values in self.losses.items() if values},
            "grad_norm": self.norm,
            "lr": self.settings.lr_at(max(0, self.done - 1)),
            "configurations": sum(map(len, self.sources)),
            "thin": max(data.thin for data in self.sources),
            "seconds": self.seconds,
        }
        for data in self.held_out:
            n, target = self.settings.evaluate_draws, data.target
            x = data.draw(self.done, n, range(n)).to(self.like)
            found = self.model.at(target).report(x, stream(self.seed, Purpose.EVALUATE, self.done))
            where = name_of({name: getattr(target, name) for name in self.model.couplings})
            record |= {f"{key} {where}".rstrip(): value for key, value in found.items()}
        if self.held_out is self.sources:
            record["trained_on"] = 1
        self.losses = {name: [] for name in self.losses}
        return record
