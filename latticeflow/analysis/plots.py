"""The plots of a comparison: matplotlib figures without a display and without pyplot's global state.

Colours are those of Okabe and Ito, told apart by the colour-blind; samplers also differ in marker and dash.
"""

import io
from collections.abc import Callable, Iterator
from functools import wraps
from itertools import groupby
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from ..statistics import WeightSummary, bracket
from .estimates import Row, profile
from .series import Series

STYLE: Any = {
    "font.size": 11,
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "lines.linewidth": 1.2,
    "errorbar.capsize": 2,
    "savefig.dpi": 160,
}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)))
SHOWN = 1000  # steps of a history: more is a black band
RANGE_FROM = 1_000_000  # log-weights, evenly taken from all, from which a histogram's range is found


def styled(draw):
    """Draw with `STYLE`, whatever the caller's matplotlib settings are, and return a PNG file's bytes."""

    @wraps(draw)
    def png(*args, **kwargs) -> bytes:
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            matplotlib.rcParams.update(STYLE)
            out = io.BytesIO()
            draw(*args, **kwargs).savefig(out, format="png")
            return out.getvalue()

    return png


@styled
def training(log: list[dict], log_z: float | None = None, divergence: bool = False) -> Figure:
    """Reverse-KL loss and ESS with its error against the optimiser step; `-log Z` is the loss's bound.

    `divergence`: the loss is one of normalised densities (`training.importance`), and 0 its bound.

    The stages of a plan have targets of their own, and so other bounds: theirs is the loss above it, `<log q + S> + log Z`,
    log Z being that of the stage's last line, or `log_z` for the last stage. Dotted lines are the ends of stages.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    lines = [line for line in log if "loss" in line]
    stages = [list(own) for _, own in groupby(lines, key=lambda line: line.get("stage", 1))]
    plan, width, seen = len(stages) > 1, max(1, len(lines) // 50), []
    for k, own in enumerate(stages):
        step, loss = np.array([(line["step"], line["loss"]) for line in own]).T
        if plan and not divergence:
            loss = loss + (log_z if log_z is not None and own is stages[-1] else own[-1]["log_z"])
        seen.append(loss)
        style: Any = {"marker": "."} if width == 1 else {"alpha": 0.35}
        above.plot(step, loss, color=COLOURS[0], **style)
        if 1 < width <= len(loss):
            smooth = np.convolve(loss, np.full(width, 1 / width), "valid")
            label = None if k else rf"mean of {width} lines of the log"
            above.plot(step[width // 2 :][: len(smooth)], smooth, color=COLOURS[0], label=label)
        if own is not stages[-1]:
            for axes in (above, below):
                axes.axvline(step[-1], color="black", linestyle=":", linewidth=1)
    low, high = np.quantile(np.concatenate(seen), [0.0, 0.97])
    bound = 0.0 if plan or divergence else None if log_z is None else -log_z
    if bound is not None:
        label = None if bound == 0 else r"$-\log Z$"
        above.axhline(bound, color="black", linestyle="--", linewidth=1, label=label)
        low = min(low, bound)
    margin = 0.05 * (high - low) or 0.5  # a log of one line has no spread
    above.set_ylim(low - margin, high + margin)
    name = r"$\langle \log q + S \rangle + \log Z$" if plan else r"loss  $\langle \log q + S \rangle$"
    above.set_ylabel(r"loss  $D_\alpha(p\, \Vert\, q)$" if divergence else name)
    if above.get_legend_handles_labels()[0]:
        above.legend()
    measured = [line for line in log if line.get("ess") is not None]
    if measured:
        step, ess, error = np.array([(m["step"], m["ess"], m.get("ess_error", 0.0)) for m in measured]).T
        draws = sorted({m["ess_draws"] for m in measured if "ess_draws" in m})
        label = "N = " + ", ".join(f"{n:,}" for n in draws) if draws else "ESS"
        below.errorbar(step, ess, error, color=COLOURS[1], marker=MARKERS[1], markersize=3, label=label)
        below.legend(loc="lower right")
    below.set_ylim(0, 1.03)
    below.set(xlabel="optimiser step", ylabel=r"ESS / $N$")
    return figure


@styled
def log_weights(
    weights: dict[str, tuple[Callable[[], Iterator[np.ndarray]], WeightSummary]], target: str = "e^{-S}"
) -> Figure:
    """Density of `log w - log Z` of each independent sampler, with counting errors; `target`: its density, in TeX.

    `weights`: of each sampler what walks over its log-weights, piece by piece, and their summary.
    """
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    for i, (name, (walk, summary)) in enumerate(weights.items()):
        low, high = _log_weight_range(walk, summary)
        spread = max(high - low, 0.1)  # an exact sampler has none
        edges = low + spread * np.linspace(-0.02, 1.02, 81)
        left, count = 0, np.zeros(len(edges) - 1, dtype=np.int64)
        for log_w in walk():
            x = log_w - summary.log_z
            left += int(np.count_nonzero(x < edges[0]))
            count += np.histogram(x, edges)[0]
        label = f"{name}: {summary}" + (f"; {left:,} lie further left" if left else "")
        scale = summary.n * np.diff(edges)
        middle, seen = (edges[1:] + edges[:-1]) / 2, count > 0
        axes.stairs(count / scale, edges, color=COLOURS[i], linestyle=DASHES[i], label=label)
        density, error = count / scale, np.sqrt(count) / scale
        axes.errorbar(middle[seen], density[seen], error[seen], color=COLOURS[i], fmt="none", linewidth=0.8)
    axes.axvline(0, color="black", linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.set(xlabel=rf"$\log w - \log Z$,   $w = {target} / q$", ylabel="density of proposals")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0))
    return figure


def _log_weight_range(
    walk: Callable[[], Iterator[np.ndarray]], summary: WeightSummary
) -> tuple[float, float]:
    """`log w - log Z` from its 0.0005 quantile to its maximum.

    A few proposals of next to no weight, or of none (-inf), would squeeze the rest.
    """
    every, seen, kept = -(-summary.n // RANGE_FROM), 0, []
    for log_w in walk():
        kept.append(log_w[-seen % every :: every])
        seen += len(log_w)
    x = np.concatenate(kept)
    low = float(np.quantile(x[np.isfinite(x)], 5e-4, method="higher"))
    high = np.log(summary.largest_share * summary.n) + summary.log_z
    return low - summary.log_z, float(high) - summary.log_z


def autocorrelation_error(rho: np.ndarray, n: int, upto: int) -> np.ndarray:
    """Errors of rho(t), t < upto, from N = n samples.

    `var rho(t) = (1/N) sum_{k=1}^{t+W} [rho(k+t) + rho(|k-t|) - 2 rho(t) rho(k)]^2`, W = upto
    (Luescher, hep-lat/0409106, eq. E.11).
    """
    padded = np.concatenate([rho, np.zeros(max(0, 3 * upto + 1 - len(rho)))])
    error = np.empty(upto)
    for t in range(upto):
        k = np.arange(1, t + upto + 1)
        terms = padded[k + t] + padded[np.abs(k - t)] - 2 * padded[t] * padded[k]
        error[t] = np.sqrt(np.square(terms).sum() / n)
    return error


@styled
def autocorrelations(all_series: dict[str, Series], rows: dict[str, dict[str, Row]]) -> Figure:
    """rho(t) with errors of chi2 and of the action, for each sampler in its own steps."""
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panels, ("chi2", "action"), (r"$\chi_2$", "action $S$")):
        taus = {sampler: table[name].tau for sampler, table in rows.items()}
        upto = min(200, max([10, *(tau.window + 5 for tau in taus.values() if tau)]))
        for i, (sampler, series) in enumerate(all_series.items()):
            tau = taus[sampler]
            if tau is None:
                axes.plot([], [], " ", label=f"{sampler}: {rows[sampler][name].problem}")
                continue
            shape = series.moments.all
            rho = series.rho(name, 3 * upto, tau.window)
            shown = min(upto, shape.steps // 3)
            axes.errorbar(
                np.arange(shown) + 0.12 * i,
                rho[:shown],
                autocorrelation_error(rho, shape.n, shown),
                color=COLOURS[i],
                marker=MARKERS[i],
                markersize=3.5,
                linestyle=DASHES[i],
                linewidth=0.8,
                label=rf"{sampler}: $\tau_\mathrm{{int}}$ = {bracket(tau.value, tau.error)}",
            )
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(xlabel="$t$  [steps of the chain]", title=title)
        axes.legend()
    panels[0].set_ylabel(r"$\rho(t)$")
    return figure


@styled
def histories(all_series: dict[str, Series]) -> Figure:
    """Magnetisation and action along one chain of each sampler, beside the histogram of all draws."""
    figure = Figure(figsize=(9.6, 4.6), layout="constrained")
    columns = len(all_series)
    panels = figure.subplots(2, columns + 1, sharey="row", width_ratios=[2.4] * columns + [1])
    rows = zip(panels, ("m", "action"), (r"$m = V^{-1} \sum_s \phi(s)$", "action $S$"))
    moments = [series.walker_moments for series in all_series.values()]
    for axes, name, label in rows:
        low, high = min(m.low[name] for m in moments), max(m.high[name] for m in moments)
        edges = np.linspace(low, high, 61) if high > low else low + np.array([-0.5, 0.5])
        for i, (sampler, series) in enumerate(all_series.items()):
            history, density = _history(series, name, edges)
            axes[i].plot(history, color=COLOURS[i], linewidth=0.6)
            axes[-1].stairs(
                density,
                edges,
                orientation="horizontal",
                color=COLOURS[i],
                linestyle=DASHES[i],
                label=sampler,
            )
            if name == "m":
                axes[i].set_title(f"{sampler}, one chain")
            else:
                axes[i].set_xlabel("step of the chain")
        axes[0].set_ylabel(label)
        axes[-1].set_xticks([])
    panels[1, -1].legend(loc="upper right")
    panels[0, -1].set_title("all draws")
    panels[1, -1].set_xlabel("density")
    return figure


def _history(series: Series, name: str, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first steps of the first chain, and the density of all draws between `edges`."""
    first, count = np.empty(0), np.zeros(len(edges) - 1)
    for stretch in series.walk(name, walkers=True):
        values = stretch.values[name]
        if stretch.chain == 0 and len(first) < SHOWN:
            first = np.concatenate([first, values[0, : SHOWN - len(first)]])
        count += np.histogram(values, edges)[0]
    return first, count / (count.sum() * np.diff(edges))


