"""What a drift along plaquettes of SU(2) and SU(3) in two dimensions takes from the links, with derivatives by hand.

Links `[N, N, 2, *shape, batch]` (`transforms/matrices.py`), u and v the two directions. A plaquette P(x) has four links, and
is seen from its neighbours through one of them: `views` gives

`P(x) = u(x) v(x + e0) u(x + e1)^+ v(x)^+`, `B(x) = v^+ P v` of x - e1, `C(x) = u^+ P u` of x - e0,

so that all three are matrices at x: link 0 of x is part of P(x) and B(x), link 1 of P(x) and C(x).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .heatbath import dagger, product
from .matrices import Planes, algebra, total

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
        return _pulled_back(product, *ctx.saved_tensors, *grads)


def _pulled_back(
    product: Callable[[Tensor, Tensor], Tensor],
    links: Tensor,
    far: Tensor,
    near: Tensor,
    there: Tensor,
    of_p: Tensor,
    of_b: Tensor,
    of_c: Tensor,
) -> Tensor:
    """The covector of the links of those of P, B and C."""
    u, v = links.unbind(2)
    b, c = torch.roll(of_b, -1, 3), torch.roll(of_c, -1, 2)
    far_dagger, near_dagger = dagger(far), dagger(near)
    of_there = product(of_p, v)
    of_near = product(b, far_dagger) + product(far_dagger, c)
    of_far = product(dagger(u), of_there) + product(near_dagger, b) + product(c, near_dagger)
    of_u = product(of_there, far_dagger) + product(v, of_near)
    of_v = product(dagger(of_p), there) + product(u, dagger(of_near))
    of_v = of_v + torch.roll(product(of_far, torch.roll(u, -1, 3)), 1, 2)
    of_u = of_u + torch.roll(product(dagger(of_far), torch.roll(v, -1, 2)), 1, 3)
    return torch.stack([of_u, of_v], 2)


def rectangles(links: Tensor, p: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """`i T_a d_a sum_x Re tr (P B + P C)` of each link: of all rectangles of two plaquettes; `[N, N, 2, *shape, batch]`.

    Tr P B has no longer the link that P and B share: one of six different links each, where sides are 3 at least.
    """
    u, v = links.unbind(2)
    mul = Planes.mul
    far = mul(torch.roll(v, -1, 2), dagger(torch.roll(u, -1, 3)))
    p_dagger = dagger(p)
    slope = _pulled_back(mul, links, far, mul(dagger(v), u), mul(u, far), dagger(b + c), p_dagger, p_dagger)
    return -0.5 * _Algebra.apply(mul(links, dagger(slope)))


class _Algebra(torch.autograd.Function):
    """An orthogonal projection is its own derivative."""

    @staticmethod
    def forward(ctx, a: Tensor) -> Tensor:
        return algebra(a)

    @staticmethod
    def backward(ctx, *grads: Tensor) -> Tensor:
        return algebra(grads[0])


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
