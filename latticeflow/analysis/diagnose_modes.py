"""Are all modes there? The two wells of a scalar field, the peaks of `Camel`, the topological sectors of a gauge field."""

import math
from dataclasses import dataclass

import numpy as np

from ..errors import StatisticsError
from ..statistics import chi2_probability
from ..statistics.autocorrelation import tau_int
from ..targets import Target
from .diagnose_draws import history, unweighted
from .series import Series

SEEN = 1e-3  # a sector with less than this share of the reference is a rarity that nobody has to visit
SCATTER = 5.0  # draws expected in a sector that chi2 is about


@dataclass(frozen=True)
class Kind:
    """What modes are: `primary`, whose value says which; `exact`: share of each of two by symmetry, or None."""

    primary: str
    label: str
    tex: str
    exact: float | None
    names: tuple[str, ...] = ()  # of modes 0 and 1
    middle: float = 0.0  # between them


_WELLS = Kind("m", "P(m > 0)", "P(m > 0)", 0.5, ("m < 0", "m > 0"))
_PEAKS = Kind("upper_peak", "P(upper peak)", r"P_\mathrm{up}", 0.5, ("lower", "upper"), 0.5)
_SECTORS = Kind("charge", "P(Q): χ²/dof", "P(Q)", None)


def kind_of(target: Target, names: list[str]) -> Kind | None:
    """The modes of this target, None where nothing is known of any; `names`: its primaries."""
    return next((one for one in (_WELLS, _PEAKS, _SECTORS) if one.primary in names), None)


@dataclass(frozen=True)
class Shares:
    """`share` `[K]` of the draws in the modes `labels` `[K]`, as those of `size` independent ones."""

    labels: np.ndarray
    share: np.ndarray
    size: float

    @property
    def error(self) -> np.ndarray:
        """Binomial, with one draw more in each mode and one less: none found is not none there."""
        return np.array([self.error_of(label) for label in self.labels])

    def of(self, label: int) -> float:
        found = self.share[self.labels == label]
        return float(found[0]) if len(found) else 0.0

    def error_of(self, label: int) -> float:
        p = (self.of(label) * self.size + 1) / (self.size + 2)
        return float(np.sqrt(p * (1 - p) / self.size))

    def pull(self, exact: float) -> float:
        """Of the share of mode 1, from its exact value, with the error that it has if that is true."""
        return (self.of(1) - exact) / float(np.sqrt(exact * (1 - exact) / self.size))


def shares(series: Series, kind: Kind) -> Shares:
    """Of all draws (`history`), and how many independent ones they are: n / (2 tau_int).

    tau_int is the largest of a mode's indicator, among modes with a share of `SEEN`. Chains that never change their mode,
    or so rarely that no tau_int can be told, are one draw each, however long; proposals of an independent sampler are
    then as many as their ESS says. Raises `StatisticsError` where there are no draws.
    """
    value = history(series, kind.primary)
    mode = np.round(value).astype(np.int64) if kind.exact is None else (value > kind.middle).astype(int)
    labels, at = np.unique(mode, return_inverse=True)
    at = at.reshape(mode.shape)
    share = np.bincount(at.ravel()) / at.size
    if unweighted(series):
        return Shares(labels, share, float(at.size))
    ensemble = series.ensemble
    walkers = ensemble.chains if ensemble.interacting else 1  # of a stream: their mean is one chain
    try:
        size = min(
            _size((at == k).reshape(-1, walkers, at.shape[1]).mean(1), p)
            for k, p in enumerate(share)
            if p >= SEEN
        )
    except StatisticsError:
        size = len(at) / walkers if ensemble.chains else at.size * series.weights.ess
    return Shares(labels, share, size)


def _size(indicator: np.ndarray, p: float) -> float:
    """`p (1 - p) / error^2` of the mean of an indicator `[chains, steps]`, of one walker or the mean of some."""
    return indicator.size / (2 * max(tau_int(indicator).value, 0.5)) * p * (1 - p) / float(indicator.var())


def missing(model: Shares, reference: Shares) -> tuple[np.ndarray, float, float]:
    """Modes of the reference, with `SEEN` or more of it, that the model never visits: their labels, share of the reference,

    and the probability that n draws of the reference's distribution would miss as much, too.

    If both are of one distribution and c of the n + m draws are in a mode, they are all among the reference's m with
    probability `P(c) = m! (n + m - c)! / ((m - c)! (n + m)!)`, about (m / (n + m))^c. Of K modes the one with the largest c
    decides, by `1 - (1 - P(c))^K`: that some rare one of many is missing is no surprise.
    """
    n, m = model.size, reference.size
    seen = reference.share >= SEEN
    absent = seen & np.array([not model.of(label) for label in reference.labels])
    share = float(reference.share[absent].sum())
    if not absent.any():
        return reference.labels[absent], share, 1.0
    c = m * float(reference.share[absent].max())
    log_p = math.lgamma(m + 1) - math.lgamma(m - c + 1) + math.lgamma(n + m - c + 1) - math.lgamma(n + m + 1)
    return (
        reference.labels[absent],
        share,
        -math.expm1(int(seen.sum()) * math.log1p(-min(math.exp(log_p), 1 - 1e-16))),
    )


def agreement(model: Shares, reference: Shares) -> tuple[float, int, float]:
    """chi2 of two histograms of modes, its degrees of freedom, and the probability of a larger one (Pearson's test).

    `sum_k n m (p_k - q_k)^2 / (n p_k + m q_k)`, n and m the independent draws; modes with fewer than `SCATTER` expected in
    either, if both are from one distribution, are taken together.
    """
    n, m = model.size, reference.size
    labels = np.union1d(model.labels, reference.labels)
    p, q = (np.array([one.of(label) for label in labels]) for one in (model, reference))
    both = (n * p + m * q) / (n + m)
    rare = min(n, m) * both < SCATTER
    if rare.any():
        p, q = (np.append(one[~rare], one[rare].sum()) for one in (p, q))
        both = (n * p + m * q) / (n + m)
    some = both > 0
    chi2 = float((n * m / (n + m) * (p - q)[some] ** 2 / both[some]).sum())
    dof = int(some.sum()) - 1
    return chi2, dof, chi2_probability(chi2, dof)
