"""Has a model learned by heart? Repeated draws, and how near its draws are to the configurations that it was trained on."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..random import Purpose, stream
from ..targets import LatticeTarget, Target
from .diagnose_classifier import STREAMS, features
from .diagnose_draws import BYTES, fingerprints
from .series import Series

PIECE = 1024  # configurations of data whose distances are held at a time
RESAMPLES = 200
HELD = 1024  # held-out configurations whose distances are looked at


@dataclass(frozen=True)
class Nearness:
    """Distances to the nearest training configuration, of draws `model` and of held-out configurations `held`.

    `ratio`: of their medians, and its error by the bootstrap; `share` of the draws whose nearest neighbour, among training
    and held-out configurations, is of the training; `chance`: the share of the training among these, what it would be
    for a model that has learned nothing by heart; `error`: of `share` then.
    """

    model: np.ndarray
    held: np.ndarray
    ratio: tuple[float, float]
    share: float
    chance: float
    error: float

    @property
    def ratio_pull(self) -> float:
        return (self.ratio[0] - 1) / self.ratio[1]

    @property
    def share_pull(self) -> float:
        return (self.share - self.chance) / self.error


def repeated(series: Series) -> tuple[float, int]:
    """Share of the stored draws, before any correction, that repeat another one exactly, and how many were looked at.

    `1 - distinct / draws`, of the first draws whose fields are 256 MiB at most.
    """
    prints: list[np.ndarray] = []
    room = BYTES
    for data in series.ensemble.iterate("x"):
        prints.append(fingerprints(torch.from_numpy(data["x"])))
        room -= data["x"].nbytes
        if room <= 0:
            break
    every = np.concatenate(prints)
    return 1 - len(np.unique(every)) / len(every), len(every)


def looks(target: Target, x: Tensor, symmetries: bool) -> Tensor:
    """x `[n, *event_shape]` as what distances are between, `[n, d]`: the `features`, or with `symmetries` what no symmetry

    of a lattice changes, the amplitudes `a_o = sqrt( mean of |f_k|^2 over the momenta k of an orbit o )` of each channel,
    `f_k = V^{-1/2} sum_s f(s) e^{-iks}`: translations, reflections, rotations and signs leave them alone. A model that is
    trained on configurations moved at random (`train.augment`) may copy them in any position.
    """
    f = features(target, x)
    if not symmetries or f.dim() == 2 or not isinstance(target, LatticeTarget):
        return f.flatten(1)
    power = torch.fft.fftn(f, dim=tuple(range(2, f.dim()))).abs().square().flatten(2) / target.lattice.volume
    orbit = torch.from_numpy(target.lattice.displacement_orbits).flatten().to(f.device)
    size = torch.bincount(orbit)
    sums = power.new_zeros(*power.shape[:2], len(size)).index_add(2, orbit, power)
    return (sums / size).sqrt().flatten(1)


def nearness(model: Tensor, train: Iterable[Tensor], held: Iterable[Tensor], seed: int) -> Nearness:
    """Of draws `[n, d]`, with training configurations in pieces `[*, d]`, walked once, and held-out ones, walked twice.

    `d(x, T) = min_{t in T} |x - t|`. The ratio of medians is below 1 for a model that copies, but also for one whose draws
    are too smooth. So there is a second number, which only copying moves (the idea is that of Meehan, Chaudhuri and
    Dasgupta, 2004.05675): if training and held-out configurations are alike, and the model does not know which is which,
    the nearest one of both sets is of the training with probability `c = |T| / (|T| + |H|)`. Given where the points are,
    that is a matter of labels: with w_p the share of the draws whose nearest is p, `sigma^2 = c (1 - c) sum_p w_p^2`.
    It needs training configurations that are independent (`train.thin = "auto"`). Memory: of one piece.
    """
    far, other, count = _nearest(model, held)
    some = _rows(held, torch.linspace(0, count - 1, min(HELD, count)).round().long())
    distance, at, size = _nearest(torch.cat([model, some]), train)
    near, of_held, at = distance[: len(model)], distance[len(model) :], at[: len(model)]
    chance = size / (size + count)
    nearest = np.where(near < far, at, size + other)
    w = np.unique(nearest, return_counts=True)[1] / len(nearest)
    error = float(np.sqrt(chance * (1 - chance) * np.square(w).sum()))
    rng = stream(seed, Purpose.ANALYSIS, STREAMS, 1)
    boot = [_median_ratio(_again(near, rng), _again(of_held, rng)) for _ in range(RESAMPLES)]
    ratio = _median_ratio(near, of_held)
    spread = float(np.std(boot)) or 1 / len(near)  # all draws are one
    return Nearness(near, of_held, (ratio, spread), float((near < far).mean()), chance, error)


def _median_ratio(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.median(a) / np.median(b))


def _again(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x[rng.integers(len(x), size=len(x))]


def _rows(pieces: Iterable[Tensor], at: Tensor) -> Tensor:
    """The rows of these ascending numbers, of all pieces in a row."""
    found, first = [], 0
    for piece in pieces:
        found.append(piece[at[(at >= first) & (at < first + len(piece))] - first])
        first += len(piece)
    return torch.cat(found)


def _nearest(x: Tensor, pieces: Iterable[Tensor]) -> tuple[np.ndarray, np.ndarray, int]:
    """For each row of x the distance to the nearest row of all pieces, and its number; and how many rows there are."""
    best = torch.full((len(x),), torch.inf, dtype=torch.float64)
    at = torch.zeros(len(x), dtype=torch.int64)
    first = 0
    for whole in pieces:
        for piece in whole.split(PIECE):
            distance, index = torch.cdist(x, piece).min(1)
            closer = distance < best
            best, at = torch.where(closer, distance, best), torch.where(closer, index + first, at)
            first += len(piece)
    return best.numpy(), at.numpy(), first
