"""The optimiser in the eigenbasis of the gradient's second moment."""

import copy

import pytest
import torch
from tables import rng
from torch import nn

from latticeflow.flows import Continuous
from latticeflow.lattice import Lattice
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, train
from latticeflow.training.soap import Soap

SIZE = 12


def valley(key: int, size: int = SIZE, decades: float = 2) -> torch.Tensor:
    """A quadratic form of condition 1e4 in a rotated basis."""
    basis = torch.linalg.qr(torch.from_numpy(rng(key).normal(size=(size, size))))[0]
    return basis @ torch.diag(torch.logspace(-decades, decades, size, dtype=torch.float64)) @ basis.T


def descend(make, h=None, shape=(SIZE,), steps: int = 400) -> float:
    """Mean value of `x^T H x / 2` at the end, gradients with noise of covariance H."""
    h = valley(1) if h is None else h
    root = torch.linalg.cholesky(h)
    x = nn.Parameter(torch.ones(shape, dtype=torch.float64))
    optimizer, noise = make([x]), rng(2)
    for k in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - k / steps)
        at = x.detach().flatten()
        x.grad = (h @ at + 0.01 * root @ torch.from_numpy(noise.normal(size=len(h)))).view_as(x)
        optimizer.step()
    at = x.detach().flatten()
    return float(0.5 * at @ h @ at)


def test_it_goes_down_a_rotated_valley_where_adam_does_not():
    assert descend(lambda p: Soap(p, lr=0.05)) < 0.1 * descend(lambda p: torch.optim.Adam(p, lr=0.05))


def test_a_matrix_is_turned_on_both_sides():
    """H = A x B, of which one side alone is not enough."""
    h, shape = torch.kron(valley(1, 4, 1.5), valley(6, 5, 1.5)), (4, 5)
    both = descend(lambda p: Soap(p, lr=0.05, largest=1), h, shape)
    one = descend(
        lambda p: Soap(p, lr=0.05, largest=1, longest=4), h, shape
    )  # the longer side is too long: Adam
    assert both < 0.1 * one
    assert one == pytest.approx(
        descend(lambda p: torch.optim.Adam(p, lr=0.05, betas=(0.9, 0.99)), h, shape), rel=1e-3
    )


def test_without_rotation_it_is_adam():
    """Tensors longer than `longest` have Q = 1: torch's Adam is the answer."""
    start = [torch.from_numpy(rng(3).normal(size=s)).float() for s in [(3, 2), (5,)]]
    mine, theirs = ([nn.Parameter(t.clone()) for t in start] for _ in range(2))
    a = Soap(mine, lr=0.01, betas=(0.9, 0.99), largest=1, longest=1)
    b = torch.optim.Adam(theirs, lr=0.01, betas=(0.9, 0.99))
    for k in range(5):
        for p, q in zip(mine, theirs):
            p.grad = torch.from_numpy(rng(4, k).normal(size=tuple(p.shape))).float()
            q.grad = p.grad.clone()
        a.step()
        b.step()
    for p, q in zip(mine, theirs):
        torch.testing.assert_close(p.data, q.data, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("largest", [100, 4])
def test_saved_and_restored_it_goes_on_bit_for_bit(largest):
    def grads(k: int, parameters) -> None:
        for p in parameters:
            p.grad = torch.from_numpy(rng(5, k).normal(size=tuple(p.shape))).float()

    one = [nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(4))]
    a = Soap(one, lr=0.01, largest=largest, every=3)
    for k in range(7):
        grads(k, one)
        a.step()
    two = [nn.Parameter(p.detach().clone()) for p in one]
    b = Soap(two, lr=0.01, largest=largest, every=3)
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    for k in range(7, 14):
        for parameters, optimizer in ((one, a), (two, b)):
            grads(k, parameters)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one, two))


class Killed(Exception):
    pass


def test_a_training_with_it_is_resumed_bit_for_bit(tmp_path):
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    settings = TrainSettings(
        steps=12, optimizer="soap", batch=16, evaluate_every=6, evaluate_draws=1024, checkpoint_every=4
    )

    def run(weights, **more):
        flow = Continuous(sines=2, modes=2, steps=3).build(Lattice(target.shape), 1)
        train(flow, target, settings, seed=1, weights=tmp_path / weights, **more)
        return flow

    def die(done: int) -> None:
        if done == 10:
            raise Killed

    whole = run("whole").state_dict()
    with pytest.raises(Killed):
        run("killed", tick=die)
    resumed = run("killed", resume=True).state_dict()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
