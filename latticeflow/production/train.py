"""`latticeflow train`: a deck to a run folder with trained weights, on any number of ranks."""

import os
import shlex
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Deck
from ..console import console
from ..errors import InputError, LatticeflowError, NumericalError, Stopped, TrainingDiverged
from ..files import write_text
from ..run import Run
from ..statistics import bracket
from ..statistics.weights import WeightSummary
from ..training import FitSettings, TrainSettings, fit, log, plan, train
from ..training.checkpoint import build_flow, build_model, checkpoints
from ..training.fit import Record as FitRecord
from ..training.fit import require_fitting
from ..training.loop import Record
from ..training.members import require_trainable
from ..training.parallel import Group
from .device import bind_device
from .group import process_group, training_ranks
from .lock import run_lock
from .ranks import Ranks
from .stop import StopRequests, duration, leave_together, stop_requests

SAID_BY_ROOT = 5  # seconds that other ranks wait for rank 0 to say what went wrong on all of them


def line(record: Record, steps: int) -> str:
    """One evaluation, for people; of a conditional flow also the ESS at each of its probes."""
    stage = f"stage {record['stage']}  " if "stage" in record else ""
    ess = bracket(record["ess"], record["ess_error"])
    return (
        f"{stage}step {record['step']}/{steps}  loss {record['loss']:.4f}  ESS {ess} "
        f"at N = {record['ess_draws']:,}  log Z {record['log_z']:.4f}  {record['seconds']:.1f} s"
    ) + "".join(f"  {key[4:]} {value:.3f}" for key, value in record.items() if key.startswith("ess "))


def train_run(
    deck_or_run: Path | str,
    *,
    overrides: list[str] | tuple[str, ...] = (),
    folder: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
    time_limit: str | float | None = None,
    since: float | None = None,
) -> Run:
    """Train the deck's flow, or its model on stored configurations, and return its run.

    A new training makes the run folder (default `runs/NAME`) and refuses one that holds weights. With
    `resume`, `deck_or_run` is the run folder, or the deck: an existing run goes on from its last checkpoint, and
    where there is none yet, one begins, so that a batch script can repeat one line. A run made with
    another deck is refused, naming the key. `time_limit`: seconds, or text as of `duration`, counted from `since` on the
    clock of `time.monotonic`; default: from this call.

    Under mpirun or torchrun every rank calls this, started by `python -m latticeflow`, and computes its part of each
    batch; rank 0 writes. The number of ranks changes the result by rounding only. A model is trained by one rank alone.
    Raises `InputError` for a deck without [flow] or [model], or [train], for a model on several ranks, and for ranks on
    different kinds of device; `Stopped` (status 75) where it was asked to stop, see `production.stop`, with a checkpoint
    of all steps done.
    """
    ranks = training_ranks(os.environ)
    since = time.monotonic() if since is None else since
    where = bind_device(device, ranks)
    with process_group(ranks, where) as group:
        run = None
        with ranks.root_first():
            limit = duration(time_limit) if isinstance(time_limit, str) else time_limit
            if ranks.root:
                run = _run(Path(deck_or_run), overrides, folder, resume, ranks.size)
        run = ranks.broadcast(run)
        again = _command(run, device, time_limit)
        with run_lock(run.path, ranks), stop_requests(run.path, limit, ranks, since) as stop:
            try:
                if run.deck.model is None:
                    summary: object = _train(run, ranks, group, where, resume, stop)
                else:
                    summary = _fit(run, where, resume, stop)
            except Stopped as stopped:
                if ranks.size > 1 and not stopped.together:
                    raise
                reason = stop.reason(look=True) or ""  # of another rank, as a rule
                said = str(stopped) if reason in str(stopped) else f"{reason}; {stopped}"
                leave_together(ranks, f"{said}; go on with\n{again}")
            except KeyboardInterrupt:
                raise Stopped(
                    f"at once, without the steps since the last checkpoint; go on with\n{again}"
                ) from None
            except (TrainingDiverged, NumericalError) as error:
                _let_root_say(error, ranks, stop)
                raise
        console(quiet=not ranks.root).print(
            f"{run.path}: {summary if summary else 'was trained already; nothing to do'}"
        )
    return run


def _let_root_say(error: LatticeflowError, ranks: Ranks, stop: StopRequests) -> None:
    """What goes wrong on all ranks, rank 0 says, which ends the job; if it does not within a while, this one does."""
    since = time.monotonic()
    while not ranks.root and time.monotonic() - since < SAID_BY_ROOT:
        if stop.signal is not None:  # torchrun ends the job: it has been said
            raise SystemExit(error.status)
        time.sleep(0.1)


def _train(
    run: Run, ranks: Ranks, group: Group, device: str, resume: bool, stop: StopRequests
) -> WeightSummary | None:
    """Train with a progress bar, or lines in a file, from rank 0."""
    deck, out = run.deck, console(quiet=not ranks.root)
    settings, flow = _settings(deck), build_flow(deck).to(device)
    steps = plan(settings, deck.target)[-1].end
    out.print(
        f"{deck.name}: {flow.parameter_count():,} parameters, {steps} steps{_places(settings, ranks, device)}"
    )
    with _bar(out) as progress:
        task = progress.add_task("training", total=steps)

        def report(record: Record) -> None:
            if ranks.root:
                log.append(run.log, record)
            progress.update(task, description=f"ESS {record['ess']:.4f}")
            out.print(line(record, steps))

        return train(
            flow,
            deck.target,
            settings,
            seed=deck.seed,
            weights=run.weights,
            resume=resume,
            report=report,
            tick=lambda done: progress.update(task, completed=done),
            stop=stop.reason,
            group=group,
            build=lambda target: build_flow(deck, target),
        )


