"""Independent draws from targets that can be sampled exactly: the free field, U(1) in two dimensions."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from .. import exact
from ..errors import InputError
from ..precision import DTYPES, double
from ..targets import Target, Wilson
from ..transforms.plaquettes import curl, independent
from .base import Draws, Sampler, SamplerSpec, State, samplers


class ExactSampler(Sampler):
    """Draws from the target itself: `log q = log_prob - log Z`, so `log_w = log Z` for every draw.

    `sample(n, rng, dtype, device)` gives the draws.
    """

    own_density = True
    any_density = True

    def __init__(
        self,
        target: Target,
        sample: Callable[..., Tensor],
        log_z: float,
        dtype: torch.dtype = torch.float64,
        device: str = "cpu",
    ):
        self.target, self.sample, self.log_z, self.dtype, self.device = target, sample, log_z, dtype, device

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, None]:
        if n < 1:
            raise InputError(f"exact: {n} draws; expected at least 1")
        x = self.sample(n, rng, dtype=self.dtype, device=self.device)
        log_prob = self.target.log_prob(double(x)).cpu().numpy()
        return Draws(x.cpu(), log_prob, np.full(n, self.log_z)), None

    @torch.no_grad()
    def log_q(self, x: Tensor) -> Tensor:
        return self.target.log_prob(double(x)) - self.log_z


def exact_draws(target: Any) -> tuple[Callable[..., Tensor], float] | None:
    """`sample(n, rng, dtype, device)` and log Z of a target, None where there are no exact draws.

    They are the target's own `sample` and `log_z`, if it has them.
    """
    if type(target) is Wilson and target.group == "u1" and len(target.shape) == 2:
        return partial(sample_u1, target), exact.log_z(target.group, target.shape, target.beta)
    if hasattr(target, "sample") and hasattr(target, "log_z"):
        return target.sample, target.log_z
    return None


def sample_u1(target: Wilson, n: int, rng: np.random.Generator, dtype=torch.float64, device="cpu") -> Tensor:
    """n independent configurations of U(1) in two dimensions, `[n, 2, *shape]`, by rejection:

    all plaquettes but one are drawn independently, `p(P) ~ exp(beta cos P)`, and kept with probability
    `exp(beta (cos P(0) - 1))`, P(0) what the torus leaves; that is one in about `sqrt(2 pi beta)`.
    """
    kept: list[Tensor] = []
    while (missing := n - sum(map(len, kept))) > 0:
        theta = independent(missing, target.shape, target.beta, rng)
        log_p = target.beta * (curl(theta)[:, 0, 0].cos() - 1)
        kept.append(theta[-torch.from_numpy(rng.standard_exponential(missing)) < log_p])
    return torch.cat(kept).to(device, dtype)


@samplers.add("exact")
class ExactSpec(SamplerSpec):
    """Settings of exact sampling: the `block` of the store, and the `precision` of x."""

    block: int = Field(8192, ge=1)
    precision: Literal["float64", "float32"] = "float64"

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> ExactSampler:
        """The sampler. Raises `InputError` for a target that has no exact sampler of its own."""
        found = exact_draws(target)
        if found is None:
            raise InputError(
                f"exact: target '{target.kind}' cannot be sampled exactly; the free field ('free') and "
                "'wilson' of u1 in two dimensions can. Use flow or hmc, and for gauge fields heatbath"
            )
        return ExactSampler(target, *found, DTYPES[self.precision], device)
