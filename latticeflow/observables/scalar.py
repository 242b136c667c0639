"""Observables of a scalar field phi(s) on a periodic lattice of V sites; lattice units.

Conventions. `m = V^{-1} sum_s phi(s)`; `phi_k = V^{-1/2} sum_s phi(s) e^{-iks}`. The "time" directions are
those of the longest side L: correlators and the smallest momentum k1 = 2 pi / L are averaged over all of them
(every direction of a hypercube, the long one of 8x16). Nothing is connected, i.e. no `<m>^2` is taken off: at
finite volume `<phi> = 0`.
"""

import numpy as np
import torch
from torch import Tensor

from ..targets import LatticeTarget, Target
from .base import OtherTheory, observables


def _scalar(target: Target) -> str | None:
    if not isinstance(target, LatticeTarget) or target.event_shape != tuple(target.shape):
        return OtherTheory(f"target '{target.kind}' is not a scalar field on a lattice")
    return None


def _longest_at_least(sides: int, what: str):
    def missing(target: Target) -> str | None:
        reason = _scalar(target)
        if reason is None and max(target.shape) < sides:  # type: ignore[attr-defined]
            return f"{what} needs a side of at least {sides}, found {tuple(target.shape)}"  # type: ignore[attr-defined]
        return reason

    return missing


def time_directions(target: LatticeTarget) -> list[int]:
    """The axes mu whose side is the longest, L_mu = L."""
    return [mu for mu, side in enumerate(target.shape) if side == max(target.shape)]


def _slices(target: LatticeTarget, x: Tensor, mu: int) -> Tensor:
    """`S(t) = sum_{s: s_mu = t} phi(s)`, `[n, L_mu]`."""
    others = [1 + axis for axis in range(len(target.shape)) if axis != mu]
    return x.sum(others) if others else x


# Primary: functions of one configuration.


@observables.primary("phi2", "⟨φ²⟩", r"\langle \phi^2 \rangle", _scalar)
def phi2(target: LatticeTarget, x: Tensor) -> Tensor:
    """`V^{-1} sum_s phi(s)^2`, `[n]`."""
    return x.square().flatten(1).mean(1)


@observables.primary("phi4", "⟨φ⁴⟩", r"\langle \phi^4 \rangle", _scalar)
def phi4(target: LatticeTarget, x: Tensor) -> Tensor:
    """`V^{-1} sum_s phi(s)^4`, `[n]`."""
    return x.square().square().flatten(1).mean(1)


@observables.primary("chi2", "χ₂", r"\chi_2", _scalar)
def chi2(target: LatticeTarget, x: Tensor) -> Tensor:
    """`V m^2 = |phi_0|^2`, `[n]`; its mean is the susceptibility chi2 = V <m^2>."""
    return x.flatten(1).sum(1).square() / target.lattice.volume


@observables.primary("abs_m", "⟨|m|⟩", r"\langle |m| \rangle", _scalar)
def abs_m(target: LatticeTarget, x: Tensor) -> Tensor:
    """`|m|`, `[n]`."""
    return x.flatten(1).mean(1).abs()


@observables.primary("m", "⟨m⟩", r"\langle m \rangle", _scalar)
def m(target: LatticeTarget, x: Tensor) -> Tensor:
    """`m = V^{-1} sum_s phi(s)`, `[n]`; its mean is zero by the symmetry phi -> -phi."""
    return x.flatten(1).mean(1)


@observables.primary("m4", "⟨m⁴⟩", r"\langle m^4 \rangle", _scalar)
def m4(target: LatticeTarget, x: Tensor) -> Tensor:
    """`m^4`, `[n]`."""
    return x.flatten(1).mean(1).pow(4)


@observables.primary("action", "⟨S⟩", r"\langle S \rangle", _scalar)
def action(target: LatticeTarget, x: Tensor) -> Tensor:
    """The target's action S, `[n]`."""
    return target.action(x)


@observables.primary("ising_energy", "E", "E", _scalar)
def ising_energy(target: LatticeTarget, x: Tensor) -> Tensor:
    """`E = D^{-1} sum_mu V^{-1} sum_s phi(s) phi(s + mu)`, all D directions, `[n]`."""
    lattice = target.lattice
    bonds = [(x * lattice.shift(x, mu)).flatten(1).mean(1) for mu in range(lattice.dim)]
    return torch.stack(bonds).mean(0)


@observables.primary(
    "virial",
    "⟨Σ φ dS/dφ⟩",
    r"\langle \sum \phi\, dS/d\phi \rangle",
    _scalar,
    exact=lambda target: target.lattice.volume,  # type: ignore[attr-defined]
)
def virial(target: LatticeTarget, x: Tensor) -> Tensor:
    """`sum_s phi(s) dS/dphi(s)`, `[n]`; its mean is V exactly (integration by parts), whatever the action."""
    return -(x * target.force(x)).flatten(1).sum(1)


