"""Estimates of every observable of an ensemble: value, error and tau_int, or why there is none.

All observables are estimated together in few walks over the ensemble, in memory that does not grow with it: moments of
all primaries; autocovariances; jackknife bins; and the proposals with their weights.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import FrozenSeries, StatisticsError, TooFewSamples
from ..observables import Derived, Observable, Primary, observables
from ..statistics import Bins, TauInt, bracket
from ..statistics.autocorrelation import LAGS, means
from ..statistics.streams import Piece
from ..targets import Target
from .series import Series

TAU = "τ_int = 1/2 + Σ ρ(t), so that independent draws have 1/2; in steps of the chain"
WEIGHTED = "means over all draws with their weights, target over proposal"
# Lags times chains of a stretch, at most: bounds the memory, some 20 MB an observable where so many are needed.
_CELLS = 1 << 18

Means = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """What an ensemble says of one observable.

    Either `value`, `error` (one sigma) and `tau`, or `problem` (a word for the table) and its `reason`.
    `reweighted`: value and error by importance weights, for independent samplers; of integrands on the unit cube they are
    value and error themselves, and `tau` is the 1/2 of independent proposals.
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
        if self.problem or self.tau is None:
            return self.problem or "-"
        return bracket(self.tau.value, self.tau.error) if self.tau.error else f"{self.tau.value:g}"

    def pull(self, other: "Row") -> float | None:
        """`(a - b) / sqrt(sigma_a^2 + sigma_b^2)`, None where one of the two has no estimate."""
        if self.problem or other.problem:
            return None
        return (self.value - other.value) / float(np.hypot(self.error, other.error))


def estimates(series: Series, names: Sequence[str] | None = None) -> dict[str, Row]:
    """Rows of scalar observables by name: those asked for, else every one that exists on the target.

    Primary: the mean with error `sigma sqrt(2 tau_int / N)`. Derived: the function of the means, its error by
    jackknife, and tau_int of its linearisation (`gradient`), which is also what sets the bins. `reweighted`: the same by
    importance weights over the proposals, which are independent; where `series.importance`, that alone. What the data do
    not allow becomes a row's problem and reason. Raises `InputError` for an unknown name.
    """
    if names is None:
        every = observables.of(series.target)
        chosen = [one for one in every if not (isinstance(one, Primary) and one.vector)]
    else:
        chosen = [observables.find(name) for name in names]
    rows = {one.name: Row(one) for one in chosen}
    for one in chosen:
        if reason := one.missing(series.target):
            rows[one.name] = Row(one, problem="none here", reason=reason)
        elif lacking := [name for name in _needs(one) if name in series.measured.not_stored]:
            rows[one.name] = Row(one, problem="not stored", reason=series.measured.not_stored[lacking[0]])
    if series.importance:
        _by_importance(series, rows)
        return rows
    _means(series, rows)
    _derived(series, rows)
    _reweighted(series, rows)
    return rows


def estimate(series: Series, name: str) -> Row:
    """The row of one scalar observable."""
    return estimates(series, [name])[name]


def problem(error: StatisticsError) -> str:
    """The word that a table prints where there is no estimate."""
    return {FrozenSeries: "frozen", TooFewSamples: "too few"}.get(type(error), "undefined")


def _failed(row: Row, error: StatisticsError) -> Row:
    return Row(row.observable, problem=problem(error), reason=str(error))


def _function(series: Series, observable: Observable) -> Callable[[Means], float]:
    """The observable as a function of the means of primaries."""
    if isinstance(observable, Derived):
        return lambda means: observable.of(series.target, means)
    return lambda means: float(means[observable.name])


def _needs(observable: Observable) -> tuple[str, ...]:
    return observable.needs if isinstance(observable, Derived) else (observable.name,)


