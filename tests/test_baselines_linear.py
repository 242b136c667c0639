"""PCA, the linear autoencoder and linear Gaussian samplers against linear algebra done by numpy."""

import numpy as np
import pytest
import torch
from baseline_data import FREE, fit_stored, store_chains, train_on
from tables import rng

from latticeflow.baselines.autoencoders import GaussianAutoencoder, LinearAutoencoder
from latticeflow.baselines.pca import Pca
from latticeflow.errors import InputError
from latticeflow.targets import Camel, FreeField
from latticeflow.training import Configurations

torch.set_num_threads(1)
GAP = 5  # khat^2 = 0 (once) and 2 (four times) on 4x4; the next orbit has six momenta


def angle(one: np.ndarray, two: np.ndarray) -> float:
    """The largest principal angle between the spaces that two sets of orthonormal columns span."""
    return float(np.linalg.norm(one - two @ (two.T @ one), 2))


def by_svd(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions (columns) and variances of rows x, by numpy's SVD of the centred data."""
    _, s, rows = np.linalg.svd(x - x.mean(0), full_matrices=False)
    return rows[:count].T, s[:count] ** 2 / len(x)


def test_pca_is_numpys_svd_of_the_data_in_pieces():
    """Correlated data with a mean, in pieces of unequal size; a PCA without its mean taken off is caught."""
    generator = rng(91)
    x = generator.normal(size=(700, 16)) @ generator.normal(size=(16, 16)) + 3 * generator.normal(size=16)
    fields = torch.from_numpy(x).view(-1, 4, 4)
    model = Pca(FREE, 6).double()
    model.begin([fields[:100], fields[100:650], fields[650:]])
    basis, variance = by_svd(x, 6)
    found = model.basis.numpy()
    np.testing.assert_allclose(np.abs((found * basis).sum(0)), 1, atol=1e-10)  # each vector, up to its sign
    np.testing.assert_allclose(
        model.variance.numpy() * float(model.scale[0, 0, 0]) ** 2, variance, rtol=1e-10
    )
    centred = x - x.mean(0)
    missed = ((centred - centred @ basis @ basis.T) ** 2).mean(1) / centred.var()
    np.testing.assert_allclose(model.error(fields).numpy(), missed, rtol=1e-9)
    np.testing.assert_allclose(
        model.reconstruct(fields).flatten(1).numpy(), x.mean(0) + centred @ basis @ basis.T, atol=1e-10
    )
    raw = np.linalg.eigh(x.T @ x)[1][:, ::-1][:, :6]
    assert angle(found, raw) > 0.1


def test_linear_autoencoder_is_pca_at_a_gap_of_the_spectrum(tmp_path):
    """Both by the loop, on the same stored chains; the spectrum's gap lies between two orbits of momenta."""
    ensemble = store_chains(tmp_path / "e", steps=128)
    linear, pca = LinearAutoencoder(FREE, GAP, rng(92)), Pca(FREE, GAP)
    fit_stored(pca, ensemble)
    early = LinearAutoencoder(FREE, GAP, rng(92))
    fit_stored(early, ensemble, steps=20, lr=0.02, batch="all")
    record = fit_stored(linear, ensemble, steps=1500, lr=0.02, batch="all")
    assert angle(linear.basis.numpy(), pca.basis.numpy()) < 1e-3
    assert angle(early.basis.numpy(), pca.basis.numpy()) > 0.05  # what is not trained to the end is seen
    x = next(iter(Configurations(ensemble.path, FREE, 5, augment=False, test_share=0.2).held_out().walk()))
    with torch.no_grad():
        np.testing.assert_allclose(linear.error(x).numpy(), pca.error(x).numpy(), rtol=2e-3)
    assert 0 < record["held_out"] < 1


def test_a_cut_inside_an_orbit_has_no_unique_subspace():
    """Why the cut is at a gap: of two halves of the data PCA finds the same space there, and other ones within an orbit."""
    x = FREE.sample(8192, rng(93))
    found = {}
    for count in (GAP, GAP - 2):
        halves = []
        for part in x.chunk(2):
            model = Pca(FREE, count).double()
            model.begin([part])
            halves.append(model.basis.numpy())
        found[count] = angle(*halves)
    assert found[GAP] < 0.15 < 0.4 < found[GAP - 2]


def test_probabilistic_pca_draws_its_covariance():
    """`sum_a (v_a - rest) u_a u_a^T + rest` of 20,000 draws, entry by entry; without `residual` directions are missing."""
    x = FREE.sample(4096, rng(94))
    model = Pca(FREE, GAP, residual=True).double()
    model.begin([x])
    _, variance = by_svd(x.flatten(1).numpy(), 16)
    basis, kept = by_svd(x.flatten(1).numpy(), GAP)
    rest = variance[GAP:].mean()
    wanted = basis @ np.diag(kept - rest) @ basis.T + rest * np.eye(16)
    n = 20_000
    draws = model.sample(n, rng(95)).flatten(1).numpy()
    found = np.cov(draws.T)
    error = np.sqrt((np.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2) / n)
    assert np.abs((found - wanted) / error).max() < 5
    model.residual = False
    assert np.linalg.matrix_rank(np.cov(model.sample(n, rng(95)).flatten(1).numpy().T), tol=1e-8) == GAP


def test_gaussian_autoencoder_that_is_linear_draws_the_projected_covariance():
    """Linear E and D at the minimum: draws have the covariance `P C P` of PCA's reconstructions, by its latent Gaussian."""
    x = FREE.sample(2048, rng(96))
    model = train_on(x, GaussianAutoencoder(FREE, GAP, (), rng(97)), 1500, 0.02)
    basis, kept = by_svd(x.flatten(1).numpy(), GAP)
    wanted = basis @ np.diag(kept) @ basis.T
    n = 20_000
    found = np.cov(model.sample(n, rng(98)).flatten(1).numpy().T)
    spread = np.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2
    assert np.abs(found - wanted).max() < 5 * np.sqrt(spread.max() / n) + 5e-3


def test_pca_of_events_and_its_draws_in_the_cube():
    target = Camel(dimensions=3)
    u = torch.from_numpy(rng(99).uniform(0.2, 0.8, size=(500, 3)))
    model = Pca(target, 2).double()
    model.begin([u])
    draws = model.sample(1000, rng(100))
    assert draws.shape == (1000, 3) and ((draws > 0) & (draws < 1)).all()


@pytest.mark.parametrize("latent", [0, 17])
def test_latent_numbers_must_fit(latent):
    with pytest.raises(InputError, match="expected 1 to 16"):
        Pca(FREE, latent)


def test_a_covariance_that_would_not_fit_is_refused():
    with pytest.raises(InputError, match="65,536 numbers takes 32 GiB"):
        Pca(FreeField(shape=(16, 16, 16, 16), m2=1.0), 4)


def test_pca_knows_nothing_before_it_is_computed():
    with pytest.raises(InputError, match="before it is computed"):
        Pca(FREE, 2).sample(3, rng(1))
    with pytest.raises(InputError, match="at least one configuration"):
        Pca(FREE, 2).begin([])
    with pytest.raises(InputError, match=r"expected \[batch, 4, 4\]"):
        Pca(FREE, 2).encode(FreeField(shape=(3, 3), m2=1.0).sample(2, rng(2)))
