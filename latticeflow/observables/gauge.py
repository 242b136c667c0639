"""Observables of Wilson's gauge theories on a periodic lattice of V sites in D dimensions; lattice units.

`<...>` over all sites, planes and directions where nothing else is said; traces are `Re tr / N` (U(1): cosines).
"""

import itertools
import math

import numpy as np
import torch
from torch import Tensor

from ..groups import wrap
from ..targets import Target, Wilson
from ..targets.gauge import neighbour, polyakov_loops
from .base import OtherTheory, observables

SIDES = 4  # the longest side of the Wilson loops that are measured


def _gauge(target: Target) -> str | None:
    return (
        None if isinstance(target, Wilson) else OtherTheory(f"target '{target.kind}' is not a gauge theory")
    )


def _two_dimensional_u1(target: Target) -> str | None:
    if isinstance(target, Wilson) and (target.group != "u1" or len(target.shape) != 2):
        return (
            f"the geometric charge is that of U(1) in two dimensions, found {target.group} on {target.shape}"
        )
    return _gauge(target)


def _loops_up_to(sides: int):
    def missing(target: Target) -> str | None:
        if isinstance(target, Wilson) and longest(target) < sides:
            return f"a loop of {sides} x {sides} needs sides of at least {2 * sides}, found {target.shape}"
        return _gauge(target)

    return missing


