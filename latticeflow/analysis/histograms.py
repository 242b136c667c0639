"""Histograms of observables of events, `d Z / d O`, with covariances, in common bins; block by block in constant memory."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from ..errors import StatisticsError
from ..observables import Observable, Primary, observables
from ..statistics import Bins, chi2_probability
from .estimates import Row
from .series import Series

BINS = 40
TAILS = 1e-3  # share of Z below and above the edges
FEWEST = 10.0  # effective draws in a bin that is compared
_BLOCKS = 8  # of the reference that are looked at for the edges


@dataclass(frozen=True)
class Histogram:
    """Of one sampler: `value` `[K + 2]`, the part of Z in each of K bins, below them all (0) and above (K + 1);
    `covariance` `[K + 2, K + 2]`; `effective` `[K + 2]`: `(sum w)^2 / sum w^2` of a bin's draws."""

    value: np.ndarray
    covariance: np.ndarray
    effective: np.ndarray

    @property
    def error(self) -> np.ndarray:
        return np.sqrt(np.diag(self.covariance))


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

        With the covariance between bins: what one has too much another lacks. Over bins, also the outer ones, in which
        both have 10 effective draws.
        """
        one, two = self.by[sampler], self.by[other]
        both = (one.effective >= FEWEST) & (two.effective >= FEWEST)
        if not both.any():
            return 0.0, 0, 1.0
        delta = (one.value - two.value)[both]
        covariance = (one.covariance + two.covariance)[np.ix_(both, both)]
        scale = np.sqrt(np.diag(covariance))
        values, vectors = np.linalg.eigh(covariance / np.outer(scale, scale))
        # weights that are all equal have a sum without fluctuations, so that one combination of the bins has none
        good = values > 1e-9 * values.max()
        chi2 = float((np.square(vectors.T @ (delta / scale))[good] / values[good]).sum())
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
    sums = {name: np.zeros((2, len(own) + 1)) for name, own in edges.items()}
    for stretch in series.proposals(*edges):
        w = np.exp(stretch.values["log_w"][0] - weights.log_z)
        n += len(w)
        some = w > 0
        for name, own in edges.items():
            at = np.searchsorted(own, stretch.values[name][0][some], side="right")
            for k in (1, 2):
                sums[name][k - 1] += np.bincount(at, w[some] ** k, minlength=len(own) + 1)
    return {
        name: Histogram(
            weights.z * one / n,
            weights.z**2 * (np.diag(two / n) - np.outer(one, one) / n**2) / (n - 1),
            np.divide(one**2, two, out=np.zeros_like(one), where=two > 0),
        )
        for name, (one, two) in sums.items()
    }


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
        effective = n * share / np.maximum(inflation, 1) ** 2
        found[name] = Histogram(z * share, z**2 * plain * np.outer(inflation, inflation), effective)
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
