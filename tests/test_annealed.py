"""AIS and SMC against quadrature, transfer matrix and the free field, with wrong ones that must fail the same check."""

import math

import numpy as np
import pytest
import torch
from reference import free_field, transfer_matrix, two_by_two
from tables import rng
from test_exactness import by_weight, worst

from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.correction import metropolis
from latticeflow.errors import InputError
from latticeflow.flows.bridge import Bridge, gap_mass, linear, move, pilot
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers import annealed
from latticeflow.samplers.annealed import Annealed, AnnealedSpec, systematic
from latticeflow.statistics import summarise_weights
from latticeflow.targets import FreeField, LatticeTarget, Phi4

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)
RING = Phi4(shape=(6,), m2=-4.0, lam=8.0)
CASES = {
    "AIS 2x2": (AnnealedSpec(steps=3, kicks=1), SQUARE, two_by_two(-4.0, 8.0), 65536),
    "AIS ring": (AnnealedSpec(steps=5, power=1.5), RING, transfer_matrix(6, -4.0, 8.0), 65536),
    "SMC 2x2": (
        AnnealedSpec(steps=4, kicks=1, base_m2=0.5, particles=4, resample=1.0),
        SQUARE,
        two_by_two(-4.0, 8.0),
        32768,
    ),
}


def check(sampler, reference, n):
    """The largest |pull| of the weighted observables, and |pull| of log Z."""
    draws, _ = sampler.draw(None, n, rng(70))
    return worst(draws.x.double().flatten(1).numpy(), draws.log_w, reference, by_weight)


@pytest.mark.parametrize("name", CASES)
def test_known_answers(name):
    spec, target, reference, n = CASES[name]
    draws, _ = spec.build(target).draw(None, n, rng(70))
    for correct in (metropolis, by_weight):
        assert max(worst(draws.x.double().flatten(1).numpy(), draws.log_w, reference, correct)) < 4


class NoWorkOfOneStep(Annealed):
    @property
    def increments(self):
        return super().increments * (np.arange(self.spec.steps) != 1)


class WrongSign(Annealed):
    @property
    def increments(self):
        return -super().increments


class OtherAction(Bridge):
    """Updates that leave another action of the path invariant."""

    def update(self, now, b, *rest):
        return super().update(now, 0.5 * b, *rest)


class NoRejection(Bridge):
    def update(self, now, b, angle, kicks, p, log_u):
        return super().update(now, b, 1.2, kicks, p, torch.full_like(log_u, -math.inf))


@pytest.mark.parametrize("wrong", [NoWorkOfOneStep, WrongSign])
def test_wrong_work_is_caught(wrong):
    spec, target, reference, n = CASES["AIS 2x2"]
    assert min(check(wrong(target, spec), reference, n)) > 6


@pytest.mark.parametrize("wrong", [OtherAction, NoRejection])
def test_updates_of_another_action_are_caught(wrong):
    spec, target, reference, n = CASES["AIS 2x2"]
    sampler = spec.build(target)
    _ = sampler.path  # the right one's
    sampler.bridge = wrong(target)
    assert min(check(sampler, reference, n)) > 6


def test_resampling_that_keeps_the_walkers_is_caught(monkeypatch):
    spec, target, reference, n = CASES["SMC 2x2"]
    monkeypatch.setattr(annealed, "_resample", lambda now, *rest: now)
    assert min(check(spec.build(target), reference, n)) > 6


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("shape, steps", [((8,), 1), ((4, 6), 3), ((2, 3, 4), 2), ((2, 2, 2, 2), 3)])
def test_free_field_to_free_field(shape, steps, precision):
    """m2 = 1 to m2 = 2: `<w>` is the other field's Z, and `<phi^2>` its, within 4 sigma, for any number of steps."""
    spec = AnnealedSpec(steps=steps, base_m2=1.0, precision=precision)
    draws, _ = spec.build(FreeField(shape=shape, m2=2.0)).draw(None, 8192, rng(71))
    assert draws.x.dtype == getattr(torch, precision)
    known, other = free_field(shape, 2.0), free_field(shape, 1.0)
    found = summarise_weights(draws.log_w)
    assert abs(found.log_z - known["log_z"]) < 4 * found.log_z_error
    assert abs(found.log_z - other["log_z"]) > 20 * found.log_z_error
    w = np.exp(draws.log_w - found.log_z)
    phi2 = draws.x.double().square().flatten(1).mean(1).numpy()
    error = (w * (phi2 - known["phi2"])).std() / math.sqrt(len(w))
    assert abs((w * (phi2 - known["phi2"])).mean()) < 4 * error


