"""What is quoted of a sampler beside its observables: acceptance, ESS, log Z, HMC's checks, and the cost."""

from dataclasses import dataclass

from ..errors import StatisticsError
from ..statistics import bracket, mean
from ..targets.hypercube import Hypercube
from .cross_section import integral_symbol
from .estimates import Row, problem
from .series import Series

# Every figure there is, in the order of a table.
ORDER = (
    "draws",
    "acceptance",
    "flow_acceptance",
    "smallest_acceptance",
    "longest_rejection_run",
    "exp_minus_dh",
    "ess",
    "deviation",
    "survival",
    "efficiency",
    "overweight",
    "largest_share",
    "z",
    "consistency",
    "log_z",
    "density_error",
    "seconds",
    "start_seconds",
    "training_seconds",
    "independent",
    "cost",
    "cost_with_start",
    "cost_unweighted",
)


@dataclass(frozen=True)
class Figure:
    """One number with its error, or the reason why there is none; `text` is what a table prints."""

    label: str
    text: str
    value: float | None = None
    error: float | None = None


def quality(series: Series, rows: dict[str, Row], training_seconds: float | None) -> dict[str, Figure]:
    """Figures of one sampler by key, those that apply to it.

    `training_seconds`: wall time of the training that this sampler needed, None where it needed none. Seconds
    of drawing are the sum over blocks of the time each took, so they do not depend on the number of ranks.
    """
    found = {"draws": Figure("draws", f"{series.ensemble.draws:,}", float(series.ensemble.draws))}
    found |= _weights(series) if series.independent else _chains(series)
    found |= _integral(series)
    return found | _cost(series, rows, training_seconds)


def _figure(label: str, value: float, error: float | None = None, form: str = "{:.4g}") -> Figure:
    return Figure(label, form.format(value) if error is None else bracket(value, error), value, error)


def _weights(series: Series) -> dict[str, Figure]:
    summary = series.summary
    if summary is None:
        return {}
    weights, error = summary.weights, series.ensemble.density_error
    solver = {"density_error": _figure("log Z uncertain, by the solver, by up to", error)} if error else {}
    return {
        "acceptance": _figure("acceptance", summary.acceptance),
        "longest_rejection_run": _figure("longest run of rejections", summary.longest, form="{:.0f}"),
        "ess": _figure(f"ESS / N at N = {weights.n:,}", weights.ess, weights.ess_error),
        "log_z": _figure("log Z", weights.log_z, weights.log_z_error),
        **solver,
        "largest_share": _figure("largest weight's share", weights.largest_share, form="{:.2g}"),
    }


def _integral(series: Series) -> dict[str, Figure]:
    """Z of an integrand on the unit cube, and what its weights are like for unweighting."""
    one = series.integration
    if one is None or not isinstance(series.target, Hypercube):
        return {}
    weights, kept = one.weights, one.unweighting
    found = {
        "deviation": _figure(
            "standard deviation / mean of the weights", weights.deviation, weights.deviation_error
        ),
        "z": _figure(integral_symbol(series.target), weights.z, weights.z_error),
    }
    if one.dof:
        text = f"{one.chi2:.1f} / {one.dof} ({one.p:.2g})"
        found["consistency"] = Figure("χ² / degrees of freedom of the blocks (p)", text, one.p)
    label = "unweighting efficiency"
    if kept is None:
        return found | {"efficiency": Figure(f"{label} at 99.9 %", "undefined")}
    return found | {
        "survival": _figure("share of draws with a weight", kept.survival, kept.survival_error or None),
        "efficiency": _figure(
            f"{label} at {100 * kept.quantile:g} %", kept.efficiency, kept.efficiency_error
        ),
        "overweight": _figure("share of the weight above", kept.overweight, kept.overweight_error),
    }


def _chains(series: Series) -> dict[str, Figure]:
    found = {}
    labels = {
        "acceptance": "acceptance",
        "flow_acceptance": "acceptance of the flow's proposals",
        "exp_minus_dh": "⟨exp(−dH)⟩",
    }
    for key, label in labels.items():
        values = series.ensemble.info(key)
        if values is None:
            continue
        try:
            one = mean(values)
            found[key] = _figure(label, one.value, one.error)
        except StatisticsError as error:
            found[key] = Figure(label, problem(error))
    smallest = series.ensemble.info("smallest_acceptance")
    if smallest is not None:
        worst = float(smallest[:, -1].min())  # the last step of a stream speaks for all before it
        found["smallest_acceptance"] = _figure("smallest acceptance of a chain", worst)
    return found


def _cost(series: Series, rows: dict[str, Row], training_seconds: float | None) -> dict[str, Figure]:
    """Cost per independent configuration of chi2, `seconds * 2 tau_int / N`.

    `N / (2 tau_int) = sigma^2 / error^2`, which also holds for the average over interacting walkers, sigma
    being that of one walker. On the unit cube: per event in `N * ESS` and per unweighted event, of chains per independent
    configuration of the slowest observable.
    """
    drawing = series.ensemble.seconds
    start = None if series.independent else series.ensemble.start_seconds
    found = {"seconds": _figure("drawing  [core s]", drawing, form="{:.1f}")}
    if start is not None:
        found["start_seconds"] = _figure("thermalisation and tuning  [core s]", start, form="{:.1f}")
    if training_seconds is not None:
        found["training_seconds"] = _figure("training  [s]", training_seconds, form="{:.1f}")
    if series.target.measure == "hypercube":
        return found | _event_cost(series, rows, drawing, (start or 0.0) + (training_seconds or 0.0))
    chi2 = rows.get("chi2")
    if chi2 is None:
        return found
    if chi2.problem:
        return found | {"cost": Figure("cost per independent χ₂  [s]", chi2.problem)}
    n = float(series.walker_moments.std["chi2"]) ** 2 / chi2.error**2
    found["independent"] = _figure("independent configurations (χ₂)", n, form="{:,.0f}")
    found["cost"] = _figure("cost per independent χ₂, drawing alone  [s]", drawing / n, form="{:.3g}")
    extra = (start or 0.0) + (training_seconds or 0.0)
    label = "the same with training and thermalisation  [s]"
    return found | {"cost_with_start": _figure(label, (drawing + extra) / n, form="{:.3g}")}


def _event_cost(series: Series, rows: dict[str, Row], drawing: float, extra: float) -> dict[str, Figure]:
    one = series.integration
    if one is not None:
        n, kept = one.weights.n * one.weights.ess, one.unweighting
    else:
        std = series.walker_moments.std
        slow = [
            float(std[name] / row.error) ** 2 for name, row in rows.items() if not row.problem and name in std
        ]
        if not slow:
            return {}
        n, kept = min(slow), None
    found = {
        "independent": _figure("effective events", n, form="{:,.0f}"),
        "cost": _figure("cost per effective event, drawing alone  [s]", drawing / n, form="{:.3g}"),
        "cost_with_start": _figure(
            "the same with training and thermalisation  [s]", (drawing + extra) / n, form="{:.3g}"
        ),
    }
    if kept is not None:
        seconds = drawing / (one.weights.n * kept.efficiency)  # type: ignore[union-attr]
        found["cost_unweighted"] = _figure("cost per unweighted event  [s]", seconds, form="{:.3g}")
    return found
