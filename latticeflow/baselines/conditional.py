"""A model for a range of couplings: every parameter of an ordinary model is a polynomial of them, as in conditional flows.

    p(g) = sum_j c_j P_j(u),    u_i = (2 g_i - a_i - b_i) / (b_i - a_i),    a_i <= g_i <= b_i,

P_j products of Legendre polynomials of total degree at most `degree`, P_0 = 1. It learns from ensembles at several couplings
(one of them a step) and interpolates between them.
"""

import copy
import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import legval
from pydantic import Field, field_serializer, field_validator
from torch import Tensor, nn
from torch.func import functional_call

from ..errors import InputError
from ..targets import Target
from .base import Data, Model, ModelSpec, models

Ranges = dict[str, tuple[float, float]]


class ConditionalModel(Model):
    """The family of the module's docstring. `at(target)` is the ordinary model at the target's couplings.

    `terms`: one model of the same kind for each P_j, whose parameters are the c_j; mean, scale and all other buffers are
    those of the first. Averages of weights are linear in them, so that each term keeps its own. Raises `InputError` for a
    model that is computed and not trained, or that is fitted after training.
    """

    def __init__(self, target: Target, model: Model, ranges: Ranges, degree: int):
        super().__init__(target)
        name = type(model).__name__
        if not model.players() or type(model).finish is not Model.finish:
            raise InputError(
                f"a conditional {name}: what is computed from all data at once is of one coupling only; expected a model "
                "that is trained by steps alone (vae, gan, wgan, autoencoder, ...)"
            )
        self.ranges = dict(sorted(ranges.items()))
        self.couplings = tuple(self.ranges)
        orders = product(range(degree + 1), repeat=len(self.ranges))
        self.orders = sorted((n for n in orders if sum(n) <= degree), key=lambda n: (sum(n), n))
        self.terms = nn.ModuleList([model, *(copy.deepcopy(model) for _ in self.orders[1:])])
        with torch.no_grad():
            for term in self.terms[1:]:
                for p in term.parameters():
                    p.zero_()
        self.terms_needed = len(self.orders)
        self.generates, self.density = model.generates, model.density
        self.point(target)

    @property
    def first(self) -> Model:
        return self.terms[0]  # type: ignore[return-value]

    def point(self, target: Target) -> dict[str, float]:
        """The target's couplings. Raises `InputError` where it lacks one, or for one outside of the range."""
        found = {name: getattr(target, name, None) for name in self.ranges}
        for name, (a, b) in self.ranges.items():
            value = found[name]
            if not isinstance(value, float) or not a <= value <= b:
                raise InputError(
                    f"target '{target.kind}' with {name} = {value}; the conditional model is for {name} in [{a:g}, {b:g}]"
                )
        return found  # type: ignore[return-value]

    def basis(self, target: Target) -> list[float]:
        """`P_j(u)`, one for each of `terms`."""
        point = self.point(target)
        u = [(2 * point[name] - a - b) / (b - a) for name, (a, b) in self.ranges.items()]
        return [float(math.prod(legval(v, [0] * k + [1]) for v, k in zip(u, n))) for n in self.orders]

    def require_points(self, targets: Sequence[Target]) -> None:
        """Raise `InputError` where the P_j are not independent at these targets: then interpolation is anything."""
        points = [self.point(target) for target in targets]
        if np.linalg.matrix_rank([self.basis(target) for target in targets]) < len(self.orders):
            raise InputError(
                f"train.others: ensembles at {', '.join(map(str, points))} do not tell {len(self.orders)} polynomials of "
                f"{', '.join(self.couplings)} apart; expected more points, in general position, or a lower model.degree"
            )

    def values(self, target: Target) -> dict[str, Tensor]:
        """The parameters p(g) by name, differentiable in the c_j."""
        basis, parts = self.basis(target), [dict(term.named_parameters()) for term in self.terms]
        return {name: sum(b * part[name] for b, part in zip(basis, parts)) for name in parts[0]}  # type: ignore[misc]

    def at(self, target: Target) -> Model:
        model = copy.deepcopy(self.first)
        with torch.no_grad():
            values = self.values(target)
            for name, p in model.named_parameters():
                p.copy_(values[name])
        return model

    @torch.no_grad()
    def begin(self, data: Data) -> None:
        """The first term's own; the others stay zero: at the start the model is the same at all couplings."""
        self.first.begin(data)
        self.mean.copy_(self.first.mean)
        self.scale.copy_(self.first.scale)

    def players(self) -> dict[str, list[nn.Parameter]]:
        parts = [term.players() for term in self.terms]  # type: ignore[operator]
        return {name: [p for part in parts for p in part[name]] for name in parts[0]}

    def turn(self, step: int) -> str:
        return self.first.turn(step)

    def moved(self, player: str) -> None:
        for term in self.terms:
            term.moved(player)  # type: ignore[operator]

    def loss_at(self, target: Target, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        values = {f"model.{name}": value for name, value in self.values(target).items()}
        return functional_call(_Loss(self.first), values, (player, x, rng))

    def loss(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        raise self._no_point()

    def sample(self, n: int, rng: np.random.Generator) -> Tensor:
        raise self._no_point()

    def log_q(self, x: Tensor, rng: np.random.Generator, k: int) -> tuple[Tensor, Tensor]:
        raise self._no_point()

    def _no_point(self) -> InputError:
        return InputError(
            f"a conditional model is one at given {', '.join(self.ranges)} only: use model.at(target)"
        )


class _Loss(nn.Module):
    """`model.loss` as a module's forward, which is what `functional_call` replaces parameters of."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, player: str, x: Tensor, rng: np.random.Generator) -> Tensor:
        return self.model.loss(player, x, rng)


@models.add("conditional")
class ConditionalSpec(ModelSpec):
    """`[model] kind = "conditional"`: `[model.model]`, an ordinary one; `[model.range]`, e.g. `lam = [4.5, 7.0]`; `degree`.

    It learns from the ensembles train.data and train.others, at as many couplings as there are polynomials or more. The
    deck's target, in the range, is what `latticeflow sample` draws from.
    """

    model: ModelSpec
    range: Ranges = Field(min_length=1)
    degree: int = Field(2, ge=0, le=12)

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value: Any) -> Any:
        return models.parse(value) if isinstance(value, dict) else value

    @field_serializer("model")
    def _table(self, value: ModelSpec) -> dict[str, Any]:
        return models.table(value)

    def model_post_init(self, context) -> None:
        for name, (a, b) in self.range.items():
            if not a < b:
                raise InputError(f"model.range.{name} = [{a:g}, {b:g}]: expected [from, to], from < to")
        if isinstance(self.model, ConditionalSpec):
            raise InputError(
                "a conditional model of a conditional one: put all couplings into one [model.range]"
            )

    def build(self, target: Target, seed: int) -> ConditionalModel:
        """Raises what `ConditionalModel` raises, and `InputError` for a target outside of the range."""
        return ConditionalModel(target, self.model.build(target, seed), self.range, self.degree)
