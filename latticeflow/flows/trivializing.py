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
`L_n = d_a d_a W_n = -(n / N) Re [ C tr P^n + sum_{k=1}^{n-1} ( tr P^k tr P^{n-k} / 2 - tr P^n / 2N ) ]`,

C = (N^2 - 1) / 2N. Steps: `transforms.commutator_free`. The density is that of the solver, as for scalars' continuous flow.
"""

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError, LatticeflowError
from ..groups import SU
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..targets.gauge import neighbour
from ..transforms import commutator_free
from ..transforms.commutator_free import Values
from ..transforms.convolution import bases, eigenvalues, to_momentum, to_position
from .base import HaarBase
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel

ITERATIONS = 60


class Drift:
    """v and div v of links `[batch, 2, *shape, N, N]` at one time.

    `constant` w_n `[powers]`; `kernel` eigenvalues of K_nm `[powers, powers, V]`; `near` K_nm at displacement 0, e_0 and e_1
    `[3, powers, powers]`.
    """

    def __init__(self, group: SU, lattice: Lattice, constant: Tensor, kernel: Tensor, near: Tensor):
        self.group, self.lattice = group, lattice
        self.constant, self.kernel, self.near = constant, kernel, near

    def __call__(self, links: Tensor) -> tuple[Tensor, Tensor]:
        group, n = self.group, self.group.n
        u, v = links[:, 0], links[:, 1]
        p = (u @ neighbour(v, 0)) @ (v @ neighbour(u, 1)).mH
        powers = [p]
        for _ in range(len(self.constant) - 1):
            powers.append(powers[-1] @ p)
        traces = torch.stack(
            [one.diagonal(dim1=-2, dim2=-1).sum(-1) for one in powers]
        )  # [powers, batch, *shape]
        f = self.coefficients(traces.real / n)
        k = (
            torch.arange(1, len(powers) + 1, dtype=f.dtype, device=f.device).view(-1, *[1] * (f.dim() - 1))
            / n
        )
        p_n = torch.stack(powers)
        here = group.gradient(p_n) * k[..., None]  # D_n at link 0 of its plaquette; at link 1 its negative
        below = group.gradient(v.mH @ p_n @ v) * k[..., None]  # the same for links 0 and 1 of the next sites
        beside = group.gradient(u.mH @ p_n @ u) * k[..., None]
        below, beside = torch.roll(below, 1, 3), torch.roll(beside, 1, 2)
        f_below, f_beside = torch.roll(f, 1, 3), torch.roll(f, 1, 2)
        first = (f[..., None] * here - f_below[..., None] * below).sum(0)
        second = (f_beside[..., None] * beside - f[..., None] * here).sum(0)
        velocity = torch.stack([first, second], 1)
        divergence = 4 * (f * self.laplacians(traces)).sum(0)
        divergence = divergence + 4 * _paired(self.near[0], here, here)
        divergence = (
            divergence - 2 * _paired(self.near[2], here, below) - 2 * _paired(self.near[1], here, beside)
        )
        return velocity, divergence.flatten(1).sum(1, dtype=torch.float64)

    def coefficients(self, w: Tensor) -> Tensor:
        """f_n `[powers, batch, *shape]` of W_m."""
        matrices = bases(self.lattice, w.dtype, w.device)
        flat = w.flatten(2).transpose(1, 2).contiguous()  # batch last
        momentum = to_momentum(matrices, flat)
        mixed = torch.einsum("nmk,mkb->nkb", self.kernel, momentum)
        f = to_position(matrices, mixed.contiguous()).transpose(1, 2).reshape(w.shape)
        return f + self.constant.view(-1, *[1] * (w.dim() - 1))

    def laplacians(self, traces: Tensor) -> Tensor:
        """L_n, `[powers, batch, *shape]`."""
        n = self.group.n
        casimir, found = (n * n - 1) / (2 * n), []
        for power in range(1, len(traces) + 1):
            total = casimir * traces[power - 1].real
            for k in range(1, power):
                pair = (traces[k - 1] * traces[power - k - 1]).real
                total = total + pair / 2 - traces[power - 1].real / (2 * n)
            found.append(-power / n * total)
        return torch.stack(found)


def _paired(kernel: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`sum_nm K_nm a_n . b_m`, K symmetrised where a and b are of different plaquettes; `[batch, *shape]`."""
    mixed = torch.einsum("nm,m...->n...", 0.5 * (kernel + kernel.T), b)
    return (a * mixed).sum((0, -1))


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
        cosines = torch.cos(math.pi * t * torch.arange(self.modes)).to(self.kernel)
        values = torch.einsum("b,nmbo->nmo", cosines, self.kernel)
        orbits = self.lattice.displacement_orbits
        places = [orbits[0, 0], orbits[1 % orbits.shape[0], 0], orbits[0, 1 % orbits.shape[1]]]
        near = torch.stack([values[..., int(place)] for place in places])
        momenta = values @ eigenvalues(self.lattice, values.dtype, values.device)
        return Drift(self.group, self.lattice, self.constant @ cosines, momenta, near)

    def _rate(self, t: float, u: Tensor, y: Values) -> tuple[Tensor, Values]:
        velocity, divergence = self.drift(t)(u)
        return velocity, (divergence,)

    def _rate_with_score(self, t: float, u: Tensor, y: Values) -> tuple[Tensor, Values]:
        """`ds_a/dt = -d_a div v - s_b d_a v_b - f_abc v_b s_c` along the flow, parameters held fixed.

        Left derivatives do not commute: `[d_a, d_b] = f_abc d_c`.
        """
        score, group = y[1], self.group
        with torch.enable_grad():
            u = u if u.requires_grad else u.detach().requires_grad_()
            velocity, divergence = self.drift(t)(u)
            total = divergence.sum() + (velocity * score).sum()
            (slope,) = torch.autograd.grad(total, u, retain_graph=True)
        with torch.no_grad():
            v, s = group.hermitian(velocity), group.hermitian(score)
            turn = group.coefficients(1j * (v @ s - s @ v))
            rate = turn - group.left_derivative(u, slope)
        return velocity, (divergence.detach(), rate)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(x, 1)

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score by the same steps: that of the density to the order of the solver, not to rounding."""
        steps = int(self.steps)
        y: Values = (x.new_zeros(len(x), dtype=torch.float64), score)
        for k in range(steps):
            x, y = commutator_free.step(self.group, self._rate_with_score, k / steps, 1 / steps, x, y)
            y = tuple(one.detach() for one in y)
        return x, y[0], y[1]

    def _run(self, x: Tensor, direction: int, times: int = 1) -> tuple[Tensor, Tensor]:
        steps = int(self.steps) * times
        y: Values = (torch.zeros(len(x), dtype=torch.float64, device=x.device),)
        for k in range(steps):
            t = k / steps if direction > 0 else 1 - k / steps
            x, y = commutator_free.step(self.group, self._rate, t, direction / steps, x, y)
        return x, y[0]

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(y, -1, 2)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Each step undone to rounding, the last first, as in the continuous flow of scalars."""
        steps = int(self.steps)
        log_det = torch.zeros(len(y), dtype=torch.float64, device=y.device)
        for k in reversed(range(steps)):
            y, change = self._undo(k / steps, 1 / steps, y)
            log_det = log_det - change
        return y, log_det

    def _undo(self, t: float, h: float, end: Tensor) -> tuple[Tensor, Tensor]:
        """x with `step(x) = end`, and the step's log_det, by `x <- end step(x)^dagger x`."""
        zero = (torch.zeros(len(end), dtype=torch.float64, device=end.device),)
        start = commutator_free.step(self.group, self._rate, t + h, -h, end, zero)[0]
        allowed = 64 * torch.finfo(end.real.dtype).eps
        for _ in range(ITERATIONS):
            reached, (change,) = commutator_free.step(self.group, self._rate, t, h, start, zero)
            if not (reached - end).abs().max() > allowed:
                return start, change
            start = self.group.project(end @ reached.mH @ start)
        raise LatticeflowError(
            f"inverse of a step of the gauge flow: not within {allowed:.2g} after {ITERATIONS} iterations. Are links and "
            f"weights finite? If so, {int(self.steps)} steps are too few for this flow"
        )

    def adopt(self, previous: "TrivializingLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement; the rest copied."""
        kernel = travel_kernel(previous.kernel, previous.lattice, self.lattice)
        self.load_state_dict({"kernel": kernel, "constant": previous.constant, "steps": previous.steps})


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
