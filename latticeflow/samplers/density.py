"""How far stored log-weights may lie from those of the stored fields: rounding, and no more."""

import math

import numpy as np
import torch

from ..errors import CoarseSolver, NumericalError
from ..flows import Flow
from ..precision import DTYPES, double
from .base import Draws, Sampler

# Largest |log w - log w recomputed| of trained flows (split, affine, tutorial; 6 to 1024 sites), found: 8 to 24
# eps sqrt(V) in float32, 15 to 64 in float64. An edited field, or a flow that amplifies rounding, is far beyond this.
ROUNDING = 1000.0
# Largest change of log q at twice the resolution that production allows: training goes on until it finds at most half of
# that among 4,096 draws, and the largest of other and of more draws is up to twice as large (trained flows, 6x6 to 14x14)
DENSITY_TOLERANCE = 0.02
SOLVED = 4096  # draws of a rank's first block whose density is checked at twice the resolution, where that can differ
CHECKED = 128  # draws of a rank's first block that are recomputed before it is stored


def tolerance(precision: str, size: int) -> float:
    """Allowed |log w - log w recomputed|: `1000 eps sqrt(V)`, eps of `precision`, V = `size` numbers in a field.

    8x8: 9.5e-4 in float32, 1.8e-12 in float64. `verify` allows this; production refuses a flow that exceeds it.
    """
    return ROUNDING * torch.finfo(DTYPES[precision]).eps * math.sqrt(size)


def log_w_error(sampler: Sampler, x: np.ndarray, log_w: np.ndarray) -> np.ndarray:
    """`|log w - (log p(x) - log q(x))|` at the stored x, float64 `[n]`, everything recomputed in float64.

    A weight of zero (log_w = -inf) is right where it is zero again.
    """
    fields = double(torch.as_tensor(x))
    with torch.no_grad():
        found = sampler.target.log_prob(fields).cpu().numpy() - sampler.log_q(fields).cpu().numpy()
    with np.errstate(invalid="ignore"):
        return np.where(log_w == found, 0.0, np.abs(log_w - found))


def check_density(sampler: Sampler, draws: Draws, allowed: float) -> None:
    """Raise `NumericalError` where the first draws' log-weights are not those of their fields within `allowed`."""
    if draws.log_w is None or not sampler.any_density:
        return
    error = log_w_error(sampler, draws.x[:CHECKED].numpy(), draws.log_w[:CHECKED])
    if not (error <= allowed).all():  # NaN is no rounding either
        raise NumericalError(
            f"log w of draw {error.argmax()} is {np.max(error):.3g} away from that of its own field, allowed "
            f"{allowed:.3g}: this flow amplifies rounding, and its draws would not be exact"
        )


def check_solver(flow: Flow, x: torch.Tensor, log_q: torch.Tensor, allowed: float) -> float:
    """Largest change of log q at twice the resolution over these draws of a flow; 0 where the density is exact.

    Raises `CoarseSolver` where it exceeds `allowed`.
    """
    error = float(flow.density_error(x, log_q).max())
    if not error <= allowed:
        raise CoarseSolver(
            f"the flow is solved in too few steps: at twice the resolution log q of a draw changes by {error:.3g}, allowed "
            f"{allowed:.3g}. Allow more (density_tolerance of the sampler), or train anew with a smaller "
            "train.density_tolerance, to which training raises the number of steps by itself"
        )
    return error
