"""Coupling layers of gauge fields: Jacobians, scores, symmetries, masks, and training against the exact answers."""

import math

import numpy as np
import pytest
import torch
from tables import rng, scramble
from test_gauge import gauge_transform

from latticeflow import exact
from latticeflow.correction import metropolis
from latticeflow.errors import InputError
from latticeflow.flows.gauge_coupling import GaugeCoupling
from latticeflow.flows.gauge_masks import Mask, checkerboard, require_every_link, stripes
from latticeflow.flows.lassos import LinkLayer
from latticeflow.groups import GROUPS, wrap
from latticeflow.lattice import Lattice
from latticeflow.observables import measure
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import mean, summarise_weights
from latticeflow.targets import Phi4, Wilson
from latticeflow.training import TrainSettings, train
from latticeflow.transforms.plaquette_maps import CircleSpline, Projections, SpectralSU2, SpectralSU3
from latticeflow.transforms.projections import project, project_inverse
from latticeflow.transforms.spectral import alcove

torch.set_num_threads(1)
SMALL = dict(sweeps=1, bins=4, hidden=(4,))
CASES = {
    "u1-spline": (GaugeCoupling(**SMALL), Wilson(shape=(4, 4), group="u1", beta=2.0)),
    "u1-ncp": (
        GaugeCoupling(coupling="ncp", components=3, base="independent", **SMALL),
        Wilson(shape=(2, 4), group="u1", beta=2.0),
    ),
    "u1-stripes": (
        GaugeCoupling(mask="stripes", **SMALL),
        Wilson(shape=(4, 8), group="u1", beta=2.0),
    ),
    "u1-3d": (GaugeCoupling(**SMALL), Wilson(shape=(2, 2, 4), group="u1", beta=1.0)),
    "su2": (GaugeCoupling(**SMALL), Wilson(shape=(4, 2), group="su2", beta=2.2)),
    "su2-4d": (
        GaugeCoupling(loops=((1, 1),), **SMALL),
        Wilson(shape=(2, 2, 2, 2), group="su2", beta=2.2),
    ),
    "su3": (GaugeCoupling(**SMALL), Wilson(shape=(2, 2), group="su3", beta=5.0)),
    "su3-stripes": (
        GaugeCoupling(mask="stripes", **SMALL),
        Wilson(shape=(4, 4), group="su3", beta=5.0),
    ),
}
ALL = pytest.mark.parametrize("name", CASES)


def made(name, *key, layers=None):
    """In float64, with weights off their start."""
    spec, target = CASES[name]
    flow = spec.build_for(target, 1).double()
    flow.layers = flow.layers[:layers]
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.12 * torch.from_numpy(rng(*key).normal(size=tuple(p.shape)))
    return flow, target


def left_jacobian(target, flow, z):
    """Coefficients of the motion of x = T(z), in the basis at x, along each of those at z, of one configuration."""

    def coefficients(c):
        moved = target.links.mul(target.links.exp(c.view(1, *target.momentum_shape)), z)
        x = flow.push(moved)[0]
        if target.group == "u1":
            return x.flatten()
        turned = x @ x.detach().mH  # 1 + i dc_a T_a
        return target.links.coefficients((turned - turned.mH) / 2j).flatten()

    return torch.autograd.functional.jacobian(
        coefficients, torch.zeros(math.prod(target.momentum_shape)).double()
    )


@pytest.mark.parametrize("name", ["u1-spline", "u1-ncp", "u1-3d", "su2", "su3"])
def test_density_is_that_of_the_jacobian(name):
    flow, target = made(name, 1)
    z = flow.noise(1, rng(2))
    _, log_q = flow.push(z)
    expected = flow.base.log_prob(z) - torch.linalg.slogdet(left_jacobian(target, flow, z))[1]
    torch.testing.assert_close(log_q, expected, rtol=0, atol=1e-9)
    assert (log_q - flow.base.log_prob(z)).abs() > 0.1  # control: there is a Jacobian


