"""HMC against closed forms, the transfer matrix and quadrature, with kernels that must fail the same checks."""

from typing import ClassVar

import numpy as np
import pytest
import torch
from reference import free_field, transfer_matrix, two_by_two

import latticeflow.samplers.hmc as hmc_module
from latticeflow.errors import InputError, StatisticsError
from latticeflow.random import Purpose, normal, stream
from latticeflow.samplers import HMCSpec, check_reversibility, samplers, trajectory, tuning
from latticeflow.samplers.integrators import SCHEMES, hamiltonian, rounding_bound
from latticeflow.statistics import mean
from latticeflow.targets import FreeField, Phi4, Target

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
INTEGRATORS = ("omelyan", "leapfrog")


def run(target, steps=800, seed=1, **settings):
    """Draws of one stream and their field as `[chains, steps, V]`."""
    spec = HMCSpec(**{"chains": 128, "block": 128, "thermalisation": 200, **settings})
    sampler = spec.build(target)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    draws, state = sampler.draw(state, steps * spec.chains, stream(seed, Purpose.DRAW, 0, 0))
    return draws, draws.x.double().reshape(steps, spec.chains, -1).transpose(0, 1).numpy(), state


def observables(x):
    m = x.mean(-1)
    return {
        "phi2": (x**2).mean(-1),
        "phi4": (x**4).mean(-1),
        "chi2": x.shape[-1] * m**2,
        "abs_m": np.abs(m),
    }


def pulls(x, reference):
    """Pull of every observable that the reference knows."""
    found = {}
    for name, series in observables(x).items():
        if name in reference:
            estimate = mean(series)
            found[name] = (estimate.value - reference[name]) / estimate.error
    return found


# the integrators


@pytest.fixture(scope="module")
def equilibrium():
    """32,768 configurations at 4x4, and a function that makes one trajectory from each and returns dH."""
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    x = run(target, steps=256)[0].x
    p = normal(stream(3, Purpose.ANALYSIS), x.shape, dtype=torch.float64)

    def energy_errors(integrator, n_steps, length=1.2):
        y, q = trajectory(target, x, p, length / n_steps, n_steps, integrator)
        return (hamiltonian(target.log_prob(y), q) - hamiltonian(target.log_prob(x), p)).numpy()

    return energy_errors


def rms(dh):
    return np.sqrt(np.square(dh).mean())


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_errors_of_energy_are_of_second_order(integrator, equilibrium):
    """At fixed length rms dH ~ eps^2, and <dH> = <dH^2> / 2 ~ eps^4, which is <exp(-dH)> = 1 expanded."""
    coarse, fine = equilibrium(integrator, 16), equilibrium(integrator, 32)
    assert np.log2(rms(coarse) / rms(fine)) == pytest.approx(2, abs=0.1)
    for dh in (coarse, fine):
        difference = dh - dh**2 / 2
        assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(len(dh))
        creutz = np.exp(-dh)
        assert abs(creutz.mean() - 1) < 4 * creutz.std() / np.sqrt(len(dh))


def test_mean_error_of_energy_is_of_fourth_order(equilibrium):
    """Leapfrog, whose <dH> stands out of its noise: the statistical error of the exponent is 0.25."""
    coarse, fine = equilibrium("leapfrog", 12), equilibrium("leapfrog", 24)
    assert np.log2(coarse.mean() / fine.mean()) == pytest.approx(4, abs=1)


def test_omelyan_is_better_than_leapfrog_at_equal_cost(equilibrium):
    """About tenfold at equal step (hep-lat/0505020), so better at twice the forces per step."""
    assert rms(equilibrium("omelyan", 16)) < 0.15 * rms(equilibrium("leapfrog", 16))
    assert rms(equilibrium("omelyan", 8)) < 0.5 * rms(equilibrium("leapfrog", 16))


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_reversibility(integrator):
    target = Phi4(shape=(8, 8), m2=-4.0, lam=6.0)
    rng = stream(5, Purpose.ANALYSIS)
    x = 0.5 * normal(rng, (16, 8, 8), dtype=torch.float64)
    p = normal(rng, (16, 8, 8), dtype=torch.float64)
    before = x.clone(), p.clone()
    dx, dh = check_reversibility(target, x, p, 0.1, 20, integrator)
    assert dx < 1e-10 and dh < 1e-10
    assert torch.equal(x, before[0]) and torch.equal(p, before[1])


