"""Estimates of every observable of an ensemble: value, error and tau_int, or why there is none."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from rich.table import Table

from ..console import console
from ..correction import reweight
from ..errors import FrozenSeries, InputError, StatisticsError, TooFewSamples
from ..observables import Derived, Observable, Primary, observables
from ..run import Run
from ..statistics import TauInt, bracket, mean, tau_int
from ..statistics.jackknife import jackknife
from .series import Series

TAU = "τ_int = 1/2 + Σ ρ(t), so that independent draws have 1/2; in steps of the chain"


@dataclass(frozen=True)
class Row:
    """What an ensemble says of one observable.

    Either `value`, `error` (one sigma) and `tau`, or `problem` (a word for the table) and its `reason`.
    `reweighted`: value and error by importance weights, for independent samplers.
    """

    observable: Observable
    value: float = np.nan
    error: float = np.nan
    tau: TauInt | None = None
    reweighted: tuple[float, float] | None = None
    problem: str | None = None
    reason: str | None = None

    @property
    def text(self) -> str:
        return self.problem or bracket(self.value, self.error)

    @property
    def tau_text(self) -> str:
        return self.problem or bracket(self.tau.value, self.tau.error)  # type: ignore[union-attr]

    def pull(self, other: "Row") -> float | None:
        """`(a - b) / sqrt(sigma_a^2 + sigma_b^2)`, None where one of the two has no estimate."""
        if self.problem or other.problem:
            return None
        return (self.value - other.value) / float(np.hypot(self.error, other.error))


def problem(error: StatisticsError) -> str:
    """The word that a table prints where there is no estimate."""
    return {FrozenSeries: "frozen", TooFewSamples: "too few"}.get(type(error), "undefined")


def estimate(series: Series, name: str) -> Row:
    """The row of one scalar observable. What the data do not allow becomes the row's problem and reason.

    Primary: the mean with error `sigma sqrt(2 tau_int / N)`. Derived: the function of the means, its error by
    jackknife, and tau_int of its linearisation (`linearised`), which is also what sets the bins.
    Raises `InputError` for an unknown name.
    """
    observable = observables.find(name)
    try:
        if reason := observable.missing(series.target):
            return Row(observable, problem="none here", reason=reason)
        if isinstance(observable, Derived):
            return _derived(series, observable)
        return _primary(series, observable)
    except StatisticsError as error:
        return Row(observable, problem=problem(error), reason=str(error))


def _primary(series: Series, observable: Observable) -> Row:
    name = observable.name
    found = mean(series[name])
    return Row(
        observable, found.value, found.error, found.tau, _reweighted(series, (name,), lambda m: m[name])
    )


def _derived(series: Series, observable: Derived) -> Row:
    def f(means):
        return observable.of(series.target, means)

    arrays = {name: series[name] for name in observable.needs}
    direction = linearised(f, arrays)
    if not np.isfinite(direction).all():
        raise StatisticsError(f"{observable.undefined}; draw more")
    tau = tau_int(direction)
    value, error = jackknife(f, arrays, tau=tau.value)
    if not np.isfinite(error):
        raise StatisticsError(f"{observable.undefined} in a jackknife bin; draw more")
    return Row(observable, float(value), float(error), tau, _reweighted(series, observable.needs, f))


def linearised(f: Callable[[dict[str, np.ndarray]], float], arrays: dict[str, np.ndarray]) -> np.ndarray:
    """`sum_a (df/da) (a_i - <a>)`, `[chains, steps]`: the fluctuations that make the error of `f(<a>)`.

    Their tau_int is that of the derived observable (hep-lat/0306017, sec. 2). Central differences; NaN where
    f is.
    """
    means = {name: a.mean((0, 1)) for name, a in arrays.items()}
    total = np.zeros(next(iter(arrays.values())).shape[:2])
    for name, a in arrays.items():
        steps = 1e-4 * a.std((0, 1))
        for component in np.argwhere(np.atleast_1d(steps) > 0):
            at = tuple(component[: steps.ndim])
            shift = np.zeros_like(means[name])
            shift[at] = steps[at]
            up, down = f({**means, name: means[name] + shift}), f({**means, name: means[name] - shift})
            total += (up - down) / (2 * steps[at]) * (a[(..., *at)] - means[name][at])
    return total


def _reweighted(series: Series, names: tuple[str, ...], f) -> tuple[float, float] | None:
    """`f` of the means `sum w a / sum w` over the proposals, which are independent: tau_int = 1/2."""
    if series.log_w is None:
        return None
    try:
        weights = reweight(series.log_w).weight[None]
        value, error = jackknife(
            f, {name: series.proposals(name) for name in names}, weights=weights, tau=0.5
        )
    except StatisticsError:
        return None
    return (float(value), float(error)) if np.isfinite(error) else None


def estimates(series: Series) -> dict[str, Row]:
    """Rows of every scalar observable that exists on the target, by name."""
    scalars = [one for one in observables.of(series.target) if not (isinstance(one, Primary) and one.vector)]
    return {one.name: estimate(series, one.name) for one in scalars}


def profile(series: Series, name: str, rows: dict[str, Row]) -> tuple[np.ndarray, np.ndarray]:
    """Means and jackknife errors of a vector f(t) = f(L - t) for t = 0 ... L // 2; NaN where there are none.

    The bins hold 10 of the largest tau_int in `rows`, the scalar observables' estimates.
    """
    taus = [row.tau.value for row in rows.values() if row.tau]
    values = series[name]
    half = values[..., : values.shape[2] // 2 + 1]
    if taus:
        try:
            return jackknife(lambda means: means[name], {name: half}, tau=max(taus))
        except StatisticsError:
            pass
    return np.full(half.shape[2], np.nan), np.full(half.shape[2], np.nan)


def virial_check(rows: dict[str, Row], volume: int) -> str:
    """The identity `<sum_s phi dS/dphi> = V` as a line with its pull: tests any sampler's thermalisation."""
    row = rows["virial"]
    if row.problem:
        return f"virial identity: {row.problem}: {row.reason}"
    pull = (row.value - volume) / row.error
    verdict = "holds" if abs(pull) < 4 else "VIOLATED: not thermalised, or not this target's distribution"
    return (
        f"virial identity: {row.observable.symbol} = {row.text}, exact {volume}: pull {pull:+.1f}, {verdict}"
    )


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


