"""Independent points of the unit cube without a network: flat, and through an adapted VEGAS grid."""

import hashlib
from typing import Any, Literal

import torch
from pydantic import Field

from ..errors import InputError
from ..flows.cube import CubeFlow, GridLayer
from ..precision import DTYPES
from ..targets import Hypercube, Target
from .base import SamplerSpec, samplers
from .flow import FlowSampler


class CubeSpec(SamplerSpec):
    """What `flat` and `vegas` share: `block`, proposals in one block; `batch`, in one call of the integrand."""

    block: int = Field(16384, gt=0)
    batch: int = Field(4096, gt=0)
    precision: Literal["float32", "float64"] = "float64"

    def grid(self, target: Hypercube, device: str) -> GridLayer:
        raise NotImplementedError

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> FlowSampler:
        """The sampler. Raises `InputError` for a target that is not on the unit cube."""
        if not isinstance(target, Hypercube):
            raise InputError(f"{self.kind}: target '{target.kind}' does not live on the unit cube")
        layer = self.grid(target, device).to(DTYPES[self.precision])
        sampler = FlowSampler(
            target, CubeFlow([], layer, 0, 0).to(device, DTYPES[self.precision]).eval(), self.batch
        )
        sampler.made_of = hashlib.sha256(layer.edges.cpu().numpy().tobytes()).hexdigest()
        return sampler


@samplers.add("flat")
class FlatSpec(CubeSpec):
    """`[sampler.flat]`: uniform points, `log w = log f`: plain Monte Carlo, what the rest is measured by."""

    def grid(self, target: Hypercube, device: str) -> GridLayer:
        return GridLayer(target.dim, 1)


@samplers.add("vegas")
class VegasSpec(CubeSpec):
    """`[sampler.vegas]`: uniform points through a grid of `bins` bins in each coordinate (`transforms.grid`).

    The grid is adapted when the sampler is built, in `iterations` of `evaluations` points each with damping `alpha`, by
    random numbers that `adaptation_seed` names: every rank finds the same grid, and it is fixed before the first draw.
    """

    bins: int = Field(64, ge=2, le=4096)
    iterations: int = Field(10, ge=1)
    evaluations: int = Field(20000, ge=1000)
    alpha: float = Field(0.5, gt=0, le=4)
    adaptation_seed: int = Field(0, ge=0)

    def grid(self, target: Hypercube, device: str) -> GridLayer:
        layer = GridLayer(target.dim, self.bins).to(device, torch.float64)
        layer.adapt(target, self.adaptation_seed, self.iterations, self.evaluations, self.alpha)
        return layer
