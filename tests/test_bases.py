"""Bases with a zero mode of their own, and the random sign, against quadrature, scipy and white noise."""

import numpy as np
import pytest
import torch
from scipy import stats
from tables import field, rng, scramble

from latticeflow.errors import InputError, LatticeflowError
from latticeflow.flows import Flow, MeanField, Spectrum
from latticeflow.flows.symmetrised import sign_and_noise
from latticeflow.lattice import Lattice
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import FreeField
from latticeflow.transforms import mixture

# p, c, s: one peak, two far apart with a shallow valley, several that overlap
MIXTURES = [
    ([1.0], [0.0], [1.0]),
    ([0.9, 0.1], [4.0, 0.5], [0.3, 1.5]),
    ([0.5, 0.3, 0.2], [0.2, 0.5, 0.8], [1.0, 0.9, 0.6]),
]


def logs(p, c, s):
    return tuple(torch.tensor(a, dtype=torch.float64) for a in (np.log(p), c, np.log(s)))


@pytest.mark.parametrize("p, c, s", MIXTURES)
def test_mixture_is_that_of_scipy(p, c, s):
    """Density, score and quantile; the tail keeps its relative precision 12 sigma out."""
    h = np.linspace(-9, 9, 181)
    density = sum(a / 2 * (stats.norm.pdf(h, m, w) + stats.norm.pdf(h, -m, w)) for a, m, w in zip(p, c, s))
    found = mixture.log_density(torch.from_numpy(h), *logs(p, c, s))
    np.testing.assert_allclose(found, np.log(density), rtol=1e-12, atol=1e-12)

    x = torch.from_numpy(h).requires_grad_(True)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, *logs(p, c, s)).sum(), x)
    torch.testing.assert_close(mixture.score(x.detach(), *logs(p, c, s)), gradient)

    n = torch.linspace(-12, 12, 241, dtype=torch.float64)
    h = mixture.from_normal(n, *logs(p, c, s))
    above = [
        stats.norm.sf(h.abs().numpy(), m, w) + stats.norm.cdf(-h.abs().numpy(), m, w) for m, w in zip(c, s)
    ]
    tail = sum(a / 2 * both for a, both in zip(p, above))
    np.testing.assert_allclose(tail, stats.norm.sf(n.abs().numpy()), rtol=1e-9)
    assert bool((h.diff() > 0).all()) and torch.equal(mixture.from_normal(-n, *logs(p, c, s)), -h)


@pytest.mark.parametrize("p, c, s", MIXTURES)
def test_quantile_there_and_back_far_out(p, c, s):
    """Where tails are below what floats can hold, as those of wells on large lattices are."""
    n = torch.tensor([1e-9, 0.3, 5.0, 30.0, 45.0, 300.0], dtype=torch.float64)
    h = mixture.from_normal(n, *logs(p, c, s))
    back = mixture.normal_of_log_tail(mixture.log_upper_tail(h, *logs(p, c, s)))
    torch.testing.assert_close(back, n, rtol=1e-12, atol=1e-12)
    widest = max(range(len(s)), key=lambda j: (s[j], c[j]))
    assert float(h[-1]) == pytest.approx(c[widest] + 300 * s[widest], rel=0.01)


def test_quantile_is_differentiated_like_finite_differences():
    n, parameters = torch.tensor([-2.0, -0.4, 0.1, 1.3], dtype=torch.float64), logs(*MIXTURES[1])
    inputs = [a.clone().requires_grad_(True) for a in (n, *parameters)]
    assert torch.autograd.gradcheck(mixture.from_normal, inputs, eps=1e-6, atol=1e-5)


def test_quantile_says_so_where_there_is_none():
    with pytest.raises(LatticeflowError, match="not converged"):
        mixture.from_normal(torch.tensor([1.0, torch.nan], dtype=torch.float64), *logs(*MIXTURES[0]))


def two_peaks(shape, dtype=torch.float64) -> MeanField:
    base = scramble(MeanField(Lattice(shape), 0.5), 61, scale=0.2)
    with torch.no_grad():
        base.set_wells(2.0)
    return base.to(dtype)


def test_mean_field_integrates_to_one():
    """Two sites, on a grid; negative control: without the mixture's normalisation."""
    base = two_peaks((2,))
    grid = torch.linspace(-12, 12, 601, dtype=torch.float64)
    points = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        density = base.log_prob(points).exp()
        assert float(density.sum() * (grid[1] - grid[0]) ** 2) == pytest.approx(1, abs=1e-9)
        _, c, log_s = base.peaks()
        base.peaks = lambda: (base.peak_logit, c, log_s)
        assert abs(float(base.log_prob(points).exp().sum() * (grid[1] - grid[0]) ** 2) - 1) > 0.01


