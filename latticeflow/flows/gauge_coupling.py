"""Gauge-equivariant coupling layers: plaquettes are moved, links follow (2003.06413, 2008.05456, 2101.08176).

A layer has a mask (`gauge_masks`). On its active links `U = U_mu(x)`, with the plaquette `P = U S`, S the staple,

`P -> P' = h(P; frozen loops)`, `U' = P' S^dagger = P' P^dagger U`,

h a map that commutes with conjugation (`transforms.plaquette_maps`): of the angle for U(1), of the eigenvalues for SU(2)
and SU(3). S and the loops that h depends on hold no active link, so that the Jacobian is the product of those of h, each
with respect to Haar's measure. Layers commute with gauge transformations and charge conjugation, and with translations
by the mask's period: 4 (stripes), or 2 and (1, 1) (checkerboard).
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..groups import Group
from ..lattice import Lattice
from ..random import Purpose, stream
from ..targets import LatticeTarget, Wilson
from ..transforms.paths import Paths
from ..transforms.plaquette_maps import CircleSpline, MapInContext, Projections, SpectralSU2, SpectralSU3
from ..transforms.sums import site_sum
from .base import HaarBase
from .flow import Flow, Layer
from .gauge_context import Context, FrozenLoops
from .gauge_masks import Mask, checkerboard, require_every_link, stripes
from .plaquettes import IndependentPlaquettes
from .spec import FlowSpec, flows

Move = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


class GaugeCouplingLayer(Layer):
    """The layer of the module's docstring for links `[batch, D, *shape, *tail]`."""

    active: Tensor

    def __init__(
        self,
        group: Group,
        mask: Mask,
        h: MapInContext,
        sizes: Sequence[tuple[int, int]],
        hidden: Sequence[int],
        kernel: int,
        rng: np.random.Generator,
    ):
        super().__init__()
        self.group, self.h, self.dim = group, h, mask.lattice.dim
        self.staple = Paths(mask.lattice, mask.ahead, mask.staple)
        self.loops = FrozenLoops(group, mask, sizes)
        self.context = Context(mask, self.loops, h.evens, h.odds, hidden, kernel, rng)
        self.register_buffer("active", torch.from_numpy(mask.links), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.h.forward)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.h.inverse)

    def _move(self, x: Tensor, h: Move) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1, self.dim + 1)
        links, log_slope = self._links(flat.index_select(1, self.active), h, *self._surroundings(flat))
        return flat.index_copy(1, self.active, links).view_as(x), site_sum(log_slope)

    def _surroundings(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Staples of the active links, and both kinds of parameters: functions of frozen links."""
        s = self.staple(self.group, flat)
        return s, *self.context(*self.loops(flat, s))

    def _links(self, u: Tensor, h: Move, s: Tensor, even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
        """The active links u `[batch, n, *tail]`, moved by h."""
        p, log_slope = h(self.group.mul(u, s), even, odd)
        moved = self.group.mul(p, self.group.dagger(s))
        return self.group.settled(moved), log_slope

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of any layer, but that the inverse sees the surroundings that were computed forwards, as frozen links stay.

        Scores are left derivatives.
        """
        group = self.group
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_(True)
            flat = x.flatten(1, self.dim + 1)
            seen = self._surroundings(flat)
            links, log_slope = self._links(flat.index_select(1, self.active), self.h.forward, *seen)
            end, *held = (one.detach().requires_grad_(True) for one in (links, *seen))
            start, log_back = self._links(end, self.h.inverse, *held)
            scores = score.flatten(1, self.dim + 1)
            paired = group.pair(scores.index_select(1, self.active), start).sum() + log_back.sum()
            own, *slopes = torch.autograd.grad(paired, [end, *held], materialize_grads=True)
            (slope,) = torch.autograd.grad(seen, flat, slopes, retain_graph=True)
        scores = scores + group.left_derivative(flat.detach(), slope)  # zero of the active links
        scores = scores.index_copy(1, self.active, group.left_derivative(end.detach(), own))
        y = flat.index_copy(1, self.active, links).view_as(x)
        return y, site_sum(log_slope), scores.view_as(score)


@flows.add("gauge_coupling")
class GaugeCoupling(FlowSpec):
    """Coupling layers of a gauge theory: `sweeps` times over all masks, so that each moves every link.

    `mask`: "checkerboard", of even sides in any dimension, 2 D layers a sweep, or "stripes", two dimensions and sides that
    are multiples of 4, 8 layers. `coupling`: "spline", or, of U(1), "ncp", a mixture of non-compact projections; `bins` of
    splines, `components` of mixtures. `loops`: sizes a x b of the frozen rectangles; `hidden` channels and `kernel` of the
    context networks. `base`: "haar", or, of U(1) in two dimensions, "independent" plaquettes at the target's beta.
    """

    sweeps: int = Field(4, ge=1)
    mask: Literal["checkerboard", "stripes"] = "checkerboard"
    coupling: Literal["spline", "ncp"] = "spline"
    bins: int = Field(8, ge=1, le=100)
    components: int = Field(6, ge=1)
    loops: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (2, 1), (2, 2))
    hidden: tuple[int, ...] = Field((16, 16), min_length=1)
    kernel: int = Field(3, gt=0)
    base: Literal["haar", "independent"] = "haar"

    def model_post_init(self, context) -> None:
        if any(min(size) < 1 for size in self.loops) or min(self.hidden) < 1:
            raise InputError(
                f"gauge_coupling: loops = {self.loops}, hidden = {self.hidden}: expected positive numbers"
            )

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "gauge_coupling: the flow needs the target's group: in Python use build_for(target, seed)"
        )

    def build_for(self, target: LatticeTarget, seed: int) -> Flow:
        """Raises `InputError` for a target without links, and for what its group or lattice does not allow."""
        if not isinstance(target, Wilson):
            raise InputError(f"gauge_coupling: a flow of u1, su2 and su3; found target '{target.kind}'")
        rng, lattice = stream(seed, Purpose.INIT), target.lattice
        masks: list[Mask] = []
        for sweep in range(self.sweeps):
            masks += checkerboard(lattice, sweep) if self.mask == "checkerboard" else stripes(lattice)
        require_every_link(masks)
        h = self._map(target)
        layers = [
            GaugeCouplingLayer(target.links, mask, h, self.loops, self.hidden, self.kernel, rng)
            for mask in masks
        ]
        return Flow(self._base(target), layers)

    def _map(self, target: Wilson) -> MapInContext:
        if self.coupling == "ncp":
            if target.group != "u1":
                raise InputError(
                    f"gauge_coupling: coupling = 'ncp' is of u1; found {target.group}, use 'spline'"
                )
            return Projections(self.components)
        return {"u1": CircleSpline, "su2": SpectralSU2, "su3": SpectralSU3}[target.group](self.bins)

    def _base(self, target: Wilson) -> HaarBase:
        if self.base == "haar":
            return HaarBase(target.lattice, target.links)
        if target.group != "u1" or target.lattice.dim != 2:
            raise InputError(
                f"gauge_coupling: base 'independent' is of u1 in two dimensions; found {target.group} on {target.shape}, "
                "use 'haar'"
            )
        return IndependentPlaquettes(target.lattice, target.beta)
