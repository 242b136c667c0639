"""Arithmetic of SU(2) and SU(3) number by number: matrices are complex `[N, N, ...]`, rows and columns first.

Every operation is one of whole arrays then, and several times as fast as torch's products of small matrices. An element
`i c_a T_a` of the algebra is the traceless, antihermitian matrix A itself. Derivatives are by hand, few passes for many
nodes of a graph: of a matrix or number M torch's G, `dL = Re sum conj(G) dM`.
"""

import math

import torch
from torch import Tensor

from ..groups import SU
from .heatbath import dagger, product

LARGE = 2.0  # size of A above which the exponential is squared: a series loses exp(|A|) to rounding


def to_planes(x: Tensor) -> Tensor:
    """Links `[batch, D, *shape, N, N]` as `[N, N, D, *shape, batch]`."""
    return x.permute(-2, -1, *range(1, x.dim() - 2), 0).clone(memory_format=torch.contiguous_format)


def from_planes(x: Tensor) -> Tensor:
    """The inverse of `to_planes`."""
    return x.permute(-1, *range(2, x.dim() - 1), 0, 1).clone(memory_format=torch.contiguous_format)


def to_algebra(group: SU, c: Tensor) -> Tensor:
    """`i c_a T_a` of coefficients `[batch, ..., N^2 - 1]`, as `to_planes`."""
    return to_planes(1j * group.hermitian(c))


def from_algebra(group: SU, a: Tensor) -> Tensor:
    """The inverse of `to_algebra`."""
    return group.coefficients(-1j * from_planes(a))


def trace(a: Tensor) -> Tensor:
    """`tr A`; real for N = 2, as of all real multiples and sums of matrices of SU(2)."""
    if len(a) == 2:
        return a[0, 0].real + a[1, 1].real
    return a[0, 0] + a[1, 1] + a[2, 2]


def total(a: Tensor, b: Tensor) -> Tensor:
    """`sum_ij A_ij B_ij`; its real part for N = 2."""
    found = (a * b).sum((0, 1))
    return found.real if len(a) == 2 else found


def inner(a: Tensor, b: Tensor) -> Tensor:
    """`a_c b_c` of elements `i a_c T_c` and `i b_c T_c` of the algebra: `2 Re sum conj(A) B`, `[...]`."""
    parts = (torch.view_as_real(a) * torch.view_as_real(b)).sum((0, 1))
    return 2 * (parts[..., 0] + parts[..., 1])


def add_number(a: Tensor, number: Tensor) -> Tensor:
    """`A + number`, in place."""
    for j in range(len(a)):
        a[j, j].add_(number)
    return a


def algebra(a: Tensor) -> Tensor:
    """The algebra's part of any matrix, `(A - A^dagger) / 2` less its trace; not for autograd."""
    out = dagger(a).sub_(a).mul_(-0.5)
    mean = out[0, 0].clone()
    for j in range(1, len(a)):
        mean += out[j, j]
    return add_number(out, mean.div_(-len(a)))


class Planes:
    """The group operations that `commutator_free.step` asks for, of links and elements of the algebra as above."""

    @staticmethod
    def mul(u: Tensor, v: Tensor) -> Tensor:
        return _Product.apply(u, v)

    @staticmethod
    def exp(c: Tensor) -> Tensor:
        """By its series modulo the characteristic polynomial, smooth everywhere; squared where c is large."""
        q1 = inner(c.detach(), c.detach()) / 4  # of c = i Q; tr Q^2 = 2 q1, eigenvalues^2 <= 4 q1 / 3
        largest = math.sqrt(4 / 3 * float(q1.max())) if q1.numel() else 0.0
        if LARGE < largest < math.inf:
            half = Planes.exp(0.5 * c)
            return Planes.mul(half, half)
        terms = _terms(largest, torch.finfo(q1.dtype).eps)
        return (_ExpSU2 if len(c) == 2 else _ExpSU3).apply(c, q1, terms)


def _terms(size: float, eps: float) -> int:
    """How many terms of exp's series leave a rest below rounding where eigenvalues are of `size`."""
    count, term = 2, size
    while term > 0.1 * eps and count < 64:
        term *= size / count
        count += 1
    return count


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return product(a, b)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        a, b = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            product(grads[0], dagger(b)) if wanted[0] else None,
            product(dagger(a), grads[0]) if wanted[1] else None,
        )


class _ExpSU2(torch.autograd.Function):
    """`cos r + A sin(r) / r`, r^2 = q1; `cos' = -sin(r) / 2r` by q1."""

    @staticmethod
    def forward(ctx, a: Tensor, q1: Tensor, terms: int) -> Tensor:
        cos = sinc = slope = torch.zeros_like(q1)
        for k in reversed(range(terms // 2 + 1)):
            slope = -q1 * slope - sinc
            cos = 1 / math.factorial(2 * k) - q1 * cos
            sinc = 1 / math.factorial(2 * k + 1) - q1 * sinc
        ctx.save_for_backward(a, sinc, slope)
        return add_number(a * sinc, cos)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,) = grads
        a, sinc, slope = ctx.saved_tensors
        of_q1 = inner(a, g) / 2 * slope - 0.5 * sinc * trace(g)
        return (g * sinc).addcmul_(a, of_q1.to(a.dtype)), None, None


class _ExpSU3(torch.autograd.Function):
    """`f0 + f1 Q + f2 Q^2`, A = i Q, f by Horner's rule for `sum_k (iQ)^k / k!` with `Q^3 = q1 Q + q0`,

    `q0 = tr Q^3 / 3`; backward the transposed rule.
    """

    @staticmethod
    def forward(ctx, a: Tensor, q1: Tensor, terms: int) -> Tensor:
        a2 = product(a, a)
        q0 = (a2 * a.transpose(0, 1)).sum((0, 1)).imag / -3
        f0 = f1 = f2 = q1.new_zeros(2, *q1.shape)  # real and imaginary parts
        before = []
        for k in reversed(range(terms)):
            before.append(f2)
            f0, f1, f2 = f2 * q0, torch.addcmul(f0, f2, q1), f1
            f0[k % 2] += (-1) ** (k // 2) / math.factorial(k)
        first, second = torch.complex(f1[1], -f1[0]), torch.complex(-f2[0], -f2[1])  # of A and A^2
        ctx.save_for_backward(a, a2, q0, q1, first, second, torch.stack(before))
        return add_number((a * first).addcmul_(a2, second), torch.complex(f0[0], f0[1]))

    @staticmethod
    def backward(ctx, *grads: Tensor):
        (g,) = grads
        a, a2, q0, q1, first, second, before = ctx.saved_tensors
        g1, g2 = 1j * total(a.conj(), g), -total(a2.conj(), g)
        of_f = [torch.stack([one.real, one.imag]) for one in (trace(g), g1, g2)]
        of_q0, of_q1 = torch.zeros_like(before[0]), torch.zeros_like(before[0])
        for f2 in before.flip(0):
            of_q0.addcmul_(of_f[0], f2)
            of_q1.addcmul_(of_f[1], f2)
            of_f = [of_f[1], of_f[2], torch.addcmul(q0 * of_f[0], q1, of_f[1])]
        of_a2 = second.conj() * g
        found = product(of_a2, a).add_(product(a, of_a2)).neg_()
        found.addcmul_(first.conj(), g).addcmul_(of_q1.sum(0).to(a.dtype), a)
        return found.addcmul_(-1j * of_q0.sum(0), a2), None, None