def test_the_free_field_itself_has_equal_weights():
    target = FreeField(shape=(4, 4), m2=0.7)
    draws, _ = AnnealedSpec(steps=4).build(target).draw(None, 100, rng(72))
    np.testing.assert_allclose(draws.log_w, free_field((4, 4), 0.7)["log_z"], atol=1e-12)


def test_more_steps_are_better():
    ess = []
    for steps in (1, 4, 16):
        draws, _ = AnnealedSpec(steps=steps).build(SQUARE).draw(None, 8192, rng(73))
        ess.append(summarise_weights(draws.log_w).ess)
    assert ess == sorted(ess) and ess[-1] > ess[0] + 0.3


def test_update_leaves_its_action_invariant_and_creutz_holds():
    """Exact draws of the free field of m2 = 1 + b stay so within 4 sigma; `<exp(-dH)> = 1`."""
    bridge, b = Bridge(FreeField(shape=(4, 4), m2=5.0), base_m2=1.0, dtype=torch.float64), 0.5
    known = free_field((4, 4), 3.0)
    x = FreeField(shape=(4, 4), m2=3.0).sample(22500, rng(74))
    now = bridge.at(bridge.whiten(x))
    torch.testing.assert_close(now.x, x.flatten(1), rtol=0, atol=1e-12)
    for i in range(3):
        now, dh = move(bridge, now, b, 0.6, 2, rng(75, i))
        e = torch.exp(-dh)
        assert abs(float(e.mean()) - 1) < 4 * float(e.std()) / 150
        assert float(dh.std()) > 0.1
    phi2 = now.x.square().mean(1)
    assert abs(float(phi2.mean()) - known["phi2"]) < 4 * float(phi2.std()) / 150
    assert not torch.equal(now.x, x.flatten(1))


class Unknown(LatticeTarget):
    """phi^4 without its name: nothing is known of it but log_prob."""

    kind = "unknown"
    measure = "lebesgue"
    m2: float
    lam: float

    @property
    def event_shape(self):
        return self.shape

    def action(self, x):
        return Phi4(shape=self.shape, m2=self.m2, lam=self.lam).action(x)


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 4), (22, 20)])
def test_excess_and_slope(shape):
    """The sums over sites of phi^4 against S - S_0 from log_prob, and both slopes against autograd; dense A and FFT."""
    args = dict(shape=shape, m2=-4.0, lam=6.0)
    one = Bridge(Phi4(**args), 0.8, torch.float64)
    other = Bridge(Unknown(**args), 0.8, torch.float64)
    assert (one.matrix is None) == (math.prod(shape) > 400)
    x = torch.from_numpy(rng(76).normal(size=(3, math.prod(shape))))
    z = one.whiten(x)
    with torch.enable_grad():
        z.requires_grad_(True)
        d = -one.target.log_prob(one.colour(z).view(-1, *shape)) - 0.5 * z.square().sum(1)
        (slope,) = torch.autograd.grad(d.sum(), z)
    z = z.detach()
    for bridge in (one, other):
        now = bridge.at(z)
        torch.testing.assert_close(now.excess, d.detach(), rtol=1e-10, atol=1e-9)
        torch.testing.assert_close(now.slope, slope, rtol=1e-9, atol=1e-9)
        fields = now.x.view(-1, *shape)
        path = 0.5 * z.square().sum(1) + 0.3 * now.excess
        torch.testing.assert_close(bridge.action(fields, 0.3), path, rtol=1e-10, atol=1e-9)


def test_gap_mass_is_the_nearest_free_field():
    """`KL(free || phi^4)` by its formula in numpy: least at the gap equation's mass."""
    k2 = np.add.outer(*[4 * np.sin(np.pi * np.arange(6) / 6) ** 2] * 2)

    def kl(m0):
        g = (0.5 / (k2 + m0)).mean()
        return 36 * ((-4.0 - m0) * g + 3 * 7.0 * g * g) - 0.5 * np.log(np.pi / (k2 + m0)).sum()

    m0 = gap_mass(Phi4(shape=(6, 6), m2=-4.0, lam=7.0))
    assert kl(m0) < min(kl(0.99 * m0), kl(1.01 * m0))
    assert gap_mass(FreeField(shape=(4,), m2=0.3)) == 0.3
    with pytest.raises(InputError, match="base_m2"):
        gap_mass(Unknown(shape=(4, 4), m2=1.0, lam=1.0))


