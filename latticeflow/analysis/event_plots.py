"""Plots of a comparison of samplers of events: convergence of Z, and spectra with a panel of ratios."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..statistics import Integration
from .histograms import Spectrum
from .plots import COLOURS, DASHES, MARKERS, styled


@styled
def convergence(found: dict[str, Integration], label: str) -> Figure:
    """Z over the best sampler's final Z after each doubling of the number of blocks, and that final Z's error as a band."""
    best = min((one.weights for one in found.values()), key=lambda weights: weights.log_z_error)
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, one) in enumerate(found.items()):
        draws, value, error = np.array([(step.draws, step.value, step.error) for step in one.steps]).T
        style: Any = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "linestyle": DASHES[i]}
        # side by side, where the numbers of draws are the same
        axes.errorbar(draws * 1.04**i, value / best.z, error / best.z, label=name, linewidth=0.8, **style)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.axhspan(1 - best.log_z_error, 1 + best.log_z_error, color="black", alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set(xlabel="draws", ylabel=f"{label} / final {label}")
    axes.legend()
    return figure


@styled
def spectrum(found: Spectrum, z_symbol: str, unit: str) -> Figure:
    """`d Z / d O` of each sampler; below, its ratio to the reference, whose error is the band."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    above, below = figure.subplots(2, sharex=True, height_ratios=[2.4, 1])
    edges, middle = found.edges, (found.edges[1:] + found.edges[:-1]) / 2
    width = np.diff(edges)
    base, spread = found.density(found.reference)
    seen = base > 0
    ratio = np.divide(spread, base, out=np.zeros_like(base), where=seen)
    below.stairs(1 + ratio, edges, baseline=1 - ratio, fill=True, color="black", alpha=0.12, linewidth=0)
    for i, sampler in enumerate(found.by):
        value, error = found.density(sampler)
        above.stairs(value, edges, color=COLOURS[i], linestyle=DASHES[i], label=sampler)
        # side by side within the bin
        at = middle + width * 0.5 * ((i + 1) / (len(found.by) + 1) - 0.5)
        above.errorbar(at, value, error, fmt="none", color=COLOURS[i], linewidth=0.8)
        if sampler != found.reference:
            below.errorbar(
                at[seen],
                value[seen] / base[seen],
                error[seen] / base[seen],
                fmt=MARKERS[i],
                markersize=3,
                color=COLOURS[i],
                linewidth=0.8,
            )
    if seen.any() and base[seen].max() > 50 * base[seen].min():
        above.set_yscale("log")
        above.yaxis.set_minor_formatter(NullFormatter())
    name = found.observable.tex
    above.set_ylabel(f"$d{z_symbol} / d{name}$" + (f"  [{unit} / unit]" if unit else ""))
    above.legend()
    below.axhline(1, color="black", linewidth=0.8)
    # the worst bins of a poor sampler would squeeze the rest
    shown = float(np.quantile(ratio[seen], 0.9)) if seen.any() else 0.1
    others = [found.density(one)[1][seen] / base[seen] for one in found.by if one != found.reference]
    limit = min(
        0.9, max([0.02, 4 * shown, *(3 * float(np.quantile(one, 0.8)) for one in others if len(one))])
    )
    below.set(xlabel=f"${name}$", ylabel=f"/ {found.reference}", ylim=(1 - limit, 1 + limit))
    return figure
