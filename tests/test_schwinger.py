"""The Schwinger model's determinant, force and observables, against the Dirac operator written out as a dense matrix."""

import itertools

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform, hot

from latticeflow.errors import InputError
from latticeflow.flows.sectors import SuppressedCharge, charge
from latticeflow.targets import Schwinger, Wilson
from latticeflow.targets.dirac import dirac, free_eigenvalues

torch.set_num_threads(1)
SHAPES = [(4, 4), (2, 6), (6, 4)]
GAMMA = [np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]])]
GAMMA5 = np.diag([1, -1])


def dense(theta, kappa, antiperiodic=(False, True)):
    """D of one configuration, `[2 V, 2 V]`, site by site from the formula."""
    shape = theta.shape[1:]
    volume = shape[0] * shape[1]
    d = np.eye(2 * volume, dtype=complex).reshape(volume, 2, volume, 2)
    for site in itertools.product(*map(range, shape)):
        for mu in (0, 1):
            there = list(site)
            there[mu] = (there[mu] + 1) % shape[mu]
            u = np.exp(1j * theta[(mu, *site)])
            if there[mu] == 0 and antiperiodic[mu]:
                u = -u
            x, y = site[0] * shape[1] + site[1], there[0] * shape[1] + there[1]
            d[x, :, y, :] -= kappa * u * (np.eye(2) - GAMMA[mu])
            d[y, :, x, :] -= kappa * np.conj(u) * (np.eye(2) + GAMMA[mu])
    return d.reshape(2 * volume, 2 * volume)


def links(shape, *key, n=3):
    return hot(Wilson(shape=shape, group="u1", beta=1.0), *key, n=n)


def of(shape, beta=2.0, kappa=0.276):
    return Schwinger(shape=shape, beta=beta, kappa=kappa)


@pytest.mark.parametrize("shape", SHAPES)
def test_determinant_is_that_of_the_dense_matrix(shape):
    x = links(shape, 1)
    determinants = [np.linalg.det(dense(theta.numpy(), 0.276)) for theta in x]
    assert max(abs(one.imag) / abs(one) for one in determinants) < 1e-12  # gamma_5
    np.testing.assert_allclose(of(shape).log_det(x), np.log(np.abs(determinants)), atol=1e-12)
    gauge = Wilson(shape=shape, group="u1", beta=2.0).action(x).numpy()
    expected = gauge - 2 * np.log(np.abs(determinants))
    np.testing.assert_allclose(of(shape).action(x), expected, rtol=1e-12)
    assert torch.equal(of(shape, kappa=0.0).log_det(x), torch.zeros(3, dtype=torch.float64))
    # other boundary conditions are another determinant
    for antiperiodic in [(False, False), (True, False), (True, True)]:
        other = np.linalg.det(dense(x[0].numpy(), 0.276, antiperiodic))
        assert abs(np.log(abs(other / determinants[0]))) > 1e-4


def test_gamma5_hermiticity_of_the_dense_matrix():
    d = dense(links((4, 4), 2)[0].numpy(), 0.3).reshape(16, 2, 16, 2)
    turned = np.einsum("ab,xbyc,cd->xayd", GAMMA5, d, GAMMA5).reshape(32, 32)
    np.testing.assert_allclose(turned, d.reshape(32, 32).conj().T, atol=1e-14)


