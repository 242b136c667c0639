"""The conditional flow: polynomials, gradients, densities at a point, other lattices, training on ranks, known answers."""

import numpy as np
import pytest
import torch
from reference import two_by_two
from tables import rng, scramble
from thread_ranks import on_ranks

from latticeflow.errors import InputError
from latticeflow.flows import Affine, Continuous, FlowSpec, Split, Symmetrised
from latticeflow.flows.conditional import Conditional, ConditionalFlow
from latticeflow.flows.stochastic import Stochastic
from latticeflow.lattice import Lattice
from latticeflow.samplers import FlowSampler, HybridSpec
from latticeflow.targets import FreeField, Phi4
from latticeflow.training import TrainSettings, evaluate, train
from latticeflow.training.evaluation import evaluate_all, refine
from latticeflow.training.loss import path, reparametrised

PHI4 = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
SMALL = Continuous(sines=2, modes=2, steps=4)
TINY = Affine(layers=2, hidden=(2,), z2=True)
RANGE = {"lam": (5.0, 9.0)}
BOTH = {"m2": (-5.0, -3.0), "lam": (5.0, 9.0)}


def family(
    spec: FlowSpec = SMALL, shape=(4, 4), scale: float = 0.05, key: int = 1, **more
) -> ConditionalFlow:
    more = {"range": RANGE, "degree": 2} | more
    return scramble(Conditional(flow=spec, **more).build(Lattice(shape), 1), key, scale=scale)


def test_parameters_are_the_polynomials_of_the_formula():
    """Own formulas of P_0 ... P_2, products of total degree 2, m2 and lam."""
    flow, point = family(range=BOTH), {"m2": -3.4, "lam": 6.3}
    l, m = (6.3 - 7) / 2, -3.4 + 4  # sorted by name: lam first
    expected = {(0, 1): m, (1, 0): l, (0, 2): (3 * m**2 - 1) / 2, (1, 1): l * m, (2, 0): (3 * l**2 - 1) / 2}
    assert flow.basis(point) == pytest.approx([expected[n] for n in flow.orders]) and len(flow.orders) == 5
    member = flow.at(**point)
    for i, (p, c_0) in enumerate(zip(member.parameters(), flow.flow.parameters())):
        value = c_0 + sum(expected[n] * c_j[i] for n, c_j in zip(flow.orders, flow.coefficients))
        torch.testing.assert_close(p, value, rtol=1e-12, atol=1e-12)
        assert not torch.allclose(p, c_0)


@pytest.mark.parametrize("loss", [reparametrised, path])
def test_gradients_reach_the_coefficients(loss):
    """Against autograd through members whose parameters are made of the coefficients, at three points together."""
    flow = family()
    points, z = [{"lam": lam} for lam in (5.0, 6.1, 8.7)], flow.noise(5, rng(2))

    def expected(weights):
        total = [torch.zeros_like(p) for p in flow.parameters()]
        for weight, point in zip(weights, points):
            member, target = flow.at_point(point), PHI4.at(**point)
            loss(member, target, z)[0].backward()
            grads = [p.grad for p in member.parameters()]
            every = [weight * P * g for P in (1.0, *flow.basis(point)) for g in grads]
            total = [t + g for t, g in zip(total, every)]
        return total

    for point in points:
        with flow.learning_at(point) as member:
            loss(member, PHI4.at(**point), z)[0].backward()
    found = [p.grad for p in flow.parameters()]
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(found, expected([1, 1, 1])))
    assert not all(torch.allclose(a, b, rtol=1e-2) for a, b in zip(found, expected([1, 1, 0.9])))
    if loss is reparametrised:  # the value's own derivative, by finite differences along a random direction
        direction = [
            torch.from_numpy(rng(3, i).normal(size=tuple(p.shape))) for i, p in enumerate(flow.parameters())
        ]
        values = []
        for h in (1e-5, -1e-5):
            with torch.no_grad():
                for p, d in zip(flow.parameters(), direction):
                    p.add_(d, alpha=h)
                values.append(sum(float(loss(flow.at_point(p), PHI4.at(**p), z)[1]) for p in points))
                for p, d in zip(flow.parameters(), direction):
                    p.sub_(d, alpha=h)
        slope = float(sum((g * d).sum() for g, d in zip(found, direction)))
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(slope, rel=1e-6)


def test_an_error_at_a_point_leaves_the_flow_as_it_was():
    flow = family()
    before = [p.clone() for p in flow.parameters()]
    with pytest.raises(RuntimeError, match="torn"), flow.learning_at({"lam": 5.0}):
        raise RuntimeError("torn")
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters()))


