"""U(1), SU(2) and SU(3) against scipy's matrix functions, group integrals in closed form, and finite differences."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from tables import rng

from latticeflow.errors import InputError
from latticeflow.groups import GROUPS, eigen_angles, wrap

SU = [GROUPS["su2"], GROUPS["su3"]]
ALL = [GROUPS["u1"], *SU]


def name(group):
    return group.name


def coefficients(group, *key, n=50, scale=1.0):
    return torch.from_numpy(scale * rng(*key).normal(size=(n, *group.algebra_tail)))


@pytest.mark.parametrize("group", SU, ids=name)
def test_generators(group):
    """Hermitian, traceless, `tr T_a T_b = delta_ab / 2`."""
    t = group.basis
    torch.testing.assert_close(t.mH, t)
    assert t.diagonal(dim1=1, dim2=2).sum(1).abs().max() < 1e-15
    products = torch.einsum("aij,bji->ab", t, t)
    torch.testing.assert_close(products.real, torch.eye(group.generators, dtype=torch.float64) / 2)
    assert products.imag.abs().max() < 1e-15


@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.3, 3.0, 30.0])
@pytest.mark.parametrize("group", SU, ids=name)
def test_exp_is_scipys(group, scale):
    c = coefficients(group, 1, scale=scale)
    expected = np.stack([scipy.linalg.expm(1j * q) for q in group.hermitian(c).numpy()])
    np.testing.assert_allclose(group.exp(c).numpy(), expected, atol=1e-13)
    assert group.violation(group.exp(c)).max() < 1e-13


@pytest.mark.parametrize("group", ALL, ids=name)
def test_log_is_the_inverse_of_exp(group):
    u = group.haar((200,), rng(2), torch.float64)
    torch.testing.assert_close(group.exp(group.log(u)), u, rtol=0, atol=1e-12)
    short = coefficients(group, 3, scale=0.5)
    torch.testing.assert_close(group.log(group.exp(short)), short, rtol=0, atol=1e-12)


@pytest.mark.parametrize("group", SU, ids=name)
def test_log_is_the_shortest(group):
    """No other choice of the eigenvalues' branches that is traceless is shorter."""
    c = group.log(group.haar((300,), rng(4), torch.float64))
    angles = torch.linalg.eigvalsh(group.hermitian(c))
    for shift in np.array([[1, -1, 0], [1, 0, -1], [0, 1, -1]])[:, : group.n]:
        for sign in (1, -1):
            if shift.sum() == 0:
                other = angles + sign * 2 * math.pi * torch.from_numpy(shift)
                assert (other.square().sum(1) >= angles.square().sum(1) - 1e-9).all()


@pytest.mark.parametrize("group", SU, ids=name)
def test_derivatives(group):
    """Of exp and log, also where eigenvalues meet."""
    c = coefficients(group, 5, n=3, scale=0.6).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda c: torch.view_as_real(group.exp(c)), c)
    assert torch.autograd.gradcheck(lambda c: group.log(group.exp(c)), c)
    meeting = torch.zeros(2, group.generators, dtype=torch.float64)
    meeting[1, -1] = 0.7  # SU(3): two equal eigenvalues
    assert torch.autograd.gradcheck(lambda c: torch.view_as_real(group.exp(c)), meeting.requires_grad_(True))
    assert torch.autograd.gradcheck(lambda c: group.log(group.exp(c)), meeting)


@pytest.mark.parametrize("group", ALL, ids=name)
def test_gradient_is_the_left_derivative_of_the_trace(group):
    u = group.haar((20,), rng(6), torch.float64)
    gradient = group.gradient(u)
    for a in range(group.generators):
        step = torch.zeros(20, *group.algebra_tail, dtype=torch.float64)
        step.view(20, -1)[:, a] = 1e-6
        plus, minus = (group.n * group.trace(group.mul(group.exp(s), u)) for s in (step, -step))
        torch.testing.assert_close(gradient.view(20, -1)[:, a], (plus - minus) / 2e-6, rtol=0, atol=1e-8)


