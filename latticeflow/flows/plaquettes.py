"""Flows of U(1) in two dimensions, in terms of plaquettes (`transforms.plaquettes`): gauge invariant by construction.

Bases: Haar's measure, and independent plaquettes: all but one von Mises distributed, `p(P) ~ exp(kappa cos P)`, the last
one, at the origin, what the torus leaves, gauge and Polyakov loops uniform. Layers:

- `PlaquetteMap`: one monotone map h of the circle for all plaquettes but the one at the origin, which takes up the rest.
  From Haar's measure, where they are independent and uniform, it makes any independent ones: it moves the charge.
- `Spread`: h acts on the plaquette at the origin, and the others take up the rest, each a share of it.

Both start from an h that takes uniform angles to the von Mises distribution at beta, which is what they have to do where V
is large, and commute with gauge transformations and with charge conjugation. A continuous flow may follow
(`plaquette_drift`). The settings here also build the flows of SU(2) and SU(3), whose layers are in `lassos`.
"""

import math
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.special import ive
from torch import Tensor, nn

from ..errors import InputError
from ..groups import GROUPS, SU, wrap
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..transforms.circular import Knots, circle_inverse, circle_map, knots, von_mises_knots
from ..transforms.plaquettes import closed, curl, curl_transposed, independent, lift
from ..transforms.sums import site_sum
from . import lassos
from .base import HaarBase
from .flow import Flow, Layer
from .plaquette_drift import PlaquetteDrift
from .spec import FlowSpec, flows
from .trivializing import TrivializingLayer

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

    def __init__(self, bins: int, kappa: float):
        super().__init__()
        self.widths, self.heights = nn.Parameter(torch.zeros(bins)), nn.Parameter(torch.zeros(bins))
        self.slopes = nn.Parameter(torch.zeros(bins + 1))
        self.kappa = kappa

    def maps(self) -> list[Knots]:
        """Of g and of v."""
        g = knots(*(SCALE * one.double() for one in (self.widths, self.heights, self.slopes)))
        x, y, d = (one.to(self.widths.device) for one in von_mises_knots(self.kappa))
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


@flows.add("plaquettes")
class Plaquettes(FlowSpec):
    """A flow of U(1), SU(2) or SU(3) in two dimensions.

    `base`: "independent" plaquettes at the target's beta, or "haar"; `map`: a layer first that maps all plaquettes but one;
    `spread`: then one that shares the last one's mismatch; `bins` of their splines. Then a continuous flow, unless `steps`
    is 0 (not given: 8 for U(1), 0 for SU(N)): `harmonics` n of sin(n P), for SU(N) powers of the plaquette, `modes` cosines
    in time, `steps` of `solver` to start with (training raises them where the density asks for it).
    """

    base: Literal["independent", "haar"] = "independent"
    map: bool = False
    spread: bool = True
    bins: int = Field(12, ge=1, le=100)
    harmonics: int = Field(4, ge=1)
    modes: int = Field(4, ge=1)
    steps: int | None = Field(None, ge=0)
    solver: Literal["rk4", "rk6"] = "rk4"

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "plaquettes: the base needs the target's beta: in Python use build_for(target, seed)"
        )

    def build_for(self, target: LatticeTarget, seed: int) -> Flow:
        """Raises `InputError` for another target than Wilson's action in two dimensions, and for what SU(N) has not."""
        if not isinstance(target, Wilson) or len(target.shape) != 2:
            raise InputError(
                f"plaquettes: a flow of Wilson's action in two dimensions; found target '{target.kind}' on {target.shape}"
            )
        if isinstance(target.links, SU):
            return Flow(lassos.base_of(self.base, target), self._layers_of_su(target, target.links))
        lattice = target.lattice
        haar = HaarBase(lattice, target.links)
        base = haar if self.base == "haar" else IndependentPlaquettes(lattice, target.beta)
        return Flow(base, self._layers_of_u1(target))

    def _layers_of_u1(self, target: Wilson) -> list[Layer]:
        lattice, steps = target.lattice, 8 if self.steps is None else self.steps
        layers: list[Layer] = [PlaquetteMap(self.bins, target.beta)] if self.map else []
        layers += [Spread(lattice, self.bins, target.beta)] if self.spread else []
        if steps:
            layers.append(PlaquetteDrift(lattice, self.harmonics, self.modes, steps, self.solver))
        return layers

    def _layers_of_su(self, target: Wilson, group: SU) -> list[Layer]:
        layers: list[Layer] = [lassos.LassoMap(group, self.bins, target.beta)] if self.map else []
        layers += [lassos.LassoSpread(group, self.bins, target.beta)] if self.spread else []
        if self.steps and self.solver != "rk4":
            raise InputError(
                f"plaquettes: solver = '{self.solver}' is of u1; {target.group} has 'rk4', on the group"
            )
        if self.steps:
            layers.append(TrivializingLayer(group, target.lattice, self.harmonics, self.modes, self.steps))
        return layers
