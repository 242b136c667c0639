"""Embedded clusters for scalar fields (Brower and Tamayo, Phys. Rev. Lett. 62, 1087, 1989), in turn with HMC."""

from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice
from ..precision import double
from ..targets import FreeField, LatticeTarget, Phi4, Target
from .base import samplers
from .fourier import FourierMass
from .hmc import HMC, HMCSpec, Update

COUPLING = 4.0  # of a bond: its energies with equal and with opposite signs differ by 4 |phi_x phi_y|


@samplers.add("cluster")
class ClusterSpec(HMCSpec):
    """`[sampler.cluster]`: the settings of HMC, and one more.

    `seeds`: sites from which clusters grow in one update of one chain; one gives Wolff's algorithm. Many flip
    nearly all large clusters at once, which moves none of them against the others; few leave most of them where
    they are. At L / xi = 4, tau_int of chi2 was found least near four at 8x8 and at 20x20.
    """

    seeds: int = Field(4, ge=1)

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "Cluster":
        """The sampler. Raises `InputError` for a target whose action is not `kinetic + even function of each site`."""
        if not isinstance(target, Phi4 | FreeField):
            raise InputError(
                f"cluster: target '{target.kind}' is not known to be the kinetic term and an even function of each "
                "site, as embedded clusters need; expected phi4 or free. Use hmc"
            )
        self.require_unbounded(target)
        return Cluster(target, self, device)


class Cluster(HMC):
    """C chains at once, all moved by (a), then by (b), an HMC trajectory.

    (a) With `phi_x = s_x |phi_x|` and |phi| fixed, `S = const - 2 sum_<xy> |phi_x phi_y| s_x s_y`: an Ising model
    whose bonds <xy> = (x, x + mu) have couplings `J_xy = 2 |phi_x phi_y|`; on a side of two the bond between two
    neighbours is there twice. As Fortuin and Kasteleyn, Swendsen and Wang:

    1. a bond is active with probability `1 - exp(-2 J_xy) = 1 - exp(-4 |phi_x phi_y|)` where the signs are equal,
       never where they are not;
    2. given the active bonds, all choices of one sign for each cluster are equally likely, so that any set of
       clusters may be flipped that depends on the bonds and on fresh noise, not on the signs. Here those are
       flipped that hold one of `seeds` random sites; and then, with probability 1/2, the sign of the whole
       configuration.

    Swendsen and Wang give each cluster a sign of its own, for which clusters must be labelled; Wolff flips the one
    cluster of one random site. Growing from seeds needs bits only: 64 chains are one word, and a step along all bonds
    is a few bitwise operations. (b) changes |phi|, and is tuned with (a) before each trajectory. Both leave
    `exp(-S)` invariant, hence so does their cycle.

    (a) runs in numpy on the CPU whatever the device. State and `Draws.info`: HMC's.
    """

    overhead = 12.0  # (a) in force evaluations of phi^4 (measured, one core, 256 chains in float32)

    def update(
        self,
        x: Tensor,
        log_prob: Tensor,
        rng: np.random.Generator,
        step: float,
        n_steps: int,
        mass: FourierMass | None = None,
    ) -> Update:
        """(a) and (b). `log_prob` is not needed: that of the flipped x is computed anew."""
        x = self.flip(x, rng)
        return super().update(x, self.target.log_prob(double(x)), rng, step, n_steps, mass)

    def flip(self, x: Tensor, rng: np.random.Generator) -> Tensor:
        """(a): a new x, with the signs of clusters changed."""
        lattice = cast(LatticeTarget, self.target).lattice
        phi = np.ascontiguousarray(x.flatten(1).cpu().numpy().T)  # [V, C]: chains are the bits of a word
        active = activate(phi, lattice, rng)
        seeds = np.zeros(phi.shape, dtype=bool)
        number = cast(ClusterSpec, self.spec).seeds
        seeds[rng.integers(lattice.volume, size=(number, self.chains)), np.arange(self.chains)] = True
        flipped = grow(pack(seeds), pack(active), lattice) ^ pack(rng.random(self.chains) < 0.5)
        signs = torch.from_numpy(unpack(flipped, self.chains).T.copy()).to(x.device).view(x.shape)
        return torch.where(signs, -x, x)


@lru_cache(maxsize=32)
def _forward(lattice: Lattice) -> np.ndarray:
    """The site `x + mu` for each mu and x, `[D, V]`."""
    sites = np.arange(lattice.volume).reshape(lattice.shape)
    return np.stack([np.roll(sites, -1, mu).ravel() for mu in range(lattice.dim)])


@lru_cache(maxsize=32)
def _backward(lattice: Lattice) -> np.ndarray:
    """The site `x - mu` for each mu and x, `[D, V]`."""
    return np.argsort(_forward(lattice), axis=1)


def activate(phi: np.ndarray, lattice: Lattice, rng: np.random.Generator) -> np.ndarray:
    """Which bonds (x, x + mu) are active, bool `[D, V, C]`, for phi `[V, C]`.

    `E < 4 phi_x phi_{x+mu}`, E a standard exponential variate: probability `1 - exp(-4 phi_x phi_{x+mu})` for equal
    signs, 0 otherwise. Each of the two bonds of a side of two has its own variate.
    """
    active = np.empty((lattice.dim, *phi.shape), dtype=bool)
    for mu, neighbour in enumerate(_forward(lattice)):
        weight = phi[neighbour]
        weight *= phi
        weight *= COUPLING
        np.less(rng.standard_exponential(phi.shape, dtype=phi.dtype), weight, out=active[mu])
    return active


def grow(seeds: np.ndarray, active: np.ndarray, lattice: Lattice) -> np.ndarray:
    """All sites that active bonds join to a seed; `seeds` words `[V, words]`, `active` `[D, V, words]`."""
    neighbours = np.concatenate([_forward(lattice), _backward(lattice)])
    bonds = np.concatenate([active, [one[back] for one, back in zip(active, _backward(lattice))]])
    while True:
        reached = seeds | np.bitwise_or.reduce(seeds[neighbours] & bonds, axis=0)
        if np.array_equal(reached, seeds):
            return seeds
        seeds = reached


def pack(bits: np.ndarray) -> np.ndarray:
    """bool `[..., C]` as words `[..., words]` of 64 chains each, the last filled up with zeros."""
    octets = np.packbits(bits, axis=-1)
    missing = -octets.shape[-1] % 8
    if missing:
        octets = np.concatenate([octets, np.zeros((*octets.shape[:-1], missing), np.uint8)], axis=-1)
    return octets.view(np.uint64)


def unpack(words: np.ndarray, chains: int) -> np.ndarray:
    """The inverse of `pack`, bool `[..., chains]`."""
    return np.unpackbits(words.view(np.uint8), axis=-1, count=chains).view(bool)
