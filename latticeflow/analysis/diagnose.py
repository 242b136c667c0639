"""Diagnostics that see bias: which ensemble gets which physics wrong, beside a reference. One table, one page.

Who sees what, as tests/test_diagnose.py asserts: the same few configurations again and again, all but copies and missing
modes. One well of two, else right: <m>, the modes, the classifier. Right sites without correlations: S, its histogram,
functions of distance, the classifier. Training data with a little noise: only the two distances to training data, of which
the first is also moved by draws that are too smooth or too rough. Another mass: observables, S, functions of distance; the
classifier with some thousand draws.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..console import console
from ..errors import InputError, StatisticsError
from ..files import make_folder, write_atomic, write_text
from ..run import Run
from ..spec import differences
from ..targets import targets
from ..threads import threads
from . import diagnose_plots as plots
from .diagnose_findings import WRONG, Diagnosis, Finding, Member, diagnose, learned_from
from .diagnose_modes import kind_of
from .report import Table, page

DRAWS = 4096  # of an ensemble, by the classifier
COLUMNS = 3  # ensembles in a table that is printed
LEGEND = (
    "KS distance: the largest difference of the two distribution functions, with p-values of independent draws. χ²: of "
    "all distances at once, with their covariance, or of all sectors",
    "AUC: a network tells a draw in question from one of the reference with this probability, 1/2 if they are alike, on "
    "chains or blocks that it was not trained on",
    "NN distance ratio: median distance of draws to the nearest training configuration, over that of held-out ones. NN in "
    "training: how much more often than by chance the nearest of both is a training configuration; only copies move it. "
    "Up to the lattice's symmetries, where training used them",
)


@dataclass(frozen=True)
class Diagnoses:
    """What `diagnose_run` found: the reference with its own values, and every ensemble beside it."""

    reference: Diagnosis
    found: list[Diagnosis]

    def table(self, found: list[Diagnosis] | None = None) -> Table:
        """Values, and how many sigma each is off; of all ensembles, or of some."""
        found = self.found if found is None else found
        keys = list(dict.fromkeys(key for one in [*found, self.reference] for key in one.findings))
        headings = ["", self.reference.member.label]
        for one in found:
            headings += [one.member.label, "σ"]
        body = []
        for key in keys:
            own, *every = [one.findings.get(key) for one in [self.reference, *found]]
            cells = [next(f.label for f in (own, *every) if f), own.text if own else ""]
            for f in every:
                cells += [f.text, _sigma(f)] if f else ["", ""]
            body.append(cells)
        return Table(f"Against {self.reference.member.label}", headings, body, list(self._notes(found)))

    def _notes(self, found: list[Diagnosis]) -> Iterator[str]:
        yield from LEGEND
        yield (
            f"σ: of an observable (ensemble − reference) / error, of a p-value that of a normal variable; ✗: more than "
            f"{WRONG:g}. Of some twenty numbers, correlated ones, one in 20 exact ensembles shows a ✗"
        )
        for one in found:
            labels = [f.label for f in one.wrong]
            yield f"{one.member.label}: {'wrong in ' + '; '.join(labels) if labels else 'nothing wrong is seen'}"
            if learned_from(one.member, self.reference.member):
                yield (
                    f"{one.member.label}: the reference is what it was trained on. What fluctuated there it has learned: σ "
                    "is too small. Take another exact ensemble"
                )
        for one in [self.reference, *found]:
            reasons = dict.fromkeys(f"{f.label}: {f.reason}" for f in one.findings.values() if f.reason)
            for reason in reasons:
                yield f"{one.member.label}: {reason}"

    def as_json(self) -> dict:
        """All numbers; null where there is none, with its reason."""
        return {
            "reference": self.reference.member.label,
            "target": targets.table(self.reference.member.series.target),
            "wrong_from": WRONG,
            "ensembles": {
                one.member.label: {key: _json(f) for key, f in one.findings.items()}
                for one in [self.reference, *self.found]
            },
        }


def _sigma(one: Finding) -> str:
    if one.sigma is None:
        return "-"
    sign = "+" if one.sigma >= 0 else "−"
    return f"{sign}{abs(one.sigma):.1f}{' ✗' if one.wrong else ''}"


def _json(one: Finding) -> dict:
    return {
        "label": one.label,
        "text": one.text,
        "value": one.value,
        "error": one.error,
        "sigma": one.sigma,
        "wrong": one.wrong,
        "reason": one.reason,
    }


def diagnose_run(
    runs: Sequence[Path | str] | Path | str,
    samplers: Sequence[str] = ("model",),
    reference: str = "hmc",
    draws: int = DRAWS,
) -> Diagnoses:
    """Diagnose ensembles of one run, or of several of the same target; prints a table, writes a page, plots and numbers.

    Every run's ensembles of these `samplers` are looked at, those that it has; the reference is that of the first run that
    has it. All goes to RUN/diagnose/ of the first run. `draws`: configurations of each ensemble that the classifier sees.

    Raises `InputError` for runs of different targets (naming the difference), a sampler that no run has, a reference
    that is missing or not exact, fewer than 64 draws.
    """
    opened = [Run.open(run) for run in ([runs] if isinstance(runs, (str, Path)) else runs)]
    result = diagnose_runs(opened, samplers, reference, draws)
    out = console()
    for first in range(0, len(result.found), COLUMNS):
        table = result.table(result.found[first : first + COLUMNS])
        out.print(table.rich())
        for note in table.notes:
            out.print(note)
    folder = write_diagnoses(result, opened)
    out.print(f"wrote {folder}/diagnose.html, diagnose.json and plots")
    return result


def diagnose_runs(
    runs: list[Run], samplers: Sequence[str], reference: str = "hmc", draws: int = DRAWS
) -> Diagnoses:
    """The numbers, nothing printed or written."""
    if draws < 64:
        raise InputError(f"draws = {draws}: a classifier needs 64 at least")
    _require_same(runs)
    other, others = _members(runs, samplers, reference, draws)
    if not other.series.ensemble.exact:
        raise InputError(
            f"reference '{other.label}': draws of a model that learned from data are near the target's and not of it; "
            "choose an exact sampler, for example hmc"
        )
    seed = other.run.deck.seed
    with threads(1):  # any machine gives the same numbers
        return Diagnoses(diagnose(other, None, seed), [diagnose(one, other, seed) for one in others])


def _require_same(runs: list[Run]) -> None:
    if not runs:
        raise InputError("no run to diagnose")
    first = targets.table(runs[0].deck.target)
    for run in runs[1:]:
        if changed := differences(first, targets.table(run.deck.target)):
            raise InputError(
                f"{runs[0].path} and {run.path} are of different targets, which cannot be compared: {'; '.join(changed)}"
            )


def _members(
    runs: list[Run], samplers: Sequence[str], reference: str, draws: int
) -> tuple[Member, list[Member]]:
    names = [run.path.resolve().name for run in runs]
    short = len(set(names)) == len(names)

    def member(run: Run, sampler: str) -> Member:
        name = run.path.resolve().name if short else str(run.path)
        return Member.open(sampler if len(runs) == 1 else f"{name}/{sampler}", run, sampler, draws)

    home = next((run for run in runs if run.ensemble(reference).is_dir()), runs[0])
    others = []
    for sampler in dict.fromkeys(name.strip() for name in samplers):
        have = [run for run in runs if run.ensemble(sampler).is_dir()] or runs[
            :1
        ]  # which says that it has none
        others += [member(run, sampler) for run in have if (run, sampler) != (home, reference)]
    if not others:
        raise InputError(f"samplers {', '.join(samplers)}: expected one beside the reference '{reference}'")
    return member(home, reference), others


def write_diagnoses(result: Diagnoses, runs: list[Run]) -> Path:
    """Plots, page and numbers into RUN/diagnose/ of the first run, each file whole or absent."""
    folder = runs[0].path / "diagnose"
    make_folder(folder)
    drawn = dict(_plots(result))
    for name, (png, _) in drawn.items():
        write_atomic(folder / f"{name}.png", lambda path, png=png: path.write_bytes(png))  # type: ignore[misc]
    target = runs[0].deck.target
    settings = ", ".join(f"{key} = {value}" for key, value in targets.table(target).items())
    labels = ", ".join(one.member.label for one in result.found)
    decks = "\n".join(run.deck.toml() for run in runs)
    title = f"{runs[0].deck.name}: {labels} against {result.reference.member.label}"
    write_text(folder / "diagnose.html", page(title, settings, [result.table()], drawn, decks))
    write_text(folder / "diagnose.json", json.dumps(result.as_json(), indent=1, allow_nan=False))
    return folder


def _plots(result: Diagnoses) -> Iterator[tuple[str, tuple[bytes, str]]]:
    """Those for which every ensemble that is in them has what they show."""
    members = [one.member for one in result.found] + [result.reference.member]
    caption = f"How far each diagnostic is off, in σ; bold beyond {WRONG:g}."
    if any(f.sigma is not None for one in result.found for f in one.findings.values()):
        yield "overview", (plots.overview(result.found), caption)
    cube = members[0].series.target.measure == "hypercube"
    able = [one for one in members if _has(lambda m: m.action, one)]
    if len(able) > 1 and able[-1] is members[-1]:
        what = "log f" if cube else "action S"
        drawn = plots.actions(able, r"$\log f$" if cube else "action $S$")
        yield "action", (drawn, f"Histogram of the {what}, with the errors of independent draws.")
    names = [name for name in members[-1].functions if _has(lambda m, n=name: m.profile(n), members[-1])]  # type: ignore[misc]
    able = [one for one in members if all(_has(lambda m, n=name: m.profile(n), one) for name in names)]  # type: ignore[misc]
    if names and len(able) > 1:
        caption = "Functions of distance; below, their differences from the reference. Neighbouring points are correlated."
        yield "functions", (plots.profiles(able, names), caption)
    kind = kind_of(members[0].series.target, members[0].series.names)
    able = [one for one in members if _has(lambda m: m.shares, one)]
    if kind is not None and able and able[-1] is members[-1]:
        yield (
            "modes",
            (
                plots.modes(able, kind),
                "Share of the draws in each mode, as errors of so many independent draws.",
            ),
        )
    if any(one.test for one in result.found):
        caption = "Classifiers, each trained to tell one ensemble from the reference, on draws that they have not seen."
        yield "roc", (plots.roc(result.found), caption)
    if any(one.nearness for one in result.found):
        yield (
            "distances",
            (plots.distances(result.found), "Has it learned by heart? Distances to training data."),
        )


def _has(f, member: Member) -> bool:
    with suppress(StatisticsError, InputError):
        f(member)
        return True
    return False
