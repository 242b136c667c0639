"""What an ensemble is like beside a reference: one finding for each diagnostic, with how many sigma it is off."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from torch import Tensor

from ..errors import InputError, StatisticsError
from ..observables import observables
from ..run import Run
from ..spec import differences
from ..statistics import bracket
from ..statistics.two_sample import Sample, kolmogorov_smirnov, sigmas
from ..store import Ensemble
from ..training.checkpoint import checkpoints, latest, load_state
from ..training.data import Configurations, data_path
from . import diagnose_modes as modes
from .diagnose_classifier import Test, classify
from .diagnose_draws import Draws, action_name, distinct, draws, open_series, sample_of, unweighted
from .diagnose_memory import Nearness, looks, nearness, repeated
from .diagnose_modes import Shares
from .diagnose_profile import FUNCTIONS, Profile, agreement, profile
from .estimates import Row, estimates
from .series import Series

WRONG = 3.0  # sigma from which a diagnostic counts as failed
CERTAIN = 38.0  # what cannot be by chance at all
NEIGHBOURS = 1024  # draws whose nearest neighbours are looked for


@dataclass(frozen=True)
class Finding:
    """One line of the table for one ensemble. `sigma`: how far it is from what the target has, signed where there is a

    direction, or that of a two-sided normal variable with the same p; None where nothing can be said, for the `reason`.
    """

    label: str
    tex: str
    text: str
    value: float | None = None
    error: float | None = None
    sigma: float | None = None
    reason: str | None = None

    @property
    def wrong(self) -> bool:
        return self.sigma is not None and abs(self.sigma) > WRONG


@dataclass
class Member:
    """One ensemble with what is computed of it once, under the name that tables give it."""

    label: str
    run: Run
    series: Series
    n: int  # configurations that are looked at as a whole

    @classmethod
    def open(cls, label: str, run: Run, sampler: str, n: int) -> "Member":
        return cls(label, run, open_series(run, sampler), n)

    @cached_property
    def rows(self) -> dict[str, Row]:
        return estimates(self.series)

    @cached_property
    def action(self) -> Sample:
        return sample_of(self.series, action_name(self.series))

    @cached_property
    def draws(self) -> Draws:
        return draws(self.series, self.rows, self.n)

    @cached_property
    def shares(self) -> Shares:
        kind = modes.kind_of(self.series.target, self.series.names)
        if kind is None:
            raise StatisticsError("no modes are known of this target")
        return modes.shares(self.series, kind)

    def profile(self, name: str) -> Profile:
        if name not in self._profiles:
            self._profiles[name] = profile(self.series, name, self.rows)
        return self._profiles[name]

    @cached_property
    def _profiles(self) -> dict[str, Profile]:
        return {}

    @property
    def functions(self) -> list[str]:
        return [name for name in FUNCTIONS if name in self.series.names]

    @cached_property
    def data(self) -> Configurations | None:
        """What it was trained on of this target, as the settings of the training say; None where nothing.

        Raises `InputError` where that is not there any more, or has changed: what was held out cannot be told then.
        """
        train, run, target = self.run.deck.train, self.run, self.series.target
        if train is None or not train.data or not self.series.ensemble.weights:
            return None
        recorded: list[str | None] = [None]
        seed = run.deck.seed
        if checkpoints(run.weights):
            state = load_state(latest(run.weights), None, train)
            seed, sums = state["seed"], state.get("data")
            recorded = sums if isinstance(sums, list) else [sums]
        for i, path in enumerate(getattr(train, "ensembles", (train.data,))):
            path = data_path(path, run.weights)
            if differences(Ensemble.open(path).target, self.series.ensemble.target):
                continue  # of a conditional model, at other couplings
            found = Configurations(path, target, seed, train.thin, False, train.test_share)
            if recorded[i % len(recorded)] not in (None, found.checksum):
                raise InputError(f"{path} has changed since the training: what was held out cannot be told")
            return found
        return None


def learned_from(member: Member, reference: Member) -> bool:
    """Whether the reference is what the member was trained on: then they share fluctuations, and pulls are too small."""
    try:
        data = member.data
    except (StatisticsError, InputError):
        return False
    return data is not None and data.ensemble.identity == reference.series.ensemble.identity


@dataclass
class Diagnosis:
    """Findings of one ensemble by key, and what plots show of it."""

    member: Member
    findings: dict[str, Finding] = field(default_factory=dict)
    test: Test | None = None
    nearness: Nearness | None = None

    @property
    def wrong(self) -> list[Finding]:
        return [one for one in self.findings.values() if one.wrong]


def diagnose(member: Member, reference: Member | None, seed: int) -> Diagnosis:
    """All findings of one ensemble against the reference; of the reference itself (None) those that need no other."""
    found = Diagnosis(member)
    for part in (_observables, _action, _functions, _modes, _classifier, _memory):
        found.findings |= dict(part(found, reference, seed))
    return found


Found = Iterator[tuple[str, Finding]]


def _tried(names: tuple[str, str], f: Callable[[Any], Finding], other: Member | None) -> Finding:
    """`f(other)`, or why there is none."""
    try:
        return f(other)
    except (StatisticsError, InputError) as error:
        return Finding(*names, "-", reason=str(error))


def _observables(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    for name, row in found.member.rows.items():
        one = row.observable
        sigma = None if reference is None else row.pull(reference.rows[name])
        if reference is not None and row.problem == "frozen" and not reference.rows[name].problem:
            sigma = CERTAIN if unweighted(found.member.series) else None
        value, error = (None, None) if row.problem else (row.value, row.error)
        yield name, Finding(one.symbol, f"${one.tex}$", row.text, value, error, sigma, row.reason)


def _action(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    cube = found.member.series.target.measure == "hypercube"
    names = ("log f: KS distance", r"KS of $\log f$") if cube else ("S: KS distance", "KS of $S$")

    def compare(other: Member) -> Finding:
        d = kolmogorov_smirnov(found.member.action, other.action)
        return Finding(*names, bracket(d.value, d.error), d.value, d.error, sigmas(d.p))

    if reference is not None:
        yield "action_histogram", _tried(names, compare, reference)


def _functions(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    def compare(name: str, names: tuple[str, str], other: Member) -> Finding:
        a = agreement(found.member.profile(name), other.profile(name))
        return Finding(*names, f"{a.chi2:.4g}/{a.dof}", a.chi2, None, sigmas(a.p))

    for name in found.member.functions if reference is not None else []:
        one = observables.find(name)
        names = (f"{one.symbol}: χ²/dof", rf"$\chi^2$ of ${one.tex}$")
        yield f"{name}_chi2", _tried(names, partial(compare, name, names), reference)


def _modes(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    member = found.member
    kind = modes.kind_of(member.series.target, member.series.names)
    if kind is None:
        return
    names, absent_names = (kind.label, f"${kind.tex}$"), ("modes missing", "modes missing")

    def share(other: Member | None) -> Finding:
        own = member.shares
        if kind.exact is not None:
            value, error = own.of(1), own.error_of(1)
            return Finding(*names, bracket(value, error), value, error, own.pull(kind.exact))
        if other is None:
            return Finding(*names, f"Q = {own.labels.min()} ... {own.labels.max()}")
        chi2, dof, p = modes.agreement(own, other.shares)
        return Finding(*names, f"{chi2:.4g}/{dof}", chi2, None, sigmas(p))

    def absent(other: Member) -> Finding:
        labels, lost, p = modes.missing(member.shares, other.shares)
        text = ", ".join(kind.names[label] if kind.names else f"{label:+d}" for label in labels) or "none"
        return Finding(*absent_names, text, lost, None, sigmas(p))

    yield "modes", _tried(names, share, reference)
    if reference is not None:
        yield "modes_missing", _tried(absent_names, absent, reference)


def _classifier(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    names = ("classifier: AUC", "AUC")

    def test(other: Member) -> Finding:
        found.test = classify(found.member.series.target, other.draws, found.member.draws, seed)
        one = found.test.auc
        return Finding(*names, bracket(one.value, one.error), one.value, one.error, one.sigma)

    if reference is not None:
        yield "auc", _tried(names, test, reference)


def _memory(found: Diagnosis, reference: Member | None, seed: int) -> Found:
    def repeats(other: Member | None) -> Finding:
        share, _ = repeated(found.member.series)
        sigma = None
        if unweighted(found.member.series):  # a chain repeats what it does not leave; a density never
            sigma = CERTAIN if share else 0.0
        return Finding("repeated draws", "repeated draws", f"{100 * share:.3g} %", share, None, sigma)

    def distance(other: Member) -> Finding:
        found.nearness = near = _nearness(found.member, other, seed)
        return Finding(*far, bracket(*near.ratio), *near.ratio, near.ratio_pull)

    def copy(other: Member) -> Finding:
        near = found.nearness or _nearness(found.member, other, seed)
        value = near.share - near.chance
        return Finding(*copies, bracket(value, near.error), value, near.error, near.share_pull)

    far, copies = ("NN distance ratio", "NN distance"), ("NN in training", "NN in training")
    yield "repeated", _tried(("repeated draws", "repeated draws"), repeats, reference)
    if reference is not None:
        yield "nearest", _tried(far, distance, reference)
        yield "copies", _tried(copies, copy, reference)


def _nearness(member: Member, reference: Member, seed: int) -> Nearness:
    """With the chains that training has held out; if it has none, with the reference, if that is another ensemble."""
    data, train, target = member.data, member.run.deck.train, member.series.target
    if data is None or train is None:
        raise StatisticsError("not trained on stored configurations")

    def flat(x: Tensor) -> Tensor:
        return looks(target, x, train.augment)

    if train.test_share:
        held: Iterable[Tensor] = _Looks(data.held_out(), flat)
    elif data.ensemble.identity != reference.series.ensemble.identity:
        held = [flat(reference.draws.x)]
    else:
        raise StatisticsError("training held out no chain, and the reference is what was trained on")
    x = member.draws.x[:NEIGHBOURS]
    return nearness(flat(x[distinct(x)]), _Looks(data, flat), held, seed)


@dataclass(frozen=True)
class _Looks:
    """Stored configurations as `flat` shows them, a block at a time, as often as they are walked."""

    data: Configurations
    flat: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.flat, self.data.walk())
