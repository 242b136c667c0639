"""The drift of SU(2) and SU(3) links in two dimensions along plaquettes' powers and rectangles, and its divergence:

`v_a = sum_x [ sum_n f_n(x) d_a W_n(x) + r d_a R(x) ]`, `f_n(x) = w_n + sum_m sum_y K_nm(x - y) W_m(y)`,

`W_n = Re tr P^n / N`, R(x) that of the two rectangles of two plaquettes at x. The divergence is a sum over plaquettes, and
over links with their two plaquettes p and q:

`div v = sum_x [ 4 sum_n f_n L_n + 4 sum_nm K_nm(0) D_n(x) . D_m(x) - 6 C r R(x) ]
       + sum_links 2 sum_nm K_nm(p - q) D_n(p) . D_m(q)`,
`D_n(p) = d_a W_n(p)` at the link, `C = (N^2 - 1) / 2N`,
`L_n = d_a d_a W_n = -(n / 2N) Re [ (N^2 - n) / N tr P^n + sum_{k=1}^{n-1} tr P^k tr P^{n-k} ]`.

By the Cayley-Hamilton theorem the powers of P are never made: with `A'` the algebra's part of A (`matrices.algebra`),
`(P^n)' = (zeta_n P)'`, zeta_n a polynomial in t = tr P: `zeta_n = h_{n-1}` (N = 2), `h_{n-1} - h_{n-2}^*` (N = 3), h the
traces of symmetric powers, `h_k = t h_{k-1} - h_{k-2}` and `t h_{k-1} - t^* h_{k-2} + h_{k-3}`. So
`i D_n T = -(n / 2N) (zeta_n P)'`, and D_n . D_m of two plaquettes follows from tr P Q, tr P Q^dagger and the two traces.
"""

from itertools import pairwise

import torch
from torch import Tensor

from ..groups import SU
from ..lattice import Lattice
from .convolution import bases, to_momentum, to_position
from .matrices import from_algebra, to_planes, trace
from .plaquette_views import overlaps, rectangles, velocity, views


class Drift:
    """v and div v at one time.

    `constant` w_n `[powers]`; `kernel` eigenvalues of K_nm `[powers, powers, V]`; `near` K_nm at displacement 0, e_0 and e_1
    `[3, powers, powers]`; `rectangle` r.
    """

    def __init__(
        self, group: SU, lattice: Lattice, constant: Tensor, kernel: Tensor, near: Tensor, rectangle: Tensor
    ):
        self.group, self.lattice, self.rectangle = group, lattice, rectangle
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
        v = v + self.rectangle / n * rectangles(links, p, below, beside)
        divergence = 4 * (f * self.laplacians(traces)).sum(0)
        six = -6 * (n * n - 1) / (2 * n * n) * self.rectangle  # links of a rectangle, each with -C
        square = t * t * (1 - 1 / n) - 2 * (t.conj() if n == 3 else 1.0)
        divergence = divergence + self.paired(0, zeta, zeta, n - t * t.conj() / n, square)
        for place, axis, other in ((2, 1, below), (1, 0, beside)):
            behind = torch.roll(zeta, 1, 1 + axis)
            minus, plus = overlaps(p, other)
            divergence = divergence + self.paired(place, zeta, behind, minus, plus)
            divergence = divergence + six * (plus + t * torch.roll(t, 1, axis) / n).real
        return v, divergence.sum((0, 1), dtype=torch.float64)

    def class_functions(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """`tr P^n` and zeta_n, `[powers, *shape, batch]`, t = tr P."""
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
