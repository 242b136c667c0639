"""Training by importance sampling: divergences in closed form, gradients, reuse of points, ranks, resume, what it
reaches."""

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from tables import scramble
from thread_ranks import on_ranks

from latticeflow.errors import InputError, NumericalError, Stopped
from latticeflow.flows import Split
from latticeflow.flows.cube import CubeFlow, GridLayer
from latticeflow.flows.spline import AutoregressiveSpline, Spline
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.targets import Camel, Hypercube, Phi4
from latticeflow.training import TrainSettings, evaluate, train
from latticeflow.training import checkpoint as ckpt
from latticeflow.training.importance import Pool, renyi

torch.set_num_threads(1)
SPEC = AutoregressiveSpline(bins=6, hidden=(16,), iterations=3, evaluations=2000)


class Power(Hypercube):
    """`f = 3 prod_i (k + 1) u_i^k`, so that `D_alpha(f/3 || 1) = d [ alpha log(k + 1) - log(1 + alpha k) ] / (alpha -
    1)`."""

    dimensions: int = 1
    k: float = 2.0
    cut: float = 0.0  # nothing below

    @property
    def dim(self):
        return self.dimensions

    def log_integrand(self, u):
        log_f = math.log(3) + (math.log(self.k + 1) + self.k * u.log()).sum(1)
        return torch.where((u > self.cut).all(1), log_f, torch.full_like(log_f, -math.inf))

    def divergence(self, order):
        if order == 1:
            return self.dim * (math.log(self.k + 1) - self.k / (self.k + 1))
        return self.dim * (order * math.log(self.k + 1) - math.log(1 + order * self.k)) / (order - 1)


class Broken(Power):
    kind: ClassVar[str] = "broken"

    def log_integrand(self, u):
        return torch.where(u[:, 0] > 0.99, math.nan, u[:, 0])


def uniform_flow(dim=1):
    return CubeFlow([], GridLayer(dim, 1), 0, 0).double()


def everything(pool):
    return range(len(pool.x))


@pytest.mark.parametrize("order", [1.0, 1.001, 1.5, 2.0, 4.0])
def test_divergence_in_closed_form(order):
    target, found = Power(), []
    for i in range(20):
        pool = Pool.draw(uniform_flow(), target, 5000, seed=i, step=0)
        found.append(float(renyi(uniform_flow(), pool, order, 5000)[1]))
    error = np.std(found) / math.sqrt(len(found))
    assert (
        abs(np.mean(found) - target.divergence(order)) < 4 * error + 2e-3
    )  # the log of a mean is biased by O(1/N)
    assert abs(np.mean(found) - target.divergence(order + 1)) > 10 * error  # control


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
def test_points_of_another_flow_give_the_same(order):
    """The divergence of today's flow from points of an older one; and not without the factor r."""
    target = Power()
    old, new = uniform_flow(), CubeFlow([], GridLayer(1, 8), 0, 0).double()
    new.grid.adapt(target, 1, 4, 5000, 0.7)
    n, own, reused = 100_000, [], []
    for i in range(10):
        fresh, stale = (Pool.draw(flow, target, n, seed=i, step=0) for flow in (new, old))
        own.append(float(renyi(new, fresh, order, n)[1]))
        reused.append(float(renyi(new, stale, order, n)[1]))
    error = math.hypot(np.std(own), np.std(reused)) / math.sqrt(10)
    assert abs(np.mean(own) - np.mean(reused)) < 4 * error
    assert abs(np.mean(own) - float(renyi(old, stale, order, n)[1])) > 10 * error


@pytest.mark.parametrize("order", [1.0, 2.0, 3.5])
def test_gradient_is_that_of_the_divergence(order):
    """At fixed points, by autograd of the formula `log mean(w_old r^(order - 1)) / (order - 1)`."""
    flow = scramble(SPEC.build_for(Power(dimensions=2), 1), 3, scale=0.1)
    pool = Pool.draw(flow, Power(dimensions=2), 300, seed=1, step=0)
    scramble(flow, 4, scale=0.02)
    surrogate, loss = renyi(flow, pool, order, 300)
    found = torch.autograd.grad(surrogate, list(flow.parameters()))
    log_q = flow.log_prob(pool.x)
    w, log_r = pool.log_w.exp(), pool.log_w + pool.log_q - log_q
    if order == 1:
        formula = (w * log_r).sum() / w.sum()
    else:
        formula = ((w * torch.exp((order - 1) * log_r)).sum() / w.sum()).log() / (order - 1)
    torch.testing.assert_close(loss, formula.detach())
    wanted = torch.autograd.grad(formula, list(flow.parameters()))
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def settings(**changed):
    table = {
        "steps": 40,
        "objective": "importance",
        "batch": 130,
        "window": 8,
        "warmup": 5,
        "evaluate_every": 20,
        "evaluate_draws": 2048,
        "checkpoint_every": 10,
        "precision": "float64",
    }
    return TrainSettings(**table | changed)


