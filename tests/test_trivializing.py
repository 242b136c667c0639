"""The gauge-equivariant continuous flow of SU(2) and SU(3): divergence, score, inverse, symmetries, training."""

import math

import pytest
import torch
from tables import rng
from test_gauge import gauge_transform, reflect

from latticeflow import exact
from latticeflow.errors import InputError
from latticeflow.flows.trivializing import Trivializing
from latticeflow.lattice import Lattice
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import summarise_weights
from latticeflow.targets import Phi4, Wilson
from latticeflow.targets.gauge import plaquette
from latticeflow.training import TrainSettings, train
from latticeflow.transforms import commutator_free, matrices, plaquette_views

torch.set_num_threads(1)
TARGETS = [Wilson(shape=(4, 4), group="su2", beta=2.2), Wilson(shape=(3, 4), group="su3", beta=5.0)]
ALL = [pytest.param(t, id=t.group) for t in TARGETS]


def made(target, *key, steps=10, powers=3, strength=1.0):
    flow = Trivializing(powers=powers, modes=2, steps=steps).build_for(target, 1).double()
    layer = flow.layers[0]
    sizes = torch.bincount(torch.from_numpy(target.lattice.displacement_orbits.ravel()))
    with torch.no_grad():
        for p, scale in ((layer.constant, 0.1), (layer.kernel, 0.015 * sizes), (layer.rectangle, 0.1)):
            p += strength * scale * torch.from_numpy(rng(*key).normal(size=tuple(p.shape)))
    return flow


def along(target, function, x, p, eps):
    """The derivative of a function of links along the motion with momentum p."""
    return (function(target.move(x.clone(), p, eps)) - function(target.move(x.clone(), p, -eps))) / (2 * eps)


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_divergence_is_the_trace_of_derivatives(target):
    flow = made(target, 1)
    x, drift = flow.noise(2, rng(2)), flow.layers[0].drift(0.3)
    velocity, divergence = drift(x)
    total = torch.zeros(2, dtype=torch.float64)
    for i in range(velocity[0].numel()):
        p = torch.zeros_like(velocity).flatten(1)
        p[:, i] = 1
        total += along(target, lambda u, i=i: drift(u)[0].flatten(1)[:, i], x, p.view_as(velocity), 1e-5)
    torch.testing.assert_close(divergence, total, rtol=0, atol=1e-7)
    assert divergence.abs().min() > 0.1


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_float32_draws_have_the_density_that_verify_finds(target):
    """log q of the stored, rounded links in float64 is that of the draw; so is its value at twice the resolution."""
    flow = made(target, 5, strength=0.5).float()
    x, log_q = flow.sample(16, rng(6))
    assert x.dtype == torch.complex64
    x, flow = x.to(torch.complex128), flow.double()
    allowed = 1000 * torch.finfo(torch.float32).eps * math.prod(target.event_shape) ** 0.5
    assert (flow.log_prob(x) - log_q).abs().max() < allowed / 4
    assert flow.density_error(x, log_q).max() < 0.02


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_inverse_and_order_of_the_solver(target):
    flow = made(target, 3)
    z = flow.noise(3, rng(4))
    x, log_q = flow.push(z)
    assert target.links.violation(x).max() < 1e-12
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-10)
    assert target.distance(flow.inverse(x)[0], z).max() < 1e-10
    error = float(flow.density_error(x, log_q).max())
    finer = made(target, 3, steps=20)
    y, finer_log_q = finer.push(z)
    smaller = float(finer.density_error(y, finer_log_q).max())
    assert 0 < smaller < error / 8  # order four: 16


