"""Fourier-accelerated HMC against closed forms, the transfer matrix and quadrature, with a kernel that must fail."""

import math

import numpy as np
import pytest
import torch
from reference import free_field, transfer_matrix, two_by_two
from test_hmc import pulls, run

import latticeflow.samplers.fourier as fourier_module
from latticeflow.errors import InputError
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HMCSpec, check_reversibility, trajectory
from latticeflow.samplers.fourier import FourierMass
from latticeflow.samplers.integrators import hamiltonian
from latticeflow.statistics import mean
from latticeflow.targets import FreeField, Phi4

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
FOURIER = {"acceleration": "fourier"}


def field(shape, n=3, key=0, dtype=torch.float64):
    return torch.from_numpy(stream(8, Purpose.ANALYSIS, key).normal(size=(n, *shape))).to(dtype)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("shape", [(5,), (4, 6), (2, 3, 4), (2, 2, 1, 3)])
def test_products_with_the_mass_matrix(shape, dense, monkeypatch):
    """M by hand, `M x = mass^2 x + sum_mu [2 x(s) - x(s + mu) - x(s - mu)]`, undoes `M^{-1}`."""
    monkeypatch.setattr(fourier_module, "DENSE", 10**6 if dense else 0)
    mass = FourierMass(Lattice(shape), 1.3)
    x = field(shape)
    by_hand = 1.3**2 * x
    for axis in range(1, x.dim()):
        by_hand = by_hand + 2 * x - torch.roll(x, 1, axis) - torch.roll(x, -1, axis)
    torch.testing.assert_close(mass.white(mass.white(x)), by_hand, rtol=0, atol=1e-12)
    torch.testing.assert_close(mass.white(mass.velocity(x)), x, rtol=0, atol=1e-12)
    target = Phi4(shape=shape, m2=-0.7, lam=1.9)
    force = mass.force(target, x)
    torch.testing.assert_close(mass.white(mass.white(force)), target.force(x), rtol=0, atol=1e-11)
    assert torch.equal(x, field(shape))
    free = FreeField(shape=shape, m2=0.4)
    back = mass.white(mass.white(mass.force(free, x)))
    torch.testing.assert_close(back, free.force(x), rtol=0, atol=1e-11)


def test_every_mode_of_a_free_field_has_one_frequency():
    """mass^2 = m2: `x'' = -2 x` for all modes, so that after a time `pi / sqrt 2` all of x is `-x`; without it, not."""
    target, x = FreeField(shape=(6, 4), m2=0.3), field((6, 4))
    zero, n, half = torch.zeros_like(x), 200, math.pi / math.sqrt(2)
    mass = FourierMass(target.lattice, math.sqrt(0.3))
    torch.testing.assert_close(
        trajectory(target, x, zero, half / n, n, "omelyan", mass)[0], -x, rtol=0, atol=1e-3
    )
    assert (trajectory(target, x, zero, half / n, n, "omelyan")[0] + x).abs().max() > 0.5


@pytest.mark.parametrize("shape", [(6, 6), (16, 16)])
def test_reversible_and_of_second_order(shape):
    target = Phi4(shape=shape, m2=-4.0, lam=6.0)
    mass = FourierMass(target.lattice, 2.0)
    x, noise = 0.4 * field(shape, 64), field(shape, 64, 1)
    dx, dh = check_reversibility(target, x, noise, 0.2, 10, "omelyan", mass)
    assert dx < 1e-10 and dh < 1e-9
    errors = []
    for n in (16, 32):
        y, v = trajectory(target, x, mass.velocity(noise), 1.2 / n, n, "omelyan", mass)
        dh = hamiltonian(target.log_prob(y), mass.white(v)) - hamiltonian(target.log_prob(x), noise)
        errors.append(float(dh.square().mean().sqrt()))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_two_by_two_quadrature(precision):
    given = {} if precision == "float64" else {"fourier_mass": 2.0}
    draws, x, state = run(SQUARE, precision=precision, **given, **FOURIER)
    found = pulls(x, two_by_two(-4.0, 8.0))
    assert len(found) == 4 and all(abs(pull) < 4 for pull in found.values()), found
    assert state["fourier_mass"] in (1.0, 2.0, 4.0)
    creutz = draws.info["exp_minus_dh"]
    assert abs(creutz.mean() - 1) < 4 * creutz.std() / np.sqrt(len(creutz))


def test_a_kinetic_energy_of_another_mass_is_caught(monkeypatch):
    """Momenta of M and the kinetic energy of white noise: no longer one Hamiltonian."""
    fixed = {"step": 0.3, "length": 0.9, "fourier_mass": 1.0, "steps": 800, **FOURIER}
    reference = two_by_two(-4.0, 8.0)
    assert all(abs(pull) < 4 for pull in pulls(run(SQUARE, **fixed)[1], reference).values())
    monkeypatch.setattr(FourierMass, "white", lambda self, v: v)
    assert max(map(abs, pulls(run(SQUARE, **fixed)[1], reference).values())) > 8


def test_transfer_matrix_and_free_field():
    _, x, _ = run(Phi4(shape=(6,), m2=-4.0, lam=3.0), steps=600, fourier_mass=2.0, **FOURIER)
    found = pulls(x, transfer_matrix(6, -4.0, 3.0))
    assert len(found) == 3 and all(abs(pull) < 4 for pull in found.values()), found
    _, x, _ = run(FreeField(shape=(8, 8), m2=1.0), steps=300, fourier_mass=1.0, **FOURIER)
    found = pulls(x, free_field((8, 8), 1.0))
    assert len(found) == 2 and all(abs(pull) < 4 for pull in found.values()), found


def test_slow_free_fields_are_accelerated():
    """L = 32 sites, xi = 10: at trajectories of equal length tau_int of chi2 falls by more than four."""
    target = FreeField(shape=(32,), m2=0.01)
    fixed = {"step": 0.25, "length": 1.0, "steps": 1000, "thermalisation": 400, "chains": 32, "block": 32}
    slow = run(target, **fixed)[1]
    fast = run(target, fourier_mass=0.1, **fixed, **FOURIER)[1]
    tau = [mean(32 * x.mean(-1) ** 2).tau.value for x in (slow, fast)]
    assert tau[1] < 0.25 * tau[0], tau


def test_resume_and_repeat():
    sampler = HMCSpec(chains=8, block=8, thermalisation=100, fourier_mass=2.0, **FOURIER).build(SQUARE)
    state = sampler.start(3, stream(9, Purpose.START, 3))
    whole, end = sampler.draw(state, 48, stream(9, Purpose.DRAW, 0))
    rng = stream(9, Purpose.DRAW, 0)
    first, middle = sampler.draw(state, 16, rng)
    second, last = sampler.draw(middle, 32, rng)
    assert torch.equal(whole.x, torch.cat([first.x, second.x]))
    assert end.keys() == last.keys() and all(np.array_equal(end[name], last[name]) for name in end)
    assert end["fourier_mass"] == 2.0


def test_bad_input():
    with pytest.raises(InputError, match=r"fourier_mass = 1\.0 without acceleration"):
        HMCSpec(fourier_mass=1.0)
    with pytest.raises(InputError, match="fourier_mass is not; expected all three"):
        HMCSpec(step=0.1, length=1.0, **FOURIER)
    from test_hmc import Gaussian

    with pytest.raises(InputError, match="no scalar field on a lattice"):
        HMCSpec(**FOURIER).build(Gaussian())
