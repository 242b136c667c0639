"""`latticeflow train`: a deck to a run folder with trained weights."""

from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Deck
from ..errors import InputError, Stopped
from ..run import Run
from ..statistics import bracket
from ..training import log, train
from ..training.checkpoint import build_flow
from ..training.loop import Record
from .device import pick_device
from .ranks import Ranks


def line(record: Record, steps: int) -> str:
    """One evaluation, for people."""
    return (
        f"step {record['step']}/{steps}  loss {record['loss']:.4f}  ESS {bracket(record['ess'], record['ess_error'])} "
        f"at N = {record['ess_draws']:,}  log Z {record['log_z']:.4f}  {record['seconds']:.1f} s"
    )


def train_run(
    deck_or_run: Path,
    *,
    overrides: list[str] | tuple[str, ...] = (),
    folder: Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Run:
    """Train the deck's flow and return its run.

    A new training makes the run folder and refuses one that exists. With `resume`, `deck_or_run` is the run
    folder, or the deck: an existing run goes on, and one made with another deck is refused, naming the key; where
    there is no run yet, one begins, so that a batch script can repeat one line.
    Raises `InputError` under mpirun, for a deck without [flow] or [train], `Stopped` (status 75) when interrupted.
    """
    ranks = Ranks.world()
    if ranks.size > 1:
        raise InputError(f"train was started on {ranks.size} ranks; it runs on one: leave out mpirun")
    path = Path(deck_or_run)
    if path.is_dir():
        if not resume:
            raise InputError(f"{path} is a folder: give a deck (.toml), or --resume to go on with this run")
        if overrides or folder:
            raise InputError("--resume of a run folder takes no --set and no --run: its deck is fixed")
        folder, deck = path, Run.open(path).deck
    else:
        deck = Deck.read(path, overrides)
        folder = Path("runs") / deck.name if folder is None else Path(folder)
    if deck.flow is None or deck.train is None:
        raise InputError(f"{path}: training needs both [flow] and [train] in the deck")
    settings = deck.train
    # built before the run folder is made: a flow that does not fit the lattice leaves nothing behind
    flow = build_flow(deck).to(pick_device(device))
    if resume and folder.exists():
        run = Run.open(folder)
        run.require_same(deck)
    else:
        run = Run.create(deck, folder)
    torch.set_num_threads(settings.threads)

    console = Console()
    console.print(
        f"{deck.name}: {deck.flow.kind} flow, {flow.parameter_count():,} parameters, {settings.steps} steps",
        soft_wrap=True,
        highlight=False,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task("training", total=settings.steps)

        def report(record: Record) -> None:
            log.append(run.log, record)
            progress.update(task, completed=record["step"], description=f"ESS {record['ess']:.4f}")
            console.print(line(record, settings.steps), soft_wrap=True, highlight=False)

        try:
            summary = train(
                flow, deck.target, settings, seed=deck.seed, weights=run.weights, resume=resume, report=report
            )
        except KeyboardInterrupt:
            raise Stopped(f"training stopped; go on with: latticeflow train {run.path} --resume") from None
    console.print(
        f"{run.path}: {summary if summary else 'was trained already; nothing to do'}",
        soft_wrap=True,
        highlight=False,
    )
    return run
