"""The VAE's bounds against closed forms: the linear VAE (a Gaussian), the free field, integrals over the cube."""

import math

import numpy as np
import pytest
import torch
from baseline_data import FREE, train_on
from tables import rng

from latticeflow.baselines import models
from latticeflow.baselines.vae import Vae
from latticeflow.errors import InputError
from latticeflow.targets import Camel, FreeField, Wilson

torch.set_num_threads(1)


def log_gaussian(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    centred = x - mean
    _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
    return -0.5 * (np.einsum("ni,ni->n", centred, np.linalg.solve(covariance, centred.T).T) + log_det)


def orbits_4x4() -> np.ndarray:
    """The orbit of each momentum 2 pi n / 4, `[4, 4]`: n folded and sorted, numbered in lexicographic order."""
    folded = [tuple(sorted((min(a, 4 - a), min(b, 4 - b)))) for a in range(4) for b in range(4)]
    return np.array([sorted(set(folded)).index(n) for n in folded]).reshape(4, 4)


def gaussian_of(model: Vae) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of x of a linear VAE on 4x4: `y = W z + b + s n`, y = (x - mean) / scale, is Gaussian.

    With white noise it is probabilistic PCA; with a spectrum the noise is diagonal in plane waves.
    """
    w, b = (p.detach().numpy() for p in model.decoder[0].parameters())
    s2 = model.log_variance.detach().exp().numpy()
    power = s2[0][orbits_4x4()].ravel() if model.spectral else np.full(16, s2.item())
    waves = np.exp(2j * np.pi * np.outer(np.arange(4), np.arange(4)) / 4) / 2
    waves = np.kron(waves, waves)
    noise = (waves @ np.diag(power) @ waves.conj().T).real
    mean, scale = model.mean.numpy().ravel(), model.scale.numpy().ravel()
    return mean + scale * b, np.diag(scale) @ (w @ w.T + noise) @ np.diag(scale)


def exact_log_prob(model: Vae, x: torch.Tensor) -> np.ndarray:
    """log p(x) of a linear VAE."""
    return log_gaussian(x.flatten(1).numpy(), *gaussian_of(model))


class Coloured(Vae):
    """With a noise that lacks low momenta and stays as it is, so that there is something left for latent numbers."""

    def begin(self, data) -> None:
        super().begin(data)
        with torch.no_grad():
            self.log_variance.sub_(torch.linspace(1.5, 0.3, 6)).requires_grad_(False)


@pytest.fixture(scope="module", params=["white", "spectrum"])
def linear(request):
    """A linear VAE of a free field, trained for a while: its encoder is near the posterior and not at it."""
    x = FREE.sample(2048, rng(111))
    if request.param == "white":
        return train_on(x, Vae(FREE, 5, (), 1.0, rng(112)), 60, 0.02, batch=256)
    return train_on(x, Coloured(FREE, 5, (), 1.0, rng(112), "spectrum"), 60, 0.02, batch=256)


def test_bounds_of_a_linear_vae_rise_with_k_to_the_closed_form(linear):
    """`<ELBO> = L_1 <= L_4 <= L_64 <= L_512 <= log p`, in means over 256 configurations with errors."""
    x = FREE.sample(256, rng(113))
    exact = exact_log_prob(linear, x)
    with torch.no_grad():
        log_w = linear.log_weights(x, rng(114), 2048).numpy()
        elbo = np.stack([linear.elbo(x, rng(115, i)).numpy() for i in range(64)]).mean(0)
    bounds = {}
    for k in (1, 4, 64, 512):
        groups = log_w.reshape(-1, k, 256)
        largest = groups.max(1, keepdims=True)
        bounds[k] = (np.log(np.exp(groups - largest).mean(1)) + largest[:, 0]).mean(0)
    gaps = {k: (exact - bound).mean() for k, bound in bounds.items()}
    assert gaps[1] > gaps[4] > gaps[64] > gaps[512] > -1e-3, gaps
    assert gaps[1] > 0.05 and gaps[512] < 0.2 * gaps[1], gaps
    # the ELBO with its KL in closed form is L_1
    error = log_w.std(0).mean() / math.sqrt(64) / math.sqrt(256)
    assert abs((elbo - bounds[1]).mean()) < 5 * error + 1e-3


def test_a_bound_without_the_latent_prior_is_caught(linear):
    """Negative control: weights that leave out log N(z; 0, 1) - log q(z | y) go beyond log p."""
    x = FREE.sample(256, rng(113))
    with torch.no_grad():
        y = linear.inward(x)
        mean, _ = linear.posterior(y)
        d = (y - linear.decoder(mean)).numpy()[:, 0]
        s2 = linear.log_variance.exp().numpy().ravel()
        power = s2[orbits_4x4()] if linear.spectral else s2
        seen = np.abs(np.fft.fft2(d, norm="ortho")) ** 2
        wrong = -0.5 * (seen / power + np.log(2 * np.pi * power)).sum((1, 2)) + linear.log_det(x).numpy()
    assert (wrong - exact_log_prob(linear, x)).mean() > 1


def test_draws_of_a_linear_vae_have_its_covariance(linear):
    """Entry by entry of 20,000 draws; the other noise of the same total variance would not pass."""
    n = 20_000
    found = np.cov(linear.sample(n, rng(154)).flatten(1).numpy().T)
    _, wanted = gaussian_of(linear)
    error = np.sqrt((np.outer(wanted.diagonal(), wanted.diagonal()) + wanted**2) / n)
    assert np.abs((found - wanted) / error).max() < 5
    assert np.abs((found - wanted.trace() / 16 * np.eye(16)) / error).max() > 20


def test_a_spectrum_starts_at_the_datas_power_and_finds_the_free_field():
    """s^2(k) before the first step is `<|y_k|^2>` by orbit; after training the spectrum of draws is `1 / (2 (khat^2 + m2))`

    to its errors, and the density is the exact one's to 0.05. White noise with the same two latent numbers has
    neither.
    """
    x = FREE.sample(8192, rng(155))
    start = Vae(FREE, 2, (4,), 1.0, rng(156), "spectrum").double()
    start.begin([x[:3000], x[3000:]])
    y, orbit = (x - x.mean()).numpy() / x.std(correction=0).item(), orbits_4x4()
    seen = (np.abs(np.fft.fft2(y, norm="ortho")) ** 2).mean(0)
    wanted = [seen[orbit == o].mean() for o in range(6)]
    np.testing.assert_allclose(start.log_variance.detach().exp().numpy()[0], wanted, rtol=1e-10)

    held = FREE.sample(1024, rng(157))
    log_p = FREE.log_prob(held) - FREE.log_z
    n, pulls, below = 20_000, {}, {}
    for noise in ("white", "spectrum"):
        model = train_on(x, Vae(FREE, 2, (4,), 1.0, rng(156), noise), 250, 0.01, batch=128)
        drawn = np.abs(np.fft.fft2(model.sample(n, rng(158)).numpy(), norm="ortho")) ** 2
        error = np.hypot(drawn.std(0) / math.sqrt(n), FREE.spectrum / math.sqrt(len(x) / 2))
        pulls[noise] = np.abs(drawn.mean(0) - FREE.spectrum) / error
        gap = (log_p - model.log_q(held, rng(159), 32)[0]).numpy()
        below[noise] = gap.mean(), gap.std() / math.sqrt(len(gap))
    assert pulls["spectrum"].max() < 4 and pulls["white"].max() > 10, pulls
    assert -3 * below["spectrum"][1] < below["spectrum"][0] < 0.05 and below["white"][0] > 0.3, below


def test_log_q_and_its_error(linear):
    """Over many repetitions the estimate scatters about log p by its own error; the mean lies below."""
    x = FREE.sample(64, rng(116))
    exact = exact_log_prob(linear, x)
    found = [linear.log_q(x, rng(117, i), 256) for i in range(40)]
    value, error = (torch.stack(part).numpy() for part in zip(*found))
    pulls = (value - exact) / error
    assert 0.8 < pulls.std() < 1.25
    bias = (value - exact).mean()
    assert -5 * value.std(0).mean() / math.sqrt(40 * 64) - (error**2).mean() < bias < 0.02
    with pytest.raises(InputError, match="at least 2"):
        linear.log_q(x, rng(1), 1)


def test_the_optimum_is_probabilistic_pca():
    """Trained to the end on correlated Gaussian data, the mean log p is that of the best Gaussian of this form (Tipping and

    Bishop, eq. 8): leading eigenvalues as they are, the rest replaced by their mean. Before training it is far lower.
    """
    x = FREE.sample(4096, rng(118))
    start = Vae(FREE, 5, (), 1.0, rng(119)).double()
    start.begin([x])
    before = exact_log_prob(start, x).mean()
    model = train_on(x, Vae(FREE, 5, (), 1.0, rng(119)), 1500, 0.02, batch=512)
    values, vectors = np.linalg.eigh(np.cov(x.flatten(1).numpy().T, bias=True))
    values[: 16 - 5] = values[: 16 - 5].mean()
    best = log_gaussian(
        x.flatten(1).numpy(), x.flatten(1).numpy().mean(0), vectors @ np.diag(values) @ vectors.T
    )
    found = exact_log_prob(model, x).mean()
    assert best.mean() - 0.05 < found < best.mean() + 0.01
    assert before < best.mean() - 1


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_on_the_free_field_the_bound_stays_below_the_exact_density(hidden):
    """Held-out `<log q_K> <= <log p>`, p normalised: the difference is a KL divergence. Its error is that of both means."""
    target = FreeField(shape=(4, 4), m2=0.5)
    model = train_on(
        target.sample(2048, rng(121)), Vae(target, 8, hidden, 1.0, rng(122)), 250, 0.01, batch=128
    )
    x = target.sample(1024, rng(123))
    log_p = target.log_prob(x) - target.log_z
    log_q, _ = model.log_q(x, rng(124), 64)
    gap = log_p - log_q
    kl, error = float(gap.mean()), float(gap.std()) / math.sqrt(len(x))
    assert 0 < kl - 3 * error and kl < 3
    # the same means with log p off by its normalisation would not tell
    assert float((target.log_prob(x) - log_q).mean()) < 0


@pytest.mark.parametrize("dimensions", [1, 2])
def test_the_density_in_the_cube_is_normalised(dimensions):
    """The integral of q(u) over the cube is 1, of a random VAE: log-dets of probits and scales are right, and needed."""
    target = Camel(dimensions=dimensions)
    model = Vae(target, 1, (6,), 1.0, rng(131)).double()
    model.begin([torch.from_numpy(rng(132).beta(2.0, 3.0, size=(400, dimensions)))])
    side = 400 if dimensions == 1 else 60
    grid = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    u = torch.cartesian_prod(*[grid] * dimensions).view(-1, dimensions)
    log_q, _ = model.log_q(u, rng(133), 512)
    assert abs(float(log_q.exp().mean()) - 1) < 0.02
    wrong = (log_q - model.log_det(u)).exp().mean()
    assert abs(float(wrong) - 1) > 0.1


def test_draws_have_the_density_that_log_q_tells():
    """`<q(x) over draws>` = integral of q^2, one draw set against the grid: sampler and density are of the same model."""
    target = Camel(dimensions=1)
    model = Vae(target, 1, (6,), 1.0, rng(141)).double()
    model.begin([torch.from_numpy(rng(142).beta(2.0, 3.0, size=(400, 1)))])
    grid = ((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    density = model.log_q(grid, rng(143), 512)[0].exp().numpy()
    draws = model.sample(20_000, rng(144)).numpy().ravel()
    for power in (1, 2):
        wanted = (density * grid.numpy().ravel() ** power).mean()
        error = (draws**power).std() / math.sqrt(len(draws))
        assert abs((draws**power).mean() - wanted) < 5 * error + 2e-3


def test_angles_have_no_bound():
    target = Wilson(shape=(4, 4), group="u1", beta=2.0)
    model = Vae(target, 4, (8,), 1.0, rng(151))
    assert model.density == "none" and Vae(FREE, 4, (8,), 1.0, rng(151)).density == "bound"
    x = model.sample(3, rng(152))
    assert x.shape == (3, 2, 4, 4) and float(x.abs().max()) <= math.pi
    with pytest.raises(InputError, match="no bound"):
        model.elbo(x, rng(153))
    assert "elbo" not in model.report(x, rng(153))


def test_a_spectrum_of_angles_has_one_for_each_channel():
    target = Wilson(shape=(4, 4), group="u1", beta=2.0)
    model = models.parse({"kind": "vae", "latent": 4, "hidden": [8], "noise": "spectrum"}).build(target, 1)
    assert model.log_variance.shape == (4, 6)
    model.begin([model.sample(30, rng(160))])
    assert float(model.log_variance.detach().std()) > 0 and model.sample(3, rng(161)).shape == (3, 2, 4, 4)


def test_events_have_no_spectrum():
    with pytest.raises(InputError, match="has no momenta; expected 'white'"):
        Vae(Camel(dimensions=2), 1, (6,), 1.0, rng(162), "spectrum")
