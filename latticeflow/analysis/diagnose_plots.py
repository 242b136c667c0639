"""The plots of the diagnostics, in the style of `plots.py`."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..observables import observables
from ..statistics import bracket
from .diagnose_findings import CERTAIN, WRONG, Diagnosis, Member
from .plots import COLOURS, DASHES, MARKERS, styled

SHOWN = 10.0  # sigma at which the overview's colour ends


def style(i: int) -> dict[str, Any]:
    """Of curve i: colours and dashes go round."""
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}


@styled
def overview(found: list[Diagnosis]) -> Figure:
    """|sigma| of every diagnostic for every ensemble: which gets what wrong."""
    keys = list(dict.fromkeys(key for one in found for key, f in one.findings.items() if f.sigma is not None))
    labels = {key: f.tex for one in found for key, f in one.findings.items()}
    figure = Figure(figsize=(2.6 + 1.5 * len(found), 1.0 + 0.27 * len(keys)), layout="constrained")
    axes = figure.subplots()
    grid = np.full((len(keys), len(found)), np.nan)
    for j, one in enumerate(found):
        for i, key in enumerate(keys):
            if key in one.findings and one.findings[key].sigma is not None:
                grid[i, j] = abs(one.findings[key].sigma)  # type: ignore[arg-type]
                text = f"{grid[i, j]:.1f}" if grid[i, j] < CERTAIN - 1 else "never"
                colour = "white" if grid[i, j] > 6 else "black"
                weight = "bold" if grid[i, j] > WRONG else "normal"
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color=colour, weight=weight)
    image = axes.imshow(np.ma.masked_invalid(grid), vmin=0, vmax=SHOWN, cmap="cividis_r", aspect="auto")
    figure.colorbar(image, ax=axes, label=r"difference / $\sigma$", extend="max")
    axes.set_yticks(range(len(keys)), [labels[key] for key in keys])
    axes.set_xticks(range(len(found)), [one.member.label for one in found], rotation=20, ha="right")
    axes.grid(False)
    return figure


@styled
def actions(members: list[Member], label: str) -> Figure:
    """Density of the action, with errors of the independent draws in a bin; the range is that of the reference, the last."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    finite = [one.action.values[np.isfinite(one.action.values)] for one in members]
    low, high = np.quantile(finite[-1], [5e-4, 1 - 5e-4])
    margin = 0.25 * (high - low) or 0.5
    edges = np.linspace(low - margin, high + margin, 61)
    middle, width = (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]
    for i, (one, x) in enumerate(zip(members, finite)):
        count = np.histogram(x, edges)[0]
        scale = len(one.action.values) * width
        inflation = np.sqrt(len(one.action.values) / one.action.size)
        outside = 1 - count.sum() / len(one.action.values)
        name = one.label + (f": {100 * outside:.1f} % lie outside" if outside > 0.01 else "")
        axes.stairs(count / scale, edges, label=name, **style(i))
        seen = count > 0
        error = np.sqrt(count[seen]) * inflation / scale
        axes.errorbar(
            middle[seen], count[seen] / scale, error, fmt="none", linewidth=0.8, color=style(i)["color"]
        )
    axes.set(xlabel=label, ylabel="density")
    axes.legend()
    return figure


@styled
def profiles(members: list[Member], names: list[str]) -> Figure:
    """Functions of distance; below, the difference from the reference, the last, in sigma."""
    figure = Figure(figsize=(4.2 * len(names), 5.0), layout="constrained")
    panels = figure.subplots(2, len(names), sharex="col", height_ratios=[2.6, 1], squeeze=False)
    for (above, below), name in zip(panels.T, names):
        last = members[-1].profile(name)
        for i, one in enumerate(members):
            own = one.profile(name)
            at = np.arange(len(own.value))
            look = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "color": style(i)["color"]}
            above.errorbar(
                at,
                own.value,
                own.error,
                label=one.label,
                linestyle=style(i)["linestyle"],
                linewidth=0.8,
                **look,
            )
            if one is not members[-1]:
                error = np.hypot(own.error, last.error)
                pull = np.divide(own.value - last.value, error, out=np.zeros_like(error), where=error > 0)
                below.plot(at + 0.06 * i, pull, linestyle="none", **look)
        positive = all((one.profile(name).value > 0).all() for one in members)
        above.set(yscale="log" if positive else "linear", ylabel=f"${observables.find(name).tex}$")
        above.legend()
        below.axhspan(-1, 1, color="black", alpha=0.08, linewidth=0)
        below.axhline(0, color="black", linewidth=0.8)
        limit = max([3.0, *np.abs(below.get_ylim())])
        distance = "number of the loop" if name == "wilson_loops" else "distance  [lattice units]"
        below.set(ylim=(-limit, limit), xlabel=distance, ylabel=r"difference / $\sigma$")
        below.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def modes(members: list[Member], label: str) -> Figure:
    """Share of the draws in every mode, side by side."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    every = np.unique(np.concatenate([one.shares.labels for one in members]))
    for i, one in enumerate(members):
        own = one.shares
        place = np.searchsorted(every, own.labels) + 0.7 * (i - (len(members) - 1) / 2) / len(members)
        axes.bar(place, own.share, 0.7 / len(members), color=style(i)["color"], alpha=0.6, label=one.label)
        axes.errorbar(place, own.share, own.error, fmt="none", color="black", linewidth=0.8)
    axes.set_xticks(range(len(every)), [str(one) for one in every])
    axes.set(ylabel=f"${label}$", xlabel="mode")
    axes.legend()
    return figure


@styled
def roc(found: list[Diagnosis]) -> Figure:
    """ROC curves: share of the model's draws that are found, against that of the reference's taken for them."""
    figure = Figure(figsize=(4.8, 4.4), layout="constrained")
    axes = figure.subplots()
    for i, one in enumerate(found):
        if one.test is None:
            continue
        cuts = np.sort(np.concatenate([one.test.reference, one.test.model]))[::-1]
        false, true = (
            1 - np.searchsorted(np.sort(s), cuts, "left") / len(s)
            for s in (one.test.reference, one.test.model)
        )
        label = f"{one.member.label}: AUC {bracket(one.test.auc.value, one.test.auc.error)}"
        axes.plot(np.r_[0, false, 1], np.r_[0, true, 1], label=label, **style(i))
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.set(xlabel="reference taken for the model", ylabel="model recognised", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="lower right")
    return figure


@styled
def distances(found: list[Diagnosis]) -> Figure:
    """Distances to the nearest training configuration: of draws, and (black) of configurations held out."""
    shown = [(one.member.label, one.nearness) for one in found if one.nearness is not None]
    figure = Figure(figsize=(6.4, 0.6 + 2.2 * len(shown)), layout="constrained")
    for i, ((name, near), axes) in enumerate(zip(shown, figure.subplots(len(shown), squeeze=False)[:, 0])):
        edges = np.linspace(0, max(near.model.max(), near.held.max()) * 1.02, 51)
        common: Any = {"density": True, "histtype": "step"}
        axes.hist(near.model, edges, label=name, **style(i), **common)
        axes.hist(near.held, edges, color="black", label="held-out configurations", **common)
        axes.set(xlabel="distance to the nearest training configuration", ylabel="density")
        axes.legend()
    return figure