@ALL
@torch.no_grad()
def test_round_trip_and_every_link_moves(name):
    flow, target = made(name, 3)
    z = flow.noise(3, rng(4))
    x, log_q = flow.push(z)
    assert target.distance(flow.inverse(x)[0], z).max() < 1e-11
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-10)
    assert target.links.violation(x).max() < 1e-12
    moved = target.distance(x, z).amax(0)
    moved = moved if target.group == "u1" else moved.amax((-2, -1))
    assert moved.min() > 1e-3


@ALL
def test_score_is_the_left_derivative_of_the_density(name):
    flow, target = made(name, 5)
    x, _, score = flow.push_with_score(flow.noise(2, rng(6)))
    p = torch.from_numpy(rng(7).normal(size=tuple(score.shape)))
    with torch.no_grad():
        plus, minus = (flow.log_prob(target.move(x.detach().clone(), p, s)) for s in (1e-5, -1e-5))
    torch.testing.assert_close((score * p).flatten(1).sum(1), (plus - minus) / 2e-5, rtol=1e-3, atol=1e-3)


@ALL
@torch.no_grad()
def test_symmetries(name):
    flow, target = made(name, 8)
    dim = len(target.shape)
    z = flow.noise(2, rng(9))
    x, log_q = flow.push(z)
    g = target.links.haar((2, *target.shape), rng(10), torch.float64)
    period = 4 if "stripes" in name else 1
    shift = (period,) * (dim - dim % 2) + (0,) * (dim % 2)  # in an even number of directions
    maps = {
        "gauge": lambda u: gauge_transform(target, u, g),
        "charge": lambda u: -u if target.group == "u1" else u.conj().resolve_conj(),
        "period": lambda u: torch.roll(u, shift, tuple(range(2, 2 + dim))),
        "along": lambda u: torch.roll(u, 2 * period if period == 1 else 4, 3),
    }
    if name == "u1-ncp":  # the base breaks translations
        maps = {key: maps[key] for key in ("gauge", "charge")}
    for key, turn in maps.items():
        y, log_q_turned = flow.push(turn(z))
        assert target.distance(y, turn(x)).max() < 1e-10, key
        torch.testing.assert_close(log_q_turned, log_q, rtol=0, atol=1e-9, msg=key)
    if name != "u1-ncp":  # control: by half a period it is another flow
        y, _ = flow.push(torch.roll(z, 1, 3))
        assert target.distance(y, torch.roll(x, 1, 3)).max() > 1e-2


# maps of one plaquette

MAPS = {
    "spline": ("u1", CircleSpline(5)),
    "ncp": ("u1", Projections(3)),
    "su2": ("su2", SpectralSU2(5)),
    "su3": ("su3", SpectralSU3(5)),
}


def parameters(h, n, *key, scale=1.0):
    return (
        scale * torch.from_numpy(rng(*key, i).normal(size=(n, size)))
        for i, size in enumerate((h.evens, h.odds))
    )


def apart(group, p, q):
    return (wrap(p - q) if group.n == 1 else p - q).abs().max()