@pytest.mark.parametrize("kind", [AutoregressiveSpline, Spline])
def test_it_learns_the_camel(kind):
    target = Camel(dimensions=2)
    flow = kind(bins=8, hidden=(32,)).build_for(target, 1)
    chosen = settings(steps=250, batch=512, lr=5e-3, precision="float32", evaluate_every=250)
    flow.start_on(target, 1)
    before = evaluate(flow, target, 16384, seed=2)
    train(flow, target, chosen, seed=1)
    found = evaluate(flow, target, 65536, seed=2)
    assert found.ess > 0.93 > 0.75 > before.ess
    assert abs(found.log_z - math.log(target.integral)) < 4 * found.log_z_error


class OnePeak(Camel):
    """The camel's lower peak alone."""

    def log_integrand(self, u):
        return torch.where(u.mean(1) < 0.5, super().log_integrand(u), -math.inf)


def test_a_lost_peak_comes_back():
    """A flow that has learned one of two peaks never sees the other again, unless the grid draws a share of its points."""
    chosen = {
        "batch": 256,
        "window": 16,
        "lr": 5e-3,
        "order": 1.0,
        "precision": "float32",
        "evaluate_every": 10**9,
    }
    found = []
    for share in (0.1, 0.0):
        flow = AutoregressiveSpline(bins=8, hidden=(32,), iterations=0).build_for(Camel(dimensions=2), 1)
        train(flow, OnePeak(dimensions=2, sigma=0.05), settings(steps=200, **chosen), seed=1)
        target = Camel(dimensions=2, sigma=0.05)
        train(flow, target, settings(steps=200, explore=share, **chosen), seed=2)
        x, _ = flow.sample(50_000, stream(9, Purpose.DRAW))
        found.append(float((x.mean(1) < 0.5).double().mean()))
    assert abs(found[0] - 0.5) < 0.1
    assert found[1] > 0.99  # control


def test_explored_pools_are_weighted_by_their_own_density():
    """Z and the divergence from the mixture's points are the flow's own; and not when q_old is said to be the flow."""
    target, flow = (
        Camel(dimensions=2),
        scramble(SPEC.build_for(Camel(dimensions=2), 1), 3, scale=0.2).double(),
    )
    flow.start_on(target, 1)
    n = 40_000
    own = Pool.draw(flow, target, n, seed=1, step=0)
    mixed = Pool.draw(flow, target, n, seed=2, step=0, explore=0.5)
    assert not torch.allclose(mixed.log_q, flow.log_prob(mixed.x))
    for order in (1.0, 2.0):
        losses = [float(renyi(flow, pool, order, n)[1]) for pool in (own, mixed)]
        false = Pool(mixed.x, mixed.log_w + mixed.log_q - flow.log_prob(mixed.x), flow.log_prob(mixed.x))
        assert (
            abs(losses[0] - losses[1]) < 0.06 < 0.2 < abs(losses[0] - float(renyi(flow, false, order, n)[1]))
        )


def test_it_learns_with_cuts_and_the_tail_follows_the_order():
    """A higher order has the smaller weights in the tail: what unweighting pays for."""
    target, worst = Power(dimensions=2, cut=0.3), {}
    for order in (1.0, 4.0):
        flow = AutoregressiveSpline(bins=6, hidden=(16,), iterations=0).build_for(target, 1)
        train(flow, target, settings(steps=300, batch=512, lr=5e-3, order=order, precision="float32"), seed=1)
        pool = Pool.draw(flow, target, 100_000, seed=9, step=0)
        assert len(pool.x) < 100_000 and torch.isfinite(pool.log_w).all()
        worst[order] = float(torch.quantile(pool.log_w.exp(), 0.999))
    assert worst[4.0] < 0.9 * worst[1.0]


