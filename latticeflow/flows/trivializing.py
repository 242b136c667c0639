"""A gauge-equivariant continuous flow of SU(2) and SU(3) in two dimensions: links drift along gradients of Wilson loops.

`dU/dt = i v_a T_a U` on every link, `v_a = sum_x [ sum_n f_n(x; t) d_a W_n(x) + r(t) d_a R(x) ]`, d_a the left derivative,
`W_n(x) = Re tr P(x)^n / N`, n = 1, ..., `powers`, R(x) that of the two rectangles of two plaquettes at x, and

`f_n(x; t) = w_n(t) + sum_m sum_y K_nm(x - y; t) W_m(y)`

with kernels by orbits of the displacement, all coefficients sums of cosines in time: Luescher's trivializing flow
(0907.5491) in the form of 2212.08469, with kernels of any range. Gauge transformations, translations and charge conjugation
are exact; the lattice's reflections and rotations to the order of the solver, whose steps multiply links from the left.

Rectangles are what the second order of Luescher's expansion asks for beside products of plaquettes: of a flow trained
without them, log w went with their sum (correlation 0.65 on SU(2), 8x8, beta = 2.2). v and its divergence:
`transforms.loop_drift`; steps: `transforms.commutator_free`. The density is that of the solver, as for scalars' continuous
flow.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError, LatticeflowError
from ..groups import SU
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..transforms import commutator_free
from ..transforms.commutator_free import Rate, Values
from ..transforms.convolution import eigenvalues
from ..transforms.heatbath import dagger, product
from ..transforms.loop_drift import Drift
from ..transforms.matrices import Planes, algebra, from_algebra, from_planes, to_algebra, to_planes
from .base import HaarBase
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel

ITERATIONS = 60


class TrivializingLayer(Layer):
    """The flow of the module's docstring, from t = 0 to t = 1 in `steps` steps.

    `kernel` is K_nm times the number of displacements of its orbit: a step of the optimiser must not change what hundreds
    of far plaquettes do together by hundreds of times as much as what one does.
    """

    approximate = True
    steps: Tensor

    def __init__(self, group: SU, lattice: Lattice, powers: int, modes: int, steps: int):
        super().__init__()
        self.group, self.lattice, self.powers, self.modes = group, lattice, powers, modes
        orbits = int(lattice.displacement_orbits.max()) + 1
        self.constant = nn.Parameter(torch.zeros(powers, modes))
        self.kernel = nn.Parameter(torch.zeros(powers, powers, modes, orbits))
        self.rectangle = nn.Parameter(torch.zeros(modes))
        self.register_buffer("steps", torch.tensor(steps))

    def refine(self, factor: float) -> None:
        self.steps.copy_(torch.ceil(self.steps * factor))

    def drift(self, t: float) -> Drift:
        return self.drifts([t])[0]

    def drifts(self, times: list[float]) -> list[Drift]:
        """The drifts at these times, made together."""
        t = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
        cosines = torch.cos(math.pi * t * torch.arange(self.modes)).to(self.kernel)
        kernel = self.kernel / _sizes(self.lattice).to(self.kernel)
        values = torch.einsum("tb,nmbo->tnmo", cosines, kernel)
        orbits = self.lattice.displacement_orbits
        places = [orbits[0, 0], orbits[1 % orbits.shape[0], 0], orbits[0, 1 % orbits.shape[1]]]
        near = torch.stack([values[..., int(place)] for place in places], 1)
        momenta = values @ eigenvalues(self.lattice, values.dtype, values.device)
        constants = cosines @ self.constant.T
        rectangle = cosines @ self.rectangle
        return [Drift(self.group, self.lattice, *one) for one in zip(constants, momenta, near, rectangle)]

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
        """Each step undone to rounding, the last first, as in the continuous flow of scalars.

        Links that were stored in float32 are off the group by more than float64's rounding, where there is no start to find.
        """
        steps, u = int(self.steps), to_planes(self.group.project(y))
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
        sizes, earlier = (_sizes(one).to(previous.kernel) for one in (self.lattice, previous.lattice))
        kernel = sizes * travel_kernel(previous.kernel / earlier, previous.lattice, self.lattice)
        self.load_state_dict(previous.state_dict() | {"kernel": kernel})


def _sizes(lattice: Lattice) -> Tensor:
    """How many displacements an orbit has, `[orbits]`."""
    return torch.from_numpy(np.bincount(lattice.displacement_orbits.ravel()))


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
        """Raises `InputError` for another target than SU(2) or SU(3) in two dimensions, and for sides below 3."""
        if not isinstance(target, Wilson) or not isinstance(target.links, SU) or len(target.shape) != 2:
            found = getattr(target, "group", target.kind)
            raise InputError(
                f"trivializing: a flow of su2 and su3 in two dimensions; found {found} on {target.shape}"
            )
        if min(target.shape) < 3:
            raise InputError(
                f"trivializing: sides of 3 at least, so that rectangles have six links; found {target.shape}"
            )
        layer = TrivializingLayer(target.links, target.lattice, self.powers, self.modes, self.steps)
        return Flow(HaarBase(target.lattice, target.links), [layer])
