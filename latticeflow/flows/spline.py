"""Rational-quadratic spline flows on the unit cube: couplings, and the autoregressive variant.

Both end with a VEGAS grid and start as it: splines at the identity. The networks see the coordinates before the grid, in
which the marginal densities are flat already.
"""

from itertools import pairwise
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..lattice import Lattice
from ..random import Purpose, stream
from ..targets import Hypercube, Target
from ..transforms import spline
from .cube import CubeFlow, GridLayer
from .flow import Layer
from .spec import FlowSpec, flows

BLOBS = 16  # of each coordinate that a network sees


def features(y: Tensor, periodic: Tensor) -> Tensor:
    """Coordinates `[batch, d]` as inputs of a network, `[batch, d, BLOBS]`: one-blob encoding (1808.03856, sec. 4.3).

    `exp( -(BLOBS (y - c_j))^2 / 2 )`, `c_j = (j + 1/2) / BLOBS`, the distance being that on a circle where a coordinate is
    periodic. With it a small network finds edges, such as those of cuts, that it does not find from y itself.
    """
    centres = (torch.arange(BLOBS, dtype=y.dtype, device=y.device) + 0.5) / BLOBS
    distance = y[..., None] - centres
    distance = torch.where(periodic[:, None], distance - distance.round(), distance)
    return (-0.5 * (BLOBS * distance).square()).exp()


class Bank(nn.Module):
    """`count` networks of one shape side by side: weights `[count, in, out]`, so that all are one batched product.

    The last layer starts at zero, and with it every spline at the identity.
    """

    def __init__(self, count: int, sizes: list[int], rng: np.random.Generator, fan_in: Tensor | None = None):
        super().__init__()
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (n, m) in enumerate(pairwise(sizes)):
            last = i == len(sizes) - 2
            fans = fan_in if i == 0 and fan_in is not None else torch.full((count,), n)
            bound = fans.clamp_min(1).double().rsqrt()[:, None, None]
            w = torch.from_numpy(rng.uniform(-1, 1, (count, n, m))) * bound
            b = torch.from_numpy(rng.uniform(-1, 1, (count, 1, m))) * bound
            self.weights.append(nn.Parameter((0 * w if last else w).float()))
            self.biases.append(nn.Parameter((0 * b if last else b).float()))

    def all(self, x: Tensor) -> Tensor:
        """x `[count, batch, in]` to `[count, batch, out]`."""
        for i, (w, b) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(b, functional.leaky_relu(x, 0.01) if i else x, w)
        return x

    def one(self, k: int, x: Tensor) -> Tensor:
        """Network k alone: x `[batch, fewer]`, the first of its inputs, the others being zero."""
        for i, (w, b) in enumerate(zip(self.weights, self.biases)):
            x = torch.addmm(b[k], functional.leaky_relu(x, 0.01) if i else x, w[k, : x.shape[1]])
        return x


class SplineAutoregressive(Layer):
    """`x_k = S_k(z_k)`, the spline's parameters being a network of `x_1 ... x_{k-1}`: one layer can be any density.

    Each coordinate has a network of its own, so that drawing costs the same d networks and splines as the density; the
    latter computes all at once. Splines run from x to z, that the direction of training has no root.
    """

    periodic: Tensor
    mask: Tensor

    def __init__(
        self,
        dim: int,
        periodic: tuple[int, ...],
        bins: int,
        hidden: tuple[int, ...],
        rng: np.random.Generator,
    ):
        super().__init__()
        self.dim, width = dim, BLOBS
        self.register_buffer("periodic", torch.tensor([i in periodic for i in range(dim)]), persistent=False)
        k = torch.arange(dim)
        mask = (k[:, None] > k[None, :]).repeat_interleave(width, 1)  # network k sees coordinates before k
        self.register_buffer("mask", mask[:, None, :].float(), persistent=False)
        sizes = [dim * width, *hidden, spline.parameters(bins)]
        self.bank = Bank(dim, sizes, rng, fan_in=k * width)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        seen = z.new_zeros(len(z), 0)
        log_det = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        columns = []
        for k in range(self.dim):
            raw = self.bank.one(k, seen)
            periodic = self.periodic[k]
            knots = spline.knots(raw, periodic)
            x, slope = spline.inverse(z[:, k], knots)
            columns.append(x)
            log_det = log_det + slope
            if k < self.dim - 1:
                seen = torch.cat([seen, features(x[:, None], periodic[None])[:, 0]], 1)
        return torch.stack(columns, 1), log_det

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inputs = features(x, self.periodic).flatten(1) * self.mask
        knots = spline.knots(self.bank.all(inputs), self.periodic[:, None])
        z, slope = spline.forward(x.T, knots)
        return z.T, slope.double().sum(0)


