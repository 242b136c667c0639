"""The split flow: the drift of the continuous flow, followed by updates of one sublattice at a time. Exact, however few.

The continuous flow's `d phi(s) / dt = sum_{s'} sum_f K_f(s - s'; t) f_f(phi(s'))`, with features `f_0 = phi` and
`f_f = sin(f w phi)`, f = 1 to F, kernels by orbits of displacements and cosines in time, is split into maps whose
Jacobians are known. A layer, at its time t and with `h = 1 / layers`:

1. for each of the 2^D sublattices c in turn, from the present values on all others,

       phi_c <- e^{h K_0} phi_c + h sum_{c' != c} sum_f K_f f_f(phi_c') + h sum_{f > 0} K_f f_f(psi_c),
       psi_c = sum_{c' != c} G phi_c',

   the exponential that of the linear kernel within the sublattice (all d_mu even), `log det = sum_n h lambda_0(n)`;
   psi, what the others predict for c, stands for phi_c where an update may not depend on it. So all displacements couple.
   Layers take the sublattices forwards and backwards by turns;
2. `phi -> g(phi)` on every site, the odd monotone harmonic map: `log det = sum_s log g'(phi_s)`.

Odd in phi, so Z2 is exact; symmetries that map every sublattice to itself are exact, others up to the order of the updates.
Everything between sublattices happens in their real Fourier bases (`transforms.sublattices`).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..lattice import Lattice
from ..random import Purpose, stream, uniform
from ..transforms.harmonic import (
    cosines,
    harmonic_map,
    harmonic_map_inverse,
    harmonic_map_with_score,
    sines,
)
from ..transforms.sublattices import bases, eigenvalues, site_order, to_momentum, to_position
from .base import BaseName, make_base
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel


class _Features:
    """Features at x `[V / 2^D, batch]`: `value` and its derivative `slope`, each `[V / 2^D, 1 + F, batch]`."""

    def __init__(self, x: Tensor, w: Tensor, order: int):
        self.value = torch.stack([x, *sines(x, w, order)], dim=1)
        self.x, self.w, self.order = x, w, order

    @property
    def slope(self) -> Tensor:
        found = self.x.new_ones(self.value.shape)
        for f, cosine in enumerate(cosines(self.x, self.w, self.order), start=1):
            torch.mul(cosine, f * self.w, out=found[:, f])
        return found


@dataclass
class _Kernels:
    """Eigenvalues of one layer's kernels, and w.

    `coupling` `[c, n, c', 1 + F]` from c' to c, zero for c' = c; `scale` `[n]` of `e^{h K_0}` and `own` `[n, F]` of K_f,
    f > 0, within a sublattice; `predict` `[c, n, c']` of G, zero for c' = c.
    """

    coupling: Tensor
    scale: Tensor
    own: Tensor
    predict: Tensor
    w: Tensor

    @property
    def sines(self) -> int:
        return self.own.shape[1]

    def features(self, x: Tensor) -> _Features:
        return _Features(x, self.w, self.sines)

    def prediction(self, basis: list[Tensor], c: int, momenta: Tensor) -> _Features:
        """Features of psi_c, from momenta of all features `[n, c, 1 + F, batch]`."""
        psi = (self.predict[c][..., None] * momenta[:, :, 0]).sum(1)
        return self.features(to_position(basis, psi))

    def shift(self, basis: list[Tensor], c: int, momenta: Tensor, psi: _Features) -> Tensor:
        """What an update adds to phi_c, in momentum space `[n, batch]`."""
        total = torch.bmm(self.coupling[c].flatten(1)[:, None], momenta.flatten(1, 2)).squeeze(1)
        return total + (self.own[..., None] * to_momentum(basis, psi.value[:, 1:])).sum(1)

    def shift_vjp(
        self, basis: list[Tensor], c: int, psi: _Features, g: Tensor, back: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Adds the derivative of `g . shift` by the momenta of all features to `back`; those by psi, and by its momentum."""
        back.addcmul_(self.coupling[c][..., None], g[:, None, None])
        by_psi = (to_position(basis, self.own[..., None] * g[:, None]) * psi.slope[:, 1:]).sum(1)
        momentum = to_momentum(basis, by_psi)
        back[:, :, 0].addcmul_(self.predict[c][..., None], momentum[:, None])
        return by_psi, momentum