def gradient(f: Callable[[Means], float], mean: Means, std: Means) -> Means:
    """`df/da` at the means, by name, of each component of each primary a: central differences over 1e-4 sigma.

    0 for components without fluctuations; NaN where f is. `sum_a (df/da) (a_i - <a>)`, the linearisation of f, are the
    fluctuations that make its error, and their tau_int is that of f(<a>) (hep-lat/0306017, sec. 2).
    """
    found = {name: np.zeros_like(a) for name, a in mean.items()}
    for name, by in found.items():
        for at in np.ndindex(by.shape):
            if (step := 1e-4 * std[name][at]) > 0:
                shift = np.zeros_like(by)
                shift[at] = step
                up, down = f({**mean, name: mean[name] + shift}), f({**mean, name: mean[name] - shift})
                by[at] = (up - down) / (2 * step)
    return found


def _direction(series: Series, observable: Observable) -> Means:
    """The gradient of one observable. Raises `StatisticsError` where it or its tau_int cannot exist."""
    moments, needs = series.moments, _needs(observable)
    mean, std = ({name: of[name] for name in needs} for of in (moments.mean, moments.std))
    moments.check(max(needs, key=lambda name: moments.moves[name].any()))
    if not isinstance(observable, Derived):
        return {name: np.ones_like(a) for name, a in mean.items()}
    found = gradient(_function(series, observable), mean, std)
    if not all(np.isfinite(by).all() for by in found.values()):
        raise StatisticsError(f"{observable.undefined}; draw more")
    return found


