"""Independent points of the unit cube without a network: flat, and through an adapted VEGAS grid."""

from typing import Any, Literal

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
        map_ = CubeFlow([], self.grid(target, device), 0, 0).to(device, DTYPES[self.precision]).eval()
        return FlowSampler(target, map_, self.batch)


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

    bins: int = Field(64, ge=2)
    iterations: int = Field(10, ge=1)
    evaluations: int = Field(20000, ge=1000)
    alpha: float = Field(0.5, gt=0)
    adaptation_seed: int = Field(0, ge=0)

    def grid(self, target: Hypercube, device: str) -> GridLayer:
        layer = GridLayer(target.dim, self.bins).to(device)
        layer.adapt(target, self.adaptation_seed, self.iterations, self.evaluations, self.alpha)
        return layer
