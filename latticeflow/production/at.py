"""`latticeflow at`: a run at other couplings with the weights of a conditional flow or model."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from ..baselines.conditional import ConditionalSpec
from ..config import Deck, override
from ..console import console
from ..errors import InputError
from ..flows.conditional import Conditional
from ..run import Run
from ..spec import differences
from ..targets import targets
from ..training.checkpoint import latest, load_flow, load_model


def at_run(run: Run | Path | str, overrides: Sequence[str], folder: Path | str) -> Run:
    """A new run in `folder`: the deck of `run` but for the target's couplings, and the same newest checkpoint and log.

    An ordinary run, to be sampled, measured and compared like any other. Training does not depend on where in the
    range the deck's target lies: a training of the new deck would give the same weights. `overrides`: `target.KEY=value`,
    and `seed=N`, without which the runs share their noise and what is drawn in both is correlated.

    Raises `InputError` for a flow or model that is not conditional, other keys, couplings that were not trained for and a
    folder that is not empty; `StoreError` where the weights are damaged.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    family = run.deck.flow or run.deck.model
    if not isinstance(family, Conditional | ConditionalSpec):
        raise InputError(
            f"{run.path} has no conditional flow or model: its weights are for its own target only"
        )
    table = run.deck.table() | {"name": Path(folder).name}
    for item in overrides:
        if item.partition("=")[0].strip().partition(".")[0] not in ("target", "seed"):
            raise InputError(f"--set {item}: expected couplings, such as target.lam=5.2, or seed=2")
        override(table, item)
    deck = Deck.parse(table)
    couplings = {name: 0 for name in family.range}
    old, new = (targets.table(one) | couplings for one in (run.deck.target, deck.target))
    if changed := differences(old, new, "target."):
        raise InputError(
            f"{run.path} was not trained for this: {'; '.join(changed)}. It holds a range of {', '.join(couplings)}"
        )
    load = load_flow if deck.model is None else load_model
    load(run.weights, deck)  # raises for couplings out of range and for damaged weights
    checkpoint = latest(run.weights)
    made = Run.create(deck, folder)
    shutil.copytree(checkpoint, made.weights / checkpoint.name)
    if run.log.is_file():
        shutil.copy(run.log, made.log)
    where = ", ".join(f"{name} = {getattr(deck.target, name):g}" for name in couplings)
    console().print(f"{made.path}: {checkpoint.name} of {run.path} at {where}")
    return made
