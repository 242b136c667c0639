"""Forward ESS and log Z: closed forms, missed wells, autocorrelation, and runs with both ensembles."""

import known_samplers
import numpy as np
import pytest
from known_samplers import TARGET, draw
from tables import rng
from typer.testing import CliRunner

from latticeflow.analysis.forward import Forward, forward_estimate, forward_run
from latticeflow.cli import app
from latticeflow.config import Deck
from latticeflow.errors import InputError, NumericalError, TooFewSamples
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers.base import Sampler
from latticeflow.statistics import forward_weights, summarise_weights
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField

N = 65_536


def sigmas(found, exact, error):
    return abs(found - exact) / error


@pytest.mark.parametrize("sigma, sites", [(0.9, 1), (1.3, 2), (0.9, 4)])
def test_two_gaussians_in_closed_form(sigma, sites):
    """p = N(0, 1), q = N(0, sigma^2): ESS = (sqrt(2 - sigma^-2) / sigma)^V, at 4 sigma by either direction.

    Negative control: the proposal's draws taken for the target's do not pass.
    """
    exact = (np.sqrt(2 - sigma**-2) / sigma) ** sites

    def log_w(x):  # of p unnormalised, so that Z = (2 pi)^(V/2), over q
        log_q = -0.5 * (x / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
        return (-0.5 * x**2 - log_q).sum(-1)

    log_z = 0.5 * sites * np.log(2 * np.pi)
    x = rng(71).normal(size=(256, N // 256, sites))
    forward, reverse = forward_weights(log_w(x)), summarise_weights(log_w(sigma * x).ravel())
    for found in (forward, reverse):
        assert sigmas(found.ess, exact, found.ess_error) < 4
        assert sigmas(found.log_z, log_z, found.log_z_error) < 4
        assert found.ess_error < 0.01 and found.log_z_error < 0.01
    wrong = forward_weights(log_w(sigma * x))
    assert sigmas(wrong.log_z, log_z, wrong.log_z_error) > 10


def wells(n, centre=6.0, sites=2):
    """Draws of `[N(x; c) + N(x; -c)] / 2` and its log-density; c is in every component."""
    generator = rng(72)
    signs = generator.choice([-1.0, 1.0], size=(*n, 1))
    x = generator.normal(size=(*n, sites)) + signs * centre

    def log_p(x):
        return np.logaddexp(log_one(x), log_one(-x)) - np.log(2)

    def log_one(x):
        return -0.5 * np.square(x - centre).sum(-1) - 0.5 * sites * np.log(2 * np.pi)

    return x, log_p, log_one


def test_a_flow_that_misses_a_well_is_seen_forward_only():
    """Reverse: ESS = 1, log Z too small by log 2. Forward: ESS = 0, log Z right. Symmetrised: both 1."""
    x, log_p, log_one = wells((256, 64))
    own = rng(73).normal(size=(N, 2)) + 6.0
    reverse = summarise_weights(log_p(own) - log_one(own))
    assert reverse.ess > 0.999999 and abs(reverse.log_z + np.log(2)) < 1e-6
    missed = forward_weights(log_p(x) - log_one(x))
    assert missed.ess < 1e-20
    assert sigmas(missed.log_z, 0.0, missed.log_z_error) < 4
    report = Forward("flow", "hmc", reverse, missed)
    assert not report.agree and report.pull > 100 and report.log_z_pull < -10
    assert "MODE DROPPED" in report.lines()[-1] and "about 0.5" in report.lines()[-1]

    def log_sym(x):  # slightly wide, so that ESS is no trivial 1
        log_q = np.logaddexp(log_one(x / 1.1 + 6 * 0.1 / 1.1), log_one(-x / 1.1 + 6 * 0.1 / 1.1)) - np.log(2)
        return log_q - 2 * np.log(1.1)

    both = 6 + 1.1 * (own - 6)
    both *= rng(74).choice([-1.0, 1.0], size=(N, 1))
    reverse = summarise_weights(log_p(both) - log_sym(both))
    symmetrised = forward_weights(log_p(x) - log_sym(x))
    report = Forward("flow", "hmc", reverse, symmetrised)
    exact = (np.sqrt(2 - 1.1**-2) / 1.1) ** 2
    assert report.agree and sigmas(symmetrised.ess, exact, symmetrised.ess_error) < 4
    assert "agree" in report.lines()[-1]


def test_draws_where_the_target_has_nothing_are_seen_in_reverse_only():
    """A tenth of the proposals elsewhere: forward, ESS = 1 and Z are 1 / 0.9 too large; no mode is called dropped."""
    x = rng(78).normal(size=(256, 64))
    elsewhere = rng(79).random(N) < 0.1
    # log w = -log 0.9 where p is; there q = 0.9 p, but no forward draw is elsewhere
    log_w = np.log(1 / 0.9) + 1e-3 * x
    reverse = summarise_weights(np.where(elsewhere, -60.0, np.log(1 / 0.9)))
    report = Forward("flow", "hmc", reverse, forward_weights(log_w))
    assert (
        sigmas(reverse.ess, 0.9, reverse.ess_error) < 4 and sigmas(reverse.log_z, 0, reverse.log_z_error) < 4
    )
    assert report.forward.ess > 0.99999 and not report.agree
    assert "not as where a mode is dropped" in report.lines()[-1]
    assert abs(1 - np.exp(report.reverse.log_z - report.forward.log_z) - 0.1) < 0.01


def test_an_error_as_large_as_the_estimate_is_no_agreement():
    """One draw in 16,384 with nearly all of the weight: within errors of anything, and said to be so."""
    log_w = np.zeros((256, 64))
    log_w[3, 5] = 12.0
    forward = forward_weights(log_w)
    assert forward.ess_error > forward.ess / 3
    # log-normal weights of variance v and Z = 1: log w has mean -v/2 at proposals, +v/2 at the target's draws
    good = summarise_weights(0.1 * rng(80).normal(size=N) - 0.005)
    assert "no verdict" in Forward("flow", "hmc", good, forward).lines()[-1]
    forward = forward_weights(0.1 * rng(84).normal(size=(256, 64)) + 0.005)
    assert "the two agree" in Forward("flow", "hmc", good, forward).lines()[-1]


def test_errors_respect_autocorrelation():
    """AR(1) chains, rho = 0.95^t: the error of log Z matches the scatter over 60 repetitions within 30 %.

    Negative control: the same draws shuffled, hence taken for independent, have an error less than half of it.
    """
    a, sigma, found, errors, naive = 0.95, 1.2, [], [], []
    for repeat in range(60):
        generator = rng(75, repeat)
        noise = generator.normal(size=(4000, 4))
        x = np.empty_like(noise)
        x[0] = noise[0]
        for t in range(1, len(x)):
            x[t] = a * x[t - 1] + np.sqrt(1 - a * a) * noise[t]
        log_w = (-0.5 * x**2 + 0.5 * (x / sigma) ** 2 + np.log(sigma)).T
        one = forward_weights(log_w)
        found.append(one.log_z)
        errors.append(one.log_z_error)
        naive.append(forward_weights(generator.permutation(log_w.ravel()).reshape(4, -1)).log_z_error)
    scatter = np.std(found)
    assert 0.7 < np.mean(errors) / scatter < 1.3
    assert np.mean(naive) < 0.5 * scatter


def test_few_chains_that_never_leave_their_well_have_no_error():
    """Half of 8 chains in the well that is missed: bins inside a chain would claim to know its share."""
    log_w = rng(76).normal(size=(8, 4000)) * 0.1
    log_w[::2] += 50
    with pytest.raises(TooFewSamples):
        forward_weights(log_w)
    assert forward_weights(np.tile(log_w, (32, 1))).ess < 1e-10  # many chains: each is a draw of its well


def test_refusals():
    with pytest.raises(InputError, match=r"expected \[chains, steps\]"):
        forward_weights(np.zeros(5))
    with pytest.raises(NumericalError, match="1 of 8 log-weights"):
        forward_weights(np.array([[np.inf, *[0.0] * 7]]))
    exact = forward_weights(np.full((2, 8), 3.5))
    assert (exact.ess, exact.ess_error, exact.log_z) == (1.0, 0.0, 3.5)


class Wide(Sampler):
    """The density of a free field of another mass."""

    own_density = any_density = True

    def __init__(self, m2):
        self.target, self.other = TARGET, FreeField(shape=TARGET.shape, m2=m2)

    def log_q(self, x):
        return self.other.log_prob(x) - self.other.log_z


def exact_ess(m2):
    """`prod_k sqrt(2 - r_k) sqrt(r_k)` with `r_k = (khat^2 + m2') / (khat^2 + m2)`, as in two Gaussians."""
    r = (TARGET.lattice.khat2 + m2) / (TARGET.lattice.khat2 + TARGET.m2)
    return float(np.sqrt((2 - r) * r).prod())


@pytest.fixture(scope="module")
def chains(tmp_path_factory):
    deck = Deck.parse({"name": "free", "seed": 5, "target": {"kind": "free", "shape": [8, 8], "m2": 0.6}})
    run = Run.create(deck, tmp_path_factory.mktemp("forward") / "run")
    for kind in ("test_chain", "test_proposal", "test_walkers"):
        draw(run, kind, known_samplers.DRAWS[kind])
    return run


@pytest.mark.parametrize("draws", [8192, 65_536])
def test_stored_chains_of_a_free_field(chains, draws):
    """Every k-th step of 64 chains with rho = 0.8^t, against the closed form at 4 sigma."""
    ensemble = Ensemble.open(chains.ensemble("test_chain"))
    for m2 in (0.66, 0.8):
        found = forward_estimate(Wide(m2), ensemble, draws)
        assert found.n == draws
        assert sigmas(found.ess, exact_ess(m2), found.ess_error) < 4
        assert sigmas(found.log_z, TARGET.log_z, found.log_z_error) < 4
        assert sigmas(found.ess, exact_ess(0.9), found.ess_error) > 8  # negative control: of another proposal


def test_only_chains_of_the_target_serve(chains):
    for kind in ("test_proposal", "test_walkers"):
        with pytest.raises(InputError, match="distributed as the target"):
            forward_estimate(Wide(0.7), Ensemble.open(chains.ensemble(kind)))
    with pytest.raises(InputError, match="forward ESS is for flows"):
        forward_run(chains, "test_proposal", "test_chain")


def test_measure_forward_on_a_run(tmp_path):
    """`latticeflow measure RUN --sampler exact --forward hmc`: a perfect proposal agrees with HMC, and says so."""
    deck = {"name": "free", "seed": 5, "target": {"kind": "free", "shape": [4, 4], "m2": 0.6}}
    run = Run.create(Deck.parse(deck), tmp_path / "run")
    small = ["sampler.hmc.streams=2", "sampler.hmc.block=2048", "sampler.hmc.thermalisation=100"]
    sample_run(run, sampler="hmc", draws=4096, overrides=small)
    sample_run(run, sampler="exact", draws=8192)
    result = CliRunner().invoke(app, ["measure", str(run.path), "--sampler", "exact", "--forward", "hmc"])
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "4,096 configurations of hmc" in text and "the two agree" in text
    found = forward_run(run, "exact", "hmc", draws=1024)
    assert found.forward.n == 1024 and found.forward.ess == pytest.approx(1, abs=1e-9)
    with pytest.raises(InputError, match="sampler 'emcee'"):
        forward_run(run, "exact", "emcee")