def test_schedules():
    np.testing.assert_allclose(linear(4, 2.0), [1 / 16, 1 / 4, 9 / 16, 1])
    found = pilot(Bridge(SQUARE), 2, 0.8, rng(77))
    b = found.schedule(5)
    assert len(b) == 5 and b[-1] == 1 and (np.diff(b, prepend=0) > 0).all()
    steps = [
        np.trapezoid(np.interp(grid := np.linspace(*ends, 2001), found.b, found.spread), grid)
        for ends in zip([0, *b], b)
    ]
    np.testing.assert_allclose(steps, np.mean(steps), rtol=1e-2)
    assert (found.angles(b) <= math.pi / 4 + 1e-12).all()


def test_systematic_resampling():
    """Column i is taken floor or ceil of P share times, and P share on average."""
    shares = rng(78).dirichlet(np.full(7, 0.5), size=20000)
    shares[:] = shares[0]
    taken = systematic(shares, rng(79).random(len(shares)), 7)
    counts = np.stack([(taken == i).sum(1) for i in range(7)], axis=1)
    assert (np.abs(counts - 7 * shares) < 1).all() and (counts.sum(1) == 7).all()
    error = counts.std(0) / math.sqrt(len(counts))
    assert (np.abs(counts.mean(0) - 7 * shares[0]) <= 4 * error + 1e-12).all()


@pytest.mark.parametrize("particles", [1, 4])
def test_draws_depend_on_their_stream_alone(particles):
    """Another object, which has made its own pilot run, and other draws in between: the same bytes."""
    spec = AnnealedSpec(steps=3, batch=64, particles=particles)
    one, two = spec.build(SQUARE), spec.build(SQUARE)
    two.draw(None, 10, rng(80))
    a, b = one.draw(None, 100, rng(81))[0], two.draw(None, 100, rng(81))[0]
    assert torch.equal(a.x, b.x) and np.array_equal(a.log_w, b.log_w)
    assert a.x.shape == (100, 2, 2) and set(a.info) == {"b", "acceptance", "ess"}


def test_production(tmp_path):
    """Stored, resumed, corrected, measured, compared and verified like any sampler with weights."""
    deck = {
        "name": "annealed",
        "seed": 5,
        "target": {"kind": "phi4", "shape": [2, 2], "m2": -4.0, "lam": 8.0},
        "sampler": {
            "annealed": {"steps": 4, "block": 2048},
            "hmc": {"streams": 1, "chains": 32, "block": 512},
        },
    }
    whole = Run.create(Deck.parse(deck), tmp_path / "whole")
    parts = Run.create(Deck.parse(deck), tmp_path / "parts")
    a = sample_run(whole, sampler="annealed", draws=8192)
    sample_run(parts, sampler="annealed", draws=2048)
    b = sample_run(parts, sampler="annealed", draws=8192)
    assert a.present == b.present and len(a.present) == 4
    for key in a.present:
        one, two = a.read(*key), b.read(*key)
        assert one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)

    known = two_by_two(-4.0, 8.0)
    rows = measure_run(whole.path, "annealed")
    for name in ("phi2", "phi4", "chi2"):
        assert abs(rows[name].value - known[name]) < 4 * rows[name].error
        assert abs(rows[name].reweighted[0] - known[name]) < 4 * rows[name].reweighted[1]
    log_z = a.summary().weights
    assert abs(log_z.log_z - known["log_z"]) < 4 * log_z.log_z_error
    sample_run(whole, sampler="hmc", draws=4096)
    compare_run(whole.path, ["annealed", "hmc"])
    verify_run(whole)


def test_refusals():
    with pytest.raises(InputError, match="multiple of particles"):
        AnnealedSpec(batch=100, particles=8)
    with pytest.raises(InputError, match="at least 1"):
        AnnealedSpec().build(SQUARE).draw(None, 0, rng(82))
