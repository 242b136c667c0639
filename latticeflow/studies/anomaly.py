"""Anomaly detection: how well what a model misses tells configurations of another kind from those that it has seen.

A score s(x) is any function of configurations; an autoencoder's is its reconstruction error. With normal configurations x
and anomalous ones x', and a cut c,

    false(c) = P( s(x) > c ),    true(c) = P( s(x') > c ),    AUC = P( s(x') > s(x) ) + P( s(x') = s(x) ) / 2

The curve true(false) is the ROC curve and the AUC the area below it: 1/2 where the score tells nothing, below it where the
anomalous are reconstructed better than the normal. No score has a larger one than p'(x) / p(x) (Neyman and Pearson 1933),
which is known here, as targets are.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import Ensemble, Purpose, Target, auc, stream, unweight
from ..errors import InputError

Score = Callable[[Tensor], Tensor]  # x [batch, *event_shape] -> [batch], larger being more anomalous

PIECE = 1024  # configurations in one call of a score


@dataclass(frozen=True)
class Roc:
    """The ROC curve `true` against `false`, `[points]` each, rising from (0, 0) to (1, 1); `auc` with its `error`."""

    false: np.ndarray
    true: np.ndarray
    auc: float
    error: float

    @property
    def sigma(self) -> float:
        """How far the AUC is from the 1/2 of a score that tells nothing, in errors."""
        return (self.auc - 0.5) / self.error


def samples(ensemble: Ensemble, seed: int = 0) -> Tensor:
    """Its configurations, distributed as its target, `[chains, steps, *event_shape]`, float64, on the CPU.

    Of chain samplers the chains, over all streams. Independent draws are chains of one step, of samplers with weights those
    that unweighting by the largest weight keeps, by the stream (seed, UNWEIGHT). Raises `InputError` for draws
    that are not exact, without fields of all draws, or of interacting chains (emcee), and what `unweight` raises.
    """
    ensemble.require_exact("studies of anomalies")
    if ensemble.keep_fields != 1 or ensemble.interacting or not ensemble.streams:
        raise InputError(
            f"{ensemble.path}: keep_fields = {ensemble.keep_fields}, interacting: {ensemble.interacting}, "
            f"{len(ensemble.streams)} streams; expected fields of every draw, independent chains, and some"
        )
    read = [[ensemble.read(*key) for key in keys] for keys in ensemble.streams.values()]
    x = np.stack([np.concatenate([block["x"] for block in row]) for row in read])  # [streams, draws, ...]
    if ensemble.chains:  # draw i belongs to chain i % chains
        steps = x.shape[1] // ensemble.chains
        x = x.reshape(len(x), steps, ensemble.chains, *x.shape[2:]).swapaxes(1, 2)
        return torch.from_numpy(x.reshape(-1, steps, *x.shape[3:])).double()
    x = x.reshape(-1, *x.shape[2:])
    if ensemble.weighted:
        log_w = np.concatenate([block["log_w"] for row in read for block in row])
        x = x[unweight(log_w, stream(seed, Purpose.UNWEIGHT)).index]
    return torch.from_numpy(x[:, None]).double()


@torch.no_grad()
def evaluate(score: Score, x: Tensor) -> np.ndarray:
    """`score` of configurations x `[chains, steps, *event_shape]`, float64 `[chains, steps]`.

    Raises `InputError` where it is NaN.
    """
    flat = torch.cat([score(part) for part in x.flatten(0, 1).split(PIECE)])
    found = flat.double().cpu().numpy().reshape(x.shape[:2])
    if np.isnan(found).any():
        raise InputError(
            f"a score is NaN at {np.isnan(found).sum()} of {found.size} configurations; expected none"
        )
    return found


def roc(normal: np.ndarray, anomalous: np.ndarray) -> Roc:
    """The ROC curve of scores `[chains, steps]`, or `[n]` of independent ones, of normal and of anomalous configurations.

    AUC and error are those of `auc`: right for any autocorrelation in chains that know nothing of one another. The training
    set's own fluctuations are no part of the error. Raises `InputError` for fewer than two chains of either, other
    shapes, or NaN.
    """
    s, t = (np.asarray(one, dtype=np.float64) for one in (normal, anomalous))
    area = auc(s, t)
    cuts = np.unique(np.concatenate([s.ravel(), t.ravel()]))[::-1]
    false, true = (
        np.r_[0, 1 - np.searchsorted(np.sort(one, axis=None), cuts, "left") / one.size] for one in (s, t)
    )
    return Roc(false, true, area.value, area.error)


def detect(scores: Mapping[str, Score], normal: Tensor, anomalous: Tensor) -> dict[str, Roc]:
    """The ROC curve of every score on configurations `[chains, steps, *event_shape]` that no model was trained on.

    Raises what `evaluate` and `roc` raise.
    """
    return {name: roc(evaluate(score, normal), evaluate(score, anomalous)) for name, score in scores.items()}


def two_sided(score: Score, x: Tensor) -> Score:
    """`|s - median of s over x|`, x `[n, *event_shape]` normal configurations, such as those that were trained on.

    What is reconstructed better than usual is anomalous, too: typicality in place of a small error (1906.02994).
    """
    middle = float(np.median(evaluate(score, x[:, None])))
    return lambda y: (score(y) - middle).abs()


def worst(score: Score, moves: Sequence[Callable[[Tensor], Tensor]]) -> Score:
    """`max_g s(g x)`, `moves` being the elements g of a finite group, the identity among them.

    A symmetry of both kinds of configurations tells nothing about which is which, but a trained score need not be invariant:
    a network may have learned to reconstruct one well of two. The mean over g would let one well hide what the other shows.
    Raises `InputError` for no moves.
    """
    if not moves:
        raise InputError("the worst of no moves; expected those of a group, the identity among them")
    return lambda x: torch.stack([score(move(x)) for move in moves]).amax(0)


def likelihood_ratio(normal: Target, anomalous: Target) -> Score:
    """`log p'(x) - log p(x)` up to a constant: the best of all scores, for whom both targets are known.

    Infinite outside the support of one of them, 0 outside both.
    """

    def score(x: Tensor) -> Tensor:
        there, here = anomalous.log_prob(x), normal.log_prob(x)
        return torch.where((there == -math.inf) & (here == -math.inf), 0.0, there - here)

    return score


def plot(rocs: Mapping[str, Mapping[str, Roc]]) -> bytes:
    """A PNG file's bytes: one panel for each direction, in it the ROC curve of each score; needs matplotlib."""
    from matplotlib.figure import Figure

    from .. import COLOURS, DASHES, bracket, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(4.6 * len(rocs), 4.6), layout="constrained")
        for axes, (title, curves) in zip(figure.subplots(1, len(rocs), squeeze=False)[0], rocs.items()):
            for i, (name, one) in enumerate(curves.items()):
                look = {
                    "color": COLOURS[i % len(COLOURS)],
                    "linestyle": DASHES[(i + i // len(COLOURS)) % len(DASHES)],
                }
                axes.plot(one.false, one.true, label=f"{name}: {bracket(one.auc, one.error)}", **look)
            axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
            axes.set(
                title=title,
                xlabel="normal taken for anomalous",
                ylabel="anomalous found",
                xlim=(0, 1),
                ylim=(0, 1),
            )
            axes.legend(loc="lower right", title="AUC", fontsize=8)
        return figure

    return draw()
