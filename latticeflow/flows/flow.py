"""A flow: a base density and a sequence of invertible layers."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..targets import Target
from .base import WhiteNoise


class Layer(nn.Module):
    """An invertible map of fields x `[batch, *event_shape]`.

    `forward(x) -> (y, log_det)` with `log_det = log |det dy/dx|`, `[batch]`; `inverse(y) -> (x, log_det)` with
    the log_det of the inverse, `log |det dx/dy|`. `approximate`: log_det is an
    integral in steps, which `refine` makes finer.
    """

    approximate: bool = False

    def refine(self, factor: float) -> None:
        """`factor` times as many steps, where there are any."""

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The inverse at twice the resolution, where there is one; what a density is checked against."""
        return self.inverse(y)

    def compile_parts(self) -> None:
        """Run what is repeated in `forward` and `forward_with_score` by `torch.compile` from now on, where that pays."""

    def adopt(self, previous: "Layer") -> None:
        """The weights of a layer of the same kind on another lattice; here: of a layer that knows of no lattice."""
        self.load_state_dict(previous.state_dict())

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(y, log_det, score_y)`: forward, carrying the score `d log q / dx` along, parameters held fixed.

        `log q(y) = log q(x) + log_det_inverse(y)`, so that `score_y = (dx/dy)^T score + d log_det_inverse / dy`
        (2207.08219, sec. 4; 2403.15881). Here by autograd through the inverse; a layer with a closed form
        overrides this. The score carries no gradient to the parameters.
        """
        y, log_det = self(x)
        with torch.enable_grad():
            end = y.detach().requires_grad_(True)
            start, log_det_inverse = self.inverse(end)
            (score,) = torch.autograd.grad((start * score).sum() + log_det_inverse.sum(), end)
        return y, log_det, score


class Flow(nn.Module):
    """`x = T_n(...T_1(z))`, z from `base`; exact density `log q(x) = log r(z) - sum log_det`.

    `base` is a `WhiteNoise` or `Spectrum`, `layers` are `Layer`s. Fields are `[batch, *event_shape]`;
    log-densities `[batch]`, normalised, flat measure. `any_density`: `log_prob(x)` exists at any x.
    """

    any_density: bool = True
    base: WhiteNoise
    layers: Any  # an nn.ModuleList of Layer, which torch types as modules of any kind

    def __init__(self, base: WhiteNoise, layers: Iterable[Layer]):
        super().__init__()
        self.base = base
        self.layers = nn.ModuleList(layers)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.base.event_shape

    def start_on(self, target: Target, seed: int) -> None:
        """What is adapted to the target before the first step of training, by streams of `seed`; here nothing."""

    @property
    def dtype(self) -> torch.dtype:
        return self.base.like.dtype

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """White noise `[n, *event_shape]` in the flow's dtype and on its device, for `push`."""
        return self.base.noise(n, rng)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """White noise to `(x, log_q)`; differentiable in the parameters (reparametrised)."""
        x, log_q = self.base.push(noise)
        for layer in self.layers:
            x, log_det = layer(x)
            log_q = log_q - log_det
        return x, log_q

    def push_with_score(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`(x, log_q, score)` with `score = d log q(x) / dx` at fixed parameters, without gradient."""
        x, log_q = self.base.push(noise)
        with torch.no_grad():
            score = self.base.score(x)
        for layer in self.layers:
            x, log_det, score = layer.forward_with_score(x, score)
            log_q = log_q - log_det
        return x, log_q, score

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """n independent draws `(x, log_q)` in one call of the network."""
        return self.push(self.noise(n, rng))

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`(z, log_det)` of the inverse of all layers, z distributed as `base`."""
        total = x.new_zeros(len(x), dtype=torch.float64)
        for layer in reversed(self.layers):
            x, log_det = layer.inverse(x)
            total = total + log_det
        return x, total

    def log_prob(self, x: Tensor) -> Tensor:
        """Normalised log-density at any x, `[batch]`."""
        z, log_det = self.inverse(x)
        return self.base.log_prob(z) + log_det

    @property
    def approximate(self) -> bool:
        """Whether the density is one only up to the error of a solver; `density_error` measures it."""
        return any(layer.approximate for layer in self.layers)

    def compile_parts(self) -> None:
        """`Layer.compile_parts` of every layer: the same numbers to rounding, faster, after some 20 s at the first call.

        Calls raise `InputError` where there is no compiler.
        """
        for layer in self.layers:
            layer.compile_parts()

    def refine(self, factor: float = 1.5) -> None:
        """`factor` times as many steps in every layer that is solved in steps."""
        for layer in self.layers:
            layer.refine(factor)

    @torch.no_grad()
    def density_error(self, x: Tensor, log_q: Tensor) -> Tensor:
        """`|log q(x) - log q'(x)|`, q' the same flow at twice the resolution, float64 `[batch]`; zero for exact flows.

        `x`, `log_q`: draws of this flow.
        """
        if not self.approximate:
            return torch.zeros_like(log_q)
        z, total = x, torch.zeros_like(log_q)
        for layer in reversed(self.layers):
            z, log_det = layer.finer_inverse(z)
            total = total + log_det
        return (self.base.log_prob(z) + total - log_q).abs()

    @torch.no_grad()
    def adopt(self, previous: "Flow") -> None:
        """Go on from the weights of a flow on another lattice (or the same one).

        Kernels keep their values as functions of displacement (zero beyond the old reach), spectra are interpolated in
        momentum, everything else is copied. Raises `InputError` where the two differ in kind or dimensions.
        """
        pairs = [(self.base, previous.base), *zip(self.layers, previous.layers)]
        if len(self.layers) != len(previous.layers) or any(type(a) is not type(b) for a, b in pairs):
            raise InputError(
                f"a flow of {_kinds(self)} cannot adopt the weights of one of {_kinds(previous)}: expected the same kinds"
            )
        try:
            for mine, other in pairs:
                mine.adopt(other)
        except RuntimeError as error:  # torch's, of tensors that do not fit
            raise InputError(f"the weights of the earlier flow do not fit: {error}") from None

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def _kinds(flow: Flow) -> str:
    names = [type(flow.base).__name__, *(type(layer).__name__ for layer in flow.layers)]
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
