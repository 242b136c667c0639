"""Anomaly detection against closed forms: Gaussians by PCA are quantiles of chi2 and F, chains have a known AUC."""

import math

import numpy as np
import pytest
import torch
from baseline_data import FREE, store_chains, train_on
from fake_ensembles import ABOUT, RECORD
from scipy import integrate, stats
from tables import rng
from test_two_sample import ar1

from latticeflow.baselines.autoencoders import LinearAutoencoder
from latticeflow.baselines.pca import Pca
from latticeflow.errors import InputError
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble
from latticeflow.studies.anomaly import (
    detect,
    evaluate,
    likelihood_ratio,
    plot,
    roc,
    samples,
    two_sided,
    worst,
)
from latticeflow.targets import Camel, FreeField

torch.set_num_threads(1)
VOLUME, KEPT = 16, 6
Q = torch.from_numpy(np.linalg.qr(rng(701).normal(size=(VOLUME, VOLUME)))[0])


def gaussian(key: int, n: int, kept: int = KEPT, factor: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """`[n, 4, 4]`: `kept` directions of variance 25, the others of `factor^2`, the last of them shifted by `shift`."""
    y = torch.from_numpy(rng(702, key).normal(size=(n, VOLUME)))
    y[:, :kept] *= 5
    y[:, kept:] *= factor
    y[:, -1] += shift
    return (y @ Q.T).view(n, 4, 4)


def as_chains(x: torch.Tensor) -> torch.Tensor:
    """Independent configurations as chains of one step."""
    return x[:, None]


def shifted_chi2(d: int, shift: float) -> float:
    """P( chi2 with d degrees of freedom, of noncentrality shift^2, is larger than another, central one ), by quadrature."""
    density = lambda y: stats.ncx2.pdf(y, d, shift**2) * stats.chi2.cdf(y, d)  # noqa: E731
    return integrate.quad(density, 0, np.inf, limit=200)[0]


@pytest.mark.parametrize(
    "kept, factor, shift, exact",
    [
        (KEPT, 1.3, 0.0, stats.f.cdf(1.3**2, VOLUME - KEPT, VOLUME - KEPT)),
        (VOLUME - 1, 2.0, 0.0, 2 / math.pi * math.atan(2.0)),
        (
            KEPT,
            0.7,
            0.0,
            stats.f.cdf(0.7**2, VOLUME - KEPT, VOLUME - KEPT),
        ),  # below 1/2: better reconstructed
        (KEPT, 1.0, 3.0, shifted_chi2(VOLUME - KEPT, 3.0)),
        (VOLUME - 1, 1.0, 2.0, shifted_chi2(1, 2.0)),
    ],
)
def test_what_pca_misses_is_chi2(kept, factor, shift, exact):
    """The error is chi2 of the directions that are not kept; those that are, however they are scaled, play no part."""
    model = Pca(FREE, kept).double()
    model.begin([gaussian(0, 30_000, kept)])
    normal, anomalous = gaussian(1, 4000, kept), gaussian(2, 3000, kept, factor, shift)
    found = detect({"pca": model.error}, as_chains(normal), as_chains(anomalous))["pca"]
    assert abs(found.auc - exact) < 4 * found.error and found.error < 0.008
    assert abs(found.auc - 0.5) > 8 * found.error


def test_the_linear_autoencoder_has_the_auc_of_pca():
    x = gaussian(3, 4096)
    linear = train_on(x, LinearAutoencoder(FREE, KEPT, rng(703)), 400, 0.03, 512)
    found = detect(
        {"linear": linear.error}, as_chains(gaussian(4, 4000)), as_chains(gaussian(5, 4000, factor=1.3))
    )["linear"]
    assert abs(found.auc - stats.f.cdf(1.3**2, VOLUME - KEPT, VOLUME - KEPT)) < 4 * found.error
    untrained = LinearAutoencoder(FREE, KEPT, rng(703)).double()
    untrained.begin([x])
    blind = detect(
        {"x": untrained.error}, as_chains(gaussian(4, 4000)), as_chains(gaussian(5, 4000, factor=1.3))
    )["x"]
    assert blind.auc < found.auc - 10 * found.error  # what is kept drowns what is missed


def test_what_is_kept_is_invisible():
    """Anomalies in the directions that PCA keeps, however far: AUC 1/2."""
    model = Pca(FREE, KEPT).double()
    model.begin([gaussian(0, 30_000)])
    far = gaussian(6, 4000)
    far = far + 10 * Q[:, 0].view(4, 4)
    found = detect({"pca": model.error, "x2": square}, as_chains(gaussian(1, 4000)), as_chains(far))
    assert abs(found["pca"].sigma) < 3.5 and found["x2"].sigma > 20


def square(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).square().mean(1)


def test_scores_that_do_not_look_find_nothing():
    normal, anomalous = as_chains(gaussian(1, 2000)), as_chains(gaussian(2, 2000, factor=2.0))
    noise = rng(704)
    blind = {
        "constant": lambda x: torch.ones(len(x)),
        "noise": lambda x: torch.from_numpy(noise.normal(size=len(x))),
    }
    found = detect({**blind, "x2": square}, normal, anomalous)
    assert found["constant"].auc == 0.5 and abs(found["noise"].sigma) < 3.5 and found["x2"].sigma > 3.5
    same = detect({"x2": square}, normal, as_chains(gaussian(7, 2000)))["x2"]
    assert abs(same.sigma) < 3.5


def pulls(a: float, d: float, exact: float, repeats: int, chains: bool) -> np.ndarray:
    """(AUC - exact) / error of repeated normal scores in AR(1) chains, the anomalous ones shifted by d."""
    found = []
    for k in range(repeats):
        s, t = ar1(rng(705, k), 24, 50, a), ar1(rng(706, k), 32, 40, a) + d
        one = roc(s, t) if chains else roc(s.reshape(-1, 1), t.reshape(-1, 1))
        found.append((one.auc - exact) / one.error)
    return np.array(found)


@pytest.mark.parametrize("a", [0.0, 0.9])
@pytest.mark.parametrize("d", [0.0, 0.5])
def test_the_error_covers_chains(a, d):
    """AUC = Phi(d / sqrt 2) of normal numbers at a distance d, whatever the autocorrelation; the error knows of it."""
    exact = stats.norm.cdf(d / math.sqrt(2))
    found = pulls(a, d, exact, 200, chains=True)
    assert abs(found.mean()) < 4 * found.std() / math.sqrt(200)
    assert 0.85 < found.std() < 1.2


def test_an_error_that_ignores_chains_does_not():
    assert pulls(0.9, 0.5, stats.norm.cdf(0.5 / math.sqrt(2)), 100, chains=False).std() > 2


def test_the_curve():
    """true = Phi(d + Phi^-1(false)); the area below it is the AUC, ties included; all above all has an error, too."""
    d = 1.2
    found = roc(rng(707).normal(size=(5000, 2)), d + rng(708).normal(size=(5000, 2)))
    for false in (0.05, 0.2, 0.5):
        at = np.interp(false, found.false, found.true)
        exact = stats.norm.cdf(d + stats.norm.ppf(false))
        slope = stats.norm.pdf(d + stats.norm.ppf(false)) / stats.norm.pdf(stats.norm.ppf(false))
        error = math.sqrt(exact * (1 - exact) / 10_000 + slope**2 * false * (1 - false) / 10_000)
        assert abs(at - exact) < 4 * error
    assert np.trapezoid(found.true, found.false) == pytest.approx(found.auc, abs=1e-12)
    tied = roc(rng(709).integers(4, size=(100, 3)), rng(710).integers(1, 6, size=(90, 2)))
    assert np.trapezoid(tied.true, tied.false) == pytest.approx(tied.auc, abs=1e-12)
    assert (np.diff(tied.false) >= 0).all() and tied.true[-1] == tied.false[-1] == 1
    apart = roc(np.zeros((10, 2)), np.ones((8, 2)))
    assert apart.auc == 1 and apart.error == pytest.approx(0.1)


def test_two_sided_sees_what_is_better_reconstructed():
    """Of a score N(0, 1) and anomalies N(0, s): |score| has AUC (2 / pi) arctan(s); one-sided it sees nothing."""
    draws = [s * rng(711, i).normal(size=(4000, 1)) for i, s in enumerate((1.0, 1.0, 3.0))]
    train, normal, anomalous = (torch.from_numpy(x) for x in draws)
    score = lambda x: x.flatten()  # noqa: E731
    both = {"one": score, "two": two_sided(score, train)}
    found = detect(both, normal[:, None], anomalous[:, None])
    assert abs(found["one"].sigma) < 3.5
    assert abs(found["two"].auc - 2 / math.pi * math.atan(3)) < 4 * found["two"].error


def test_the_worst_of_both_wells():
    """Of x ~ N(0, 1), anomalies N(0, s), and a score max(x, 0)^2 that is blind in one well: with A = (2 / pi) arctan(s), the

    score has A / 4 (both above 0), + 1/4 (the anomaly alone), + 1/8 (a tie); the worse of x and -x has A.
    """
    normal, anomalous = (
        torch.from_numpy(s * rng(715, i).normal(size=(4000, 1, 1))) for i, s in enumerate((1.0, 3.0))
    )
    blind = lambda x: x.flatten().clamp(min=0).square()  # noqa: E731
    seeing = worst(blind, [lambda x: x, lambda x: -x])
    found = detect({"blind": blind, "seeing": seeing}, normal, anomalous)
    exact = 2 / math.pi * math.atan(3)
    assert abs(found["blind"].auc - (exact / 4 + 3 / 8)) < 4 * found["blind"].error
    assert abs(found["seeing"].auc - exact) < 4 * found["seeing"].error
    assert torch.equal(seeing(normal), seeing(-normal)) and not torch.equal(blind(normal), blind(-normal))


def test_nothing_beats_the_likelihood_ratio():
    """Free fields of two masses: x^2 is the ratio itself (Neyman and Pearson), others have less."""
    heavy = FreeField(shape=(4, 4), m2=1.2)
    x, y = (as_chains(one.sample(8000, rng(712 + i))) for i, one in enumerate((heavy, FREE)))
    best = likelihood_ratio(heavy, FREE)
    ratio = best(x[:, 0])
    assert torch.allclose(ratio, 0.7 * x[:, 0].square().flatten(1).sum(1))
    found = detect({"best": best, "x2": square, "max": lambda x: x.abs().flatten(1).amax(1)}, x, y)
    assert found["x2"].auc == pytest.approx(found["best"].auc, abs=1e-6)
    assert found["best"].auc > found["max"].auc + 5 * found["max"].error
    assert found["max"].sigma > 3.5


def test_outside_the_support_the_ratio_is_infinite():
    class Half(Camel):
        def log_integrand(self, u):
            return torch.where(u[:, 0] < 0.5, super().log_integrand(u), -math.inf)

    whole, half = Camel(dimensions=2), Half(dimensions=2)
    u = torch.tensor([[0.25, 0.3], [0.75, 0.3], [1.5, 0.3]], dtype=torch.float64)
    assert likelihood_ratio(whole, half)(u).tolist() == [0.0, -math.inf, 0.0]
    assert likelihood_ratio(half, whole)(u).tolist() == [0.0, math.inf, 0.0]


def test_samples_of_chains(tmp_path):
    """`[chains, steps]`, each chain in order of its steps: neighbours of AR(1) chains have correlation a, chains none."""
    ensemble = store_chains(tmp_path / "e", a=0.9, steps=200)
    x = samples(ensemble)
    assert x.shape == (16, 400, 4, 4)
    m = x.flatten(2).mean(2)
    m = (m - m.mean()) / m.std()
    assert float((m[:, 1:] * m[:, :-1]).mean()) == pytest.approx(0.9, abs=0.05)
    assert abs(float((m[1:] * m[:-1]).mean())) < 0.15
    first = torch.from_numpy(ensemble.read(1, 1, "x")["x"])[3 + 8 * 7]  # stream 1, block 1, chain 3, step 7
    assert torch.equal(x[8 + 3, 200 + 7], first)


def weighted(path, **record) -> Ensemble:
    """Uniform x in (0, 1) on every site, weights x_0: unweighted, x_0 has the density 2 x."""
    found = Ensemble.create(path, **{**RECORD, "settings": {"block": 4096, "precision": "float32"}, **record})
    for b in range(2):
        x = torch.from_numpy(rng(714, b).random((4096, 2, 2)).astype(np.float32))
        log_p = np.log(x[:, 0, 0].double().numpy())
        found.write(b, 0, Draws(x, log_p, log_p if found.weighted else None, {}), None, 0.5, **ABOUT)
    return found


def test_samples_of_weighted_draws(tmp_path):
    x = samples(weighted(tmp_path / "e"), seed=1)
    assert x.shape[1:] == (1, 2, 2) and abs(len(x) - 4096) < 200
    assert stats.kstest(x[:, 0, 0, 0].numpy(), lambda v: v**2).pvalue > 1e-3
    assert stats.kstest(x[:, 0, 1, 1].numpy(), "uniform").pvalue > 1e-3
    all_of_them = samples(weighted(tmp_path / "exact", sampler="exact", weighted=False))
    assert all_of_them.shape == (8192, 1, 2, 2)


def test_refusals(tmp_path):
    s = np.zeros((3, 4))
    for bad in (s[None], s[:1], np.full((3, 4), np.nan), s[:, :0]):
        with pytest.raises(InputError, match="chains"):
            roc(s, bad)
    with pytest.raises(InputError, match="NaN at 8"):
        evaluate(lambda x: x.flatten(1).sum(1) / 0 * 0, torch.ones(4, 2, 3))
    model = {"sampler": "model", "weighted": False}
    with pytest.raises(InputError, match="anomal"):
        samples(weighted(tmp_path / "model", **model))
    few = {"settings": {"block": 64, "precision": "float32", "keep_fields": 2}}
    with pytest.raises(InputError, match="keep_fields = 2"):
        samples(Ensemble.create(tmp_path / "few", **{**RECORD, **few}))
    with pytest.raises(InputError, match="no moves"):
        worst(lambda x: x.sum((1, 2)), [])
    with pytest.raises(InputError, match="0 streams"):
        samples(Ensemble.create(tmp_path / "none", **RECORD))


def test_plot():
    pytest.importorskip("matplotlib")
    found = {
        "a": roc(np.zeros((4, 2)), np.ones((4, 2))),
        "b": roc(rng(1).normal(size=(4, 2)), np.ones((4, 2))),
    }
    assert plot({"one way": found, "the other": found}).startswith(b"\x89PNG")
