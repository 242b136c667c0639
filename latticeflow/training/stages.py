"""The training plan: stages on targets of their own, walked in order, the last of them on the deck's target.

    [train]                                           # what stages do not say themselves
    steps = 2000
    [[train.stage]]
    target = { shape = [8, 8], lam = 6.008 }          # m2 is the deck's
    [[train.stage]]                                   # the deck's target
    steps = 4000
    lr = 1e-3

Every stage has its own schedule and its own optimiser; the flow goes on from the weights of the one before, on another
lattice by `Flow.adopt`. Steps are counted through the whole plan, so that no two stages share a random number.
"""

from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..spec import differences
from ..targets import Target, targets
from .settings import TrainSettings


@dataclass(frozen=True)
class Stage:
    """Stage `number` (from 1) of `count`: steps `start` to `end` of the whole plan. `settings` have no stages."""

    number: int
    count: int
    settings: TrainSettings
    target: Target
    start: int

    @property
    def end(self) -> int:
        return self.start + self.settings.steps

    def __str__(self) -> str:
        return describe(self.record())

    def record(self) -> dict[str, Any]:
        """What a checkpoint says of its stage."""
        return {"number": self.number, "count": self.count, "target": targets.table(self.target)}


def describe(record: dict[str, Any]) -> str:
    """A stage's record in words."""
    target = ", ".join(f"{key} {value}" for key, value in record["target"].items() if key != "kind")
    return f"stage {record['number']} of {record['count']} ({record['target']['kind']}, {target})"


def plan(settings: TrainSettings, target: Target) -> tuple[Stage, ...]:
    """The stages of a training that is to end on `target`; one where `settings` name none.

    Raises `InputError` naming the stage for a table that makes no target, and where the last stage's target is another.
    """
    stages: list[Stage] = []
    for own in settings.stages():
        number = len(stages) + 1
        last = number == max(1, len(settings.stage))
        table = settings.stage[number - 1].get("target", {}) if settings.stage else {}
        reached = _target(table, target, number, last)
        stages.append(
            Stage(number, max(1, len(settings.stage)), own, reached, stages[-1].end if stages else 0)
        )
    return tuple(stages)


def _target(table: object, final: Target, number: int, last: bool) -> Target:
    """The target of a stage whose `target` says `table`."""
    if not isinstance(table, dict):
        raise InputError(
            f"train.stage {number}: target = {table!r}; expected a table, such as {{ shape = [8, 8], lam = 6.0 }}"
        )
    if not table:
        return final
    wanted = targets.table(final)
    try:
        found = targets.parse(wanted | table)
    except InputError as error:
        raise InputError(f"train.stage {number}: target: {error}") from None
    changed = differences(wanted, targets.table(found))
    if last and changed:
        raise InputError(
            f"train.stage {number} is the last, and not on the deck's target: {'; '.join(changed)}. What is "
            "trained must be what is sampled: end the plan with a stage on the deck's target"
        )
    return final if last else found
