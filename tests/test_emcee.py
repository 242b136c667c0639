"""emcee and exact sampling against quadrature and closed forms."""

import numpy as np
import pytest
import torch
from reference import free_field, transfer_matrix, two_by_two

from latticeflow.errors import InputError
from latticeflow.random import Purpose, stream
from latticeflow.samplers import EmceeSpec, ExactSpec, samplers
from latticeflow.statistics import mean
from latticeflow.targets import FreeField, Phi4

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)


def run(target, steps=2500, seed=1, **settings):
    """Draws of one ensemble; the field as `[steps, walkers, V]`."""
    spec = EmceeSpec(**{"walkers": 64, "block": 64, "thin": 2, "thermalisation": 1000, **settings})
    sampler = spec.build(target)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    draws, state = sampler.draw(state, steps * spec.walkers, stream(seed, Purpose.DRAW, 0, 0))
    return draws, draws.x.numpy().reshape(steps, spec.walkers, -1), state


def pulls(x, reference):
    """One series for the ensemble: the average over its walkers, which know of one another."""
    m = x.mean(-1)
    series = {
        "phi2": (x**2).mean(-1),
        "phi4": (x**4).mean(-1),
        "chi2": x.shape[-1] * m**2,
        "abs_m": np.abs(m),
    }
    estimates = {name: mean(series[name].mean(1)[None]) for name in series if name in reference}
    return {name: (e.value - reference[name]) / e.error for name, e in estimates.items()}


def test_two_by_two_quadrature():
    draws, x, state = run(SQUARE)
    found = pulls(x, two_by_two(-4.0, 8.0))
    assert len(found) == 4 and all(abs(pull) < 4 for pull in found.values()), found
    # control: the answers at lam = 9 are told apart
    assert max(map(abs, pulls(x, two_by_two(-4.0, 9.0)).values())) > 6
    np.testing.assert_allclose(draws.log_prob, SQUARE.log_prob(draws.x).numpy(), rtol=0, atol=1e-12)
    np.testing.assert_array_equal(draws.x[-64:].numpy(), state["x"])
    acceptance = draws.info["acceptance"]
    assert acceptance.shape == (2500,) and 0.2 < acceptance.mean() < 0.6 and draws.log_w is None


def test_transfer_matrix():
    _, x, _ = run(Phi4(shape=(3,), m2=0.5, lam=1.0), steps=1500)
    found = pulls(x, transfer_matrix(3, 0.5, 1.0))
    assert len(found) == 3 and all(abs(pull) < 4 for pull in found.values()), found


def test_same_stream_same_bytes_whatever_the_global_state():
    def run_once():
        sampler = EmceeSpec(walkers=16, block=16, thermalisation=100).build(SQUARE)
        state = sampler.start(0, stream(4, Purpose.START, 0))
        first, middle = sampler.draw(state, 32, stream(4, Purpose.DRAW, 0, 0))
        second, _ = sampler.draw(middle, 32, stream(4, Purpose.DRAW, 0, 1))
        return first.x.numpy().tobytes() + second.x.numpy().tobytes()

    np.random.seed(1)  # noqa: NPY002 (the point: the sampler neither reads nor moves the global generator)
    one, after = run_once(), np.random.get_state()[1].copy()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(after, np.random.get_state()[1])  # noqa: NPY002
    np.random.seed(2)  # noqa: NPY002
    assert one == run_once()


def test_walkers_are_declared_to_interact():
    sampler = EmceeSpec(walkers=16, block=16).build(SQUARE)
    assert sampler.interacting and sampler.chains == 16 and not sampler.own_density


def test_bad_input():
    with pytest.raises(InputError, match="100 dimensions; expected at most largest = 64"):
        EmceeSpec().build(Phi4(shape=(10, 10), m2=-4.0, lam=6.0))
    with pytest.raises(InputError, match="16 walkers in 8 dimensions; expected at least 18"):
        EmceeSpec(walkers=16).build(Phi4(shape=(2, 4), m2=-4.0, lam=6.0))
    with pytest.raises(InputError, match="not a multiple of walkers = 24"):
        EmceeSpec(walkers=24)
    with pytest.raises(InputError, match="did you mean 'walkers'"):
        EmceeSpec(walker=24)
    sampler = EmceeSpec(walkers=16, block=16, thermalisation=100).build(SQUARE)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    with pytest.raises(InputError, match="multiple of 16 walkers"):
        sampler.draw(state, 20, stream(1, Purpose.DRAW, 0, 0))
    with pytest.raises(InputError, match="state with x"):
        sampler.draw({**state, "x": state["x"][:8]}, 16, stream(1, Purpose.DRAW, 0, 0))


# exact sampling


def test_exact_free_field():
    target, reference = FreeField(shape=(4, 6), m2=0.7), free_field((4, 6), 0.7)
    sampler = ExactSpec().build(target)
    draws, state = sampler.draw(None, 50_000, stream(1, Purpose.DRAW, 0, 0))
    assert state is None and sampler.chains == 0 and sampler.own_density and sampler.any_density
    assert np.ptp(draws.log_w) == 0 and draws.log_w[0] == pytest.approx(reference["log_z"], abs=1e-10)
    x = draws.x.numpy().reshape(50_000, -1)
    for name, series in {"phi2": (x**2).mean(1), "chi2": 24 * x.mean(1) ** 2}.items():
        error = series.std(ddof=1) / np.sqrt(50_000)
        assert abs(series.mean() - reference[name]) < 4 * error
    np.testing.assert_allclose(
        sampler.log_q(draws.x).numpy(), draws.log_prob - reference["log_z"], rtol=0, atol=1e-10
    )


def test_exact_draws_are_keyed_and_single_precision_is_declared():
    sampler = ExactSpec(precision="float32").build(FreeField(shape=(4,), m2=1.0))
    one, two, other = (sampler.draw(None, 8, stream(1, Purpose.DRAW, k))[0].x for k in (0, 0, 1))
    assert torch.equal(one, two) and not torch.equal(one, other) and one.dtype == torch.float32


def test_exact_refuses_other_targets():
    with pytest.raises(InputError, match="'phi4' cannot be sampled exactly"):
        samplers.find("exact")().build(SQUARE)
    with pytest.raises(InputError, match="0 draws"):
        ExactSpec().build(FreeField(shape=(4,), m2=1.0)).draw(None, 0, stream(1, Purpose.DRAW, 0))
