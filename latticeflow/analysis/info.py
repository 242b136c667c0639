"""`latticeflow info`: what a run holds and where it came from."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..baselines import models
from ..console import console
from ..errors import LatticeflowError, StoreError
from ..production.summary import summary_lines
from ..run import Run
from ..store import Ensemble
from ..training import log
from ..training.checkpoint import build_model, checkpoints

_LOOKED_AT = 300  # blocks, each of which costs some milliseconds
_COUNTED = (
    "host",
    "device",
    "precision",
    "batch",
    "threads",
    "latticeflow",
    "commit",
    "torch",
    "numpy",
    "h5py",
    "python",
)


def print_info(run: Run | Path | str) -> None:
    """Print the deck, the training log's last line, checkpoints, and every ensemble with its origin.

    Raises `InputError` where `run` is no run folder. A damaged part is shown as such and the rest still printed; then
    raises `StoreError` naming it.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = console()
    out.print(f"run {run.path}\n\n{run.deck.toml()}")
    if run.deck.model is not None:
        out.print(_model(run))
    out.print(_training(run))
    damaged = []
    folder = run.path / "ensembles"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        out.print(f"\nensemble {path.name}")
        try:
            for line in _ensemble(run, Ensemble.open(path).snapshot()):
                out.print(f"  {line}")
        except LatticeflowError as error:
            out.print(f"  {error}")
            damaged.append(path.name)
    if damaged:
        raise StoreError(f"{run.path}: ensembles with problems, shown above: {', '.join(damaged)}")


def _model(run: Run) -> str:
    """What the deck's model can do."""
    model, kind = build_model(run.deck), models.table(run.deck.model)["kind"]  # type: ignore[arg-type]
    draws = "draws by the sampler 'model', approximate ones" if model.generates else "generates nothing"
    density = {"none": "no density", "bound": "a lower bound and an estimate of its density"}[model.density]
    return f"model {kind}: {model.parameter_count():,} parameters; {draws}; {density}\n"


def _training(run: Run) -> str:
    found = checkpoints(run.weights)
    kept = f"checkpoints: {', '.join(path.name for path in found)}" if found else "no weights"
    if not run.log.is_file():
        return f"{kept}; no training log"
    lines = log.read(run.log)
    if not lines:
        return f"{kept}; {run.log} has no whole line"
    return f"{kept}\nlast line of the training log: " + ", ".join(f"{k} {v}" for k, v in lines[-1].items())


def _ensemble(run: Run, ensemble: Ensemble) -> Iterator[str]:
    settings = ", ".join(f"{key} {value}" for key, value in ensemble.settings.items())
    yield f"settings: {settings}"
    yield f"seed {ensemble.seed}" + (f", weights {ensemble.weights}" if ensemble.weights else "")
    yield f"identity {ensemble.identity}"
    yield f"stored: {_storage(ensemble)}"
    yield from summary_lines(ensemble)
    yield from _origin(run, ensemble.origin)
    yield from _made_by(ensemble)


def _storage(ensemble: Ensemble) -> str:
    k, chain = ensemble.keep_fields, bool(ensemble.chains)
    if k == 0:
        return "observables of all draws, no fields"
    which = "all draws" if k == 1 else f"every {k}th {'step' if chain else 'draw'}, observables of all"
    return f"fields of {which}"


def _origin(run: Run, origin: dict[str, Any]) -> Iterator[str]:
    """Where the ensemble was begun."""
    about = {key: value for key, value in origin.items() if key != "deck" and value is not None}
    if about:
        yield "begun: " + ", ".join(f"{key} {value}" for key, value in about.items())
    if origin.get("deck", run.deck.toml()) != run.deck.toml():
        yield "its deck is not the run's deck.toml of today, shown above, but:"
        yield from (f"  {line}" for line in origin["deck"].splitlines())


def _made_by(ensemble: Ensemble) -> Iterator[str]:
    """What made the blocks, counted; of a large ensemble those of an even sample."""
    keys = ensemble.blocks
    looked = keys[:: -(-len(keys) // _LOOKED_AT)] if keys else []
    if len(looked) < len(keys):
        yield f"of {len(keys):,} blocks, {len(looked):,} were looked at:"
    about = [ensemble.attributes(*key) for key in looked]
    for name in _COUNTED:
        counts = Counter(str(one[name]) for one in about if name in one)
        if counts:
            yield f"{name}: " + ", ".join(f"{value} ({n} blocks)" for value, n in counts.items())
    times = [one["time"] for one in about if "time" in one]
    if times:
        yield f"drawn between {min(times)} and {max(times)} (UTC)"
