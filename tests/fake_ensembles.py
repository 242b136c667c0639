"""Ensembles of made-up numbers, for the tests of the store."""

import numpy as np
import pytest
import torch

from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble

BLOCK = 64
RECORD = {
    "sampler": "flow",
    "settings": {"block": BLOCK, "precision": "float32", "threads": 1},
    "target": {"kind": "phi4", "shape": (2, 2), "m2": -4.0, "lam": 8.0},
    "seed": 3,
    "weights": "ab" * 32,
    "chains": 0,
    "interacting": False,
    "weighted": True,
}
CHAINS = {**RECORD, "sampler": "hmc", "weights": None, "chains": 8, "weighted": False}
ABOUT = {"precision": "float32", "batch": 64, "threads": 1, "torch": "2", "host": "here"}


def fake_draws(number: int, weighted: bool = True, n: int = BLOCK) -> Draws:
    rng = np.random.default_rng(number)
    log_w = rng.normal(size=n) if weighted else None
    x = torch.from_numpy(rng.normal(size=(n, 2, 2)).astype(np.float32))
    return Draws(x, rng.normal(size=n), log_w, {} if weighted else {"acceptance": rng.random(n // 8)})


def fake_state(number: int) -> dict:
    rng = np.random.default_rng(number)
    return {
        "x": rng.normal(size=(8, 2, 2)),
        "step": np.array(0.1),
        "counts": np.arange(8),
        "none": np.empty(0),
    }


@pytest.fixture
def flow(tmp_path):
    ensemble = Ensemble.create(tmp_path / "run" / "ensembles" / "flow", **RECORD)
    for b in range(3):
        ensemble.write(b, 0, fake_draws(b), None, 0.5, **ABOUT)
    return ensemble


@pytest.fixture
def hmc(tmp_path):
    ensemble = Ensemble.create(tmp_path / "run" / "ensembles" / "hmc", **CHAINS)
    for s in range(2):
        for b in range(3):
            about = {**ABOUT, "start_seconds": 2.0} if b == 0 else ABOUT
            ensemble.write(s, b, fake_draws(10 * s + b, weighted=False), fake_state(b), 0.5, **about)
    return ensemble
