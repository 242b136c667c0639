"""Wilson's action, its force and its symmetries, against loops over sites and plaquettes written out."""

import itertools
import math

import numpy as np
import pytest
import torch
from tables import TARGETS, rng

from latticeflow.errors import InputError
from latticeflow.groups import GROUPS
from latticeflow.targets import Wilson
from latticeflow.targets.gauge import polyakov_loops

ALL = [pytest.param(t, id=f"{t.group}-{t.shape}") for t in TARGETS["wilson"]]


def hot(target, *key, n=3, precision=torch.float64):
    return target.links.haar((n, *target.event_shape[: 1 + len(target.shape)]), rng(*key), precision)


def matrices(target, x):
    """Links as matrices in numpy, `[n, D, *shape, N, N]`."""
    x = x.numpy()
    return np.exp(1j * x)[..., None, None] if target.group == "u1" else x


def action(target, u):
    """-(beta / N) Re tr of every plaquette, one by one; u of one configuration."""
    total = 0.0
    for site in itertools.product(*map(range, target.shape)):
        for mu, nu in itertools.combinations(range(len(target.shape)), 2):
            there, across = list(site), list(site)
            there[mu] = (there[mu] + 1) % target.shape[mu]
            across[nu] = (across[nu] + 1) % target.shape[nu]
            p = u[(mu, *site)] @ u[(nu, *there)] @ u[(mu, *across)].conj().T @ u[(nu, *site)].conj().T
            total += p.trace().real
    return -target.beta / u.shape[-1] * total


@pytest.mark.parametrize("target", ALL)
def test_action_is_the_formula(target):
    x = hot(target, 1)
    expected = [action(target, u) for u in matrices(target, x)]
    np.testing.assert_allclose(target.action(x), expected, rtol=1e-12)
    one = target.links.identity((1, *x.shape[1 : 2 + len(target.shape)]), x)
    dim, volume = len(target.shape), math.prod(target.shape)
    assert float(target.action(one)) == pytest.approx(-target.beta * volume * dim * (dim - 1) / 2)


@pytest.mark.parametrize("target", ALL)
def test_force_is_the_derivative(target):
    x = hot(target, 2)
    p = torch.from_numpy(rng(3).normal(size=(3, *target.momentum_shape)))
    eps = 1e-5
    plus, minus = (target.log_prob(target.move(x.clone(), p, s)) for s in (eps, -eps))
    expected = (target.force(x) * p).flatten(1).sum(1)
    torch.testing.assert_close((plus - minus) / (2 * eps), expected, rtol=1e-6, atol=1e-6)


def gauge_transform(target, x, g):
    """`U_mu(x) -> g(x) U_mu(x) g(x + mu)^dagger`, g `[n, *shape, *tail]`."""
    group = target.links
    turned = [
        group.mul(group.mul(g, x[:, mu]), group.dagger(torch.roll(g, -1, 1 + mu)))
        for mu in range(len(target.shape))
    ]
    return torch.stack(turned, 1)


def reflect(target, x, mu):
    """`x_mu -> -x_mu`: links in the direction mu become daggers of those that start one site before the mirror image."""
    moved = torch.roll(torch.flip(x, (2 + mu,)), 1, 2 + mu)
    moved[:, mu] = target.links.dagger(torch.roll(moved[:, mu], -1, 1 + mu))
    return moved


@pytest.mark.parametrize("target", ALL)
def test_action_under_every_symmetry(target):
    x = hot(target, 4)
    s = target.action(x)
    g = target.links.haar((3, *target.shape), rng(5), torch.float64)
    close = dict(rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(target.action(gauge_transform(target, x, g)), s, **close)
    torch.testing.assert_close(target.action(-x if target.group == "u1" else x.conj()), s, **close)
    for mu in range(len(target.shape)):
        torch.testing.assert_close(target.action(torch.roll(x, 1, 2 + mu)), s, **close)
        torch.testing.assert_close(target.action(reflect(target, x, mu)), s, **close)
    # not a symmetry: one link turned
    turn = target.links.haar((), rng(6), torch.float64)
    turned = x.clone()
    turned[:, 0] = torch.where(first_site(target, x), target.links.mul(x[:, 0], turn), x[:, 0])
    assert (target.action(turned) - s).abs().min() > 1e-3


def first_site(target, x):
    """True at the site 0, broadcast to x[:, 0]."""
    mask = torch.zeros(target.shape, dtype=torch.bool)
    mask[(0,) * len(target.shape)] = True
    return mask.view(1, *target.shape, *[1] * len(target.links.tail)).expand_as(x[:, 0])


@pytest.mark.parametrize("target", ALL)
def test_move_and_settle(target):
    """Free motion is a one-parameter group, keeps the links on theirs, and `settle` changes rounding only."""
    x = hot(target, 7)
    p = torch.from_numpy(rng(8).normal(size=(3, *target.momentum_shape)))
    there = target.move(x.clone(), p, 0.7)
    twice = target.move(target.move(x.clone(), p, 0.3), p, 0.4)
    assert target.distance(there, twice).max() < 1e-12
    assert target.distance(target.move(there.clone(), p, -0.7), x).max() < 1e-12
    assert target.distance(target.settle(there), there).max() < 1e-12
    target.check_field(there)


@pytest.mark.parametrize("target", ALL)
def test_polyakov_loops(target):
    x = hot(target, 9)
    u = matrices(target, x)
    for mu in range(len(target.shape)):
        expected = []
        for site in itertools.product(*(range(1 if nu == mu else L) for nu, L in enumerate(target.shape))):
            product = np.eye(u.shape[-1])
            for k in range(target.shape[mu]):
                here = list(site)
                here[mu] = k
                product = product @ u[(slice(None), mu, *here)]
            expected.append(product.trace(axis1=1, axis2=2) / u.shape[-1])
        found = polyakov_loops(target.links, x, mu).flatten(1).numpy()
        np.testing.assert_allclose(found, np.stack(expected, 1), atol=1e-12)


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_precision_of_fields(precision):
    for group in GROUPS:
        target = Wilson(shape=(4, 4), group=group, beta=2.0)
        x = hot(target, 10, precision=precision)
        assert x.dtype == target.field_dtype(precision)
        assert target.action(x).dtype == precision and target.force(x).dtype == precision


@pytest.mark.parametrize(
    "values, message",
    [
        (dict(shape=(4, 4), group="u1"), "beta: missing"),
        (dict(shape=(4, 4), group="u1", beta=-1.0), "expected beta >= 0"),
        (dict(shape=(4,), group="u1", beta=1.0), "2 to 4 dimensions"),
        (dict(shape=(1, 4), group="u1", beta=1.0), "sides of at least 2"),
        (dict(shape=(4, 4), group="su4", beta=1.0), "group.*'u1', 'su2' or 'su3'"),
        (dict(shape=(4, 4), group="u1", beta=1.0, betta=2.0), "did you mean 'beta'"),
    ],
)
def test_bad_couplings(values, message):
    with pytest.raises(InputError, match=message):
        Wilson(**values)


def test_bad_fields():
    target = Wilson(shape=(4, 4), group="su3", beta=6.0)
    x = hot(target, 11)
    with pytest.raises(InputError, match=r"expected \[batch, 2, 4, 4, 3, 3\]"):
        target.action(x[:, :1])
    with pytest.raises(InputError, match="float64; expected complex64 or complex128"):
        target.action(x.real)
    x[1, 0, 2, 3] *= 1.1
    with pytest.raises(
        InputError, match=r"1 of 3 configurations, the first number 1, hold links off SU\(3\)"
    ):
        target.check_field(x)
