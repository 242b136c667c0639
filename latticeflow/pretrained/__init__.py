"""Trained flows that come with the library, by name: `load("phi4_14x14_E5")`.

Each is a small run folder beside this file: `deck.toml`, the log of its training, and one checkpoint without the optimiser.
`python -m benchmarks.publish RUN NAME` makes one from a run.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from ..config import Deck
from ..errors import InputError
from ..flows import Flow
from ..run import Run
from ..targets import Target
from ..training.checkpoint import latest, load_flow
from ..training.log import read

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pretrained:
    """A trained `flow`, the `target` it was trained on, the `deck` that made it and the `log` of that training."""

    flow: Flow
    target: Target
    deck: Deck
    log: list[dict]


def names() -> list[str]:
    """What `load` knows."""
    return sorted(path.parent.name for path in HERE.glob("*/deck.toml"))


def load(name: str) -> Pretrained:
    """The pretrained flow of that name, in evaluation mode.

    Raises `InputError` for an unknown name, `StoreError` where its files are damaged.
    """
    if name not in names():
        raise InputError(f"no pretrained flow '{name}'; known: {', '.join(names()) or 'none'}")
    run = Run.open(HERE / name)
    flow, _ = load_flow(run.weights, run.deck)
    return Pretrained(flow.eval(), run.deck.target, run.deck, read(run.log))


def publish(run: Run, name: str, folder: Path = HERE) -> Path:
    """Copy what `load` needs of a trained run to `folder/name`. Raises `InputError` where that exists."""
    place, checkpoint = folder / name, latest(run.weights)
    load_flow(run.weights, run.deck)  # raises for weights that are damaged or not of the plan's last stage
    if place.exists():
        raise InputError(f"{place} exists; nothing was changed. Move it away, or choose another name")
    ignored = shutil.ignore_patterns("optimizer.safetensors")
    shutil.copytree(checkpoint, place / "weights" / checkpoint.name, ignore=ignored)
    for path in (run.path / "deck.toml", run.log):
        shutil.copy(path, place / path.name)
    return place
