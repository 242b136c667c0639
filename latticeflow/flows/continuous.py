"""The equivariant continuous flow: a field that drifts along global symmetric kernels of local features.

`d phi(s) / dt = sum_{s'} sum_{f=0}^F K_f(s - s'; t) f_f(phi(s'))`, 0 <= t <= 1, features `f_0 = phi`, `f_f = sin(f w phi)`

(2110.02673, 2207.00283, there with independent frequencies), with kernels `K_f(d; t) = sum_b W_fb(orbit of d) cos(pi b t)`,
functions of the displacement's orbit under the point group of the lattice's shape. Odd in phi and translation invariant:
Z2 and all symmetries of the lattice are exact. `log |det dphi(1)/dphi(0)| = int dt sum_f K_f(0; t) sum_s f_f'(phi(s))`.

Time goes in `steps` Runge-Kutta steps. The inverse undoes each step to rounding, so that density and draws belong to one
another as in any other flow; but the log-determinant is an integral by the same steps, and as exact as they are
fine. `Flow.density_error` measures that at twice the resolution.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ..compiling import compiled
from ..errors import LatticeflowError
from ..lattice import Lattice
from ..random import Purpose, stream, uniform
from ..transforms import runge_kutta
from ..transforms.convolution import bases, eigenvalues, to_momentum, to_position
from ..transforms.harmonic import multiples
from ..transforms.runge_kutta import State
from .base import BaseName, make_base
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel

ITERATIONS = 60  # of the inverse of one step; each gains a factor of some h^order, and most steps need two


class _Features:
    """Features at x `[V, batch]`: `value` and its transform `momentum`, `[1 + F, V, batch]`; cosines of f w x from f = 0."""

    def __init__(self, x: Tensor, w: Tensor, sines: int, matrices: list[Tensor]):
        angle, self.w = w * x, w
        sin, cos = angle.sin(), angle.cos()
        twice, one = 2 * cos, torch.ones_like(x)
        self.cos = [one, *multiples(one, cos, twice, sines)]
        self.value = torch.stack([x, *multiples(torch.zeros_like(x), sin, twice, sines)])
        self.momentum = to_momentum(matrices, self.value)

    def slope(self) -> Tensor:
        """The derivative of `value`."""
        return torch.stack([self.cos[0], *(f * self.w * cos for f, cos in enumerate(self.cos) if f)])

    def drift(self, kernel: Tensor, origin: Tensor, matrices: list[Tensor]) -> tuple[Tensor, Tensor]:
        """`(v, divergence)` of the module's docstring at one time.

        `kernel` eigenvalues `[1 + F, V]`, `origin` K_f(0) `[1 + F]`, `matrices` the Fourier basis; v `[V, batch]`,
        divergence float64 `[batch]`.
        """
        v = kernel[0, :, None] * self.momentum[0]
        for k, momentum in zip(kernel[1:], self.momentum[1:]):
            v = torch.addcmul(v, k[:, None], momentum)
        divergence = origin[0] * self.cos[0]
        for f in range(1, len(self.cos)):
            divergence = torch.addcmul(divergence, self.cos[f], f * self.w * origin[f])
        return to_position(matrices, v), divergence.sum(0, dtype=torch.float64)


def _drift(x: Tensor, kernel: Tensor, origin: Tensor, w: Tensor, sines: int, matrices: list[Tensor]) -> State:
    return _Features(x, w, sines, matrices).drift(kernel, origin, matrices)


def _drift_with_score(
    x: Tensor, score: Tensor, kernel: Tensor, origin: Tensor, w: Tensor, sines: int, matrices: list[Tensor]
) -> State:
    """`_drift`, and without gradient `d score / dt = -(dv/dphi)^T score - d divergence / dphi` along the flow
    (2207.08219, 2207.00283 sec. IV).
    """
    features = _Features(x, w, sines, matrices)
    v, divergence = features.drift(kernel, origin, matrices)
    with torch.no_grad():
        back = to_position(matrices, kernel[..., None] * to_momentum(matrices, score))
        frequency = w * torch.arange(len(origin), dtype=w.dtype, device=w.device)
        curve = torch.tensordot(origin * frequency.square(), features.value, 1)
        rate = curve - (back * features.slope()).sum(0)
    return v, divergence, rate


class ContinuousLayer(Layer):
    """The flow of the module's docstring, from t = 0 to t = 1. `modes`: cosines in time, b = 0, ..., modes - 1.

    `steps` is a buffer and is saved with the weights, because `refine` raises it.
    """

    approximate = True
    steps: Tensor

    def __init__(self, lattice: Lattice, sines: int, modes: int, steps: int, solver: str, w: float):
        super().__init__()
        self.lattice, self.sines, self.modes = lattice, sines, modes
        self.drift: Callable[..., State] = _drift
        self.drift_with_score: Callable[..., State] = _drift_with_score
        self.tableau = runge_kutta.TABLEAUS[solver]
        orbits = int(lattice.displacement_orbits.max()) + 1
        self.kernel = nn.Parameter(torch.zeros(1 + sines, modes, orbits))
        self.log_w = nn.Parameter(torch.tensor(math.log(w)))
        self.register_buffer("steps", torch.tensor(steps))

    def refine(self, factor: float) -> None:
        self.steps.copy_(torch.ceil(self.steps * factor))

    def kernels_at(self, times: list[float]) -> tuple[Tensor, Tensor]:
        """Eigenvalues `[times, 1 + F, V]` and values at d = 0 `[times, 1 + F]` of the kernels."""
        kernel = self.kernel
        t = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
        cosines = torch.cos(math.pi * torch.arange(self.modes) * t).to(kernel)
        values = torch.einsum("tb,fbo->tfo", cosines, kernel)
        return values @ eigenvalues(self.lattice, kernel.dtype, kernel.device), values[..., 0]

    def compile_parts(self) -> None:
        self.drift, self.drift_with_score = compiled(_drift), compiled(_drift_with_score)

    def _rate(self, steps: int, drift: Callable[..., State] = _drift) -> runge_kutta.Rate:
        """`(phi, log_det[, score]) -> d/dt` by `drift`, kernels of all stages of all steps computed once."""
        c = sorted({*self.tableau.c, *(1 - c for c in self.tableau.c)})  # the latter for steps backwards
        # keyed by rounded times: what a step calls t + c h must find its kernel
        times = {_key((k + one) / steps): (k + one) / steps for k in range(steps) for one in c}
        kernels, origins = self.kernels_at(list(times.values()))
        at = {key: i for i, key in enumerate(times)}
        w, matrices = self.log_w.exp(), bases(self.lattice, self.kernel.dtype, self.kernel.device)

        def rate(t: float, state: State) -> State:
            x, _, *score = state
            i = at[_key(t)]
            return drift(x, *score, kernels[i], origins[i], w, self.sines, matrices)

        return rate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        steps = int(self.steps)
        state: State = (_batch_last(x), x.new_zeros(len(x), dtype=torch.float64))
        rate = self._rate(steps, self.drift)
        for k in range(steps):
            state = runge_kutta.step(rate, k / steps, 1 / steps, state, self.tableau)
        y, log_det = state
        return y.T.reshape(x.shape), log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score by the same Runge-Kutta steps: that of the density to the order of the solver, not to rounding."""
        steps = int(self.steps)
        state = (_batch_last(x), x.new_zeros(len(x), dtype=torch.float64), _batch_last(score))
        rate = self._rate(steps, self.drift_with_score)
        for k in range(steps):
            y, log_det, score = runge_kutta.step(rate, k / steps, 1 / steps, state, self.tableau)
            state = (y, log_det.detach(), score)  # the path gradient has no use for that of log q
        return y.T.reshape(x.shape), state[1], score.T.reshape(x.shape)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each step undone to rounding, the last first: x with `step(x) = y`, and minus the log_det of the steps.

        A step back from y misses x by the solver's error in one step, and so does one from `step(x)` for any x nearby:
        `x <- x + back(y) - back(step(x))` gains that factor each time. Differentiable in y and the
        parameters, to the order of the solver. Raises `LatticeflowError` where it does not converge.
        """
        steps = int(self.steps)
        rate = self._rate(steps)
        state: State = (_batch_last(y), y.new_zeros(y.shape[0], dtype=torch.float64))
        for k in reversed(range(steps)):
            state = self._undo(rate, k / steps, 1 / steps, state)
        x, log_det = state
        return x.T.reshape(y.shape), log_det

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The drift followed back in twice as many steps: the exact inverse to `2^-order` of the error of `steps`."""
        steps = 2 * int(self.steps)
        state: State = (_batch_last(y), y.new_zeros(y.shape[0], dtype=torch.float64))
        rate = self._rate(steps)
        for k in reversed(range(steps)):
            state = runge_kutta.step(rate, (k + 1) / steps, -1 / steps, state, self.tableau)
        x, log_det = state
        return x.T.reshape(y.shape), log_det

    def _undo(self, rate: runge_kutta.Rate, t: float, h: float, state: State) -> State:
        """`(x, log_det)` at t from that at t + h."""
        end, log_det = state
        zero = torch.zeros_like(log_det)

        def ahead(x: Tensor) -> tuple[Tensor, Tensor]:
            moved, change = runge_kutta.step(rate, t, h, (x, zero), self.tableau)
            return moved, change

        def back(x: Tensor) -> Tensor:
            return runge_kutta.step(rate, t + h, -h, (x, zero), self.tableau)[0]

        first = back(end)
        start = first.detach()
        allowed = 4 * torch.finfo(end.dtype).eps * (1 + end.detach().abs().max())
        for _ in range(ITERATIONS):
            with torch.no_grad():
                reached, change = ahead(start)
                miss = (reached - end).abs().max()
                if not miss > allowed:
                    break
                start = start + (first - back(reached))
        else:
            raise self._not_inverted(float(miss), float(allowed))
        if torch.is_grad_enabled():  # once more, for the derivatives
            start = start + first - back(ahead(start)[0])
            change = ahead(start)[1]
        return start, log_det - change

    def _not_inverted(self, miss: float, allowed: float) -> LatticeflowError:
        return LatticeflowError(
            f"inverse of a step of the continuous flow: {miss:.2g} away after {ITERATIONS} iterations, allowed "
            f"{allowed:.2g}. Are fields and weights finite? If so, {int(self.steps)} steps are too few for this flow"
        )

    def adopt(self, previous: "ContinuousLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement; frequency and number of steps copied."""
        kernel = travel_kernel(previous.kernel, previous.lattice, self.lattice)
        self.load_state_dict({"kernel": kernel, "log_w": previous.log_w, "steps": previous.steps})


def _batch_last(x: Tensor) -> Tensor:
    return x.flatten(1).T.contiguous()


def _key(t: float) -> int:
    return round(t * 2**40)


@flows.add("continuous")
class Continuous(FlowSpec):
    """The continuous flow. `sines` harmonics of one trainable frequency, `modes` cosines in time, `steps` steps of
    `solver` to start with: where the density is not good to `train.density_tolerance`, training raises them.
    """

    sines: int = Field(4, ge=0)
    modes: int = Field(5, ge=1)
    steps: int = Field(10, ge=1)
    solver: Literal["rk4", "rk6"] = "rk4"
    base: BaseName = "spectrum"
    base_m2: float = 1.0

    def build(self, lattice: Lattice, seed: int) -> Flow:
        # not far from 1: a period of about 6, some times a typical field
        w = 0.95 + 0.1 * float(uniform(stream(seed, Purpose.INIT), (), dtype=torch.float64))
        layer = ContinuousLayer(lattice, self.sines, self.modes, self.steps, self.solver, w)
        return Flow(make_base(self.base, lattice, self.base_m2), [layer])
