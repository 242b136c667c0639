"""The Schwinger model sampled: reweighted quenched configurations, HMC on the exact determinant, pseudofermions."""

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform
from test_schwinger import dense, links, of

from latticeflow.errors import InputError, NumericalError
from latticeflow.flows.loops import Loops
from latticeflow.observables import measure, observables
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HeatBathSpec, HMCSpec, check_reversibility
from latticeflow.samplers.integrators import rounding_bound
from latticeflow.samplers.pseudofermions import PseudofermionsSpec, conjugate_gradients
from latticeflow.statistics import mean
from latticeflow.targets import Phi4, Wilson
from latticeflow.targets.dirac import dirac
from latticeflow.training import TrainSettings, train

torch.set_num_threads(1)
TARGET = of((4, 4))
NAMES = ("plaquette", "condensate", "charge2", "polyakov", "pion")
CHAINS, STEPS = 128, 24


def numbers(target, x):
    """Observables by name, `[n]`; of the pion C(2)."""
    found = measure(target, x, *NAMES, "schwinger_dyson")
    return found | {"pion": found["pion"][:, 2]}


# observables of one configuration


@pytest.mark.parametrize("shape", [(4, 4), (2, 6), (6, 4)])
def test_observables_are_those_of_the_dense_inverse(shape):
    target, x = of(shape), links(shape, 1)
    found, volume = measure(target, x, "condensate", "pion"), target.lattice.volume
    time = np.arange(volume) % shape[1]
    for i, theta in enumerate(x.numpy()):
        g = np.linalg.inv(dense(theta, target.kappa))
        assert found["condensate"][i] == pytest.approx(g.trace().real / volume)
        square = (np.abs(g.reshape(volume, 2, volume, 2)) ** 2).sum((1, 3))
        for t in range(shape[1]):
            there = (time[:, None] - time[None] - t) % shape[1] == 0
            assert found["pion"][i, t] == pytest.approx(square[there].sum() / volume)


def test_gauge_invariance_and_names():
    x = links((4, 4), 2)
    g = TARGET.links.haar((3, 4, 4), rng(3), torch.float64)
    one, other = measure(TARGET, x), measure(TARGET, gauge_transform(TARGET, x, g))
    assert {"condensate", "pion", "charge", "wilson_loops"} <= set(one)
    for name in one:
        np.testing.assert_allclose(other[name], one[name], atol=1e-8, err_msg=name)
    quenched = Wilson(shape=(4, 4), group="u1", beta=2.0)
    assert "condensate" not in measure(quenched, x) and "condensate" not in observables.left_out(quenched)
    assert "four time slices" in observables.left_out(of((4, 2)))["pion_mass"]


def test_pion_mass_of_a_cosh():
    t = np.arange(8)
    found = observables.find("pion_mass").of(of((4, 8)), {"pion": np.cosh(0.37 * (t - 4))})
    assert found == pytest.approx(0.37)
    assert np.isnan(observables.find("pion_mass").of(of((4, 8)), {"pion": 2.0 - np.cosh(0.1 * (t - 4))}))


def test_free_condensate():
    """U = 1: `Sigma = V^{-1} sum 1 / lambda` over the eigenvalues of D, by momenta; heavy quarks: 2."""
    one, momenta = torch.zeros(1, 2, 6, 4, dtype=torch.float64), []
    for n0 in range(6):
        for n1 in range(4):
            p = 2 * np.pi * n0 / 6, 2 * np.pi * (n1 + 0.5) / 4
            real = 1 - 2 * 0.2 * sum(map(np.cos, p))
            momenta.append(2 * real / (real**2 + 4 * 0.2**2 * sum(np.sin(one) ** 2 for one in p)))
    found = measure(of((6, 4), kappa=0.2), one, "condensate")["condensate"][0]
    assert found == pytest.approx(sum(momenta) / 24)
    assert measure(of((6, 4), kappa=0.0), one, "condensate")["condensate"][0] == pytest.approx(2)


