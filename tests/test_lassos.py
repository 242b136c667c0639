"""The flow of SU(2) and SU(3) by lassos: coordinates, draws, Jacobians, symmetries, and the exact answers."""

import math

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform

from latticeflow import exact
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.flows import Flow
from latticeflow.flows.lassos import ClassMap, IndependentLassos, LassoMap, LassoSpread
from latticeflow.flows.plaquettes import Plaquettes
from latticeflow.groups import GROUPS, settled
from latticeflow.observables import measure
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import summarise_weights
from latticeflow.targets import Wilson
from latticeflow.training import TrainSettings, train
from latticeflow.transforms import class_draws, class_maps, lassos

torch.set_num_threads(1)
HAAR = Plaquettes(base="haar", map=True, bins=4)
SMALL = [Wilson(shape=(2, 3), group="su2", beta=2.2), Wilson(shape=(2, 2), group="su3", beta=6.0)]
LARGE = [Wilson(shape=(4, 4), group="su2", beta=2.2), Wilson(shape=(4, 4), group="su3", beta=6.0)]
GROUP = pytest.mark.parametrize("group", [GROUPS["su2"], GROUPS["su3"]], ids=["su2", "su3"])
ON_SMALL = pytest.mark.parametrize("target", SMALL, ids=["su2", "su3"])
ON_LARGE = pytest.mark.parametrize("target", LARGE, ids=["su2", "su3"])


def scrambled(module, *key):
    """In float64, with weights off their start."""
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p += 0.04 * torch.from_numpy(rng(*key).normal(size=tuple(p.shape)))
    return module


def made(target, *key, spec=HAAR):
    return scrambled(spec.build_for(target, 1), *key)


# coordinates


@pytest.mark.parametrize("shape", [(2, 2), (2, 3), (3, 2), (5, 4)])
@GROUP
def test_links_and_lassos(group, shape):
    """Round trip; the lassos' traces are the plaquettes', the last one's that of the product of all others."""
    x = group.haar((3, 2, *shape), rng(1), torch.float64)
    frame, free = lassos.split(x)
    assert free.shape[1] == math.prod(shape) - 1
    assert (lassos.join(frame, free) - x).abs().max() < 1e-13
    after, whole = lassos.suffixes(lassos.turned(frame, free))
    (_, _, p) = next(Wilson(shape=shape, group=f"su{group.n}", beta=1.0).plaquettes(x))
    found = torch.cat([group.trace(free), group.trace(whole)[:, None]], 1)
    expected = group.trace(p).flatten(1)
    torch.testing.assert_close(found.sort(1)[0], expected.sort(1)[0], rtol=0, atol=1e-13)
    f = lassos.turned(frame, free)
    torch.testing.assert_close(f[:, 0] @ after[:, 0], whole)
    torch.testing.assert_close(f[:, -2] @ f[:, -1], after[:, -3] if free.shape[1] > 2 else whole)
    # control: in another order the product is not the last plaquette's
    _, other = lassos.suffixes(f.flip(1))
    assert (group.trace(other) - found[:, -1]).abs().min() > 1e-4


@GROUP
def test_settled(group):
    """Rounding is undone, and derivatives along the group are left as they are."""
    u = group.haar((50,), rng(2), torch.float64)
    off = u + 1e-7 * torch.from_numpy(rng(2, 1).normal(size=tuple(u.shape)))
    assert group.violation(off).max() > 1e-8
    near = settled(off)
    assert group.violation(near).max() < 1e-12 and (near - u).abs().max() < 1e-6
    u = u.requires_grad_()
    (slope,) = torch.autograd.grad(group.trace(settled(u)).sum(), u)
    torch.testing.assert_close(group.left_derivative(u.detach(), slope), group.gradient(u.detach()) / group.n)


# classes


@pytest.mark.parametrize("beta", [0.0, 2.0, 9.0])
@GROUP
def test_draws_of_one_plaquette(group, beta):
    """Means of characters are `d_r c_r / c_0`; eigenvectors are Haar distributed."""
    p = class_draws.draw(group.n, beta, 40_000, rng(3))
    assert group.violation(p).max() < 1e-13
    name = f"su{group.n}"
    trace = p.diagonal(dim1=-2, dim2=-1).sum(-1)
    adjoint = (0, 3) if group.n == 2 else (0, 1, 1)
    c, _ = exact._coefficients(name, beta)
    one = exact._times_fundamental(name, exact._trivial(name))[0]
    characters = {one: trace.real, adjoint: trace.abs().square() - 1}
    for r, values in characters.items():
        expected = exact.dimension(r) * c.get(r, 0.0)
        assert abs(values.mean() - expected) < 4 * values.std() / 200, r
    turn = group.haar(
        (), rng(4), torch.float64
    )  # g P g^dagger has the same mean matrix elements: a multiple of 1
    off = (turn @ p @ turn.mH)[:, 0, 1]
    assert off.mean().abs() < 5 * off.abs().std() / 200