def test_a_lopsided_scheme_fails_both_checks(monkeypatch, equilibrium):
    monkeypatch.setitem(SCHEMES, "lopsided", (0.3, 1.0, 0.7))
    coarse, fine = equilibrium("lopsided", 32), equilibrium("lopsided", 64)
    assert np.log2(rms(coarse) / rms(fine)) < 1.3
    target = FreeField(shape=(4, 4), m2=1.0)
    x = target.sample(4, stream(1, Purpose.ANALYSIS))
    assert check_reversibility(target, x, torch.ones_like(x), 0.1, 10, "lopsided")[0] > 1e-3


CHECKED = {"chains": 32, "block": 64, "thermalisation": 100}


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_the_check_on_request_changes_no_draw(integrator, precision):
    """Same bytes with and without it, from one generator for start and draws; its result is in the state."""
    found = {}
    for check in (False, True):
        spec = HMCSpec(**CHECKED, integrator=integrator, precision=precision, check_reversibility=check)
        sampler, rng = spec.build(SQUARE), stream(6, Purpose.START, 0)
        start = sampler.start(0, rng)
        found[check] = start, *sampler.draw(start, 64, rng)
    (plain, draws, _), (start, same, after) = found[False], found[True]
    assert draws.x.numpy().tobytes() == same.x.numpy().tobytes()
    assert set(start) - set(plain) == {"reversibility_dx", "reversibility_dh"}
    x = torch.from_numpy(start["x"])
    bound = rounding_bound(x, torch.full_like(x, 5.0), int(start["n_steps"]), integrator)
    assert 0 < start["reversibility_dx"] < bound < (1e-10 if precision == "float64" else 0.01)
    assert start["reversibility_dh"] < (1e-12 if precision == "float64" else 1e-3)
    assert after["reversibility_dx"] == start["reversibility_dx"]


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_the_check_on_request_stops_a_lopsided_scheme(monkeypatch, precision):
    monkeypatch.setitem(SCHEMES, "omelyan", (0.3, 1.0, 0.7))
    settings = {**CHECKED, "precision": precision, "step": 0.1, "length": 1.0}
    HMCSpec(**settings).build(SQUARE).start(0, stream(6, Purpose.START, 0))
    with pytest.raises(StatisticsError, match=f"away from its start.*{precision} rounding allows"):
        HMCSpec(**settings, check_reversibility=True).build(SQUARE).start(0, stream(6, Purpose.START, 0))


def test_trajectory_of_a_harmonic_oscillator():
    """One site, m2 = 1: `x'' = -2 x`, so x(t) = cos(sqrt 2 t) from x = 1, p = 0; errors fall as eps^2."""
    target = FreeField(shape=(1,), m2=1.0)
    one = torch.ones(1, 1, dtype=torch.float64)
    for integrator in INTEGRATORS:
        errors = [
            float((trajectory(target, one, 0 * one, 2 / n, n, integrator)[0] - np.cos(np.sqrt(8))).abs())
            for n in (50, 100)
        ]
        assert errors[1] < 1e-4
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


# known answers


@pytest.mark.parametrize("integrator", INTEGRATORS)
def test_free_field(integrator):
    reference = free_field((8, 8), 1.0)
    assert reference["phi2"] == pytest.approx(0.127086998845, abs=1e-12)
    _, x, _ = run(FreeField(shape=(8, 8), m2=1.0), steps=500, integrator=integrator)
    found = pulls(x, reference)
    assert set(found) == {"phi2", "chi2"} and all(abs(pull) < 4 for pull in found.values()), found


