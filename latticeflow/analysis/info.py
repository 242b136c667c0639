"""`latticeflow info`: what a run holds and where it came from."""

import json
from collections import Counter
from pathlib import Path

from rich.console import Console

from ..errors import LatticeflowError, StoreError
from ..production.summary import summary_lines
from ..run import Run
from ..store import Ensemble
from ..training.checkpoint import checkpoints


def print_info(run: Run | Path | str) -> None:
    """Print the deck, the training log's last line, checkpoints, and every ensemble with its origin.

    Raises `InputError` where `run` is no run folder. A damaged part is shown as such and the rest still printed; then
    raises `StoreError` naming it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"run {run.path}\n\n{run.deck.toml()}")
    console.print(_training(run))
    damaged = []
    folder = run.path / "ensembles"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        console.print(f"\nensemble {path.name}")
        try:
            for line in _ensemble(Ensemble.open(path)):
                console.print(f"  {line}")
        except LatticeflowError as error:
            console.print(f"  {error}")
            damaged.append(path.name)
    if damaged:
        raise StoreError(f"{run.path}: ensembles with problems, shown above: {', '.join(damaged)}")


def _training(run: Run) -> str:
    found = checkpoints(run.weights)
    kept = f"checkpoints: {', '.join(path.name for path in found)}" if found else "no weights"
    if not run.log.is_file():
        return f"{kept}; no training log"
    lines = run.log.read_text(encoding="utf-8").splitlines()
    try:
        last = json.loads(lines[-1])
    except (IndexError, ValueError):
        return f"{kept}; {run.log} has no whole last line"
    return f"{kept}\nlast line of the training log: " + ", ".join(f"{k} {v}" for k, v in last.items())


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
