"""`latticeflow info`: what a run holds and where it came from."""

from collections import Counter
from pathlib import Path

from ..console import console
from ..errors import LatticeflowError, StoreError
from ..production.summary import summary_lines
from ..run import Run
from ..store import Ensemble
from ..training import log
from ..training.checkpoint import checkpoints


def print_info(run: Run | Path | str) -> None:
    """Print the deck, the training log's last line, checkpoints, and every ensemble with its origin.

    Raises `InputError` where `run` is no run folder. A damaged part is shown as such and the rest still printed; then
    raises `StoreError` naming it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = console()
    out.print(f"run {run.path}\n\n{run.deck.toml()}")
    out.print(_training(run))
    damaged = []
    folder = run.path / "ensembles"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        out.print(f"\nensemble {path.name}")
        try:
            for line in _ensemble(Ensemble.open(path)):
                out.print(f"  {line}")
        except LatticeflowError as error:
            out.print(f"  {error}")
            damaged.append(path.name)
    if damaged:
        raise StoreError(f"{run.path}: ensembles with problems, shown above: {', '.join(damaged)}")


def _training(run: Run) -> str:
    found = checkpoints(run.weights)
    kept = f"checkpoints: {', '.join(path.name for path in found)}" if found else "no weights"
    if not run.log.is_file():
        return f"{kept}; no training log"
    lines = log.read(run.log)
    if not lines:
        return f"{kept}; {run.log} has no whole line"
    return f"{kept}\nlast line of the training log: " + ", ".join(f"{k} {v}" for k, v in lines[-1].items())


def _ensemble(ensemble: Ensemble):
    settings = ", ".join(f"{key} {value}" for key, value in ensemble.settings.items())
    yield f"settings: {settings}"
    yield f"seed {ensemble.seed}" + (f", weights {ensemble.weights[:12]}" if ensemble.weights else "")
    yield from summary_lines(ensemble)
    about = [ensemble.attributes(*key) for key in ensemble.blocks]
    for key in ("host", "device", "latticeflow", "torch", "numpy"):
        counts = Counter(str(one[key]) for one in about)
        if counts:
            yield f"{key}: " + ", ".join(f"{name} ({n} blocks)" for name, n in counts.items())
    if about:
        times = [one["time"] for one in about]
        yield f"drawn between {min(times)} and {max(times)} (UTC)"
