"""The split flow: global symmetric kernels between the halves of a partition, and a shared site-wise map.

One layer, on a partition of the sites into A and B of equal size:

1. `phi_A += sum_{B} K_0(d) f(phi_B)`, then `phi_B += sum_A K_1(d) f(phi_A)`: additive couplings with unit Jacobian;
2. `phi -> g(phi)` on every site, the odd monotone harmonic map: its `sum log g'` is the whole log-det,

with features `f(phi) = [phi, sin(w phi), sin(2 w phi), ..., sin(F w phi)]` and kernels that depend on the displacement d
only through its orbit under the point group of the lattice's shape. Odd in phi, so Z2 equivariance is
exact; translations that map A to A commute with the layer.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..lattice import Lattice
from ..random import Purpose, stream, uniform
from ..transforms.harmonic import (
    cosines,
    harmonic_map,
    harmonic_map_inverse,
    harmonic_map_with_score,
    sines,
)
from .base import BaseName, make_base
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel


def partition(lattice: Lattice, name: str) -> np.ndarray:
    """Half of the sites, bool `[V]`: "parity" (even sites), or "axis0", "axis1", ... (even coordinate mu)."""
    lattice.require_even(f"partition '{name}'")
    if name == "parity":
        return lattice.parity.ravel() == 0
    if name.startswith("axis") and name[4:].isdigit() and int(name[4:]) < lattice.dim:
        return lattice.coordinates[:, int(name[4:])] % 2 == 0
    known = ", ".join(["parity", *(f"axis{mu}" for mu in range(lattice.dim))])
    raise InputError(f"partition '{name}' of a {lattice.dim}-dimensional lattice; known: {known}")


class SplitLayer(Layer):
    """One layer of the module's docstring. `sines` = F features a kernel, `site_sines` terms in g."""

    order: Tensor
    restore: Tensor
    orbit: Tensor

    def __init__(self, lattice: Lattice, name: str, sines: int, site_sines: int, rng: np.random.Generator):
        super().__init__()
        half = partition(lattice, name)
        order = np.concatenate([np.flatnonzero(half), np.flatnonzero(~half)])
        self.n_half = lattice.volume // 2
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        self.register_buffer("restore", torch.from_numpy(np.argsort(order)), persistent=False)

        # orbit of the displacement from each source (rows, in B) to each destination (columns, in A);
        # orbits are even in d, so the transpose serves the way back
        x = lattice.coordinates[order]
        d = (x[None, : self.n_half] - x[self.n_half :, None]) % np.array(lattice.shape)
        orbit = lattice.displacement_orbits[tuple(np.moveaxis(d, -1, 0))]
        labels, orbit = np.unique(orbit, return_inverse=True)
        self.lattice, self.labels = lattice, labels
        self.register_buffer("orbit", torch.from_numpy(orbit.reshape(-1)), persistent=False)

        self.sines = sines
        self.kernel = nn.Parameter(torch.zeros(2, 1 + sines, len(labels)))
        # a period of about 9, several times a typical field; jitter, so that no two layers start alike
        w = 0.7 * uniform(rng, (3,), dtype=torch.float32).mul(0.2).add(0.9)
        self.log_w = nn.Parameter(w[:2].log())
        self.log_slope = nn.Parameter(torch.zeros(()))
        self.strength = nn.Parameter(torch.zeros(site_sines))
        self.log_site_w = nn.Parameter(w[2].log())

    def site_map(self) -> tuple[Tensor, Tensor, Tensor]:
        """`(a, c, w)` of g, with `c_f f w = e^a u_f / (1 + sum |u|)`, so that `sum_f |c_f f w| < e^a` always."""
        w = self.log_site_w.exp()
        harmonic = torch.arange(1, len(self.strength) + 1, device=w.device)
        share = self.strength / (1 + self.strength.abs().sum())
        return self.log_slope, self.log_slope.exp() * share / (harmonic * w), w

    def dense_kernel(self, direction: int) -> Tensor:
        """`[(1 + F), V/2 (source), V/2 (destination)]` of coupling 0 (B to A) or 1 (A to B)."""
        dense = self.kernel[direction][:, self.orbit].unflatten(1, (self.n_half, self.n_half))
        return dense if direction == 0 else dense.transpose(1, 2)

    def shift(self, source: Tensor, direction: int) -> Tensor:
        """`sum_source K(d) f(phi_source)`, `[batch, V/2]`."""
        features = torch.cat([source, *sines(source, self.log_w[direction].exp(), self.sines)], dim=1)
        return features @ self.dense_kernel(direction).reshape(-1, self.n_half)

    def shift_vjp(self, source: Tensor, direction: int, score: Tensor) -> Tensor:
        """`score^T d shift / d source`, `[batch, V/2]`."""
        w = self.log_w[direction].exp()
        back = score @ self.dense_kernel(direction).reshape(-1, self.n_half).T
        total, *rest = back.split(self.n_half, dim=1)
        for f, (part, cos) in enumerate(zip(rest, cosines(source, w, self.sines)), start=1):
            total = total + f * w * cos * part
        return total

    def adopt(self, previous: "SplitLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement, everything else copied."""
        state = previous.state_dict()
        orbits = int(previous.lattice.displacement_orbits.max()) + 1
        whole = state["kernel"].new_zeros(*state["kernel"].shape[:-1], orbits)
        whole[..., previous.labels] = state["kernel"]
        kernel = travel_kernel(whole, previous.lattice, self.lattice)[..., self.labels]
        self.load_state_dict({**state, "kernel": kernel})

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.flatten(1).index_select(1, self.order).split(self.n_half, dim=1)

    def merge(self, halves: Tensor, like: Tensor) -> Tensor:
        return halves.index_select(1, self.restore).view_as(like)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.split(x)
        a = a + self.shift(b, 0)
        b = b + self.shift(a, 1)
        y, log_det = harmonic_map(torch.cat([a, b], dim=1), *self.site_map())
        return self.merge(y, x), log_det

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = harmonic_map_inverse(y.flatten(1), *self.site_map())
        a, b = self.split(x)
        b = b - self.shift(a, 1)
        a = a - self.shift(b, 0)
        return self.merge(torch.cat([a, b], dim=1), y), log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a, b = self.split(x)
        a = a + self.shift(b, 0)
        moved = b + self.shift(a, 1)
        with torch.no_grad():
            # couplings of unit Jacobian: score_y = J^{-T} score_x passes the score on to the source's side
            score_a, score_b = self.split(score)
            score_b = score_b - self.shift_vjp(b, 0, score_a)
            score_a = score_a - self.shift_vjp(a, 1, score_b)
            score = torch.cat([score_a, score_b], dim=1)
        y, log_det, score = harmonic_map_with_score(torch.cat([a, moved], dim=1), score, *self.site_map())
        return self.merge(y, x), log_det, self.merge(score, x)


@flows.add("split")
class Split(FlowSpec):
    """The split flow (an own design). `sines` harmonics in a kernel, `site_sines` in the site-wise
    map; `layers` cycle through `partitions` (empty: parity, then every axis)."""

    layers: int = Field(6, gt=0)
    sines: int = Field(6, ge=0)
    site_sines: int = Field(5, ge=1)
    partitions: tuple[str, ...] = ()
    base: BaseName = "spectrum"
    base_m2: float = 1.0

    def build(self, lattice: Lattice, seed: int) -> Flow:
        rng = stream(seed, Purpose.INIT)
        names = self.partitions or ("parity", *(f"axis{mu}" for mu in range(lattice.dim)))
        layers = [
            SplitLayer(lattice, names[i % len(names)], self.sines, self.site_sines, rng)
            for i in range(self.layers)
        ]
        return Flow(make_base(self.base, lattice, self.base_m2), layers)