@pytest.mark.parametrize(
    "integrator, precision", [("omelyan", "float64"), ("leapfrog", "float64"), ("omelyan", "float32")]
)
def test_two_by_two_quadrature(integrator, precision):
    reference = two_by_two(-4.0, 8.0)
    assert reference["phi2"] == pytest.approx(0.171434423240, abs=1e-11)
    assert reference["phi4"] == pytest.approx(0.056169583896, abs=1e-11)
    assert reference["abs_m"] == pytest.approx(0.2894756228, abs=1e-9)
    draws, x, _ = run(SQUARE, integrator=integrator, precision=precision)
    found = pulls(x, reference)
    assert len(found) == 4 and all(abs(pull) < 4 for pull in found.values()), found
    assert mean(observables(x)["phi2"]).error < 0.004 * reference["phi2"]
    assert draws.x.dtype == getattr(torch, precision)
    np.testing.assert_array_equal(draws.log_prob, SQUARE.log_prob(draws.x.double()).numpy())


@pytest.mark.parametrize("side, m2, lam", [(6, -4.0, 3.0), (3, 0.5, 1.0), (2, -1.0, 0.5), (1, -2.0, 1.0)])
def test_transfer_matrix(side, m2, lam):
    _, x, _ = run(Phi4(shape=(side,), m2=m2, lam=lam), steps=500)
    found = pulls(x, transfer_matrix(side, m2, lam))
    assert len(found) == 3 and all(abs(pull) < 4 for pull in found.values()), found


def test_virial_and_creutz_from_the_default_start():
    """<sum phi dS/dphi> = V and <exp(-dH)> = 1 at E1, where hot starts were seen to hide stuck chains."""
    target = Phi4(shape=(6, 6), m2=-4.0, lam=6.975)
    draws, x, state = run(target, steps=1000)
    virial = -(draws.x * target.force(draws.x)).flatten(1).sum(1).reshape(1000, 128).T.numpy()
    estimate = mean(virial)
    assert abs(estimate.value - 36) < 4 * estimate.error and estimate.error < 0.003 * 36
    creutz = draws.info["exp_minus_dh"]
    assert abs(creutz.mean() - 1) < 4 * creutz.std() / np.sqrt(len(creutz))
    chi2 = mean(observables(x)["chi2"])
    assert abs(chi2.value - 1.0631) < 4 * np.hypot(chi2.error, 0.0004)
    # acceptance: near what was tuned for, and no chain far below
    assert draws.info["acceptance"].mean() == pytest.approx(0.85, abs=0.05)
    assert draws.info["smallest_acceptance"][-1] > 0.75
    assert state["accepted"].min() / 1000 == draws.info["smallest_acceptance"][-1]
    assert state["accepted"].mean() / 1000 == pytest.approx(draws.info["acceptance"].mean(), abs=1e-12)


@pytest.mark.long
@pytest.mark.parametrize(
    "side, lam, phi2, chi2",
    [
        (6, 6.975, (0.161400, 13e-6), (1.0631, 4e-4)),
        (8, 6.008, (0.183885, 15e-6), (1.8973, 9e-4)),
        (10, 5.550, (0.198994, 15e-6), (2.905, 2e-3)),
    ],
)
def test_points_of_long_runs(side, lam, phi2, chi2):
    """Two million configurations each, in 16 blocks of which only the observables are kept."""
    sampler = HMCSpec(chains=256, block=256).build(Phi4(shape=(side, side), m2=-4.0, lam=lam))
    state = sampler.start(0, stream(2, Purpose.START, 0))
    blocks = []
    for block in range(16):
        draws, state = sampler.draw(state, 500 * 256, stream(2, Purpose.DRAW, 0, block))
        blocks.append(observables(draws.x.reshape(500, 256, -1).transpose(0, 1).numpy()))
    for name, (value, error) in {"phi2": phi2, "chi2": chi2}.items():
        estimate = mean(np.concatenate([block[name] for block in blocks], axis=1))
        assert estimate.error < 0.003 * value
        assert abs(estimate.value - value) < 4 * np.hypot(estimate.error, error), (name, estimate)
        print(f"{side}x{side} {name} {estimate.value:.6f} +- {estimate.error:.6f}, table {value}({error})")


