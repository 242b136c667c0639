"""Forward ESS: a flow judged at the configurations of another sampler, so that a mode which it never draws is seen.

`ESS_rev = <w>_q^2 / <w^2>_q` from the flow's own draws and `ESS_fwd = 1 / (<w>_p <1/w>_p)` from draws of the target p
estimate the same number. A flow that has dropped a mode looks well in the first alone: its weights are those of a
smaller partition function, `log Z_rev < log Z_fwd = -log <1/w>_p` (2302.14082; 2107.00734). The second in turn cannot see a
share e of the flow's draws where the target has nothing: its ESS is then too large by 1 / (1 - e), its Z as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..precision import double
from ..run import Run
from ..samplers import Sampler
from ..statistics import ForwardSummary, WeightSummary, bracket, forward_weights
from ..store import Ensemble
from ..threads import threads
from .series import open_ensemble
from .verify import sampler_of

DRAWS = 65_536  # configurations that are looked at; each costs an inverse of the flow
ALARM = 4.0  # sigma


@dataclass(frozen=True)
class Forward:
    """The two estimates for sampler `proposal`, the forward one at configurations of sampler `source`."""

    proposal: str
    source: str
    reverse: WeightSummary
    forward: ForwardSummary
    solver: float = (
        0.0  # up to which log q, and so both log Z alike, is uncertain where the flow is solved in steps
    )

    @property
    def pull(self) -> float:
        """`(ESS_rev - ESS_fwd) / sigma`."""
        a, b = self.reverse, self.forward
        return _pull(a.ess - b.ess, a.ess_error, b.ess_error)

    @property
    def log_z_pull(self) -> float:
        """`(log Z_rev - log Z_fwd) / sigma`."""
        a, b = self.reverse, self.forward
        return _pull(a.log_z - b.log_z, a.log_z_error, b.log_z_error)

    @property
    def agree(self) -> bool:
        return abs(self.pull) < ALARM and abs(self.log_z_pull) < ALARM

    def lines(self) -> list[str]:
        """What is printed: both numbers of both directions, and a verdict."""
        a, b = self.reverse, self.forward
        found = [
            f"forward, at {b.n:,} configurations of {self.source}: ESS / N {bracket(b.ess, b.ess_error)}, "
            f"log Z {bracket(b.log_z, b.log_z_error)}",
            f"reverse, at {a.n:,} proposals of {self.proposal}: ESS / N {bracket(a.ess, a.ess_error)}, "
            f"log Z {bracket(a.log_z, a.log_z_error)}; pulls {self.pull:+.1f}, {self.log_z_pull:+.1f}",
        ]
        if self.solver:
            found.append(
                f"log Z of both is uncertain by up to {self.solver:.2g} more, by the solver in steps"
            )
        if self.agree and not min(a.ess - 3 * a.ess_error, b.ess - 3 * b.ess_error) > 0:
            return [*found, "no verdict: an ESS within 3 sigma of 0 agrees with anything; train longer"]
        if self.agree:
            return [*found, f"the two agree: {self.proposal} misses no mode that {self.source} has"]
        share = -np.expm1(-abs(a.log_z - b.log_z))
        if self.pull >= ALARM:
            verdict = (
                f"MODE DROPPED: {self.source} has configurations that {self.proposal} does not draw, about {share:.2g} of "
                "the partition function; no correction of its draws brings them back"
            )
        else:
            verdict = (
                f"THE TWO DISAGREE, but not as where a mode is dropped: about {share:.2g} of {self.proposal}'s draws may be "
                f"where {self.source} has none, or {self.source} is not distributed as the target"
            )
        return [*found, verdict]


def _pull(difference: float, a: float, b: float) -> float:
    sigma = float(np.hypot(a, b))
    if sigma == 0:
        return 0.0 if abs(difference) < 1e-9 else float(np.copysign(np.inf, difference))
    return difference / sigma


@torch.no_grad()
def log_weights_at(sampler: Sampler, x: Tensor) -> np.ndarray:
    """`log p(x) - log q(x)` of any configurations x `[n, *event_shape]`, in float64 `[n]`.

    Raises `InputError` for a sampler without a density at any x.
    """
    x = double(x)
    return sampler.target.log_prob(x).cpu().numpy() - sampler.log_q(x).cpu().numpy()


def forward_estimate(sampler: Sampler, ensemble: Ensemble, draws: int = DRAWS) -> ForwardSummary:
    """ESS and log Z of `sampler` at about `draws` stored configurations of a chain sampler's `ensemble`.

    Every k-th stored step of all chains, block by block: memory holds one block and the log-weights. Raises `InputError`
    where the ensemble holds no chains of its target, chains that depend on one another, or no fields;
    what `forward_weights` raises.
    """
    if not ensemble.chains or ensemble.weighted or ensemble.interacting:
        raise InputError(
            f"forward estimate from the draws of '{ensemble.sampler}': expected chains that are distributed as the target "
            "and independent of one another, such as hmc's"
        )
    if draws < 1:
        raise InputError(f"forward estimate from {draws} configurations; expected at least 1")
    steps = len(ensemble.kept_rows) // ensemble.chains * sum(map(len, ensemble.streams.values()))
    every = max(1, steps * ensemble.chains // draws)
    chains = [
        np.concatenate([log_weights_at(sampler, x.flatten(0, 1)).reshape(x.shape[:2]) for x in walk])
        for walk in _streams(ensemble, every)
    ]
    return forward_weights(np.concatenate(chains, axis=1).T)


def _streams(ensemble: Ensemble, every: int) -> Iterator[Iterator[Tensor]]:
    """For each stream its fields `[steps, chains, *event_shape]`, block by block: every `every`-th stored step."""

    def walk(keys) -> Iterator[Tensor]:
        step = 0
        for key in keys:
            x = torch.as_tensor(ensemble.read(*key, "x")["x"])
            x = x.view(-1, ensemble.chains, *x.shape[1:])
            first = -step % every
            step += len(x)
            if first < len(x):
                yield x[first::every]

    for keys in ensemble.streams.values():
        yield walk(keys)


def forward_run(
    run: Run | Path | str, sampler: str = "flow", source: str = "hmc", draws: int = DRAWS
) -> Forward:
    """Both estimates of a run's `sampler`: from its stored weights, and at configurations of the run's `source`.

    Raises `InputError` with the command to run where an ensemble is missing, and for a sampler without a density at any x;
    `StoreError` where the weights that drew the ensemble are gone; what `forward_estimate` raises.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    proposals, ensemble = open_ensemble(run, sampler), open_ensemble(run, source)
    proposal = sampler_of(run, proposals, "cpu")
    if not (proposals.weighted and proposal.any_density):
        raise InputError(f"sampler '{sampler}' has no density at any x; forward ESS is for flows")
    with threads(proposals.settings.get("threads", 1)):
        found = forward_estimate(proposal, ensemble, draws)
    return Forward(sampler, source, proposals.summary().weights, found, proposals.density_error)
