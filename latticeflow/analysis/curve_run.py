"""`latticeflow curve`: observables along a coupling from a run's conditional flow; a table, curve.csv and curve.png."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from ..console import console
from ..errors import InputError
from ..files import make_folder, write_atomic, write_text
from ..flows.conditional import ConditionalFlow, Point
from ..observables import observables
from ..production.device import bind_device
from ..production.ranks import Ranks
from ..run import Run
from ..samplers.flow import BATCH, FlowSamplerSpec
from ..statistics import bracket
from ..threads import threads
from ..training.checkpoint import load_family
from .curve import OBSERVABLES, Curve, curve, draw_nodes
from .plots import COLOURS, styled

POINTS = 26


def line_of(text: str | None, family: ConditionalFlow) -> tuple[str, np.ndarray]:
    """`lam=4.5:7:26` as a name and its values; None: the whole range of a flow with one coupling.

    Raises `InputError` for anything else, and for values outside of the trained range.
    """
    if text is None:
        if len(family.ranges) > 1:
            raise InputError(
                f"this flow has the couplings {', '.join(family.ranges)}: say which with --along"
            )
        ((name, (a, b)),) = family.ranges.items()
        return name, np.linspace(a, b, POINTS)
    name, _, numbers = text.partition("=")
    try:
        first, last, count = numbers.split(":")
        values = np.linspace(float(first), float(last), int(count))
    except ValueError:
        raise InputError(f"--along {text}: expected NAME=FROM:TO:POINTS, for example lam=4.5:7:26") from None
    if not len(values) or name not in family.ranges:
        raise InputError(
            f"--along {text}: expected a coupling of {', '.join(family.ranges)}, and one point at least"
        )
    return name, values


def curve_run(
    run: Run | Path | str,
    *,
    along: str | None = None,
    nodes: int = 5,
    draws: int = 4096,
    names: Sequence[str] = OBSERVABLES,
    device: str = "cpu",
) -> Curve:
    """The curve of a run's conditional flow along one coupling, others as in its deck; printed and written to RUN/curve/.

    `along`: `NAME=FROM:TO:POINTS`, default the whole range in 26 points; `draws` at each of `nodes` evenly spaced nodes.
    Raises `InputError` for a flow that is not conditional or not trained, couplings out of range, no nodes, unknown
    observables, and under mpirun; what `draw_nodes` raises.
    """
    ranks = Ranks.world()
    if ranks.size > 1:
        raise InputError(f"curve on {ranks.size} ranks: it runs in one process; start it without mpirun")
    if nodes < 1:
        raise InputError(f"curve from {nodes} nodes; expected 1 at least")
    run = run if isinstance(run, Run) else Run.open(run)
    family, digest = load_family(run.weights, run.deck)
    if not isinstance(family, ConditionalFlow):
        raise InputError(
            f"{run.path} has no conditional flow: a curve needs one, [flow] kind = 'conditional'"
        )
    target = run.deck.target
    name, values = line_of(along, family)
    fixed: Point = {other: getattr(target, other) for other in family.ranges}
    places = np.linspace(values[0], values[-1], nodes) if nodes > 1 else values[:1]
    points = [family.check(fixed | {name: float(value)}) for value in values]
    spec = cast(FlowSamplerSpec, run.deck.sampler_spec("flow"))
    batch = BATCH if spec.batch == "auto" else spec.batch
    with threads(spec.threads):
        family = family.to(bind_device(device, ranks))
        at = [fixed | {name: float(g)} for g in places]
        drawn = draw_nodes(
            family,
            target,
            at,
            draws,
            seed=run.deck.seed,
            batch=batch,
            density_tolerance=spec.density_tolerance,
        )
        found = curve(drawn, points, names)
    about = f"{run.deck.name}: {draws:,} draws at each of {nodes} nodes, {name} = {', '.join(f'{g:g}' for g in places)}"
    if drawn.density_error:
        about += f"; log Z uncertain by up to {drawn.density_error:.2g} by the solver in steps"
    out = console()
    out.print(_table(found, name, about))
    folder = run.path / "curve"
    make_folder(folder)
    write_text(folder / "curve.csv", _csv(found, [about, f"weights {digest}, seed {run.deck.seed}"]))
    png = figure(found, name, places)
    write_atomic(folder / "curve.png", lambda path: path.write_bytes(png))
    out.print(f"{folder}/curve.csv, curve.png")
    return found


def _table(found: Curve, name: str, about: str) -> Table:
    caption = "errors: jackknife; points share their draws and are correlated"
    table = Table(title=about, caption=caption)
    for heading in (name, "ESS / N", "log Z", *(observables.find(one).symbol for one in found.values)):
        table.add_column(heading, justify="right")
    for i, g in enumerate(found.couplings[name]):
        numbers = [bracket(found.values[one][i], found.errors[one][i]) for one in found.values]
        table.add_row(
            f"{g:.6g}", f"{found.ess[i]:.3f}", bracket(found.log_z[i], found.log_z_error[i]), *numbers
        )
    return table


def _csv(found: Curve, about: list[str]) -> str:
    """Comments that begin with #, a line of names, and a line a point; every digit of float64."""
    columns = {**found.couplings, "ess": found.ess, "log_z": found.log_z, "log_z_error": found.log_z_error}
    for name, value in found.values.items():
        columns |= {name: value, f"{name}_error": found.errors[name]}
    out = io.StringIO()
    out.writelines(f"# {line}\n" for line in about)
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(map(float, column) for column in columns.values())))
    return out.getvalue()


@styled
def figure(found: Curve, name: str, places: np.ndarray) -> Figure:
    """Each observable with its one-sigma band, log Z, and the ESS of the reweighting with the nodes marked."""
    panels = {observables.find(one).tex: (found.values[one], found.errors[one]) for one in found.values}
    panels[r"\log Z"] = found.log_z, found.log_z_error
    rows = -(-(len(panels) + 1) // 2)
    picture = Figure(figsize=(8.4, 0.4 + 2.2 * rows), layout="constrained")
    axes = picture.subplots(rows, 2, sharex=True, squeeze=False).ravel()
    g = found.couplings[name]
    for one, (label, (value, error)) in zip(axes, panels.items()):
        one.fill_between(g, value - error, value + error, color=COLOURS[0], alpha=0.35, linewidth=0)
        one.plot(g, value, color=COLOURS[0])
        one.set_ylabel(f"${label}$")
    last = axes[len(panels)]
    last.plot(g, found.ess, color=COLOURS[1])
    last.plot(places, np.zeros(len(places)), "k^", markersize=6, clip_on=False, label="nodes")
    last.set(ylim=(0, 1.03), ylabel=r"ESS / $N$")
    last.legend(loc="lower right")
    for unused in axes[len(panels) + 1 :]:
        unused.set_visible(False)
    for one in axes[-2:]:
        one.set_xlabel(name)
    return picture
