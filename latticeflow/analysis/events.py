"""Events of an ensemble: its draws corrected in one of three ways, with weights in the unit of Z, block by block."""

import math
from collections.abc import Iterator

import numpy as np

from ..correction import keep
from ..errors import InputError, StatisticsError
from ..random import Purpose
from ..statistics import WeightSums, WeightTail
from ..store import Ensemble
from ..store.block import Key
from ..targets import Target
from .export_rows import Rows

MODES = ("unweighted", "weighted", "metropolis")
QUANTILE = 0.999  # of all weights, at which is unweighted
# key of the block, its events, their weights
Piece = tuple[Key, np.ndarray, np.ndarray]


def check_maximum(mode: str | None, quantile: float | None, maximum: float | None) -> None:
    """Raises `InputError` for a quantile or maximum of anything but unweighted events, and for both."""
    given = {"quantile": quantile, "maximum": maximum}
    named = [name for name, value in given.items() if value is not None]
    if named and mode != "unweighted":
        what = "without events" if mode is None else f"of {mode} events"
        raise InputError(f"{named[0]} = {given[named[0]]} {what}; it is where events = 'unweighted' are cut")
    if len(named) > 1:
        raise InputError(f"quantile = {quantile} and maximum = {maximum}; expected one of them")


class Events:
    """The events of an independent sampler's ensemble; their mean weight is Z.

    `weighted`: all draws of non-zero weight, by importance. `unweighted`: draws kept with probability
    `min(1, w / w_max)`, which carry `max(1, w / w_max)` times a constant; `w_max` is the `quantile` of all weights, zeros
    included (0.999), or `maximum`, in the unit of Z. `metropolis`: the entries of the chain, one weight for all; events
    repeat as the chain does.

    `n`: events; `z`, `z_error`: from all draws, in any mode; `largest`: weight; `log_max`: log w_max, None but for
    `unweighted`; `unit_weights`: all weights are Z. Which draws are kept depends on their log-weights, on w_max and on the
    random stream of their block alone: not on who asks, and not on blocks added later as long as w_max is given.

    Where every k-th field is kept (`keep_fields`), events are made of those. Constant memory. Raises `InputError` for
    another mode, a quantile or maximum where nothing is unweighted, or both, samplers without log-weights (they know no Z),
    ensembles without fields, a quantile outside (0, 1], a maximum that is not positive; `StatisticsError` where all weights
    or w_max are zero.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        target: Target,
        mode: str = "unweighted",
        quantile: float | None = None,
        maximum: float | None = None,
    ):
        if mode not in MODES:
            raise InputError(f"events = '{mode}'; expected {', '.join(MODES)}")
        ensemble.require_exact("events of a known cross section")
        if not ensemble.weighted or ensemble.chains:
            raise InputError(
                f"{ensemble.path}: sampler '{ensemble.sampler}' stores no log-weights, so it knows no cross section; "
                "take events of flow, vegas or flat"
            )
        if not ensemble.keep_fields:
            raise InputError(
                f"{ensemble.path} holds no fields (keep_fields = 0), so that there are no events"
            )
        check_maximum(mode, quantile, maximum)
        if maximum is not None and not (maximum > 0 and math.isfinite(maximum)):
            raise InputError(f"maximum weight {maximum}; expected a positive number, in the unit of Z")
        self.ensemble, self.target, self.mode = ensemble, target, mode
        self._rows = Rows(ensemble, target, False, False) if mode == "metropolis" else None
        self.log_max = self._weights(
            QUANTILE if quantile is None else quantile, None if maximum is None else math.log(maximum)
        )
        self._count()

    def _weights(self, quantile: float, log_max: float | None) -> float | None:
        """Z, and the maximum of unweighting."""
        sums = WeightSums()
        tail = (
            WeightTail(self.ensemble.draws, quantile)
            if self.mode == "unweighted" and log_max is None
            else None
        )
        for data in self.ensemble.iterate("log_w"):
            sums.feed(data["log_w"])
            if tail is not None:
                tail.feed(data["log_w"])
        summary = sums.summary()
        self.z, self.z_error, self._log_z = summary.z, summary.z_error, summary.log_z
        if self.mode != "unweighted":
            return None
        return tail.summary().log_max if tail is not None else log_max

    def _count(self) -> None:
        """`n` and the constant that makes the mean weight Z."""
        self.n, total, largest, smallest = 0, 0.0, 0.0, math.inf
        if self._rows is not None:
            self.n, total, largest, smallest = self._rows.n, float(self._rows.n), 1.0, 1.0
        else:
            for _, index, weight in self._selected():
                if len(index):
                    self.n, total = self.n + len(index), total + float(weight.sum())
                    largest, smallest = max(largest, float(weight.max())), min(smallest, float(weight.min()))
        if not self.n:
            raise StatisticsError(
                f"{self.ensemble.path}: no event is left of {self.ensemble.draws:,} draws; draw more"
            )
        self._factor = self.z * self.n / total
        self.largest, self.unit_weights = self._factor * largest, largest == smallest

    def _selected(self) -> Iterator[tuple[Key, np.ndarray, np.ndarray]]:
        """Of each block the draws that become events, and their weights up to a constant."""
        kept = self.ensemble.kept_rows
        for key in self.ensemble.blocks:
            log_w = self.ensemble.read(*key, "log_w")["log_w"]
            if self.log_max is None:
                index, weight = np.flatnonzero(log_w > -np.inf), None
            else:
                chosen = keep(log_w, self.log_max, self.ensemble.generator(Purpose.UNWEIGHT, *key))
                index, weight = chosen.index, chosen.weight
            stored = np.isin(index, kept)
            index = index[stored]
            yield key, index, np.exp(log_w[index] - self._log_z) if weight is None else weight[stored]

    def pieces(self) -> Iterator[Piece]:
        """Key, events `[n, *event_shape]` and weights `[n]` of one block after another."""
        if self._rows is not None:
            for key, piece in self._rows.keyed("x"):
                yield key, piece["x"], np.full(len(piece["x"]), self._factor)
            return
        kept = self.ensemble.kept_rows
        for key, index, weight in self._selected():
            if len(index):
                x = self.ensemble.read(*key, "x")["x"]
                yield key, x[np.searchsorted(kept, index)], self._factor * weight