def fit_line(record: FitRecord, steps: int) -> str:
    """One evaluation of a model, for people."""
    about = ("step", "grad_norm", "lr", "configurations", "thin", "seconds", "trained_on")
    numbers = "  ".join(f"{key} {value:.5g}" for key, value in record.items() if key not in about)
    return f"step {record['step']}/{steps}  {numbers}  {record['seconds']:.1f} s"


def _fit(run: Run, device: str, resume: bool, stop: StopRequests) -> str | None:
    """Train a model with a progress bar, or lines in a file; the last line."""
    deck, out = run.deck, console()
    settings, model = _fit_settings(deck), build_model(deck).to(device)
    out.print(f"{deck.name}: {model.parameter_count():,} parameters, {settings.steps} steps")
    with _bar(out) as progress:
        task = progress.add_task("training", total=settings.steps)

        def report(record: FitRecord) -> None:
            log.append(run.log, record)
            out.print(fit_line(record, settings.steps))

        record = fit(
            model,
            deck.target,
            settings,
            seed=deck.seed,
            weights=run.weights,
            resume=resume,
            report=report,
            tick=lambda done: progress.update(task, completed=done),
            stop=stop.reason,
        )
    if record is None:
        return None
    held_out = "all of them seen in training" if "trained_on" in record else "others held out"
    return f"trained on {record['configurations']:,} configurations, thin = {record['thin']}; {held_out}"


def _bar(out: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=out, disable=not out.is_terminal or out.quiet, transient=True)


def _places(settings: TrainSettings, ranks: Ranks, device: str) -> str:
    if ranks.size == 1:
        return ""
    smallest = min(batch for stage in settings.stages() for _, batch in stage.batches)
    idle = f"; at batch {smallest} only {smallest} ranks have work" if ranks.size > smallest else ""
    return f" on {ranks.size} ranks, {device}{idle}"


def _command(run: Run, device: str, limit: str | float | None) -> str:
    """The line that goes on, under any launcher."""
    words = ["latticeflow", "train", run.path, "--resume"]
    words += ["--device", device] if device != "auto" else []
    words += ["--time-limit", limit] if limit is not None else []
    return shlex.join(map(str, words))


def _run(
    path: Path,
    overrides: list[str] | tuple[str, ...],
    folder: Path | str | None,
    resume: bool,
    ranks: int = 1,
) -> Run:
    """The run to train, made if need be; a flow that does not fit a stage's lattice leaves nothing behind."""
    if path.is_dir():
        if not resume:
            raise InputError(f"{path} is a folder: give a deck (.toml), or --resume to go on with this run")
        if overrides or folder:
            raise InputError("--resume of a run folder takes no --set and no --run: its deck is fixed")
        folder, deck = path, Run.open(path).deck
    else:
        deck = Deck.read(path, overrides)
        folder = Path("runs") / deck.name if folder is None else Path(folder)
    if deck.model is None:
        _walk(deck)
    elif ranks > 1:
        raise InputError(
            f"{deck.name}: a [model] is trained on one rank, and {ranks} were started; run latticeflow train without a "
            "launcher. Its draws are made on any number of ranks"
        )
    else:
        require_fitting(build_model(deck), _fit_settings(deck))
    return _open(deck, folder, resume)


def _walk(deck: Deck) -> None:
    """Build the flow of every stage and let it adopt the one before: what cannot work fails before anything is written."""
    flow = None
    for stage in plan(_settings(deck), deck.target):
        before, flow = flow, build_flow(deck, stage.target)
        require_trainable(flow, stage.settings)
        stage.target.require_support()
        if before is not None and before.event_shape != flow.event_shape:
            flow.adopt(before)


def _settings(deck: Deck) -> TrainSettings:
    if deck.flow is None or not isinstance(deck.train, TrainSettings):
        raise InputError(
            f"{deck.name}: training needs both [flow] and [train] in the deck, or [model] and [train]"
        )
    return deck.train


def _fit_settings(deck: Deck) -> FitSettings:
    if not isinstance(deck.train, FitSettings):
        raise InputError(f"{deck.name}: training needs both [model] and [train] in the deck, with train.data")
    return deck.train


def _open(deck: Deck, folder: Path, resume: bool) -> Run:
    """The run in `folder`: an existing one to resume, or still without weights (sampled by HMC only); else a new one.

    A folder with a deck and nothing else, of a training that failed before its first checkpoint, takes the new deck.
    """
    if [path.name for path in folder.glob("*")] == ["deck.toml"]:
        write_text(folder / "deck.toml", deck.toml())
        return Run(folder, deck)
    if (folder / "deck.toml").is_file() and (resume or not checkpoints(folder / "weights")):
        run = Run.open(folder)
        run.require_same(deck)
        return run
    return Run.create(deck, folder)
