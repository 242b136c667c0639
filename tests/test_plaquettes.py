"""Flows of U(1) in two dimensions: Jacobians, symmetries, known distributions, and training against the exact answers."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from tables import rng
from test_gauge import gauge_transform

from latticeflow import exact
from latticeflow.correction import metropolis
from latticeflow.errors import InputError
from latticeflow.flows import Split
from latticeflow.flows.plaquettes import IndependentPlaquettes, Plaquettes
from latticeflow.groups import wrap
from latticeflow.lattice import Lattice
from latticeflow.observables import measure
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import mean, summarise_weights
from latticeflow.targets import Phi4, Wilson
from latticeflow.training import TrainSettings, train
from latticeflow.transforms.circular import circle_inverse, circle_map, knots
from latticeflow.transforms.plaquettes import curl, curl_transposed, lift, score_of_plaquettes

torch.set_num_threads(1)
TARGET = Wilson(shape=(4, 4), group="u1", beta=2.0)
SPECS = {
    "map": Plaquettes(base="haar", map=True, spread=False, steps=0, bins=5),
    "spread": Plaquettes(steps=0, bins=5),
    "drift": Plaquettes(base="haar", spread=False, harmonics=2, modes=2, steps=24, solver="rk6"),
    "all": Plaquettes(map=True, harmonics=2, modes=2, steps=24, solver="rk6", bins=4),
}


def made(name, *key, target=TARGET):
    """In float64, with weights off their start."""
    flow = SPECS[name].build_for(target, 1).double()
    with torch.no_grad():
        for parameter_name, p in flow.named_parameters():
            if p.requires_grad:
                scale = 0.05 if "kernel" in parameter_name else 0.08
                p += scale * torch.from_numpy(rng(*key).normal(size=tuple(p.shape)))
    return flow


# maps of the circle


def spline(*key, bins=6):
    return knots(
        *(torch.from_numpy(rng(*key, i).normal(size=n)) for i, n in enumerate((bins, bins, bins + 1)))
    )


def test_circle_map_and_its_inverse():
    x = torch.linspace(-9, 9, 500, dtype=torch.float64)
    y, log_slope = circle_map(x, spline(1))
    back, log_back = circle_inverse(y, spline(1))
    assert wrap(back - x).abs().max() < 1e-13 and (log_slope + log_back).abs().max() < 1e-11
    assert y.abs().max() <= math.pi
    torch.testing.assert_close(circle_map(-x, spline(1))[0], -y)
    turns = circle_map(x + 2 * math.pi, spline(1))
    assert wrap(turns[0] - y).abs().max() < 1e-12
    ahead, behind = (circle_map(x + e, spline(1))[0] for e in (1e-6, -1e-6))
    torch.testing.assert_close((wrap(ahead - behind) / 2e-6).log(), log_slope, rtol=0, atol=1e-6)
    inside = (x.abs() < 3.14) & (x != 0)
    assert (circle_map(x[inside], spline(1))[0].diff() > 0).all()


def test_circle_map_of_zeros_is_the_identity_and_differentiable():
    x = torch.linspace(-3.1, 3.1, 40, dtype=torch.float64)
    one, log_slope = circle_map(x, knots(*(torch.zeros(n, dtype=torch.float64) for n in (5, 5, 6))))
    assert (one - x).abs().max() < 1e-15 and log_slope.abs().max() < 1e-15
    logits = [torch.from_numpy(rng(2, i).normal(size=n)).requires_grad_() for i, n in enumerate((5, 5, 6))]
    for function in (circle_map, circle_inverse):
        assert torch.autograd.gradcheck(
            lambda x, *logits, function=function: function(x, knots(*logits)),
            (x.clone().requires_grad_(), *logits),
        )


# plaquettes and links


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (2, 6)])
def test_lift_and_curl(shape):
    d = torch.from_numpy(rng(3).normal(size=(2, *shape)))
    d -= d.mean((1, 2), keepdim=True)
    torch.testing.assert_close(curl(lift(d)), d)
    theta, s = (
        torch.from_numpy(rng(4).normal(size=(2, 2, *shape))),
        torch.from_numpy(rng(5).normal(size=(2, *shape))),
    )
    torch.testing.assert_close((curl(theta) * s).sum(), (theta * curl_transposed(s)).sum())
    s = s - s[:, :1, :1]
    torch.testing.assert_close(score_of_plaquettes(curl_transposed(s)), s)
    (_, _, p) = next(Wilson(shape=shape, group="u1", beta=1.0).plaquettes(theta))
    torch.testing.assert_close(curl(theta), p)


# flows


@pytest.mark.parametrize("name", SPECS)
def test_density_is_that_of_the_jacobian(name):
    flow = made(name, 6)
    noise = flow.noise(1, rng(7))
    jacobian = torch.autograd.functional.jacobian(
        lambda z: flow.push(z.view(1, 2, 4, 4))[0].flatten(), noise.flatten()
    )
    x, log_q = flow.push(noise)
    expected = flow.base.log_prob(noise) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-5 if flow.approximate else 1e-10)
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-11)
    assert not torch.allclose(log_q, flow.base.log_prob(noise))  # control: there is a Jacobian


@pytest.mark.parametrize("name", SPECS)
def test_score_is_the_gradient_of_the_density(name):
    flow = made(name, 8)
    x, _, score = flow.push_with_score(flow.noise(3, rng(9)))
    x = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    torch.testing.assert_close(score, expected, rtol=0, atol=2e-4 if flow.approximate else 1e-9)


@pytest.mark.parametrize("name", SPECS)
def test_symmetries(name):
    """Gauge transformations and charge conjugation of every flow; translations of the drift alone."""
    flow = made(name, 10)
    z = flow.noise(4, rng(11))
    x, log_q = flow.push(z)
    g = TARGET.links.haar((4, 4, 4), rng(12), torch.float64)
    turned, log_q_turned = flow.push(wrap(gauge_transform(TARGET, z, g)))
    assert wrap(turned - gauge_transform(TARGET, x, g)).abs().max() < 1e-9
    torch.testing.assert_close(log_q_turned, log_q)
    mirrored, log_q_mirrored = flow.push(-z)
    assert wrap(mirrored + x).abs().max() < 1e-9
    torch.testing.assert_close(log_q_mirrored, log_q)
    _, log_q_moved = flow.push(torch.roll(z, (1, 2), (2, 3)))
    assert torch.allclose(log_q_moved, log_q, atol=1e-9) == (name == "drift")


def test_base_of_independent_plaquettes():
    """All but one von Mises and independent, the charge and Polyakov loops free, its density normalised."""
    base = IndependentPlaquettes(Lattice((4, 4)), 2.0).double()
    theta = base.noise(20_000, rng(13))
    p = wrap(curl(theta))
    expected = scipy.special.ive(1, 2.0) / scipy.special.ive(0, 2.0)
    means = p.cos().mean(0)
    assert (means - expected).abs().flatten()[1:].max() < 4.5 * 0.35 / 20_000**0.5
    assert abs(float(means[0, 0])) < 0.03  # the sum of fifteen is nearly uniform
    assert abs(float((p[:, 1, 1] * p[:, 2, 3]).mean())) < 4 * float(p[:, 1, 1].var()) / 20_000**0.5
    loop = torch.polar(torch.ones_like(p[:, 0, 0]), theta[:, 1, 2].sum(-1)).mean()
    assert abs(complex(loop)) < 4 / 20_000**0.5
    # without training ESS is I_0(beta)^2 / I_0(2 beta), and < w > the exact Z
    w = summarise_weights((TARGET.log_prob(theta) - base.log_prob(theta)).numpy())
    ess = scipy.special.i0(2.0) ** 2 / scipy.special.i0(4.0)
    assert abs(w.ess - ess) < 4 * w.ess_error + 0.01
    assert abs(w.log_z - exact.log_z("u1", (4, 4), 2.0)) < 4 * w.log_z_error


def trained(spec, target, steps, **settings):
    flow = spec.build_for(target, 1)
    train(flow, target, TrainSettings(steps=steps, warmup=10, evaluate_draws=1024, **settings), seed=1)
    return flow


def test_spread_learns_what_the_base_lacks():
    """8x8, beta = 2: ESS 0.46 of the base becomes 0.95 and more; plaquette, charge and log Z exact after correction."""
    target = Wilson(shape=(8, 8), group="u1", beta=2.0)
    flow = trained(Plaquettes(steps=0), target, 300, optimizer="soap", lr=5e-3, batch=64)
    draws, _ = FlowSampler(target, flow).draw(None, 32768, rng(14))
    w = summarise_weights(draws.log_w)
    assert w.ess > 0.95
    assert abs(w.log_z - exact.log_z("u1", (8, 8), 2.0)) < 4 * w.log_z_error
    chain = draws.x[metropolis(draws.log_w, rng(15)).index]
    found = measure(target, chain, "plaquette", "charge", "charge2")
    plaquette, squared = mean(found["plaquette"][None]), mean(found["charge2"][None] / 64)
    assert abs(plaquette.value - exact.plaquette("u1", (8, 8), 2.0)) < 4 * plaquette.error
    assert abs(squared.value - exact.topological_susceptibility((8, 8), 2.0)) < 4 * squared.error
    assert mean(found["charge"][None]).tau.value < 1
    # control: uncorrected draws of the base have another plaquette
    raw = flow.base.noise(32768, rng(16)).double()
    wrong = mean(measure(target, raw, "plaquette")["plaquette"][None])
    assert abs(wrong.value - exact.plaquette("u1", (8, 8), 2.0)) > 8 * wrong.error


def test_a_map_moves_the_charge_of_haars_distribution():
    """From Haar: `<Q^2> / V` of a map's draws falls from 0.083, Haar's, to that of independent plaquettes."""
    target = Wilson(shape=(6, 6), group="u1", beta=2.0)
    flow = trained(SPECS["map"], target, 300, optimizer="soap", lr=5e-3, batch=64)
    x, _ = flow.sample(8192, rng(17))
    before, after = (
        measure(target, one.detach(), "charge2")["charge2"] / 36 for one in (flow.noise(8192, rng(18)), x)
    )
    assert abs(before.mean() - 1 / 12) < 0.005
    assert after.mean() < 0.04


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_precision(precision):
    flow = made("all", 19).to(precision)
    x, log_q = flow.sample(5, rng(20))
    assert x.dtype == precision and log_q.dtype == torch.float64 and x.abs().max() <= math.pi + 1e-6


def test_what_cannot_be_is_refused():
    for target in (
        Wilson(shape=(4, 4, 4), group="u1", beta=1.0),
        Wilson(shape=(4, 4, 4), group="su2", beta=1.0),
        Phi4(shape=(4, 4), m2=1.0, lam=1.0),
    ):
        with pytest.raises(InputError, match="a flow of Wilson's action in two dimensions; found target"):
            Plaquettes().build_for(target, 1)
    with pytest.raises(InputError, match="use build_for"):
        Plaquettes().build(Lattice((4, 4)), 1)
    with pytest.raises(InputError, match="shapes must agree"):
        FlowSampler(TARGET, Split().build(Lattice((4, 4)), 1))


def test_goes_on_on_a_larger_lattice():
    small, large = (
        made("all", 21),
        SPECS["all"].build_for(Wilson(shape=(8, 8), group="u1", beta=2.5), 1).double(),
    )
    large.adopt(small)
    assert np.allclose(large.layers[0].h.widths.detach(), small.layers[0].h.widths.detach())
    x, log_q = large.sample(3, rng(22))
    torch.testing.assert_close(large.log_prob(x), log_q, rtol=0, atol=1e-10)
