"""The classifier two-sample test (Lopez-Paz and Oquab, 1610.06545): can a network tell a model's draws from the truth?"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..baselines.coordinates import coordinates
from ..baselines.networks import Dense, Halve
from ..errors import StatisticsError
from ..flows.networks import CircularConv
from ..random import Purpose, stream
from ..statistics.two_sample import Auc, auc
from ..targets import Target, Wilson
from .diagnose_draws import Draws

STREAMS = 0xD1A6  # of ANALYSIS, those of diagnose; then what for
WIDTH = 16
SITES = 256  # seen by convolutions: larger lattices are halved first
EPOCHS = 24
BATCH = 64
RATE = 4e-3
DECAY = 0.01


@dataclass(frozen=True)
class Test:
    """AUC on the held-out halves, positives being the draws in question; `reference`, `model`: the scores there."""

    auc: Auc
    reference: np.ndarray
    model: np.ndarray


def features(target: Target, x: Tensor) -> Tensor:
    """What tests of whole configurations look at: x float64 `[n, *event_shape]` -> `[n, channels, *sides]` or `[n, dim]`.

    Of gauge fields the traces `tr P / N` of all plaquettes, real and imaginary parts (of SU(2), which has none, the real
    ones): invariant under gauge transformations, which are no physics. Else the `coordinates` that baselines see.
    """
    if not isinstance(target, Wilson):
        return coordinates(target)(x)
    parts: list[Tensor] = []
    for _, _, p in target.plaquettes(x):
        if target.group == "u1":
            parts += [p.cos(), p.sin()]
        else:
            trace = p.diagonal(dim1=-2, dim2=-1).mean(-1)
            parts += [trace.real] + [trace.imag] * (target.group != "su2")
    return torch.stack(parts, 1)


def classify(target: Target, reference: Draws, model: Draws, seed: int) -> Test:
    """Train on one half of each, test on the other: halves of chains, or of blocks, that have never met.

    The score is the network's log-odds. If both are from one distribution no network does better than AUC = 1/2; else the
    AUC is a lower bound of the best one's, which is that of the likelihood ratio. The training half gives up a fifth, on
    which the best of `EPOCHS` is chosen. On one thread the result depends on draws and seed alone.

    Raises `StatisticsError` for fewer than 16 configurations in a half.
    """
    halves = [[features(target, x).float() for x in one.halves()] for one in (reference, model)]
    if (fewest := min(len(x) for pair in halves for x in pair)) < 16:
        raise StatisticsError(f"a classifier with {fewest} configurations in a half; expected 16: draw more")
    (train_0, test_0), (train_1, test_1) = halves
    network = _train(train_0, train_1, seed)
    with torch.no_grad():
        scores = [_scores(network, x) for x in (test_0, test_1)]
    return Test(auc(*scores), *scores)


class _Network(nn.Module):
    """On a lattice two convolutions and the mean over sites, so that translations do not matter; then, or of events at
    once, two dense layers. `[n, channels, *sides]` or `[n, dim]` -> `[n]`; inputs are standardised by the channel."""

    def __init__(self, x: Tensor, rng: np.random.Generator):
        super().__init__()
        axes = (0, *range(2, x.dim()))
        self.mean = x.mean(axes, keepdim=True)
        self.scale = x.std(axes, keepdim=True).clamp_min(1e-12)
        channels, sides = x.shape[1], tuple(x.shape[2:])
        modules: list[nn.Module] = []
        while math.prod(sides) > SITES and all(side % 2 == 0 for side in sides):
            modules.append(Halve())
            channels, sides = channels << len(sides), tuple(side // 2 for side in sides)
        self.halved = bool(modules)
        for _ in range(2 if sides else 0):
            modules += [CircularConv(len(sides), channels, WIDTH, 3, rng), nn.SiLU()]
            channels = WIDTH
        self.sites, hidden = nn.Sequential(*modules), WIDTH if sides else 4 * WIDTH
        self.whole = nn.Sequential(Dense(channels, hidden, rng), nn.SiLU(), Dense(hidden, hidden, rng), nn.SiLU(),
                                   Dense(hidden, 1, rng))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        y = self.sites((x - self.mean) / self.scale)
        return self.whole(y.flatten(2).mean(2) if y.dim() > 2 else y).squeeze(1)


def _train(zero: Tensor, one: Tensor, seed: int) -> nn.Module:
    """AdamW on the cross-entropy, both classes of equal weight; the weights of the epoch with the least held-out loss."""
    rng = stream(seed, Purpose.ANALYSIS, STREAMS, 0)
    x, label = torch.cat([zero, one]), torch.cat([torch.zeros(len(zero)), torch.ones(len(one))])
    weight = torch.where(label > 0, len(x) / (2 * len(one)), len(x) / (2 * len(zero)))
    order = torch.from_numpy(rng.permutation(len(x)))
    check, fit = order[: len(x) // 5], order[len(x) // 5 :]
    network = _Network(x[fit], rng)
    steps = EPOCHS * math.ceil(len(fit) / BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)

    def loss(at: Tensor, shift: tuple[int, ...] = ()) -> Tensor:
        y = torch.roll(x[at], shift, tuple(range(2, x.dim()))) if shift else x[at]
        return functional.binary_cross_entropy_with_logits(network(y), label[at], weight[at])

    best, kept = math.inf, network.state_dict()
    for _ in range(EPOCHS):
        shuffled = fit[torch.from_numpy(rng.permutation(len(fit)))]
        for at in shuffled.split(BATCH):
            # halved lattices are seen from all their corners
            shift = tuple(int(rng.integers(side)) for side in x.shape[2:]) if network.halved else ()
            optimizer.zero_grad()
            loss(at, shift).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = float(sum(loss(at) * len(at) for at in check.split(1024)) / len(check))
        if found < best:
            best, kept = found, {name: p.clone() for name, p in network.state_dict().items()}
    network.load_state_dict(kept)
    return network


def _scores(network: nn.Module, x: Tensor) -> np.ndarray:
    return torch.cat([network(part) for part in x.split(1024)]).double().numpy()
