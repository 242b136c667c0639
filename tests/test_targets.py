import itertools
import math

import numpy as np
import pytest
import torch
from tables import SCALARS, TARGETS, field, rng

from latticeflow.errors import InputError
from latticeflow.targets import FreeField, Phi4, targets

ALL = [pytest.param(t, id=f"{t.kind}-{t.shape}") for kind in SCALARS for t in TARGETS[kind]]


def test_every_registered_target_has_a_row():
    hypercubes = {"camel", "matrix_element"}  # tests/test_hypercube.py and those of collider/
    registered = {kind for kind in targets.classes if not kind.startswith("test_")}
    assert registered == set(TARGETS) | hypercubes


def brute_force_action(shape, m2, lam, phi):
    """S by loops over sites and bonds, as the formula reads."""
    total = 0.0
    for s in itertools.product(*(range(L) for L in shape)):
        for mu, L in enumerate(shape):
            neighbour = list(s)
            neighbour[mu] = (s[mu] + 1) % L
            total += (phi[tuple(neighbour)] - phi[s]) ** 2
        total += m2 * phi[s] ** 2 + lam * phi[s] ** 4
    return total


@pytest.mark.parametrize("target", ALL)
def test_action_is_the_formula(target):
    x = field(target.shape, 1)
    lam = getattr(target, "lam", 0.0)
    expected = [brute_force_action(target.shape, target.m2, lam, phi) for phi in x.numpy()]
    np.testing.assert_allclose(target.action(x), expected, rtol=1e-12)


@pytest.mark.parametrize("target", ALL)
def test_action_under_every_symmetry(target):
    x = field(target.shape, 2)
    action = target.action(x)
    torch.testing.assert_close(target.action(-x), action, rtol=1e-12, atol=0)
    for mu in range(target.lattice.dim):
        torch.testing.assert_close(target.action(target.lattice.shift(x, mu)), action, rtol=1e-12, atol=0)
    for order, flips in target.lattice.point_group():
        torch.testing.assert_close(
            target.action(target.lattice.transform(x, order, flips)), action, rtol=1e-12, atol=0
        )


@pytest.mark.parametrize("target", ALL)
def test_force_against_autograd_and_finite_differences(target):
    x = field(target.shape, 3).requires_grad_(True)
    (by_autograd,) = torch.autograd.grad(target.log_prob(x).sum(), x)
    x = x.detach()
    torch.testing.assert_close(target.force(x), by_autograd, rtol=1e-10, atol=1e-10)
    direction = field(target.shape, 4)
    eps = 1e-5
    slope = (target.log_prob(x + eps * direction) - target.log_prob(x - eps * direction)) / (2 * eps)
    expected = (target.force(x) * direction).flatten(1).sum(1)
    torch.testing.assert_close(slope, expected, rtol=1e-7, atol=1e-7)


def test_free_field_spectrum_and_log_z():
    free = FreeField(shape=(8, 8), m2=1.0)
    assert free.log_z == pytest.approx(-11.6228852573, abs=1e-9)
    assert free.spectrum.mean() == pytest.approx(0.127086998845, abs=1e-11)


def test_free_field_log_z_is_the_gaussian_determinant():
    """log Z = (V/2) log pi - (1/2) log det M with M built site by site."""
    free = FreeField(shape=(3, 4), m2=0.7)
    basis = torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    matrix = (-free.force(basis) / 2).reshape(12, 12).numpy()
    assert free.log_z == pytest.approx(6 * math.log(math.pi) - 0.5 * np.linalg.slogdet(matrix)[1], abs=1e-12)


def test_free_field_sampler():
    """<phi^2> within 4 sigma; a spectrum with the wrong factor 2 must fail."""
    free = FreeField(shape=(8, 8), m2=1.0)
    x = free.sample(20000, rng(5))
    per_draw = x.square().mean((1, 2)).numpy()
    error = per_draw.std() / math.sqrt(len(per_draw))
    assert abs(per_draw.mean() - 0.127086998845) < 4 * error
    assert abs(2 * per_draw.mean() - 0.127086998845) > 100 * error
    # the action of V Gaussian modes: mean V/2
    action = free.action(x).numpy()
    assert abs(action.mean() - 32) < 4 * action.std() / math.sqrt(len(action))