@pytest.mark.parametrize("beta", [2.0, 9.0])
@GROUP
def test_reference_map(group, beta):
    """From Haar's measure to the density of one plaquette: weights are 1 to a part in 100 or better, in mean to 1e-4."""
    p = group.haar((20_000,), rng(5), torch.float64)
    stage = class_maps.reference(group.n, beta, torch.device("cpu"))
    q, log_det = class_maps.move(p, [stage])
    log_w = beta * group.trace(q) - exact.log_one_plaquette(f"su{group.n}", beta) + log_det
    w = summarise_weights(log_w.numpy())
    assert 1 - w.ess < 1e-4 and abs(w.log_z) < 1e-4
    back, log_back = class_maps.move_back(q, [stage])
    assert (back - p).abs().max() < 1e-11 and (log_back + log_det).abs().max() < 1e-9


@GROUP
def test_class_map(group):
    """Inverse, conjugation, charge conjugation, the turn; `< f(h(P)) |det| > = < f(P) >` over Haar's measure."""
    h = scrambled(ClassMap(group.n, 5, 2.0), 6)
    p, g = (group.haar((20_000,), rng(7, i), torch.float64) for i in range(2))
    with torch.no_grad():
        q, log_det = h(p)
        back, log_back = h.inverse(q)
        assert (back - p).abs().max() < 1e-10 and (log_back + log_det).abs().max() < 1e-8
        for turn in (lambda u: g @ u @ g.mH, lambda u: u.conj().resolve_conj()):
            turned, log_turned = h(turn(p))
            assert (turned - turn(q)).abs().max() < 1e-9 and (log_turned - log_det).abs().max() < 1e-7
        third, log_third = h(p, 1 / 3)
        assert (p @ third @ third @ third - q).abs().max() < 1e-12 and torch.equal(log_third, log_det)
        assert (third @ p - p @ third).abs().max() < 1e-12
        undone, _ = h.inverse(q, 1 / 3)
        assert (undone @ third - torch.eye(group.n)).abs().max() < 1e-9
    weight, trace = log_det.exp(), group.trace(q)
    second = {2: 0.25, 3: 1 / 18}[group.n]
    for value, expected in ((weight, 1.0), (weight * trace, 0.0), (weight * trace**2, second)):
        assert abs(value.mean() - expected) < 4 * value.std() / 20_000**0.5
    assert abs(trace.mean()) > 8 * trace.std() / 20_000**0.5  # control: without |det|


# layers


def numerical_log_det(target, layer, x, by=None):
    """`log |det|` of the whole Jacobian of one configuration, in left coordinates, by differences."""
    n, eps = math.prod(target.momentum_shape), 1e-5
    p = torch.eye(n, dtype=torch.float64).view(n, *target.momentum_shape)
    with torch.no_grad():
        ends = [
            (layer._move(target.move(x.expand(n, *x.shape[1:]).clone(), p, s), by or layer.h))[0]
            for s in (eps, -eps)
        ]
        columns = target.links.log(ends[0] @ ends[1].mH) / (2 * eps)
    return torch.linalg.slogdet(columns.flatten(1))[1]


@pytest.mark.parametrize("kind", [LassoMap, LassoSpread])
@ON_SMALL
def test_log_det_is_that_of_the_whole_jacobian(target, kind):
    layer = scrambled(kind(target.links, 4, target.beta), 8)
    x = target.links.haar((1, 2, *target.shape), rng(9), torch.float64)
    with torch.no_grad():
        y, log_det = layer(x)
    torch.testing.assert_close(log_det[0], numerical_log_det(target, layer, x), rtol=0, atol=1e-6)
    assert log_det.abs() > 0.05 and target.distance(x, y).max() > 0.05
    if kind is LassoSpread:  # control: shares that do not add up to one have another Jacobian
        wrong = numerical_log_det(target, layer, x, lambda p, share: layer.h(p, 0.7 * share))
        assert abs(wrong - log_det[0]) > 1e-2


@ON_SMALL
def test_inverse_score_and_gradients(target):
    flow = made(target, 10)
    x, log_q, score = flow.push_with_score(flow.noise(4, rng(11)))
    assert not score.requires_grad
    log_q.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in flow.parameters())
    with torch.no_grad():
        z, _ = flow.inverse(x.detach())
        assert target.distance(z, flow.noise(4, rng(11))).max() < 1e-10
        torch.testing.assert_close(flow.log_prob(x.detach()), log_q.detach(), rtol=0, atol=1e-10)
        p = torch.from_numpy(rng(12).normal(size=tuple(score.shape)))
        plus, minus = (flow.log_prob(target.move(x.detach().clone(), p, s)) for s in (1e-5, -1e-5))
    torch.testing.assert_close((score * p).flatten(1).sum(1), (plus - minus) / 2e-5, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(4, 3), (2, 5)])
