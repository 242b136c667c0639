"""`latticeflow train`: a deck to a run folder with trained weights."""

from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Deck
from ..console import console
from ..errors import InputError, Stopped
from ..run import Run
from ..statistics import bracket
from ..training import log, train
from ..training.checkpoint import build_flow, checkpoints
from ..training.loop import Record
from .device import pick_device
from .interrupt import stop_on_sigterm
from .ranks import Ranks


def line(record: Record, steps: int) -> str:
    """One evaluation, for people."""
    return (
        f"step {record['step']}/{steps}  loss {record['loss']:.4f}  ESS {bracket(record['ess'], record['ess_error'])} "
        f"at N = {record['ess_draws']:,}  log Z {record['log_z']:.4f}  {record['seconds']:.1f} s"
    )


def train_run(
    deck_or_run: Path | str,
    *,
    overrides: list[str] | tuple[str, ...] = (),
    folder: Path | str | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Run:
    """Train the deck's flow and return its run.

    A new training makes the run folder (default `runs/NAME`) and refuses one that holds weights. With
    `resume`, `deck_or_run` is the run folder, or the deck: an existing run goes on from its last checkpoint, and
    where there is none yet, one begins, so that a batch script can repeat one line. A run made with
    another deck is refused, naming the key.
    Raises `InputError` under mpirun and for a deck without [flow] or [train], `Stopped` (status 75) on Ctrl-C or
    SIGTERM; steps since the last checkpoint are then done again.
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
    # built before the run folder is made: a flow that does not fit the lattice leaves nothing behind
    flow = build_flow(deck).to(pick_device(device))
    run = _open(deck, folder, resume)

    out, steps = console(), deck.train.steps
    out.print(f"{deck.name}: {deck.flow.kind} flow, {flow.parameter_count():,} parameters, {steps} steps")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=out, disable=not out.is_terminal, transient=True)
    try:
        with stop_on_sigterm(), bar as progress:
            task = progress.add_task("training", total=steps)

            def report(record: Record) -> None:
                log.append(run.log, record)
                progress.update(task, description=f"ESS {record['ess']:.4f}")
                out.print(line(record, steps))

            summary = train(
                flow,
                deck.target,
                deck.train,
                seed=deck.seed,
                weights=run.weights,
                resume=resume,
                report=report,
                tick=lambda done: progress.update(task, completed=done),
            )
    except KeyboardInterrupt:
        raise Stopped(f"training stopped; go on with: latticeflow train {run.path} --resume") from None
    out.print(f"{run.path}: {summary if summary else 'was trained already; nothing to do'}")
    return run


def _open(deck: Deck, folder: Path, resume: bool) -> Run:
    """The run in `folder`: an existing one to resume, or still without weights (sampled by HMC only); else a new one."""
    if (folder / "deck.toml").is_file() and (resume or not checkpoints(folder / "weights")):
        run = Run.open(folder)
        run.require_same(deck)
        return run
    return Run.create(deck, folder)
