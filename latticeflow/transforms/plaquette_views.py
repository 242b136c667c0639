"""What a drift along plaquettes of SU(2) and SU(3) in two dimensions takes from the links, with derivatives by hand.

Links `[N, N, 2, *shape, batch]` (`transforms/matrices.py`), u and v the two directions. A plaquette P(x) has four links, and
is seen from its neighbours through one of them: `views` gives

`P(x) = u(x) v(x + e0) u(x + e1)^+ v(x)^+`, `B(x) = v^+ P v` of x - e1, `C(x) = u^+ P u` of x - e0,

so that all three are matrices at x: link 0 of x is part of P(x) and B(x), link 1 of P(x) and C(x).
"""

import torch
from torch import Tensor

from .heatbath import dagger, product
from .matrices import algebra, total

Three = tuple[Tensor, Tensor, Tensor]


def views(links: Tensor) -> Three:
    """P, B and C, `[N, N, *shape, batch]` each: six products."""
    return _Views.apply(links)


def overlaps(p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """`tr P Q^+ - tr P tr Q^* / N` and `tr P Q - tr P tr Q / N`, `[*shape, batch]`: of Q the traceless part counts."""
    return _Overlaps.apply(p, q)


def velocity(zeta: Tensor, zeta_b: Tensor, zeta_c: Tensor, p: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The algebra's part of `zeta P - zeta_b B` and `zeta_c C - zeta P`, `[N, N, 2, *shape, batch]`."""
    return _Velocity.apply(zeta, zeta_b, zeta_c, p, b, c)


class _Views(torch.autograd.Function):
    @staticmethod
    def forward(ctx, links: Tensor) -> Three:
        u, v = links.unbind(2)
        far = product(torch.roll(v, -1, 2), dagger(torch.roll(u, -1, 3)))  # P = u far v^+
        v_dagger = dagger(v)
        near, there = product(v_dagger, u), product(u, far)
        ctx.save_for_backward(links, far, near, there)
        b, c = product(near, far), product(far, near)
        return product(there, v_dagger), torch.roll(b, 1, 3), torch.roll(c, 1, 2)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        links, far, near, there = ctx.saved_tensors
        u, v = links.unbind(2)
        p, b, c = grads[0], torch.roll(grads[1], -1, 3), torch.roll(grads[2], -1, 2)
        u_dagger, far_dagger, near_dagger = dagger(u), dagger(far), dagger(near)
        of_there = product(p, v)
        of_near = product(b, far_dagger).add_(product(far_dagger, c))
        of_far = product(u_dagger, of_there).add_(product(near_dagger, b)).add_(product(c, near_dagger))
        of_u = product(of_there, far_dagger).add_(product(v, of_near))
        of_v = product(dagger(p), there).add_(product(u, dagger(of_near)))
        of_v += torch.roll(product(of_far, torch.roll(u, -1, 3)), 1, 2)
        of_u += torch.roll(product(dagger(of_far), torch.roll(v, -1, 2)), 1, 3)
        return torch.stack([of_u, of_v], 2)


class _Overlaps(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        p, q = _traceless(p), _traceless(q)
        ctx.save_for_backward(p, q)
        return total(p, q.conj()), total(p, q.transpose(0, 1))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor]:
        minus, plus = (one.to(ctx.saved_tensors[0].dtype) for one in grads)
        p, q = ctx.saved_tensors
        of_p = (minus * q).addcmul_(plus, dagger(q))
        of_q = (minus.conj() * p).addcmul_(plus, dagger(p))
        return of_p, of_q


class _Velocity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, zeta: Tensor, zeta_b: Tensor, zeta_c: Tensor, p: Tensor, b: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(zeta, zeta_b, zeta_c, p, b, c)
        whole = zeta * p
        return algebra(torch.stack([whole - zeta_b * b, zeta_c * c - whole], 2))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        zeta, zeta_b, zeta_c, p, b, c = ctx.saved_tensors
        first, second = algebra(grads[0]).unbind(2)  # an orthogonal projection is its own derivative
        whole = first - second
        return (
            total(p.conj(), whole),
            -total(b.conj(), first),
            total(c.conj(), second),
            zeta.conj() * whole,
            -zeta_b.conj() * first,
            zeta_c.conj() * second,
        )


def _traceless(a: Tensor) -> Tensor:
    out, n = a.clone(), len(a)
    mean = sum(a[j, j] for j in range(n)) / n
    for j in range(n):
        out[j, j] -= mean
    return out