def test_free_pion():
    """U = 1: `C(t) = sum_{x_0} tr |G(x_0, t)|^2` with G from momenta, `G(p)^-1 = 1 - 2 kappa sum_mu [ cos p_mu - i
    gamma_mu sin p_mu ]`; its effective mass falls to that of two quarks, each of the pole `cosh E` at p_0 = 0.
    """
    kappa, (side, times) = 0.2, (6, 16)
    p0 = 2 * np.pi * np.arange(side) / side
    p1 = 2 * np.pi * (np.arange(times) + 0.5) / times
    gamma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]]])
    p = np.stack(np.meshgrid(p0, p1, indexing="ij"), -1)
    d = (1 - 2 * kappa * np.cos(p).sum(-1))[..., None, None] * np.eye(2)
    d = d + 2j * kappa * np.einsum("xtm,mab->xtab", np.sin(p), gamma)
    x = np.stack(np.meshgrid(np.arange(side), np.arange(times), indexing="ij"), -1)
    wave = np.exp(1j * np.einsum("xtm,pqm->xtpq", x, p))
    g = np.einsum("xtpq,pqab->xtab", wave, np.linalg.inv(d)) / (side * times)
    expected = (np.abs(g) ** 2).sum((0, 2, 3))
    target = of((side, times), kappa=kappa)
    found = measure(target, torch.zeros(1, 2, side, times, dtype=torch.float64), "pion")["pion"][0]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    # det D(p_0 = 0, p_1 = iE) = 0: (a - 2 kappa cosh E)^2 = 4 kappa^2 sinh^2 E with a = 1 - 2 kappa
    a = 1 - 2 * kappa
    quark = np.arccosh((a**2 + 4 * kappa**2) / (4 * kappa * a))
    assert observables.find("pion_mass").of(target, {"pion": found}) == pytest.approx(2 * quark, rel=0.01)


# sampling


BINS = 32


@pytest.fixture(scope="module")
def quenched():
    """x and observables of pure gauge theory at beta = 2 by the heat bath, which is tested against the exact answers."""
    spec = HeatBathSpec(chains=512, block=512, winding=2, overrelaxation=1, thermalisation=30, thin=2)
    sampler = spec.build(Wilson(shape=(4, 4), group="u1", beta=2.0))
    state = sampler.start(0, stream(1, Purpose.START, 0))
    x = sampler.draw(state, 512 * 16, stream(1, Purpose.DRAW, 0, 0))[0].x
    return x, numbers(TARGET, x)


