"""Samplers of the free field whose values, autocorrelation and bias are known, for the tests of the analysis."""

import numpy as np
import torch

from latticeflow.random import Purpose
from latticeflow.samplers.base import Draws, Sampler, SamplerSpec, samplers
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField, targets

torch.set_num_threads(1)
M2, SHAPE = 0.6, (8, 8)
TARGET = FreeField(shape=SHAPE, m2=M2)


class Proposal(Sampler):
    """Exact draws of a free field of another mass, with their weights; a share `zeros` of them of weight zero.

    Zeros at random leave the corrected distribution as it is.
    """

    own_density = True

    def __init__(self, target, spec):
        self.target, self.spec = target, spec
        self.other = FreeField(shape=target.shape, m2=spec.m2)

    def draw(self, state, n, rng):
        x = self.other.sample(n, rng)
        log_prob = self.target.log_prob(x).numpy()
        log_w = log_prob - (self.other.log_prob(x).numpy() - self.other.log_z)
        if self.spec.zeros:
            log_w[rng.random(n) < self.spec.zeros] = -np.inf
        return Draws(x, log_prob, log_w), None


@samplers.add("test_proposal")
class ProposalSpec(SamplerSpec):
    block: int = 4096
    streams: int = 0
    m2: float = 0.66
    zeros: float = 0.0

    def build(self, target, flow=None, device="cpu"):
        return Proposal(target, self)


class Chain(Sampler):
    """phi' = a phi + sqrt(1 - a^2) (fresh exact draw): rho of phi is a^t, that of every quadratic a^(2t)."""

    def __init__(self, target, spec):
        self.target, self.spec, self.chains, self.interacting = target, spec, spec.chains, spec.interacting
        self.other = FreeField(shape=target.shape, m2=spec.m2)

    def start(self, stream, rng):
        return {"x": self.other.sample(self.chains, rng).numpy()}

    def draw(self, state, n, rng):
        x, a, steps = torch.from_numpy(state["x"]), self.spec.a, []
        for _ in range(n // self.chains):
            if a < 1:
                x = a * x + (1 - a * a) ** 0.5 * self.other.sample(self.chains, rng)
            steps.append(x)
        info = {name: rng.uniform(0.8, 1.2, len(steps)) for name in ("acceptance", "exp_minus_dh")}
        info["smallest_acceptance"] = np.linspace(0.5, 0.7, len(steps))
        draws = torch.cat(steps)
        return Draws(draws, self.target.log_prob(draws).numpy(), info=info), {"x": x.numpy()}


class ChainSpec(SamplerSpec):
    block: int = 4096
    streams: int = 4
    chains: int = 16
    a: float = 0.8
    m2: float = M2
    interacting: bool = False

    def build(self, target, flow=None, device="cpu"):
        return Chain(target, self)


@samplers.add("test_chain")
class OneChainSpec(ChainSpec):
    pass


@samplers.add("test_biased")
class BiasedSpec(ChainSpec):
    m2: float = 0.7


@samplers.add("test_frozen")
class FrozenSpec(ChainSpec):
    a: float = 1.0


@samplers.add("test_short")
class ShortSpec(ChainSpec):
    streams: int = 1
    chains: int = 1
    block: int = 64
    a: float = 0.99


@samplers.add("test_walkers")
class WalkersSpec(ChainSpec):
    interacting: bool = True


def draw(run, kind, draws):
    """What `latticeflow sample` does, on one rank."""
    spec = samplers.find(kind)()
    sampler = spec.build(TARGET)
    ensemble = Ensemble.create(
        run.ensemble(kind),
        sampler=kind,
        settings=spec.model_dump(mode="json"),
        target=targets.table(TARGET),
        seed=5,
        weights="0" if kind == "test_proposal" else None,
        chains=sampler.chains,
        interacting=sampler.interacting,
        weighted=sampler.own_density,
    )
    blocks = draws // spec.block
    for stream in range(spec.streams if sampler.chains else blocks):
        state = sampler.start(stream, ensemble.generator(Purpose.START, stream))
        for block in range(blocks // spec.streams if sampler.chains else 1):
            rng = ensemble.generator(Purpose.DRAW, stream, block)
            drawn, state = sampler.draw(state, spec.block, rng)
            start = {"start_seconds": 0.5} if sampler.chains and block == 0 else {}
            ensemble.write(stream, block, drawn, state, seconds=0.25, **start)
    if ensemble.weighted:
        ensemble.build_chain()


DRAWS = {
    "test_proposal": 65536,
    "test_chain": 65536,
    "test_biased": 65536,
    "test_frozen": 16384,
    "test_short": 64,
    "test_walkers": 65536,
}