@styled
def correlators(all_series: dict[str, Series], rows: dict[str, dict[str, Row]]) -> Figure:
    """Two-point function and zero-momentum correlator of each sampler; below, first minus other."""
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    panels = figure.subplots(2, 2, sharex="col", height_ratios=[2.6, 1])
    labels = (r"$G(r) = \langle \phi(0)\, \phi(r \hat\mu) \rangle$", r"$C(t)$ at zero momentum")
    for (above, below), name, label, axis in zip(panels.T, ("two_point", "correlator"), labels, ("r", "t")):
        first = None
        for i, (sampler, series) in enumerate(all_series.items()):
            value, error = profile(series, name, rows[sampler])
            r = np.arange(len(value))
            style = {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "label": sampler}
            if i == 0:  # open and larger, so that the points of the others show inside
                style |= {"markersize": 8, "markerfacecolor": "none"}
            above.errorbar(r, value, error, linestyle=DASHES[i], linewidth=0.8, **style)
            if first is None:
                first = value, error
            else:
                pull = (first[0] - value) / np.hypot(error, first[1])
                below.plot(r + 0.06 * (i - 1), pull, linestyle="none", **style)
        positive = first is not None and (first[0] > 0).all()
        above.set_yscale("log" if positive else "linear")
        above.set_ylabel(label)
        above.legend()
        below.axhspan(-1, 1, color="black", alpha=0.08, linewidth=0)
        below.axhline(0, color="black", linewidth=0.8)
        limit = max([3.0, *np.abs(below.get_ylim())])
        below.set(ylim=(-limit, limit), xlabel=f"${axis}$  [lattice units]", ylabel=r"difference / $\sigma$")
        below.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def pulls(rows: dict[str, dict[str, Row]]) -> Figure:
    """Pulls `(first - other) / sigma` of every observable."""
    (first, reference), *others = rows.items()
    names = [name for name, row in reference.items() if not row.problem]
    figure = Figure(figsize=(6.4, 0.6 + 0.26 * max(4, len(names))), layout="constrained")
    axes = figure.subplots()
    for i, (sampler, table) in enumerate(others, 1):
        found = [
            (k, p) for k, name in enumerate(names) if (p := reference[name].pull(table[name])) is not None
        ]
        if found:
            k, pull = np.array(found).T
            axes.errorbar(pull, k, xerr=1, fmt=MARKERS[i], color=COLOURS[i], label=f"{first} − {sampler}")
    axes.axvline(0, color="black", linewidth=0.8)
    axes.axvspan(-1, 1, color="black", alpha=0.08, linewidth=0)
    limit = max([3.5, *np.abs(axes.get_xlim())])
    axes.set(xlim=(-limit, limit), xlabel=r"difference / $\sigma$")
    axes.set_yticks(range(len(names)), [f"${reference[name].observable.tex}$" for name in names])
    axes.invert_yaxis()
    axes.legend(loc="upper right")
    return figure
