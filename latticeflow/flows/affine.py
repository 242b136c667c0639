"""Affine checkerboard couplings with small convolutional networks (1904.12072, eq. 9 and 10; 2101.08176, sec. III)."""

import torch
from pydantic import Field
from torch import Tensor, nn

from ..lattice import Lattice
from ..random import Purpose, stream
from ..transforms.affine import affine, affine_inverse
from .base import BaseName, make_base
from .flow import Flow, Layer
from .networks import conv_net
from .spec import FlowSpec, flows


class AffineCoupling(Layer):
    """`phi_active -> e^{s(phi_frozen)} phi_active + t(phi_frozen)`, sites of one parity frozen.

    `net` maps `[batch, 1, *shape]` to `[batch, 2, *shape]`, the channels s and t. With `z2`, s is made even and t
    odd, `s = (s(phi) + s(-phi)) / 2`, `t = (t(phi) - t(-phi)) / 2`, so that the layer commutes with phi -> -phi exactly.
    """

    frozen: Tensor

    def __init__(self, lattice: Lattice, frozen_parity: int, net: nn.Module, z2: bool = False):
        super().__init__()
        lattice.require_even("a checkerboard coupling")
        self.net, self.z2 = net, z2
        frozen = torch.from_numpy(lattice.parity == frozen_parity)
        self.register_buffer("frozen", frozen, persistent=False)

    def scale_and_shift(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(s, t)`, both zero on frozen sites, each `[batch, *shape]`."""
        frozen = torch.where(self.frozen, x, 0).unsqueeze(1)
        s, t = self.net(frozen).unbind(1)
        if self.z2:
            s_minus, t_minus = self.net(-frozen).unbind(1)
            s, t = (s + s_minus) / 2, (t - t_minus) / 2
        return torch.where(self.frozen, 0, s), torch.where(self.frozen, 0, t)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.scale_and_shift(x)
        return affine(x, t, s)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        s, t = self.scale_and_shift(y)
        return affine_inverse(y, t, s)


@flows.add("affine")
class Affine(FlowSpec):
    """Real NVP on the lattice: `layers` affine couplings of alternating parity, networks with `hidden` channels."""

    layers: int = Field(16, gt=0)
    hidden: tuple[int, ...] = (8, 8)
    kernel: int = Field(3, gt=0)
    z2: bool = False
    base: BaseName = "spectrum"
    base_m2: float = 1.0

    def build(self, lattice: Lattice, seed: int) -> Flow:
        rng = stream(seed, Purpose.INIT)
        layers = [
            # the first layer moves the even sites
            AffineCoupling(
                lattice,
                frozen_parity=(i + 1) % 2,
                net=conv_net(lattice.dim, [1, *self.hidden, 2], self.kernel, rng),
                z2=self.z2,
            )
            for i in range(self.layers)
        ]
        return Flow(make_base(self.base, lattice, self.base_m2), layers)


@flows.add("tutorial")
class Tutorial(Affine):
    """The flow of the 2101.08176 tutorial notebook: 16 layers, white noise, 12,960 parameters in 2D."""

    base: BaseName = "white"