def trained(group=None, **options):
    flow, records = scramble(SPEC.build_for(Camel(dimensions=3), 1), 3, scale=0.05), []
    train(
        flow,
        Camel(dimensions=3),
        settings(),
        seed=5,
        report=records.append,
        **options,
        **({"group": group} if group else {}),
    )
    numbers = [record[key] for record in records for key in ("loss", "grad_norm", "ess", "log_z")]
    return torch.cat([*(p.detach().flatten() for p in flow.parameters()), torch.tensor(numbers).double()])


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_rounding_only(size):
    alone = trained()
    for found in on_ranks(size, lambda group: trained(group)):
        assert isinstance(found, torch.Tensor), found
        torch.testing.assert_close(found, alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("at", [10, 13, 16])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, at):
    """Stopped within a window (10, 13), whose points the checkpoint holds, and between two (16)."""
    wanted, calls = trained(), iter(range(10**6))
    with pytest.raises(Stopped):
        trained(weights=tmp_path, stop=lambda: "asked" if next(calls) == at else None)
    (newest,) = [path for path in ckpt.checkpoints(tmp_path) if ckpt.step_of(path) == at]
    assert (newest / "pool.safetensors").exists() == (at % 8 != 0)
    assert torch.equal(trained(weights=tmp_path, resume=True), wanted)


def test_without_its_points_a_resumed_training_would_be_another(tmp_path, monkeypatch):
    calls = iter(range(10**6))
    with pytest.raises(Stopped):
        trained(weights=tmp_path, stop=lambda: "asked" if next(calls) == 13 else None)
    monkeypatch.setattr(ckpt, "load_pool", lambda checkpoint: None)
    assert not torch.equal(trained(weights=tmp_path, resume=True), trained())


def test_orders_near_one_are_no_noisier():
    """The estimates of order 1 and 1.001 from one batch are nearly equal: nothing is divided by the difference."""
    pool = Pool.draw(uniform_flow(), Power(), 5000, seed=1, step=0).rows(0, 64, range(64), 1)
    near, one = (float(renyi(uniform_flow(), pool, order, 64)[1]) for order in (1.001, 1.0))
    assert abs(near - one) < 0.01


@pytest.mark.parametrize("order", [1.0, 3.0])
def test_few_rows_and_tight_cuts(order):
    """A batch of one, 8 % of the points inside; and two ranks of which one has no row."""
    target, chosen = Power(dimensions=2, cut=0.72), settings(steps=20, batch=1, window=8, order=order)

    def work(group):
        flow = SPEC.build_for(target, 1)
        train(flow, target, chosen, seed=3, group=group)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    alone, (first, second) = on_ranks(1, work)[0], on_ranks(2, work)
    torch.testing.assert_close(first, alone, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(second, alone, rtol=1e-8, atol=1e-10)


def test_schedules():
    chosen = TrainSettings(
        steps=100, order=((0.0, 1.0), (0.5, 1.0), (1.0, 3.0)), batch=((0.0, 100), (0.5, 300)), window=10
    )
    assert [chosen.order_at(step) for step in (0, 50, 75)] == [1.0, 1.0, 2.0]
    assert [chosen.pool_at(step) for step in (0, 50)] == [500, 1500]
    assert TrainSettings(steps=10, order=2.0).order_at(7) == 2.0


def test_bad_input():
    flow = SPEC.build_for(Camel(dimensions=2), 1)
    with pytest.raises(InputError, match="reverse divergence is infinite"):
        train(flow, Camel(dimensions=2), TrainSettings(steps=1), seed=1)
    with pytest.raises(InputError, match="orders >= 1"):
        TrainSettings(steps=1, order=0.5)
    for wrong in ({"order": ((0.0, 2.0), (5.0, 3.0))}, {"order": ((0.1, 2.0),)}):
        with pytest.raises(InputError, match="rising from 0 to 1"):
            TrainSettings(steps=1, **wrong)
    for wrong in ({"reuse": 100.0}, {"window": 10**7}):
        with pytest.raises(InputError, match="reuse <= window"):
            TrainSettings(steps=1, **wrong)
    with pytest.raises(NumericalError, match="NaN or infinite at"):
        SPEC.build_for(Power(), 1).start_on(Broken(), 1)
    with pytest.raises(NumericalError, match="f/q is nan at"):
        Pool.draw(uniform_flow(), Broken(), 5000, seed=1, step=0)
    with pytest.raises(NumericalError, match="do the cuts leave anything"):
        train(SPEC.build_for(Power(dimensions=2), 1), Power(dimensions=2, cut=2.0), settings(), seed=1)


def test_a_lattice_can_be_trained_so_too():
    """Nothing in it is of the cube: on a small lattice it raises the ESS of a flow against its action."""
    target = Phi4(shape=(2, 2), m2=1.0, lam=1.0)
    flow = Split(layers=2, sines=2, site_sines=2).build(Lattice((2, 2)), 1)
    before = evaluate(flow, target, 8192, seed=3).ess
    train(flow, target, settings(steps=100, order=1.0, precision="float32"), seed=2)
    assert evaluate(flow, target, 8192, seed=3).ess > before + 0.02