@pytest.mark.parametrize(
    "spec",
    [
        SMALL,
        Split(layers=2, sines=2),
        Affine(layers=2, hidden=(2,)),
        Symmetrised(flow=Affine(layers=2)),
    ],
    ids=lambda spec: spec.kind,
)
def test_a_member_is_an_ordinary_flow_of_its_own(spec):
    """Its density is that of its draws, and it stays when the family goes on; another point has another density."""
    flow = family(spec)
    member, other = flow.at(lam=5.5), flow.at(lam=8.5)
    x, log_q = member.sample(6, rng(4))
    torch.testing.assert_close(member.log_prob(x), log_q, rtol=1e-9, atol=1e-9)
    assert (other.log_prob(x) - log_q).abs().max() > 1e-3
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    torch.testing.assert_close(member.log_prob(x), log_q, rtol=1e-9, atol=1e-9)


def test_training_points_fill_the_ranges():
    """Every 16 steps in a row have a point in each eighth of the range; of two couplings, each quarter of the square."""
    flow = family()
    for first in (0, 5, 1000):
        u = [(p["lam"] - 5) / 4 for step in range(first, first + 16) for p in flow.training_points(step)]
        assert set(np.floor(8 * np.array(u)).astype(int)) == set(range(8))
    flow = family(range=BOTH, points=4)
    p = [p for step in range(7, 11) for p in flow.training_points(step)]
    assert len({(p["lam"] > 7, p["m2"] > -4) for p in p}) == 4 and len({p["lam"] for p in p}) == 16


def test_on_another_lattice_it_is_the_same_at_every_point():
    """The answer is `Flow.adopt` of the ordinary flow; kernels and spectra travel linearly, so it is exact."""
    small, large = family(shape=(4, 4)), family(shape=(6, 6), degree=3)
    large.adopt(small)
    assert int(large.flow.layers[0].steps) == int(small.flow.layers[0].steps)
    for lam in (5.0, 6.3, 9.0):
        expected = SMALL.build(Lattice((6, 6)), 1).double()
        expected.adopt(small.at(lam=lam))
        for a, b in zip(large.at(lam=lam).parameters(), expected.parameters()):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    large.adopt(small.at(lam=6.0))
    assert all(float(c.detach().abs().max()) < 1e-12 for c_j in large.coefficients for c in c_j)


def test_any_number_of_ranks_trains_the_same():
    """Batch 10 on 3 points and 4 ranks: shares that cut through the points, and the mean of log-variance at each point."""

    def run(estimator, group=None):
        flow = family(TINY, (2, 2), points=3)
        settings = TrainSettings(
            steps=3,
            batch=10,
            estimator=estimator,
            precision="float64",
            evaluate_every=9,
            evaluate_draws=1024,
            lr=1e-2,
        )
        train(
            flow,
            Phi4(shape=(2, 2), m2=-4.0, lam=8.0),
            settings,
            seed=1,
            **({"group": group} if group else {}),
        )
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    for estimator in ("path", "log_variance"):
        alone = run(estimator)
        for found in on_ranks(4, lambda group, estimator=estimator: run(estimator, group)):
            torch.testing.assert_close(found, alone, rtol=1e-9, atol=1e-12)
        assert not torch.equal(alone, run("path")) or estimator == "path"


def test_a_family_of_free_fields_is_learned():
    """Known answer: log Z(m2) of the free field at points that no probe looks at. One flow for all (degree 0) must fail."""
    target, ess = FreeField(shape=(4,), m2=1.0), {}
    for degree, steps in ((0, 40), (4, 120)):
        spec = Conditional(
            flow=Continuous(sines=0, modes=1, steps=2), range={"m2": (0.3, 2.0)}, degree=degree
        )
        flow = spec.build_for(target, 1)
        settings = TrainSettings(
            steps=steps, optimizer="soap", lr=1e-2, warmup=5, batch=64, evaluate_draws=1024
        )
        assert train(flow, target, settings, seed=1) is not None
        for m2 in (0.37, 1.9):
            there = target.at(m2=m2)
            found = evaluate(flow.at(m2=m2), there, 8192, seed=2)
            assert abs(found.log_z - there.log_z) < 4 * found.log_z_error + 1e-4
            ess[degree, m2] = found.ess
    assert min(ess[4, 0.37], ess[4, 1.9]) > 0.99 > 0.95 > max(ess[0, 0.37], ess[0, 1.9])


