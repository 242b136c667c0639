"""Convolutional networks on the periodic lattice, in one to four dimensions."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import InputError
from ..random import uniform

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class CircularConv(nn.Module):
    """Cross-correlation with periodic boundaries, `[batch, in, *shape] -> [batch, out, *shape]`, D = 1 to 4.

    `y_o(s) = b_o + sum_{i, |d_mu| <= (k-1)/2} W_oi(d) x_i(s + d)`, odd kernel size k. Weights and biases start
    uniform in +-1/sqrt(fan_in), torch's default. torch has no 4D convolution: there it is a sum over
    shifts along the first axis of 3D ones. Without `bias` b = 0. Raises `InputError` for an even kernel.
    """

    def __init__(
        self,
        dim: int,
        channels_in: int,
        channels_out: int,
        kernel: int,
        rng: np.random.Generator,
        bias: bool = True,
    ):
        super().__init__()
        if kernel % 2 == 0 or kernel < 1:
            raise InputError(f"convolution kernel of size {kernel}: expected an odd size")
        self.dim, self.reach = dim, kernel // 2
        bound = 1 / math.sqrt(channels_in * kernel**dim)

        def start(*shape: int) -> nn.Parameter:
            return nn.Parameter((2 * uniform(rng, shape, dtype=torch.float32) - 1) * bound)

        self.weight = start(channels_out, channels_in, *(kernel,) * dim)
        self.bias = start(channels_out) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.dim < 4:
            return self._conv(x, self.weight, self.bias)
        batch, channels, length, *rest = x.shape
        total = x.new_zeros(()) if self.bias is None else self.bias.view(1, -1, 1, 1, 1, 1)
        for k in range(2 * self.reach + 1):
            shifted = torch.roll(x, self.reach - k, dims=2).transpose(1, 2).reshape(-1, channels, *rest)
            y = self._conv(shifted, self.weight[:, :, k], None)
            total = total + y.unflatten(0, (batch, length)).transpose(1, 2)
        return total

    def _conv(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dim = x.dim() - 2
        for axis in range(2, x.dim()):  # by hand, since circular padding may not exceed the side in torch
            side = x.shape[axis]
            index = torch.arange(-self.reach, side + self.reach, device=x.device) % side
            x = x.index_select(axis, index)
        return _CONV[dim](x, weight, bias)


def conv_net(
    dim: int, channels: list[int], kernel: int, rng: np.random.Generator, final_tanh: bool = True
) -> nn.Sequential:
    """Convolutions with LeakyReLU (slope 0.01) between and, with `final_tanh`, a tanh at the end."""
    modules: list[nn.Module] = []
    for i, (channels_in, channels_out) in enumerate(pairwise(channels)):
        if i:
            modules.append(nn.LeakyReLU())
        modules.append(CircularConv(dim, channels_in, channels_out, kernel, rng))
    if final_tanh:
        modules.append(nn.Tanh())
    return nn.Sequential(*modules)
