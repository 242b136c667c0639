"""`latticeflow measure`: every observable of an ensemble, measured on any number of ranks and printed."""

from importlib.util import find_spec
from pathlib import Path

from rich.table import Table

from ..console import console
from ..errors import InputError
from ..observables import Derived, observables
from ..production.ranks import Ranks
from ..run import Run
from ..statistics import bracket
from ..targets import Target
from ..targets.hypercube import Hypercube
from .cross_section import integral_lines
from .estimates import TAU, WEIGHTED, Row, estimates, identities
from .forward import forward_run
from .series import Series, open_ensemble


def notes(rows: dict[str, Row]) -> list[str]:
    """Why rows have no estimate, one line for each kind of problem, with the first row's reason."""
    groups: dict[str, list[Row]] = {}
    for row in rows.values():
        if row.problem:
            groups.setdefault(row.problem, []).append(row)
    return [
        f"{problem}: {', '.join(row.observable.symbol for row in group)} ({group[0].reason})"
        for problem, group in groups.items()
    ]


def remarks(series: Series) -> list[str]:
    """What a reader of the numbers should know: another version's measurements, draws that are not used."""
    found = list(series.measured.remarks)
    if not series.ensemble.exact:
        found.append(
            "draws of a model that was learned from data: APPROXIMATE, without a density to correct them by"
        )
    if series.left_out:
        found.append(f"{series.left_out:,} draws of streams longer than the shortest are not used")
    return found


def by_pyerrors(series: Series, row: Row) -> str:
    """The mean and error of a primary as pyerrors' Gamma method (2209.14371) has them, chains as replicas.

    "-" for derived observables and rows without an estimate.
    """
    import pyerrors

    if row.problem or isinstance(row.observable, Derived):
        return "-"
    chains = list(series[row.observable.name])
    obs = pyerrors.Obs(chains, [f"run|r{number}" for number in range(len(chains))])
    obs.gamma_method()
    return bracket(obs.value, obs.dvalue)


def left_out(target: Target) -> list[str]:
    """The observables that do not exist on this target, a line for each reason."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in observables.left_out(target).items():
        by_reason.setdefault(reason, []).append(observables.find(name).symbol)
    return [f"{', '.join(symbols)}: left out: {reason}" for reason, symbols in by_reason.items()]


def measure_run(
    run: Path | str, sampler: str = "flow", pyerrors: bool = False, forward: str | None = None
) -> dict[str, Row]:
    """Print every observable of an ensemble with its error and tau_int, and the identities it must fulfil; return them.

    Under mpirun every rank calls this and measures its part of the blocks that have not been; rank 0 then estimates
    and prints, the others return no rows. Memory does not grow with the number of draws, unless `pyerrors` asks for a
    column with that package's estimates beside ours: it takes whole series. `forward`: another sampler of the run, at whose
    configurations ESS and log Z are estimated as well and compared (`analysis.forward`).
    Raises `InputError` where the run or the ensemble does not exist, or pyerrors is asked for and not installed.
    """
    ranks = Ranks.world()
    with ranks.root_first():
        if pyerrors and not find_spec("pyerrors"):
            raise InputError("pyerrors is not installed; pip install 'latticeflow[analysis]'")
        opened = Run.open(run)
        ensemble = open_ensemble(opened, sampler)
    series = Series(ensemble, opened.deck.target, ranks)
    rows = {}
    if ranks.root:
        rows = estimates(series)
        _print(series, rows, pyerrors)
        for line in forward_run(opened, sampler, forward).lines() if forward else []:
            console().print(line)
    ranks.barrier()
    return rows


def _print(series: Series, rows: dict[str, Row], pyerrors: bool) -> None:
    ensemble = series.ensemble
    chains = f", {ensemble.chains} chains a stream" if ensemble.chains else ""
    caption = WEIGHTED if series.importance else TAU
    table = Table(title=f"{ensemble.sampler}: {ensemble.draws:,} draws{chains}", caption=caption)
    both = series.independent and not series.importance
    more = ["reweighted"] * both + ["pyerrors"] * pyerrors
    for heading in ("", "value", *["τ_int"] * (not series.importance), *more):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows.values():
        cells = [row.observable.symbol, row.text, *[row.tau_text] * (not series.importance)]
        if both:
            cells.append(bracket(*row.reweighted) if row.reweighted else "-")
        if pyerrors:
            cells.append(by_pyerrors(series, row))
        table.add_row(*cells)
    out = console()
    if rows:
        out.print(table)
    if series.integration is not None and isinstance(series.target, Hypercube):
        for line in integral_lines(series.target, series.integration):
            out.print(line)
    for line in [*notes(rows), *remarks(series)]:
        out.print(line)
    for line in left_out(series.target):
        out.print(line)
    for line in identities(rows, series.target):
        out.print(line)
