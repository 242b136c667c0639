"""Samplers of one target side by side: observables with pulls, tau_int, quality, cost; plots and a page."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from ..console import console
from ..errors import InputError
from ..files import write_atomic, write_text
from ..observables import observables
from ..run import Run
from ..statistics import Integration, bracket
from ..targets import targets
from ..targets.hypercube import Hypercube
from ..training.log import read as read_log
from . import event_plots, model_plots, plots
from .cross_section import convergence_table, integral_json, integral_symbol
from .estimates import TAU, WEIGHTED, Row, estimates, identities
from .histograms import Spectrum, spectra, spectrum_rows
from .measure import notes, remarks
from .quality import ORDER, Figure, quality
from .report import Table, page
from .series import Series


@dataclass(frozen=True)
class Comparison:
    """What `compare_run` found, by sampler; the first sampler is the one in question."""

    run: Run
    rows: dict[str, dict[str, Row]]
    quality: dict[str, dict[str, Figure]]
    identities: dict[str, list[str]]
    remarks: dict[str, list[str]]
    integration: dict[str, Integration]  # of integrands on the unit cube, by the samplers that know Z
    spectra: dict[str, Spectrum]

    @property
    def samplers(self) -> list[str]:
        return list(self.rows)

    def pull(self, name: str, other: str) -> float | None:
        """`(first - other) / sigma` of observable `name`; None where one of the two has no estimate."""
        return self.rows[self.samplers[0]][name].pull(self.rows[other][name])

    def tables(self) -> list[Table]:
        found = [self._observables()]
        if any(name not in self.integration for name in self.samplers):
            found.append(self._taus())
        found.append(self._qualities())
        if self.integration:
            found.append(convergence_table(self._cube, self.integration))
        return [*found, self._histograms()] if self.spectra else found

    @property
    def _cube(self) -> Hypercube:
        return cast(Hypercube, self.run.deck.target)

    def z_pull(self, other: str) -> float | None:
        """The pull of Z; None where one of the two knows none."""
        one, two = (self.integration.get(name) for name in (self.samplers[0], other))
        if one is None or two is None:
            return None
        error = float(np.hypot(one.weights.z_error, two.weights.z_error))
        return (one.weights.z - two.weights.z) / error if error else None

    def _names(self) -> list[str]:
        return list(self.rows[self.samplers[0]])

    def _observables(self) -> Table:
        first, *others = self.samplers
        headings = ["", first]
        for other in others:
            headings += [other, "pull"]
        body = []
        if self.integration:
            texts = {
                name: bracket(one.weights.z, one.weights.z_error) for name, one in self.integration.items()
            }
            body.append([integral_symbol(self._cube), texts.get(first, "-")])
            for other in others:
                body[0] += [texts.get(other, "-"), _pull_text(self.z_pull(other))]
        for name in self._names():
            row = self.rows[first][name]
            cells = [row.observable.symbol, row.text]
            for other in others:
                cells += [self.rows[other][name].text, _pull_text(self.pull(name, other))]
            body.append(cells)
        lines = [f"pull = ({first} − other) / σ"]
        if self.integration:
            lines.append(f"{', '.join(self.integration)}: {WEIGHTED}")
        lines += [f"{sampler}: {line}" for sampler, found in self.identities.items() for line in found]
        lines += [f"{sampler}: {note}" for sampler, rows in self.rows.items() for note in notes(rows)]
        lines += [f"{sampler}: {remark}" for sampler, found in self.remarks.items() for remark in found]
        return Table("Observables", headings, body, lines)

    def _taus(self) -> Table:
        body = [
            [self.rows[self.samplers[0]][name].observable.symbol]
            + [self.rows[sampler][name].tau_text for sampler in self.samplers]
            for name in self._names()
        ]
        return Table("Integrated autocorrelation times", ["τ_int", *self.samplers], body, [TAU])

    def _histograms(self) -> Table:
        """How the spectra agree with those of the reference."""
        reference = next(iter(self.spectra.values())).reference
        others = [name for name in self.samplers if name != reference]
        body = []
        for spectrum in self.spectra.values():
            cells = [spectrum.observable.symbol]
            for other in others:
                found = spectrum.agreement(other, reference) if other in spectrum.by else (0.0, 0, 1.0)
                cells.append(f"{found[0]:.1f} / {found[1]} ({found[2]:.2g})" if found[1] else "-")
            body.append(cells)
        notes = [
            "χ² / degrees of freedom (p), with the covariance between bins; bins of 10 effective draws and more, of a chain "
            "shares of Z"
        ]
        if any("-" in cells[1:] for cells in body):
            notes.append("-: such bins hold less than half of Z, or weights too unequal for errors of bins")
        return Table(f"Spectra against {reference}", ["", *others], body, notes)

    def _qualities(self) -> Table:
        tables = list(self.quality.values())
        body = []
        for key in ORDER:
            labels = [found[key].label for found in tables if key in found]
            if labels:
                body.append([labels[0], *(found[key].text if key in found else "-" for found in tables)])
        return Table(
            "Quality and cost",
            ["", *self.samplers],
            body,
            [
                "cost per effective event = seconds / (N × ESS), per unweighted event seconds / (N × efficiency), summed "
                "over cores"
                if self.integration
                else "cost per independent configuration = seconds × 2 τ_int / N, summed over cores"
            ],
        )

    def as_json(self) -> dict:
        """All numbers; null where there is no estimate, with its reason."""
        cube = {
            "integral": {name: integral_json(self._cube, one) for name, one in self.integration.items()},
            "integral_pulls": {other: self.z_pull(other) for other in self.samplers[1:]},
            "spectra": {name: _spectrum_json(one) for name, one in self.spectra.items()},
        }
        return {
            "run": self.run.deck.name,
            "target": targets.table(self.run.deck.target),
            "tau_int": TAU,
            "samplers": {
                sampler: {
                    "observables": {name: _row_json(row) for name, row in rows.items()},
                    "quality": {
                        key: {"label": f.label, "value": f.value, "error": f.error, "text": f.text}
                        for key, f in self.quality[sampler].items()
                    },
                    "identities": self.identities[sampler],
                }
                for sampler, rows in self.rows.items()
            },
            "pulls": {
                other: {name: self.pull(name, other) for name in self._names()} for other in self.samplers[1:]
            },
            **(cube if self.integration else {}),
        }


def _pull_text(pull: float | None) -> str:
    return "-" if pull is None else f"{pull:+.2f}"


def _spectrum_json(spectrum: Spectrum) -> dict:
    found = {}
    for sampler in spectrum.by:
        value, error = spectrum.density(sampler)
        chi2, dof, p = spectrum.agreement(sampler, spectrum.reference)
        found[sampler] = {"value": value.tolist(), "error": error.tolist()}
        if sampler != spectrum.reference:
            found[sampler] |= {"chi2": chi2, "dof": dof, "p": p}
    return {"edges": spectrum.edges.tolist(), "reference": spectrum.reference, "samplers": found}


def _row_json(row: Row) -> dict:
    if row.problem or row.tau is None:
        return {"value": None, "error": None, "problem": row.problem, "reason": row.reason}
    found = {"value": row.value, "error": row.error, "tau_int": row.tau.value, "tau_int_error": row.tau.error}
    if row.reweighted:
        found["reweighted"], found["reweighted_error"] = row.reweighted
    return found


def compare_run(run: Path | str, samplers: Sequence[str] = ("flow", "hmc")) -> Comparison:
    """Compare ensembles of one run; prints tables and writes PNG plots, compare.html and compare.json.

    All go to RUN/compare/. Raises `InputError` with the command to run where an ensemble is missing, and for
    fewer than two samplers or one named twice.
    """
    names = [name.strip() for name in samplers]
    if len(names) < 2 or len(set(names)) < len(names):
        raise InputError(
            f"samplers to compare: {','.join(names)}; expected at least two different ones, for example "
            "flow,hmc. For one alone use latticeflow measure"
        )
    opened = Run.open(run)
    all_series = {name: Series.open(opened, name) for name in names}
    log = read_log(opened.log) if opened.log.is_file() else []
    result = compare_series(opened, all_series, log)
    out = console()
    for table in result.tables():
        out.print(table.rich())
        for note in table.notes:
            out.print(note)
    folder = write_comparison(result, all_series, log)
    out.print(f"wrote {folder}/compare.html, compare.json and plots")
    return result


def compare_series(run: Run, all_series: dict[str, Series], log: list[dict]) -> Comparison:
    """The numbers of a comparison, nothing printed or written."""
    rows = {name: estimates(series) for name, series in all_series.items()}
    spent = next((float(line["seconds"]) for line in reversed(log) if "seconds" in line), None)
    return Comparison(
        run,
        rows,
        {
            name: quality(s, rows[name], spent if s.ensemble.weights else None)
            for name, s in all_series.items()
        },
        {name: identities(found, all_series[name].target) for name, found in rows.items()},
        {name: remarks(series) for name, series in all_series.items()},
        {name: series.integration for name, series in all_series.items() if series.integration},
        spectra(all_series, rows),
    )


def write_comparison(result: Comparison, all_series: dict[str, Series], log: list[dict]) -> Path:
    """Plots, page and numbers into RUN/compare/, each file whole or absent."""
    folder = result.run.path / "compare"
    folder.mkdir(exist_ok=True)
    drawn = _plots(result, all_series, log)
    for name, (png, _) in drawn.items():
        _save(folder / f"{name}.png", png)
    deck = result.run.deck
    title = f"{deck.name}: {', '.join(result.samplers)}"
    settings = ", ".join(f"{key} = {value}" for key, value in targets.table(deck.target).items())
    write_text(folder / "compare.html", page(title, settings, result.tables(), drawn, deck.toml()))
    if result.spectra:
        lines = (",".join(cells) for cells in spectrum_rows(result.spectra))
        write_text(folder / "spectra.csv", "".join(f"{line}\n" for line in lines))
    write_text(folder / "compare.json", json.dumps(result.as_json(), indent=1, allow_nan=False))
    return folder


def _save(path: Path, png: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(png)

    write_atomic(path, write)


def _plots(
    result: Comparison, all_series: dict[str, Series], log: list[dict]
) -> dict[str, tuple[bytes, str]]:
    drawn = {}
    first = result.samplers[0]
    weights = {
        name: (series.log_weights, series.weights)
        for name, series in all_series.items()
        if series.summary is not None
    }
    trained = [name for name, series in all_series.items() if series.ensemble.weights]
    if log and trained and result.run.deck.model is not None:
        drawn["training"] = model_plots.losses(log), "Training of the model: loss of each player."
    elif log and trained:
        log_z = weights[trained[0]][1].log_z if trained[0] in weights else None
        divergence = getattr(result.run.deck.train, "objective", None) == "importance"
        caption = "Training: loss and effective sample size."
        drawn["training"] = plots.training(log, log_z, divergence), caption
    if weights:
        caption, density = "Log-weights of the proposals, log w = −S − log q, relative to log Z.", "e^{-S}"
        if result.integration:
            caption, density = caption.replace("−S", "log f"), "f"
        drawn["log_weights"] = plots.log_weights(weights, density), caption
    if result.rows[first]:
        caption = f"Pulls, {first} minus the other, in σ. Observables of one ensemble are correlated."
        drawn["pulls"] = plots.pulls(result.rows), caption
    drawn |= _event_plots(result)
    everywhere = {name for name in observables.table if all(name in one.names for one in all_series.values())}
    if {"correlator", "two_point"} <= everywhere:
        caption = "Two-point function along an axis and zero-momentum correlator; below, differences in σ."
        drawn["correlators"] = plots.correlators(all_series, result.rows), caption
    if {"chi2", "action"} <= everywhere:
        caption = f"Autocorrelation functions. {TAU}."
        drawn["autocorrelation"] = plots.autocorrelations(all_series, result.rows), caption
    if {"m", "action"} <= everywhere:
        caption = f"Monte Carlo histories, the first {plots.SHOWN:,} steps of one chain."
        drawn["histories"] = plots.histories(all_series), caption
    return drawn


def _event_plots(result: Comparison) -> dict[str, tuple[bytes, str]]:
    """Convergence of Z, and a spectrum of each observable."""
    if not result.integration:
        return {}
    target = result._cube
    symbol = {"pb": r"\sigma", "GeV": r"\Gamma"}.get(target.unit, "Z")
    caption = "Convergence: all draws so far, relative to the best final value, whose error is the band."
    drawn = {"convergence": (event_plots.convergence(result.integration, f"${symbol}$"), caption)}
    for name, spectrum in result.spectra.items():
        caption = f"{spectrum.observable.symbol}: {spectrum.observable.formula}"
        drawn[f"spectrum_{name}"] = event_plots.spectrum(spectrum, symbol, target.unit), caption
    return drawn
