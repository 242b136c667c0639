"""Heat bath, over-relaxation and winding updates against the character expansion, with kernels that must fail."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from tables import rng

import latticeflow.transforms.heatbath as module
from latticeflow import exact
from latticeflow.errors import InputError
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HeatBathSpec
from latticeflow.samplers.heatbath import instanton
from latticeflow.statistics import mean
from latticeflow.targets import Phi4, Schwinger, Wilson
from latticeflow.transforms.heatbath import su2_heat_bath, update_links

torch.set_num_threads(1)
POINTS = [("u1", 2.0), ("su2", 2.2), ("su3", 6.0)]


@pytest.mark.parametrize("kappa", [0.0, 0.3, 1.4, 1.6, 4.0, 60.0])
def test_su2_heat_bath(kappa):
    """`<a0> = I_2(kappa) / I_1(kappa)`, `<a0^2> = 1 - 3 <a0> / kappa`, and the rest has no direction."""
    p, q = su2_heat_bath(torch.full((200, 500), kappa, dtype=torch.float64), rng(1))
    x = torch.stack([p.real, p.imag, q.real, q.imag], -1).reshape(-1, 4)
    torch.testing.assert_close(x.square().sum(1), torch.ones(len(x), dtype=torch.float64))
    first = scipy.special.ive(2, kappa) / scipy.special.ive(1, kappa) if kappa else 0.0
    second = 1 - 3 * first / kappa if kappa else 0.25
    for found, expected in [
        (x[:, 0], first),
        (x[:, 0] ** 2, second),
        (x[:, 1], 0),
        (x[:, 2], 0),
        (x[:, 3], 0),
    ]:
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / len(x) ** 0.5
    other = scipy.special.ive(2, kappa + 0.1 * (1 + kappa)) / scipy.special.ive(1, kappa + 0.1 * (1 + kappa))
    assert abs(float(x[:, 0].mean()) - other) > 8 * float(x[:, 0].std()) / len(x) ** 0.5  # control


def run(target, steps, **settings):
    spec = HeatBathSpec(**{"chains": 64, "block": 64, "thermalisation": 30, "overrelaxation": 1, **settings})
    sampler = spec.build(target)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    draws, state = sampler.draw(state, steps * 64, stream(1, Purpose.DRAW, 0, 0))
    target.check_field(draws.x)
    np.testing.assert_array_equal(draws.log_prob[-64:], state["log_prob"])
    return draws


def plaquette(target, draws):
    return mean((draws.log_prob / target.beta / target.lattice.volume).reshape(-1, 64).T)


@pytest.mark.parametrize("overrelaxation", [0, 1])
@pytest.mark.parametrize("group, beta", POINTS)
def test_plaquette(group, beta, overrelaxation):
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    found = plaquette(target, run(target, 100, overrelaxation=overrelaxation))
    assert abs(found.value - exact.plaquette(group, (4, 4), beta)) < 4 * found.error
    assert found.error < 3e-3


@pytest.mark.parametrize("group, beta", POINTS)
def test_a_heat_bath_of_another_beta_fails(group, beta, monkeypatch):
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    angles, matrices = module._angles, module._matrices
    monkeypatch.setattr(module, "_angles", lambda u, a, b, rng: angles(u, a, 1.1 * b, rng))
    monkeypatch.setattr(module, "_matrices", lambda u, a, b, rng: matrices(u, a, 1.1 * b, rng))
    found = plaquette(target, run(target, 100))
    assert abs(found.value - exact.plaquette(group, (4, 4), beta)) > 8 * found.error


@pytest.mark.parametrize("group, beta", POINTS)
def test_over_relaxation_keeps_the_action_and_moves_all_links(group, beta):
    target = Wilson(shape=(4, 2, 4), group=group, beta=beta)
    x = target.links.haar((8, 3, 4, 2, 4), rng(2), torch.float64)
    y = update_links(target, x, None)
    torch.testing.assert_close(target.action(y), target.action(x), rtol=1e-10, atol=1e-10)
    assert target.distance(x, y).flatten(3).amax(-1).min() > 1e-4


@pytest.mark.parametrize("shape", [(4, 4), (6, 4), (2, 8)])
def test_an_instanton(shape):
    """2 pi / V on every plaquette; adding it raises Q by one as long as no plaquette passes pi."""
    target, volume = Wilson(shape=shape, group="u1", beta=1.0), math.prod(shape)
    field = instanton(shape)[None]
    (_, _, p) = next(target.plaquettes(field))
    torch.testing.assert_close(p.cos(), torch.full_like(p, math.cos(2 * math.pi / volume)))
    torch.testing.assert_close(p.sin(), torch.full_like(p, math.sin(2 * math.pi / volume)))
    assert measure(target, field, "charge")["charge"].tolist() == [1.0]


def test_winding_moves_the_charge_where_all_else_is_frozen():
    """8x8, beta = 6: chi_Q of the character expansion; without winding updates Q stays where the cold start left it."""
    target = Wilson(shape=(8, 8), group="u1", beta=6.0)
    settings = dict(overrelaxation=1, thermalisation=60)
    draws = run(target, 150, winding=2, **settings)
    q = measure(target, draws.x, "charge")["charge"].reshape(-1, 64).T
    squared = mean(q**2 / 64)
    assert abs(squared.value - exact.topological_susceptibility((8, 8), 6.0)) < 4 * squared.error
    assert squared.error < 4e-4
    found = plaquette(target, draws)
    assert abs(found.value - exact.plaquette("u1", (8, 8), 6.0)) < 4 * found.error
    assert 0.2 < draws.info["winding_acceptance"].mean() < 0.9
    frozen = measure(target, run(target, 60, **settings).x, "charge")["charge"]
    assert (frozen**2).mean() / 64 < 0.5 * exact.topological_susceptibility((8, 8), 6.0)


def test_the_next_block_goes_on(request):
    target = Wilson(shape=(2, 4), group="su2", beta=1.5)
    sampler = HeatBathSpec(chains=4, block=4, thermalisation=2, precision="float32").build(target)
    state = sampler.start(0, rng(3))
    assert state["x"].dtype == np.complex64
    one, after = sampler.draw(state, 8, rng(4))
    two, again = sampler.draw(state, 8, rng(4))
    assert torch.equal(one.x, two.x) and np.array_equal(after["x"], again["x"])
    assert np.array_equal(one.x[-4:].numpy(), after["x"])


@pytest.mark.parametrize(
    "spec, target, message",
    [
        (dict(), Phi4(shape=(4, 4), m2=1.0, lam=1.0), "no sum over links with staples; expected 'wilson'"),
        (
            dict(),
            Schwinger(shape=(4, 4), beta=2.0, kappa=0.2),
            "no sum over links with staples; expected 'wilson'",
        ),
        (dict(), Wilson(shape=(4, 5), group="u1", beta=1.0), "even sides, found"),
        (dict(winding=1), Wilson(shape=(4, 4), group="su2", beta=1.0), "winding updates are known for u1"),
        (dict(winding=1), Wilson(shape=(4, 4, 4), group="u1", beta=1.0), "winding updates are known for u1"),
        (dict(block=100), Wilson(shape=(4, 4), group="u1", beta=1.0), "not a multiple of chains"),
    ],
)
def test_bad_input(spec, target, message):
    with pytest.raises(InputError, match=message):
        HeatBathSpec(**spec).build(target)
    good = HeatBathSpec(chains=4, block=4).build(Wilson(shape=(4, 4), group="u1", beta=1.0))
    for state, n in ((None, 4), ({"x": np.zeros((4, 2, 4, 2))}, 4), ({"x": np.zeros((4, 2, 4, 4))}, 3)):
        with pytest.raises(InputError, match="expected"):
            good.draw(state, n, rng(5))