# kernels that must fail, and one that must not


def test_wrong_acceptance_is_caught(monkeypatch):
    """dH with the wrong sign, and no accept/reject at all, at a coarse step: far from quadrature."""
    settings = {"step": 0.25, "length": 1.0, "steps": 800}
    reference = two_by_two(-4.0, 8.0)
    assert all(abs(pull) < 4 for pull in pulls(run(SQUARE, **settings)[1], reference).values())
    right = hmc_module.accept
    monkeypatch.setattr(hmc_module, "accept", lambda dh, u: right(-dh, u))
    assert max(map(abs, pulls(run(SQUARE, **settings)[1], reference).values())) > 8
    monkeypatch.setattr(hmc_module, "accept", lambda dh, u: torch.ones_like(dh, dtype=torch.bool))
    assert max(map(abs, pulls(run(SQUARE, **settings)[1], reference).values())) > 8


class WrongForce(Phi4):
    def force(self, x):
        return 0.7 * super().force(x)


class WrongAction(Phi4):
    def log_prob(self, x):
        return 0.9 * super().log_prob(x)


def test_metropolis_mends_a_wrong_force_but_not_a_wrong_action():
    kw, reference = {"shape": (2, 2), "m2": -4.0, "lam": 8.0}, two_by_two(-4.0, 8.0)
    _, x, _ = run(WrongForce(**kw), steps=800)
    assert all(abs(pull) < 4 for pull in pulls(x, reference).values())
    _, x, _ = run(WrongAction(**kw), steps=800)
    assert max(map(abs, pulls(x, reference).values())) > 5


def test_acceptance_of_numbers_that_are_none():
    nan, inf = float("nan"), float("inf")
    dh = torch.tensor([nan, inf, -inf, 0.0, 1.0, 1.0], dtype=torch.float64)
    u = torch.tensor([0.0, 0.0, 0.999, 0.999, 0.36, 0.37], dtype=torch.float64)
    assert hmc_module.accept(dh, u).tolist() == [False, False, True, True, True, False]


class Gaussian(Target):
    """A target off the lattice, with the force that autograd gives: independent, variances 1, 1/4, 4."""

    kind: ClassVar[str] = "gaussian"
    measure: ClassVar[str] = "lebesgue"

    @property
    def event_shape(self):
        return (3,)

    def log_prob(self, x):
        return -0.5 * (x**2 * torch.tensor([1.0, 4.0, 0.25], dtype=x.dtype)).sum(1)


def test_any_target_with_autograd():
    _, x, _ = run(Gaussian(), steps=600)
    for i, variance in enumerate((1.0, 0.25, 4.0)):
        estimate = mean(x[:, :, i] ** 2)
        assert abs(estimate.value - variance) < 4 * estimate.error


# determinism, state, bookkeeping


def test_resume_equals_one_longer_run():
    sampler = HMCSpec(chains=8, block=8, thermalisation=100).build(SQUARE)
    state = sampler.start(3, stream(9, Purpose.START, 3))
    rng = stream(9, Purpose.DRAW, 3, 0)
    whole, end = sampler.draw(state, 80, rng)
    rng = stream(9, Purpose.DRAW, 3, 0)
    first, middle = sampler.draw(state, 32, rng)
    second, last = sampler.draw(middle, 48, rng)
    assert torch.equal(whole.x, torch.cat([first.x, second.x]))
    np.testing.assert_array_equal(whole.log_prob, np.concatenate([first.log_prob, second.log_prob]))
    for name in whole.info:
        np.testing.assert_array_equal(whole.info[name], np.concatenate([first.info[name], second.info[name]]))
    assert end.keys() == last.keys()
    for name in end:
        np.testing.assert_array_equal(end[name], last[name])


