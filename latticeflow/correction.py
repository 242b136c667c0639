"""What makes draws exact: functions of the log-weights `log w = log target - log proposal` alone.

A correction returns a `Selection`, an index over the proposals with a weight for each entry; no
configuration is touched or copied.
"""

from dataclasses import dataclass

import numpy as np

from .errors import InputError, StatisticsError
from .statistics import WeightSummary
from .statistics.weights import check_log_w, largest

# Proposals turned into Python lists at a time: bounds the memory of a scan, whatever it is fed.
_PIECE = 1 << 16


@dataclass(frozen=True)
class Selection:
    """`index` int64 `[n]` into the proposals, `weight` float64 `[n]`."""

    index: np.ndarray
    weight: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


@dataclass
class MetropolisScan:
    """Independence Metropolis as a scan over log-weights, fed piece by piece in constant memory.

    With current configuration x and proposal x' drawn from q, independent of x, accept x' if

        log u < log w(x') - log w(x),   u uniform in (0, 1],

    else repeat x (Tierney 1994, Ann. Stat. 22, 1701, sec. 2.3.3; for flows 1904.12072, eq. 8). The chain
    starts at the first proposal of non-zero weight; -inf is never accepted. One random number is used a
    proposal, so that the pieces in which a stretch is fed do not matter.

    `proposals`: fed so far; `start`: index of the first of non-zero weight, -1 before it; `current`, `log_w`:
    index and log-weight of the current configuration; `accepted`: moves after the start; `longest`: longest
    run of rejections.
    """

    proposals: int = 0
    start: int = -1
    current: int = -1
    log_w: float = -np.inf
    accepted: int = 0
    longest: int = 0
    run: int = 0  # rejections since the last move

    def feed(self, log_w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The chain's entries for the next proposals: global indices, int64.

        One entry a proposal; none for those before the start. Raises `NumericalError` for NaN or +inf.
        """
        log_w = check_log_w(log_w)
        pieces = [self._feed(log_w[at : at + _PIECE], rng) for at in range(0, len(log_w), _PIECE)]
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)

    def _feed(self, log_w: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        # -log u is exponentially distributed: log u < log_w' - log_w  <=>  log_w' - log u > log_w
        bar = log_w + rng.standard_exponential(len(log_w))
        moves, current = [], self.log_w
        for i, (new, threshold) in enumerate(zip(log_w.tolist(), bar.tolist())):
            if threshold > current:
                current = new
                moves.append(i)
        self.log_w = current
        move = np.array(moves, dtype=np.int64)
        # entry i is the last move at or before i; before the start there is none
        index = np.repeat(
            np.concatenate([[self.current], self.proposals + move]),
            np.diff(np.concatenate([[0], move, [len(log_w)]])),
        )
        self._count(move, len(log_w))
        self.current = int(index[-1])
        return index[index >= 0]

    def _count(self, move: np.ndarray, n: int) -> None:
        """Moves and runs of rejections, carried across pieces; neither counts up to the start."""
        base = self.proposals
        self.proposals += n
        self.accepted += len(move)
        if self.start < 0:
            if not len(move):
                return
            self.start = base + int(move[0])
            self.accepted -= 1
            self.run = -int(move[0])
        rejected = np.diff(np.concatenate([[-1], move, [n]])) - 1
        rejected[0] += self.run
        self.longest = max(self.longest, int(rejected.max()))
        self.run = int(rejected[-1])

    @property
    def acceptance(self) -> float:
        """Accepted over tried proposals. Raises `StatisticsError` before the second proposal of the chain."""
        tried = self.proposals - self.start - 1
        if self.start < 0 or tried < 1:
            raise StatisticsError("no acceptance yet: the chain has no proposal after its start")
        return self.accepted / tried


def metropolis(log_w: np.ndarray, rng: np.random.Generator) -> Selection:
    """The Markov chain of independence Metropolis over log-weights `[N]`, unit weights.

    N entries, fewer by the leading proposals of zero weight. See `MetropolisScan`. Raises `NumericalError` for
    NaN or +inf, `StatisticsError` if every weight is zero.
    """
    index = MetropolisScan().feed(log_w, rng)
    if not len(index):
        raise StatisticsError("every weight is zero: the proposal never meets the target's support")
    return Selection(index, np.ones(len(index)))


def reweight(log_w: np.ndarray) -> Selection:
    """All N proposals with weights `w / <w>`. Raises like `metropolis`."""
    log_w = check_log_w(log_w)
    w = np.exp(log_w - largest(log_w))
    return Selection(np.arange(len(w), dtype=np.int64), w / w.mean())


def unweight(log_w: np.ndarray, rng: np.random.Generator, quantile: float = 1.0) -> Selection:
    """Keep proposal i with probability `min(1, w_i / w_max)`, with weight `max(1, w_i / w_max)`.

    `w_max` is the `quantile` of the weights; 1 is their maximum, and every kept weight is then 1. Expectation
    values are exact for any w_max fixed beforehand; taken from the same draws it biases by O(1/N).
    Raises like `metropolis`, `InputError` for a quantile outside (0, 1], `StatisticsError` if w_max = 0.
    """
    log_w = check_log_w(log_w)
    if not 0 < quantile <= 1:
        raise InputError(f"quantile = {quantile}; expected 0 < quantile <= 1")
    largest(log_w)
    log_max = np.quantile(log_w, quantile, method="higher")
    if np.isneginf(log_max):
        raise StatisticsError(f"the {quantile} quantile of the weights is zero; choose one nearer to 1")
    return keep(log_w, float(log_max), rng)


def keep(log_w: np.ndarray, log_max: float, rng: np.random.Generator) -> Selection:
    """`unweight` at a maximum `log w_max` fixed beforehand: unbiased, and one random number a proposal.

    So blocks with a random stream each can be unweighted one after another, or by different ranks, and more of them
    later, and the same proposals are kept. Raises `NumericalError` for NaN or +inf, `InputError` for a maximum that is
    not finite.
    """
    log_w = check_log_w(log_w)
    if not np.isfinite(log_max):
        raise InputError(f"log w_max = {log_max}; expected a finite number")
    # -log u is exponentially distributed: u < w / w_max  <=>  log_w - log u > log_max
    kept = np.flatnonzero(log_w + rng.standard_exponential(len(log_w)) > log_max)
    return Selection(kept, np.exp(np.maximum(0.0, log_w[kept] - log_max)))


@dataclass(frozen=True)
class CorrectionSummary:
    """What is quoted of an exact chain: acceptance, longest run of rejections, summary of the weights."""

    acceptance: float
    longest: int
    weights: WeightSummary
