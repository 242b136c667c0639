"""Affine transform of each component."""

from torch import Tensor

from .sums import site_sum


def affine(x: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """`y = e^s x + t`, `log_det = sum s`. All `[batch, ...]`; returns y and log_det `[batch]`."""
    return x * log_scale.exp() + shift, site_sum(log_scale)


def affine_inverse(y: Tensor, shift: Tensor, log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """`x = e^{-s} (y - t)` and the log_det of this inverse, `-sum s`."""
    return (y - shift) * (-log_scale).exp(), -site_sum(log_scale)
