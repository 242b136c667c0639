"""Targets on the unit cube and samplers of them whose weights are known, for the tests of events."""

import numpy as np
import torch

from latticeflow.collider import process
from latticeflow.observables import observables
from latticeflow.observables.base import OtherTheory
from latticeflow.production.sample import sample_run
from latticeflow.samplers.base import Draws, Sampler, SamplerSpec, samplers
from latticeflow.targets import Hypercube

torch.set_num_threads(1)


class Power(Sampler):
    """Draws of which the first coordinate has the density `power u^(power - 1)`, the others uniform ones."""

    own_density = any_density = True

    def __init__(self, target, spec):
        self.target, self.spec = target, spec

    def draw(self, state, n, rng):
        u = rng.random((n, self.target.dim))
        u[:, 0] **= 1 / self.spec.power
        x = torch.from_numpy(u)
        log_prob = self.target.log_prob(x).numpy()
        return Draws(x, log_prob, log_prob - self.log_q(x).numpy()), None

    def log_q(self, x):
        return np.log(self.spec.power) + (self.spec.power - 1) * x[:, 0].log()


class PowerSpec(SamplerSpec):
    block: int = 2048
    streams: int = 0
    power: float = 1.0

    def build(self, target, flow=None, device="cpu"):
        return Power(target, self)


@samplers.add("test_flat")
class FlatSpec(PowerSpec):
    pass


@samplers.add("test_power")
class OtherSpec(PowerSpec):
    power: float = 1.6


def draw(run, kind, blocks, **settings):
    """`latticeflow sample`, of so many blocks; the ensemble."""
    overrides = [f"sampler.{kind}.{name}={value}" for name, value in settings.items()]
    size = settings.get("block", samplers.find(kind)().block)
    return sample_run(run, sampler=kind, draws=blocks * size, overrides=overrides, device="cpu")


class Walk(Sampler):
    """Metropolis with steps of one size, periodic in the cube: chains without weights."""

    def __init__(self, target, spec):
        self.target, self.spec, self.chains = target, spec, spec.chains

    def start(self, stream, rng):
        x = rng.random((self.chains, self.target.dim))
        for _ in range(200):
            x = self._step(x, rng)
        return {"x": x}

    def _step(self, x, rng):
        new = (x + self.spec.size * rng.normal(size=x.shape)) % 1
        after, before = (self.target.log_prob(torch.from_numpy(one)).numpy() for one in (new, x))
        move = np.log(rng.random(len(x))) + before < after
        return np.where(move[:, None], new, x)

    def draw(self, state, n, rng):
        x, steps = state["x"], []
        for _ in range(n // self.chains):
            x = self._step(x, rng)
            steps.append(x)
        draws = torch.from_numpy(np.concatenate(steps))
        return Draws(draws, self.target.log_prob(draws).numpy()), {"x": x}


@samplers.add("test_walk")
class WalkSpec(SamplerSpec):
    block: int = 8192
    streams: int = 2
    chains: int = 64
    size: float = 0.25

    def build(self, target, flow=None, device="cpu"):
        return Walk(target, self)


def _in_cube(target):
    return None if isinstance(target, Hypercube) else OtherTheory("a test's, of the unit cube")


@observables.primary("test_u0", "u₀", "u_0", _in_cube)
def u0(target, x):
    """The first coordinate."""
    return x[:, 0]


@process("test_flat_three", incoming=(11, -11), outgoing=(1, -1, 21))
def flat_three(p):
    """|M|^2 = 1: the cross section is the volume of phase space times the flux."""
    return torch.ones_like(p[:, 0, 0])


@process("test_gluons", incoming=(21, 21), outgoing=(21, 21, 21))
def gluons(p):
    return 1 + p[:, 2, 1].square() / p[:, 0, 0].square()


@process("test_decay", incoming=(13,), outgoing=(11, -12, 14), masses=(0.000511, 0.0, 0.0))
def decay(p):
    return torch.ones_like(p[:, 0, 0])
