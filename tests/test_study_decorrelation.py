"""Adversarial decorrelation on a Gaussian toy whose best classifier and best pivot are known in closed form."""

import math

import numpy as np
import pytest
import torch

from latticeflow.errors import InputError
from latticeflow.studies.decorrelation import (
    Labelled,
    Settings,
    classify,
    decorrelate,
    dependence,
    distance_correlation,
    judge,
    normal_scores,
    plot,
)
from latticeflow.studies.density import ConditionalDensity

SLOPE = 1.5  # of x_2 in the nuisance


def toy(n: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    y, v = rng.integers(0, 2, n), rng.standard_normal(n)
    x = np.stack([y - 0.5, 2 * (y - 0.5) + SLOPE * v], 1) + rng.standard_normal((n, 2))
    return Labelled(*(torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in (x, y, v)))


def auc_of(d2: float) -> float:
    """`Phi(d' / sqrt 2)` of two normal distributions d' standard deviations apart."""
    return 0.5 * (1 + math.erf(math.sqrt(d2) / 2))


def normal_pair(r: float) -> float:
    """Szekely, Rizzo, Bakirov 2007, theorem 7."""
    top = r * math.asin(r) + math.sqrt(1 - r * r) - r * math.asin(r / 2) - math.sqrt(4 - r * r) + 1
    return top / (1 + math.pi / 3 - math.sqrt(3))


@pytest.fixture(scope="module")
def curve():
    train, test = toy(10_000, 1), toy(10_000, 2)
    settings = Settings(steps=250, hidden=(16, 16), batch=256)
    start = classify(train, settings, 1)
    rng = np.random.default_rng(3)

    def point(data: Labelled, strength: float):
        return judge(decorrelate(start, data, strength, settings, 1), test, strength, 1)

    return {
        "plain": point(train, 0.0),
        "middle": point(train, 1.0),
        "pivot": point(train, 100.0),
        "control": point(train.shuffled_nuisance(rng), 1.0),
    }


def test_the_curve_runs_from_the_best_classifier_to_the_pivot(curve):
    """Without the nuisance d'^2 = 1 + 4 / (1 + b^2); what does not depend on it is x_1 alone, by completeness of the normal
    family in x_2, and d' = 1. On the way both fall."""
    best, pivot = auc_of(1 + 4 / (1 + SLOPE**2)), auc_of(1.0)
    assert abs(curve["plain"].auc - best) < 0.012
    assert abs(curve["pivot"].auc - pivot) < 0.025
    assert curve["plain"].auc > curve["middle"].auc > curve["pivot"].auc
    d = [curve[name].dependence.value for name in ("plain", "middle", "pivot")]
    assert d[0] > 3 * d[1] > 9 * d[2]
    assert curve["pivot"].dependence.value < 0.006


def test_dependence_of_the_plain_classifier_is_that_of_the_likelihood_ratio(curve):
    """Its score is `x_1 + a x_2`, a = 2 / (1 + b^2), with correlation a b / sqrt(1 + a^2 (1 + b^2)) to v."""
    a = 2 / (1 + SLOPE**2)
    exact = normal_pair(a * SLOPE / math.sqrt(1 + a * a * (1 + SLOPE**2)))
    found = curve["plain"].dependence
    assert abs(found.value - exact) < 0.04  # a finite training: 3 errors are 0.025
    assert found.sigma > 20
    assert abs(found.independent) < 4 * found.independent_error


def test_another_events_nuisance_removes_nothing(curve):
    """The negative control: the same adversary as in the middle of the curve, fed with shuffled nuisances."""
    assert curve["control"].dependence.value > 0.85 * curve["plain"].dependence.value
    assert curve["control"].auc > curve["plain"].auc - 0.01


def test_efficiency_of_the_cut_shows_the_dependence(curve):
    rises, flat = curve["plain"].efficiency, curve["pivot"].efficiency
    assert rises[-1] - rises[0] > 0.5
    assert np.abs(flat - 0.5).max() < 0.12


def test_plot(curve):
    pytest.importorskip("matplotlib")
    assert plot([curve["plain"], curve["pivot"]], "v").startswith(b"\x89PNG")


@pytest.mark.parametrize("r", [0.0, 0.3, 0.8])
def test_distance_correlation_of_a_normal_pair(r):
    """A mean over blocks against the closed form, 4 sigma; and without the relation, r = 0, beside it."""
    rng = np.random.default_rng(7)
    a, noise = rng.standard_normal((2, 20_000))
    found = dependence(np.exp(a), r * a + math.sqrt(1 - r * r) * noise, rng)  # monotone changes do not matter
    assert (
        abs(found.value - normal_pair(r)) < 4 * found.error + 0.003 * r
    )  # the ratio of blocks has a bias of 1 / block
    assert abs(found.independent) < 4 * found.independent_error


def test_distance_correlation_sees_what_correlation_does_not():
    rng = np.random.default_rng(8)
    a = rng.standard_normal(4000)
    b = np.abs(a) + 0.1 * rng.standard_normal(4000)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
    assert dependence(a, b, rng).sigma > 10


def test_distance_correlation_against_its_definition():
    """The four sums of 2014's theorem written out by loops."""
    rng = np.random.default_rng(9)
    a, b = rng.standard_normal((2, 7))
    b = b + a

    def centred(v):
        n, d = len(v), [[abs(p - q) for q in v] for p in v]
        total = sum(map(sum, d))
        return [
            [
                0.0
                if i == j
                else d[i][j]
                - sum(d[i]) / (n - 2)
                - sum(row[j] for row in d) / (n - 2)
                + total / ((n - 1) * (n - 2))
                for j in range(n)
            ]
            for i in range(n)
        ]

    A, B = centred(a), centred(b)

    def product(C, D):
        return sum(p * q for c, d in zip(C, D) for p, q in zip(c, d))

    expected = product(A, B) / math.sqrt(product(A, A) * product(B, B))
    assert distance_correlation(a, b) == pytest.approx(expected, abs=1e-12)


def test_normal_scores_are_normal_and_split_ties():
    rng = np.random.default_rng(10)
    v = normal_scores(np.repeat([1.0, 2.0], 5000), rng)
    assert abs(v.mean()) < 1e-12 and abs(v.std() - 1) < 1e-2
    assert v[:5000].max() < 0 < v[5000:].min()


def test_the_adversarys_density_is_normalised_and_its_own_draws():
    """Integral by the trapezoidal rule, and the log-density against that of z by the Jacobian that autograd finds."""
    rng = np.random.default_rng(11)
    density = ConditionalDensity(1, 2, (8,), rng).double()
    c = torch.full((1, 1), 0.7, dtype=torch.float64)
    grid = torch.linspace(-25, 25, 1201, dtype=torch.float64)
    y = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        p = density.log_prob(y, c.expand(len(y), 1)).exp().view(1201, 1201)
    assert float(torch.trapezoid(torch.trapezoid(p, grid), grid)) == pytest.approx(1, abs=1e-3)

    z = torch.from_numpy(rng.standard_normal(2))
    jacobian = torch.autograd.functional.jacobian(lambda z: density.draw(c, z[None])[0], z)
    expected = (
        -0.5 * float(z.square().sum()) - math.log(2 * math.pi) - float(torch.linalg.slogdet(jacobian)[1])
    )
    found = density.log_prob(density.draw(c, z[None]), c).item()
    assert found == pytest.approx(expected, abs=1e-10)


def test_what_is_refused():
    x, y = torch.zeros(64, 2), torch.arange(64) % 2
    with pytest.raises(InputError, match=r"expected \[n, numbers\]"):
        Labelled(x, y, torch.zeros(63))
    with pytest.raises(InputError, match="16 of each"):
        Labelled(x, torch.zeros(64), torch.zeros(64))
    with pytest.raises(InputError, match="NaN"):
        Labelled(x, y, torch.full((64,), math.nan))
    with pytest.raises(InputError, match="0 steps"):
        Settings(steps=0)
    with pytest.raises(InputError, match="lr = -1"):
        Settings(lr=-1.0)
    with pytest.raises(InputError, match="two blocks"):
        dependence(np.zeros(600), np.zeros(600), np.random.default_rng(0))
    with pytest.raises(InputError, match="all the same"):
        distance_correlation(np.zeros(8), np.arange(8.0))
    broken = np.where(np.arange(2048) % 3, 1.0, math.nan)
    with pytest.raises(InputError, match="683 scores and 0"):
        dependence(broken, np.arange(2048.0), np.random.default_rng(0))
    with pytest.raises(InputError, match="not finite"):
        distance_correlation(broken[:8], np.arange(8.0))
    data = toy(64, 1)
    start = classify(data, Settings(steps=1), 1)
    with pytest.raises(InputError, match="strength"):
        decorrelate(start, data, -1.0, Settings(steps=1), 1)
    with pytest.raises(InputError, match="0 bins"):
        judge(start, data, 0.0, 1, bins=0)
