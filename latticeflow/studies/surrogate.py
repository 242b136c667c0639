"""A simulator's best parameters by gradient descent through a learned stand-in (Shirobokov et al., 2002.04632).

A simulator draws a response y of truth x at parameters psi, and has no gradient. Sought is the psi in a box where

    O(psi) = < R(y, x, psi) >,    x ~ p(x),  y ~ p(y | x, psi),

is least. The surrogate is a flow y = S(z; x, psi), z normal numbers, trained by likelihood on (x, psi, y) alone
(`ConditionalDensity`); then

    dO/dpsi = < dR/dy dS/dpsi + dR/dpsi >

Where O has several minima gradients alone do not do: a first surrogate is of the whole box, many descents through it start
at random, and the simulator itself judges where they end. Further ones are of smaller boxes around the best point so far, as
that paper's, learned from all calls in there: a small network has little to learn then.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import Purpose, stream
from ..errors import InputError, NumericalError
from .density import ConditionalDensity, normal

STREAMS = 0x5A6A  # of ANALYSIS, those of this study; then which round


@dataclass(frozen=True)
class Problem:
    """`truth(n, rng)` gives x `[n, numbers]`; `simulate(x, psi, rng)` one y `[n, numbers]` for each x and psi `[n, k]`, the
    black box; `loss(y, x, psi)` R `[n]`, differentiable. `low`, `high`: the box of psi. All tensors have one dtype.

    Raises `InputError` unless low < high everywhere, and both are finite.
    """

    truth: Callable[[int, np.random.Generator], Tensor]
    simulate: Callable[[Tensor, Tensor, np.random.Generator], Tensor]
    loss: Callable[[Tensor, Tensor, Tensor], Tensor]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        if (
            not self.low
            or len(self.low) != len(self.high)
            or not all(-math.inf < a < b < math.inf for a, b in zip(self.low, self.high))
        ):
            raise InputError(
                f"the box from {self.low} to {self.high}; expected finite low < high of every parameter"
            )


@dataclass(frozen=True)
class Settings:
    """Of the search. `calls` of the simulator and `widths` of the box, as shares of the whole, one of each a round.

    The surrogate: `hidden` widths, `steps` of Adam at `lr` with `batch` samples. The descents: `starts` of them in the
    first round, one in the others, `moves` steps of Adam with `draws` responses each, at a `rate` in widths of the present
    box that falls to 0. `judged`: calls of the simulator at the end of each descent of the first round.

    Raises `InputError` for rounds without calls or width, a first width other than 1, others outside of (0, 1], and counts
    and rates that are not positive.
    """

    calls: tuple[int, ...] = (100_000, 100_000, 100_000, 100_000)
    widths: tuple[float, ...] = (1.0, 0.5, 0.3, 0.2)
    hidden: tuple[int, ...] = (48, 48)
    steps: int = 800
    lr: float = 1e-2
    batch: int = 2048
    starts: int = 16
    moves: int = 150
    draws: int = 512
    rate: float = 0.05
    judged: int = 2000

    def __post_init__(self) -> None:
        if not self.calls or len(self.calls) != len(self.widths) or self.widths[0] != 1:
            raise InputError(
                f"calls {self.calls}, widths {self.widths}; expected one of each for every round, the first width 1"
            )
        counts = (*self.calls, self.steps, self.batch, self.starts, self.moves, self.draws, self.judged - 1)
        if min(counts) < 1 or not all(0 < width <= 1 for width in self.widths):
            raise InputError(
                f"counts of which the least is {min(counts)}, widths {self.widths}; expected one at least, two for "
                "judged, and widths in (0, 1]"
            )
        if not (0 < self.lr < math.inf and 0 < self.rate < math.inf):
            raise InputError(f"lr = {self.lr}, rate = {self.rate}; expected numbers > 0")


@dataclass(frozen=True)
class Found:
    """`psi` `[k]`, the `value` of O there by the simulator with its `error`; `calls` of the simulator up to there.

    `rounds` `[rounds, k]`: where each round ended; `ends` `[starts, k]`, `values` `[starts]`: of the first one's descents.
    """

    psi: np.ndarray
    value: float
    error: float
    calls: int
    rounds: np.ndarray
    ends: np.ndarray
    values: np.ndarray


def box(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """`low` and `high`, `[k]` each."""
    return np.array(problem.low, dtype=float), np.array(problem.high, dtype=float)


def uniform(low: np.ndarray, high: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n points of a box, `[n, k]`."""
    return low + (high - low) * rng.random((n, len(low)))


