"""Flows of SU(2) and SU(3) in two dimensions, in terms of plaquettes carried to the origin (`transforms.lassos`).

T, A, B and m = V - 1 lassos are coordinates of all links in which Haar's measure is a product; the last lasso is fixed by
the others, `Q_last^dagger = R_0 = F_1 F_2 ... F_m`, F the free ones. Base: Haar's measure, or independent plaquettes, all
lassos but the last with the density of one plaquette, `p(F) = exp((beta / N) Re tr F) / c_0`. Layers:

- `LassoMap`: `F_k -> h(F_k)`, h a `ClassMap`: from Haar's measure it makes the other base.
- `LassoSpread`: `R_0 -> R_0' = h(R_0)`, and the others share the change. With `R_k = F_{k+1} ... F_m` and the X that
  commutes with R_0 such that `R_0' = R_0 e^{iX}`,

  `R_k' = R_k e^{i (1 - k / m) X}`,    that is    `F_k' = R_{k-1}' R_k'^dagger = F_k R_k e^{i X / m} R_k^dagger`.

  `F -> R` keeps Haar's measure, and at fixed R_0 every other R_k is multiplied by a constant: log |det| is that of h.

h commutes with conjugation and so both with gauge transformations, which turn all lassos by one matrix, and with charge
conjugation. Where V is large R_0 is nearly Haar distributed, and both start from the h that takes Haar's measure to p.
"""

import numpy as np
import torch
from torch import Tensor, nn

from .. import exact
from ..errors import InputError
from ..groups import SU
from ..precision import double
from ..targets import Wilson
from ..transforms import class_draws, lassos
from ..transforms.circular import Knots, knots
from ..transforms.class_maps import Stage, move, move_back, reference
from ..transforms.sums import site_sum
from .base import HaarBase
from .flow import Layer

SCALE = 10.0  # of the logits over the parameters, as for U(1)


class IndependentLassos(HaarBase):
    """`log r = sum_k [ (beta / N) Re tr F_k - log c_0 ]`; T, A and B are Haar distributed."""

    def __init__(self, target: Wilson):
        super().__init__(target.lattice, target.links)
        self.n, self.beta = target.links.n, target.beta
        self.log_c0 = exact.log_one_plaquette(target.group, target.beta)

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        links = self.group.haar((n, 2, *self.lattice.shape), rng, torch.float64)
        frame, free = lassos.split(links)
        drawn = class_draws.draw(self.n, self.beta, n * free.shape[1], rng)
        like = self.like
        return lassos.join(frame, drawn.view_as(free)).to(like.device, self.group.dtype(like.dtype))

    def log_white(self, noise: Tensor) -> Tensor:
        free = lassos.split(noise)[1]
        return self.beta * site_sum(self.group.trace(free)) - free.shape[1] * self.log_c0

    def score(self, z: Tensor) -> Tensor:
        with torch.enable_grad():
            z = z.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self.log_white(z).sum(), z)
        return self.group.left_derivative(z.detach(), slope)


class ClassMap(nn.Module):
    """`h = v o g`: g trained, the identity at first; v, fixed, from Haar's measure to the density of one plaquette at beta.

    g: splines of `bins` bins of both coordinates of a class (`transforms.class_maps`), that of rho linear in the new sigma.
    A trained map alone leaves far classes out, which the reverse divergence does not see. In float64.
    """

    def __init__(self, n: int, bins: int, beta: float):
        super().__init__()
        self.n, self.bins, self.beta = n, bins, beta
        self.weight = nn.Parameter(torch.zeros(1 if n == 2 else 3, 3 * bins + 1))

    def stages(self) -> list[Stage]:
        """g and v."""
        sigma, *of_rho = (SCALE * self.weight.double()).unbind(0)

        def rho(at: Tensor) -> Knots:
            constant, linear = of_rho
            return self._knots(constant + linear * at[..., None])

        g = Stage(self._knots(sigma), rho)
        return [g, reference(self.n, self.beta, self.weight.device)]

    def _knots(self, numbers: Tensor) -> Knots:
        return knots(*numbers.split([self.bins, self.bins, self.bins + 1], -1))

    def forward(self, p: Tensor, share: float | None = None) -> tuple[Tensor, Tensor]:
        """`(h(P), log |det|)` of P `[..., N, N]`, complex128; with a share s `e^{i s X}` instead, `h(P) = P e^{iX}`."""
        return move(p, self.stages(), share)

    def inverse(self, p: Tensor, share: float | None = None) -> tuple[Tensor, Tensor]:
        return move_back(p, self.stages(), share)


class LinkLayer(Layer):
    """A layer of links of SU(N), whose scores are left derivatives `[batch, D, *shape, N^2 - 1]`."""

    group: SU

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As of any layer, by autograd through the inverse."""
        y, log_det = self(x)
        with torch.enable_grad():
            end = y.detach().requires_grad_(True)
            start, log_back = self.inverse(end)
            (slope,) = torch.autograd.grad(self.group.pair(score, start).sum() + log_back.sum(), end)
        return y, log_det, self.group.left_derivative(end.detach(), slope)


class LassoMap(LinkLayer):
    """`F_k -> h(F_k)` of all free lassos."""

    def __init__(self, group: SU, bins: int, beta: float):
        super().__init__()
        self.group, self.h = group, ClassMap(group.n, bins, beta)

    def _move(self, links: Tensor, by) -> tuple[Tensor, Tensor]:
        frame, free = lassos.split(double(links))
        moved, log_det = by(free)
        return lassos.join(frame, moved).to(links.dtype), site_sum(log_det)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.h)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.h.inverse)


class LassoSpread(LinkLayer):
    """`F_k -> F_k R_k e^{iX / m} R_k^dagger`, `h(R_0) = R_0 e^{iX}`.

    The inverse is the same with that of h, since `R_k' e^{iX / m} R_k'^dagger = R_k e^{iX / m} R_k^dagger`.
    """

    def __init__(self, group: SU, bins: int, beta: float):
        super().__init__()
        self.group, self.h = group, ClassMap(group.n, bins, beta)

    def _move(self, links: Tensor, by) -> tuple[Tensor, Tensor]:
        frame, free = lassos.split(double(links))
        after, whole = lassos.suffixes(lassos.turned(frame, free))
        step, log_det = by(whole, 1 / free.shape[1])
        moved = free @ (after @ step[:, None] @ after.mH)
        return lassos.join(frame, moved).to(links.dtype), log_det

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(x, self.h)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._move(y, self.h.inverse)


def base_of(name: str, target: Wilson) -> HaarBase:
    """The base called "haar" or "independent". Raises `InputError` for sides of 1, around which plaquettes degenerate."""
    if min(target.shape) < 2:
        raise InputError(
            f"plaquettes: a flow of {target.group} on {target.shape}; expected sides of at least 2"
        )
    return HaarBase(target.lattice, target.links) if name == "haar" else IndependentLassos(target)
