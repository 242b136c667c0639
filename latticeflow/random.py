"""Keyed random streams.

A stream is named by `(seed, purpose, key...)` and nothing else, so what it yields does not depend on the
number of ranks, on the rank, or on what was drawn before. Noise is made by numpy on the CPU, on every
device: torch's CPU generator keeps only the low 32 bits of its seed, so that among some 65,000 blocks two
would share all their noise, and numpy's streams do not.
"""

from enum import IntEnum
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the file format: never renumber, only append."""

    INIT = 0  # initial weights
    TRAIN = 1  # one stream for 64 configurations of a training step
    EVALUATE = 2  # ESS during training, one stream for 1,024 draws
    START = 3  # thermalisation and tuning of a chain, one stream each
    DRAW = 4  # one stream a block
    METROPOLIS = 5  # accept/reject, one stream a block
    ANALYSIS = 6  # bootstrap and the like
    DATA = 7  # configurations of a training step that learns from an ensemble
    UNWEIGHT = 8  # which draws are kept, and which colours events are written with; one stream a block


def stream(seed: int, purpose: Purpose, *key: int) -> np.random.Generator:
    """The generator named by `(seed, purpose, *key)`; `numpy.random.SeedSequence` keeps streams apart."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(int(purpose), *key)))


_NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}


def normal(
    rng: np.random.Generator, shape, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal noise of `shape`, drawn in `dtype` (float32 or float64)."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=_NUMPY[dtype])).to(device)


def uniform(
    rng: np.random.Generator, shape, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform noise in [0, 1) of `shape`, drawn in `dtype` (float32 or float64)."""
    return torch.from_numpy(rng.random(tuple(shape), dtype=_NUMPY[dtype])).to(device)
