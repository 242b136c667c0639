"""Optimisation through a surrogate of a Gaussian simulator whose objective, gradient and minima are known in closed form."""

import dataclasses

import numpy as np
import pytest
import torch

from latticeflow.errors import InputError, NumericalError
from latticeflow.studies.surrogate import (
    Problem,
    Samples,
    Settings,
    box,
    call,
    descend,
    finite_differences,
    gradient,
    judge,
    learn,
    optimise,
    plot,
    random_search,
)

SETTINGS = Settings(
    calls=(20_000, 20_000),
    widths=(1.0, 0.5),
    hidden=(24, 24),
    steps=300,
    batch=768,
    starts=8,
    moves=80,
    draws=512,
    judged=2000,
)


def truth(n, rng):
    return torch.from_numpy(rng.standard_normal((n, 1)))


def simulate(x, psi, rng):
    """`y = a x + s n`, n ~ N(0, 1), with `a = psi_1^2 - 1/2` and `s^2 = 1/10 + (psi_2 - 0.4)^2 + (psi_3 + psi_1 / 2)^2`."""
    a = psi[:, 0].square() - 0.5
    s = (0.1 + (psi[:, 1] - 0.4).square() + (psi[:, 2] + psi[:, 0] / 2).square()).sqrt()
    return a[:, None] * x + s[:, None] * torch.from_numpy(rng.standard_normal((len(x), 1)))


def loss(y, x, psi):
    return y[:, 0].square() + psi[:, 0] / 10


PROBLEM = Problem(truth, simulate, loss, (-1.0,) * 3, (1.0,) * 3)


def objective(psi):
    """`O = a^2 + s^2 + psi_1 / 10`: two wells in psi_1, the lower one below 0."""
    a, b, c = psi[..., 0], psi[..., 1], psi[..., 2]
    return (a * a - 0.5) ** 2 + 0.1 + (b - 0.4) ** 2 + (c + a / 2) ** 2 + a / 10


def slope(psi):
    a, b, c = psi[..., 0], psi[..., 1], psi[..., 2]
    return np.stack([4 * a * (a * a - 0.5) + (c + a / 2) + 0.1, 2 * (b - 0.4), 2 * (c + a / 2)], -1)


def wells():
    """psi_2 = 0.4, psi_3 = -psi_1 / 2, and psi_1 a root of `4 p (p^2 - 1/2) + 1/10`: the left minimum, and the right one."""
    left, _, right = np.sort(np.roots([4, 0, -2, 0.1]).real)
    return [np.array([p, 0.4, -p / 2]) for p in (left, right)]


@pytest.fixture(scope="module")
def found():
    return optimise(PROBLEM, SETTINGS, 1)


def test_the_known_answer_is_a_minimum_and_the_simulator_agrees():
    best, other = wells()
    for psi in (best, other):
        np.testing.assert_allclose(slope(psi), 0, atol=1e-12)
        value, error = judge(PROBLEM, psi, 100_000, np.random.default_rng(1))
        assert abs(value - objective(psi)) < 4 * error
    assert objective(other) > objective(best) + 0.1


@pytest.fixture(scope="module")
def surrogates():
    """One of the whole box, and one of parameters in random order."""
    rng = np.random.default_rng(2)
    samples = call(PROBLEM, *box(PROBLEM), 60_000, rng)
    shuffled = Samples(samples.x, samples.psi[torch.from_numpy(rng.permutation(60_000))], samples.y)
    pairs = ((samples, 1000), (shuffled, 200))
    return [learn(one, dataclasses.replace(SETTINGS, steps=steps), rng) for one, steps in pairs]


def test_gradient_of_the_surrogate_is_that_of_the_objective(surrogates):
    """At random points, to a quarter of the gradient's own size; not so where parameters were in random order."""
    rng = np.random.default_rng(3)
    psi = rng.uniform(-0.8, 0.8, (16, 3))
    size, off = np.sqrt(np.mean(slope(psi) ** 2)), []
    for surrogate in surrogates:
        _, found = gradient(PROBLEM, surrogate, torch.from_numpy(psi), 20_000, rng)
        off.append(np.sqrt(np.mean((found.numpy() - slope(psi)) ** 2)) / size)
    assert off[0] < 0.25 and off[1] > 0.8


def test_descents_end_in_the_well_that_they_start_in(surrogates):
    starts = np.stack(wells()) + np.array([0.1, -0.2, 0.2])
    ends = descend(PROBLEM, surrogates[0], starts, *box(PROBLEM), SETTINGS, np.random.default_rng(4))
    for end, well in zip(ends, wells()):
        assert np.linalg.norm(end - well) < 0.15
        assert objective(end) - objective(well) < 0.02