@pytest.mark.parametrize("name", ["su2", "su3"])
@torch.no_grad()
def test_symmetries(name, shape):
    target = Wilson(shape=shape, group=name, beta=4.0)
    flow = made(target, 13)
    z = flow.noise(3, rng(14))
    x, log_q = flow.push(z)
    g = target.links.haar((3, *shape), rng(15), torch.float64)
    for turn in (lambda u: gauge_transform(target, u, g), lambda u: u.conj().resolve_conj()):
        y, log_q_turned = flow.push(turn(z))
        assert target.distance(y, turn(x)).max() < 1e-10
        torch.testing.assert_close(log_q_turned, log_q, rtol=0, atol=1e-9)
    _, log_q_moved = flow.push(torch.roll(z, 1, 2))  # control: translations are no symmetry
    assert not torch.allclose(log_q_moved, log_q, atol=1e-3)


@ON_SMALL
def test_base_of_independent_plaquettes(target):
    """Its score, Haar distributed loops around the torus, and < w > the exact Z."""
    base = IndependentLassos(target).double()
    z = base.noise(4000, rng(16))
    w = summarise_weights((target.log_prob(z) - base.log_prob(z)).numpy())
    assert abs(w.log_z - exact.log_z(target.group, target.shape, target.beta)) < 4 * w.log_z_error
    loop = target.links.trace(z[:, 1, 0].unbind(1)[0])  # one link is Haar distributed
    assert abs(loop.mean()) < 4 * loop.std() / 4000**0.5
    p = torch.from_numpy(rng(17).normal(size=(4000, *target.momentum_shape)))
    plus, minus = (base.log_prob(target.move(z.clone(), p, s)) for s in (1e-5, -1e-5))
    slope = (base.score(z) * p).flatten(1).sum(1)
    torch.testing.assert_close(slope, (plus - minus) / 2e-5, rtol=1e-5, atol=1e-5)


# against the exact answers


class Wrong(LassoSpread):
    """Shares that add up to 0.7."""

    def _move(self, links, by):
        return super()._move(links, lambda p, share: by(p, 0.7 * share))


def pull_of_log_z(target, w):
    """`|found - exact| / error`."""
    return abs(w.log_z - exact.log_z(target.group, target.shape, target.beta)) / w.log_z_error


def pull_of_plaquette(target, x, log_w):
    """The same of the reweighted plaquette."""
    share = np.exp(log_w - log_w.max()) / np.exp(log_w - log_w.max()).sum()
    values = measure(target, x, "plaquette")["plaquette"]
    found = share @ values
    error = np.sqrt(share**2 @ (values - found) ** 2)
    return abs(found - exact.plaquette(target.group, target.shape, target.beta)) / error


@pytest.mark.parametrize("base", ["haar", "independent"])
@ON_LARGE
def test_log_z_and_plaquette_are_exact(target, base):
    """Untrained, 4x4: ESS above 0.9; two wrong densities fail the same test."""
    flow = Plaquettes(base=base, map=base == "haar").build_for(target, 1)
    draws, _ = FlowSampler(target, flow).draw(None, 4096, rng(19))
    w = summarise_weights(draws.log_w)
    assert w.ess > 0.92 and pull_of_log_z(target, w) < 4
    assert pull_of_plaquette(target, draws.x, draws.log_w) < 4
    with torch.no_grad():
        z = flow.noise(2048, rng(20))
        assert pull_of_plaquette(target, z, np.zeros(len(z))) > 8  # control: draws of the base
        x, _ = flow.push(z)
        w = summarise_weights((target.log_prob(x) - flow.base.log_prob(z)).numpy())
        assert pull_of_log_z(target, w) > 8  # control: log |det| left out
        wrong = Flow(flow.base, [*flow.layers[:-1], Wrong(target.links, 4, target.beta)])
        x, log_q = wrong.push(z)
        w = summarise_weights((target.log_prob(x) - log_q).numpy())
        assert pull_of_log_z(target, w) > 8  # control: shares that do not add up to one


def test_training_raises_the_ess():
    """Where R_0 is far from Haar distributed there is something to learn: SU(2), 2x3, beta = 4."""
    target = Wilson(shape=(2, 3), group="su2", beta=4.0)
    flow = Plaquettes(bins=8).build_for(target, 1)

    def ess():
        return summarise_weights(FlowSampler(target, flow).draw(None, 8192, rng(21))[0].log_w)

    before = ess()
    settings = TrainSettings(steps=60, optimizer="soap", lr=5e-3, warmup=10, batch=64, evaluate_draws=1024)
    train(flow, target, settings, seed=1)
    after = ess()
    assert after.ess > before.ess + 5 * before.ess_error
    assert abs(after.log_z - exact.log_z("su2", (2, 3), 4.0)) < 4 * after.log_z_error