@observables.primary(
    "phi_k1", "⟨|φ_k1|²⟩", r"\langle |\phi_{k_1}|^2 \rangle", _longest_at_least(2, "the smallest momentum")
)
def phi_k1(target: LatticeTarget, x: Tensor) -> Tensor:
    """`|phi_k|^2` at the smallest momentum k1 = 2 pi / L, averaged over the time directions, `[n]`."""
    side, directions = max(target.shape), time_directions(target)
    angle = 2 * np.pi / side * torch.arange(side, dtype=x.dtype, device=x.device)
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for mu in directions:
        slices = _slices(target, x, mu)
        total += (slices @ angle.cos()).square() + (slices @ angle.sin()).square()
    return total / (target.lattice.volume * len(directions))


@observables.primary("correlator", "C(t)", "C(t)", _longest_at_least(2, "a correlator"), vector=True)
def correlator(target: LatticeTarget, x: Tensor) -> Tensor:
    """`C(t) = V^{-1} sum_{t0} S(t0) S(t0 + t)`, t = 0 ... L - 1, `[n, L]`; S(t): sum of the slice s_mu = t.

    The zero-momentum correlator, `sum_{s_perp} <phi(0) phi(t, s_perp)>`, averaged over all time origins and
    over the time directions; `sum_t C(t) = chi2` (1904.12072).
    """
    side, directions = max(target.shape), time_directions(target)
    columns = [torch.zeros(len(x), dtype=x.dtype, device=x.device) for _ in range(side // 2 + 1)]
    for mu in directions:
        slices = _slices(target, x, mu)
        for t, column in enumerate(columns):
            column += (slices * slices.roll(-t, 1)).sum(1)
    return _unfold(columns, side) / (target.lattice.volume * len(directions))


@observables.primary("two_point", "G(r)", "G(r)", _longest_at_least(2, "a two-point function"), vector=True)
def two_point(target: LatticeTarget, x: Tensor) -> Tensor:
    """`G(r) = V^{-1} sum_s phi(s) phi(s + r mu)`, r = 0 ... L - 1, mean over time directions, `[n, L]`."""
    side, directions, lattice = max(target.shape), time_directions(target), target.lattice
    columns = [
        torch.stack([(x * lattice.shift(x, mu, r)).flatten(1).mean(1) for mu in directions]).mean(0)
        for r in range(side // 2 + 1)
    ]
    return _unfold(columns, side)


def _unfold(columns: list[Tensor], side: int) -> Tensor:
    """Columns t = 0 ... L // 2 of a function with f(L - t) = f(t), as `[n, L]`."""
    return torch.stack([columns[min(t, side - t)] for t in range(side)], dim=1)


# Derived: functions of means of primaries.


@observables.derived("binder", "U", "U", _scalar, ("chi2", "m4"))
def binder(target: LatticeTarget, means: dict[str, np.ndarray]) -> float:
    """Binder cumulant `U = 1 - <M^4> / (3 <M^2>^2)`, M = V m: 0 for a Gaussian, 2/3 for a broken symmetry."""
    m_squared = means["chi2"] / target.lattice.volume
    return float(1 - means["m4"] / (3 * m_squared**2))


@observables.derived(
    "xi",
    "ξ",
    r"\xi",
    _longest_at_least(2, "the second-moment correlation length"),
    ("chi2", "phi_k1"),
    "G(k1) exceeds G(0) within the noise, so xi^2 < 0",
)
def second_moment_xi(target: LatticeTarget, means: dict[str, np.ndarray]) -> float:
    """Second-moment correlation length `xi^2 = (G(0)/G(k1) - 1) / (4 sin^2(pi/L))`, `G(k) = <|phi_k|^2>`."""
    xi2 = (means["chi2"] / means["phi_k1"] - 1) / (4 * np.sin(np.pi / max(target.shape)) ** 2)
    return float(np.sqrt(xi2)) if xi2 >= 0 else np.nan


_NOT_CONVEX = "(C(t-1) + C(t+1)) / (2 C(t)) is below 1 for some t within the noise, and arcosh does not exist"


def effective_mass(correlator: np.ndarray) -> np.ndarray:
    """`m_p(t) = arcosh( (C(t-1) + C(t+1)) / (2 C(t)) )` for 1 <= t < L/2; NaN where the argument is below 1.

    `correlator` `[L]`; the result has ceil(L/2) - 1 elements.
    """
    side = len(correlator)
    t = np.arange(1, (side + 1) // 2)
    ratio = (correlator[t - 1] + correlator[t + 1]) / (2 * correlator[t])
    return np.arccosh(ratio, where=ratio >= 1, out=np.full(len(t), np.nan))


@observables.derived(
    "pole_mass", "m_p", "m_p", _longest_at_least(3, "the pole mass"), ("correlator",), _NOT_CONVEX
)
def pole_mass(target: LatticeTarget, means: dict[str, np.ndarray]) -> float:
    """Pole mass: mean over 1 <= t < L/2 of `m_p(t) = arcosh( (C(t-1) + C(t+1)) / (2 C(t)) )`."""
    return float(effective_mass(means["correlator"]).mean())


@observables.derived(
    "pole_mass_L", "m_p L", "m_p L", _longest_at_least(3, "the pole mass"), ("correlator",), _NOT_CONVEX
)
def pole_mass_times_side(target: LatticeTarget, means: dict[str, np.ndarray]) -> float:
    """`m_p L`, the pole mass times the longest side."""
    return pole_mass(target, means) * max(target.shape)
