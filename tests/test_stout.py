"""Stout layers: Jacobian against finite differences on the group and in closed form, inverse, symmetries."""

import math

import pytest
import torch
from tables import rng, scramble
from test_gauge import gauge_transform

from latticeflow.errors import InputError, LatticeflowError
from latticeflow.flows.stout import WITHIN, Stout
from latticeflow.groups import GROUPS
from latticeflow.lattice import Lattice
from latticeflow.targets import Wilson
from latticeflow.transforms import stout

torch.set_num_threads(1)
TARGETS = [
    Wilson(shape=shape, group=group, beta=1.0)
    for group, shape in (("su2", (2, 4)), ("su2", (2, 2, 2, 2)), ("su3", (2, 2)), ("su3", (4, 2)))
]
ALL = [pytest.param(t, id=f"{t.group}-{t.shape}") for t in TARGETS]


def made(target, *key, scale=0.8):
    return scramble(Stout(target.links, target.lattice), *key, scale=scale)


def links(target, *key, n=2):
    shape = (n, len(target.shape), *target.shape)
    return target.links.haar(shape, rng(*key), torch.float64)


@torch.no_grad()
def jacobian(target, layer, x, eps=1e-5):
    """d (algebra coordinates of the image) / d (those of x), `[G, G]`, by differences; x one configuration."""
    size = math.prod(target.momentum_shape)
    p = torch.eye(size, dtype=torch.float64).view(size, *target.momentum_shape)
    ahead, behind = (layer(target.links.exp(sign * eps * p) @ x)[0] for sign in (1, -1))
    return target.links.log(ahead @ behind.mH).flatten(1).T / (2 * eps)


@pytest.mark.parametrize("target", ALL)
def test_log_det_is_that_of_the_full_jacobian(target, monkeypatch):
    layer, x = made(target, 1), links(target, 2)
    log_det = layer(x)[1]
    expected = torch.stack([torch.linalg.slogdet(jacobian(target, layer, one[None]))[1] for one in x])
    torch.testing.assert_close(log_det, expected, rtol=0, atol=1e-6)
    assert log_det.abs().min() > 0.1
    # a Jacobian as if the group were commutative must fail
    monkeypatch.setattr(stout, "_phi_of_minus", lambda k, v, m: m)
    assert (layer(x)[1] - expected).abs().min() > 1e-2


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_a_weak_layer_adds_its_laplacian(target):
    """`log_det = -rho C sum Re tr U A` to first order, U' along the force of S: the target's own formulas."""
    layer, x = made(target, 3, scale=0.0), links(target, 4)
    for rho in (1e-4, 1e-5):
        layer.weight.fill_(math.atanh(rho * (len(target.shape) - 1) / WITHIN))
        y, log_det = layer(x)
        unit = rho * target.links.n / target.beta
        torch.testing.assert_close(log_det, -unit * target.laplacian(x), rtol=0, atol=1e4 * rho**2)
        torch.testing.assert_close(
            target.links.log(y @ x.mH), unit * target.force(x), rtol=0, atol=100 * rho**2
        )


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_inverse(target):
    """Also at the largest rho there is."""
    for layer in (made(target, 5), made(target, 6, scale=100.0)):
        x = links(target, 7, n=16)
        y, log_det = layer(x)
        assert target.links.violation(y).max() < 1e-12 and target.distance(x, y).max() > 0.1
        back, log_det_inverse = layer.inverse(y)
        torch.testing.assert_close(back, x, rtol=0, atol=1e-11)
        torch.testing.assert_close(log_det_inverse, -log_det, rtol=0, atol=1e-9)


def test_starts_as_the_identity():
    target = TARGETS[2]
    x = links(target, 8)
    y, log_det = Stout(target.links, target.lattice).double()(x)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-14)
    assert not log_det.any()


@pytest.mark.parametrize("target", [Wilson(shape=(4, 4), group=g, beta=1.0) for g in ("su2", "su3")])
@torch.no_grad()
def test_symmetries(target):
    layer, x = made(target, 9), links(target, 10)
    g = target.links.haar((2, *target.shape), rng(11), torch.float64)
    maps = {
        "gauge": lambda u: gauge_transform(target, u, g),
        "charge": lambda u: u.conj().resolve_conj(),
        "translation by (0, 2)": lambda u: torch.roll(u, 2, 3),
        "translation by (1, 1)": lambda u: torch.roll(u, (1, 1), (2, 3)),
    }
    y, log_det = layer(x)
    for name, turn in maps.items():
        z, turned = layer(turn(x))
        torch.testing.assert_close(z, turn(y), rtol=0, atol=1e-11, msg=name)
        torch.testing.assert_close(turned, log_det, rtol=0, atol=1e-10, msg=name)
    odd, _ = layer(torch.roll(x, 1, 2))  # exchanges the masks
    assert target.distance(odd, torch.roll(y, 1, 2)).max() > 0.1


@pytest.mark.parametrize("target", ALL)
def test_gradients_reach_every_weight(target):
    layer, x = made(target, 12), links(target, 13)
    p = torch.from_numpy(rng(14).normal(size=tuple(layer.weight.shape)))

    def value():
        y, log_det = layer(x)
        return target.action(y).sum() - log_det.sum()

    (slope,) = torch.autograd.grad(value(), layer.weight)
    assert slope.abs().min() > 1e-3
    ends = []
    with torch.no_grad():
        for sign in (1, -1):
            layer.weight += sign * 1e-5 * p
            ends.append(float(value()))
            layer.weight -= sign * 1e-5 * p
    assert abs((ends[0] - ends[1]) / 2e-5 - float((slope * p).sum())) < 1e-6


def test_single_precision():
    target = TARGETS[3]
    layer, x = made(target, 15), links(target, 16)
    y, log_det = layer(x)
    z, other = layer.float()(x.to(torch.complex64))
    assert z.dtype == torch.complex64 and other.dtype == torch.float64
    torch.testing.assert_close(z.to(y), y, rtol=0, atol=1e-4)
    torch.testing.assert_close(other, log_det, rtol=0, atol=1e-3)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match=r"stout layers of U\(1\): expected SU\(2\) or SU\(3\)"):
        Stout(GROUPS["u1"], Lattice((4, 4)))
    with pytest.raises(InputError, match=r"even sides, found \(4, 3\)"):
        Stout(GROUPS["su2"], Lattice((4, 3)))
    layer = made(TARGETS[0], 17)
    with pytest.raises(LatticeflowError, match="inverse of a stout layer"):
        layer.inverse(2 * links(TARGETS[0], 18))