@torch.no_grad()
def judge(problem: Problem, psi: np.ndarray, n: int, rng: np.random.Generator) -> tuple[float, float]:
    """O(psi) by n calls of the simulator, and its error.

    Raises `InputError` for fewer than two calls or R of another shape than `[n]`, `NumericalError` where R is not finite.
    """
    if n < 2:
        raise InputError(f"{n} calls to judge by; expected two at least")
    x = problem.truth(n, rng)
    at = torch.from_numpy(np.asarray(psi, dtype=float)).to(x).expand(n, -1)
    R = problem.loss(problem.simulate(x, at, rng), x, at).double()
    if R.shape != (n,):
        raise InputError(f"the loss of {n} responses has shape {list(R.shape)}; expected [{n}]")
    if not bool(R.isfinite().all()):
        raise NumericalError(
            f"the objective is not finite in {int((~R.isfinite()).sum())} of {n} responses at {psi}"
        )
    return float(R.mean()), float(R.std()) / math.sqrt(n)


@dataclass(frozen=True)
class Samples:
    """Triples x, psi, y `[n, ...]` that the simulator was called for."""

    x: Tensor
    psi: Tensor
    y: Tensor

    def inside(self, low: np.ndarray, high: np.ndarray) -> "Samples":
        """Those with psi in a box."""
        a, b = (torch.from_numpy(one).to(self.psi) for one in (low, high))
        at = ((self.psi >= a) & (self.psi <= b)).all(1)
        return Samples(self.x[at], self.psi[at], self.y[at])

    def __add__(self, other: "Samples") -> "Samples":
        pairs = ((self.x, other.x), (self.psi, other.psi), (self.y, other.y))
        return Samples(*(torch.cat(pair) for pair in pairs))


@torch.no_grad()
def call(problem: Problem, low: np.ndarray, high: np.ndarray, n: int, rng: np.random.Generator) -> Samples:
    """n calls of the simulator, each with its own x and its own psi, uniform in a box.

    Raises `InputError` for y of another shape than `[n, numbers]`, `NumericalError` for a response that is not finite."""
    x = problem.truth(n, rng)
    psi = torch.from_numpy(uniform(low, high, n, rng)).to(x)
    y = problem.simulate(x, psi, rng)
    if y.dim() != 2 or len(y) != n:
        raise InputError(
            f"{n} calls of the simulator gave y of shape {list(y.shape)}; expected [{n}, numbers]"
        )
    if not bool(y.isfinite().all()):
        raise NumericalError(f"{int((~y.isfinite()).any(1).sum())} of {n} responses are not finite")
    return Samples(x, psi, y)


def learn(samples: Samples, settings: Settings, rng: np.random.Generator) -> ConditionalDensity:
    """A surrogate for psi where the samples are. Raises what `begin` and `fit` of `ConditionalDensity` raise."""
    c, y = torch.cat([samples.x, samples.psi], 1), samples.y
    surrogate = ConditionalDensity(c.shape[1], y.shape[1], settings.hidden, rng).to(y)
    surrogate.begin(c, y)
    surrogate.fit(c, y, settings.steps, settings.batch, settings.lr, rng)
    return surrogate


