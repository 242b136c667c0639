"""Flows on the unit cube, what they share: the uniform base, the layer of a VEGAS grid, and how its grid is adapted."""

import numpy as np
import torch
from torch import Tensor

from ..lattice import Lattice
from ..precision import double
from ..random import Purpose, stream, uniform
from ..targets import Hypercube
from ..transforms import grid
from .base import WhiteNoise
from .flow import Flow, Layer


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
            if torch.isfinite(top):  # else no point fell inside the cuts
                edges = grid.refine(edges, x, (log_w - top).exp(), alpha)
        self.edges.copy_(edges)


class CubeFlow(Flow):
    """A flow on the unit cube whose last layer is a VEGAS grid: `x = grid(T(z))`, z uniform.

    `start_on(target, seed)` adapts the grid, before the first step of training. `grid` is the same map without T: what T is
    compared with, and what the density falls back on in a defensive mixture.
    """

    def __init__(self, layers: list[Layer], last: GridLayer, iterations: int, evaluations: int):
        super().__init__(UniformCube(last.edges.shape[0]), [*layers, last])
        self.iterations, self.evaluations = iterations, evaluations

    @property
    def grid(self) -> GridLayer:
        return self.layers[-1]

    def start_on(self, target: Hypercube, seed: int) -> None:
        self.grid.adapt(target, seed, self.iterations, self.evaluations, 0.5)
