"""Observables against brute-force loops, the free field's closed forms, lattice symmetries and the virial."""

from itertools import product
from typing import ClassVar

import numpy as np
import pytest
import torch

from latticeflow.errors import InputError
from latticeflow.observables import Primary, measure, observables
from latticeflow.observables.scalar import effective_mass
from latticeflow.random import Purpose, normal, stream
from latticeflow.targets import FreeField, Phi4, Target

torch.set_num_threads(1)
SHAPES = [(5,), (4, 4), (2, 2), (3, 6), (2, 4, 4), (2, 3, 2, 3), (1, 4)]
SCALAR = observables.of(Phi4(shape=(6, 6), m2=1.0, lam=1.0))
PRIMARIES = [one.name for one in SCALAR if isinstance(one, Primary)]


def fields(shape, n=3, seed=7):
    return normal(stream(seed, Purpose.ANALYSIS), (n, *shape), dtype=torch.float64)


def brute_force(shape, m2, lam, phi):
    """All primaries of one configuration by loops over sites; phi maps a tuple of coordinates to a number."""
    sites = list(product(*map(range, shape)))
    V, D, L = len(sites), len(shape), max(shape)
    long = [mu for mu in range(D) if shape[mu] == L]

    def at(site, mu, steps):
        moved = list(site)
        moved[mu] = (moved[mu] + steps) % shape[mu]
        return phi[tuple(moved)]

    m = sum(phi[s] for s in sites) / V
    action = ising = virial = 0.0
    for s in sites:
        action += m2 * phi[s] ** 2 + lam * phi[s] ** 4
        derivative = 2 * m2 * phi[s] + 4 * lam * phi[s] ** 3
        for mu in range(D):
            action += (at(s, mu, 1) - phi[s]) ** 2
            derivative += -2 * (at(s, mu, 1) - phi[s]) + 2 * (phi[s] - at(s, mu, -1))
            ising += phi[s] * at(s, mu, 1) / (D * V)
        virial += phi[s] * derivative
    correlator, two_point, power = np.zeros(L), np.zeros(L), 0.0
    for mu in long:
        power += abs(sum(phi[s] * np.exp(-2j * np.pi * s[mu] / L) for s in sites)) ** 2 / V / len(long)
        for t in range(L):
            two_point[t] += sum(phi[s] * at(s, mu, t) for s in sites) / V / len(long)
            pairs = (phi[a] * phi[b] for a in sites for b in sites if (b[mu] - a[mu]) % L == t)
            correlator[t] += sum(pairs) / V / len(long)
    return {
        "phi2": sum(phi[s] ** 2 for s in sites) / V,
        "phi4": sum(phi[s] ** 4 for s in sites) / V,
        "chi2": V * m**2,
        "abs_m": abs(m),
        "m": m,
        "m4": m**4,
        "action": action,
        "ising_energy": ising,
        "virial": virial,
        "phi_k1": power,
        "correlator": correlator,
        "two_point": two_point,
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_primaries_equal_loops_over_sites(shape):
    target, x = Phi4(shape=shape, m2=-1.3, lam=0.7), fields(shape)
    found = measure(target, x)
    assert set(found) == set(PRIMARIES)
    for i, phi in enumerate(x.numpy()):
        for name, value in brute_force(shape, -1.3, 0.7, phi).items():
            np.testing.assert_allclose(found[name][i], value, rtol=1e-11, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("shape", SHAPES)
def test_primaries_do_not_see_lattice_symmetries(shape):
    target, x = Phi4(shape=shape, m2=-1.3, lam=0.7), fields(shape)
    lattice, expected = target.lattice, measure(target, x)
    images = [lattice.shift(x, mu, 1) for mu in range(lattice.dim)]
    images += [lattice.transform(x, *element) for element in lattice.point_group()]
    for image in images:
        for name, value in measure(target, image.contiguous()).items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)
    for name, value in measure(target, -x).items():  # Z2: only m is odd
        sign = -1 if name == "m" else 1
        np.testing.assert_allclose(value, sign * expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


def free_means(target):
    """Exact means of the free field, `<|phi_k|^2> = 1 / (2 (khat^2 + m2))` summed over momenta."""
    shape, V, L = target.shape, np.prod(target.shape), max(target.shape)
    mu = shape.index(L)
    k = np.meshgrid(*[2 * np.pi * np.arange(side) / side for side in shape], indexing="ij")
    power = 1 / (2 * (sum(4 * np.sin(component / 2) ** 2 for component in k) + target.m2))
    zero = np.zeros(len(shape), dtype=int)
    line = power[tuple(slice(None) if axis == mu else 0 for axis in range(len(shape)))]
    smallest = tuple(np.where(np.arange(len(shape)) == mu, 1, zero))
    phi2 = power.sum() / V
    chi2 = power[tuple(zero)]
    t, momenta = np.arange(L), 2 * np.pi * np.arange(L) / L
    cosines = np.cos(np.outer(t, momenta))
    return {
        "phi2": phi2,
        "phi4": 3 * phi2**2,
        "chi2": chi2,
        "abs_m": np.sqrt(2 * chi2 / (np.pi * V)),
        "m": 0.0,
        "m4": 3 * (chi2 / V) ** 2,
        "action": V / 2,
        "ising_energy": (power * sum(np.cos(c) for c in k)).sum() / V / len(shape),
        "virial": float(V),
        "phi_k1": power[smallest],
        "correlator": cosines @ line / L,
        "two_point": np.array([(power * np.cos(k[mu] * r)).sum() / V for r in t]),
    }


@pytest.mark.parametrize("shape", [(6,), (8, 8), (4, 6), (3, 4, 4), (2, 2, 2, 4)])
def test_means_of_the_free_field_are_its_spectrum(shape):
    """20,000 exact samples; every mean within 4.5 sigma (some 15 numbers a shape)."""
    target = FreeField(shape=shape, m2=0.6)
    x = target.sample(20_000, stream(11, Purpose.ANALYSIS, *shape))
    found, expected = measure(target, x), free_means(target)
    assert set(found) == set(expected)
    pulls = {}
    for name, values in found.items():
        pulls[name] = (values.mean(0) - expected[name]) / (values.std(0) / np.sqrt(len(values)))
        assert np.abs(pulls[name]).max() < 4.5, (name, pulls[name])
    # negative control: the fields of another mass fail the same check
    wrong = measure(target, FreeField(shape=shape, m2=0.7).sample(20_000, stream(11, Purpose.ANALYSIS)))
    pull = (wrong["virial"].mean() - np.prod(shape)) / (wrong["virial"].std() / np.sqrt(20_000))
    assert abs(pull) > 4.5


@pytest.mark.parametrize("shape", [(6,), (8, 8), (4, 6), (5, 5), (3, 4, 4), (2, 2, 2, 4)])
@pytest.mark.parametrize("m2", [0.3, 1.0])
def test_derived_of_the_free_field_are_closed_forms(shape, m2):
    """xi = 1/sqrt(m2), cosh(m_p) = 1 + m2/2, U = 0, chi2 = 1/(2 m2), all to rounding."""
    target = FreeField(shape=shape, m2=m2)
    means = free_means(target)
    assert means["chi2"] == pytest.approx(1 / (2 * m2), rel=1e-12)
    expected = {
        "binder": 0.0,
        "xi": m2**-0.5,
        "pole_mass": np.arccosh(1 + m2 / 2),
        "pole_mass_L": max(shape) * np.arccosh(1 + m2 / 2),
    }
    for name, value in expected.items():
        assert observables.find(name).of(target, means) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def test_published_value_of_the_free_field():
    assert free_means(FreeField(shape=(8, 8), m2=1.0))["phi2"] == pytest.approx(0.127086998845, abs=1e-11)


def test_float32_fields_are_measured_in_float64():
    target, x = Phi4(shape=(4, 4), m2=-4.0, lam=8.0), fields((4, 4)).float()
    low, high = measure(target, x), measure(target, x.double())
    for name in low:
        assert low[name].dtype == np.float64
        np.testing.assert_array_equal(low[name], high[name])


def test_pieces_do_not_matter(monkeypatch):
    target, x = Phi4(shape=(4, 4), m2=-4.0, lam=8.0), fields((4, 4), n=10)
    whole = measure(target, x)
    monkeypatch.setattr("latticeflow.observables.base._PIECE", 48)
    for name, value in measure(target, x).items():
        np.testing.assert_allclose(value, whole[name], rtol=1e-12, err_msg=name)


def test_noise_that_leaves_no_mass_gives_nan_not_a_number():
    assert np.isnan(effective_mass(np.array([1.0, 0.9, 0.7, 0.9]))).all()
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    assert np.isnan(observables.find("pole_mass").of(target, {"correlator": np.array([1.0, 0.9, 0.7, 0.9])}))
    assert np.isnan(observables.find("xi").of(target, {"chi2": np.array(1.0), "phi_k1": np.array(1.1)}))


@pytest.mark.parametrize(
    "shape, without", [((2, 2), {"pole_mass", "pole_mass_L"}), ((3, 3), set()), ((1, 4), set())]
)
def test_what_does_not_exist_is_left_out_with_a_reason(shape, without):
    left_out = observables.left_out(Phi4(shape=shape, m2=-4.0, lam=8.0))
    assert set(left_out) == without
    assert all("side of at least 3" in reason for reason in left_out.values())


def test_a_single_site_has_no_momentum():
    left_out = observables.left_out(Phi4(shape=(1,), m2=1.0, lam=1.0))
    assert set(left_out) == {"phi_k1", "correlator", "two_point", "xi", "pole_mass", "pole_mass_L"}


def test_bad_input():
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    with pytest.raises(InputError, match="did you mean 'phi2'"):
        measure(target, fields((4, 4)), "phi22")
    with pytest.raises(InputError, match="function of means"):
        measure(target, fields((4, 4)), "binder")
    with pytest.raises(InputError, match="expected \\[n, 4, 4\\]"):
        measure(target, fields((4, 5)))
    with pytest.raises(InputError, match="side of at least 2"):
        measure(Phi4(shape=(1, 1), m2=1.0, lam=1.0), fields((1, 1)), "correlator")

    class Other(Target):
        kind: ClassVar[str] = "other"

    assert not observables.of(Other())
    assert not observables.left_out(Other())  # all are of other theories
    with pytest.raises(InputError, match="not a scalar field"):
        measure(Other(), fields((4, 4)), "phi2")