def test_same_stream_same_bytes_other_stream_other_bytes():
    def bytes_of(key):
        sampler = HMCSpec(chains=8, block=8, thermalisation=100).build(SQUARE)
        state = sampler.start(key, stream(9, Purpose.START, key))
        return sampler.draw(state, 16, stream(9, Purpose.DRAW, key, 0))[0].x.numpy().tobytes()

    torch.manual_seed(1)
    one = bytes_of(0)
    torch.manual_seed(2)
    assert one == bytes_of(0) != bytes_of(1)


def test_state_can_be_stored_and_draws_are_step_major():
    sampler = HMCSpec(chains=4, block=8, thin=3, thermalisation=100).build(SQUARE)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    assert sampler.chains == 4 and not sampler.interacting
    draws, after = sampler.draw(state, 40, stream(1, Purpose.DRAW, 0, 0))
    assert {str(a.dtype) for a in after.values()} <= {"float64", "int64"}
    assert all(isinstance(a, np.ndarray) for a in after.values())
    assert after["trajectories"] == 30 and state["trajectories"] == 0 and state["accepted"].sum() == 0
    np.testing.assert_array_equal(draws.x[-4:].numpy(), after["x"])
    assert {name: v.shape for name, v in draws.info.items()} == dict.fromkeys(
        ("acceptance", "exp_minus_dh", "smallest_acceptance"), (10,)
    )
    assert after["step"] == state["step"] and after["n_steps"] == state["n_steps"]


def test_a_fixed_step_is_not_tuned():
    spec = HMCSpec(chains=8, block=8, thermalisation=100, step=0.1, length=0.5)
    state = spec.build(SQUARE).start(0, stream(1, Purpose.START, 0))
    assert state["step"] == 0.1 and state["n_steps"] == 5


def test_chains_that_never_mix_are_refused(monkeypatch):
    """Wells so deep that every site keeps its sign: M^2 differs between chains and tau_int cannot be told."""
    monkeypatch.setattr(tuning, "N_STEPS", (2, 4))
    spec = HMCSpec(chains=16, block=16, thermalisation=100)
    with pytest.raises(StatisticsError, match="do not mix"):
        spec.build(Phi4(shape=(2, 2), m2=-40.0, lam=8.0)).start(0, stream(1, Purpose.START, 0))


def test_stuck_chains_raise():
    spec = HMCSpec(chains=8, block=8, thermalisation=100, step=3.0, length=9.0)
    with pytest.raises(StatisticsError, match="8 of 8 chains had no trajectory accepted"):
        spec.build(Phi4(shape=(4, 4), m2=-4.0, lam=8.0)).start(0, stream(1, Purpose.START, 0))


class InABox(Gaussian):
    kind: ClassVar[str] = "circles"
    measure: ClassVar[str] = "hypercube"


def test_bad_input():
    with pytest.raises(InputError, match=r"block = 100 is not a multiple of chains = 64.*block = 64"):
        HMCSpec(chains=64, block=100)
    with pytest.raises(InputError, match="both"):
        HMCSpec(step=0.1)
    with pytest.raises(InputError, match="did you mean 'chains'"):
        HMCSpec(chain=4)
    with pytest.raises(InputError, match="integrator"):
        HMCSpec(integrator="euler")
    with pytest.raises(InputError, match="measure 'hypercube'"):
        HMCSpec().build(InABox())
    with pytest.raises(InputError, match="unknown integrator 'euler'"):
        check_reversibility(SQUARE, torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), 0.1, 1, "euler")
    sampler = samplers.find("hmc")(chains=8, block=8, thermalisation=100).build(SQUARE)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    for n in (0, 12, -8):
        with pytest.raises(InputError, match="multiple of 8 chains"):
            sampler.draw(state, n, stream(1, Purpose.DRAW, 0, 0))
    with pytest.raises(InputError, match="no state"):
        sampler.draw(None, 8, stream(1, Purpose.DRAW, 0, 0))
    with pytest.raises(InputError, match="state with x"):
        sampler.draw({**state, "x": state["x"][:4]}, 8, stream(1, Purpose.DRAW, 0, 0))
