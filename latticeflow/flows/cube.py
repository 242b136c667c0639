"""Flows on the unit cube, what they share: the uniform base, the layer of a VEGAS grid, the defensive mixture with it."""

import math

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError, NumericalError
from ..lattice import Lattice
from ..precision import double
from ..random import Purpose, stream, uniform
from ..targets import Hypercube
from ..transforms import grid
from .base import WhiteNoise
from .flow import Flow, Layer

ALPHA = 0.2  # damping where a flow starts: 0.5 is better in few dimensions, and in 16 it can lose a peak


class UniformCube(WhiteNoise):
    """Uniform points of the unit cube: `log r(z) = 0`. Noise is `[n, dim]`."""

    def __init__(self, dim: int):
        super().__init__(Lattice((dim,)))

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        return uniform(rng, (n, *self.event_shape), dtype=self.like.dtype, device=self.like.device)

    def log_white(self, noise: Tensor) -> Tensor:
        return torch.zeros(len(noise), dtype=torch.float64, device=noise.device)

    def score(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


class GridLayer(Layer):
    """The VEGAS map of `transforms.grid`: `bins` bins in each of `dim` coordinates, evenly spaced until `adapt` has moved
    them.

    The edges are no parameters: gradients leave them alone, checkpoints keep them.
    """

    edges: Tensor

    def __init__(self, dim: int, bins: int):
        super().__init__()
        even = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        self.register_buffer("edges", even.float().expand(dim, -1).contiguous())

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return grid.forward(self.edges, y)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return grid.inverse(self.edges, x)

    @torch.no_grad()
    def adapt(self, target: Hypercube, seed: int, iterations: int, evaluations: int, alpha: float) -> None:
        """Refine the edges `iterations` times, each by `evaluations` points of the stream (seed, INIT, 1, iteration)."""
        edges = self.edges.double()
        for i in range(iterations):
            rng = stream(seed, Purpose.INIT, 1, i)
            y = uniform(rng, (evaluations, edges.shape[0]), dtype=torch.float64, device=edges.device)
            x, log_det = grid.forward(edges, y)
            log_w = double(target.log_prob(x)) + log_det
            top = log_w.max()
            if torch.isnan(top) or torch.isposinf(top):
                raise NumericalError(
                    f"{target.kind}: NaN or infinite at {int((~(log_w < top)).sum())} of {evaluations} points"
                )
            if torch.isfinite(top):  # else no point fell inside the cuts
                edges = grid.refine(edges, x, (log_w - top).exp(), alpha)
        self.edges.copy_(edges)


class CubeFlow(Flow):
    """A flow on the unit cube whose last layer is a VEGAS grid: `x = grid(T(z))`, z uniform.

    `start_on` adapts the grid, in `iterations` of `evaluations` points. At the start T is the identity as a rule.
    """

    def __init__(self, layers: list[Layer], last: GridLayer, iterations: int, evaluations: int):
        super().__init__(UniformCube(last.edges.shape[0]), [*layers, last])
        self.iterations, self.evaluations = iterations, evaluations

    @property
    def grid(self) -> GridLayer:
        return self.layers[-1]

    def start_on(self, target: Hypercube, seed: int) -> None:  # type: ignore[override]
        self.grid.adapt(target, seed, self.iterations, self.evaluations, ALPHA)

    def defended(self, share: float) -> "DefensiveFlow":
        """The mixture with `share` of the grid alone; base and layers are this flow's."""
        return DefensiveFlow(self, share)


class DefensiveFlow(Flow):
    """`q(x) = (1 - eps) q_flow(x) + eps q_grid(x)`, q_grid being `flow` without T: a density that no mistake of T makes
    small.

    So `w = f/q <= (1/eps) f/q_grid`: weights are bounded by those of VEGAS over eps (defensive importance sampling,
    Hesterberg, Technometrics 37 (1995) 185). Exact: of every draw both densities are computed, which costs the grid's share
    one inverse of T and the others a look into the grid. Noise is `[n, 1 + dim]`, the first number choosing between the
    two. `eps` = `share`; raises `InputError` unless it lies in (0, 1).
    """

    def __init__(self, flow: CubeFlow, share: float):
        if not 0 < share < 1:
            raise InputError(f"defensive = {share}: expected a share of the grid in (0, 1)")
        super().__init__(flow.base, flow.layers)
        self.share = share

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        like = self.base.like
        return uniform(rng, (n, 1 + self.event_shape[0]), dtype=like.dtype, device=like.device)

    @property
    def _inner(self) -> Flow:
        """T alone, whose base has log-density 0: its log q is that of y, before the grid."""
        return Flow(self.base, self.layers[:-1])

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        y, inner = noise[:, 1:].clone(), self._inner
        by_grid = noise[:, 0] < self.share
        log_flow = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        y[~by_grid], log_flow[~by_grid] = inner.push(y[~by_grid])
        log_flow[by_grid] = inner.log_prob(y[by_grid])
        x, log_det = self.layers[-1](y)
        return x, self._mixed(log_flow) - log_det

    def log_prob(self, x: Tensor) -> Tensor:
        y, log_det = self.layers[-1].inverse(x)
        return self._mixed(self._inner.log_prob(y)) + log_det

    def _mixed(self, log_flow: Tensor) -> Tensor:
        """Log-density of y from that of T; the grid's is 0 there."""
        grid_alone = torch.full_like(log_flow, math.log(self.share))
        return torch.logaddexp(math.log1p(-self.share) + log_flow, grid_alone)