def test_mean_field_push_score_and_jacobian():
    """log r of pushed noise is that of z, the score its gradient, and the Jacobian that of autograd."""
    base = two_peaks((4, 4))
    noise = base.noise(5, rng(62))
    z, log_r = base.push(noise)
    torch.testing.assert_close(base.log_prob(z), log_r, rtol=1e-12, atol=1e-12)
    end = z.detach().requires_grad_(True)
    (gradient,) = torch.autograd.grad(base.log_prob(end).sum(), end)
    torch.testing.assert_close(base.score(end), gradient, rtol=1e-10, atol=1e-10)
    jacobian = torch.autograd.functional.jacobian(
        lambda n: base.push(n.view(1, 4, 4))[0].flatten(), noise[0].flatten()
    )
    expected = base.log_white(noise[:1]) - torch.linalg.slogdet(jacobian)[1]
    torch.testing.assert_close(log_r[:1], expected, rtol=1e-10, atol=1e-10)


def test_mean_field_zero_mode_has_the_density_it_claims():
    """Kolmogorov-Smirnov at p > 1e-3 of M = V^{-1/2} sum z against the mixture; the spectrum's normal must fail."""
    base = two_peaks((4, 4), torch.float32)
    with torch.no_grad():
        z, log_r = base.push(base.noise(20_000, rng(63)))
        log_p, c, log_s = (a.numpy() for a in base.peaks())
        amplitude = float(base.log_amplitude_of_orbit[0].exp())
        assert float((base.double().log_prob(z.double()) - log_r).abs().max()) < 2e-5
    h = z.double().flatten(1).sum(1).numpy() / 4 / amplitude

    def cdf(a):
        pairs = [stats.norm.cdf(a, m, w) + stats.norm.cdf(a, -m, w) for m, w in zip(c, np.exp(log_s))]
        return sum(p / 2 * both for p, both in zip(np.exp(log_p), pairs))

    assert stats.kstest(h, cdf).pvalue > 1e-3
    assert stats.kstest(h / h.std(), "norm").pvalue < 1e-6


def test_mean_field_with_one_normal_peak_is_the_free_field():
    """ESS = 1 to 1e-10 with c = 0, s = 1; from its start, whose peaks overlap, it is not."""
    free = FreeField(shape=(6, 6), m2=0.7)
    flow = Flow(MeanField(free.lattice, 0.7), []).double()
    for exact in (False, True):
        with torch.no_grad():
            if exact:
                flow.base.peak_field.zero_()
                flow.base.peak_log_width.zero_()
            x, log_q = flow.sample(4096, rng(64))
        summary = summarise_weights((free.log_prob(x) - log_q).numpy())
        assert (abs(summary.ess - 1) < 1e-10) == exact
    z = field((6, 6), 65)
    torch.testing.assert_close(flow.base.log_prob(z), Spectrum(free.lattice, 0.7).double().log_prob(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sign_and_noise_are_a_coin_and_white_noise(dtype):
    """A fair coin (4 sigma), a normal zero mode (KS), uncorrelated; flipping a coin of a shared sign would fail."""
    n, volume = 40_000, 6
    noise = torch.from_numpy(rng(66).standard_normal((n, 2, 3))).to(dtype)
    sign, white = sign_and_noise(noise)
    assert white.dtype == dtype and abs(float(sign.mean())) < 4 / n**0.5
    zero_mode = white.double().flatten(1).sum(1) / volume**0.5
    for side in (-1, 1):
        assert stats.kstest(zero_mode[sign == side].numpy(), "norm").pvalue > 1e-3
    covariance = torch.cov(white.double().flatten(1).T)
    assert float((covariance - torch.eye(volume)).abs().max()) < 5 * (2 / n) ** 0.5
    # negative control: sigma taken from the noise and not replaced in it
    raw = (sign.to(dtype).view(-1, 1, 1) * noise).double().flatten(1).sum(1) / volume**0.5
    assert stats.kstest(raw.numpy(), "norm").pvalue < 1e-6
    other_sign, other_white = sign_and_noise(-noise)
    assert torch.equal(other_sign, -sign) and torch.equal(other_white, white)


def test_sign_of_extreme_noise_is_finite():
    for value in (0.0, 1e-30, -1e-30, 12.0, -12.0):
        _, white = sign_and_noise(torch.full((1, 2, 2), value, dtype=torch.float64))
        assert bool(torch.isfinite(white).all())


def test_wells_of_the_base_lie_where_they_are_set():
    """<|mean z|> of narrow wells is the field that was set, at 4 sigma; a negative one is refused."""
    base = MeanField(Lattice((8, 8)), 1.0).double()
    base.set_wells(0.8)
    with torch.no_grad():
        mean = base.push(base.noise(4096, rng(67)))[0].flatten(1).mean(1).abs()
    assert abs(float(mean.mean()) - 0.8) < 4 * float(mean.std()) / 4096**0.5
    assert float(mean.min()) > 0.3
    with pytest.raises(InputError, match="not negative"):
        base.set_wells(-1.0)


def test_wells_stay_where_the_lattice_grows():
    """A base that adopts from half the side has its wells at the same field, as wide in V^{-1/2} sum z."""
    small, large = two_peaks((4, 4)), MeanField(Lattice((8, 8)), 2.0).double()
    large.adopt(small)
    found = []
    for base in (small, large):
        with torch.no_grad():
            log_p, c, log_s = base.peaks()
            amplitude = base.log_amplitude_of_orbit[0].exp()
        found.append((log_p, amplitude * c / base.lattice.volume**0.5, amplitude * log_s.exp()))
    torch.testing.assert_close(*found)
