"""A classifier whose score does not depend on a nuisance, by an adversary (Louppe, Kagan, Cranmer, 1611.01046).

The score s(x) is the log-odds of signal against background. The adversary learns the density r(v | s) of the nuisance v of
background events given their score; what it gains over knowing v alone,

    I = < log r(v | s) > - < log p(v) >  <=  mutual information of v and s,        with equality for the best r,

is what the classifier pays for (of background alone, as in 1703.03507):

    classifier: minimise  L(s) + strength I,    L the cross-entropy, both classes of equal weight, nats
    adversary:  maximise  I

At strength 0 this is an ordinary classifier. At a large one the score becomes a pivot, its distribution over background
events the same at all v, as far as the adversary sees, at the price of a smaller AUC. The trade-off curve is AUC
against dependence over strengths.

v is taken by the normal quantiles of its ranks among the background events, so that < log p(v) > = -log(2 pi e) / 2, and
the scores that the adversary sees are standardised, so that making them small does not hide anything.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from .. import Purpose, auc, dense_net, stream
from ..errors import InputError
from .density import ConditionalDensity

STREAMS = 0xDEC0  # of ANALYSIS, those of this study; then what for
ENTROPY = 0.5 * math.log(2 * math.pi * math.e)  # of a standard normal number, nats


@dataclass(frozen=True)
class Labelled:
    """Features x `[n, numbers]`, label `[n]` (1 signal, 0 background) and nuisance `[n]` of independent events.

    Raises `InputError` for other shapes, labels, or numbers that are not finite, and fewer than 16 events of a class.
    """

    x: Tensor
    label: Tensor
    nuisance: Tensor

    def __post_init__(self) -> None:
        n, shapes = len(self.x), [list(one.shape) for one in (self.x, self.label, self.nuisance)]
        if self.x.dim() != 2 or shapes[1:] != [[n], [n]]:
            raise InputError(f"features, label, nuisance of shapes {shapes}; expected [n, numbers], [n], [n]")
        if not all(bool(one.isfinite().all()) for one in (self.x, self.label, self.nuisance)):
            raise InputError("features, label or nuisance with NaN or infinite numbers; expected none")
        signal, background = int((self.label == 1).sum()), int((self.label == 0).sum())
        if signal + background != n or min(signal, background) < 16:
            raise InputError(
                f"{signal} events of label 1, {background} of label 0, {n} in all; expected 16 of each and no others"
            )

    def shuffled_nuisance(self, rng: np.random.Generator) -> "Labelled":
        """The same with another event's nuisance for each, of its own class: a negative control."""
        nuisance = self.nuisance.clone()
        for value in (0, 1):
            own = (self.label == value).nonzero()[:, 0]
            nuisance[own] = nuisance[own[torch.from_numpy(rng.permutation(len(own))).to(own.device)]]
        return Labelled(self.x, self.label, nuisance)


@dataclass(frozen=True)
class Settings:
    """Of a training: `hidden` widths of the classifier and those of the `adversary`.

    `steps` of the classifier alone and then of both, the adversary moving `lead` times before each (20 times as often before
    the first); events of a `batch`, half of each class; `lr` of Adam, and `lr_adversary`, falling to 0 with half a cosine.
    Raises `InputError` for counts that are too small and rates that are not positive.
    """

    hidden: tuple[int, ...] = (32, 32)
    adversary: tuple[int, ...] = (32,)
    steps: int = 1000
    lead: int = 3
    batch: int = 512
    lr: float = 3e-3
    lr_adversary: float = 5e-3

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lead < 1 or self.batch < 4:
            raise InputError(
                f"{self.steps} steps, lead {self.lead}, batch {self.batch}; expected 1, 1 and 4 at least"
            )
        if not (0 < self.lr < math.inf and 0 < self.lr_adversary < math.inf):
            raise InputError(f"lr = {self.lr}, lr_adversary = {self.lr_adversary}; expected numbers > 0")


@dataclass(frozen=True)
class Dependence:
    """`value`, squared distance correlation, with its `error`, and the same of scores and nuisances out of other events.

    `independent`, `independent_error`: what the estimate is where there is no dependence."""

    value: float
    error: float
    independent: float
    independent_error: float

    @property
    def sigma(self) -> float:
        """How far the value is above that of independence, in errors."""
        return (self.value - self.independent) / math.hypot(self.error, self.independent_error)


@dataclass(frozen=True)
class Point:
    """One point of the trade-off: `strength`, AUC with its error, and the dependence in the background.

    `efficiency`, `efficiency_error` `[bins]`: of the cut that half of the background passes, in bins of the nuisance
    with equally many background events, whose means are `nuisance`."""

    strength: float
    auc: float
    auc_error: float
    dependence: Dependence
    nuisance: np.ndarray
    efficiency: np.ndarray
    efficiency_error: np.ndarray