def test_two_couplings_and_a_plan_over_two_lattices():
    """One training in m2 and lam, from 2x2 to 2x4 and back to 2x2; log Z at a point of the plane against quadrature."""
    target = Phi4(shape=(2, 2), m2=-4.0, lam=7.0)
    spec = Conditional(flow=TINY, range=BOTH, degree=1, points=2)
    settings = TrainSettings(
        steps=30, optimizer="soap", lr=1e-2, warmup=3, evaluate_every=30, evaluate_draws=1024,
        stage=({"steps": 3}, {"target": {"shape": [2, 4]}, "steps": 3}, {}),
    )  # fmt: skip
    flow, records = spec.build_for(target, 1), []
    train(flow, target, settings, seed=1, report=records.append, build=lambda other: spec.build_for(other, 1))
    assert [r["step"] for r in records] == [3, 6, 36] and len(
        [k for k in records[-1] if k.startswith("ess ")]
    ) == 5
    point = {"m2": -4.6, "lam": 5.5}
    found = evaluate(flow.at_point(point), target.at(**point), 8192, seed=2)
    exact = two_by_two(**point, edge=2.2)["log_z"]
    assert abs(found.log_z - exact) < 4 * found.log_z_error < 0.1
    assert abs(found.log_z - two_by_two(-4.0, 7.0)["log_z"]) > 20 * found.log_z_error  # of the deck's point


def test_it_is_judged_by_its_worst_probe_and_refined_everywhere():
    flow = family(Continuous(sines=1, modes=2, steps=1), (4,), scale=0.1).float()
    target = Phi4(shape=(4,), m2=-2.0, lam=8.0)
    found = evaluate_all(flow, target, 1024, seed=3)
    assert len(found) == 5 and [s.ess for s in found.values()] == sorted(s.ess for s in found.values())
    worst = next(iter(found))
    lam = float(worst.removeprefix("lam="))
    assert found[worst] == evaluate(flow.at(lam=lam), target.at(lam=lam), 1024, seed=3)
    refine(flow, 0.01, seed=3)
    assert int(flow.flow.layers[0].steps) > 1 and int(flow.at(lam=5.0).layers[0].steps) > 1


def test_what_cannot_be_is_refused():
    flow, z = family(), family().noise(2, rng(5))
    for wrong in (lambda: flow.push(z), lambda: flow.log_prob(z), lambda: flow.sample(2, rng(6))):
        with pytest.raises(InputError, match=r"use flow\.at\(lam=7\)"):
            wrong()
    with pytest.raises(InputError, match=r"lam = 9\.5 is outside .* lam in \[5, 9\]"):
        flow.at(lam=9.5)
    assert flow.at_point({"lam": 9.5}, extrapolate=True).event_shape == (4, 4)
    with pytest.raises(InputError, match="outside"):
        flow.at_point({"lam": float("nan")}, extrapolate=True)
    with pytest.raises(InputError, match="expected lam in"):
        flow.at(m2=1.0)
    with pytest.raises(InputError, match="lam = 12 is outside"):
        Conditional(flow=SMALL, range=RANGE).build_for(PHI4.at(lam=12.0), 1)
    with pytest.raises(InputError, match="expected lam > 0"):  # at a probe
        Conditional(flow=SMALL, range={"lam": (-1.0, 9.0)}).build_for(PHI4, 1)
    with pytest.raises(InputError, match="no coupling lam"):
        Conditional(flow=SMALL, range=RANGE).build_for(FreeField(shape=(4, 4), m2=1.0), 1)
    with pytest.raises(InputError, match="from < to"):
        Conditional(flow=SMALL, range={"lam": (3.0, 3.0)})
    with pytest.raises(InputError, match=r"one \[flow.range\]"):
        Conditional(flow=Conditional(flow=SMALL, range=RANGE), range=RANGE)
    with pytest.raises(InputError, match="need one target"):
        Conditional(flow=Stochastic(layers=2), range=RANGE).build_for(PHI4, 1)
    with pytest.raises(InputError, match="no density at given x"):
        Symmetrised(flow=Conditional(flow=SMALL, range=RANGE)).build_for(PHI4, 1)
    with pytest.raises(InputError, match="stored configurations are of one coupling"):
        train(flow, PHI4, TrainSettings(steps=1, objective="forward", data="x"), seed=1)
    with pytest.raises(InputError, match="lam"):
        PHI4.at(lamda=3.0)
    with pytest.raises(InputError):
        HybridSpec().build(PHI4, flow)
    with pytest.raises(InputError, match="at a point only"):
        FlowSampler(PHI4, flow).draw(None, 8, rng(7))