@pytest.mark.parametrize("shape", [(6,), (4, 4), (2, 3, 4)])
def test_conversions_keep_the_action(shape):
    phi4 = Phi4(shape=shape, m2=-1.3, lam=0.9)
    phi = field(shape, 6)
    hop = phi4.to_hopping()
    f = phi / hop["scale"]
    neighbours = sum(f * torch.roll(f, -1, mu + 1) for mu in range(len(shape)))
    density = -2 * hop["kappa"] * neighbours + (1 - 2 * hop["lam"]) * f**2 + hop["lam"] * f**4
    torch.testing.assert_close(density.flatten(1).sum(1), phi4.action(phi), rtol=1e-10, atol=1e-10)
    back, scale = Phi4.from_hopping(shape, hop["kappa"], hop["lam"])
    assert (back.m2, back.lam, scale) == pytest.approx((phi4.m2, phi4.lam, hop["scale"]))

    half = phi4.to_half()
    f = phi / half["scale"]
    gradients = sum((torch.roll(f, -1, mu + 1) - f) ** 2 for mu in range(len(shape)))
    density = 0.5 * gradients + 0.5 * half["m2"] * f**2 + half["lam"] / 24 * f**4
    torch.testing.assert_close(density.flatten(1).sum(1), phi4.action(phi), rtol=1e-10, atol=1e-10)
    back, scale = Phi4.from_half(shape, half["m2"], half["lam"])
    assert (back.m2, back.lam, scale) == pytest.approx((phi4.m2, phi4.lam, half["scale"]))


def test_hopping_literature_point():
    """kappa = 0.21, lam = 0.022 in 2D (1811.03533): m2 = (1 - 0.044)/0.21 - 4, lam = 0.022/0.21^2."""
    phi4, _ = Phi4.from_hopping((32, 32), 0.21, 0.022)
    assert (phi4.m2, phi4.lam) == pytest.approx((0.5523809523809, 0.4988662131519))
    assert phi4.to_hopping()["kappa"] == pytest.approx(0.21)


def test_batched_couplings():
    phi4 = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    x = field((4, 4), 7, n=2)
    batched = phi4.action(x, m2=torch.tensor([-4.0, 1.0]), lam=torch.tensor([8.0, 0.5]))
    assert batched[0] == pytest.approx(float(phi4.action(x)[0]))
    assert batched[1] == pytest.approx(float(Phi4(shape=(4, 4), m2=1.0, lam=0.5).action(x)[1]))


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(shape=(4, 4), m2=-4.0), "lam: missing"),
        (dict(shape=(4, 4), m2=-4.0, lam=-1.0), "expected lam > 0"),
        (dict(shape=(4, 4), m2=-4.0, lam=0.0), "no integral"),
        (dict(shape=(4, 4), m2=-4.0, lambda_=1.0, lam=1.0), "unknown key; did you mean 'lam'"),
        (dict(shape=(4, 4, 0), m2=-4.0, lam=1.0), "1 to 4 sides"),
        (dict(shape=(4, 4), m2="heavy", lam=1.0), "m2"),
        (dict(shape=(4, 4), m2=float("nan"), lam=1.0), "m2.*finite"),
        (dict(shape=(4, 4), m2=-4.0, lam=float("inf")), "lam.*finite"),
    ],
)
def test_bad_couplings(values, message):
    with pytest.raises(InputError, match=message):
        Phi4(**values)


def test_bad_fields():
    phi4 = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    with pytest.raises(InputError, match=r"shape \(2, 4, 5\); expected \[batch, 4, 4\]"):
        phi4.action(torch.zeros(2, 4, 5))
    with pytest.raises(InputError, match=r"dtype torch\.int64"):
        phi4.force(torch.zeros(2, 4, 4, dtype=torch.int64))
