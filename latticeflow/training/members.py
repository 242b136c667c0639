"""The ordinary flows that a training step or an evaluation works with: of a conditional flow, those at some couplings."""

from collections.abc import Iterator
from typing import Any

from ..errors import InputError
from ..flows import Flow
from ..flows.conditional import ConditionalFlow, Point
from ..flows.cube import CubeFlow
from ..targets import Target
from .settings import TrainSettings


def require_trainable(flow: Flow, settings: TrainSettings) -> None:
    """Raise `InputError` for an objective or an estimator that the flow cannot have: of a conditional flow one that needs
    configurations, which an ensemble has of one coupling only; of a flow without a density at given x one that needs that;
    of a flow on the unit cube the reverse divergence.
    """
    if isinstance(flow, CubeFlow) and settings.objective in ("reverse", "mixed"):
        raise InputError(
            f"train.objective = '{settings.objective}' of a flow on the unit cube: with cuts the reverse divergence is "
            "infinite. Use objective = 'importance'"
        )
    if isinstance(flow, ConditionalFlow):
        if settings.objective == "reverse":
            return require_trainable(flow.flow, settings)
        if settings.objective == "importance":
            raise InputError(
                "train.objective = 'importance' of a conditional flow: pools are of one coupling. Use objective = 'reverse'"
            )
        raise InputError(
            f"train.objective = '{settings.objective}' of a conditional flow: stored configurations are of one coupling. "
            "Use objective = 'reverse', which needs none"
        )
    needs = settings.objective if settings.objective != "reverse" else settings.estimator
    if not flow.any_density and needs in ("forward", "mixed", "log_variance", "importance"):
        key = "estimator" if needs == "log_variance" else "objective"
        raise InputError(
            f"train.{key} = '{needs}' of {type(flow).__name__}: it has no density at given x, its weights are those of "
            "paths. Use objective 'reverse' with estimator 'path' or 'reparametrised'"
        )


def parameter_groups(flow: Flow) -> list[dict[str, Any]]:
    """For an optimiser: all parameters, and of a conditional flow those of each polynomial for themselves."""
    if not isinstance(flow, ConditionalFlow):
        return [{"params": list(flow.parameters())}]
    return [{"params": list(group.parameters())} for group in (flow.flow, *flow.coefficients)]


def of_batch(
    flow: Flow, target: Target, step: int, batch: int, part: range
) -> Iterator[tuple[Flow, Target, int, slice]]:
    """What computes the configurations `part` of the batch of `step`: flow, target, and how many of all are theirs.

    An ordinary flow all of them. Of a conditional one each of its K training points, in turn: configurations
    `[batch k / K, batch (k + 1) / K)` of all, of which the slice, rows of `part`, is here; it may be empty. Every rank sees
    the same members. Gradients that are computed before the next is asked for reach the flow's own parameters.
    """
    if not isinstance(flow, ConditionalFlow):
        yield flow, target, batch, slice(0, len(part))
        return
    points = flow.training_points(step)
    for k, point in enumerate(points):
        first, last = batch * k // len(points), batch * (k + 1) // len(points)
        low, high = max(first, part.start), min(last, part.stop)
        rows = slice(low - part.start, max(low, high) - part.start)
        if last > first:
            with flow.learning_at(point) as member:
                yield member, target.at(**point), last - first, rows


def probes(flow: Flow) -> list[tuple[Point, Flow]]:
    """At which points a flow is judged, with the ordinary flow there; one that is ordinary as it is, the point empty."""
    if not isinstance(flow, ConditionalFlow):
        return [({}, flow)]
    return [(point, flow.at_point(point)) for point in flow.probes()]


def name_of(point: Point) -> str:
    """`lam=4.5 m2=-4`."""
    return " ".join(f"{name}={value:g}" for name, value in point.items())
