"""Independent proposals from a trained flow, with their exact density."""

import copy
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..errors import InputError
from ..flows import Flow
from ..flows.cube import CubeFlow
from ..precision import DTYPES, double
from ..random import Purpose, stream
from ..targets import Target
from .base import Draws, Sampler, SamplerSpec, State, samplers
from .density import DENSITY_TOLERANCE, check_solver

BATCH = 1024


class FlowSampler(Sampler):
    """Draws x from `flow` with `log_w = log p(x) - log q(x)`, log p the target's unnormalised log-density.

    The network runs in the flow's dtype in calls of `batch` configurations; the target's log_prob is
    evaluated in float64 at the stored x, and log q is accumulated in float64. In a float32 flow x is the
    rounded image of the noise, so that log q differs from that of the stored x by rounding: 1.3e-5 at most in a
    trained 8x8 flow; `precision = "float64"` has 1e-13. `log_q(x)` is evaluated in float64 whatever the flow's precision.
    """

    own_density = True
    any_density = True

    def __init__(
        self,
        target: Target,
        flow: Flow,
        batch: int = BATCH,
        density_tolerance: float = DENSITY_TOLERANCE,
        compile: bool = False,
    ):
        if flow.event_shape != target.event_shape:
            raise InputError(f"flow on {flow.event_shape}, target on {target.event_shape}: shapes must agree")
        self.target, self.flow, self.batch = target, flow, batch
        self.any_density = flow.any_density  # a stochastic flow has only that of its paths
        self.density_tolerance, self.compile, self.compiled = density_tolerance, compile, False

    @torch.no_grad()
    def prepare(self) -> None:
        """Compile the flow, where that is asked for; raises `InputError` where it fails."""
        if self.compile and not self.compiled:
            self.flow.compile_parts()
            self.flow.sample(self.batch, stream(0, Purpose.DRAW, 0))
            self.compiled = True

    def check_solver(self, draws: Draws, n: int) -> float:
        """`density.check_solver` on the first n of own draws."""
        own = self.target.field_dtype(self.flow.dtype)
        x = draws.x[:n].to(self.flow.base.like.device, own)
        log_w = draws.log_prob if draws.log_w is None else draws.log_w
        log_q = torch.from_numpy(draws.log_prob - log_w)[:n].to(x.device)
        pairs = zip(x.split(self.batch), log_q.split(self.batch))
        return max(check_solver(self.flow, *pair, self.density_tolerance) for pair in pairs)

    @cached_property
    def _in_float64(self) -> Flow:
        return self.flow if self.flow.dtype == torch.float64 else copy.deepcopy(self.flow).double()

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, None]:
        self.prepare()
        parts = []
        for start in range(0, n, self.batch):
            x, log_q = self.flow.sample(min(self.batch, n - start), rng)
            log_prob = self.target.log_prob(double(x))
            parts.append((x.cpu(), log_prob.cpu().numpy(), (log_prob - log_q).cpu().numpy()))
        x, log_prob, log_w = zip(*parts)
        return Draws(torch.cat(x), np.concatenate(log_prob), np.concatenate(log_w)), None

    @torch.no_grad()
    def log_q(self, x: Tensor) -> Tensor:
        flow = self._in_float64
        parts = double(x).to(flow.base.like.device).split(self.batch)
        return torch.cat([flow.log_prob(part) for part in parts])


def fastest_batch(sampler: FlowSampler, block: int, repeats: int = 3) -> int:
    """The batch with the least seconds for a proposal: of 256, 512, ... up to `block` the first that the next is not 5 %
    faster than, each the least of some draws. Ends before one that does not fit into the memory of a GPU."""
    sampler.prepare()
    best, least = min(block, 256), float("inf")
    for batch in (256 << k for k in range(32)):
        if batch > max(block, 256):
            break
        probe, spent = copy.copy(sampler), []
        probe.batch = batch
        try:
            for i in range(repeats):
                begun = time.perf_counter()
                probe.draw(None, min(batch, block), stream(0, Purpose.DRAW, i))
                spent.append((time.perf_counter() - begun) / min(batch, block))
        except torch.OutOfMemoryError:
            break
        if min(spent) > 0.95 * least:
            break
        best, least = min(batch, block), min(spent)
    return best


@samplers.add("flow")
class FlowSamplerSpec(SamplerSpec):
    """`[sampler.flow]`: `block`, proposals in one block; `batch`, in one call of the network, or "auto": as many as
    `fastest_batch` finds when an ensemble is begun, which then keeps it. (Another batch changes numbers by rounding.)

    `compile`: split and continuous flows by torch.compile, which takes some 20 s a rank the first time: 1.4 to 2
    times the draws a second on a CPU, other rounding; other flows stay as they are. `block` should then be a multiple
    of `batch`.

    `streams`: 0, one Metropolis chain over all proposals; k, one chain for each of k streams over its own proposals,
    independent of one another. Any rank may draw any block in either case. `density_tolerance`: of a flow that is solved
    in steps, the largest change of log q at twice the resolution that is allowed (over the first 4,096 draws, or as many as
    there are, of each rank's first block, and 128 of every other); not what identifies an ensemble. `defensive`: of a flow
    on the unit cube, the share eps of draws by its VEGAS grid alone, `q = (1 - eps) q_flow + eps q_grid` (`flows/cube.py`).
    """

    needs_flow: ClassVar[bool] = True
    block: int = Field(8192, gt=0)
    batch: PositiveInt | Literal["auto"] = BATCH
    compile: bool = False
    streams: int = Field(0, ge=0)
    density_tolerance: float = Field(DENSITY_TOLERANCE, gt=0)
    defensive: float | None = Field(None, gt=0, lt=1)
    precision: Literal["float32", "float64"] = "float32"

    def build(self, target: Target, flow: Flow | None = None, device: str = "cpu") -> FlowSampler:
        if flow is None:
            raise InputError(
                "the flow sampler needs a trained flow: train one first (latticeflow train DECK)"
            )
        if self.defensive is not None:
            if not isinstance(flow, CubeFlow):
                raise InputError(
                    "sampler.flow.defensive: only flows on the unit cube have a VEGAS grid to fall back on"
                )
            flow = flow.defended(self.defensive)
        flow = flow.to(device=device, dtype=DTYPES[self.precision]).eval()
        batch = BATCH if self.batch == "auto" else self.batch
        return FlowSampler(target, flow, batch, self.density_tolerance, self.compile)

    def settled(self, recorded: dict[str, Any] | None, build: Callable[[], Any]) -> SamplerSpec:
        if self.batch != "auto":
            return self
        batch = recorded["batch"] if recorded else fastest_batch(build(), self.block)
        return self.model_copy(update={"batch": batch})
