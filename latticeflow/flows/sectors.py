"""Independent plaquettes of U(1) in two dimensions with a distribution of the topological charge of its own."""

import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..groups import wrap
from ..lattice import Lattice
from ..transforms.plaquettes import curl
from .plaquettes import IndependentPlaquettes

NODES, LARGEST, STEPS = 400, 150, 4  # of Gauss and Legendre; the largest nu, and steps of it per 1 / V


class SuppressedCharge(IndependentPlaquettes):
    """`r(U) = r_0(U) exp(-a |Q|) / < exp(-a |Q|) >_0`, r_0 that of `IndependentPlaquettes`, `a = suppression`.

    A field of charge Q has |Q| nearly zero modes of each flavour (index theorem), so that light fermions make charge rare;
    and no flow that moves links a little moves Q. Drawn by rejection.
    """

    def __init__(self, lattice: Lattice, kappa: float, suppression: float):
        super().__init__(lattice, kappa)
        self.suppression = suppression

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """n draws; as many as are missing are drawn again until there are enough."""
        kept: list[Tensor] = []
        while (missing := n - sum(map(len, kept))) > 0:
            theta = super().noise(missing, rng)
            u = torch.from_numpy(rng.random(missing)).to(theta.device)
            kept.append(theta[u < torch.exp(-self.suppression * charge(theta).abs())])
        return torch.cat(kept)

    def log_white(self, noise: Tensor) -> Tensor:
        return super().log_white(noise) - self.suppression * charge(noise).abs() - self.log_mean

    @cached_property
    def log_mean(self) -> float:
        """`log < exp(-a |Q|) >_0`."""
        q, p = self.charges
        return math.log(float(np.exp(-self.suppression * abs(q)) @ p))

    @property
    def charges(self) -> tuple[np.ndarray, np.ndarray]:
        """Q and their probabilities in r_0: `Q = round(s / 2 pi)`, s the sum of V - 1 plaquettes.

        `p(Q) = int d nu phi(nu)^{V-1} cos(2 pi nu Q) sin(pi nu) / (pi nu)`, phi that of a plaquette; the integral is a sum
        of steps, exactly, as |s| < V pi.
        """
        volume = self.lattice.volume
        x, weight = np.polynomial.legendre.leggauss(NODES)
        p, weight = np.pi * x, weight * np.exp(self.kappa * (np.cos(np.pi * x) - 1))
        nu = np.arange(0, LARGEST, 1 / (STEPS * volume))
        f = (weight @ np.cos(np.outer(p, nu)) / weight.sum()) ** (volume - 1) * np.sinc(nu)
        f[0] /= 2
        q = np.arange(-(volume // 2), volume // 2 + 1)
        found = np.maximum(np.cos(2 * np.pi * np.outer(q, nu)) @ f, 0)
        return q, found / found.sum()


def charge(theta: Tensor) -> Tensor:
    """`Q = (1 / 2 pi) sum_x wrap(P(x))`, float64 `[batch]`."""
    return (wrap(curl(theta.double())).flatten(1).sum(1) / (2 * math.pi)).round()