def longest(target: Wilson) -> int:
    """The longest side of loops: half the lattice's shortest, at most `SIDES`, at least one."""
    return max(1, min(SIDES, min(target.shape) // 2))


@observables.primary("plaquette", "⟨P⟩", r"\langle P \rangle", _gauge)
def plaquette(target: Wilson, x: Tensor) -> Tensor:
    """Mean of `Re tr P / N` over sites and planes, `[n]`."""
    traces = [target.links.trace(p).flatten(1).mean(1) for _, _, p in target.plaquettes(x)]
    return torch.stack(traces).mean(0)


@observables.primary("gauge_action", "⟨S⟩", r"\langle S \rangle", _gauge)
def action(target: Wilson, x: Tensor) -> Tensor:
    """The target's action S, `[n]`."""
    return target.action(x)


@observables.primary(
    "schwinger_dyson",
    "⟨|∂S|²−ΔS⟩",
    r"\langle |\partial S|^2 - \Delta S \rangle",
    _gauge,
    exact=lambda target: 0.0,
)
def schwinger_dyson(target: Wilson, x: Tensor) -> Tensor:
    """`sum (d_a S)^2 - d_a d_a S` over links and a, `[n]`; its mean is zero exactly (integration by parts)."""
    return target.force(x).square().flatten(1).sum(1) - target.laplacian(x)


@observables.primary("polyakov", "⟨L⟩", r"\langle L \rangle", _gauge)
def polyakov(target: Wilson, x: Tensor) -> Tensor:
    """`Re tr L / N`, L the Polyakov loops in the last direction, `[n]`; its mean is zero by the centre's symmetry (without
    fermions)."""
    return polyakov_loops(target.links, x, len(target.shape) - 1).real.flatten(1).mean(1)


@observables.primary("polyakov2", "⟨|L̄|²⟩", r"\langle |\bar L|^2 \rangle", _gauge)
def polyakov2(target: Wilson, x: Tensor) -> Tensor:
    """`|mean of tr L / N over the lattice|^2`, L in the last direction, `[n]`."""
    return polyakov_loops(target.links, x, len(target.shape) - 1).flatten(1).mean(1).abs().square()


@observables.primary("wilson_loops", "W(R, T)", "W(R, T)", _gauge, vector=True)
def wilson_loops(target: Wilson, x: Tensor) -> Tensor:
    """Mean `Re tr W / N` of R x T rectangles, 1 <= R <= T <= `longest`, in lexicographic order, `[n, k]`.

    Both orientations of a rectangle in a plane are averaged.
    """
    group, dim = target.links, len(target.shape)
    lines = [_lines(target, x, mu) for mu in range(dim)]
    columns = []
    for r, t in sides(target):
        found = [_rectangle(group, lines, mu, nu, r, t) for mu, nu in itertools.permutations(range(dim), 2)]
        columns.append(torch.stack(found).mean(0))
    return torch.stack(columns, 1)


def sides(target: Wilson) -> list[tuple[int, int]]:
    """(R, T) of the columns of `wilson_loops`."""
    return list(itertools.combinations_with_replacement(range(1, longest(target) + 1), 2))


def _lines(target: Wilson, x: Tensor, mu: int) -> list[Tensor]:
    """`U_mu(x) ... U_mu(x + (k - 1) mu)` for k = 1, ..., longest."""
    u = x[:, mu]
    lines = [u]
    for k in range(1, longest(target)):
        lines.append(target.links.mul(lines[-1], neighbour(u, mu, k)))
    return lines


def _rectangle(group, lines: list[list[Tensor]], mu: int, nu: int, r: int, t: int) -> Tensor:
    across, up = lines[mu][r - 1], lines[nu][t - 1]
    there, back = group.mul(across, neighbour(up, mu, r)), group.mul(up, neighbour(across, nu, t))
    return group.trace(group.mul(there, group.dagger(back))).flatten(1).mean(1)


@observables.primary("charge", "⟨Q⟩", r"\langle Q \rangle", _two_dimensional_u1)
def charge(target: Wilson, x: Tensor) -> Tensor:
    """Geometric topological charge `Q = (1 / 2 pi) sum_x wrap(P(x))`, an integer, `[n]`; its mean is zero."""
    (_, _, p) = next(target.plaquettes(x))
    return (wrap(p).flatten(1).sum(1) / (2 * math.pi)).round()


@observables.primary("charge2", "⟨Q²⟩", r"\langle Q^2 \rangle", _two_dimensional_u1)
def charge2(target: Wilson, x: Tensor) -> Tensor:
    """`Q^2`, `[n]`."""
    return charge(target, x).square()


@observables.derived("chi_q", "χ_Q", r"\chi_Q", _two_dimensional_u1, ("charge2",))
def chi_q(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """Topological susceptibility `chi_Q = <Q^2> / V`."""
    return float(means["charge2"] / target.lattice.volume)


_NOT_POSITIVE = "a Wilson loop's mean is not positive within the noise, and has no logarithm"


@observables.derived("creutz", "χ(2, 2)", r"\chi(2, 2)", _loops_up_to(2), ("wilson_loops",), _NOT_POSITIVE)
def creutz(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """Creutz ratio `-log[ W(2, 2) W(1, 1) / W(1, 2)^2 ]`, the string tension where loops obey an area law."""
    w = dict(zip(sides(target), means["wilson_loops"]))
    if min(w[2, 2], w[1, 1], w[1, 2]) <= 0:
        return math.nan
    return float(-np.log(w[2, 2] * w[1, 1] / w[1, 2] ** 2))


def static_potential(target: Wilson, means: np.ndarray) -> np.ndarray:
    """`V(R) = log[ W(R, T) / W(R, T + 1) ]` at the largest T that is measured, R = 1, ..., `longest`, `[R]`.

    `means`: of `wilson_loops`. NaN where a loop is not positive.
    """
    w = dict(zip(sides(target), means))
    top = longest(target)
    found = np.full(top, math.nan)
    for r in range(1, top + 1):
        one, two = (w[min(r, t), max(r, t)] for t in (top - 1, top)) if top > 1 else (math.nan, math.nan)
        if one > 0 and two > 0:
            found[r - 1] = math.log(one / two)
    return found


@observables.derived("potential_1", "V(1)", "V(1)", _loops_up_to(2), ("wilson_loops",), _NOT_POSITIVE)
def potential_1(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """Static potential at distance one, `static_potential`."""
    return float(static_potential(target, means["wilson_loops"])[0])


@observables.derived("potential_2", "V(2)", "V(2)", _loops_up_to(2), ("wilson_loops",), _NOT_POSITIVE)
def potential_2(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """Static potential at distance two, `static_potential`."""
    return float(static_potential(target, means["wilson_loops"])[1])
