"""A gauge-equivariant continuous flow of SU(2) and SU(3) in two dimensions: links drift along gradients of Wilson loops.

`dU/dt = i v_a T_a U` on every link, `v_a = sum_x sum_n f_n(x; t) d_a W_n(x)`, `W_n(x) = Re tr P(x)^n / N`, n = 1, ...,
`powers`, d_a the left derivative at the link, and

`f_n(x; t) = w_n(t) + sum_m sum_y K_nm(x - y; t) W_m(y)`

with kernels by orbits of the displacement, all coefficients sums of cosines in time: Luescher's trivializing flow
(0907.5491) in the form of 2212.08469, with kernels of any range. Gauge transformations, translations and charge conjugation
are exact; the lattice's reflections and rotations to the order of the solver, whose steps multiply links from the left. The
divergence is a sum over plaquettes, and over links with their two plaquettes p and q:

`div v = sum_x [ 4 sum_n f_n L_n + 4 sum_nm K_nm(0) D_n(x) . D_m(x) ] + sum_links 2 sum_nm K_nm(p - q) D_n(p) . D_m(q)`,
`D_n(p) = d_a W_n(p)` at the link,
`L_n = d_a d_a W_n = -(n / 2N) Re [ (N^2 - n) / N tr P^n + sum_{k=1}^{n-1} tr P^k tr P^{n-k} ]`.

By the Cayley-Hamilton theorem the powers of P are never made: with `A'` the algebra's part of A (`matrices.algebra`),
`(P^n)' = (zeta_n P)'`, zeta_n a polynomial in t = tr P: `zeta_n = h_{n-1}` (N = 2), `h_{n-1} - h_{n-2}^*` (N = 3), h the
traces of symmetric powers, `h_k = t h_{k-1} - h_{k-2}` and `t h_{k-1} - t^* h_{k-2} + h_{k-3}`. So
`i D_n T = -(n / 2N) (zeta_n P)'`, and D_n . D_m of two plaquettes follows from tr P Q, tr P Q^dagger and the two traces.

Steps: `transforms.commutator_free`. The density is that of the solver, as for scalars' continuous flow.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError, LatticeflowError
from ..groups import SU
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..transforms import commutator_free
from ..transforms.commutator_free import Rate, Values
from ..transforms.convolution import bases, eigenvalues, to_momentum, to_position
from ..transforms.heatbath import dagger, product
from ..transforms.matrices import (
    Planes,
    algebra,
    from_algebra,
    from_planes,
    to_algebra,
    to_planes,
    trace,
)
from ..transforms.plaquette_views import overlaps, velocity, views
from .base import HaarBase
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel

ITERATIONS = 60


class Drift:
    """v and div v at one time.

    `constant` w_n `[powers]`; `kernel` eigenvalues of K_nm `[powers, powers, V]`; `near` K_nm at displacement 0, e_0 and e_1
    `[3, powers, powers]`.
    """

    def __init__(self, group: SU, lattice: Lattice, constant: Tensor, kernel: Tensor, near: Tensor):
        self.group, self.lattice = group, lattice
        self.constant, self.kernel = constant, kernel
        n = torch.arange(1, len(constant) + 1, dtype=constant.dtype, device=constant.device)
        self.factor = -n.view(-1, 1, 1, 1) / (2 * group.n)
        # what the divergence asks for: n m K_nm, symmetric; of a lattice point itself and twice of its neighbours
        scale = torch.tensor([4.0, -2.0, -2.0]).to(constant).view(3, 1, 1) / (4 * group.n**2)
        self.near = scale * n * n[:, None] * (near + near.mT) / 2

    def __call__(self, links: Tensor) -> tuple[Tensor, Tensor]:
        """v `[batch, 2, *shape, N^2 - 1]` and div v `[batch]` of links `[batch, 2, *shape, N, N]`."""
        velocity, divergence = self.planes(to_planes(links))
        return from_algebra(self.group, velocity), divergence

    def planes(self, links: Tensor) -> tuple[Tensor, Tensor]:
        """The same of links `[N, N, 2, *shape, batch]`, `i v_a T_a` as a matrix (`transforms.matrices`)."""
        n = self.group.n
        p, below, beside = views(links)
        t = trace(p)
        traces, zeta = self.class_functions(t)
        f = self.coefficients(traces.real / n)
        whole = (self.factor * f * zeta).sum(0)
        v = velocity(whole, torch.roll(whole, 1, 1), torch.roll(whole, 1, 0), p, below, beside)
        divergence = 4 * (f * self.laplacians(traces)).sum(0)
        square = t * t * (1 - 1 / n) - 2 * (t.conj() if n == 3 else 1.0)
        divergence = divergence + self.paired(0, zeta, zeta, n - t * t.conj() / n, square)
        for place, axis, other in ((2, 1, below), (1, 0, beside)):
            behind = torch.roll(zeta, 1, 1 + axis)
            divergence = divergence + self.paired(place, zeta, behind, *overlaps(p, other))
        return v, divergence.sum((0, 1), dtype=torch.float64)

    def class_functions(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`tr P^n` and zeta_n of the module's docstring, `[powers, *shape, batch]`, t = tr P."""
        one = torch.ones_like(t)
        traces, schur = [self.group.n * one, t], [torch.zeros_like(t), one]
        for values in (traces, schur):
            older = 0.0 if values is schur else t.conj()
            for _ in range(len(self.constant) - 1):
                if self.group.n == 2:
                    values.append(t * values[-1] - values[-2])
                else:
                    values.append(t * values[-1] - t.conj() * values[-2] + older)
                    older = values[-3]
        if self.group.n == 2:
            return torch.stack(traces[1:]), torch.stack(schur[1:])
        zeta = [b - a.conj() for a, b in pairwise(schur)]
        return torch.stack(traces[1:]), torch.stack(zeta)

    def coefficients(self, w: Tensor) -> Tensor:
        """f_n of W_m, both `[powers, *shape, batch]`."""
        matrices = bases(self.lattice, w.dtype, w.device)
        momentum = to_momentum(matrices, w.flatten(1, 2))
        mixed = torch.einsum("nmk,mkb->nkb", self.kernel, momentum)
        f = to_position(matrices, mixed.contiguous()).view_as(w)
        return f + self.constant.view(-1, 1, 1, 1)

    def laplacians(self, traces: Tensor) -> Tensor:
        """L_n, `[powers, *shape, batch]`."""
        n, found = self.group.n, []
        for power in range(1, len(traces) + 1):
            total = (n * n - power) / n * traces[power - 1]
            for k in range(1, power):
                total = total + traces[k - 1] * traces[power - k - 1]
            found.append(-power / (2 * n) * total.real)
        return torch.stack(found)

    def paired(self, place: int, a: Tensor, b: Tensor, minus: Tensor, plus: Tensor) -> Tensor:
        """`sum_nm K_nm D_n . D_m` of plaquettes p, q with zeta_n = a, b, times what the divergence asks for;

        minus = `tr P Q^+ - tr P tr Q^+ / N`, plus = `tr P Q - tr P tr Q / N`.
        """
        mixed = torch.tensordot(self.near[place].to(b.dtype), b, 1)
        return ((a * mixed.conj()).sum(0) * minus - (a * mixed).sum(0) * plus).real


