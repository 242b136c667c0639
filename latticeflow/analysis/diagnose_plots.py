"""The plots of the diagnostics, in the style of `plots.py`."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..observables import observables
from ..statistics import bracket
from .diagnose_findings import CERTAIN, WRONG, Diagnosis, Member
from .diagnose_modes import Kind
from .plots import COLOURS, DASHES, MARKERS, styled

SHOWN = 10.0  # sigma at which the overview's colour ends


def style(i: int, last: bool = False) -> dict[str, Any]:
    """Of curve i: colours go round, each time with other dashes. The last one is the reference."""
    if last:
        return {"color": "black", "linestyle": "-"}
    n = len(COLOURS)
    return {"color": COLOURS[i % n], "linestyle": DASHES[(i + i // n) % len(DASHES)]}


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
                text = f"{grid[i, j]:.1f}" if grid[i, j] < CERTAIN - 1 else f"> {CERTAIN - 1:.0f}"
                colour = "white" if grid[i, j] > 5 else "black"
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
        look, seen = style(i, one is members[-1]), count > 0
        axes.stairs(count / scale, edges, label=name, **look)
        error = np.sqrt(count[seen]) * inflation / scale
        axes.errorbar(
            middle[seen], count[seen] / scale, error, fmt="none", linewidth=0.8, color=look["color"]
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
            look = style(i, one is members[-1])
            marker = {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "color": look["color"]}
            line = {"linestyle": look["linestyle"], "linewidth": 0.8}
            above.errorbar(at, own.value, own.error, label=one.label, **line, **marker)
            if one is not members[-1]:
                error = np.hypot(own.error, last.error)
                pull = np.divide(own.value - last.value, error, out=np.zeros_like(error), where=error > 0)
                below.plot(at + 0.06 * i, pull, linestyle="none", **marker)
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
def modes(members: list[Member], kind: Kind) -> Figure:
    """Share of the draws in every mode, side by side."""
    figure = Figure(figsize=(8.0, 3.6), layout="constrained")
    axes = figure.subplots()
    every = np.unique(np.concatenate([one.shares.labels for one in members]))
    for i, one in enumerate(members):
        own = one.shares
        place = np.searchsorted(every, own.labels) + 0.7 * (i - (len(members) - 1) / 2) / len(members)
        colour = style(i, one is members[-1])["color"]
        axes.bar(place, own.share, 0.7 / len(members), color=colour, alpha=0.6, label=one.label)
        axes.errorbar(place, own.share, own.error, fmt="none", color="black", linewidth=0.8)
    axes.set_xticks(range(len(every)), [kind.names[at] if kind.names else str(at) for at in every])
    axes.set(ylabel="share of the draws", xlabel="" if kind.names else "$Q$")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
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
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    top = max(max(near.model.max(), near.held.max()) for _, near in shown)
    common: Any = {"bins": np.linspace(0, 1.02 * top, 61), "density": True, "histtype": "step"}
    for i, (name, near) in enumerate(shown):
        axes.hist(near.model, label=name, **style(i), **common)
    axes.hist(shown[0][1].held, label="held out", **style(0, True), **common)
    axes.set(xlabel="distance to the nearest training configuration", ylabel="density")
    axes.legend()
    return figure