@pytest.mark.parametrize("target", ALL)
def test_score_is_the_left_derivative_of_the_density(target):
    flow = made(target, 5, steps=12, strength=0.4)
    x, log_q, score = flow.push_with_score(flow.noise(2, rng(6)))
    p = torch.from_numpy(rng(7).normal(size=tuple(score.shape)))
    with torch.no_grad():
        expected = along(target, flow.log_prob, x.detach(), p, 1e-4)
        torch.testing.assert_close(flow.log_prob(x), log_q, rtol=0, atol=1e-8)
    torch.testing.assert_close((score * p).flatten(1).sum(1), expected, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("target", ALL)
def test_pair(target):
    """The derivative of `pair(c, U)` along a motion is c . p, by autograd through the motion."""
    x, c = (
        made(target, 8).noise(2, rng(9)),
        torch.from_numpy(rng(10).normal(size=(2, *target.momentum_shape))),
    )
    p = torch.from_numpy(rng(11).normal(size=(2, *target.momentum_shape)))
    time = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(target.pair(c, target.links.exp(time * p) @ x).sum(), time)
    torch.testing.assert_close(slope, (c * p).sum())


@pytest.mark.parametrize("target", ALL)
@torch.no_grad()
def test_symmetries(target):
    flow = made(target, 12)
    z = flow.noise(2, rng(13))
    x, log_q = flow.push(z)
    g = target.links.haar((2, *target.shape), rng(14), torch.float64)
    maps = {
        "gauge": lambda u: gauge_transform(target, u, g),
        "charge": lambda u: u.conj(),
        "translation": lambda u: torch.roll(u, (1, 2), (2, 3)),
        "reflection": lambda u: reflect(target, u, 0),
    }
    for name, turn in maps.items():
        y, log_q_turned = flow.push(turn(z).resolve_conj())
        allowed = 1e-4 if name == "reflection" else 1e-10  # that one to the order of the solver
        assert target.distance(y, turn(x)).max() < allowed, name
        torch.testing.assert_close(log_q_turned, log_q, rtol=0, atol=10 * allowed, msg=name)
    assert target.distance(x, z).max() > 0.1


def test_commutator_free_steps_are_of_order_four():
    """`dU/dt = i v(t) U` with v of two directions that do not commute, against ten times as many steps."""
    group = TARGETS[0].links
    a, b = (torch.from_numpy(rng(15, i).normal(size=3)) for i in range(2))

    def rate(t, u, y):
        return a * (1 + t) + b * math.sin(3 * t) + group.gradient(u), (group.trace(u),)

    def solved(steps):
        u, y = torch.eye(2, dtype=torch.complex128), (torch.zeros((), dtype=torch.float64),)
        for k in range(steps):
            u, y = commutator_free.step(group, rate, k / steps, 1 / steps, u, y)
        return torch.cat([torch.view_as_real(u).flatten(), y[0][None]])

    fine = solved(320)
    errors = [float((solved(steps) - fine).abs().max()) for steps in (8, 16)]
    assert 10 < errors[0] / errors[1] < 24


def test_training_lowers_the_loss_to_the_exact_free_energy():
    """SU(2), 4x4, beta = 1: log Z of the weights is that of the character expansion, ESS rises."""
    target = Wilson(shape=(4, 4), group="su2", beta=1.0)
    flow = Trivializing(powers=1, modes=1, steps=2).build_for(target, 1)
    before = weights(target, flow)
    train(
        flow,
        target,
        TrainSettings(steps=25, lr=0.03, warmup=3, batch=32, evaluate_draws=1024, density_tolerance=0.5),
        seed=1,
    )
    after = weights(target, flow)
    assert before.ess < 0.5 and after.ess > 0.9
    assert abs(after.log_z - exact.log_z("su2", (4, 4), 1.0)) < 4 * after.log_z_error + 0.02


def weights(target, flow):
    return summarise_weights(FlowSampler(target, flow).draw(None, 2048, rng(16))[0].log_w)


def test_what_cannot_be_is_refused():
    for target in (
        Wilson(shape=(4, 4, 4), group="su3", beta=1.0),
        Wilson(shape=(4, 4), group="u1", beta=1.0),
        Phi4(shape=(4, 4), m2=1.0, lam=1.0),
    ):
        with pytest.raises(InputError, match="a flow of su2 and su3 in two dimensions; found"):
            Trivializing().build_for(target, 1)
    with pytest.raises(InputError, match="sides of 3 at least"):
        Trivializing().build_for(Wilson(shape=(2, 4), group="su2", beta=1.0), 1)
    with pytest.raises(InputError, match="use build_for"):
        Trivializing().build(Lattice((4, 4)), 1)


def test_goes_on_on_a_larger_lattice():
    small = made(TARGETS[0], 17)
    large = Trivializing(powers=3, modes=2).build_for(Wilson(shape=(8, 8), group="su2", beta=3.0), 1).double()
    large.adopt(small)
    x = small.noise(1, rng(18))
    again = torch.cat(
        [torch.cat([x, x], 2), torch.cat([x, x], 2)], 3
    )  # periodic: what one copy feels, all feel
    velocity, divergence = small.layers[0].drift(0.2)(x)
    wide, total = large.layers[0].drift(0.2)(again)
    torch.testing.assert_close(total, 4 * divergence)
    torch.testing.assert_close(wide[:, :, :4, :4], velocity)


@pytest.mark.parametrize("target", ALL)
def test_matrices_number_by_number(target):
    """Product, exponential and algebra against `groups.py`; derivatives against differences."""
    group = target.links
    u = group.haar((2, 2, 3, 4), rng(20), torch.float64)
    c, d = torch.from_numpy(rng(21).normal(size=(2, 2, 2, 3, 4, group.generators)))
    links, a = matrices.to_planes(u), matrices.to_algebra(group, c)
    torch.testing.assert_close(matrices.from_algebra(group, a), c)
    dot = matrices.inner(a, matrices.to_algebra(group, d))
    torch.testing.assert_close(dot.permute(-1, 0, 1, 2), (c * d).sum(-1))
    for strength in (0.1, 1.0, 4.0):  # the last is squared
        e = matrices.from_planes(matrices.Planes.exp(strength * a))
        torch.testing.assert_close(e, group.exp(strength * c))
    moved = matrices.Planes.mul(matrices.Planes.exp(a), links)
    torch.testing.assert_close(matrices.from_planes(moved), group.exp(c) @ u)

    def exponential(c):
        return matrices.Planes.exp(matrices.to_algebra(group, c))

    for strength in (0.0, 0.5, 3.0):
        assert torch.autograd.gradcheck(exponential, strength * c[:1, :, 0, :1].requires_grad_())
    pair = [one[..., :1, :1, 0].clone().requires_grad_() for one in links.split(1, 2)]
    assert torch.autograd.gradcheck(matrices.Planes.mul, pair)


@pytest.mark.parametrize("target", ALL)
def test_views_of_plaquettes(target):
    """Against dense matrices, and their derivatives against differences."""
    group = target.links
    x = group.haar((1, 2, 2, 3), rng(22), torch.float64)
    p = plaquette(group, x, 0, 1)
    links = matrices.to_planes(x).requires_grad_()
    found = [matrices.from_planes(one.detach()) for one in plaquette_views.views(links)]
    below = torch.roll(x[:, 1].mH @ p @ x[:, 1], 1, 2)
    beside = torch.roll(x[:, 0].mH @ p @ x[:, 0], 1, 1)
    for one, expected in zip(found, (p, below, beside), strict=True):
        torch.testing.assert_close(one, expected)
    assert torch.autograd.gradcheck(plaquette_views.views, links)
    p, q, r = (one[..., :1, :2, :].detach().clone().requires_grad_() for one in plaquette_views.views(links))
    assert torch.autograd.gradcheck(plaquette_views.overlaps, (p, q))
    numbers = [matrices.trace(one).detach().clone().requires_grad_() for one in (p, q, r)]
    assert torch.autograd.gradcheck(plaquette_views.velocity, (*numbers, p, q, r))


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("powers", [1, 2, 3, 6])
@torch.no_grad()
def test_powers_of_plaquettes(target, powers):
    """Traces, d_a W_n and d_a d_a W_n, n = 1 ... powers, against the matrices' powers."""
    group = target.links
    u = group.haar((5, 1, 1), rng(23), torch.float64)
    p = matrices.to_planes(u[:, None])[:, :, 0]
    drift = Trivializing(powers=powers).build_for(target, 1).double().layers[0].drift(0.0)
    traces, zeta = drift.class_functions(matrices.trace(p))
    laplacians = drift.laplacians(traces)
    n, t = group.n, group.basis
    for k in range(1, powers + 1):
        power = torch.linalg.matrix_power(u, k)
        trace = power.diagonal(dim1=-2, dim2=-1).sum(-1).squeeze()
        torch.testing.assert_close(traces[k - 1].squeeze(), trace.real if n == 2 else trace)
        part = -k / (2 * n) * matrices.algebra(zeta[k - 1] * p)[:, :, None]
        torch.testing.assert_close(
            matrices.from_algebra(group, part).squeeze(), k / n * group.gradient(power).squeeze()
        )
        # d_a d_a tr P^k = -k sum_j tr T_a P^j T_a P^(k-j), j = 1 ... k
        second = sum(
            torch.einsum(
                "aij,bjk,akl,bli->b",
                t,
                torch.linalg.matrix_power(u, j)[:, 0, 0],
                t,
                torch.linalg.matrix_power(u, k - j)[:, 0, 0],
            )
            for j in range(1, k + 1)
        )
        torch.testing.assert_close(laplacians[k - 1].squeeze(), -k / n * second.real)


@pytest.mark.parametrize("target", ALL)
def test_rectangles(target):
    """Their drift is the left derivative of the sum of all rectangles, made from links one by one."""
    group = target.links
    x = group.haar((2, 2, 3, 4), rng(28), torch.float64).requires_grad_()

    def loop(*path):
        """Of links (mu, x0, x1, dagger) relative to each site."""
        product = torch.eye(group.n, dtype=x.dtype)
        for mu, right, up, back in path:
            u = torch.roll(x[:, mu], (-right, -up), (1, 2))
            product = product @ (u.mH if back else u)
        return product.diagonal(dim1=-2, dim2=-1).real.sum()

    wide = loop((0, 0, 0, 0), (0, 1, 0, 0), (1, 2, 0, 0), (0, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 1))
    tall = loop((0, 0, 0, 0), (1, 1, 0, 0), (1, 1, 1, 0), (0, 0, 2, 1), (1, 0, 1, 1), (1, 0, 0, 1))
    (slope,) = torch.autograd.grad(wide + tall, x)
    links = matrices.to_planes(x.detach())
    found = plaquette_views.rectangles(links, *plaquette_views.views(links))
    expected = group.left_derivative(x.detach(), slope)
    torch.testing.assert_close(matrices.from_algebra(group, found), expected)


def test_gradient_of_the_parameters():
    """Of a sum over links, against differences along a direction of all parameters."""
    for target in TARGETS:
        flow = made(target, 24, steps=2)
        z, parameters = flow.noise(2, rng(25)), list(flow.parameters())
        c = torch.from_numpy(rng(26).normal(size=tuple(z.shape)))
        step = [torch.from_numpy(rng(27, i).normal(size=tuple(p.shape))) for i, p in enumerate(parameters)]

        def loss(flow=flow, z=z, c=c):
            x, log_q = flow.push(z)
            return (x.real * c).sum() + log_q.sum()

        slopes = torch.autograd.grad(loss(), parameters)
        found = sum((a * b).sum() for a, b in zip(slopes, step))
        ends = []
        for sign in (1, -2):
            with torch.no_grad():
                for p, move in zip(parameters, step):
                    p += sign * 1e-5 * move
                ends.append(loss())
        torch.testing.assert_close((ends[0] - ends[1]) / 2e-5, found, rtol=1e-6, atol=1e-6)