def measure_run(run: Path | str, sampler: str = "flow", pyerrors: bool = False) -> dict[str, Row]:
    """Print every observable of an ensemble with its error and tau_int, and the virial check; return them.

    With `pyerrors`, a column with that package's estimates stands beside ours.
    Raises `InputError` where the run or the ensemble does not exist, or pyerrors is asked for and not installed.
    """
    if pyerrors and not find_spec("pyerrors"):
        raise InputError("pyerrors is not installed; pip install 'latticeflow[analysis]'")
    series = Series.open(Run.open(run), sampler)
    rows = estimates(series)
    chains = f", {series.ensemble.chains} chains a stream" if series.ensemble.chains else ""
    table = Table(title=f"{sampler}: {series.ensemble.draws:,} draws{chains}", caption=TAU)
    for heading in (
        "",
        "value",
        "τ_int",
        *(["reweighted"] if series.independent else []),
        *(["pyerrors"] if pyerrors else []),
    ):
        table.add_column(heading, justify="left" if not heading else "right")
    for row in rows.values():
        cells = [row.observable.symbol, row.text, row.tau_text]
        if series.independent:
            cells.append(bracket(*row.reweighted) if row.reweighted else "-")
        if pyerrors:
            cells.append(by_pyerrors(series, row))
        table.add_row(*cells)
    out = console()
    out.print(table)
    for line in notes(rows):
        out.print(line)
    for name, reason in observables.left_out(series.target).items():
        out.print(f"{observables.find(name).symbol}: left out: {reason}")
    if series.left_out:
        out.print(f"{series.left_out:,} draws of streams longer than the shortest are not used")
    if "virial" in rows:
        out.print(virial_check(rows, series.volume))
    return rows
