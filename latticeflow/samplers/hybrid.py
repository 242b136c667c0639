"""Flow proposals in turn with HMC: chains that jump where the flow knows the way and walk where it does not."""

import copy
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field

from ..errors import InputError, NumericalError
from ..flows import Flow
from ..precision import double
from ..targets import Target
from .base import Draws, State, samplers
from .density import CHECKED, DENSITY_TOLERANCE, check_solver
from .hmc import HMC, HMCSpec


@samplers.add("hybrid")
class HybridSpec(HMCSpec):
    """`[sampler.hybrid]`: the settings of HMC, but for two.

    `trajectories`: HMC trajectories K between two updates by the flow. `thin`: rounds, one flow update and K
    trajectories each, per stored step. `density_tolerance`: as in `[sampler.flow]`, over 128 draws of each stream's start.
    """

    needs_flow: ClassVar[bool] = True
    trajectories: int = Field(10, ge=1)
    density_tolerance: float = Field(DENSITY_TOLERANCE, gt=0)

    def build(self, target: Target, flow: Flow | None = None, device: str = "cpu") -> "Hybrid":
        """The sampler. Raises `InputError` without a flow, for one without a density at given x (a stochastic flow), or for
        another shape or measure of the target.
        """
        self.require_unbounded(target)
        if flow is None:
            raise InputError(
                "the hybrid sampler needs a trained flow: train one first (latticeflow train DECK)"
            )
        return Hybrid(target, self, flow, device)


class Hybrid(HMC):
    """C chains at once. A round is

    (a) one update by the flow: x' ~ q, one for each chain, accepted with
        `min(1, [p(x') q(x)] / [p(x) q(x')])`, u uniform in (0, 1]: `log u < log w(x') - log w(x)`,
        `log w = log p - log q`;
    (b) K trajectories of HMC, each with its own accept/reject.

    (a) is independence Metropolis and (b) HMC; each leaves p invariant, hence so does their cycle (Tierney 1994,
    Ann. Stat. 22, 1701, sec. 2.4). The flow carries chains between modes that HMC cannot leave, HMC goes where the
    flow has too little density, in whose place independence Metropolis alone would reject for long (Gabrie,
    Rotskoff, Vanden-Eijnden, 2105.12603).

    HMC has moved x since it was proposed, so log q(x) is found by the flow's inverse. The ratio must be of one
    function at x and at x', both as stored: the flow therefore runs in float64 whatever the fields' precision, in
    calls of C configurations, where log q(x') of forward and of inverse are one to 1e-13; float32 fields are
    rounded first, and log q of the rounded x' is found by the inverse too.

    Start: HMC's thermalisation and tuning, then about as many trajectories again in rounds, since HMC alone does
    not bring modes into balance. State: HMC's. `Draws.info`: HMC's, and `flow_acceptance`, the share of (a)
    accepted, averaged over chains.
    """

    def __init__(self, target: Target, spec: HybridSpec, flow: Flow, device: str = "cpu"):
        if flow.event_shape != target.event_shape:
            raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
        if not flow.any_density:
            raise InputError(
                f"hybrid: {type(flow).__name__} has no density at given x, which the ratio of (a) needs of what HMC "
                "moved: its weights are those of paths. Use it with sampler 'flow', or train a flow of another kind"
            )
        super().__init__(target, spec, device)
        self.flow = copy.deepcopy(flow).to(device=device, dtype=torch.float64).eval()
        self.rounds, self.density_tolerance = spec.thin, spec.density_tolerance
        self.thin = spec.trajectories  # K trajectories are one step of HMC.draw

    def start(self, stream: int, rng: np.random.Generator) -> State:
        """A thermalised, tuned state. Raises `StatisticsError` like HMC's."""
        if self.flow.approximate:  # from a copy: nothing drawn later depends on the check
            x, log_q = self.flow.sample(CHECKED, copy.deepcopy(rng))
            check_solver(self.flow, x, log_q, self.density_tolerance)
        state = super().start(stream, rng)
        fresh = {name: state[name] for name in ("accepted", "trajectories")}  # counted from here on
        for _ in range(max(1, self.spec.thermalisation // self.thin)):
            state = self._round(state, rng)[2]
        return {**state, **fresh}

    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State]:
        """n configurations, n a multiple of `chains`: draw i is step i // chains of chain i % chains."""
        now = self.require_state(state, n)
        parts, infos = [], []
        for _ in range(n // self.chains):
            seen = []
            for _ in range(self.rounds):
                flow_acceptance, draws, now = self._round(now, rng)
                seen.append({"flow_acceptance": np.array([flow_acceptance]), **draws.info})
            parts.append(draws)
            info = {name: np.mean([one[name] for one in seen], axis=0) for name in seen[0]}
            infos.append(info | {"smallest_acceptance": seen[-1]["smallest_acceptance"]})
        whole = Draws(
            torch.cat([one.x for one in parts]),
            np.concatenate([one.log_prob for one in parts]),
            info={name: np.concatenate([one[name] for one in infos]) for name in infos[0]},
        )
        return whole, now

    def _round(self, state: State, rng: np.random.Generator) -> tuple[float, Draws, State]:
        """(a), then (b): the flow's acceptance, the draws after (b) and the state."""
        accepted, state = self.flow_update(state, rng)
        draws, state = super().draw(state, self.chains, rng)
        return float(accepted.mean()), draws, state

    @torch.no_grad()
    def flow_update(self, state: State, rng: np.random.Generator) -> tuple[np.ndarray, State]:
        """(a): which chains took the flow's proposal, bool `[chains]`, and the state after it.

        Raises `NumericalError` where log w of a proposal or of a chain's x is NaN or +inf.
        """
        x = torch.from_numpy(state["x"]).to(self.device)
        log_q = self.flow.log_prob(double(x)).cpu().numpy()
        y, own_log_q = self.flow.sample(self.chains, rng)
        if self.dtype != torch.float64:
            y = y.to(self.dtype)
            own_log_q = self.flow.log_prob(double(y))
        new_log_q = own_log_q.cpu().numpy()
        new_log_prob = self.target.log_prob(double(y)).cpu().numpy()
        bad, new_bad = _unsound(state["log_prob"] - log_q), _unsound(new_log_prob - new_log_q)
        if bad.any() or new_bad.any():
            raise NumericalError(
                f"hybrid: log p - log q is NaN or +inf at {bad.sum()} of {self.chains} chains and {new_bad.sum()} of "
                "as many proposals of the flow; legal are finite numbers and -inf"
            )
        ratio = log_ratio(new_log_prob, new_log_q, state["log_prob"], log_q)
        ok = -rng.standard_exponential(self.chains) < ratio  # log u is minus an exponential variate
        moved = ok.reshape(-1, *[1] * (x.dim() - 1))
        after = {
            "x": np.where(moved, y.cpu().numpy(), state["x"]),
            "log_prob": np.where(ok, new_log_prob, state["log_prob"]),
        }
        return ok, {**state, **after}


def _unsound(log_w: np.ndarray) -> np.ndarray:
    return np.isnan(log_w) | np.isposinf(log_w)


def log_ratio(new_p: np.ndarray, new_q: np.ndarray, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """`log [p(x') q(x)] / [p(x) q(x')]` from the logs of each; new is x'."""
    return (new_p - new_q) - (p - q)
