"""Commutator-free Runge-Kutta steps on a group, of order four (Celledoni, Marthinsen, Owren, FGCS 19 (2003) 341).

`dU/dt = i v_a(U, t) T_a U`, and `dy/dt = r(t, U, y)` for a tuple y of ordinary tensors. With k = h v at the four stages and
`e(k) = exp(i k_a T_a)`,

`U_2 = e(k_1 / 2) U`, `U_3 = e(k_2 / 2) U`, `U_4 = e(k_3 - k_1 / 2) U_2`,
`U(t + h) = e(-k_1 / 12 + k_2 / 6 + k_3 / 6 + k_4 / 4) e(k_1 / 4 + k_2 / 6 + k_3 / 6 - k_4 / 12) U`;

for y, and on an abelian group, that is the classic method of order four.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

Values = tuple[Tensor, ...]
# (t, U, y) -> (v, dy/dt)
Rate = Callable[[float, Tensor, Values], tuple[Tensor, Values]]


class Moves(Protocol):
    """What a step asks of a group (`groups.py`), or of another way to write its elements."""

    def exp(self, c: Tensor) -> Tensor: ...

    def mul(self, u: Tensor, v: Tensor) -> Tensor: ...


def step(group: Moves, rate: Rate, t: float, h: float, u: Tensor, y: Values) -> tuple[Tensor, Values]:
    """(U, y) at t + h from those at t; h may be negative."""

    k1, r1 = rate(t, u, y)
    u2 = group.mul(group.exp(k1 * (h / 2)), u)
    k2, r2 = rate(t + 0.5 * h, u2, _moved(y, 0.5 * h, r1))
    u3 = group.mul(group.exp(k2 * (h / 2)), u)
    k3, r3 = rate(t + 0.5 * h, u3, _moved(y, 0.5 * h, r2))
    u4 = group.mul(group.exp(torch.sub(k3, k1, alpha=0.5) * h), u2)
    k4, r4 = rate(t + h, u4, _moved(y, h, r3))
    middle = (k2 + k3) * (h / 6)
    u = group.mul(group.exp(middle.add(k1, alpha=h / 4).sub(k4, alpha=h / 12)), u)
    u = group.mul(group.exp(middle.sub(k1, alpha=h / 12).add(k4, alpha=h / 4)), u)
    total = tuple(a + 2 * b + 2 * c + d for a, b, c, d in zip(r1, r2, r3, r4))
    return u, _moved(y, h / 6, total)


def _moved(y: Values, h: float, rates: Values) -> Values:
    return tuple(a + h * r for a, r in zip(y, rates))