class TrivializingLayer(Layer):
    """The flow of the module's docstring, from t = 0 to t = 1 in `steps` steps."""

    approximate = True
    steps: Tensor

    def __init__(self, group: SU, lattice: Lattice, powers: int, modes: int, steps: int):
        super().__init__()
        self.group, self.lattice, self.powers, self.modes = group, lattice, powers, modes
        orbits = int(lattice.displacement_orbits.max()) + 1
        self.constant = nn.Parameter(torch.zeros(powers, modes))
        self.kernel = nn.Parameter(torch.zeros(powers, powers, modes, orbits))
        self.register_buffer("steps", torch.tensor(steps))

    def refine(self, factor: float) -> None:
        self.steps.copy_(torch.ceil(self.steps * factor))

    def drift(self, t: float) -> Drift:
        return self.drifts([t])[0]

    def drifts(self, times: list[float]) -> list[Drift]:
        """The drifts at these times, made together."""
        t = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
        cosines = torch.cos(math.pi * t * torch.arange(self.modes)).to(self.kernel)
        values = torch.einsum("tb,nmbo->tnmo", cosines, self.kernel)
        orbits = self.lattice.displacement_orbits
        places = [orbits[0, 0], orbits[1 % orbits.shape[0], 0], orbits[0, 1 % orbits.shape[1]]]
        near = torch.stack([values[..., int(place)] for place in places], 1)
        momenta = values @ eigenvalues(self.lattice, values.dtype, values.device)
        constants = cosines @ self.constant.T
        return [Drift(self.group, self.lattice, *one) for one in zip(constants, momenta, near)]

    def _drift_at(self, steps: int) -> Callable[[float], Drift]:
        """The drift at any time that `steps` steps from 0 to 1 ask for."""
        drifts = self.drifts([k / (2 * steps) for k in range(2 * steps + 1)])
        return lambda t: drifts[round(2 * steps * t)]

    def _rate(self, steps: int) -> Rate:
        drift = self._drift_at(steps)

        def rate(t: float, u: Tensor, y: Values) -> tuple[Tensor, Values]:
            velocity, divergence = drift(t).planes(u)
            return velocity, (divergence,)

        return rate

    def _rate_with_score(self, steps: int) -> Rate:
        """`ds_a/dt = -d_a div v - s_b d_a v_b - f_abc v_b s_c` along the flow, parameters held fixed.

        Left derivatives do not commute: `[d_a, d_b] = f_abc d_c`.
        """
        drift = self._drift_at(steps)

        def rate(t: float, u: Tensor, y: Values) -> tuple[Tensor, Values]:
            score = y[1]
            with torch.enable_grad():
                u = u if u.requires_grad else u.detach().requires_grad_()
                v, divergence = drift(t).planes(u)
                covectors = 2 * score, torch.ones_like(divergence)  # v . s = 2 Re sum conj(V) S
                (slope,) = torch.autograd.grad((v, divergence), u, covectors, retain_graph=True)
            with torch.no_grad():
                # s's rate is that of [V, S], less the left derivative: half of (U slope^+)', negative
                turn = product(v, score).mul_(4).add_(product(u, dagger(slope)))
            return v, (divergence.detach(), algebra(turn).mul_(0.5))

        return rate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, 1)

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score by the same steps: that of the density to the order of the solver, not to rounding."""
        steps, u = int(self.steps), to_planes(x)
        rate = self._rate_with_score(steps)
        y: Values = (_zero(x), to_algebra(self.group, score))
        for k in range(steps):
            u, y = commutator_free.step(Planes, rate, k / steps, 1 / steps, u, y)
            y = tuple(one.detach() for one in y)
        return from_planes(u), y[0], from_algebra(self.group, y[1])

    def _run(self, x: Tensor, direction: int, times: int = 1) -> tuple[Tensor, Tensor]:
        steps = int(self.steps) * times
        rate, u = self._rate(steps), to_planes(x)
        y: Values = (_zero(x),)
        for k in range(steps):
            t = k / steps if direction > 0 else 1 - k / steps
            u, y = commutator_free.step(Planes, rate, t, direction / steps, u, y)
        return from_planes(u), y[0]

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(y, -1, 2)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each step undone to rounding, the last first, as in the continuous flow of scalars."""
        steps, u = int(self.steps), to_planes(y)
        rate, log_det = self._rate(steps), _zero(y)
        for k in reversed(range(steps)):
            u, change = self._undo(rate, k / steps, 1 / steps, u)
            log_det = log_det - change
        return from_planes(u), log_det

    def _undo(self, rate: Rate, t: float, h: float, end: Tensor) -> tuple[Tensor, Tensor]:
        """x with `step(x) = end`, and the step's log_det, by `x <- end step(x)^dagger x`."""
        zero = (torch.zeros(end.shape[-1], dtype=torch.float64, device=end.device),)
        start = commutator_free.step(Planes, rate, t + h, -h, end, zero)[0]
        allowed = 64 * torch.finfo(end.real.dtype).eps
        for _ in range(ITERATIONS):
            reached, (change,) = commutator_free.step(Planes, rate, t, h, start, zero)
            if not (reached - end).abs().max() > allowed:
                return start, change
            a, b, c = (from_planes(one) for one in (end, reached, start))
            start = to_planes(self.group.project(a @ b.mH @ c))
        raise LatticeflowError(
            f"inverse of a step of the gauge flow: not within {allowed:.2g} after {ITERATIONS} iterations. Are links and "
            f"weights finite? If so, {int(self.steps)} steps are too few for this flow"
        )

    def adopt(self, previous: "TrivializingLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement; the rest copied."""
        kernel = travel_kernel(previous.kernel, previous.lattice, self.lattice)
        self.load_state_dict({"kernel": kernel, "constant": previous.constant, "steps": previous.steps})


def _zero(x: Tensor) -> Tensor:
    return torch.zeros(len(x), dtype=torch.float64, device=x.device)


@flows.add("trivializing")
class Trivializing(FlowSpec):
    """The flow of SU(2) and SU(3) in two dimensions from Haar's measure: `powers` of the plaquette, `modes` cosines in time,
    `steps` to start with (training raises them where the density asks for it).
    """

    powers: int = Field(3, ge=1, le=6)
    modes: int = Field(4, ge=1)
    steps: int = Field(8, ge=1)

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "trivializing: the flow needs the target's group: in Python use build_for(target, seed)"
        )

    def build_for(self, target: LatticeTarget, seed: int) -> Flow:
        """Raises `InputError` for another target than SU(2) or SU(3) in two dimensions."""
        if not isinstance(target, Wilson) or not isinstance(target.links, SU) or len(target.shape) != 2:
            found = getattr(target, "group", target.kind)
            raise InputError(
                f"trivializing: a flow of su2 and su3 in two dimensions; found {found} on {target.shape}"
            )
        layer = TrivializingLayer(target.links, target.lattice, self.powers, self.modes, self.steps)
        return Flow(HaarBase(target.lattice, target.links), [layer])
