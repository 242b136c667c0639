"""Networks of the baselines: convolutional with circular padding on lattices, dense on events.

Weights start from numpy streams, uniform in +-1/sqrt(fan_in) as torch's do. Activations are smooth (SiLU, `x sigmoid(x)`),
so that the gradient of a gradient, which a gradient penalty needs, exists everywhere.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..flows.networks import CircularConv
from ..random import uniform
from .coordinates import Coordinates

SMALLEST = 4  # sides below this are not halved: there a kernel of 3 sees all of the lattice already


class Dense(nn.Module):
    """`y = W x + b`, `[batch, inputs] -> [batch, outputs]`."""

    def __init__(self, inputs: int, outputs: int, rng: np.random.Generator):
        super().__init__()
        bound = 1 / math.sqrt(inputs)

        def start(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * uniform(rng, shape, dtype=torch.float32) - 1) * bound)

        self.weight, self.bias = start(outputs, inputs), start(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Halve(nn.Module):
    """Blocks of 2^D sites become channels, `[batch, c, *sides] -> [batch, 2^D c, *(sides / 2)]`."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *sides = x.shape
        dim = len(sides)
        x = x.view(batch, channels, *(n for side in sides for n in (side // 2, 2)))
        inner, outer = range(3, 3 + 2 * dim, 2), range(2, 2 + 2 * dim, 2)
        return x.permute(0, 1, *inner, *outer).reshape(batch, -1, *(side // 2 for side in sides))


class Double(nn.Module):
    """The inverse of `Halve`."""

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, *sides = x.shape
        dim = len(sides)
        x = x.view(batch, channels >> dim, *[2] * dim, *sides)
        order = [axis for mu in range(dim) for axis in (2 + dim + mu, 2 + mu)]
        return x.permute(0, 1, *order).reshape(batch, channels >> dim, *(2 * side for side in sides))


class View(nn.Module):
    """Each configuration in another shape."""

    def __init__(self, *shape: int):
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), *self.shape)


def levels(sides: tuple[int, ...], most: int) -> int:
    """How often all sides can be halved, at most `most` times, none from below `SMALLEST`."""
    found = 0
    while found < most and all(side % 2 == 0 and side >= SMALLEST for side in sides):
        sides, found = tuple(side // 2 for side in sides), found + 1
    return found


def dense_net(widths: list[int], rng: np.random.Generator) -> list[nn.Module]:
    """Dense layers with SiLU between; of two widths one linear map."""
    modules: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        modules += [nn.SiLU()] * (i > 0) + [Dense(inputs, outputs, rng)]
    return modules


def encoder_net(
    at: Coordinates, outputs: int, hidden: tuple[int, ...], rng: np.random.Generator
) -> nn.Sequential:
    """`[batch, channels, *sides] -> [batch, outputs]`.

    On a lattice one convolution (kernel 3, circular) to each of the `hidden` numbers of channels; before each the sides are
    halved, as long as they can be; then one dense layer. Dense elsewhere, with `hidden` widths. Linear without `hidden`.
    """
    if not at.sides or not hidden:
        return nn.Sequential(View(at.volume), *dense_net([at.volume, *hidden, outputs], rng))
    dim, channels, sides = len(at.sides), at.shape[0], at.sides
    modules: list[nn.Module] = []
    for i, width in enumerate(hidden):
        if i < levels(at.sides, len(hidden)):
            modules.append(Halve())
            channels, sides = channels << dim, tuple(side // 2 for side in sides)
        modules += [CircularConv(dim, channels, width, 3, rng), nn.SiLU()]
        channels = width
    flat = channels * math.prod(sides)
    return nn.Sequential(*modules, View(flat), Dense(flat, outputs, rng))


def decoder_net(
    at: Coordinates, inputs: int, hidden: tuple[int, ...], rng: np.random.Generator
) -> nn.Sequential:
    """`[batch, inputs] -> [batch, channels, *sides]`: the mirror image of `encoder_net` with the same `hidden`."""
    if not at.sides or not hidden:
        return nn.Sequential(*dense_net([inputs, *hidden[::-1], at.volume], rng), View(*at.shape))
    dim, halved = len(at.sides), levels(at.sides, len(hidden))
    sides = tuple(side >> halved for side in at.sides)
    widths = [*hidden[::-1], at.shape[0]]
    modules: list[nn.Module] = [Dense(inputs, widths[0] * math.prod(sides), rng), View(widths[0], *sides)]
    for i, (width, following) in enumerate(pairwise(widths)):
        doubling = len(hidden) - 1 - i < halved
        modules += [nn.SiLU(), CircularConv(dim, width, following << dim * doubling, 3, rng)]
        modules += [Double()] * doubling
    return nn.Sequential(*modules)
