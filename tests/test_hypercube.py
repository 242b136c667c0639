"""Integrands on the unit cube: the camel's closed form, walls, and what a target there may not be asked."""

import math

import numpy as np
import pytest
import torch

from latticeflow.errors import InputError
from latticeflow.targets import Camel, Hypercube
from latticeflow.targets import targets as registry


def points(dim: int, n: int, seed: int = 1) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).random((n, dim)))


@pytest.mark.parametrize("dim, published", [(8, 0.928635), (16, 0.862363)])
def test_camel_has_the_published_integral(dim, published):
    assert Camel(dimensions=dim).integral == pytest.approx(published, abs=5e-7)


@pytest.mark.parametrize("dim, sigma", [(1, 0.2), (2, 0.2), (2, 0.1)])
def test_camel_is_what_its_integral_says(dim, sigma):
    """By quadrature, and in eight dimensions by drawing from the peaks themselves."""
    target = Camel(dimensions=dim, sigma=sigma)
    t, w = np.polynomial.legendre.leggauss(100)
    grids = np.meshgrid(*[(t + 1) / 2] * dim, indexing="ij")
    weights = math.prod(np.meshgrid(*[w / 2] * dim, indexing="ij"))
    u = torch.from_numpy(np.stack([one.ravel() for one in grids], 1))
    assert float((target.log_prob(u).exp() * torch.from_numpy(weights.ravel())).sum()) == pytest.approx(
        target.integral, rel=1e-10
    )


def test_camel_in_eight_dimensions_by_importance_sampling():
    target, rng = Camel(dimensions=8), np.random.default_rng(4)
    # f is the density of its own mixture on all of space: the integral is the share of its draws that fall in the cube
    centre = rng.choice([1 / 3, 2 / 3], size=(200_000, 1))
    x = torch.from_numpy(centre + rng.normal(size=(200_000, 8)) * 0.2 / math.sqrt(2))
    share = (target.log_prob(x) > -math.inf).double().mean()
    assert abs(float(share) - target.integral) < 3 * math.sqrt(0.93 * 0.07 / 200_000)


def test_outside_the_cube_there_is_no_density_and_no_field():
    target = Camel(dimensions=3)
    u = points(3, 4)
    u[1, 2], u[2, 0] = 1.0, -1e-9
    found = target.log_prob(u)
    assert (found > -math.inf).tolist() == [True, True, False, True]
    torch.testing.assert_close(found[3], target.log_prob(u[3:])[0])
    assert target.log_prob(u[2:3]).tolist() == [-math.inf]
    with pytest.raises(InputError, match="1 of 4 points lie outside the unit cube, the first 2"):
        target.check_field(u)
    assert target.check_field(u[3:]) is not None
    u[2, 0] = math.nan
    assert target.log_prob(u).isnan().tolist() == [False, False, True, False]
    with pytest.raises(InputError, match="the first 2"):
        target.check_field(u)
    with pytest.raises(InputError, match=r"shape \(4, 2\); expected \[batch, 3\]"):
        target.log_prob(u[:, :2])


def test_single_precision_and_starts():
    target = Camel(dimensions=4)
    u = points(4, 100)
    found = target.log_prob(u.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), target.log_prob(u), rtol=1e-4, atol=1e-4)
    start = target.start(torch.from_numpy(np.random.default_rng(1).normal(size=(1000, 4))))
    assert target.check_field(start).mean() == pytest.approx(0.5, abs=0.03)


def test_what_cannot_be():
    with pytest.raises(InputError, match="force on the unit cube"):
        Camel(dimensions=2).force(points(2, 3))
    with pytest.raises(InputError, match="camel in 0 dimensions"):
        Camel(dimensions=0)
    with pytest.raises(InputError, match="sigma = -1"):
        Camel(dimensions=2, sigma=-1)
    table = {"kind": "camel", "dimensions": 3, "sigma": 0.1}
    assert registry.table(registry.parse(table)) == table


class Corner(Hypercube):
    """1 in the corner where all u are below `side`, else 0."""

    kind = "corner"
    side: float

    @property
    def dim(self) -> int:
        return 2

    def log_integrand(self, u):
        return torch.where((u < self.side).all(1), 0.0, -math.inf)


def test_survival_counts_flat_points():
    share, error = Corner(side=0.5).survival(50_000)
    assert abs(share - 0.25) < 3 * error and error == pytest.approx(math.sqrt(0.1875 / 50_000), rel=0.02)
    assert Corner(side=0.5).survival(50_000) == (share, error)  # the same points for all ranks
    assert sum(len(u) for u in Corner(side=0.5).flat(50_001)) == 50_001
    Corner(side=0.5).require_support(100)
    with pytest.raises(InputError, match="corner: none of 1,000 flat points has f > 0"):
        Corner(side=1e-4).require_support(1000)