def gradient(
    problem: Problem, surrogate: ConditionalDensity, psi: Tensor, n: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """O and dO/dpsi by the surrogate at points psi `[m, k]`, `[m]` and `[m, k]`, from the same n pairs x, z for all."""
    x = problem.truth(n, rng).repeat(len(psi), 1)
    z = normal(rng, (n, surrogate.numbers), x).repeat(len(psi), 1)
    at = psi.detach().clone().requires_grad_()
    every = at.repeat_interleave(n, 0)
    R = problem.loss(surrogate.draw(torch.cat([x, every], 1), z), x, every).view(len(psi), n).mean(1)
    (found,) = torch.autograd.grad(R.sum(), at)
    return R.detach(), found


def descend(
    problem: Problem,
    surrogate: ConditionalDensity,
    starts: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    settings: Settings,
    rng: np.random.Generator,
) -> np.ndarray:
    """Where descents from `starts` `[m, k]` end, `[m, k]`: Adam in t = (psi - low) / (high - low), kept in [0, 1].

    Raises `NumericalError` where a gradient is not finite."""
    like = problem.truth(1, rng)
    first, width = (torch.from_numpy(one).to(like) for one in (low, high - low))
    t = ((torch.from_numpy(starts).to(like) - first) / width).requires_grad_()
    optimizer = torch.optim.Adam([t], settings.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.moves)
    for _ in range(settings.moves):
        _, slope = gradient(problem, surrogate, first + width * t.detach(), settings.draws, rng)
        if not bool(slope.isfinite().all()):
            raise NumericalError("the gradient of the objective by the surrogate is not finite")
        t.grad = slope * width
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            t.clamp_(0, 1)
    return (first + width * t.detach()).cpu().double().numpy()


def optimise(problem: Problem, settings: Settings, seed: int) -> Found:
    """The search of the module's docstring; all its randomness comes from the streams (seed, ANALYSIS, ...).

    Raises what `call`, `learn`, `descend` and `judge` raise."""
    low, high = box(problem)
    calls, path = 0, []
    samples: Samples | None = None
    best = ends = values = np.empty(0)
    for number, (n, share) in enumerate(zip(settings.calls, settings.widths)):
        rng = stream(seed, Purpose.ANALYSIS, STREAMS, number)
        if number == 0:
            a, b, starts = low, high, uniform(low, high, settings.starts, rng)
        else:
            half = share * (high - low) / 2
            a, b, starts = np.maximum(low, best - half), np.minimum(high, best + half), best[None]
        samples = call(problem, a, b, n, rng) if samples is None else samples + call(problem, a, b, n, rng)
        surrogate = learn(samples.inside(a, b), settings, rng)
        found = descend(problem, surrogate, starts, a, b, settings, rng)
        calls += n
        if number == 0:
            ends, values = found, np.array([judge(problem, psi, settings.judged, rng)[0] for psi in found])
            calls += settings.starts * settings.judged
            found = found[np.argmin(values)][None]
        best = found[0]
        path.append(best)
    value, error = judge(problem, best, 100_000, stream(seed, Purpose.ANALYSIS, STREAMS, len(path)))
    return Found(best, value, error, calls, np.array(path), ends, values)


def random_search(problem: Problem, calls: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """The best of `calls / each` random points, `[k]`, judged by `each` calls of the simulator: what a search without
    gradients is worth. Raises `InputError` for fewer calls than `each`, and what `judge` raises."""
    if not 1 <= each <= calls:
        raise InputError(f"{calls} calls, {each} for each point; expected enough for one")
    points = uniform(*box(problem), calls // each, rng)
    return points[np.argmin([judge(problem, psi, each, rng)[0] for psi in points])]


def finite_differences(
    problem: Problem, start: np.ndarray, calls: int, each: int, rng: np.random.Generator, step: float = 0.05
) -> np.ndarray:
    """Adam from `start` by central differences, `step` of the box to either side, of means over `each` calls: gradients
    without a surrogate; `[k]`. As in `descend` the rate falls to 0 over the moves that `calls` allow.

    Raises `InputError` for fewer calls than one move needs, 2 k `each`, and what `judge` raises."""
    low, high = box(problem)
    k = len(low)
    if not 1 <= 2 * k * each <= calls:
        raise InputError(
            f"{calls} calls, {each} for each of {2 * k} sides of a point; expected enough for one move"
        )
    moves = calls // (2 * k * each)
    t = torch.from_numpy((start - low) / (high - low))
    optimizer = torch.optim.Adam([t], 0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, moves)
    for _ in range(moves):
        slope = np.empty(k)
        for i in range(k):
            sides = [t.numpy().copy() for _ in range(2)]
            sides[0][i], sides[1][i] = max(0.0, sides[0][i] - step), min(1.0, sides[1][i] + step)
            below, above = (judge(problem, low + (high - low) * side, each, rng)[0] for side in sides)
            slope[i] = (above - below) / (sides[1][i] - sides[0][i])
        t.grad = torch.from_numpy(slope)
        optimizer.step()
        schedule.step()
        t.clamp_(0, 1)
    return low + (high - low) * t.numpy()


def plot(found: Sequence[Found], labels: Sequence[str], exact: np.ndarray, least: float) -> bytes:
    """A PNG file's bytes: parameters round by round less the exact ones `[k]`, and the values at the ends of the first
    round's descents beside the least one; needs matplotlib."""
    from matplotlib.figure import Figure

    from .. import COLOURS, DASHES, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        for i, one in enumerate(found):
            rounds = np.arange(1, 1 + len(one.rounds))
            for k, label in enumerate(labels):
                left.plot(
                    rounds,
                    one.rounds[:, k] - exact[k],
                    marker="o",
                    markersize=3,
                    linestyle=DASHES[i % len(DASHES)],
                    color=COLOURS[k % len(COLOURS)],
                    label=label if i == 0 else None,
                )
            right.plot(
                np.sort(one.values),
                marker="o",
                markersize=3,
                color=COLOURS[i % len(COLOURS)],
                label=f"run {i + 1}",
            )
        left.axhline(0, color="black", linewidth=0.8)
        right.axhline(least, color="black", linewidth=0.8, label="least, exact")
        left.set(xlabel="round", ylabel="parameters, less the exact ones")
        for axes in (left, right):
            axes.xaxis.get_major_locator().set_params(integer=True)
        right.set(xlabel="descents of the first round, sorted", ylabel="objective, by the simulator")
        left.legend()
        right.legend()
        return figure

    return draw()
