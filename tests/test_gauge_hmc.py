"""HMC on U(1), SU(2) and SU(3) against the character expansion, with kernels that must fail the same checks."""

import math

import numpy as np
import pytest
import torch
from tables import rng

from latticeflow import exact
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HMCSpec, check_reversibility, trajectory
from latticeflow.samplers.integrators import hamiltonian, rounding_bound
from latticeflow.statistics import mean
from latticeflow.targets import Wilson

torch.set_num_threads(1)
POINTS = [
    ("u1", 2.0, 0.44, 2),
    ("su2", 2.2, 0.82, 2),
    ("su3", 6.0, 0.58, 2),
]  # with a step and a number of steps


def spec(step, n_steps, **settings):
    return HMCSpec(
        **{
            "chains": 64,
            "block": 64,
            "thermalisation": 100,
            "step": step,
            "length": step * n_steps,
            **settings,
        }
    )


def plaquette(target, steps, seed=1, **settings):
    sampler = spec(**settings).build(target)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    draws, _ = sampler.draw(state, steps * sampler.chains, stream(seed, Purpose.DRAW, 0, 0))
    target.check_field(draws.x)
    np.testing.assert_array_equal(draws.log_prob, target.log_prob(draws.x).numpy())
    return draws, mean(
        (draws.log_prob / target.beta / target.lattice.volume).reshape(steps, sampler.chains).T
    )


@pytest.mark.parametrize("group, beta, step, n_steps", POINTS)
def test_plaquette_and_exp_minus_dh(group, beta, step, n_steps):
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    draws, found = plaquette(target, 120, step=step, n_steps=n_steps)
    assert abs(found.value - exact.plaquette(group, (4, 4), beta)) < 4 * found.error
    assert found.error < 4e-3
    weight = mean(draws.info["exp_minus_dh"][None])
    assert abs(weight.value - 1) < 4 * weight.error
    assert 0.6 < draws.info["acceptance"].mean() < 0.99


@pytest.mark.parametrize("group, beta, step, n_steps", POINTS[:2])
def test_without_rejection_it_fails(group, beta, step, n_steps, monkeypatch):
    monkeypatch.setattr(
        "latticeflow.samplers.hmc.accept", lambda dh, u: torch.ones_like(dh, dtype=torch.bool)
    )
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    _, found = plaquette(target, 120, step=step * 1.4, n_steps=n_steps)
    assert abs(found.value - exact.plaquette(group, (4, 4), beta)) > 8 * found.error


@pytest.mark.parametrize("integrator", ["omelyan", "leapfrog"])
@pytest.mark.parametrize("group, beta, step, n_steps", POINTS)
def test_reversible_and_of_second_order(group, beta, step, n_steps, integrator):
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    x = target.links.haar((64, 2, 4, 4), rng(1), torch.float64)
    p = torch.from_numpy(rng(2).normal(size=(64, *target.momentum_shape)))
    dx, dh = check_reversibility(target, x, p, step / 4, 8, integrator)
    assert dx < rounding_bound(x, p, 8, integrator) and dh < 1e-9
    errors = []
    for steps in (16, 32):
        y, q = trajectory(target, x, p, 0.8 / steps, steps, integrator)
        errors.append(float((hamiltonian(target.log_prob(y), q) - hamiltonian(target.log_prob(x), p)).std()))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.15)


def test_four_dimensions_at_strong_coupling():
    """`<P> = u + 4 u^5 + ...`, u = c_f / c_0 (Drouffe and Zuber, Phys. Rep. 102 (1983) 1): as in two dimensions, to 1e-5."""
    target = Wilson(shape=(3, 3, 3, 3), group="su3", beta=1.0)
    sampler = spec(0.35, 3, chains=8, block=8).build(target)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    draws, _ = sampler.draw(state, 8 * 40, stream(1, Purpose.DRAW, 0, 0))
    found = mean((draws.log_prob / target.beta / (6 * 81)).reshape(40, 8).T)
    assert abs(found.value - math.exp(-exact.string_tension("su3", 1.0))) < 4 * found.error
    assert found.error < 1.5e-3


def test_tuning_and_float32():
    target = Wilson(shape=(4, 4), group="u1", beta=2.0)
    sampler = HMCSpec(chains=64, block=64, precision="float32").build(target)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    assert state["x"].dtype == np.float32
    draws, _ = sampler.draw(state, 64 * 200, stream(1, Purpose.DRAW, 0, 0))
    found = mean((draws.log_prob / 2.0 / 16).reshape(200, 64).T)
    assert abs(found.value - exact.plaquette("u1", (4, 4), 2.0)) < 4 * found.error
    assert 0.75 < draws.info["acceptance"].mean() < 0.95
