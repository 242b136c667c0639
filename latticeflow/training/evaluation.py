"""How good a flow is: ESS and log Z of fresh draws, shared among ranks."""

import torch

from ..flows import Flow
from ..random import Purpose, stream
from ..statistics.weights import WeightSummary, summarise_weights
from ..targets import Target
from .parallel import ALONE, Group

BATCH = 1024


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
            part.copy_(target.log_prob(x.double()) - log_q)
    return summarise_weights(group.sum(log_w).numpy())  # the other ranks' parts are zeros here