def test_the_lower_well_is_found(found):
    best, other = wells()
    assert np.linalg.norm(found.psi - best) < 0.1 * np.linalg.norm(best)
    assert objective(found.psi) - objective(best) < 0.01
    assert abs(found.value - objective(found.psi)) < 4 * found.error
    assert found.values.min() < objective(other) and len(found.ends) == 8
    assert found.calls == 2 * 20_000 + 8 * 2000


def test_same_seed_same_answer():
    short = dataclasses.replace(SETTINGS, calls=(500, 500), steps=5, starts=2, moves=3, judged=50)
    first, second, other = (optimise(PROBLEM, short, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.rounds, second.rounds)
    assert not np.array_equal(first.rounds, other.rounds)


def test_a_surrogate_of_shuffled_parameters_does_not_find_it():
    """The negative control: responses of other parameters, so that what is left is the loss's own slope, to psi_1 = -1. The

    ends are judged by the simulator as it is, since all psi are the same there."""

    def deaf(x, psi, rng):
        return simulate(x, psi[torch.from_numpy(rng.permutation(len(psi)))], rng)

    single = dataclasses.replace(SETTINGS, calls=(20_000,), widths=(1.0,))
    control = optimise(dataclasses.replace(PROBLEM, simulate=deaf), single, 1)
    best = wells()[0]
    assert np.linalg.norm(control.psi - best) > 0.25 * np.linalg.norm(best)
    assert objective(control.psi) - objective(best) > 0.05


def test_searches_without_a_surrogate():
    """They find the well too, random search as far as its points are dense."""
    rng = np.random.default_rng(5)
    best = wells()[0]
    roughly = random_search(PROBLEM, 100_000, 500, rng)
    assert objective(roughly) - objective(best) < 0.2
    finer = finite_differences(PROBLEM, best + 0.2, 200_000, 500, rng)
    assert np.linalg.norm(finer - best) < 0.15


def test_plot(found):
    pytest.importorskip("matplotlib")
    assert plot([found], ("a", "b", "c"), wells()[0], float(objective(wells()[0]))).startswith(b"\x89PNG")


def test_what_is_refused():
    with pytest.raises(InputError, match="low < high"):
        Problem(truth, simulate, loss, (0.0, 1.0), (1.0, 1.0))
    with pytest.raises(InputError, match="finite low"):
        Problem(truth, simulate, loss, (0.0,), (np.inf,))
    with pytest.raises(InputError, match="rate = -1"):
        Settings(rate=-1.0)
    rng = np.random.default_rng(0)
    for search in (random_search, lambda problem, *rest: finite_differences(problem, np.zeros(3), *rest)):
        for calls, each in ((100, 0), (100, 200)):
            with pytest.raises(InputError, match=f"100 calls, {each} for each"):
                search(PROBLEM, calls, each, rng)
    # y of [n, 1] less x of [n] is [n, n], and has a mean, too
    square = dataclasses.replace(PROBLEM, loss=lambda y, x, psi: y - x[:, 0])
    with pytest.raises(InputError, match=r"shape \[10, 10\]; expected \[10\]"):
        judge(square, np.zeros(3), 10, rng)
    with pytest.raises(InputError, match="two at least"):
        judge(PROBLEM, np.zeros(3), 1, rng)
    flat = dataclasses.replace(PROBLEM, simulate=lambda x, psi, rng: x[:, 0])
    with pytest.raises(InputError, match=r"y of shape \[10\]"):
        call(flat, *box(flat), 10, rng)
    with pytest.raises(InputError, match="every round"):
        Settings(calls=(10, 10), widths=(1.0,))
    with pytest.raises(InputError, match="judged"):
        Settings(judged=1)
    # a loss that hides what is not a number from the judge
    blind = dataclasses.replace(PROBLEM, loss=lambda y, x, psi: (y[:, 0] * np.inf).nan_to_num(0, 0, 0))
    surrogate = learn(call(PROBLEM, *box(PROBLEM), 100, rng), dataclasses.replace(SETTINGS, steps=1), rng)
    with pytest.raises(NumericalError, match="gradient"):
        descend(blind, surrogate, np.zeros((1, 3)), *box(blind), SETTINGS, rng)
    with pytest.raises(NumericalError, match="in step 1"):
        surrogate.fit(torch.zeros(5, 4).double(), torch.full((5, 1), np.nan).double(), 3, 5, 1e-3, rng)
    bad = dataclasses.replace(PROBLEM, simulate=lambda x, psi, rng: x / 0)
    with pytest.raises(NumericalError, match="not finite"):
        call(bad, *box(bad), 10, np.random.default_rng(0))
    with pytest.raises(NumericalError, match="not finite"):
        judge(bad, np.zeros(3), 10, np.random.default_rng(0))
