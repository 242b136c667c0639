"""Multiplication by a real spectrum in Fourier space."""

import torch
from torch import Tensor


def fourier_scale(x: Tensor, log_amplitude: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`y = F^{-1} [ e^{s(k)} (F x)(k) ]` and `log_det = sum_k s(k)`.

    x `[batch, *shape]` with `dim` lattice axes; `log_amplitude` s `[*shape]`, even in k, so that y is real.
    The map is linear and symmetric; its inverse is the same with -s. Returns log_det `[batch]`.
    """
    axes = tuple(range(-dim, 0))
    half = log_amplitude[..., : x.shape[-1] // 2 + 1]
    y = torch.fft.irfftn(torch.fft.rfftn(x, dim=axes) * half.exp(), s=x.shape[-dim:], dim=axes)
    return y, log_amplitude.sum(dtype=torch.float64).expand(len(x))
