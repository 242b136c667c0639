"""The stochastic flow of gauge fields: a flow of paths (`paths.py`) from one beta to another, with heat baths between
gauge-equivariant layers (2412.00200).

`S_l` is Wilson's action at `beta_l = beta_0 + (beta - beta_0) l / L`, r the ensemble at beta_0, made by heat bath,
`log r = -S` at beta_0. So `log q` lacks `log Z(beta_0)`, and `<p / q> = Z(beta) / Z(beta_0)`. Layers that do nothing, as at
the start, leave the path of non-equilibrium Monte Carlo (Jarzynski's).
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice
from ..precision import double
from ..targets import LatticeTarget, Target, Wilson
from ..transforms.heatbath import update_links
from .base import HaarBase
from .flow import Flow
from .paths import PathFlow
from .spec import FlowSpec, flows
from .stout import Stout


class HeatBathBase(HaarBase):
    """The ensemble of `target`, `log r = -S` without its constant: each draw from links 1 by `sweeps` sweeps of its own,
    and a turn by the centre.

    Its noise is a seed for each draw, int64 `[n]`: a heat bath needs as many random numbers as it happens to reject.
    """

    def __init__(self, target: Wilson, sweeps: int, overrelaxation: int):
        super().__init__(target.lattice, target.links)
        self.target, self.sweeps, self.overrelaxation = target, sweeps, overrelaxation

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        return torch.from_numpy(rng.integers(2**63, size=n, dtype=np.int64)).to(self.like.device)

    @torch.no_grad()
    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        one = self.like.to(self.group.dtype(self.like.dtype))
        x = self.group.identity((len(noise), self.lattice.dim, *self.lattice.shape), one).contiguous()
        rng = generator(noise, 0)
        x = turn_by_centre(sweep(self.target, x, rng, self.sweeps, self.overrelaxation), self.group.n, rng)
        return x, self.log_prob(x)

    def log_prob(self, z: Tensor) -> Tensor:
        return self.target.log_prob(double(z))

    def score(self, z: Tensor) -> Tensor:
        return self.target.force(z)


def turn_by_centre(x: Tensor, n: int, rng: np.random.Generator) -> Tensor:
    """Links times elements of SU(N)'s centre, random ones of each configuration and direction, on one slice across it.

    A symmetry of the action, under which Polyakov loops change: from links 1, deconfined, few sweeps would find it.
    """
    dim = x.shape[1]
    angles = torch.from_numpy(rng.integers(n, size=(len(x), dim)) * (2 * math.pi / n))
    turns = torch.polar(torch.ones_like(angles), angles).to(x)
    x = x.clone()
    for mu in range(dim):
        x[:, mu].select(1 + mu, 0).mul_(turns[:, mu].view(-1, *[1] * (x.dim() - 3)))
    return x


def generator(noise: Tensor, part: int) -> np.random.Generator:
    """Of one part of the paths with these seeds, together."""
    return np.random.default_rng(np.random.SeedSequence(noise.tolist(), spawn_key=(part,)))


def sweep(target: Wilson, x: Tensor, rng: np.random.Generator, sweeps: int, overrelaxation: int) -> Tensor:
    """x after `sweeps` sweeps of heat bath, each with `overrelaxation` sweeps of over-relaxation."""
    for _ in range(sweeps):
        x = update_links(target, x, rng)
        for _ in range(overrelaxation):
            x = update_links(target, x, None)
    return target.settle(x)


class StochasticGaugeFlow(PathFlow):
    """The flow of the module's docstring from beta_0 to `target`, a layer of `layers` for each of its L steps.

    Draws of one call share their random numbers' generators: another division into calls, and in training another number
    of ranks, gives other, equally distributed numbers.
    """

    def __init__(
        self, base: HeatBathBase, layers: list[Stout], target: Wilson, updates: int, overrelaxation: int
    ):
        super().__init__(base, [[layer] for layer in layers], np.arange(1, len(layers) + 1) / len(layers))
        self.target, self.beta_0 = target, base.target.beta
        self.updates, self.overrelaxation = updates, overrelaxation

    def at(self, b: float) -> Wilson:
        """The theory at `beta_0 + b (beta - beta_0)`."""
        return self.target.at(beta=self.beta_0 + b * (self.target.beta - self.beta_0))

    def action(self, x: Tensor, b: float) -> Tensor:
        return self.at(b).action(double(x))

    def start(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.push(noise)

    def update_noise(self, noise: Tensor) -> Iterator[tuple[np.random.Generator]]:
        for l in range(len(self.ends)):
            yield (generator(noise, l + 1),)

    @torch.no_grad()
    def update(self, x: Tensor, l: int, rng: np.random.Generator) -> Tensor:  # type: ignore[override]
        return sweep(self.at(float(self.b[l])), x, rng, self.updates, self.overrelaxation)

    def path_terms(self, noise: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Reparametrised gradients of the blocks' objectives, each taken where its block is: memory is that of one block."""
        x, log_q = self.start(noise)
        surrogate = log_q.new_zeros(())
        for l, (layers, b, rng) in enumerate(self.blocks(noise)):
            (layer,), last = layers, l == len(self.ends) - 1
            y, log_det = layer(x)
            s = -target.log_prob(double(y)) if last else self.action(y, b)
            slopes = torch.autograd.grad((s - log_det).sum(), list(layer.parameters()))
            for slope, parameter in zip(slopes, layer.parameters()):
                surrogate = surrogate + (slope * parameter).sum()
            x, log_q = y.detach(), log_q - log_det.detach()
            if last:
                return (surrogate / len(noise)).expand(len(noise)), log_q + s.detach()
            x = self.update(x, l, rng)
            log_q = log_q + s.detach() - self.action(x, b)
        raise InputError("a flow of paths without blocks")


@flows.add("stochastic_gauge")
class StochasticGauge(FlowSpec):
    """SU(2) or SU(3) in two to four dimensions, from `beta0` to the target's beta in `steps` equal steps.

    A step is a layer (`stout.py`), then `updates` sweeps of heat bath, each with `overrelaxation` sweeps of over-relaxation,
    at the step's beta (none after the last, which would not change the weights). `thermalisation`: sweeps, each with one of
    over-relaxation, that make a draw at beta0 from links 1. Sides must be even.
    """

    beta0: float = Field(ge=0)
    steps: int = Field(16, ge=1)
    updates: int = Field(1, ge=1)
    overrelaxation: int = Field(0, ge=0)
    thermalisation: int = Field(30, ge=1)

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "stochastic_gauge: the flow's Monte Carlo steps need one target: in Python use build_for(target, seed)"
        )

    def build_for(self, target: LatticeTarget, seed: int) -> StochasticGaugeFlow:
        """The flow with layers that do nothing yet. Raises `InputError` for another target than Wilson's of SU(2) and
        SU(3), and for odd sides.
        """
        if type(target) is not Wilson:  # what inherits from it has more than plaquettes in its action
            raise InputError(
                f"stochastic_gauge: heat baths are known for target 'wilson'; found '{target.kind}'"
            )
        layers = [Stout(target.links, target.lattice) for _ in range(self.steps)]
        base = HeatBathBase(target.at(beta=self.beta0), self.thermalisation, overrelaxation=1)
        return StochasticGaugeFlow(base, layers, target, self.updates, self.overrelaxation)
