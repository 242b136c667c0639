"""What is quoted of a sampler beside its observables: acceptance, ESS, log Z, HMC's checks, and the cost."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..correction import CorrectionSummary
from ..errors import StatisticsError, StoreError
from ..statistics import mean
from .measure import Row, bracket, problem
from .series import Series


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
    return found | _cost(series, rows, training_seconds)


def _figure(label: str, value: float, error: float | None = None, form: str = "{:.4g}") -> Figure:
    return Figure(label, form.format(value) if error is None else bracket(value, error), value, error)


def _weights(series: Series) -> dict[str, Figure]:
    summary: CorrectionSummary = series.summary
    weights = summary.weights
    label = f"ESS / N at N = {weights.n:,}"
    return {
        "acceptance": _figure("Metropolis acceptance", summary.acceptance),
        "longest_rejection_run": _figure("longest run of rejections", summary.longest, form="{:.0f}"),
        "ess": _figure(label, weights.ess, weights.ess_error),
        "log_z": _figure("log Z", weights.log_z, weights.log_z_error),
        "largest_share": _figure("largest weight's share", weights.largest_share, form="{:.2g}"),
    }


def _chains(series: Series) -> dict[str, Figure]:
    found = {}
    for key, label in (("acceptance", "acceptance"), ("exp_dH", "⟨exp(−dH)⟩")):
        values = series.info(key)
        if values is None:
            continue
        try:
            one = mean(values)
            found[key] = _figure(label, one.value, one.error)
        except StatisticsError as error:
            found[key] = Figure(label, problem(error))
    smallest = series.smallest_acceptance
    if smallest is not None:
        found["smallest_acceptance"] = _figure("smallest acceptance of a chain", smallest)
    return found


def _cost(series: Series, rows: dict[str, Row], training_seconds: float | None) -> dict[str, Figure]:
    """Cost per independent configuration of chi2, `seconds * 2 tau_int / N`.

    `N / (2 tau_int) = sigma^2 / error^2`, which also holds for the average over interacting walkers, sigma
    being that of one walker.
    """
    drawing, start = series.ensemble.seconds, series.start_seconds
    found = {"seconds": _figure("drawing  [core s]", drawing, form="{:.1f}")}
    if start is not None:
        found["start_seconds"] = _figure("thermalisation and tuning  [core s]", start, form="{:.1f}")
    if training_seconds is not None:
        found["training_seconds"] = _figure("training  [s]", training_seconds, form="{:.1f}")
    chi2 = rows.get("chi2")
    if chi2 is None:
        return found
    if chi2.problem:
        return found | {"cost": Figure("cost per independent χ₂  [s]", chi2.problem)}
    n = float(series.walkers("chi2").var()) / chi2.error**2
    found["independent"] = _figure("independent configurations (χ₂)", n, form="{:,.0f}")
    found["cost"] = _figure("cost per independent χ₂, drawing alone  [s]", drawing / n, form="{:.3g}")
    extra = (start or 0.0) + (training_seconds or 0.0)
    label = "the same with training and thermalisation  [s]"
    return found | {"cost_with_start": _figure(label, (drawing + extra) / n, form="{:.3g}")}


def read_log(path: Path) -> list[dict]:
    """Lines of train.jsonl; a last line without its end, as a kill leaves it, is not there yet.

    Raises `StoreError` for any other line that is not JSON.
    """
    if not path.is_file():
        return []
    whole = path.read_text(encoding="utf-8").split("\n")[:-1]
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise StoreError(
                f"{path}, line {number} is not JSON ({error}); the training log is damaged"
            ) from None
    return lines
