"""Observables of gauge theories against loops written out, gauge invariance, and the character expansion."""

import itertools
import math

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform, hot, matrices

from latticeflow import exact
from latticeflow.observables import Derived, Primary, measure, observables
from latticeflow.observables.gauge import longest, sides, static_potential
from latticeflow.samplers import HeatBathSpec
from latticeflow.statistics import mean
from latticeflow.targets import Wilson

TARGETS = [
    Wilson(shape=(4, 6), group="u1", beta=2.0),
    Wilson(shape=(6, 4), group="su2", beta=2.2),
    Wilson(shape=(4, 4, 5), group="su3", beta=5.5),
]
ALL = [pytest.param(t, id=f"{t.group}-{t.shape}") for t in TARGETS]


def path(target, u, site, steps):
    """The product of the links along `steps` = (direction, sign) from `site`, u of one configuration."""
    product, here = np.eye(u.shape[-1], dtype=complex), list(site)
    for mu, sign in steps:
        if sign < 0:
            here[mu] = (here[mu] - 1) % target.shape[mu]
        link = u[(mu, *here)]
        product = product @ (link if sign > 0 else link.conj().T)
        if sign > 0:
            here[mu] = (here[mu] + 1) % target.shape[mu]
    return product


@pytest.mark.parametrize("target", ALL)
def test_wilson_loops_are_products_along_rectangles(target):
    x = hot(target, 1, n=1)
    u = matrices(target, x)[0]
    expected = []
    for r, t in sides(target):
        traces = []
        for mu, nu in itertools.permutations(range(len(target.shape)), 2):
            steps = [(mu, 1)] * r + [(nu, 1)] * t + [(mu, -1)] * r + [(nu, -1)] * t
            for site in itertools.product(*map(range, target.shape)):
                traces.append(path(target, u, site, steps).trace().real / u.shape[-1])
        expected.append(np.mean(traces))
    found = measure(target, x, "wilson_loops", "plaquette")
    np.testing.assert_allclose(found["wilson_loops"][0], expected, atol=1e-12)
    assert found["plaquette"][0] == pytest.approx(expected[0])


@pytest.mark.parametrize("target", ALL)
def test_gauge_invariance(target):
    x = hot(target, 2)
    g = target.links.haar((3, *target.shape), rng(3), torch.float64)
    one, other = measure(target, x), measure(target, gauge_transform(target, x, g))
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=1e-9, err_msg=name)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (8, 8)])
def test_charge_is_an_integer_and_odd(shape):
    target = Wilson(shape=shape, group="u1", beta=1.0)
    x = hot(target, 4, n=200)
    (_, _, p) = next(target.plaquettes(x))
    raw = torch.remainder(p + math.pi, 2 * math.pi).sub(math.pi).flatten(1).sum(1) / (2 * math.pi)
    assert (raw - raw.round()).abs().max() < 1e-10
    q = measure(target, x, "charge", "charge2")
    np.testing.assert_allclose(q["charge"], raw.round())
    np.testing.assert_array_equal(q["charge2"], q["charge"] ** 2)
    np.testing.assert_array_equal(measure(target, -x, "charge")["charge"], -q["charge"])
    assert len(set(q["charge"])) > 2


def means_of(target, beta=None):
    beta = target.beta if beta is None else beta
    loops = [exact.wilson_loop(target.group, target.shape, beta, r * t) for r, t in sides(target)]
    return {"wilson_loops": np.array(loops), "charge2": np.array(2.0)}


def test_derived_observables_of_an_area_law():
    """In a large volume of two dimensions `V(R) = sigma R`, and every Creutz ratio is sigma."""
    target = Wilson(shape=(32, 32), group="su2", beta=2.2)
    means, sigma = means_of(target), exact.string_tension("su2", 2.2)
    assert longest(target) == 4
    assert observables.find("creutz").of(target, means) == pytest.approx(sigma)
    np.testing.assert_allclose(static_potential(target, means["wilson_loops"]), sigma * np.arange(1, 5))
    assert observables.find("potential_2").of(target, means) == pytest.approx(2 * sigma)
    for name in ("creutz", "potential_1", "potential_2"):
        assert np.isnan(observables.find(name).of(target, {"wilson_loops": -(means["wilson_loops"] ** 2)}))
    u1 = Wilson(shape=(8, 8), group="u1", beta=2.0)
    assert observables.find("chi_q").of(u1, means_of(u1)) == pytest.approx(2 / 64)


@pytest.mark.parametrize("group, beta", [("u1", 2.0), ("su2", 2.2), ("su3", 6.0)])
def test_means_of_the_heat_bath(group, beta):
    """Loops of the character expansion, and what is zero exactly; at another beta the identity is not."""
    target = Wilson(shape=(4, 4), group=group, beta=beta)
    sampler = HeatBathSpec(chains=128, block=128, thermalisation=30, overrelaxation=0).build(target)
    draws, _ = sampler.draw(sampler.start(0, rng(5)), 128 * 80, rng(6))
    found = measure(target, draws.x)
    for i, (r, t) in enumerate(sides(target)):
        loop = mean(found["wilson_loops"][:, i].reshape(-1, 128).T)
        assert abs(loop.value - exact.wilson_loop(group, (4, 4), beta, r * t)) < 4 * loop.error
    for name in ("schwinger_dyson", "polyakov", *(["charge"] if group == "u1" else [])):
        zero = mean(found[name].reshape(-1, 128).T)
        assert abs(zero.value) < 4 * zero.error, name
    other = measure(target.at(beta=1.1 * beta), draws.x, "schwinger_dyson")["schwinger_dyson"]
    off = mean(other.reshape(-1, 128).T)
    assert abs(off.value) > 8 * off.error


def test_what_exists_where():
    names = {
        group: {one.name for one in observables.of(Wilson(shape=(8, 8), group=group, beta=1.0))}
        for group in ("u1", "su3")
    }
    assert {"charge", "charge2", "chi_q"} == names["u1"] - names["su3"]
    assert "plaquette" in names["su3"] and "phi2" not in names["su3"]
    small = Wilson(shape=(2, 2, 2), group="su2", beta=1.0)
    assert "2 x 2 needs sides of at least 4" in observables.left_out(small)["creutz"]
    for one in observables.of(TARGETS[0]):
        assert isinstance(one, Primary | Derived) and one.formula