def moments(group, u):
    """`<tr U>`, `<|tr U|^2>`, `<(tr U)^2>`, `<(tr U)^3>`, `<(U_00)^2 conj(U_00)^2>` with errors; complex means."""
    if not group.tail:
        trace = torch.polar(torch.ones_like(u), u)
        corner = trace
    else:
        trace, corner = u.diagonal(dim1=-2, dim2=-1).sum(-1), u[..., 0, 0]
    found = [trace, trace.abs().square(), trace**2, trace**3, corner.abs() ** 4]
    means = np.array([complex(z.mean()) for z in found])
    errors = np.array([float(z.abs().square().mean()) ** 0.5 / len(u) ** 0.5 for z in found])
    return means, errors


# integrals over Haar measure (the last is 2 / N (N + 1), Weingarten); tr U of SU(2) is real, and (3 x 3 x 3) of SU(3) holds
# a singlet
HAAR = {"U(1)": [0, 1, 0, 0, 1], "SU(2)": [0, 1, 1, 0, 1 / 3], "SU(3)": [0, 1, 0, 1, 1 / 6]}


@pytest.mark.parametrize("group", ALL, ids=name)
def test_haar(group):
    u = group.haar((40_000,), rng(7), torch.float64)
    assert group.violation(u).max() < 1e-12
    means, errors = moments(group, u)
    assert (abs(means - HAAR[group.name]) < 4 * errors).all()
    # left and right multiplication by one element change nothing
    g = group.haar((), rng(8), torch.float64)
    means, errors = moments(group, group.mul(g.expand_as(u), u))
    assert (abs(means - HAAR[group.name]) < 4 * errors).all()


@pytest.mark.parametrize("group", ALL, ids=name)
def test_another_measure_fails_the_same_test(group):
    """exp of Gaussian coefficients is not uniform."""
    means, errors = moments(group, group.exp(coefficients(group, 9, n=40_000, scale=1.5)))
    assert (abs(means - HAAR[group.name]) > 10 * errors).any()


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", SU, ids=name)
def test_project(group, precision):
    u = group.haar((100,), rng(10), precision)
    assert u.dtype == group.dtype(precision)
    eps = torch.finfo(precision).eps
    off = u + 0.02 * torch.view_as_complex(
        torch.from_numpy(rng(11).normal(size=(100, group.n, group.n, 2))).to(precision)
    )
    found = group.project(off)
    assert group.violation(found).max() < 100 * eps
    # the nearest unitary matrix, by singular values, brought to determinant one
    w, _, v = np.linalg.svd(off.to(torch.complex128).numpy())
    polar = w @ v
    polar = polar * np.exp(-1j * np.angle(np.linalg.det(polar)) / group.n)[:, None, None]
    np.testing.assert_allclose(found.numpy(), polar, atol=100 * eps)
    torch.testing.assert_close(group.project(u), u, rtol=0, atol=100 * eps)


@pytest.mark.parametrize("group", SU, ids=name)
def test_project_refuses_what_is_far_off(group):
    u = group.haar((5,), rng(12), torch.float64)
    for bad in (2 * u, u * math.nan, torch.zeros_like(u)):
        with pytest.raises(InputError, match=r"links off SU\(\d\)"):
            group.project(bad)


def test_wrap():
    angle = torch.tensor([0.0, math.pi, -math.pi, 3.5, -3.5, 7 * math.pi, 100.0], dtype=torch.float64)
    found = wrap(angle)
    assert (found > -math.pi).all() and (found <= math.pi).all()
    torch.testing.assert_close(
        torch.polar(torch.ones_like(angle), found - angle).real, torch.ones_like(angle)
    )


def test_eigen_angles_where_eigenvalues_meet():
    u = torch.eye(3, dtype=torch.complex128).repeat(2, 1, 1)
    u[1] = torch.diag(
        torch.polar(torch.ones(3, dtype=torch.float64), torch.tensor([0.4, 0.4, -0.8]).double())
    )
    turn = GROUPS["su3"].haar((2,), rng(13), torch.float64)
    angles, v = eigen_angles(turn @ u @ turn.mH)
    back = v @ (torch.polar(torch.ones_like(angles), angles)[..., None] * v.mH)
    torch.testing.assert_close(back, turn @ u @ turn.mH, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        v.mH @ v, torch.eye(3, dtype=torch.complex128).repeat(2, 1, 1), rtol=0, atol=1e-12
    )