def _means(series: Series, rows: dict[str, Row]) -> None:
    """Value and error of primaries, tau_int of all: that of the linearisation, whose own mean is 0."""
    directions: dict[str, Means] = {}
    for name, row in rows.items():
        try:
            if not row.problem:
                directions[name] = _direction(series, row.observable)
        except StatisticsError as error:
            rows[name] = _failed(row, error)
    if not directions:
        return
    centre = series.moments.mean

    def walk() -> Iterator[Piece]:
        for stretch in series.walk(*dict.fromkeys(name for one in directions.values() for name in one)):
            flat = {name: (a - centre[name]).reshape(*a.shape[:2], -1) for name, a in stretch.values.items()}
            columns = [
                sum(flat[name] @ by.ravel() for name, by in one.items()) for one in directions.values()
            ]
            yield Piece(stretch.chain, stretch.step, np.array(columns))

    shape = series.moments.all
    single = series.independent or series.ensemble.interacting
    most = max(LAGS, _CELLS // (1 if single else series.ensemble.chains))
    found = means(walk, np.zeros(len(directions)), shape, most)
    for name, one in zip(directions, found):
        if isinstance(one, StatisticsError):
            rows[name] = _failed(rows[name], one)
        elif isinstance(rows[name].observable, Derived):
            rows[name] = replace(rows[name], tau=one.tau)
        else:
            rows[name] = replace(rows[name], value=float(centre[name]), error=one.error, tau=one.tau)


def _derived(series: Series, rows: dict[str, Row]) -> None:
    """Value and error of derived observables, by jackknife with bins of their own tau_int."""
    bins: dict[str, Bins] = {}
    for name, row in rows.items():
        if row.tau and isinstance(row.observable, Derived):
            shape = series.moments.all
            try:
                bins[name] = Bins(shape.chains, shape.longest, tau=row.tau.value)
            except StatisticsError as error:
                rows[name] = _failed(row, error)
    if not bins:
        return
    needed = dict.fromkeys(need for name in bins for need in _needs(rows[name].observable))
    for stretch in series.walk(*needed):
        for name, one in bins.items():
            values = {need: stretch.values[need] for need in _needs(rows[name].observable)}
            one.feed(stretch.chain, stretch.step, values)
    for name, one in bins.items():
        row = rows[name]
        try:
            value, sigma = one.jackknife(_function(series, row.observable))
            if not np.isfinite(sigma):
                raise StatisticsError(f"{row.observable.undefined} in a jackknife bin; draw more")  # type: ignore[attr-defined]
            rows[name] = replace(row, value=float(value), error=float(sigma))
        except StatisticsError as error:
            rows[name] = _failed(row, error)


def _reweighted(series: Series, rows: dict[str, Row]) -> None:
    """Every observable by the means `sum w a / sum w` over the proposals, which are independent: tau_int = 1/2."""
    wanted = [row for row in rows.values() if not row.problem]
    if not wanted or not series.independent or not series.ensemble.weighted:
        return
    try:
        bins = _weighted_bins(series, wanted)
        for row in wanted:
            value, error = bins.jackknife(_function(series, row.observable))
            if np.isfinite(error):
                rows[row.observable.name] = replace(row, reweighted=(float(value), float(error)))
    except StatisticsError:  # too few proposals, or one has all the weight
        return


def _weighted_bins(series: Series, rows: list[Row]) -> Bins:
    """Jackknife bins of what these rows need, over the proposals with their weights."""
    log_z = series.weights.log_z
    bins = Bins(1, len(series.blocks) * series.ensemble.settings["block"], tau=0.5)
    for stretch in series.proposals(*dict.fromkeys(n for row in rows for n in _needs(row.observable))):
        w = np.exp(stretch.values.pop("log_w") - log_z)
        for a in stretch.values.values():
            a[w == 0] = 0  # outside cuts an observable need not exist
        bins.feed(stretch.chain, stretch.step, stretch.values, w)
    return bins


def _by_importance(series: Series, rows: dict[str, Row]) -> None:
    """Value and error of every row by importance weights."""
    wanted = {name: row for name, row in rows.items() if not row.problem}
    try:
        bins = _weighted_bins(series, list(wanted.values())) if wanted else None
    except StatisticsError as failure:
        rows |= {name: _failed(row, failure) for name, row in wanted.items()}
        return
    for name, row in wanted.items():
        try:
            value, error = map(float, bins.jackknife(_function(series, row.observable)))  # type: ignore[union-attr]
        except StatisticsError as failure:
            rows[name] = _failed(row, failure)
            continue
        if not np.isfinite([value, error]).all():
            reason = f"{getattr(row.observable, 'undefined', '') or 'not finite'}; draw more"
            rows[name] = Row(row.observable, problem="undefined", reason=reason)
        elif error <= 1e-12 * abs(value):
            rows[name] = Row(row.observable, problem="constant", reason=f"it is {value:.10g} in every event")
        else:
            tau = TauInt(0.5, 0.0, 0, 1, series.ensemble.draws)
            rows[name] = replace(row, value=value, error=error, tau=tau, reweighted=(value, error))


def profile(series: Series, name: str, rows: dict[str, Row]) -> tuple[np.ndarray, np.ndarray]:
    """Means and jackknife errors of a vector f(t) = f(L - t) for t = 0 ... L // 2; NaN where there are none.

    The bins hold 10 of the largest tau_int in `rows`, the scalar observables' estimates.
    """
    taus = [row.tau.value for row in rows.values() if row.tau]
    size = len(series.moments.mean[name]) // 2 + 1
    if taus:
        try:
            shape = series.moments.all
            bins = Bins(shape.chains, shape.longest, tau=max(taus))
            for stretch in series.walk(name):
                bins.feed(stretch.chain, stretch.step, {name: stretch.values[name][..., :size]})
            return bins.jackknife(lambda means: means[name])
        except StatisticsError:
            pass
    return np.full(size, np.nan), np.full(size, np.nan)


def identities(rows: dict[str, Row], target: Target) -> list[str]:
    """A line with its pull for each observable whose mean is known exactly: they test any sampler's thermalisation."""
    lines = []
    for name, row in rows.items():
        exact = getattr(row.observable, "exact", None)
        if exact is None:
            continue
        if row.problem:
            lines.append(f"{name} identity: {row.problem}: {row.reason}")
            continue
        pull = (row.value - exact(target)) / row.error
        verdict = "holds" if abs(pull) < 4 else "VIOLATED: not thermalised, or not this target's distribution"
        lines.append(
            f"{name} identity: {row.observable.symbol} = {row.text}, exact {exact(target):g}: pull {pull:+.1f}, {verdict}"
        )
    return lines
