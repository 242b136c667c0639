"""The flow along Wilson and Polyakov loops: its loops, Jacobian, symmetries and base, and that it learns a determinant."""

import math

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform, reflect
from test_gauge_observables import path

from latticeflow.errors import InputError
from latticeflow.flows.loops import Loops, kinds
from latticeflow.flows.plaquettes import IndependentPlaquettes
from latticeflow.flows.sectors import SuppressedCharge, charge
from latticeflow.groups import wrap
from latticeflow.lattice import Lattice
from latticeflow.observables import measure
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import summarise_weights
from latticeflow.targets import Schwinger, Wilson
from latticeflow.training import TrainSettings, train

torch.set_num_threads(1)
TARGET = Schwinger(shape=(4, 4), beta=2.0, kappa=0.276)
FINE = {"base_beta": 2.4, "modes": 2, "steps": 8, "solver": "rk6", "bins": 4}
SPECS = {
    "all": Loops(**FINE, suppression=1.5),
    "drift": Loops(**FINE, spread=False),
    "plaquettes": Loops(**FINE, sides=1, winding=False, harmonics=2),
}


def made(name, *key, target=TARGET):
    """In float64, with weights off their start."""
    flow = SPECS[name].build_for(target, 1).double()
    with torch.no_grad():
        for parameter_name, p in flow.named_parameters():
            if p.requires_grad:
                scale = 0.02 if "kernel" in parameter_name else 0.1
                p += scale * torch.from_numpy(rng(*key).normal(size=tuple(p.shape)))
    return flow


def test_kinds_are_loops():
    """Each row of each matrix against the product of links along the loop, at all sites of a 4x6 lattice."""
    target = Wilson(shape=(4, 6), group="u1", beta=1.0)
    theta = target.links.haar((1, 2, 4, 6), rng(1), torch.float64)
    u = np.exp(1j * theta.numpy()[0])[..., None, None]
    walks = [[[(0, 1)] * r + [(1, 1)] * t + [(0, -1)] * r + [(1, -1)] * t] for r in (1, 2) for t in (1, 2)]
    for mu, side in ((0, 4), (1, 6)):
        nu = 1 - mu
        walks.append([[(mu, 1)] * side])
        walks.append([[(nu, s), (mu, 1), (nu, -s)] + [(mu, 1)] * (side - 1) for s in (1, -1)])
    found = kinds(Lattice((4, 6)), 2, True)
    assert [len(one.images) for one in found] == [len(one) for one in walks]
    sites = [(a, b) for a in range(4) for b in range(6)]
    for kind, images in zip(found, walks):
        for matrix, steps in zip(kind.images, images):
            start = (
                sites if len(matrix) == 24 else [(a, 0) for a in range(4)] if len(matrix) == 4 else sites[:6]
            )
            expected = [np.angle(path(target, u, site, steps)[0, 0]) for site in start]
            off = matrix @ theta.flatten() - torch.from_numpy(np.array(expected))
            assert wrap(off).abs().max() < 1e-12


@pytest.mark.parametrize("name", SPECS)
def test_density_is_that_of_the_jacobian(name):
    flow = made(name, 2)
    noise = flow.noise(1, rng(3))
    jacobian = torch.autograd.functional.jacobian(lambda z: flow.push(z)[0], noise).reshape(32, 32)
    x, log_q = flow.push(noise)
    expected = flow.base.log_white(noise) - torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-5)
    assert wrap(x - noise).abs().max() > 0.05
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-10)
    assert wrap(flow.inverse(x)[0] - noise).abs().max() < 1e-10
    assert flow.density_error(x, log_q).max() < 1e-5


@pytest.mark.parametrize("name", SPECS)
def test_score(name):
    flow = made(name, 4)
    x, _, score = flow.push_with_score(flow.noise(2, rng(5)))
    x = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(score, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SPECS)
