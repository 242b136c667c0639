"""How good a flow is: ESS and log Z of fresh draws, shared among ranks."""

import torch

from ..errors import NumericalError
from ..flows import Flow
from ..precision import double
from ..random import Purpose, stream
from ..statistics.weights import WeightSummary, summarise_weights
from ..targets import Target
from .members import name_of, probes
from .parallel import ALONE, Group

BATCH = 1024
CHECKED = 4096  # draws whose density is looked at at twice the resolution
REFINEMENTS = 12  # by half each time: 130 times as many steps


@torch.no_grad()
def evaluate(
    flow: Flow, target: Target, draws: int, *, seed: int, step: int = 0, group: Group = ALONE
) -> WeightSummary:
    """ESS, log Z and their errors from `draws` fresh draws of the flow, the same on every rank of `group`.

    Batch j of 1,024 draws has the stream (seed, EVALUATE, step, j) and is computed by rank j % size, so that the
    result does not depend on the ranks, on the same kind of processor. Raises `NumericalError` where a log-weight is NaN.
    """
    log_w = torch.zeros(draws, dtype=torch.float64)
    for j, part in enumerate(log_w.split(BATCH)):
        if j % group.size == group.rank:
            x, log_q = flow.sample(len(part), stream(seed, Purpose.EVALUATE, step, j))
            part.copy_(target.log_prob(double(x)) - log_q)
    return summarise_weights(group.sum(log_w).numpy())  # the other ranks' parts are zeros here


@torch.no_grad()
def density_error(flow: Flow, *, seed: int, step: int = 0, group: Group = ALONE) -> float:
    """Largest `|log q - log q at twice the resolution|` over 4,096 of `evaluate`'s draws; 0 for a flow that is exact."""
    if not flow.approximate:
        return 0.0
    error = torch.zeros(CHECKED, dtype=torch.float64)
    for j, part in enumerate(error.split(BATCH)):
        if j % group.size == group.rank:
            x, log_q = flow.sample(len(part), stream(seed, Purpose.EVALUATE, step, j))
            part.copy_(flow.density_error(x, log_q))
    return float(group.sum(error).max())


def evaluate_all(
    flow: Flow, target: Target, draws: int, *, seed: int, step: int = 0, group: Group = ALONE
) -> dict[str, WeightSummary]:
    """`evaluate` of a conditional flow at each of its probes, by their names, the worst first; of another under ""."""
    found = {
        name_of(point): evaluate(member, target.at(**point), draws, seed=seed, step=step, group=group)
        for point, member in probes(flow)
    }
    return dict(sorted(found.items(), key=lambda item: item[1].ess))


def refine(flow: Flow, allowed: float, *, seed: int, step: int = 0, group: Group = ALONE) -> float:
    """Raise the number of the flow's steps until `density_error` (at all probes) is at most `allowed`; returns it.

    Raises `NumericalError` where 130 times as many steps do not do.
    """
    for _ in range(REFINEMENTS):
        error = max(density_error(one, seed=seed, step=step, group=group) for _, one in probes(flow))
        if error <= allowed:
            return error
        flow.refine()
    raise NumericalError(
        f"the density of the flow is off by {error:.3g} at twice the resolution, allowed {allowed:.3g}, and no number of "
        "steps cures it: are the weights finite?"
    )
