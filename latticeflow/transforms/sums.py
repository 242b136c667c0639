"""Sums over a configuration."""

import torch
from torch import Tensor


def site_sum(x: Tensor) -> Tensor:
    """Sum over all but the first axis, accumulated in float64: log-densities are float64 for any field dtype."""
    return x.flatten(1).sum(1, dtype=torch.float64)