class _Sweep(torch.autograd.Function):
    """Step 1 of a layer: `(y, score_y)` from x `[2^D, V / 2^D, batch]` and the score of x, or None.

    Momenta of the features stand in one array `[n, c, 1 + F, batch]`, in which each sublattice is replaced as it is
    updated; what flows back (`_sweep_score`, `backward`) is summed up in momentum space likewise.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, score: Tensor | None, lattice: Lattice, order: list[int], *kernels: Tensor
    ):
        basis, k = bases(lattice, x.dtype, x.device), _Kernels(*kernels)
        old = [k.features(one) for one in x]
        start = torch.stack([to_momentum(b, f.value) for b, f in zip(basis, old)], dim=1)
        momenta, y, new, psi = start.clone(), torch.empty_like(x), list(old), list(old)
        for c in order:
            psi[c] = k.prediction(basis[c], c, momenta)
            moved = k.shift(basis[c], c, momenta, psi[c]).addcmul_(k.scale[:, None], momenta[:, c, 0])
            y[c] = to_position(basis[c], moved)
            new[c] = k.features(y[c])
            momenta[:, c] = to_momentum(basis[c], new[c].value)
        if score is not None:
            score = _sweep_score(score, k, basis, order, old, new, psi)
            ctx.mark_non_differentiable(score)
        ctx.save_for_backward(x, y, start, momenta, torch.stack([one.x for one in psi]), *kernels)
        ctx.lattice, ctx.order = lattice, order
        return y, score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, _: Tensor | None):  # type: ignore[override]
        x, y, start, momenta, psis, *kernels = ctx.saved_tensors
        basis, k = bases(ctx.lattice, x.dtype, x.device), _Kernels(*kernels)
        momenta, back = momenta.clone(), torch.zeros_like(momenta)
        grad_x = torch.empty_like(x)
        grad = _Kernels(*(torch.zeros_like(one) for one in kernels))

        def arrived(at: Tensor, c: int) -> Tensor:
            """What has flown back to the features of sublattice c, as a derivative by its fields."""
            by_feature = to_position(basis[c], back[:, c]) * k.features(at).slope
            grad.w.add_((by_feature[:, 1:].sum(1) * at).sum() / k.w)
            return by_feature.sum(1)

        for c in reversed(ctx.order):
            g = to_momentum(basis[c], grad_y[c] + arrived(y[c], c))
            back[:, c] = 0
            psi = k.features(psis[c])
            by_psi, momentum = k.shift_vjp(basis[c], c, psi, g, back)
            grad.w.add_((by_psi * psi.x).sum() / k.w)
            grad.own.add_((to_momentum(basis[c], psi.value[:, 1:]) * g[:, None]).sum(2))
            grad.predict[c] = torch.bmm(momenta[:, :, 0], momentum[..., None]).squeeze(2)
            grad.coupling[c] = torch.bmm(momenta.flatten(1, 2), g[..., None]).view_as(k.coupling[c])
            grad.scale.add_((g * start[:, c, 0]).sum(1))
            momenta[:, c] = start[:, c]
            grad_x[c] = to_position(basis[c], g * k.scale[:, None])
        for c in ctx.order:
            grad_x[c] += arrived(x[c], c)
        return grad_x, None, None, None, grad.coupling, grad.scale, grad.own, grad.predict, grad.w


def _sweep_score(
    score: Tensor,
    k: _Kernels,
    basis: list[list[Tensor]],
    order: list[int],
    old: list[_Features],
    new: list[_Features],
    psi: list[_Features],
) -> Tensor:
    """`score_y = J^{-T} score_x`, one update after the other.

    An update of c divides the score there by `scale`, and takes from that of its sources what they moved.
    """
    found = torch.empty_like(score)
    back = score.new_zeros(len(k.scale), len(score), 1 + k.sines, score.shape[-1])
    for c in order:
        s = score[c] - (to_position(basis[c], back[:, c]) * old[c].slope).sum(1)
        moved = to_momentum(basis[c], s) / k.scale[:, None]
        found[c] = to_position(basis[c], moved)
        back[:, c] = 0
        k.shift_vjp(basis[c], c, psi[c], moved, back)
    for c in order:
        found[c] -= (to_position(basis[c], back[:, c]) * new[c].slope).sum(1)
    return found


class SplitLayer(Layer):
    """All layers of the module's docstring, whose kernels and maps are sums of `modes` cosines in time."""

    order: Tensor
    restore: Tensor

    def __init__(
        self, lattice: Lattice, layers: int, sines: int, site_sines: int, modes: int, w: list[float]
    ):
        super().__init__()
        self.lattice, self.layers, self.modes = lattice, layers, modes
        order = torch.from_numpy(site_order(lattice))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("restore", torch.argsort(order), persistent=False)
        self.sublattices = 2**lattice.dim
        orbits = int(lattice.displacement_orbits.max()) + 1
        self.kernel = nn.Parameter(torch.zeros(1 + sines, modes, orbits))
        # G, at the start the mean of the nearest neighbours
        self.predict = nn.Parameter(torch.zeros(orbits))
        with torch.no_grad():
            for mu in range(lattice.dim):
                neighbour = tuple(int(nu == mu) for nu in range(lattice.dim))
                self.predict[int(lattice.displacement_orbits[neighbour])] = 0.5 / lattice.dim
        self.log_w = nn.Parameter(torch.zeros(2, modes))  # of the features, and of g
        with torch.no_grad():
            self.log_w[:, 0] = torch.tensor(w).log()
        self.log_slope = nn.Parameter(torch.zeros(modes))
        self.strength = nn.Parameter(torch.zeros(site_sines, modes))

    def at_layers(self) -> tuple[list[_Kernels], Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Kernels, log det of the exponentials, and `(a, c, w)` of g, of all layers.

        `c_f f w = e^a u_f / (1 + sum |u|)` with `u = 4 h strength(t)`, so that `sum_f |c_f f w| < e^a` always.
        """
        kernel, n = self.kernel, self.layers
        t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        cosine = torch.cos(math.pi * torch.arange(self.modes) * t[:, None]).to(kernel)
        table = eigenvalues(self.lattice, kernel.dtype, kernel.device)
        eigen = torch.einsum("tb,fbo,kon->tknf", cosine / n, kernel, table)
        c = torch.arange(self.sublattices, device=kernel.device)
        kind = c[:, None] ^ c
        between = (kind != 0)[:, None, :].to(kernel)  # [c, 1, c']
        coupling = eigen[:, kind].transpose(2, 3) * between[..., None]  # [t, c, n, c', 1 + F]
        predict = (self.predict @ table)[kind].transpose(1, 2) * between
        w = (cosine @ self.log_w.T).exp()
        kernels = [
            _Kernels(coupling[k], eigen[k, 0, :, 0].exp(), eigen[k, 0, :, 1:], predict, w[k, 0])
            for k in range(n)
        ]
        log_det = self.sublattices * eigen[:, 0, :, 0].double().sum()
        a, u = cosine @ self.log_slope / n, 4 / n * cosine @ self.strength.T
        harmonic = torch.arange(1, u.shape[1] + 1, device=u.device)
        force = a.exp()[:, None] * u / (1 + u.abs().sum(1, keepdim=True)) / (harmonic * w[:, 1:])
        return kernels, log_det, list(zip(a, force, w[:, 1]))

    def turns(self, layer: int) -> list[int]:
        """Order of the updates: the even sites' sublattices and then the odd ones', or backwards."""
        c = sorted(range(self.sublattices), key=lambda c: c.bit_count() % 2)
        return c if layer % 2 == 0 else c[::-1]

    def blocks(self, x: Tensor) -> Tensor:
        """`[batch, *shape]` to `[2^D, V / 2^D, batch]`."""
        return x.flatten(1).T.index_select(0, self.order).unflatten(0, (self.sublattices, -1))

    def fields(self, blocks: Tensor, like: Tensor) -> Tensor:
        return blocks.flatten(0, 1).index_select(0, self.restore).T.reshape(like.shape)

    def _forward(self, x: Tensor, score: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        kernels, log_det, maps = self.at_layers()
        total = log_det.expand(len(x))
        y, score = self.blocks(x), None if score is None else self.blocks(score)
        for i in range(self.layers):
            k = kernels[i]
            y, score = _Sweep.apply(
                y, score, self.lattice, self.turns(i), k.coupling, k.scale, k.own, k.predict, k.w
            )
            flat = y.flatten(0, 1).T  # the site-wise map takes the batch first
            if score is None:
                moved, log_det = harmonic_map(flat, *maps[i])
            else:
                moved, log_det, out = harmonic_map_with_score(flat, score.flatten(0, 1).T, *maps[i])
                score = out.T.view_as(y)
            y, total = moved.T.view_as(y), total + log_det
        return self.fields(y, x), total, None if score is None else self.fields(score, x)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det, _ = self._forward(x, None)
        return y, log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det, out = self._forward(x, score)
        assert out is not None
        return y, log_det, out

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        kernels, log_det, maps = self.at_layers()
        basis = bases(self.lattice, y.dtype, y.device)
        total = -log_det.expand(len(y))
        x = list(self.blocks(y))
        for i in reversed(range(self.layers)):
            k = kernels[i]
            flat, log_det = harmonic_map_inverse(torch.cat(x).T, *maps[i])
            total = total + log_det
            x = list(flat.T.unflatten(0, (self.sublattices, -1)))
            momenta = [to_momentum(b, k.features(one).value) for b, one in zip(basis, x)]
            for c in reversed(self.turns(i)):
                others = torch.stack(momenta, dim=1)
                shift = k.shift(basis[c], c, others, k.prediction(basis[c], c, others))
                x[c] = to_position(basis[c], (momenta[c][:, 0] - shift) / k.scale[:, None])
                momenta[c] = to_momentum(basis[c], k.features(x[c]).value)
        return self.fields(torch.stack(x), y), total

    def adopt(self, previous: "SplitLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement, everything else copied; any number of layers."""
        travelled = {
            name: travel_kernel(getattr(previous, name), previous.lattice, self.lattice)
            for name in ("kernel", "predict")
        }
        self.load_state_dict({**previous.state_dict(), **travelled})


@flows.add("split")
class Split(FlowSpec):
    """The split flow (an own design). `sines` = F harmonics of one frequency in the kernels, `site_sines` in the site-wise
    map, `modes` cosines in time. Sides must be even. The number of parameters does not grow with `layers`.
    """

    layers: int = Field(12, gt=0)
    sines: int = Field(4, ge=1)
    site_sines: int = Field(5, ge=1)
    modes: int = Field(3, ge=1)
    base: BaseName = "spectrum"
    base_m2: float = 1.0

    def layer(self, lattice: Lattice, layers: int, jitter: Tensor) -> SplitLayer:
        # periods of about 7 and 9, several times a typical field
        w = [center * (0.95 + 0.1 * float(u)) for center, u in zip((0.95, 0.7), jitter)]
        return SplitLayer(lattice, layers, self.sines, self.site_sines, self.modes, w)

    def build(self, lattice: Lattice, seed: int) -> Flow:
        jitter = uniform(stream(seed, Purpose.INIT), (2,), dtype=torch.float64)
        return Flow(make_base(self.base, lattice, self.base_m2), [self.layer(lattice, self.layers, jitter)])
