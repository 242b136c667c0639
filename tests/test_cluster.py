"""Embedded clusters against enumeration, quadrature and transfer matrix, with kernels that must fail the same checks."""

from itertools import product

import numpy as np
import pytest
import torch
from reference import free_field, transfer_matrix, two_by_two
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from test_hmc import Gaussian, pulls

import latticeflow.samplers.cluster as cluster_module
from latticeflow.errors import InputError
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HMCSpec, samplers
from latticeflow.samplers.cluster import ClusterSpec, activate, grow, pack, unpack
from latticeflow.statistics import mean
from latticeflow.targets import FreeField, Phi4

torch.set_num_threads(1)
SQUARE = Phi4(shape=(2, 2), m2=-4.0, lam=8.0)


def run(target, steps=1000, seed=1, spec=ClusterSpec, **settings):
    """Draws of one stream and their field as `[chains, steps, V]`."""
    spec = spec(**{"chains": 128, "block": 128, "thermalisation": 100, **settings})
    sampler = spec.build(target)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    draws, state = sampler.draw(state, steps * spec.chains, stream(seed, Purpose.DRAW, 0, 0))
    return draws, draws.x.double().reshape(steps, spec.chains, -1).transpose(0, 1).numpy(), state


# the cluster update alone


def enumerated(shape, phi):
    """`<s_x s_y>` at fixed |phi|, weight `exp(-sum_bonds (phi_x - phi_y)^2)`, from all 2^V choices of signs."""
    signs = np.array(list(product((-1, 1), repeat=phi.size)))
    field = (signs * phi.ravel()).reshape(-1, *shape)
    action = sum(
        (np.square(np.roll(field, -1, 1 + mu) - field)).reshape(len(field), -1).sum(1)
        for mu in range(len(shape))
    )
    weight = np.exp(-action)
    return np.einsum("i,ix,iy->xy", weight / weight.sum(), signs, signs)


def sign_pulls(shape, seeds=2, chains=300, steps=150):
    """Pulls of all `<s_x s_y>`, x < y, after flips at fixed |phi|; errors from chains, which are independent."""
    phi = stream(4, Purpose.ANALYSIS).uniform(0.2, 0.7, shape)
    spec = ClusterSpec(chains=chains, block=chains, seeds=seeds, step=0.1, length=0.1)
    sampler, rng = spec.build(Phi4(shape=shape, m2=1.0, lam=1.0)), stream(5, Purpose.ANALYSIS)
    x = torch.from_numpy(np.broadcast_to(phi, (chains, *shape)).copy())
    sums = np.zeros((chains, phi.size, phi.size))
    for i in range(steps + 20):
        x = sampler.flip(x, rng)
        if i >= 20:
            s = np.sign(x.flatten(1).numpy())
            sums += s[:, :, None] * s[:, None, :] / steps
    np.testing.assert_array_equal(x.abs().numpy(), np.broadcast_to(phi, x.shape))
    upper = np.triu_indices(phi.size, 1)
    means, errors = sums.mean(0), sums.std(0, ddof=1) / np.sqrt(chains)
    return ((means - enumerated(shape, phi))[upper] / errors[upper]), means


@pytest.mark.parametrize("seeds", [1, 4])
@pytest.mark.parametrize("shape", [(2, 2), (3,), (2, 3), (1, 4), (2, 1, 2, 2)])
def test_signs_at_fixed_modulus(shape, seeds):
    found, _ = sign_pulls(shape, seeds)
    assert np.abs(found).max() < 4.5


def one_bond_on_a_side_of_two(phi, lattice, rng):
    active = activate(phi, lattice, rng)
    for mu, side in enumerate(lattice.shape):
        if side == 2:
            active[mu, lattice.coordinates[:, mu] == 1] = False
    return active


def test_wrong_bonds_are_caught(monkeypatch):
    """Half the coupling, and the second bond on a side of two forgotten."""
    with monkeypatch.context() as patch:
        patch.setattr(cluster_module, "COUPLING", 2.0)
        for shape in ((3,), (2, 2)):
            assert np.abs(sign_pulls(shape)[0]).max() > 10
    monkeypatch.setattr(cluster_module, "activate", one_bond_on_a_side_of_two)
    assert np.abs(sign_pulls((2, 2))[0]).max() > 10
    assert np.abs(sign_pulls((3,))[0]).max() < 4.5  # no side of two here


@pytest.mark.parametrize("shape, chains", [((5,), 3), ((2, 7), 70), ((4, 3, 5), 64), ((2, 3, 2, 4), 9)])
def test_grown_clusters_are_connected_components(shape, chains):
    lattice, rng = Lattice(shape), stream(6, Purpose.ANALYSIS)
    active = rng.random((lattice.dim, lattice.volume, chains)) < 0.4
    seeds = rng.random((lattice.volume, chains)) < 1 / lattice.volume
    found = unpack(grow(pack(seeds), pack(active), lattice), chains)
    sites = np.arange(lattice.volume).reshape(shape)
    for c in range(chains):
        ends = [(sites.ravel()[a], np.roll(sites, -1, mu).ravel()[a]) for mu, a in enumerate(active[..., c])]
        x, y = np.concatenate(ends, axis=1)
        graph = coo_matrix((np.ones(len(x)), (x, y)), shape=(lattice.volume,) * 2)
        label = connected_components(graph, directed=False)[1]
        np.testing.assert_array_equal(found[:, c], np.isin(label, label[seeds[:, c]]))


# with HMC


