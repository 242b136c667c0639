"""Histograms of observables of events, `d Z / d O`, with covariances, in common bins; block by block in constant memory."""

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import numpy as np

from ..errors import StatisticsError
from ..observables import Observable, Primary, observables
from ..statistics import Bins, chi2_probability
from .estimates import Row
from .series import Series

BINS = 40
TAILS = 1e-3  # share of Z below and above the edges
FEWEST = 10.0  # effective draws in a bin that is compared
DETERMINED = (
    60.0  # inverse square of the relative error of a bin's mean weight: bins in a row that have it together
)
_BLOCKS = 8  # of the reference that are looked at for the edges


@dataclass(frozen=True)
class Histogram:
    """Of one sampler: `value` `[K + 2]`, the part of Z in each of K bins, below them all (0) and above (K + 1);
    `covariance` `[K + 2, K + 2]`, by the draws in each bin.

    `draws`: n of them in all; `weight` `[K + 2]`: `r = sum w^2 / sum w` near a bin (`_mean_weights`), None where the weights
    are too unequal to know it; `inflation` `[K + 2]` of the errors by autocorrelation; `chain`: Z is another sampler's."""

    value: np.ndarray
    covariance: np.ndarray
    draws: int
    weight: np.ndarray | None
    inflation: np.ndarray
    chain: bool = False

    @property
    def error(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))

    def expected(self, value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The covariance, and the effective draws in each bin, if the bins' true values are in the proportions `value`.

        With `q_i ~ value_i / r_i`, the share of the draws, of the sum that this sampler has, and at most 1:
        `C_ij = (delta_ij q_i r_i^2 - q_i r_i q_j r_j) / n`, which has no negative eigenvalue; `n q_i` draws.
        """
        r = cast(np.ndarray, self.weight)  # of histograms that have one
        q = value / r
        q *= min(1.0, float((self.value / r).sum())) / q.sum()
        plain = (np.diag(q * r**2) - np.outer(q * r, q * r)) / self.draws
        return plain * np.outer(self.inflation, self.inflation), self.draws * q / self.inflation**2


@dataclass(frozen=True)
class Spectrum:
    """One observable by several samplers, in bins with `edges` `[K + 1]`; `reference`: the sampler with the best Z."""

    observable: Observable
    edges: np.ndarray
    by: dict[str, Histogram]
    reference: str

    def density(self, sampler: str) -> tuple[np.ndarray, np.ndarray]:
        """`d Z / d O` in each bin and its error, `[K]`."""
        width, one = np.diff(self.edges), self.by[sampler]
        return one.value[1:-1] / width, one.error[1:-1] / width

    def agreement(self, sampler: str, other: str) -> tuple[float, int, float]:
        """chi2 of the difference, its degrees of freedom, and the probability of a larger one.

        With the covariance between bins that both samplers would have at their common mean: each sampler's own errors would
        be small where by chance it lacks large weights, and its value too. A chain knows no Z, so that with it shares of Z
        are compared, which sum to 1. Over bins, also the outer ones, in which both expect 10 effective draws; no degree of
        freedom where those hold less than half of Z, or a sampler's weights are too unequal for their size to be known.
        """
        one, two = self.by[sampler], self.by[other]
        if one.weight is None or two.weight is None:
            return 0.0, 0, 1.0
        shares = one.chain or two.chain
        values = [h.value / (h.value.sum() if shares else 1.0) for h in (one, two)]
        precision = [
            1 / max(float(np.trace(h.covariance)) / h.value.sum() ** 2, np.finfo(float).eps ** 2)
            for h in (one, two)
        ]
        pooled: np.ndarray = np.average(values, axis=0, weights=precision)
        expected = [h.expected(pooled) for h in (one, two)]
        both = np.all([effective >= FEWEST for _, effective in expected], axis=0)
        if pooled[both].sum() < 0.5 * pooled.sum():
            return 0.0, 0, 1.0
        total = np.zeros_like(one.covariance)
        for h, (covariance, _) in zip((one, two), expected):
            to = np.eye(len(pooled))
            if shares:
                to = (to - (pooled / pooled.sum())[:, None]) / h.value.sum()
            total = total + to @ covariance @ to.T
        delta, covariance = (values[0] - values[1])[both], total[np.ix_(both, both)]
        scale = np.sqrt(np.diag(covariance))
        found, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        # shares sum to 1, weights that are all equal to a constant: then one combination of the bins does not fluctuate
        good = found > 1e-9 * found.max()
        chi2 = float((np.square(vectors.T @ (delta / scale))[good] / found[good]).sum())
        return chi2, int(good.sum()), chi2_probability(chi2, int(good.sum()))


def spectra(all_series: dict[str, Series], rows: dict[str, dict[str, Row]]) -> dict[str, Spectrum]:
    """Spectra of the scalar primaries that all samplers have, by name; empty for targets that are not on the unit cube.

    Edges: K = 40 bins of one width, from the 0.1 % to the 99.9 % quantile of the sampler with the best Z; of whole numbers a
    bin each. Independent samplers: means of `w 1(O in bin)` over the proposals, whose covariance is that of independent
    draws. Chains know no Z and take that of the reference; their errors are by jackknife with the tau_int of `rows`, the
    scalar observables' estimates.
    """
    if any(series.target.measure != "hypercube" for series in all_series.values()):
        return {}
    first = next(iter(all_series.values()))
    names = [
        name
        for name in first.names
        if isinstance(one := observables.find(name), Primary)
        and not one.vector
        and all(name in series.names for series in all_series.values())
    ]
    known = {name: s.integration.weights for name, s in all_series.items() if s.integration}
    reference = next(iter(known or all_series))
    for name, weights in known.items():
        if weights.log_z_error < known[reference].log_z_error:
            reference = name
    edges = _edges(all_series[reference], names)
    if not edges:
        return {}
    z = known[reference].z if known else 1.0
    found = {
        sampler: _weighted(series, edges)
        if series.integration
        else _of_chains(series, edges, z, rows[sampler])
        for sampler, series in all_series.items()
    }
    return {
        name: Spectrum(
            observables.find(name),
            edges[name],
            {sampler: one[name] for sampler, one in found.items() if name in one},
            reference,
        )
        for name in edges
        if name in found[reference]
    }


def _edges(series: Series, names: list[str]) -> dict[str, np.ndarray]:
    """Of the observables that are not constant."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in names}
    weights: list[np.ndarray] = []
    for key in series.blocks[:: -(-len(series.blocks) // _BLOCKS)]:
        for name, a in series.measured.read(key, tuple(names)).items():
            parts[name].append(a)
        n = series.ensemble.settings["block"]
        weights.append(
            series.ensemble.read(*key, "log_w")["log_w"] if series.ensemble.weighted else np.zeros(n)
        )
    log_w = np.concatenate(weights)
    w = np.exp(log_w - log_w.max())
    found = {name: _edges_of(np.concatenate(part), w) for name, part in parts.items()}
    return {name: edges for name, edges in found.items() if edges is not None}


def _edges_of(a: np.ndarray, w: np.ndarray) -> np.ndarray | None:
    some = (w > 0) & np.isfinite(a)
    a, w = a[some], w[some]
    if not len(a) or a.min() == a.max():
        return None
    low, high = a.min(), a.max()
    if high - low < 2 * BINS and (a == np.round(a)).all():
        return np.arange(low - 0.5, high + 1.0)
    order = np.argsort(a)
    share = np.cumsum(w[order]) / w.sum()
    low, high = a[order][np.minimum(np.searchsorted(share, [TAILS, 1 - TAILS]), len(a) - 1)]
    return np.linspace(low, high, BINS + 1) if high > low else None


def _weighted(series: Series, edges: dict[str, np.ndarray]) -> dict[str, Histogram]:
    weights, n = series.weights, 0
    sums = {name: np.zeros((4, len(own) + 1)) for name, own in edges.items()}
    for stretch in series.proposals(*edges):
        w = np.exp(stretch.values["log_w"][0] - weights.log_z)
        n += len(w)
        some = w > 0
        for name, own in edges.items():
            at = np.searchsorted(own, stretch.values[name][0][some], side="right")
            for k in (1, 2, 3, 4):
                sums[name][k - 1] += np.bincount(at, w[some] ** k, minlength=len(own) + 1)
    return {name: of_sums(powers, n, weights.z) for name, powers in sums.items()}


def of_sums(powers: np.ndarray, n: int, z: float = 1.0) -> Histogram:
    """Of `powers` `[4, K + 2]`, the sums of w, w^2, w^3, w^4 in each bin over n independent draws; w in the unit z."""
    one, two = powers[:2]
    covariance = (np.diag(two / n) - np.outer(one, one) / n**2) / (n - 1)
    r = _mean_weights(powers)
    return Histogram(z * one / n, z**2 * covariance, n, None if r is None else z * r, np.ones_like(one))


def _mean_weights(powers: np.ndarray) -> np.ndarray | None:
    """`r = sum w^2 / sum w` over each bin and as many bins around it as make it known: the same number for all bins.

    The squared relative error of one bin's r is `nu = sum w^2 (w - r)^2 / (sum w^2)^2`, 0 for equal weights. With its median
    over draws by weight, `200 nu` bins in a row are taken; None where that is more than there are. Not chosen bin by bin: a
    bin that lacks large weights by chance looks as if it were known well. Against a good sampler 7 and 10 % of p were below
    0.05 for log-normal weights of standard deviation 2.9 and 7.3 (50,000 draws in 42 bins, 400 repeats), where each
    bin's own variance has 20 to 80 %.
    """
    one, two, three, four = powers
    some = one > 0
    if not some.any():
        return None
    own = two[some] / one[some]
    nu = np.maximum(four[some] - 2 * own * three[some] + own**2 * two[some], 0) / two[some] ** 2
    order = np.argsort(nu)
    share = np.cumsum(one[some][order])
    bins = DETERMINED * nu[order][np.searchsorted(share, share[-1] / 2)]
    if bins > len(one):
        return None
    half = math.ceil(max(bins - 1, 0) / 2)
    near = np.abs(np.subtract.outer(range(len(one)), range(len(one)))) <= half
    first, second = near @ one, near @ two
    return np.divide(second, first, out=np.full_like(one, two.sum() / one.sum()), where=first > 0)


def _of_chains(
    series: Series, edges: dict[str, np.ndarray], z: float, rows: dict[str, Row]
) -> dict[str, Histogram]:
    """Shares of the draws in each bin; the covariance of independent draws, with the errors of the jackknife."""
    shape, C = series.moments.all, series.ensemble.chains
    bins: dict[str, Bins] = {}
    for name in edges:
        row = rows.get(name)
        if row is not None and row.tau:
            with suppress(StatisticsError):  # too few samples for an error
                bins[name] = Bins(shape.chains, shape.longest, tau=row.tau.value)
    for stretch in series.walk(*bins, walkers=True):
        for name, one in bins.items():
            at = np.searchsorted(edges[name], stretch.values[name], side="right")
            chain, inside = stretch.chain, np.eye(len(edges[name]) + 1)[at]
            if series.ensemble.interacting:  # walkers of a stream are one chain
                chain, inside = chain // C, inside.mean(axis=0, keepdims=True)
            one.feed(chain, stretch.step, {"in": inside})
    found, n = {}, (len(series.blocks) * series.ensemble.settings["block"]) - series.left_out
    for name, one in bins.items():
        share, error = one.jackknife(lambda means: means["in"])
        plain = (np.diag(share) - np.outer(share, share)) / n
        some = share * (1 - share) > 0
        inflation = np.divide(error, np.sqrt(np.diag(plain)), out=np.ones_like(error), where=some)
        found[name] = Histogram(
            z * share,
            z**2 * plain * np.outer(inflation, inflation),
            n,
            np.full_like(share, z),
            np.maximum(inflation, 1),
            chain=True,
        )
    return found


def spectrum_rows(found: dict[str, Spectrum]) -> Iterator[list[str]]:
    """Lines of a CSV file, the headings first: densities by bin."""
    yield ["observable", "low", "high", "sampler", "value", "error"]
    for name, spectrum in found.items():
        for sampler in spectrum.by:
            for low, high, value, error in zip(
                spectrum.edges, spectrum.edges[1:], *spectrum.density(sampler)
            ):
                yield [
                    name,
                    *(f"{one:.10g}" for one in (low, high)),
                    sampler,
                    f"{value:.10g}",
                    f"{error:.4g}",
                ]
