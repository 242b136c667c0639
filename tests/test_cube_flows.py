"""Flows on the unit cube: exact, normalised densities; the defensive mixture; flat, VEGAS and emcee on known integrals."""

import math

import numpy as np
import pytest
import torch
from tables import rng, scramble

from latticeflow.errors import InputError
from latticeflow.flows.cube import CubeFlow, GridLayer
from latticeflow.flows.spline import AutoregressiveSpline, Spline, partitions
from latticeflow.random import Purpose, stream
from latticeflow.samplers import EmceeSpec, FlowSampler, samplers
from latticeflow.samplers.density import log_w_error, tolerance
from latticeflow.statistics import mean
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import Camel, Hypercube, Phi4

torch.set_num_threads(1)


class Waves(Hypercube):
    """`f = prod_i (1 + a cos(2 pi k u_i)) * 2 u_last`, some coordinates angles; its integral is 1."""

    dimensions: int
    angles: tuple[int, ...] = ()

    @property
    def dim(self):
        return self.dimensions

    @property
    def periodic(self):
        return self.angles

    def log_integrand(self, u):
        return (1 + 0.5 * (2 * math.pi * u).cos()).log().sum(1)


SPECS = [
    pytest.param(kind(bins=5, hidden=(12,), grid_bins=7), dim, angles, id=f"{kind.__name__}-{dim}-{angles}")
    for kind in (Spline, AutoregressiveSpline)
    for dim, angles in [(2, ()), (2, (0,)), (3, (1,)), (5, (2, 4))]
] + [pytest.param(AutoregressiveSpline(bins=5, hidden=(12,), grid_bins=7), 1, (), id="autoregressive-1")]


def build(spec, dim, angles=(), scale=0.4) -> CubeFlow:
    target = Waves(dimensions=dim, angles=angles)
    flow = spec.build_for(target, 1)
    flow.grid.adapt(Camel(dimensions=dim), 3, 2, 2000, 0.5)  # any grid that is not even
    return scramble(flow, 5, scale=scale)


@pytest.mark.parametrize("spec, dim, angles", SPECS)
def test_draws_have_their_density(spec, dim, angles):
    flow = build(spec, dim, angles)
    x, log_q = flow.sample(200, rng(1))
    assert x.shape == (200, dim) and log_q.dtype == torch.float64 and ((x >= 0) & (x <= 1)).all()
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("spec, dim, angles", SPECS)
def test_density_is_that_of_the_map(spec, dim, angles):
    """By the determinant of autograd's Jacobian, and wrong without the grid's part."""
    flow = build(spec, dim, angles)
    z = flow.noise(4, rng(2))
    for one in z:
        jacobian = torch.autograd.functional.jacobian(lambda a: flow.push(a[None])[0][0], one)
        log_q = flow.push(one[None])[1]
        torch.testing.assert_close(log_q[0], -torch.linalg.slogdet(jacobian)[1], rtol=1e-7, atol=1e-7)
        y = flow.push(one[None])[0]
        assert (log_q - flow.grid.inverse(y)[1] + torch.linalg.slogdet(jacobian)[1]).abs() > 1e-3


@pytest.mark.parametrize("spec, dim, angles", SPECS)
def test_density_is_normalised(spec, dim, angles):
    flow = build(spec, dim, angles)
    u = torch.from_numpy(rng(3).random((40000, dim)))
    found = mean(flow.log_prob(u).exp().detach().numpy().reshape(4, -1))
    assert abs(found.value - 1) < 4 * found.error


@pytest.mark.parametrize("kind", [Spline, AutoregressiveSpline])
def test_an_untrained_flow_is_its_grid(kind):
    target = Camel(dimensions=4)
    flow = kind().build_for(target, 1)
    flow.start_on(target, 1)
    z = flow.noise(50, rng(4))
    x, log_q = flow.push(z)
    wanted, log_det = flow.grid(z)
    torch.testing.assert_close(x, wanted, rtol=0, atol=1e-5)
    torch.testing.assert_close(log_q, -log_det, rtol=0, atol=1e-3)
    assert log_det.abs().max() > 0.3


