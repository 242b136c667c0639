"""Compiled draws: the numbers of the plain flow to rounding, and a plain word where there is no compiler."""

import copy

import pytest
import torch
from tables import scramble

from latticeflow.errors import InputError
from latticeflow.flows import Continuous, Split
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.samplers.flow import FlowSamplerSpec
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, train

TARGET = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)


@pytest.mark.parametrize(
    "spec", [Split(layers=2, sines=2, site_sines=2), Continuous(modes=3, steps=3)], ids=lambda spec: spec.kind
)
def test_the_same_draws(spec):
    flow = scramble(spec.build(Lattice((4, 4)), 1), 3, scale=0.1)
    plain, compiled = (
        FlowSamplerSpec(batch=64, compile=c, precision="float64").build(TARGET, copy.deepcopy(flow))
        for c in (False, True)
    )
    a, b = (sampler.draw(None, 128, stream(1, Purpose.DRAW, 0))[0] for sampler in (plain, compiled))
    torch.testing.assert_close(a.x, b.x, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(torch.from_numpy(a.log_w), torch.from_numpy(b.log_w), rtol=1e-8, atol=1e-8)
    assert not torch.equal(a.x, b.x)  # other operations: it has been compiled
    torch.testing.assert_close(
        compiled.log_q(b.x), torch.from_numpy(b.log_prob - b.log_w), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize(
    "spec", [Split(layers=2, sines=2, site_sines=2), Continuous(modes=3, steps=3)], ids=lambda spec: spec.kind
)
def test_the_same_training(spec):
    """Two steps of a compiled training end where those of a plain one do."""
    ends = []
    for compile in (False, True):
        flow = scramble(spec.build(Lattice((4, 4)), 1), 3, scale=0.1)
        before = torch.cat([p.detach().flatten() for p in flow.parameters()])
        settings = TrainSettings(
            steps=2, batch=32, warmup=0, precision="float64", evaluate_draws=1024, compile=compile
        )
        train(flow, TARGET, settings, seed=1)
        ends.append(torch.cat([p.detach().flatten() for p in flow.parameters()]))
    assert float((ends[0] - before).abs().max()) > 1e-3
    torch.testing.assert_close(*ends, rtol=1e-8, atol=1e-8)
    assert not torch.equal(*ends)


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    flow = scramble(Split(layers=1, sines=2, site_sines=2).build(Lattice((2, 2)), 1), 3, scale=0.1)
    sampler = FlowSamplerSpec(batch=16, compile=True).build(TARGET.model_copy(update={"shape": (2, 2)}), flow)
    with pytest.raises(InputError, match=r"compile = true: torch.compile failed.*needs a C\+\+ compiler"):
        sampler.draw(None, 16, stream(1, Purpose.DRAW, 0))
