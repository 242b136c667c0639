"""The integral Z of a target on the unit cube, a cross section or a width, and how it converges: lines, figures, tables."""

from dataclasses import asdict
from typing import Any

from ..production.summary import integral_name, survival_lines, weight_line
from ..statistics import Integration, bracket
from ..targets.hypercube import Hypercube
from .report import Table

_SYMBOLS = {"sigma": "σ", "Gamma": "Γ", "Z": "Z"}


def integral_symbol(target: Hypercube) -> str:
    """For tables: "σ  [pb]", "Γ  [GeV]" or "Z"."""
    symbol = _SYMBOLS[integral_name(target)]
    return f"{symbol}  [{target.unit}]" if target.unit else symbol


def integral_lines(target: Hypercube, found: Integration) -> list[str]:
    """What `measure` prints: Z, its weights, and its convergence."""
    weights = found.weights
    lines = [
        f"{integral_symbol(target)} = {bracket(weights.z, weights.z_error)} from {weights.n:,} draws, {weights}",
        weight_line(found),
        *survival_lines(target),
        consistency(found),
        "convergence: "
        + ", ".join(f"{step.draws:,}: {bracket(step.value, step.error)}" for step in found.steps),
    ]
    return [line for line in lines if line]


def consistency(found: Integration) -> str:
    """How blocks agree; nothing of a single block."""
    if not found.dof:
        return ""
    return f"blocks around their mean: chi2 = {found.chi2:.1f} at {found.dof} degrees of freedom, p = {found.p:.2g}"


def convergence_table(target: Hypercube, found: dict[str, Integration]) -> Table:
    """Z of each sampler after every doubling of the number of its blocks."""
    draws = sorted({step.draws for one in found.values() for step in one.steps})
    at = {
        name: {step.draws: bracket(step.value, step.error) for step in one.steps}
        for name, one in found.items()
    }
    rows = [[f"{n:,}", *(at[name].get(n, "-") for name in found)] for n in draws]
    notes = ["blocks are combined by their numbers of draws; errors are those of all draws so far"]
    notes += [f"{name}: {line}" for name, one in found.items() if (line := consistency(one))]
    notes += survival_lines(target)
    return Table(f"Convergence of {integral_symbol(target)}", ["draws", *found], rows, notes)


def integral_json(target: Hypercube, found: Integration) -> dict[str, Any]:
    return {
        "unit": target.unit,
        "value": found.weights.z,
        "error": found.weights.z_error,
        "steps": [asdict(step) for step in found.steps],
        "chi2": found.chi2,
        "dof": found.dof,
        "p": found.p,
        "unweighting": asdict(found.unweighting) if found.unweighting else None,
    }