def test_symmetries(name):
    """Gauge transformations and charge conjugation of every flow; translations and reflections of the drift alone."""
    flow = made(name, 6)
    z = flow.noise(4, rng(7))
    x, log_q = flow.push(z)
    g = TARGET.links.haar((4, 4, 4), rng(8), torch.float64)
    turned, log_q_turned = flow.push(wrap(gauge_transform(TARGET, z, g)))
    assert wrap(turned - gauge_transform(TARGET, x, g)).abs().max() < 1e-9
    torch.testing.assert_close(log_q_turned, log_q)
    mirrored, log_q_mirrored = flow.push(-z)
    assert wrap(mirrored + x).abs().max() < 1e-9
    torch.testing.assert_close(log_q_mirrored, log_q)
    moved = [torch.roll(z, (1, 2), (2, 3)), reflect(TARGET, z, 0), reflect(TARGET, z, 1)]
    layer = flow.layers[-1]
    log_det = layer(z)[1]
    for one in moved:
        torch.testing.assert_close(layer(one)[1], log_det)
    turn = z.clone()  # no symmetry: Polyakov loops are seen, but not by plaquettes alone
    turn[:, 1, :, 0] += 1.0
    assert torch.allclose(layer(turn)[1], log_det) == (name == "plaquettes")


@pytest.mark.parametrize("shape, kappa", [((4, 4), 1.0), ((6, 4), 2.5)])
def test_base_of_suppressed_charge(shape, kappa):
    """Probabilities of Q before and after the suppression against draws; the density against that of the plain base."""
    lattice, n = Lattice(shape), 20_000
    plain, base = (
        IndependentPlaquettes(lattice, kappa).double(),
        SuppressedCharge(lattice, kappa, 1.2).double(),
    )
    q, p = base.charges
    suppressed = p * np.exp(-1.2 * abs(q))
    for one, expected in ((plain, p), (base, suppressed / suppressed.sum())):
        drawn = charge(one.noise(n, rng(9))).numpy()
        for k in (-1, 0, 1):
            share = expected[q == k][0]
            assert abs((drawn == k).mean() - share) < 4 * (share * (1 - share) / n) ** 0.5
    assert abs((drawn == 0).mean() - p[q == 0][0]) > 20 * 0.5 / n**0.5  # the other one's
    x = plain.noise(n, rng(10))
    w = torch.exp(base.log_prob(x) - plain.log_prob(x))
    assert abs(float(w.mean()) - 1) < 4 * float(w.std()) / n**0.5
    assert torch.equal(
        charge(x), torch.from_numpy(measure(Wilson(shape=shape, group="u1", beta=1.0), x, "charge")["charge"])
    )


def test_learns_the_determinant():
    """4x4: beyond what plaquettes alone reach; log Z against the untrained base with plain weights."""
    flow = Loops(base_beta=2.4, suppression=1.0, steps=3, sides=1, modes=2).build_for(TARGET, 1)
    base, _ = FlowSampler(TARGET, flow).draw(None, 30_000, rng(11))
    before = summarise_weights(base.log_w)
    settings = TrainSettings(steps=60, optimizer="soap", lr=3e-3, warmup=5, batch=64, evaluate_draws=1024)
    train(flow, TARGET, settings, seed=1)
    draws, _ = FlowSampler(TARGET, flow).draw(None, 16_384, rng(12))
    after = summarise_weights(draws.log_w)
    assert after.ess > before.ess + 0.2 and after.ess > 0.6
    assert abs(after.log_z - before.log_z) < 4 * math.hypot(after.log_z_error, before.log_z_error)


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="a flow of u1 in two dimensions; found su2"):
        Loops().build_for(Wilson(shape=(4, 4), group="su2", beta=1.0), 1)
    with pytest.raises(InputError, match="use build_for"):
        Loops().build(Lattice((4, 4)), 1)
    with pytest.raises(InputError, match="suppression"):
        Loops(suppression=-1.0)
    with pytest.raises(InputError, match="do not fit"):
        SPECS["all"].build_for(Schwinger(shape=(6, 4), beta=2.0, kappa=0.2), 1).adopt(made("all", 13))
