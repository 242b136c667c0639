"""Floating-point precision of fields."""

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def double(x: Tensor) -> Tensor:
    """x in double precision: float64, or complex128 where it is complex (`x.double()` would drop imaginary parts)."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)
