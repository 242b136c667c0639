"""Generative adversarial networks: a generator g(n) that is only drawn from, against a critic d(y).

y = inward(x), n noise, y_g = g(n); means are over the batch. What the two players make smaller, in turn:

    minimax (Goodfellow et al., 1406.2661, eq. 1), D = sigmoid(d) the probability that y is data
        critic      - < log D(y) > - < log (1 - D(y_g)) >
        generator     < log (1 - D(y_g)) >
    non-saturating (there, section 3): the critic's is the same
        generator   - < log D(y_g) >
    Wasserstein with gradient penalty (Gulrajani et al., 1704.00028, eq. 3)
        critic      < d(y_g) > - < d(y) > + penalty < ( |grad d(y_e)| - 1 )^2 >,   y_e = e y + (1 - e) y_g
        e uniform in [0, 1] for each pair
        generator   - < d(y_g) >

The critic moves `critic_steps` times before each move of the generator. No density comes out of this: the model draws, and
what is wrong with its draws is for diagnostics to see.
"""

import copy
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..errors import InputError
from ..random import Purpose, stream, uniform
from ..targets import Target
from .base import Data, Model, ModelSpec, models
from .coordinates import coordinates
from .gan_networks import DenseCritic, DenseGenerator, FieldCritic, FieldGenerator

Network = Any  # a generator or a critic of gan_networks.py


class Game(Model):
    """Generator and critic in turn; subclasses say what each makes smaller.

    Drawn is with `averaged`, the exponential mean of the generator's weights over its moves m, with the rate
    `max(1 - average, 1 / (m + 1))`: the game goes round its equilibrium, and the mean lies nearer to it than any moment.

    `sign`: a draw is g(n) or -g(n), with equal chances: phi -> -phi holds exactly, and both wells of a broken phase are
    there by construction.
    """

    generates = True
    moves: Tensor

    def __init__(self, target: Target, generator: Network, critic: Network, spec: "GameSpec"):
        super().__init__(target)
        self.generator, self.critic = generator, critic
        self.averaged = copy.deepcopy(generator).requires_grad_(False)
        self.critic_steps, self.average, self.sign = spec.critic_steps, spec.average, spec.sign
        self.register_buffer("moves", torch.zeros((), dtype=torch.int64))

    def begin(self, data: Data) -> None:
        super().begin(data)
        self.generator.start(data, self.inward, self.sign)
        self.averaged.load_state_dict(self.generator.state_dict())

    def players(self) -> dict[str, list[nn.Parameter]]:
        return {"critic": list(self.critic.parameters()), "generator": list(self.generator.parameters())}

    def turn(self, step: int) -> str:
        return "critic" if step % (self.critic_steps + 1) < self.critic_steps else "generator"

    @torch.no_grad()
    def moved(self, player: str) -> None:
        if player != "generator":
            return
        self.moves += 1
        rate = max(1 - self.average, 1 / (int(self.moves) + 1))
        for mean, now in zip(self.averaged.parameters(), self.generator.parameters()):
            mean.lerp_(now, rate)

    def draw(self, generator: Network, n: int, rng: np.random.Generator) -> Tensor:
        """n draws as networks see them, differentiable in the generator's weights."""
        y = generator(self.noise((n, *generator.noise_shape), rng))
        if self.sign:
            y = self.signs(n, rng).view(n, *[1] * (y.dim() - 1)) * y
        return y if self.coordinates.same_size else self.inward(self.outward(y))

    def signs(self, n: int, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.choice([-1.0, 1.0], size=n)).to(self.mean)

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        if player == "generator":
            return self.generator_loss(self.critic(self.draw(self.generator, len(x), rng)))
        with torch.no_grad():
            y_g = self.draw(self.generator, len(x), rng)
        return self.critic_loss(self.inward(x), y_g, rng)

    def generator_loss(self, d_g: Tensor) -> Tensor:
        """Of `d(y_g)`, `[batch]`."""
        raise NotImplementedError

    def critic_loss(self, y: Tensor, y_g: Tensor, rng: np.random.Generator) -> Tensor:
        """Of data y and draws y_g, `[batch, *coordinates.shape]` each."""
        raise NotImplementedError

    @torch.no_grad()
    def report(self, x: Tensor, rng: np.random.Generator) -> dict[str, float]:
        """`gap`: `< d(y) > - < d(y_g) >` of held-out data and draws; of a WGAN an estimate, from below, of

        their Wasserstein distance in y, as far as |grad d| <= 1.
        """
        y_g = self.draw(self.averaged, len(x), rng)
        return {"gap": float(self.critic(self.inward(x)).mean() - self.critic(y_g).mean())}

    @torch.no_grad()
    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        return self.outward(self.draw(self.averaged, n, rng))