class Classifier(nn.Module):
    """`s(x)`, log-odds `[n]` of x `[n, numbers]`, which is shifted and scaled to mean 0 and variance 1 first."""

    centre: Tensor
    scale: Tensor

    def __init__(self, x: Tensor, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        spread = x.std(0)
        self.register_buffer("centre", x.mean(0))
        self.register_buffer("scale", torch.where(spread > 0, spread, 1.0))
        self.network = nn.Sequential(*dense_net([x.shape[1], *hidden, 1], rng)).to(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.network((x - self.centre) / self.scale).squeeze(1)


def normal_scores(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normal quantiles of the ranks, `Phi^{-1}((rank + 1/2) / n)`; ties in random order."""
    order = np.lexsort((rng.random(len(values)), values))
    rank = np.empty(len(values))
    rank[order] = np.arange(len(values))
    return torch.special.ndtri(torch.from_numpy((rank + 0.5) / len(values))).numpy()


def distance_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Squared distance correlation of pairs a, b `[n]`, of unbiased parts (Szekely, Rizzo 2014, Ann. Stat. 42, 2382).

        R = (A.B) / sqrt((A.A) (B.B)),    A.B = sum_(i != j) A_ij B_ij / (n (n - 3)),
        A_ij = a_ij - sum_k a_ik / (n - 2) - sum_k a_kj / (n - 2) + sum_kl a_kl / ((n - 1) (n - 2)),    a_ij = |a_i - a_j|

    0 for independent numbers only, in the limit of large n; there its mean is 0, and it may be negative. Of a normal
    pair with correlation r it is `[r asin r + sqrt(1 - r^2) - r asin(r/2) - sqrt(4 - r^2) + 1] / [1 + pi/3 - sqrt 3]`
    (Szekely, Rizzo, Bakirov 2007, theorem 7). Raises `InputError` for fewer than four pairs, no variation, or numbers
    that are not finite."""
    if len(a) != len(b) or len(a) < 4:
        raise InputError(
            f"distance correlation of {len(a)} and {len(b)} numbers; expected pairs, four at least"
        )
    A, B = _centred(np.asarray(a, float)), _centred(np.asarray(b, float))
    if not (np.isfinite(A).all() and np.isfinite(B).all()):
        raise InputError("distance correlation of numbers that are not finite")
    own = (A * A).sum() * (B * B).sum()
    if own <= 0:
        raise InputError("distance correlation of numbers that are all the same")
    return float((A * B).sum() / math.sqrt(own))


def _centred(a: np.ndarray) -> np.ndarray:
    n, distance = len(a), np.abs(a[:, None] - a[None])
    row = distance.sum(0) / (n - 2)
    distance += row.sum() / (n - 1) - row[:, None] - row[None]
    np.fill_diagonal(distance, 0)
    return distance


def dependence(
    score: np.ndarray, nuisance: np.ndarray, rng: np.random.Generator, block: int = 512
) -> Dependence:
    """`distance_correlation` of the normal scores of both, so that no monotone change of either matters, as of the AUC.

    A mean over blocks of `block` pairs, with the error that their scatter gives. Raises `InputError` for fewer than two
    blocks, NaN, and what `distance_correlation` raises."""
    blocks = len(score) // block
    if blocks < 2 or len(score) != len(nuisance):
        raise InputError(
            f"{len(score)} scores, {len(nuisance)} nuisances; expected pairs, two blocks of {block} or more"
        )
    if np.isnan(score).any() or np.isnan(nuisance).any():  # which would have a rank
        raise InputError(f"{np.isnan(score).sum()} scores and {np.isnan(nuisance).sum()} nuisances are NaN")
    order = rng.permutation(len(score))[: blocks * block].reshape(blocks, block)
    s, v = normal_scores(score, rng), normal_scores(nuisance, rng)
    found = np.array([distance_correlation(s[at], v[at]) for at in order])
    other = np.array([distance_correlation(s[at], v[rng.permutation(at)]) for at in order])
    root = math.sqrt(blocks)
    return Dependence(
        float(found.mean()),
        float(found.std(ddof=1)) / root,
        float(other.mean()),
        float(other.std(ddof=1)) / root,
    )


def classify(data: Labelled, settings: Settings, seed: int) -> Classifier:
    """The classifier alone, `settings.steps` long: where all strengths start from."""
    classifier = Classifier(data.x, settings.hidden, stream(seed, Purpose.ANALYSIS, STREAMS, 0))
    _train(classifier, data, 0.0, settings, stream(seed, Purpose.ANALYSIS, STREAMS, 1))
    return classifier


def decorrelate(
    start: Classifier, data: Labelled, strength: float, settings: Settings, seed: int
) -> Classifier:
    """A copy of `start` trained further, against the adversary if strength > 0. Raises `InputError` for strength < 0."""
    if not 0 <= strength < math.inf:
        raise InputError(f"strength = {strength}; expected a finite number >= 0")
    classifier = copy.deepcopy(start)
    _train(classifier, data, strength, settings, stream(seed, Purpose.ANALYSIS, STREAMS, 2))
    return classifier


def _train(
    classifier: Classifier, data: Labelled, strength: float, settings: Settings, rng: np.random.Generator
) -> None:
    background, signal = ((data.label == value).nonzero()[:, 0] for value in (0, 1))
    v = normal_scores(data.nuisance[background].detach().cpu().double().numpy(), rng)
    nuisance = torch.from_numpy(v).to(data.x)[:, None]
    adversary = ConditionalDensity(1, 1, settings.adversary, rng).to(data.x)
    optimizer = torch.optim.Adam(classifier.parameters(), settings.lr)
    other = torch.optim.Adam(adversary.parameters(), settings.lr_adversary)
    moved = (optimizer, other) if strength else (optimizer,)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(one, settings.steps) for one in moved]
    half = settings.batch // 2

    def some(own: Tensor) -> Tensor:
        return torch.from_numpy(rng.integers(len(own), size=half)).to(own.device)

    def gain(s: Tensor, at: Tensor) -> Tensor:
        """I of background events, by the present adversary."""
        standard = (s - s.mean()) / s.std().clamp_min(1e-6)
        return adversary.log_prob(nuisance[at], standard[:, None]).mean() + ENTROPY

    for step in range(settings.steps):
        for _ in range(settings.lead * (20 if step == 0 else 1) if strength else 0):
            at = some(background)
            with torch.no_grad():
                s = classifier(data.x[background[at]])
            other.zero_grad()
            (-gain(s, at)).backward()
            other.step()
        at = some(background)
        zero, one = classifier(data.x[background[at]]), classifier(data.x[signal[some(signal)]])
        loss = 0.5 * (nn.functional.softplus(zero).mean() + nn.functional.softplus(-one).mean())
        if strength:
            loss = loss + strength * gain(zero, at)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 10.0)
        optimizer.step()
        for schedule in schedules:
            schedule.step()


@torch.no_grad()
def judge(classifier: nn.Module, data: Labelled, strength: float, seed: int, bins: int = 8) -> Point:
    """The point of the trade-off where a classifier stands, on events that it has not seen.

    Raises `InputError` for scores that are NaN, more `bins` than background events or none, and for so few of these that
    `dependence` does."""
    background = (data.label == 0).cpu().numpy()
    if not 1 <= bins <= background.sum():
        raise InputError(f"{bins} bins for {background.sum()} background events; expected 1 to as many")
    rng = stream(seed, Purpose.ANALYSIS, STREAMS, 3)
    s = torch.cat([classifier(part) for part in data.x.split(4096)]).cpu().double().numpy()
    zero, v = s[background], data.nuisance.cpu().double().numpy()[background]
    area = auc(zero, s[~background])
    rank = np.argsort(np.argsort(normal_scores(v, rng)))
    which, passed = rank * bins // len(v), zero > np.median(zero)
    count = np.bincount(which, minlength=bins)
    share = np.bincount(which, passed, bins) / count
    return Point(
        strength,
        area.value,
        area.error,
        dependence(zero, v, rng),
        np.bincount(which, v, bins) / count,
        share,
        np.sqrt(share * (1 - share) / count),
    )


def trade_off(
    train: Labelled, test: Labelled, strengths: Sequence[float], settings: Settings, seed: int
) -> list[Point]:
    """One training for each strength, all from the same classifier; judged on `test`."""
    start = classify(train, settings, seed)
    return [
        judge(decorrelate(start, train, strength, settings, seed), test, strength, seed)
        for strength in strengths
    ]


def plot(points: Sequence[Point], nuisance: str) -> bytes:
    """A PNG file's bytes: AUC against dependence, each point with its strength, and beside it the background's efficiency
    against the nuisance at the first and last strength; needs matplotlib."""
    from matplotlib.figure import Figure

    from .. import COLOURS, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(9.2, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        x, x_error = np.array([(p.dependence.value, p.dependence.error) for p in points]).T
        y, y_error = np.array([(p.auc, p.auc_error) for p in points]).T
        left.errorbar(x, y, y_error, x_error, marker="o", markersize=4, color=COLOURS[0], linewidth=0.8)
        for point, at in zip(points, zip(x, y)):
            left.annotate(f"{point.strength:g}", at, (4, -11), textcoords="offset points", fontsize=8)
        null = max(p.dependence.independent_error for p in points)
        left.axvspan(-null, null, color="black", alpha=0.15, linewidth=0, label="independent")
        left.set(xlabel="squared distance correlation in the background", ylabel="AUC")
        left.legend(loc="lower right")
        for point, colour, marker in zip((points[0], points[-1]), COLOURS[1::-1], "so"):
            right.errorbar(
                point.nuisance,
                point.efficiency,
                point.efficiency_error,
                marker=marker,
                markersize=4,
                color=colour,
                linewidth=0.8,
                label=f"strength {point.strength:g}",
            )
        right.axhline(0.5, color="black", linewidth=0.8)
        right.set(xlabel=nuisance, ylabel="background passing the median cut", ylim=(0, 1))
        right.legend()
        return figure

    return draw()