def reweighted(observed, log_w):
    """Mean and error of each observable with weights exp(log_w), by jackknife over bins of independent chains."""
    w, found = np.exp(log_w - log_w.max()), {}
    for name, values in observed.items():
        sums = np.stack([w, w * values]).reshape(2, -1, BINS, 512 // BINS).sum((1, 3))
        total = sums.sum(1, keepdims=True)
        left_out = (total - sums)[1] / (total - sums)[0]
        found[name] = float(total[1, 0] / total[0, 0]), float(left_out.std() * (BINS - 1) ** 0.5)
    return found


def sampled(spec, seed=1):
    sampler = spec.build(TARGET)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    draws, _ = sampler.draw(state, STEPS * CHAINS, stream(seed, Purpose.DRAW, 0, 0))
    np.testing.assert_allclose(draws.log_prob, TARGET.log_prob(draws.x).numpy(), atol=1e-10)
    of_chains = {name: v.reshape(STEPS, CHAINS).mean(0) for name, v in numbers(TARGET, draws.x).items()}
    return draws, {name: (v.mean(), v.std() / (CHAINS - 1) ** 0.5) for name, v in of_chains.items()}


def pulls(one, other):
    return {name: (one[name][0] - other[name][0]) / np.hypot(one[name][1], other[name][1]) for name in one}


SPECS = {
    "exact": HMCSpec(chains=CHAINS, block=CHAINS, thermalisation=100, step=0.4, length=1.2),
    "pseudofermions": PseudofermionsSpec(
        chains=CHAINS, block=CHAINS, thermalisation=100, step=0.45, length=0.9, tolerance=1e-6
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_against_reweighted_quenched_sampling(name, quenched):
    draws, found = sampled(SPECS[name])
    x, observed = quenched
    expected = reweighted(observed, 2 * TARGET.log_det(x).numpy())
    assert max(map(abs, pulls(found, expected).values())) < 4, (found, expected)
    assert found["plaquette"][1] < 0.006 and expected["plaquette"][1] < 0.006
    assert abs(found["schwinger_dyson"][0]) < 4 * found["schwinger_dyson"][1]
    weight = draws.info["exp_minus_dh"]
    assert abs(weight.mean() - 1) < 4 * weight.std() / STEPS**0.5 and draws.info["acceptance"].mean() > 0.7
    # controls: one flavour, periodic in time, no fermions
    periodic = x.clone()
    periodic[:, 1, :, -1] += np.pi
    for log_w in (TARGET.log_det(x), 2 * TARGET.log_det(periodic), torch.zeros(len(x))):
        assert max(map(abs, pulls(found, reweighted(observed, log_w.numpy())).values())) > 8


def test_flow_against_reweighted_quenched_sampling(quenched):
    """A flow along loops, hardly trained, by importance sampling with its own weights. Without them it must fail."""
    flow = Loops(base_beta=2.4, suppression=1.0, steps=3, sides=1, modes=2).build_for(TARGET, 1)
    settings = TrainSettings(steps=30, optimizer="soap", lr=3e-3, warmup=5, evaluate_draws=1024)
    train(flow, TARGET, settings, seed=1)
    draws, _ = FlowSampler(TARGET, flow.eval()).draw(None, 512 * 16, rng(13))
    observed = numbers(TARGET, draws.x)
    found = reweighted(observed, np.asarray(draws.log_w))
    x, plain = quenched
    expected = reweighted(plain, 2 * TARGET.log_det(x).numpy())
    assert max(map(abs, pulls(found, expected).values())) < 4, (found, expected)
    assert abs(found["schwinger_dyson"][0]) < 4 * found["schwinger_dyson"][1]
    unweighted = reweighted(observed, np.zeros(len(draws.x)))
    assert max(map(abs, pulls(unweighted, expected).values())) > 8


# pseudofermions


def at_fixed_phi(x, *key, **settings):
    spec = PseudofermionsSpec(chains=len(x), block=len(x), **settings)
    return spec.build(TARGET).followed(x, torch.zeros(len(x)), rng(*key))


def test_action_and_force_at_fixed_phi():
    x = links((4, 4), 4)
    target, at_x = at_fixed_phi(x, 5)
    torch.testing.assert_close(target.log_prob(x), at_x, rtol=1e-9, atol=1e-9)  # |M^-1 M eta|^2 = |eta|^2
    p, eps = torch.from_numpy(rng(6).normal(size=x.shape)), 1e-5
    expected = (target.log_prob(x + eps * p) - target.log_prob(x - eps * p)) / (2 * eps)
    torch.testing.assert_close((target.force(x) * p).flatten(1).sum(1), expected, rtol=1e-6, atol=1e-6)
    dx, dh = check_reversibility(target, x, p, 0.1, 5)
    assert dx < rounding_bound(x, p, 5) and dh < 1e-8
    # S at another x by the dense matrix of even sites
    y = links((4, 4), 7)
    d = dirac(TARGET.lattice, y.device)
    m = d.matrix(d.phases(y), TARGET.kappa)
    eta = torch.linalg.solve(m, target._phi.flatten(1))
    expected = -Wilson.action(TARGET, y) - eta.abs().square().sum(1)
    torch.testing.assert_close(target.log_prob(y), expected, rtol=1e-8, atol=1e-8)


def test_heat_bath_of_phi_has_the_determinant_as_its_integral():
    """`< exp(-S_phi(y) + S_phi(x)) >` over phi drawn at x is `|det M(y) / det M(x)|^2`."""
    x = links((4, 4), 8, n=1).expand(20_000, -1, -1, -1).contiguous()
    y = x + 0.03 * links((4, 4), 9, n=1)
    target, at_x = at_fixed_phi(x, 10)
    gauge = Wilson.action(TARGET, y) - Wilson.action(TARGET, x)
    weight = mean(torch.exp(target.log_prob(y) - at_x + gauge).numpy()[None])
    expected = float(torch.exp(2 * (TARGET.log_det(y[:1]) - TARGET.log_det(x[:1]))))
    assert abs(weight.value - expected) < 4 * weight.error and weight.error < 0.05 * expected
    assert abs(expected - 1) > 10 * weight.error


def test_conjugate_gradients():
    x = links((4, 4), 11)
    d = dirac(TARGET.lattice, x.device)
    phases = d.phases(x)
    phi = torch.view_as_complex(torch.from_numpy(rng(12).normal(size=(3, 8, 2, 2))))
    phi[1] = 0  # done at once
    m = d.matrix(phases, 0.276)
    expected = torch.linalg.solve(m @ m.mH, phi.flatten(1)).view_as(phi)
    found = conjugate_gradients(d, phases, 0.276, phi, 1e-11, 200)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    with pytest.raises(
        NumericalError, match=r"2 of 3 solutions have a relative residual .* after 3 iterations"
    ):
        conjugate_gradients(d, phases, 0.276, phi, 1e-11, 3)


def test_what_cannot_be_is_refused():
    for target in (Phi4(shape=(4, 4), m2=1.0, lam=1.0), Wilson(shape=(4, 4), group="u1", beta=1.0)):
        with pytest.raises(InputError, match="has no fermions; expected 'schwinger'"):
            PseudofermionsSpec().build(target)
    with pytest.raises(InputError, match="no scalar field"):
        PseudofermionsSpec(acceleration="fourier").build(TARGET)
    with pytest.raises(InputError, match="tolerance"):
        PseudofermionsSpec(tolerance=1.0)
    with pytest.raises(NumericalError, match=r"raise sampler\.pseudofermions.iterations"):
        PseudofermionsSpec(chains=4, block=4, iterations=2, step=0.1, length=0.1).build(TARGET).start(
            0, rng(1)
        )