class SplineCoupling(Layer):
    """`x_i = S_i(z_i)` for the coordinates that `moves` names, the parameters of all being one network of the others."""

    moved: Tensor
    seen: Tensor
    moved_circle: Tensor
    seen_circle: Tensor

    def __init__(
        self,
        moves: Tensor,
        periodic: tuple[int, ...],
        bins: int,
        hidden: tuple[int, ...],
        rng: np.random.Generator,
    ):
        super().__init__()
        circle = torch.tensor([i in periodic for i in range(len(moves))])
        for name, value in (
            ("moved", moves.nonzero()[:, 0]),
            ("seen", (~moves).nonzero()[:, 0]),
            ("moved_circle", circle[moves]),
            ("seen_circle", circle[~moves]),
        ):
            self.register_buffer(name, value, persistent=False)
        self.numbers = spline.parameters(bins)
        sizes = [BLOBS * len(self.seen), *hidden, self.numbers * len(self.moved)]
        self.bank = Bank(1, sizes, rng)

    def _map(self, x: Tensor, step) -> tuple[Tensor, Tensor]:
        raw = self.bank.one(0, features(x[:, self.seen], self.seen_circle).flatten(1))
        knots = spline.knots(raw.unflatten(1, (len(self.moved), self.numbers)), self.moved_circle)
        y, slope = step(x[:, self.moved], knots)
        return x.index_copy(1, self.moved, y), slope.double().sum(1)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(z, spline.inverse)

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x, spline.forward)


def partitions(dim: int) -> list[Tensor]:
    """Which coordinates each coupling moves, bool `[dim]`: by every binary digit of their number, once those with 0 and once
    those with 1.

    `2 ceil(log2 dim)` couplings, in which every pair of coordinates is parted at least once (i-flow, 2001.05486, sec. 3.2).
    """
    k = torch.arange(dim)
    digits = [(k >> b) & 1 for b in range(max(1, (dim - 1).bit_length()))]
    return [digit == value for digit in digits for value in (0, 1)]


class CubeFlowSpec(FlowSpec):
    """What flows on the unit cube share. `grid_bins`: of the VEGAS grid, adapted before training in `iterations` of
    `evaluations` points each. `bins` of each spline; `hidden` layers of the networks."""

    on: ClassVar[type[Target]] = Hypercube
    bins: int = Field(16, ge=2, le=128)
    hidden: tuple[PositiveInt, ...] = (64, 64)
    grid_bins: int = Field(64, ge=2, le=4096)
    iterations: int = Field(10, ge=0)
    evaluations: int = Field(20000, ge=1000)

    def build(self, lattice: Lattice, seed: int):
        raise InputError(f"[flow] kind = '{self.kind}' lives on the unit cube; it has no lattice")

    def build_for(self, target: Hypercube, seed: int) -> CubeFlow:  # type: ignore[override]
        if not isinstance(target, Hypercube):
            raise InputError(
                f"[flow] kind = '{self.kind}' lives on the unit cube; target '{target.kind}' does not"
            )
        layers = self.make_layers(target, stream(seed, Purpose.INIT))
        return CubeFlow(layers, GridLayer(target.dim, self.grid_bins), self.iterations, self.evaluations)

    def make_layers(self, target: Hypercube, rng: np.random.Generator) -> list[Layer]:
        raise NotImplementedError


@flows.add("spline")
class Spline(CubeFlowSpec):
    """Spline couplings, two for each binary digit of the coordinates' numbers (`partitions`), then the grid.

    The architecture of i-flow (2001.05486) and MadNIS (2212.06172). Raises `InputError` in one dimension.
    """

    def make_layers(self, target: Hypercube, rng: np.random.Generator) -> list[Layer]:
        if target.dim < 2:
            raise InputError(
                f"spline couplings in {target.dim} dimension; expected 2, or kind = 'spline_autoregressive'"
            )
        return [
            SplineCoupling(moves, target.periodic, self.bins, self.hidden, rng)
            for moves in partitions(target.dim)
        ]


@flows.add("spline_autoregressive")
class AutoregressiveSpline(CubeFlowSpec):
    """One autoregressive layer of splines (`SplineAutoregressive`), then the grid: the better one up to some 16
    dimensions."""

    def make_layers(self, target: Hypercube, rng: np.random.Generator) -> list[Layer]:
        return [SplineAutoregressive(target.dim, target.periodic, self.bins, self.hidden, rng)]
