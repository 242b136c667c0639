"""SU(N) on a two-dimensional torus in terms of plaquettes carried to the origin: coordinates of all links, and back.

Links of a spanning tree, `U_0(i, j)`, i < L0 - 1, and `U_1(0, j)`, j < L1 - 1, carry every site to the origin: T(x). With
`Z_mu(x) = T(x) U_mu(x) T(x + mu)^dagger`, 1 on the tree, lassos are

`Q(x) = T(x) P(x) T(x)^dagger = Z_0(x) Z_1(x + e0) Z_0(x + e1)^dagger Z_1(x)^dagger`,

and T, `A = Z_1(0, L1 - 1)`, `B = Z_0(L0 - 1, 0)` and all Q but that of the last site are coordinates in which Haar's measure
is a product: each is one link more, turned by links that are known already. Around the torus

`K_0 K_1 ... K_{L1 - 1} = B A B^dagger A^dagger`,    `K_j = Q(L0 - 1, j) ... Q(1, j) Q(0, j)`,

which fixes the last one, Q(L0 - 1, L1 - 1). Gauge transformations turn all of Q, A, B by g(0), and nothing else of them.
Links `[batch, 2, L0, L1, N, N]`, lassos `[batch, V, N, N]`, in the order of `order`, the last one last.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..groups import settled


@dataclass(frozen=True)
class Frame:
    """What maps of lassos leave alone: T `[batch, L0, L1, N, N]`; A and B `[batch, N, N]`."""

    tree: Tensor
    a: Tensor
    b: Tensor


def split(links: Tensor) -> tuple[Frame, Tensor]:
    """The frame, and the V - 1 lassos that are free, in their order: with `turned`, `F_1 ... F_{V - 1} = Q_last^dagger`."""
    links = settled(links)
    u, v = links[:, 0], links[:, 1]
    column = _products(v[:, 0, :-1], 1)  # T(0, j)
    tree = torch.stack(_chain(column, u[:, :-1].unbind(1)), 1)
    a = tree[:, 0, -1] @ v[:, 0, -1]
    b = tree[:, -1, 0] @ u[:, -1, 0] @ tree[:, 0, 0].mH
    there = u @ torch.roll(v, -1, 1)
    back = v @ torch.roll(u, -1, 2)
    q = tree @ (there @ back.mH) @ tree.mH
    return Frame(tree, a, b), _ordered(q)


def join(frame: Frame, lassos: Tensor) -> Tensor:
    """The links of a frame and of free lassos."""
    tree, (l0, l1) = frame.tree, frame.tree.shape[1:3]
    rows, top = _unordered(lassos, l0, l1)  # [batch, L0 - 1, L1], [batch, L1 - 1]
    one = torch.eye(tree.shape[-1], dtype=tree.dtype, device=tree.device).expand(len(tree), -1, -1)
    first = torch.stack([one] * (l1 - 1) + [frame.a], 1)  # Z_1(0, j)
    z1 = [first]
    for q in rows.unbind(1):
        z1.append(q @ z1[-1])
    b = [frame.b]
    for j in range(l1 - 1):  # Q = B_j Z_1(0, j) B_{j+1}^dagger Z_1(L0 - 1, j)^dagger
        b.append(z1[-1][:, j].mH @ top[:, j].mH @ b[-1] @ first[:, j])
    z = torch.stack(z1, 1)
    last = torch.stack(b, 1)
    u = torch.cat([tree[:, :-1].mH @ tree[:, 1:], (tree[:, -1].mH @ last @ tree[:, 0])[:, None]], 1)
    v = tree.mH @ z @ torch.roll(tree, -1, 2)
    return torch.stack([u, v], 1)


def turned(frame: Frame, lassos: Tensor) -> Tensor:
    """F, the free lassos but that the first of row 0 has `(B A B^dagger A^dagger)^dagger` in front of it, so that the
    product of all in their order is `Q_last^dagger`."""
    l0 = frame.tree.shape[1]
    around = frame.b @ frame.a @ frame.b.mH @ frame.a.mH
    head, first, rest = lassos.split([l0 - 1, 1, lassos.shape[1] - l0], 1)
    return torch.cat([head, around.mH[:, None] @ first, rest], 1)


def suffixes(f: Tensor) -> tuple[Tensor, Tensor]:
    """`R_k = F_{k+1} ... F_{V - 1}` for k = 1, ..., V - 1, `[batch, V - 1, N, N]`, and R_0, the product of all."""
    one = torch.eye(f.shape[-1], dtype=f.dtype, device=f.device).expand(len(f), -1, -1)
    found = [one]
    for one in reversed(f.unbind(1)):
        found.append(one @ found[-1])
    total = found.pop()
    return settled(torch.stack(found[::-1], 1)), settled(total)


def _chain(start: Tensor, factors: tuple[Tensor, ...]) -> list[Tensor]:
    found = [start]
    for one in factors:
        found.append(found[-1] @ one)
    return found


def _products(factors: Tensor, dim: int) -> Tensor:
    """1, f_1, f_1 f_2, ... along `dim`."""
    one = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device).expand(
        len(factors), -1, -1
    )
    return torch.stack(_chain(one, factors.unbind(dim)), dim)


def _ordered(q: Tensor) -> Tensor:
    """Free lassos in the order of their product after the last one: what follows it in the last row, then the other rows,
    then what comes before it there: nothing. In a row i falls."""
    rows = torch.flip(q, (1,)).transpose(1, 2)  # [batch, L1, L0 falling]
    return torch.cat([rows[:, -1, 1:], rows[:, :-1].flatten(1, 2)], 1)


def _unordered(lassos: Tensor, l0: int, l1: int) -> tuple[Tensor, Tensor]:
    """Lassos at i < L0 - 1, `[batch, L0 - 1, L1, N, N]`, and those at i = L0 - 1, j < L1 - 1."""
    end, others = lassos.split([l0 - 1, l0 * (l1 - 1)], 1)
    others = others.unflatten(1, (l1 - 1, l0))
    rows = torch.cat([others[:, :, 1:], end[:, None]], 1)  # [batch, L1, L0 - 1 falling]
    return torch.flip(rows.transpose(1, 2), (1,)), others[:, :, 0]