@pytest.mark.parametrize("name", MAPS)
def test_plaquette_maps(name):
    """Inverse, conjugation, charge conjugation, identity, and Haar's measure kept in mean."""
    group, h = GROUPS[MAPS[name][0]], MAPS[name][1]
    n = 20_000
    p, g = (group.haar((n,), rng(11, i), torch.float64) for i in range(2))
    even, odd = parameters(h, n, 12)
    q, log_slope = h.forward(p, even, odd)
    assert group.violation(q).max() < 1e-12
    back, log_back = h.inverse(q, even, odd)
    assert apart(group, back, p) < 1e-9 and (log_slope + log_back).abs().max() < 1e-7
    turned, log_turned = h.forward(group.mul(group.mul(g, p), group.dagger(g)), even, odd)
    assert apart(group, turned, group.mul(group.mul(g, q), group.dagger(g))) < 1e-9
    assert (log_turned - log_slope).abs().max() < 1e-7
    charged, log_charged = h.forward(-p if group.n == 1 else p.conj().resolve_conj(), even, -odd)
    assert apart(group, charged, -q if group.n == 1 else q.conj()) < 1e-9
    assert (log_charged - log_slope).abs().max() < 1e-7
    # < f(h(P)) |det| > = < f(P) > over Haar's measure, f = 1, Re tr P / N, (Re tr P / N)^2; slopes for one set of parameters
    even, odd = (one[:1].expand(n, -1) for one in (0.5 * even, 0.5 * odd))
    q, log_slope = h.forward(p, even, odd)
    weight, trace = log_slope.exp(), group.trace(q)
    second = {1: 0.5, 2: 0.25, 3: 1 / 18}[group.n]
    for value, expected in ((weight, 1.0), (weight * trace, 0.0), (weight * trace**2, second)):
        assert abs(value.mean() - expected) < 4 * value.std() / n**0.5
    without = [abs(t.mean() - m) / t.std() for t, m in ((trace, 0.0), (trace**2, second))]
    assert max(without) > 8 / n**0.5  # control: without |det|
    if name != "ncp":
        same, log_same = h.forward(p, 0 * even, 0 * odd)
        assert apart(group, same, p) < 1e-9 and log_same.abs().max() < 1e-7


@pytest.mark.parametrize("name", MAPS)
def test_plaquette_maps_where_eigenvalues_meet(name):
    """At P = 1, at P = -1 or a cube root of 1, and close to them: finite values and derivatives, the inverse right."""
    group, h = GROUPS[MAPS[name][0]], MAPS[name][1]
    c = 1e-6 * torch.from_numpy(rng(13).normal(size=(4, *group.algebra_tail)))
    c[:2] = 0
    p = group.exp(c)
    if group.n == 1:
        p[1::2] += math.pi
    else:
        p[1::2] = p[1::2] * complex(np.exp(2j * math.pi / group.n))
    p.requires_grad_()
    even, odd = parameters(h, 4, 14)
    q, log_slope = h.forward(p, even, odd)
    back, _ = h.inverse(q, even, odd)
    assert apart(group, back.detach(), p.detach()) < 1e-6 and log_slope.isfinite().all()
    (slope,) = torch.autograd.grad(group.trace(q).sum() + log_slope.sum(), p)
    assert slope.isfinite().all()


def test_projections_are_undone_by_newtons_steps_within_a_bracket():
    """Steep ones, e^{s} up to e^{12}, where Newton's steps alone leave the circle; derivatives of the implicit function."""
    x = torch.linspace(-3.14, 3.14, 301, dtype=torch.float64)
    log_rho = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64).log()
    s = torch.tensor([-6.0, 0.5, 6.0], dtype=torch.float64)
    y, log_slope = project(x, log_rho, s)
    back, _ = project_inverse(y, log_rho, s)
    torch.testing.assert_close(project(back, log_rho, s)[0], y, rtol=0, atol=1e-12)
    assert ((back - x).abs() * log_slope.exp()).max() < 1e-12
    assert torch.autograd.gradcheck(
        lambda y, logits, s: project_inverse(y, logits.log_softmax(0), s),
        (y[::20].clone().requires_grad_(), log_rho.requires_grad_(), (s / 4).requires_grad_()),
    )


def test_alcove():
    """Angles in order, of sum 0, not more than 2 pi apart, and the same for conjugate matrices."""
    for n in (2, 3):
        group = GROUPS[f"su{n}"]
        u, g = (group.haar((500,), rng(15, i), torch.float64) for i in range(2))
        angles, v = alcove(u)
        assert (angles.diff() <= 0).all() and angles.sum(-1).abs().max() < 1e-13
        assert (angles[:, 0] - angles[:, -1]).max() <= 2 * math.pi
        again = v @ (torch.polar(torch.ones_like(angles), angles)[..., None] * v.mH)
        torch.testing.assert_close(again, u, rtol=0, atol=1e-13)
        torch.testing.assert_close(alcove(g @ u @ g.mH)[0], angles, rtol=0, atol=1e-12)


