"""Flows of U(1) in two dimensions, in terms of plaquettes (`transforms.plaquettes`): gauge invariant by construction.

Bases: Haar's measure, and independent plaquettes: all but one von Mises distributed, `p(P) ~ exp(kappa cos P)`, the last
one, at the origin, what the torus leaves, gauge and Polyakov loops uniform. Layers:

- `PlaquetteMap`: one monotone map h of the circle for all plaquettes but the one at the origin, which takes up the rest.
  From Haar's measure, where they are independent and uniform, it makes any independent ones: it moves the charge.
- `Spread`: h acts on the plaquette at the origin, and the others take up the rest, each a share of it.

Both start from an h that takes uniform angles to the von Mises distribution at beta, which is what they have to do where V
is large.
- `PlaquetteDrift`: the continuous flow `dtheta_0/dt = v(x) - v(x - e1)`, `dtheta_1/dt = -v(x) + v(x - e0)`,
  `v(x) = sum_y sum_n K_n(x - y; t) sin(n P(y))`, in the spirit of Luescher's trivializing flow (0907.5491) but with
  kernels of any range. On plaquettes it is `dP/dt = -Laplace v`.

All commute with gauge transformations and with charge conjugation; the last with translations, too.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import ive
from torch import Tensor, nn

from ..errors import InputError
from ..groups import GROUPS, wrap
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..transforms.circular import Knots, circle_inverse, circle_map, knots, von_mises_knots
from ..transforms.convolution import eigenvalues
from ..transforms.plaquettes import closed, curl, curl_transposed, independent, lift, score_of_plaquettes
from ..transforms.sums import site_sum
from .base import HaarBase
from .continuous import ContinuousLayer
from .flow import Flow, Layer
from .spec import FlowSpec, flows

SCALE = 10.0


class IndependentPlaquettes(HaarBase):
    """`log r = sum_{x != 0} [ kappa cos P(x) - log I_0(kappa) ]`."""

    def __init__(self, lattice: Lattice, kappa: float):
        super().__init__(lattice, GROUPS["u1"])
        self.kappa = kappa

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        return independent(n, self.lattice.shape, self.kappa, rng).to(self.like)

    def log_white(self, noise: Tensor) -> Tensor:
        p = curl(noise)
        at_origin = p[:, 0, 0].double().cos()
        norm = (self.lattice.volume - 1) * (math.log(float(ive(0, self.kappa))) + self.kappa)
        return self.kappa * (site_sum(p.cos()) - at_origin) - norm

    def score(self, z: Tensor) -> Tensor:
        s = -self.kappa * curl(z).sin()
        s[:, 0, 0] = 0
        return curl_transposed(s)


class CircleMap(nn.Module):
    """`h = v o g`: g a trained `circle_map`, the identity at first; v from uniform angles to `von_mises_knots(kappa)`.

    A trained map alone leaves the far angles out, which the reverse divergence does not see. In float64: v is steep.
    Parameters are a tenth of the logits, which have far to go at the rates at which kernels learn.
    """

    reference: Tensor

    def __init__(self, bins: int, kappa: float):
        super().__init__()
        self.widths, self.heights = nn.Parameter(torch.zeros(bins)), nn.Parameter(torch.zeros(bins))
        self.slopes = nn.Parameter(torch.zeros(bins + 1))
        self.register_buffer("reference", torch.stack(von_mises_knots(kappa)), persistent=False)

    def maps(self) -> list[Knots]:
        """Of g and of v."""
        g = knots(*(SCALE * one.double() for one in (self.widths, self.heights, self.slopes)))
        x, y, d = self.reference.double()
        return [g, (x, y, d)]

    def forward(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """`(h(p), log h'(p))`, float64."""
        g, v = self.maps()
        middle, log_g = circle_map(p.double(), g)
        h, log_v = circle_map(middle, v)
        return h, log_g + log_v

    def inverse(self, p: Tensor) -> tuple[Tensor, Tensor]:
        g, v = self.maps()
        middle, log_v = circle_inverse(p.double(), v)
        h, log_g = circle_inverse(middle, g)
        return h, log_v + log_g


class PlaquetteMap(Layer):
    """`P(x) -> h(P(x))` for x != 0, h a `CircleMap`."""

    def __init__(self, bins: int, kappa: float):
        super().__init__()
        self.h = CircleMap(bins, kappa)

    def _move(self, theta: Tensor, by) -> tuple[Tensor, Tensor]:
        p = wrap(curl(theta.double()))
        new, log_slope = by(p)
        moved = lift(closed(new - p)).to(theta)
        return wrap(theta + moved), site_sum(log_slope) - log_slope[:, 0, 0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.h)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.h.inverse)


class Spread(Layer):
    """`P(0) -> h(P(0))`, and `P(x) -> P(x) - s(x) [ h(P(0)) - P(0) ]` for x != 0, with `sum_{x != 0} s(x) = 1`.

    h is a `CircleMap`; s has a value for each orbit of x under the point group. `log |det| = log h'(P(0))`.
    """

    orbit: Tensor

    def __init__(self, lattice: Lattice, bins: int, kappa: float):
        super().__init__()
        self.h = CircleMap(bins, kappa)
        orbits = lattice.displacement_orbits
        self.register_buffer("orbit", torch.from_numpy(orbits), persistent=False)
        self.share = nn.Parameter(torch.zeros(int(orbits.max()) + 1))

    def shares(self) -> Tensor:
        """-s(x), and 1 at the origin, `[L0, L1]`; their sum is zero."""
        share = self.share[self.orbit]
        others = share.numel() - 1
        share = -(1 + share - (share.sum() - share[0, 0]) / others) / others
        share[0, 0] = 1
        return share

    def _move(self, theta: Tensor, by) -> tuple[Tensor, Tensor]:
        p = wrap(curl(theta)[:, 0, 0].double())
        new, log_slope = by(p)
        moved = lift((new - p).to(theta)[:, None, None] * self.shares())
        return wrap(theta + moved), log_slope

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.h)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.h.inverse)

    def adopt(self, previous: "Spread") -> None:  # type: ignore[override]
        """h; the shares start anew, equal."""
        self.h.load_state_dict(previous.h.state_dict())


class PlaquetteDrift(ContinuousLayer):
    """The continuous flow of the module's docstring: that of scalars for the field P, without the feature P; w = 1."""

    def __init__(self, lattice: Lattice, harmonics: int, modes: int, steps: int, solver: str):
        super().__init__(lattice, harmonics, modes, steps, solver, 1.0)
        self.kernel = nn.Parameter(torch.zeros_like(self.kernel[1:]))
        self.log_w.requires_grad_(False)

    def kernels_at(self, times: list[float]) -> tuple[Tensor, Tensor]:
        """Of `-Laplace K_n`, and zero for the feature P."""
        t = torch.tensor(times, dtype=torch.float64).unsqueeze(1)
        cosines = torch.cos(math.pi * torch.arange(self.modes) * t).to(self.kernel)
        values = torch.einsum("tb,fbo->tfo", cosines, self.kernel)
        base = eigenvalues(self.lattice, self.kernel.dtype, self.kernel.device)
        found = (values @ base) * (_laplacian(self.lattice).to(base) @ base)
        found = torch.cat([torch.zeros_like(found[:, :1]), found], 1)
        return found, found.mean(-1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = wrap(curl(x))
        moved, log_det = super().forward(p)
        return wrap(x + lift(moved - p)), log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        p = wrap(curl(x))
        moved, log_det, s = super().forward_with_score(p, score_of_plaquettes(score))
        return wrap(x + lift(moved - p)), log_det, curl_transposed(s)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._back(y, super().inverse)

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._back(y, super().finer_inverse)

    def _back(self, y: Tensor, undo) -> tuple[Tensor, Tensor]:
        p = wrap(curl(y))
        moved, log_det = undo(p)
        return wrap(y + lift(moved - p)), log_det


def _laplacian(lattice: Lattice) -> Tensor:
    """`-Laplace` as a kernel, a value for each orbit of the displacement, float64."""
    orbits = lattice.displacement_orbits
    kernel = np.zeros(lattice.shape)
    for mu, side in enumerate(lattice.shape):
        for step in (1, -1):
            place = [0] * lattice.dim
            place[mu] = step % side
            kernel[(0,) * lattice.dim] += 1
            kernel[tuple(place)] -= 1
    values = torch.zeros(int(orbits.max()) + 1, dtype=torch.float64)
    values[torch.from_numpy(orbits).flatten()] = torch.from_numpy(kernel).flatten()
    return values


@flows.add("plaquettes")
class Plaquettes(FlowSpec):
    """A flow of U(1) in two dimensions.

    `base`: "independent" plaquettes at the target's beta, or "haar"; `map`: a `PlaquetteMap` first; `spread`: then a
    `Spread`; `bins` of their splines. Then the continuous flow, unless `steps` is 0: `harmonics` n, `modes` cosines in time,
    `steps` of `solver` to start with (training raises them where the density asks for it).
    """

    base: Literal["independent", "haar"] = "independent"
    map: bool = False
    spread: bool = True
    bins: int = Field(12, ge=1, le=100)
    harmonics: int = Field(4, ge=1)
    modes: int = Field(4, ge=1)
    steps: int = Field(8, ge=0)
    solver: Literal["rk4", "rk6"] = "rk4"

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "plaquettes: the base needs the target's beta: in Python use build_for(target, seed)"
        )

    def build_for(self, target: LatticeTarget, seed: int) -> Flow:
        """Raises `InputError` for another target than U(1) in two dimensions."""
        if not isinstance(target, Wilson) or target.group != "u1" or len(target.shape) != 2:
            found = getattr(target, "group", target.kind)
            raise InputError(f"plaquettes: a flow of u1 in two dimensions; found {found} on {target.shape}")
        lattice = target.lattice
        base = (
            HaarBase(lattice, target.links)
            if self.base == "haar"
            else IndependentPlaquettes(lattice, target.beta)
        )
        layers: list[Layer] = [PlaquetteMap(self.bins, target.beta)] if self.map else []
        layers += [Spread(lattice, self.bins, target.beta)] if self.spread else []
        if self.steps:
            layers.append(PlaquetteDrift(lattice, self.harmonics, self.modes, self.steps, self.solver))
        return Flow(base, layers)
