"""Rational-quadratic splines and the VEGAS grid: formulas by hand, inverses, slopes by autograd, what the grid adapts to."""

import numpy as np
import pytest
import torch
from tables import rng

from latticeflow.transforms import grid, spline

torch.set_num_threads(1)


def raw(*key, shape=(50,), bins=6, scale=1.5, dtype=torch.float64):
    return torch.from_numpy(rng(*key).normal(size=(*shape, spline.parameters(bins))) * scale).to(dtype)


def points(*key, shape=(50,), dtype=torch.float64):
    return torch.from_numpy(rng(*key).random(shape)).to(dtype)


def by_hand(x, knots):
    """Durkan et al. (1906.04032), eqs. 4 and 5, a point at a time."""
    X, Y, S = (a.numpy() for a in knots)
    y, slope = np.empty(len(x)), np.empty(len(x))
    for i, at in enumerate(x.numpy()):
        k = int(np.searchsorted(X[i], at, side="right")) - 1
        w, h = X[i][k + 1] - X[i][k], Y[i][k + 1] - Y[i][k]
        s, xi, d0, d1 = h / w, (at - X[i][k]) / w, S[i][k], S[i][k + 1]
        below = s + (d1 + d0 - 2 * s) * xi * (1 - xi)
        y[i] = Y[i][k] + h * (s * xi**2 + d0 * xi * (1 - xi)) / below
        slope[i] = s**2 * (d1 * xi**2 + 2 * s * xi * (1 - xi) + d0 * (1 - xi) ** 2) / below**2
    return y, slope


def test_the_formula():
    x, knots = points(1), spline.knots(raw(2))
    y, log_slope = spline.forward(x, knots)
    wanted, slope = by_hand(x, knots)
    np.testing.assert_allclose(y, wanted, rtol=1e-12)
    np.testing.assert_allclose(log_slope.exp(), slope, rtol=1e-11)


def test_slope_by_autograd_and_inverse():
    x, knots = points(3).requires_grad_(True), spline.knots(raw(4))
    y, log_slope = spline.forward(x, knots)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-10, atol=0)
    back, log_back = spline.inverse(y.detach(), knots)
    torch.testing.assert_close(back, x.detach(), rtol=0, atol=1e-11)
    torch.testing.assert_close(log_back, -log_slope.detach(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_zeros_are_the_identity(dtype, tolerance):
    x = points(5, dtype=dtype)
    y, log_slope = spline.forward(x, spline.knots(torch.zeros(50, spline.parameters(8), dtype=dtype)))
    torch.testing.assert_close(y, x, rtol=0, atol=tolerance)
    assert log_slope.abs().max() < 20 * tolerance


def test_steep_splines_stay_monotone_in_float32():
    knots = spline.knots(raw(6, scale=12.0, dtype=torch.float32))
    for k, edge in ((0, 0.0), (1, 1.0)):  # walls of the cube are mapped to themselves
        y, log_slope = spline.forward(torch.full((50,), edge), knots)
        assert (y - float(k)).abs().max() < 1e-6 and torch.isfinite(log_slope).all()
    x = points(7, dtype=torch.float32)
    y, log_slope = spline.forward(x, knots)
    log_back = spline.inverse(y, knots)[1]
    assert ((y >= 0) & (y <= 1)).all() and torch.isfinite(log_slope).all() and torch.isfinite(log_back).all()


def test_on_a_circle_the_slope_joins_and_elsewhere_the_ends_are_free():
    numbers = raw(8)
    circle = spline.knots(numbers, torch.ones(50, dtype=torch.bool))[2]
    torch.testing.assert_close(circle[:, 0], circle[:, -1])
    free = spline.knots(numbers, torch.zeros(50, dtype=torch.bool))[2]
    assert (free[:, 0] - free[:, -1]).abs().min() > 1e-6
    assert (free[:, 0] - 1).abs().max() > 0.5  # not pinned to 1, as where a spline goes on as the identity


def edges(*key, dim=3, bins=10):
    widths = torch.from_numpy(rng(*key).random((dim, bins)) + 0.05)
    found = torch.cat([torch.zeros(dim, 1, dtype=torch.float64), widths.cumsum(1)], 1)
    return found / found[:, -1:]


def test_grid_inverse_and_slope():
    e, y = edges(1), points(2, shape=(40, 3)).requires_grad_(True)
    x, log_det = grid.forward(e, y)
    slope = torch.autograd.grad(x.sum(), y)[0]  # each x depends on its own y
    torch.testing.assert_close(log_det, slope.log().sum(1), rtol=1e-10, atol=1e-10)
    back, log_back = grid.inverse(e, x.detach())
    torch.testing.assert_close(back, y.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(log_back, -log_det.detach(), rtol=0, atol=1e-10)
    for edge in (0.0, 1.0):
        at = torch.full((1, 3), edge, dtype=torch.float64)
        torch.testing.assert_close(grid.forward(e, at)[0], at)
        torch.testing.assert_close(grid.inverse(e, at)[0], at)


def adapted(f, alpha=0.5, iterations=30, bins=20, n=20000):
    e = torch.linspace(0, 1, bins + 1, dtype=torch.float64).expand(2, -1).contiguous()
    for i in range(iterations):
        y = torch.from_numpy(rng(9, i).random((n, 2)))
        x, log_det = grid.forward(e, y)
        e = grid.refine(e, x, f(x) * log_det.exp(), alpha)
    return e


def test_the_grid_adapts_to_a_product():
    """The best grid has a density proportional to the factor of each coordinate: of `x^2` edges at `(i/N)^(1/3)`."""
    found = adapted(lambda x: x[:, 0].square() * torch.exp(-3 * x[:, 1]))
    level = torch.linspace(0, 1, 21, dtype=torch.float64)
    power = level.pow(1 / 3)
    exponential = -torch.log1p(-level * (1 - np.exp(-3.0))) / 3
    assert (found[0] - power)[2:].abs().max() < 0.02  # bins are of one density each: not finer near 0
    assert (found[1] - exponential).abs().max() < 0.02
    assert (found[1] - power).abs().max() > 0.2  # control


def test_the_grid_stays_where_nothing_has_weight():
    e = edges(3)
    assert torch.equal(grid.refine(e, points(4, shape=(100, 3)), torch.zeros(100)), e)