@pytest.mark.parametrize("kind", [Spline, AutoregressiveSpline])
def test_the_density_is_continuous_on_a_circle(kind):
    flow = build(kind(bins=5, hidden=(12,), grid_bins=7), 3, (1,))
    flow.grid.edges.copy_(torch.linspace(0, 1, 8).expand(3, -1))  # a grid's density jumps at its edges anyway
    u = torch.from_numpy(rng(6).random((50, 3)))

    def across(i):
        low, high = u.clone(), u.clone()
        low[:, i], high[:, i] = 1e-9, 1 - 1e-9
        return (flow.log_prob(low) - flow.log_prob(high)).abs().max()

    assert across(1) < 1e-5 and across(0) > 0.1 and across(2) > 0.1


def test_an_autoregressive_layer_is_triangular():
    layer = build(AutoregressiveSpline(bins=4, hidden=(8,)), 4).layers[0]
    one = torch.from_numpy(rng(7).random(4))
    jacobian = torch.autograd.functional.jacobian(lambda a: layer(a[None])[0][0], one)
    assert jacobian.triu(1).abs().max() == 0 and (jacobian[*torch.tril_indices(4, 4, -1)] != 0).all()


@pytest.mark.parametrize("dim", [2, 3, 5, 8, 16])
def test_every_pair_of_coordinates_is_parted(dim):
    parts = partitions(dim)
    assert len(parts) == 2 * max(1, math.ceil(math.log2(dim)))
    for i in range(dim):
        for j in range(i):
            assert any(part[i] != part[j] for part in parts)
        assert any(part[i] for part in parts)


def test_defensive_mixture():
    """Density, share of the grid, bound of the weights; and what the flow's own density would have made of the draws."""
    flow, target, share = (
        build(AutoregressiveSpline(bins=5, hidden=(12,)), 2, scale=1.0),
        Camel(dimensions=2),
        0.2,
    )
    both = flow.defended(share)
    x, log_q = both.sample(40000, rng(8))
    torch.testing.assert_close(both.log_prob(x), log_q, rtol=1e-8, atol=1e-8)
    log_grid = flow.grid.inverse(x)[1]
    mixed = torch.logaddexp(math.log(1 - share) + flow.log_prob(x), math.log(share) + log_grid)
    torch.testing.assert_close(log_q, mixed, rtol=1e-8, atol=1e-8)
    log_p = target.log_prob(x)
    assert (log_p - log_q <= log_p - log_grid - math.log(share) + 1e-9).all()

    def pull(log_w):
        found = summarise_weights(log_w.detach().numpy())
        return (found.log_z - math.log(target.integral)) / found.log_z_error

    assert abs(pull(log_p - log_q)) < 4
    assert abs(pull(log_p - flow.log_prob(x))) > 6
    with pytest.raises(InputError, match=r"defensive = 1.0"):
        flow.defended(1.0)


def drawn(kind, target, n=65536, **settings):
    sampler = samplers.find(kind)(**settings).build(target)
    return sampler, sampler.draw(None, n, stream(1, Purpose.DRAW, 0))[0]


@pytest.mark.parametrize("kind", ["flat", "vegas"])
def test_integrals_of_the_camel(kind):
    target = Camel(dimensions=3)
    sampler, draws = drawn(kind, target)
    found = summarise_weights(draws.log_w)
    assert abs(found.log_z - math.log(target.integral)) < 4 * found.log_z_error
    assert abs(found.log_z - math.log(1.06 * target.integral)) > 4 * found.log_z_error  # control
    assert log_w_error(sampler, draws.x.numpy(), draws.log_w).max() < tolerance("float64", 3)


def test_vegas_is_better_than_flat_and_the_same_every_time():
    target = Camel(dimensions=4)
    ess = {kind: summarise_weights(drawn(kind, target)[1].log_w).ess for kind in ("flat", "vegas")}
    assert ess["vegas"] > 2 * ess["flat"]
    again = drawn("vegas", target, n=100)[1], drawn("vegas", target, n=100)[1]
    assert torch.equal(again[0].x, again[1].x) and np.array_equal(again[0].log_w, again[1].log_w)
    other = drawn("vegas", target, n=100, adaptation_seed=1)[1]
    assert not torch.equal(again[0].x, other.x)


