"""Explicit Runge-Kutta steps for a tuple of tensors, and their exact inverse.

`k_j = rate(t + c_j h, x + h sum_{i<j} a_ji k_i)`, `x(t + h) = x + h sum_j b_j k_j`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

State = tuple[Tensor, ...]
Rate = Callable[[float, State], State]


@dataclass(frozen=True)
class Tableau:
    """Butcher's coefficients a (rows of the lower triangle), b and c; the error after a fixed time is of `h^order`."""

    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    c: tuple[float, ...]
    order: int


RK4 = Tableau(
    a=((), (1 / 2,), (0, 1 / 2), (0, 0, 1)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), c=(0, 1 / 2, 1 / 2, 1), order=4
)

_q = math.sqrt(21)
# Luther, Math. Comp. 22 (1968) 434: seven stages, order six
RK6 = Tableau(
    a=(
        (),
        (1,),
        (3 / 8, 1 / 8),
        (8 / 27, 2 / 27, 8 / 27),
        (3 * (3 * _q - 7) / 392, -8 * (7 - _q) / 392, 48 * (7 - _q) / 392, -3 * (21 - _q) / 392),
        (
            -5 * (231 + 51 * _q) / 1960,
            -40 * (7 + _q) / 1960,
            -320 * _q / 1960,
            3 * (21 + 121 * _q) / 1960,
            392 * (6 + _q) / 1960,
        ),
        (
            15 * (22 + 7 * _q) / 180,
            120 / 180,
            40 * (7 * _q - 5) / 180,
            -63 * (3 * _q - 2) / 180,
            -14 * (49 + 9 * _q) / 180,
            70 * (7 - _q) / 180,
        ),
    ),
    b=(9 / 180, 0, 64 / 180, 0, 49 / 180, 49 / 180, 9 / 180),
    c=(0, 1, 1 / 2, 2 / 3, (7 - _q) / 14, (7 + _q) / 14, 1),
    order=6,
)
TABLEAUS = {"rk4": RK4, "rk6": RK6}


def step(rate: Rate, t: float, h: float, state: State, tableau: Tableau) -> State:
    """The state at t + h from that at t; h may be negative."""
    rates: list[State] = []
    for row, c in zip(tableau.a, tableau.c):
        rates.append(rate(t + c * h, _moved(state, h, row, rates)))
    return _moved(state, h, tableau.b, rates)


def _moved(state: State, h: float, weights: tuple[float, ...], rates: list[State]) -> State:
    for weight, moved in zip(weights, rates):
        if weight:
            state = tuple(torch.add(y, k, alpha=h * weight) for y, k in zip(state, moved))
    return state
