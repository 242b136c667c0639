"""The conditional flow: one training for a whole range of couplings, each parameter a polynomial of them.

Every parameter p of an ordinary flow becomes

    p(g) = sum_j c_j P_j(u),    u_i = (2 g_i - a_i - b_i) / (b_i - a_i),    a_i <= g_i <= b_i,

g the couplings (m2, lam, ...), [a_i, b_i] their trained ranges, and P_j the products of Legendre polynomials
`P_{n_1}(u_1) P_{n_2}(u_2) ...` of total degree `n_1 + n_2 + ... <= degree`; P_0 = 1, and c_0 are the parameters of the flow
that is given. At any one point this is an ordinary flow with its exact density, and

    d loss / d c_j = P_j(u) d loss / d p

carries whatever gradient that flow has, path gradients too, to the coefficients.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss, legval
from pydantic import Field, field_serializer, field_validator
from torch import Tensor, nn

from ..errors import InputError
from ..lattice import Lattice
from ..targets import LatticeTarget, Target
from .flow import Flow
from .spec import FlowSpec, flows

Point = dict[str, float]  # the value of each coupling, by its name


class ConditionalFlow(Flow):
    """The family of the module's docstring: `at(lam=5.2)` is an ordinary flow. `self.flow` holds c_0 and all buffers.

    `ranges`: [a, b] of each coupling; `points`: couplings that share the batch of a training step. It has no density
    itself: whatever draws or scores needs a point, and raises `InputError` without.
    """

    any_density = False

    def __init__(self, flow: Flow, ranges: dict[str, tuple[float, float]], degree: int = 3, points: int = 1):
        nn.Module.__init__(self)
        self.flow, self.degree, self.points = flow, degree, points
        self.ranges = dict(sorted(ranges.items()))
        orders = product(range(degree + 1), repeat=len(self.ranges))
        self.orders = sorted((n for n in orders if 0 < sum(n) <= degree), key=lambda n: (sum(n), n))
        # c_j of j >= 1: for each j as many tensors as `flow` has parameters
        zeros = [[torch.zeros_like(p) for p in flow.parameters()] for _ in self.orders]
        self.coefficients = nn.ModuleList(map(nn.ParameterList, zeros))

    @property
    def base(self):  # type: ignore[override]
        return self.flow.base

    @property
    def layers(self):  # type: ignore[override]
        return self.flow.layers

    def basis(self, point: Point) -> list[float]:
        """`P_j(u)` for j >= 1."""
        u = [(2 * point[name] - a - b) / (b - a) for name, (a, b) in self.ranges.items()]
        return [float(math.prod(legval(v, [0] * k + [1]) for v, k in zip(u, n))) for n in self.orders]

    @torch.no_grad()
    def values(self, point: Point) -> list[Tensor]:
        """The parameters p(g), in the order of `self.flow.parameters()`."""
        values = [p.clone() for p in self.flow.parameters()]
        for P_j, c_j in zip(self.basis(point), self.coefficients):
            for value, c in zip(values, c_j):  # type: ignore[call-overload]
                value.add_(c, alpha=P_j)
        return values

    def check(self, point: Point, extrapolate: bool = False) -> Point:
        """`point` itself. Raises `InputError` for other couplings than those of `ranges`, or values outside."""
        wanted = ", ".join(f"{name} in [{a:g}, {b:g}]" for name, (a, b) in self.ranges.items())
        if set(point) != set(self.ranges):
            raise InputError(f"a point of the conditional flow: {point or 'nothing'}; expected {wanted}")
        for name, (a, b) in self.ranges.items():
            if not (a <= point[name] <= b or (extrapolate and math.isfinite(point[name]))):
                raise InputError(
                    f"{name} = {point[name]:g} is outside of what this conditional flow was trained for: {wanted}. "
                    "Train another with a wider range, or ask for at_point(..., extrapolate=True) and look at the ESS"
                )
        return point

    def at(self, **couplings: float) -> Flow:
        """The ordinary flow at one point, a copy. Raises what `check` raises."""
        return self.at_point(couplings)

    def at_point(self, point: Point, extrapolate: bool = False) -> Flow:
        """`at` the couplings in a dict; `extrapolate`: outside of the range, too."""
        values = self.values(self.check(point, extrapolate))
        flow = copy.deepcopy(self.flow)
        with torch.no_grad():
            for p, value in zip(flow.parameters(), values):
                p.copy_(value)
        return flow

    def for_target(self, target: Target) -> Flow:
        """The ordinary flow at the target's couplings. Raises `InputError` where it lacks one, or for one out of range."""
        lacking = [name for name in self.ranges if not isinstance(getattr(target, name, None), float)]
        if lacking:
            raise InputError(f"target '{target.kind}' has no coupling {', '.join(lacking)} to condition on")
        return self.at_point({name: getattr(target, name) for name in self.ranges})

    @contextmanager
    def learning_at(self, point: Point) -> Iterator[Flow]:
        """`self.flow` moved to `point` for a while: gradients that its parameters get meanwhile go to the coefficients."""
        own = list(self.flow.parameters())
        constant, gradients = [p.data for p in own], [p.grad for p in own]
        try:
            for p, value in zip(own, self.values(point)):
                p.data, p.grad = value, None
            yield self.flow
        finally:
            found = [p.grad for p in own]
            for p, c_0, gradient in zip(own, constant, gradients):
                p.data, p.grad = c_0, gradient
            for P_j, c_j in zip([1.0, *self.basis(point)], [own, *self.coefficients]):
                for c, gradient in zip(c_j, found):  # type: ignore[call-overload]
                    if gradient is not None:
                        c.grad = P_j * gradient if c.grad is None else c.grad.add_(gradient, alpha=P_j)

    def training_points(self, step: int) -> list[Point]:
        """The couplings of a training step: the next `points` terms of `u_i = frac(1/2 + n r^{-i})`, `r^(d+1) = r + 1`.

        Any stretch of this sequence fills the ranges of d couplings evenly (Kronecker's sequence; r for d > 1: M. Roberts,
        "The unreasonable effectiveness of quasirandom sequences", 2018), where independent points leave gaps.
        """
        r = 1.5
        for _ in range(60):
            r = (1 + r) ** (1 / (len(self.ranges) + 1))
        found = []
        for n in range(step * self.points, (step + 1) * self.points):
            u = [(0.5 + n * r**-i) % 1 for i in range(1, 1 + len(self.ranges))]
            found.append({name: a + (b - a) * v for v, (name, (a, b)) in zip(u, self.ranges.items())})
        return found

    def probes(self) -> list[Point]:
        """Where it is judged: for one coupling five points from end to end, for more all corners and the centre."""
        if len(self.ranges) == 1:
            ((name, (a, b)),) = self.ranges.items()
            return [{name: float(g)} for g in np.linspace(a, b, 5)]
        corners = [dict(zip(self.ranges, corner)) for corner in product(*self.ranges.values())]
        return [*corners, {name: (a + b) / 2 for name, (a, b) in self.ranges.items()}]

    @torch.no_grad()
    def adopt(self, previous: Flow) -> None:
        """Go on from another family, of another lattice, degree or range, or from an ordinary flow, the same at all points.

        `Flow.adopt` at each of (degree + 1)^d Gauss points, then the polynomials through them (the nearest, where what
        is adopted is none). Raises what it raises, and `InputError` for a family in other couplings.
        """
        nodes = [
            {name: float(a + (b - a) * (1 + v) / 2) for v, (name, (a, b)) in zip(u, self.ranges.items())}
            for u in product(leggauss(self.degree + 1)[0], repeat=len(self.ranges))
        ]
        family = previous if isinstance(previous, ConditionalFlow) else None
        found, member = [], copy.deepcopy(self.flow)
        for node in nodes:
            member.adopt(family.at_point(node, extrapolate=True) if family else previous)
            found.append([p.detach().double().cpu().clone() for p in member.parameters()])
        P = torch.from_numpy(np.array([[1.0, *self.basis(node)] for node in nodes]))
        for own, *values in zip(zip(self.flow.parameters(), *self.coefficients), *found):  # type: ignore[arg-type]
            fitted = torch.linalg.lstsq(P, torch.stack(values).reshape(len(nodes), -1)).solution
            for c, value in zip(own, fitted):
                c.copy_(value.view_as(c))
        for mine, theirs in zip(self.flow.buffers(), member.buffers()):
            mine.copy_(theirs)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        raise self._no_point()

    def push_with_score(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise self._no_point()

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise self._no_point()

    def density_error(self, x: Tensor, log_q: Tensor) -> Tensor:
        raise self._no_point()

    def _no_point(self) -> InputError:
        example = ", ".join(f"{name}={(a + b) / 2:g}" for name, (a, b) in self.ranges.items())
        return InputError(f"a conditional flow has a density at a point only: use flow.at({example})")


def member(flow: Flow, target: Target) -> Flow:
    """The ordinary flow for `target`: of a conditional one that at its couplings, any other flow itself."""
    return flow.for_target(target) if isinstance(flow, ConditionalFlow) else flow


@flows.add("conditional")
class Conditional(FlowSpec):
    """`ConditionalFlow` of the flow in the table `[flow.flow]`, over the couplings in `[flow.range]`: `lam = [4.5, 7.0]`.

    `degree` of the polynomials; `points`: couplings of one training step, among which its batch is shared. The deck's
    target, which must lie in the range, is what `latticeflow sample` draws from; training does not depend on where it lies.
    """

    flow: FlowSpec
    range: dict[str, tuple[float, float]] = Field(min_length=1)
    degree: int = Field(3, ge=0, le=12)
    points: int = Field(1, ge=1)

    @field_validator("flow", mode="before")
    @classmethod
    def _flow(cls, value: Any) -> Any:
        return flows.parse(value) if isinstance(value, dict) else value

    @field_serializer("flow")
    def _table(self, value: FlowSpec) -> dict[str, Any]:
        return flows.table(value)

    def model_post_init(self, context) -> None:
        for name, (a, b) in self.range.items():
            if not a < b:
                raise InputError(f"flow.range.{name} = [{a:g}, {b:g}]: expected [from, to], from < to")
        if self.flow.kind == "conditional":
            raise InputError(
                "a conditional flow of a conditional flow: put all couplings into one [flow.range]"
            )

    def build(self, lattice: Lattice, seed: int) -> ConditionalFlow:
        return ConditionalFlow(self.flow.build(lattice, seed), self.range, self.degree, self.points)

    def build_for(self, target: LatticeTarget, seed: int) -> ConditionalFlow:
        """Raises `InputError` for a target without these couplings, or outside of the range, and for an impossible range."""
        family = self.build(target.lattice, seed)
        family.for_target(target)
        for point in family.probes():
            target.at(**point)
        return family