def test_flow_sampler_with_a_defence():
    target = Camel(dimensions=2)
    flow = build(AutoregressiveSpline(bins=5, hidden=(12,)), 2)
    spec = samplers.find("flow")(precision="float64", defensive=0.1)
    sampler = spec.build(target, flow=flow)
    draws, _ = sampler.draw(None, 20000, stream(1, Purpose.DRAW, 0))
    found = summarise_weights(draws.log_w)
    assert abs(found.log_z - math.log(target.integral)) < 4 * found.log_z_error
    assert log_w_error(sampler, draws.x.numpy(), draws.log_w).max() < tolerance("float64", 2)


def test_emcee_on_the_cube():
    """Mean and variance of u_1 under the camel, by quadrature."""
    target = Camel(dimensions=2)
    spec = EmceeSpec(walkers=64, block=64, thin=2, thermalisation=500)
    sampler = spec.build(target)
    state = sampler.start(0, stream(2, Purpose.START, 0))
    draws, _ = sampler.draw(state, 2000 * 64, stream(2, Purpose.DRAW, 0))
    x = draws.x.numpy().reshape(2000, 64, 2)
    assert ((x >= 0) & (x <= 1)).all()
    grid = (np.arange(400) + 0.5) / 400
    u = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1).reshape(-1, 2)
    p = target.log_prob(torch.from_numpy(u)).exp().numpy()
    wanted = (u[:, 0] * u[:, 1] * p).sum() / p.sum()
    found = mean((x[..., 0] * x[..., 1]).mean(1)[None])
    assert abs(found.value - wanted) < 4 * found.error
    assert abs(found.value - 0.25) > 6 * found.error  # control: of independent uniform coordinates


@pytest.mark.parametrize("kind", [Spline, AutoregressiveSpline])
def test_float32_draws_have_the_density_that_is_stored(kind):
    """Also where x is rounded across an edge of the grid, whose density jumps there."""
    target = Camel(dimensions=3)
    flow = kind(bins=8, hidden=(16,), grid_bins=200).build_for(target, 1)
    flow.start_on(target, 1)
    scramble(flow, 2, scale=0.02).float()
    sampler = FlowSampler(target, flow, 4096)
    draws, _ = sampler.draw(None, 200_000, stream(3, Purpose.DRAW, 0))
    assert log_w_error(sampler, draws.x.numpy(), draws.log_w).max() < tolerance("float32", 3)


def test_a_grid_keeps_both_peaks_in_sixteen_dimensions():
    target = Camel(dimensions=16)
    flow = AutoregressiveSpline().build_for(target, 1)
    flow.start_on(target, 1)
    x = flow.grid(torch.from_numpy(rng(10).random((20000, 16))).float())[0]
    weight = (target.log_prob(x.double()) + flow.grid(flow.grid.inverse(x)[0])[1]).exp()
    low = float((x.mean(1) < 0.5).float().mean())
    assert 0.3 < low < 0.7 and float(weight.mean()) > 0.3


class Nothing(Waves):
    def log_integrand(self, u):
        return torch.full_like(u[:, 0], -math.inf)


def test_bad_input():
    with pytest.raises(InputError, match="does not live on the unit cube"):
        samplers.find("vegas")().build(Phi4(shape=(4, 4), m2=1.0, lam=1.0))
    with pytest.raises(InputError, match="only flows on the unit cube"):
        samplers.find("flow")(defensive=0.1).build(Phi4(shape=(4,), m2=1.0, lam=1.0), flow=object())
    with pytest.raises(InputError, match="expected 2"):
        Spline().build_for(Camel(dimensions=1), 1)
    with pytest.raises(InputError, match="do the cuts leave anything"):
        EmceeSpec(walkers=16, block=16).build(Nothing(dimensions=2)).start(0, rng(1))
    with pytest.raises(InputError, match="shapes must agree"):
        FlowSampler(Camel(dimensions=3), build(AutoregressiveSpline(), 2))
    layer = GridLayer(2, 8)
    layer.adapt(Nothing(dimensions=2), 1, 2, 1000, 0.5)  # nothing to adapt to: stays even
    torch.testing.assert_close(layer.edges, torch.linspace(0, 1, 9).expand(2, -1))