@pytest.mark.parametrize("shape", SHAPES)
def test_force_is_the_derivative(shape):
    target, x = of(shape), links(shape, 3)
    force, eps = target.force(x), 1e-5
    for link in itertools.product(range(2), *map(range, shape)):
        step = torch.zeros_like(x[0])
        step[link] = eps
        expected = (target.log_prob(x + step) - target.log_prob(x - step)) / (2 * eps)
        np.testing.assert_allclose(force[(slice(None), *link)], expected, rtol=1e-6, atol=1e-7)
    y = x.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(target.log_prob(y).sum(), y)
    torch.testing.assert_close(by_autograd, force, rtol=0, atol=1e-10)
    determinants = [
        [np.linalg.slogdet(dense((one + s * eps * force[0]).numpy(), 0.276))[1] for s in (1, -1)]
        for one in x[:1]
    ]
    (plus, minus), gauge = determinants[0], Wilson(shape=shape, group="u1", beta=2.0).force(x)
    expected = float(((force - gauge)[0] * force[0]).sum())
    assert (plus - minus) / eps == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_laplacian_is_the_second_derivative(shape):
    target, x = of(shape), links(shape, 4, n=2)
    expected = torch.zeros(2, dtype=torch.float64)
    for link in itertools.product(range(2), *map(range, shape)):
        step = torch.zeros_like(x[0])
        step[link] = 1e-5
        force = [target.force(x + s * step)[(slice(None), *link)] for s in (1, -1)]
        expected += (force[1] - force[0]) / 2e-5
    torch.testing.assert_close(target.laplacian(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_propagator_is_the_inverse(shape):
    x = links(shape, 5)
    d = dirac(of(shape).lattice, x.device)
    volume = of(shape).lattice.volume
    found = d.propagator(d.phases(x), 0.276).reshape(-1, 2 * volume, 2 * volume)
    for one, theta in zip(found.numpy(), x.numpy()):
        np.testing.assert_allclose(one @ dense(theta, 0.276), np.eye(2 * volume), atol=1e-11)


@pytest.mark.parametrize("shape", [(4, 4), (6, 8)])
def test_free_fermions(shape):
    """Eigenvalues on U = 1 by momenta, the antiperiodic ones shifted by half a step; log det is the sum of their logs."""
    kappa, one = 0.23, torch.zeros(1, 2, *shape, dtype=torch.float64)
    expected = free_eigenvalues(shape, kappa)
    found = np.linalg.eigvals(dense(one[0].numpy(), kappa))
    distance = np.abs(found[:, None] - expected[None])
    assert distance.min(0).max() < 1e-7 and distance.min(1).max() < 1e-7
    assert float(of(shape, kappa=kappa).log_det(one)) == pytest.approx(np.log(np.abs(expected)).sum())
    periodic = np.linalg.eigvals(dense(one[0].numpy(), kappa, (False, False)))
    assert np.abs(periodic[:, None] - expected[None]).min(1).max() > 1e-3


def test_determinant_changes_its_sign_through_zero():
    """Between two fields of 8x8 with det D of either sign an eigenvalue of D crosses zero, and log |det D| falls."""
    target = of((8, 8))
    x = SuppressedCharge(target.lattice, 2.4, 0.0).double().noise(128, rng(9))
    d = target.dirac(x)

    def signs(x):
        return torch.linalg.slogdet(d.matrix(d.phases(x), target.kappa)).sign.real

    found = signs(x)
    below = x[found < 0][0]
    assert np.linalg.slogdet(dense(below.numpy(), target.kappa))[0].real == pytest.approx(-1)
    assert 0.01 < float((found < 0).double().mean()) < 0.2 and charge(below[None]).abs() > 0
    step = (x[found > 0][0] - below) / 2
    middle = below + step
    for _ in range(40):
        step = step / 2
        middle = middle + step * (1 if float(signs(middle[None])) < 0 else -1)
    eigenvalues = np.linalg.eigvals(dense(middle.numpy(), target.kappa))
    assert abs(eigenvalues).min() < 1e-6 < np.sort(abs(eigenvalues))[1]
    assert float(target.log_det(middle[None])) < float(target.log_det(below[None])) - 8


def test_symmetries():
    """Gauge transformations, charge conjugation and translations (the boundary moves by a gauge transformation)."""
    target, x = of((6, 4)), links((6, 4), 6)
    s = target.action(x)
    close = dict(rtol=1e-10, atol=1e-10)
    g = target.links.haar((3, 6, 4), rng(7), torch.float64)
    torch.testing.assert_close(target.action(gauge_transform(target, x, g)), s, **close)
    torch.testing.assert_close(target.action(-x), s, **close)
    for mu in (0, 1):
        torch.testing.assert_close(target.action(torch.roll(x, 1, 2 + mu)), s, **close)
    wound = x.clone()  # a Polyakov loop turned: plaquettes stay, the determinant does not
    wound[:, 1, :, 0] += 1.0
    torch.testing.assert_close(Wilson.action(target, wound), Wilson.action(target, x), **close)
    assert (target.action(wound) - s).abs().min() > 1e-4


def test_single_precision_fields():
    target = of((4, 4))
    x = links((4, 4), 8).float()
    assert target.action(x).dtype == target.force(x).dtype == torch.float32
    torch.testing.assert_close(target.action(x).double(), target.action(x.double()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(shape=(4, 4), beta=-1.0, kappa=0.2), "schwinger with beta = -1.0: expected beta >= 0"),
        (dict(shape=(4, 4), beta=1.0, kappa=0.5), "kappa = 0.5: expected 0 <= kappa < 0.5"),
        (dict(shape=(4, 4), beta=1.0, kappa=-0.1), "kappa = -0.1"),
        (dict(shape=(4, 4), beta=1.0), "kappa: missing"),
        (dict(shape=(4, 5), beta=1.0, kappa=0.2), "schwinger needs a lattice with even sides"),
        (dict(shape=(4, 4, 4), beta=1.0, kappa=0.2), "expected two dimensions"),
        (dict(shape=(4, 4), beta=1.0, kappa=0.2, group="su2"), "group"),
    ],
)
def test_bad_couplings(values, message):
    with pytest.raises(InputError, match=message):
        Schwinger(**values)
