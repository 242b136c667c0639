"""Independent draws from targets that can be sampled exactly, such as the free field."""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..precision import DTYPES, double
from ..targets import Target
from .base import Draws, Sampler, SamplerSpec, State, samplers


class ExactSampler(Sampler):
    """Draws from the target itself: `log q = log_prob - log Z`, so `log_w = log Z` for every draw.

    For targets with `sample(n, rng, dtype, device)` and `log_z`.
    """

    own_density = True
    any_density = True

    target: Any  # with sample and log_z, which ExactSpec.build has looked for

    def __init__(self, target: Target, dtype: torch.dtype = torch.float64, device: str = "cpu"):
        self.target, self.dtype, self.device = target, dtype, device

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, None]:
        if n < 1:
            raise InputError(f"exact: {n} draws; expected at least 1")
        x = self.target.sample(n, rng, dtype=self.dtype, device=self.device)
        log_prob = self.target.log_prob(double(x)).cpu().numpy()
        return Draws(x.cpu(), log_prob, np.full(n, self.target.log_z)), None

    @torch.no_grad()
    def log_q(self, x: Tensor) -> Tensor:
        return self.target.log_prob(double(x)) - self.target.log_z


@samplers.add("exact")
class ExactSpec(SamplerSpec):
    """Settings of exact sampling: the `block` of the store, and the `precision` of x."""

    block: int = Field(8192, ge=1)
    precision: Literal["float64", "float32"] = "float64"

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> ExactSampler:
        """The sampler. Raises `InputError` for a target that has no exact sampler of its own."""
        if not (hasattr(target, "sample") and hasattr(target, "log_z")):
            raise InputError(
                f"exact: target '{target.kind}' cannot be sampled exactly; the free field ('free') can. "
                "Use flow, hmc or emcee"
            )
        return ExactSampler(target, DTYPES[self.precision], device)