class Gan(Game):
    """`objective` "minimax" or "non_saturating": the module's formulas."""

    def __init__(self, target: Target, generator: Network, critic: Network, spec: "GanSpec"):
        super().__init__(target, generator, critic, spec)
        self.objective = spec.loss

    def critic_loss(self, y: Tensor, y_g: Tensor, rng: np.random.Generator) -> Tensor:
        return softplus(-self.critic(y)).mean() + softplus(self.critic(y_g)).mean()

    def generator_loss(self, d_g: Tensor) -> Tensor:
        return -softplus(d_g).mean() if self.objective == "minimax" else softplus(-d_g).mean()


class Wgan(Game):
    """Wasserstein with gradient penalty: the module's formulas."""

    def __init__(self, target: Target, generator: Network, critic: Network, spec: "WganSpec"):
        super().__init__(target, generator, critic, spec)
        self.weight = spec.penalty

    def critic_loss(self, y: Tensor, y_g: Tensor, rng: np.random.Generator) -> Tensor:
        e = uniform(rng, (len(y), *[1] * (y.dim() - 1)), dtype=y.dtype, device=y.device)
        between = e * y + (1 - e) * y_g
        penalty = (gradient_norm(self.critic, between) - 1).square().mean()
        return self.critic(y_g).mean() - self.critic(y).mean() + self.weight * penalty

    def generator_loss(self, d_g: Tensor) -> Tensor:
        return -d_g.mean()


def gradient_norm(critic: Network, y: Tensor) -> Tensor:
    """`|d critic(y) / dy|`, `[batch]`, differentiable in the critic's weights."""
    y = y.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(y).sum(), y, create_graph=True)
    return gradient.flatten(1).norm(dim=1)


class GameSpec(ModelSpec):
    """Settings of a game. `noise`: fields of noise on lattices, numbers on events. `generator`, `critic`: their `hidden`

    channels or widths. `filtered`: `FieldGenerator` starts from the data's spectrum. `sign`, `average`: `Game`.
    `critic_steps`: moves of the critic before each of the generator; train.steps counts the moves of both.

    For [train] of games: betas = [0.5, 0.9], since the losses move while they are minimised; rates = { critic = 1.5 }.
    """

    noise: int = Field(2, ge=1)
    generator: tuple[PositiveInt, ...] = (8, 8)
    critic: tuple[PositiveInt, ...] = (16, 32, 32)
    filtered: bool = True
    sign: bool = False
    average: float = Field(0.995, ge=0, lt=1)
    critic_steps: int = Field(5, ge=1)

    def networks(self, target: Target, seed: int) -> tuple[Network, Network]:
        """Generator and critic. Raises `InputError` for fewer noise fields than channels, for `sign` of no scalar field."""
        at, rng = coordinates(target), stream(seed, Purpose.INIT)
        if self.sign and not (at.sides and at.shape[0] == 1):
            raise InputError(f"model.sign: '{target.kind}' has no symmetry phi -> -phi; leave it out")
        if at.sides:
            generator = FieldGenerator(at, self.noise, self.generator, self.filtered, rng)
            return generator, FieldCritic(at, self.critic, rng)
        return DenseGenerator(at, self.noise, self.generator, rng), DenseCritic(at, self.critic, rng)


@models.add("gan")
class GanSpec(GameSpec):
    """`[model] kind = "gan"`: `loss`, "minimax" or "non_saturating"; the rest as of `GameSpec`."""

    loss: Literal["minimax", "non_saturating"] = "non_saturating"

    def build(self, target: Target, seed: int) -> Gan:
        return Gan(target, *self.networks(target, seed), self)


@models.add("wgan")
class WganSpec(GameSpec):
    """`[model] kind = "wgan"`: `penalty`, the weight of the gradient penalty; the rest as of `GameSpec`."""

    penalty: float = Field(10.0, gt=0)

    def build(self, target: Target, seed: int) -> Wgan:
        return Wgan(target, *self.networks(target, seed), self)