@ON_LARGE
@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@torch.no_grad()
def test_precision(target, precision):
    """log q of the stored links in float64 is the stored one within what `verify` allows, wherever eigenvalues lie."""
    flow = made(target, 22).to(precision)
    x, log_q = flow.sample(500, rng(23))
    assert x.dtype == target.field_dtype(precision) and log_q.dtype == torch.float64
    again = flow.double().log_prob(x.to(torch.complex128))
    allowed = 1000 * torch.finfo(precision).eps * math.prod(target.event_shape) ** 0.5
    assert (again - log_q).abs().max() < allowed / 4


@GROUP
def test_where_eigenvalues_meet(group):
    """At the centre of the group and close to it: finite values and derivatives, the inverse right."""
    h = scrambled(ClassMap(group.n, 4, 2.0), 24)
    c = 1e-6 * torch.from_numpy(rng(25).normal(size=(6, group.generators)))
    c[:3] = 0
    centre = [complex(np.exp(2j * math.pi * k / group.n)) for k in range(group.n)]
    p = group.exp(c) * torch.tensor([centre[k % group.n] for k in range(6)])[:, None, None]
    p = p.to(torch.complex128).requires_grad_()
    for share in (None, 0.1):
        q, log_det = h(p, share)
        (slope,) = torch.autograd.grad(group.trace(q).sum() + log_det.sum(), p)
        assert slope.isfinite().all() and log_det.isfinite().all()
    back, _ = h.inverse(h(p)[0])
    assert (back - p).abs().max() < 1e-6


# production and settings


@pytest.mark.parametrize("flow", [{}, {"base": "haar", "map": True}], ids=["independent", "haar"])
def test_trained_by_deck_and_verified(flow, tmp_path):
    table = {
        "name": "su3",
        "seed": 5,
        "target": {"kind": "wilson", "shape": [3, 4], "group": "su3", "beta": 5.0},
        "flow": {"kind": "plaquettes", "bins": 4, **flow},
        "train": {"steps": 4, "warmup": 2, "batch": 16, "evaluate_draws": 1024},
        "sampler": {"flow": {"block": 1024, "batch": 256}},
    }
    path = tmp_path / "deck.toml"
    path.write_text(Deck.parse(table).toml())
    run = train_run(path, folder=tmp_path / "run", device="cpu").path
    sample_run(run, sampler="flow", draws=2048, device="cpu")
    plaquette = measure_run(run, "flow")["plaquette"]
    assert abs(plaquette.value - exact.plaquette("su3", (3, 4), 5.0)) < 4 * plaquette.error
    findings = verify_run(run)["flow"]
    assert not findings.problems and findings.blocks == 2 and findings.log_w_error < 1e-4


def test_continues_with_a_drift_and_on_another_lattice():
    spec = Plaquettes(map=True, bins=4, harmonics=1, modes=1, steps=2)
    small = made(SMALL[0], 26, spec=spec)
    assert [type(one).__name__ for one in small.layers] == ["LassoMap", "LassoSpread", "TrivializingLayer"]
    assert not Plaquettes().build_for(SMALL[0], 1).approximate
    large = HAAR.build_for(Wilson(shape=(4, 5), group="su2", beta=3.0), 1).double()
    previous = made(SMALL[0], 27)
    large.adopt(previous)
    assert torch.equal(large.layers[1].h.weight, previous.layers[1].h.weight)
    x, log_q = large.sample(3, rng(28))
    torch.testing.assert_close(large.log_prob(x), log_q, rtol=0, atol=1e-10)


def test_what_cannot_be_is_refused():
    for shape in ((1, 4), (4, 1)):
        with pytest.raises(InputError, match="sides of at least 2"):
            Plaquettes().build_for(Wilson(shape=shape, group="su3", beta=1.0), 1)
    with pytest.raises(InputError, match="solver = 'rk6' is of u1; su2 has 'rk4'"):
        Plaquettes(steps=2, solver="rk6").build_for(SMALL[0], 1)
    with pytest.raises(
        InputError, match="a flow of Wilson's action in two dimensions; found target 'wilson'"
    ):
        Plaquettes().build_for(Wilson(shape=(2, 2, 2), group="su2", beta=1.0), 1)
    with pytest.raises(InputError, match="do not fit"):
        HAAR.build_for(SMALL[0], 1).adopt(HAAR.build_for(SMALL[1], 1))
    for wrong in ({"steps": -1}, {"bins": 0}, {"base": "white"}, {"shares": 2}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            Plaquettes(**wrong)
