"""What a baseline is: a model that learns from stored configurations, and how it is trained.

A baseline is trained by minimising losses over batches of data. Most have one player; a game (a GAN) has several, who take
turns. The loop is `training/fit.py`; a model tells it who moves (`turn`), what with (`players`) and by which loss.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import InputError
from ..random import normal
from ..spec import Registry, Spec
from ..targets import Target
from .coordinates import coordinates

# all configurations in pieces [n, *event_shape], which may be walked as often as needed: [x] is one
Data = Iterable[Tensor]


class Model(nn.Module):
    """A model of configurations x `[batch, *event_shape]` of one target, in single or double precision.

    Networks see `inward(x) = (y - mean) / scale`, y the target's `Coordinates`, `[batch, channels, *sides]` on a lattice and
    `[batch, dim]` of events; `outward` is the way back. mean and scale are set by `begin` and stored with the weights.

    Capabilities: `generates`, `sample` draws from the model; `density`, what is known of its density at a given x: "none",
    or "bound", a lower bound and an estimate by importance weighting. No baseline has an exact density: exact
    correction of its draws is refused everywhere.
    """

    generates: bool = False
    density: Literal["none", "bound"] = "none"
    couplings: tuple[str, ...] = ()  # of a family of models (`conditional.py`): those that it depends on
    terms_needed: int = 1  # of a family: couplings that it must have learned from
    per_component: ClassVar[bool] = False  # the mean of each component on its own, and one scale for all
    mean: Tensor
    scale: Tensor

    def __init__(self, target: Target):
        super().__init__()
        self.kind, self.event_shape, self.coordinates = target.kind, target.event_shape, coordinates(target)
        self.register_buffer("mean", torch.zeros(self.coordinates.shape))
        self.register_buffer("scale", torch.ones(self.coordinates.shape))

    @property
    def volume(self) -> int:
        """Numbers of one configuration as networks see it."""
        return self.coordinates.volume

    def inward(self, x: Tensor) -> Tensor:
        """x as networks see it, in the model's precision. Raises `InputError` for another event shape."""
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"x of shape {tuple(x.shape)}; expected [batch, {', '.join(map(str, self.event_shape))}]"
            )
        return (self.coordinates(x).to(self.mean) - self.mean) / self.scale

    def outward(self, y: Tensor) -> Tensor:
        """The configuration that networks see as y."""
        return self.coordinates.inverse(y * self.scale + self.mean)

    def noise(self, shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
        """Standard normal numbers in the model's precision, on its device."""
        return normal(rng, shape, dtype=self.mean.dtype, device=self.mean.device)

    def parameter_count(self) -> int:
        return sum(p.numel() for p in self.parameters())

    @torch.no_grad()
    def begin(self, data: Data) -> None:
        """Set from data what is not trained by steps, before the first; here mean and scale.

        On a lattice those of each channel over all sites, of events of each component, so that inward(x) has mean 0 and
        variance 1. Walks twice; sums in float64. Raises `InputError` for data without a configuration.
        """
        axes = tuple(range(1, 1 + len(self.coordinates.sides)))

        def numbers(x: Tensor) -> Tensor:
            return self.coordinates(x.to(self.mean.device).double())

        mean = mean_over(data, numbers)
        if not self.per_component:
            mean = _over(mean, axes)
        variance = mean_over(data, lambda x: (numbers(x) - mean).square())
        variance = variance.mean() if self.per_component else _over(variance, axes)
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(variance > 0, variance, 1.0).sqrt())

    def players(self) -> dict[str, list[nn.Parameter]]:
        """The trained parameters of each player; empty where `begin` is all there is to do."""
        return {"model": [p for p in self.parameters() if p.requires_grad]}

    def turn(self, step: int) -> str:
        """The player who moves at the step counted from 0."""
        return "model"

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        """What `player` makes smaller, a mean over the batch; all its randomness comes from rng."""
        raise NotImplementedError

    def loss_at(self, target: Target, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        """`loss` of configurations of `target`; of a family, of its member there."""
        return self.loss(player, x, rng)

    def at(self, target: Target) -> "Model":
        """The member of a family at the target's couplings; of an ordinary model itself."""
        return self

    def require_points(self, targets: Sequence[Target]) -> None:
        """Raise `InputError` where ensembles of these targets do not tell the parameters of a family."""

    def moved(self, player: str) -> None:
        """Called after each step of a player: for averages of weights and the like."""

    def finish(self, data: Data) -> None:
        """Set from data what comes after the last step."""

    def report(self, x: Tensor, rng: np.random.Generator) -> dict[str, float]:
        """Numbers for the log on configurations x that were not trained on, lower being better or as their names say."""
        return {}

    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        """n independent configurations `[n, *event_shape]`, in the model's precision. Raises `InputError` where the model

        does not generate.
        """
        raise InputError(f"{type(self).__name__} generates nothing: it has no sampler")

    def log_q(self, x: Tensor, rng: np.random.Generator, k: int) -> tuple[Tensor, Tensor]:
        """An estimate of the model's log-density at x and its error, float64 `[batch]` each, from k importance samples.

        Raises `InputError` where `density` is "none".
        """
        raise InputError(f"{type(self).__name__} has no density, and no bound of it")

    def log_det(self, x: Tensor) -> Tensor:
        """`log |det d inward(x) / dx|`, float64 `[batch]`: what turns a log-density of inward(x) into one of x."""
        return self.coordinates.log_det(x) - self.scale.double().log().sum()


def mean_over(data: Data, of: Callable[[Tensor], Tensor]) -> Tensor:
    """The mean over all configurations of `of(x)`, which has a row for each; float64. Raises `InputError` for no data."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for x in data:
        part = of(x).double().sum(0)
        total, n = total.to(part.device) + part, n + len(x)
    if not n:
        raise InputError("a model needs at least one configuration to begin with")
    return total / n


def covariance(data: Data, of: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Mean `[d]` and covariance `[d, d]` (over n) of `of(x)` `[n, d]`, float64, in two walks and constant memory."""
    mean = mean_over(data, of)
    total, n = mean.new_zeros(len(mean), len(mean)), 0
    for x in data:
        centred = of(x).double() - mean
        total, n = total + centred.T @ centred, n + len(x)
    return mean, total / n


def _over(mean: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Means over sites, in the shape that they came in."""
    return mean.mean(axes, keepdim=True).expand_as(mean) if axes else mean


class ModelSpec(Spec):
    """Settings of a model, as in `[model]` of a deck. `build(target, seed)` makes it, its weights drawn from `seed`."""

    kind: ClassVar[str]

    def build(self, target: Target, seed: int) -> Model:
        raise NotImplementedError


models: Registry[ModelSpec] = Registry("model")


def require_latent(latent: int, model: Model) -> None:
    """Raise `InputError` unless 1 <= latent <= numbers of a configuration."""
    if not 1 <= latent <= model.volume:
        raise InputError(
            f"model.latent = {latent}: expected 1 to {model.volume}, the numbers of one configuration"
        )


def mean_square(x: Tensor) -> Tensor:
    """The mean square of each configuration's numbers, `[batch]`."""
    return x.flatten(1).square().mean(1)


def log_normal(x: Tensor, log_variance: Tensor | float = 0.0) -> Tensor:
    """`sum_i log N(x_i; 0, v_i)`, float64 `[batch]`; log v broadcasts over x."""
    x = x.double()
    log_v = torch.as_tensor(log_variance, dtype=torch.float64, device=x.device).expand_as(x)
    return -0.5 * (x.square() * (-log_v).exp() + log_v + math.log(2 * math.pi)).flatten(1).sum(1)