# masks


@pytest.mark.parametrize("shape", [(4, 4), (8, 4), (2, 6), (2, 4, 2), (2, 2, 2, 2)])
def test_masks_reach_every_link_once(shape):
    lattice = Lattice(shape)
    kinds = [checkerboard(lattice)] + ([stripes(lattice)] if min(shape) >= 4 else [])
    for masks in kinds:
        require_every_link(masks)
        count = np.bincount(
            np.concatenate([mask.links for mask in masks]), minlength=lattice.dim * lattice.volume
        )
        assert (count == 1).all()


def test_masks_that_do_not_tile_are_refused():
    lattice = Lattice((4, 4))
    everywhere = np.ones((4, 4), bool)
    with pytest.raises(InputError, match=r"does not tile the lattice .* holds another active link"):
        Mask(lattice, 0, 1, everywhere)
    with pytest.raises(InputError, match="expected some, of the lattice's shape"):
        Mask(lattice, 0, 1, ~everywhere)
    with pytest.raises(InputError, match="expected some, of the lattice's shape"):
        Mask(lattice, 0, 1, everywhere[:2])
    with pytest.raises(InputError, match="never move 16 of 32 links, the first of direction 1"):
        require_every_link([mask for mask in checkerboard(lattice) if mask.mu == 0])


def test_what_cannot_be_is_refused():
    spec = GaugeCoupling()
    with pytest.raises(InputError, match="found target 'phi4'"):
        spec.build_for(Phi4(shape=(4, 4), m2=1.0, lam=1.0), 1)
    with pytest.raises(InputError, match="use build_for"):
        spec.build(Lattice((4, 4)), 1)
    with pytest.raises(InputError, match="mask 'checkerboard' needs a lattice with even sides"):
        spec.build_for(Wilson(shape=(3, 4), group="u1", beta=1.0), 1)
    for shape in ((6, 4), (4, 4, 4)):
        with pytest.raises(InputError, match=r"mask 'stripes' .* multiples of 4"):
            GaugeCoupling(mask="stripes").build_for(Wilson(shape=shape, group="u1", beta=1.0), 1)
    with pytest.raises(InputError, match="'ncp' is of u1; found su3"):
        GaugeCoupling(coupling="ncp").build_for(Wilson(shape=(4, 4), group="su3", beta=1.0), 1)
    for shape, group in (((4, 4), "su2"), ((2, 2, 2), "u1")):
        with pytest.raises(InputError, match="'independent' is of u1 in two dimensions; found"):
            GaugeCoupling(base="independent").build_for(Wilson(shape=shape, group=group, beta=1.0), 1)
    with pytest.raises(InputError, match="expected positive numbers"):
        GaugeCoupling(loops=((0, 1),))


# training


@pytest.mark.parametrize(
    "target, spec, steps",
    [
        (Wilson(shape=(4, 4), group="u1", beta=1.0), dict(), 40),
        (Wilson(shape=(4, 4), group="u1", beta=1.0), dict(coupling="ncp", base="independent"), 40),
        (Wilson(shape=(4, 4), group="su2", beta=1.0), dict(loops=((1, 1),)), 30),
        (Wilson(shape=(2, 4), group="su3", beta=2.0), dict(loops=((1, 1),)), 20),
    ],
    ids=["u1", "u1-ncp", "su2", "su3"],
)
def test_training_and_correction_give_the_exact_answer(target, spec, steps):
    flow = GaugeCoupling(sweeps=1, hidden=(8,), bins=6, **spec).build_for(target, 1)
    before = drawn(target, flow, 2048)
    settings = TrainSettings(steps=steps, lr=0.01, warmup=5, batch=32, evaluate_draws=1024)
    train(flow, target, settings, seed=1)
    draws = drawn(target, flow, 8192)
    w = summarise_weights(draws.log_w)
    assert w.ess > 0.3 and w.ess > (0.9 if "base" in spec else 1.3) * summarise_weights(before.log_w).ess
    exact_log_z = exact.log_z(target.group, target.shape, target.beta)
    assert abs(w.log_z - exact_log_z) < 4 * w.log_z_error
    expected = exact.plaquette(target.group, target.shape, target.beta)
    right, wrong = (plaquette(target, draws.x, log_w) for log_w in (draws.log_w, draws.log_prob))
    assert abs(right.value - expected) < 4 * right.error
    assert abs(wrong.value - expected) > 8 * wrong.error  # control: weights without the flow's density