@pytest.mark.parametrize("precision", ["float64", "float32"])
def test_two_by_two_quadrature(precision):
    tuned = {} if precision == "float64" else {"step": 0.25, "length": 0.75}
    draws, x, _ = run(SQUARE, steps=600, precision=precision, **tuned)
    found = pulls(x, two_by_two(-4.0, 8.0))
    assert len(found) == 4 and all(abs(pull) < 4 for pull in found.values()), found
    np.testing.assert_array_equal(draws.log_prob, SQUARE.log_prob(draws.x.double()).numpy())
    assert draws.x.dtype == getattr(torch, precision)
    creutz = draws.info["exp_minus_dh"]
    assert abs(creutz.mean() - 1) < 4 * creutz.std() / np.sqrt(len(creutz))


@pytest.mark.parametrize("wrong", ["coupling", "one bond"])
def test_two_by_two_with_wrong_bonds(wrong, monkeypatch):
    if wrong == "coupling":
        monkeypatch.setattr(cluster_module, "COUPLING", 2.0)
    else:
        monkeypatch.setattr(cluster_module, "activate", one_bond_on_a_side_of_two)
    _, x, _ = run(SQUARE, steps=300, step=0.2, length=0.6)
    assert max(map(abs, pulls(x, two_by_two(-4.0, 8.0)).values())) > 8


@pytest.mark.parametrize("side, m2, lam", [(6, -4.0, 3.0), (3, 0.5, 1.0), (1, -2.0, 1.0)])
def test_transfer_matrix(side, m2, lam):
    _, x, _ = run(Phi4(shape=(side,), m2=m2, lam=lam), steps=400, step=0.2, length=0.8)
    found = pulls(x, transfer_matrix(side, m2, lam))
    assert len(found) == 3 and all(abs(pull) < 4 for pull in found.values()), found


@pytest.mark.parametrize("shape", [(3, 4, 2), (2, 3, 2, 2)])
def test_free_field_in_more_dimensions(shape):
    _, x, _ = run(FreeField(shape=shape, m2=0.5), steps=250, step=0.2, length=1.0)
    found = pulls(x, free_field(shape, 0.5))
    assert len(found) == 2 and all(abs(pull) < 4 for pull in found.values()), found


def test_both_wells_where_hmc_is_stuck():
    """From one well alone: clusters see both equally often from the first step on, HMC never leaves."""
    target, fixed = Phi4(shape=(6, 6), m2=-4.0, lam=2.0), {"step": 0.12, "length": 1.0}
    signs = {}
    for kind, spec in {"hmc": HMCSpec, "cluster": ClusterSpec}.items():
        sampler = spec(chains=64, block=64, thermalisation=100, **fixed).build(target)
        state = sampler.start(0, stream(1, Purpose.START, 0))
        state = {**state, "x": np.abs(state["x"])}
        state["log_prob"] = target.log_prob(torch.from_numpy(state["x"])).numpy()
        draws, _ = sampler.draw(state, 200 * 64, stream(1, Purpose.DRAW, 0, 0))
        signs[kind] = draws.x.flatten(1).mean(1).sign().numpy()
    assert (signs["hmc"] == 1).all()
    assert abs(signs["cluster"].mean()) < 4 / np.sqrt(signs["cluster"].size)


@pytest.mark.long
@pytest.mark.parametrize(
    "side, lam, phi2, chi2",
    [(6, 6.975, (0.161400, 0.000013), (1.0631, 0.0004)), (8, 6.008, (0.183885, 0.000015), (1.8973, 0.0009))],
)
def test_published_values(side, lam, phi2, chi2):
    """E1 and E2 of PHYSICS at 0.1 %."""
    target = Phi4(shape=(side, side), m2=-4.0, lam=lam)
    _, x, _ = run(target, steps=13000, chains=256, block=256, precision="float32")
    m = x.mean(-1)
    for series, (value, error) in (((x**2).mean(-1), phi2), (side**2 * m**2, chi2)):
        estimate = mean(series)
        assert estimate.error < 0.001 * value
        assert abs(estimate.value - value) < 4 * np.hypot(estimate.error, error)


# bookkeeping


@pytest.mark.parametrize("chains", [8, 72])
def test_resume_equals_one_longer_run(chains):
    sampler = samplers.find("cluster")(chains=chains, block=chains, thermalisation=100).build(SQUARE)
    state = sampler.start(3, stream(9, Purpose.START, 3))
    whole, end = sampler.draw(state, 10 * chains, stream(9, Purpose.DRAW, 0))
    rng = stream(9, Purpose.DRAW, 0)
    first, middle = sampler.draw(state, 4 * chains, rng)
    second, last = sampler.draw(middle, 6 * chains, rng)
    assert torch.equal(whole.x, torch.cat([first.x, second.x]))
    assert end.keys() == last.keys() and all(np.array_equal(end[name], last[name]) for name in end)
    with pytest.raises(
        InputError, match=f"cluster: 4 draws; expected a positive multiple of {chains} chains"
    ):
        sampler.draw(state, 4, rng)


def test_bits_survive_packing():
    for chains in (1, 8, 63, 64, 65, 130):
        bits = stream(2, Purpose.ANALYSIS, chains).random((3, 5, chains)) < 0.5
        words = pack(bits)
        assert words.dtype == np.uint64 and words.shape == (3, 5, -(-chains // 64))
        np.testing.assert_array_equal(unpack(words, chains), bits)


def test_bad_input():
    with pytest.raises(InputError, match=r"cluster: target 'gaussian'.*expected phi4 or free"):
        ClusterSpec().build(Gaussian())
    with pytest.raises(InputError, match="seeds"):
        ClusterSpec(seeds=0)
    with pytest.raises(InputError, match="cluster: block = 100 is not a multiple"):
        ClusterSpec(chains=64, block=100)
