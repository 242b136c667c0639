"""Fields and events as what networks read: channels of real numbers, and the way back."""

import math

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..targets import Hypercube, LatticeTarget, Target

EDGE = (
    2.0**-24
)  # points of the cube nearer to its walls are taken for ones at this distance: its quantile is 5.3


class Coordinates(nn.Module):
    """Coordinates y `[batch, *shape]` of configurations x `[batch, *event_shape]`; `shape = (channels, *sides)`.

    `sides`: of a periodic lattice, over which networks are convolutional; () where they are dense. `volume`: how many
    numbers y has. `same_size`: y has as many as x, so that a density of y is one of x: `log_det(x) = log |det dy/dx|`,
    float64 `[batch]`. Here of a scalar field, `y = x` with one channel.
    """

    same_size: bool = True

    def __init__(self, target: Target, channels: int, sides: tuple[int, ...]):
        super().__init__()
        self.event_shape, self.sides, self.shape = target.event_shape, sides, (channels, *sides)
        self.volume = math.prod(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(1)

    def inverse(self, y: Tensor) -> Tensor:
        return y.squeeze(1)

    def log_det(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.float64, device=x.device)


class Angles(Coordinates):
    """Links of U(1) as `(cos theta, sin theta)`: 2 D channels; back by `theta = atan2`, whatever the radius.

    y has twice as many numbers as x, so that a density of y is none of x.
    """

    same_size = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.cos(), x.sin()], 1)

    def inverse(self, y: Tensor) -> Tensor:
        cos, sin = y.chunk(2, 1)
        return torch.atan2(sin, cos)

    def log_det(self, x: Tensor) -> Tensor:
        raise InputError("angles as cosine and sine have no density in y that is one of the angles")


class Probits(Coordinates):
    """Points u of the unit cube by `y = Phi^{-1}(u)`, Phi the normal distribution function: flat u are Gaussian y.

    `log |det dy/du| = sum_i [ y_i^2 / 2 + log(2 pi) / 2 ]`. What is drawn lies in the cube.
    """

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.ndtri(x.clamp(EDGE, 1 - EDGE))

    def inverse(self, y: Tensor) -> Tensor:
        return torch.special.ndtr(y)

    def log_det(self, x: Tensor) -> Tensor:
        return (0.5 * self(x).double().square() + 0.5 * math.log(2 * math.pi)).sum(1)


def coordinates(target: Target) -> Coordinates:
    """Those of the target's fields or events. Raises `InputError` for links in SU(N)."""
    if isinstance(target, Hypercube):
        return Probits(target, target.dim, ())
    if isinstance(target, LatticeTarget) and target.event_shape == target.shape:
        return Coordinates(target, 1, target.shape)
    if getattr(target, "group", "u1") == "u1" and target.event_shape[1:] == getattr(target, "shape", ()):
        return Angles(target, 2 * target.event_shape[0], target.event_shape[1:])
    raise InputError(
        f"[model]: fields of '{target.kind}' of shape {target.event_shape} are neither a scalar field, nor angles of U(1), "
        "nor points of the unit cube: no model is made for them"
    )
