"""Heat bath and over-relaxation of gauge links, and winding updates of U(1) in two dimensions."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..groups import wrap
from ..precision import DTYPES, double
from ..targets import Target, Wilson
from ..transforms.heatbath import update_links
from .base import Draws, Sampler, SamplerSpec, State, samplers


@samplers.add("heatbath")
class HeatBathSpec(SamplerSpec):
    """`[sampler.heatbath]`: C chains at once. A step is one stored configuration of every chain.

    `thin`: sweeps per step; a sweep is one of heat bath, `overrelaxation` of over-relaxation, and `winding` winding updates
    (U(1) in two dimensions only). `thermalisation`: sweeps before the first draw, from a cold start. Other settings: as
    HMC's.
    """

    chains: int = Field(128, ge=1)
    streams: int = Field(8, ge=1)
    block: int = Field(8192, ge=1)
    thin: int = Field(1, ge=1)
    overrelaxation: int = Field(3, ge=0)
    winding: int = Field(0, ge=0)
    thermalisation: int = Field(300, ge=1)

    def model_post_init(self, context) -> None:
        if self.block % self.chains:
            raise InputError(
                f"{self.kind}: block = {self.block} is not a multiple of chains = {self.chains}; expected e.g. block = "
                f"{max(1, self.block // self.chains) * self.chains}"
            )

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "HeatBath":
        """The sampler. Raises `InputError` for another target than Wilson's, for odd sides, and for winding elsewhere than
        in U(1) in two dimensions."""
        if type(target) is not Wilson:  # what inherits from it has more than plaquettes in its action
            raise InputError(
                f"{self.kind}: the action of target '{target.kind}' is no sum over links with staples; expected "
                "'wilson'. Use hmc"
            )
        target.lattice.require_even(self.kind)
        if self.winding and (target.group != "u1" or len(target.shape) != 2):
            raise InputError(
                f"{self.kind}: winding = {self.winding} for {target.group} on {target.shape}; winding updates are known for "
                "u1 in two dimensions"
            )
        return HeatBath(target, self, device)


class HeatBath(Sampler):
    """Sweeps of heat bath and over-relaxation (`transforms/heatbath.py`), and winding updates of all chains at once.

    A winding update adds or takes off, with equal probability, the field of one instanton, 2 pi / V on every plaquette, and
    is accepted with `min(1, exp(-dS))`: it moves Q where everything else is frozen.

    Everything but the random numbers is done on the device. State: `x`, `log_prob`. `Draws.info`, with winding:
    `winding_acceptance` of a step.
    """

    def __init__(self, target: Wilson, spec: HeatBathSpec, device: str = "cpu"):
        self.target: Wilson = target
        self.spec, self.device, self.chains = spec, device, spec.chains
        self.dtype = DTYPES[spec.precision]
        self.field_dtype = target.field_dtype(self.dtype)

    @torch.no_grad()
    def start(self, stream: int, rng: np.random.Generator) -> State:
        """From all links 1, `thermalisation` sweeps."""
        one = torch.zeros((), dtype=self.field_dtype, device=self.device)
        dim = len(self.target.shape)
        x = self.target.links.identity((self.chains, dim, *self.target.shape), one).contiguous()
        for _ in range(self.spec.thermalisation):
            x, _ = self.sweep(x, rng)
        return self._state(x)

    def _state(self, x: Tensor) -> State:
        return {"x": x.cpu().numpy(), "log_prob": self.target.log_prob(double(x)).cpu().numpy()}

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State]:
        """n configurations, n a multiple of `chains`: draw i is step i // chains of chain i % chains."""
        expected = (self.chains, *self.target.event_shape)
        if n < 1 or n % self.chains:
            raise InputError(f"heatbath: {n} draws; expected a positive multiple of {self.chains} chains")
        if state is None or state["x"].shape != expected:
            raise InputError(f"heatbath: expected a state that `start` gave, with x of shape {expected}")
        x = torch.from_numpy(state["x"]).to(self.device)
        steps = n // self.chains
        xs, acceptance = torch.empty((steps, *x.shape), dtype=x.dtype), np.zeros(steps)
        for i in range(steps):
            for _ in range(self.spec.thin):
                x, accepted = self.sweep(x, rng)
                acceptance[i] += accepted / self.spec.thin
            xs[i] = x
        flat = xs.flatten(0, 1)
        pieces = [self.target.log_prob(double(piece)) for piece in flat.split(1024)]
        info = {"winding_acceptance": acceptance} if self.spec.winding else {}
        return Draws(flat, torch.cat(pieces).numpy(), info=info), self._state(x)

    def sweep(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        """One sweep of all links of every chain: the new x, and the share of winding updates that were accepted."""
        x = update_links(self.target, x, rng)
        for _ in range(self.spec.overrelaxation):
            x = update_links(self.target, x, None)
        accepted = 0.0
        for _ in range(self.spec.winding):
            x, ok = winding_update(self.target, x, rng)
            accepted += ok / self.spec.winding
        return self.target.settle(x), accepted


@lru_cache(maxsize=16)
def instanton(shape: tuple[int, int]) -> Tensor:
    """Angles `[2, *shape]`, float64, of the field with 2 pi / V on every plaquette, modulo 2 pi, and Q = 1."""
    (a, b), volume = shape, shape[0] * shape[1]
    theta = torch.zeros(2, a, b, dtype=torch.float64)
    theta[1] = 2 * math.pi / volume * torch.arange(a, dtype=torch.float64)[:, None]
    theta[0, a - 1] = -2 * math.pi / b * torch.arange(b, dtype=torch.float64)
    return theta


def winding_update(target: Wilson, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """One winding update of every chain: the new x, and the share that was accepted."""
    sign = torch.from_numpy(rng.integers(2, size=len(x)) * 2.0 - 1).to(x)
    shift = sign.view(-1, 1, 1, 1) * instanton(target.shape).to(x)  # type: ignore[arg-type]
    new = wrap(x + shift)
    change = target.log_prob(double(new)) - target.log_prob(double(x))
    ok = -torch.from_numpy(rng.standard_exponential(len(x))).to(change) < change
    return torch.where(ok.view(-1, 1, 1, 1), new, x), float(ok.double().mean())