def drawn(target, flow, n):
    return FlowSampler(target, flow).draw(None, n, rng(17))[0]


def plaquette(target, x, log_w):
    chain = x[metropolis(log_w, rng(18)).index]
    return mean(measure(target, chain, "plaquette")["plaquette"][None])


def test_every_parameter_has_a_gradient():
    flow, target = made("u1-3d", 19)
    x, log_q = flow.push(flow.noise(4, rng(20)))
    (log_q.sum() + target.log_prob(x).sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in flow.parameters())


@pytest.mark.parametrize("group", ["u1", "su2", "su3"])
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
def test_precision(group, precision):
    """Through all sweeps of the default, links stay on the group and log q of the stored ones is that in float64."""
    target = Wilson(shape=(4, 4), group=group, beta=2.0)
    flow = scramble(GaugeCoupling().build_for(target, 1), 21, scale=0.05).to(precision)
    x, log_q = flow.sample(16, rng(22))
    assert x.dtype == target.field_dtype(precision) and log_q.dtype == torch.float64
    assert target.links.violation(x).max() < 20 * torch.finfo(precision).eps
    again = flow.double().log_prob(x.to(target.field_dtype(torch.float64)))
    allowed = 1000 * torch.finfo(precision).eps * math.prod(target.event_shape) ** 0.5
    assert (again - log_q).abs().max() < allowed / 4


def test_goes_on_on_a_larger_lattice():
    """Networks know of no lattice: on copies side by side they do what they did on one."""
    small, target = made("u1-spline", 23)
    large = CASES["u1-spline"][0].build_for(Wilson(shape=(8, 8), group="u1", beta=2.0), 1).double()
    large.adopt(small)
    z = small.noise(2, rng(24))
    x, log_q = small.push(z)
    wide, log_q_wide = large.push(z.repeat(1, 1, 2, 2))
    assert target.distance(wide, x.repeat(1, 1, 2, 2)).max() < 1e-10
    torch.testing.assert_close(log_q_wide, 4 * log_q)


@ALL
def test_score_is_that_of_any_layer(name):
    """By way of the surroundings seen forwards as by the whole inverse, and the same gradient of the parameters."""
    flow, target = made(name, 25, layers=2)
    z = flow.noise(2, rng(26))
    for layer in flow.layers:
        s = torch.from_numpy(rng(28).normal(size=(2, *target.momentum_shape)))
        found, wanted = (
            of(layer, z, s) for of in (type(layer).forward_with_score, LinkLayer.forward_with_score)
        )
        torch.testing.assert_close(found, wanted)
    x, log_q, score = flow.push_with_score(z)
    again, log_q_again = flow.push(z)
    torch.testing.assert_close((x, log_q), (again, log_q_again))
    weight = torch.from_numpy(rng(27).normal(size=tuple(x.shape))).to(x.dtype)
    for a, b in zip(
        *(torch.autograd.grad((one * weight).sum().abs(), [*flow.parameters()]) for one in (x, again))
    ):
        torch.testing.assert_close(a, b)
    assert not score.requires_grad
