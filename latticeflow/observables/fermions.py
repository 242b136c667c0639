"""Observables of the Schwinger model's fermions; lattice units, one flavour, fields of `D = 1 - kappa H`.

With the field of the continuum, psi = sqrt(2 kappa) times that of the lattice, the condensate has a further factor 2 kappa
and the correlator (2 kappa)^2; masses stay.
"""

import math

import numpy as np
import torch
from torch import Tensor

from ..targets import Schwinger, Target
from ..targets.dirac import pieces
from .base import OtherTheory, observables
from .scalar import effective_mass


def _fermions(target: Target) -> str | None:
    return None if isinstance(target, Schwinger) else OtherTheory(f"target '{target.kind}' has no fermions")


def _time_of_at_least_four(target: Target) -> str | None:
    if isinstance(target, Schwinger) and target.shape[1] < 4:
        return f"the pion's mass needs four time slices, found {target.shape}"
    return _fermions(target)


@observables.primary("condensate", "Σ", r"\Sigma", _fermions)
def condensate(target: Schwinger, x: Tensor) -> Tensor:
    """Chiral condensate `Sigma = tr D^-1 / V` of one flavour, `<psibar psi> = -Sigma`, `[n]`.

    `tr D^-1 = 2 tr M^-1`, M on even sites. It is not renormalised: Wilson fermions have 1 / a terms, 2 at kappa = 0.
    """
    d, found = target.dirac(x), []
    for part in pieces(x, target.lattice.volume**2):
        inverse = torch.linalg.inv(d.matrix(d.phases(part), target.kappa))
        found.append(2 * inverse.diagonal(dim1=1, dim2=2).real.sum(1) / target.lattice.volume)
    return torch.cat(found)


@observables.primary("pion", "C_π(t)", r"C_\pi(t)", _fermions, vector=True)
def pion(target: Schwinger, x: Tensor) -> Tensor:
    """`C(t) = V^{-1} sum_{x, y} |D^-1(x, y)|^2` over x_1 - y_1 = t (mod L_1) and spins, t = 0, ..., L_1 - 1, `[n, L_1]`.

    The zero-momentum correlator of `ubar gamma_5 d` with its adjoint, from all sources.
    """
    side, volume = target.shape[1], target.lattice.volume
    d, found = target.dirac(x), []
    for part in pieces(x, 4 * volume**2):
        g = d.propagator(d.phases(part), target.kappa)
        square = (g.real.square() + g.imag.square()).sum((2, 4)).view(-1, *target.shape, *target.shape)
        slices = square.sum((1, 3))  # [n, time of x, time of y]
        at = [slices.roll(-t, 1).diagonal(dim1=1, dim2=2).sum(1) for t in range(side)]
        found.append(torch.stack(at, 1) / volume)
    return torch.cat(found)


@observables.derived(
    "pion_mass",
    "m_π",
    r"m_\pi",
    _time_of_at_least_four,
    ("pion",),
    "C(t) is not convex in the middle within the noise, and arcosh does not exist",
)
def pion_mass(target: Schwinger, means: dict[str, np.ndarray]) -> float:
    """The pion's effective mass `arcosh( (C(t-1) + C(t+1)) / (2 C(t)) )` at the last t < L_1 / 2, where excited
    states are least."""
    masses = effective_mass(means["pion"])
    return float(masses[-1]) if math.isfinite(masses[-1]) else math.nan
