"""Stored chains of the free field with known autocorrelations, and decks of models: for the tests of baselines."""

from pathlib import Path

import numpy as np
import torch
from fake_ensembles import ABOUT, CHAINS
from tables import rng

from latticeflow.baselines import Model
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble
from latticeflow.targets import Camel, FreeField, Phi4, Wilson, targets
from latticeflow.training import FitSettings, fit

FREE = FreeField(shape=(4, 4), m2=0.5)
TARGETS = [  # every dimension, odd sides, angles, the cube
    Phi4(shape=(6,), m2=-1.0, lam=1.0),
    Phi4(shape=(8, 4), m2=-4.0, lam=8.0),
    Phi4(shape=(3, 5), m2=-4.0, lam=8.0),
    Phi4(shape=(4, 2, 6), m2=-4.0, lam=8.0),
    Phi4(shape=(2, 4, 2, 4), m2=-4.0, lam=8.0),
    Wilson(shape=(4, 4), group="u1", beta=2.0),
    Camel(dimensions=3),
]


def store_chains(
    path: Path,
    target=FREE,
    steps: int = 64,
    blocks: int = 2,
    streams: int = 2,
    a: float = 0.0,
    sample=None,
    **record,
) -> Ensemble:
    """Chains `x' = a x + sqrt(1 - a^2) y`, y of `sample` (an exact draw): 8 a stream, `steps` a block.

    Even functions of x that are quadratic have rho(t) = a^(2 t), so that tau_int = (1 + a^2) / (2 (1 - a^2)).
    """
    record, sample = {**CHAINS, "target": targets.table(target), **record}, sample or target.sample
    chains = record["chains"]
    record["settings"] = {**CHAINS["settings"], "block": chains * steps, "precision": "float64"}
    ensemble = Ensemble.create(path, **record)
    for s in range(streams):
        generator = rng(81, s)
        x = sample(chains, generator)
        for b in range(blocks):
            kept = []
            for _ in range(steps):
                x = a * x + np.sqrt(1 - a * a) * sample(chains, generator)
                kept.append(x)
            draws = torch.cat(kept)
            ensemble.write(s, b, Draws(draws, target.log_prob(draws).numpy()), None, 0.5, **ABOUT)
    return ensemble


def train_on(x: torch.Tensor, model: Model, steps: int, lr: float, batch: int | None = None) -> Model:
    """`model` trained on the configurations x by Adam with a rate that falls to 0: the loop in ten lines."""
    model.double().begin([x])
    settings = FitSettings(data="x", steps=steps, lr=lr)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        generator = rng(82, step)
        rows = slice(None) if batch is None else torch.from_numpy(generator.integers(len(x), size=batch))
        optimizer.param_groups[0]["lr"] = settings.lr_at(step)
        optimizer.zero_grad()
        model.loss("model", x[rows], generator).backward()
        optimizer.step()
    model.finish([x])
    return model


def fit_stored(
    model: Model, ensemble: Ensemble, target=FREE, seed: int = 5, weights=None, **settings
) -> dict:
    """`fit` on a stored ensemble, float64."""
    settings = {"data": str(ensemble.path), "thin": 1, "augment": False, "precision": "float64", **settings}
    record = fit(model, target, FitSettings(**settings), seed=seed, weights=weights)
    assert record is not None
    return record
