"""The character expansion against the tables, and against sums and integrals done another way."""

import math

import numpy as np
import pytest

from latticeflow import exact
from latticeflow.errors import InputError

TABLE = [
    ("u1", (8, 8), 1.0, 0.446389965897),
    ("u1", (8, 8), 2.0, 0.697774658011),
    ("u1", (16, 16), 7.0, 0.925532210854),
    ("su2", (8, 8), 2.2, 0.464479025270),
    ("su3", (8, 8), 6.0, 0.422531739650),
]


@pytest.mark.parametrize("group, shape, beta, value", TABLE)
def test_plaquette_of_the_tables(group, shape, beta, value):
    assert exact.plaquette(group, shape, beta) == pytest.approx(value, abs=2e-12)
    h, volume = 1e-4, math.prod(shape)
    slope = (exact.log_z(group, shape, beta + h) - exact.log_z(group, shape, beta - h)) / (2 * h)
    assert slope / volume == pytest.approx(value, abs=1e-8)


@pytest.mark.parametrize(
    "shape, beta, value",
    [((8, 8), 1.0, 0.04063623611), ((8, 8), 2.0, 0.01936404548), ((16, 16), 7.0, 0.003931305304)],
)
def test_topological_susceptibility_of_the_tables(shape, beta, value):
    assert exact.topological_susceptibility(shape, beta) == pytest.approx(value, abs=1e-11)


def u1_by_convolution(volume, beta, points=240):
    """`Z(Q) / (2 pi)^...`: V plaquettes in (-pi, pi] on a grid, added up by convolution; those that add up to 2 pi Q."""
    p = 2 * np.pi * (np.arange(points) - points // 2 + 0.5) / points  # half steps: no point on the cut
    weight = np.exp(beta * np.cos(p)) / points
    total = np.array([1.0])
    for _ in range(volume):
        total = np.convolve(total, weight)
    sums = volume * p[0] + 2 * np.pi / points * np.arange(len(total))
    q = sums / (2 * np.pi)
    keep = abs(q - q.round()) < 1e-6
    return q[keep].round().astype(int), total[keep] * points


@pytest.mark.parametrize("volume, shape, beta", [(4, (2, 2), 1.0), (16, (4, 4), 2.5), (36, (6, 6), 6.0)])
def test_u1_against_sums_over_plaquettes(volume, shape, beta):
    q, z = u1_by_convolution(volume, beta)
    assert exact.log_z("u1", shape, beta) == pytest.approx(
        math.log(z.sum()), abs=1e-4 if volume == 4 else 1e-6
    )
    expected = dict(zip(q.tolist(), z / z.sum()))
    for charge, probability in zip(*exact.charges(shape, beta)):
        assert probability == pytest.approx(expected.get(int(charge), 0.0), abs=2e-4 if volume == 4 else 1e-6)


def class_functions(group):
    """Eigenvalue angles on a grid `[points, N]` and Weyl's measure `[points]`, sum 1."""
    grid = 2 * np.pi * np.arange(120) / 120
    if group == "su2":
        angles = np.stack([grid, -grid], 1)
    else:
        a, b = (one.ravel() for one in np.meshgrid(grid, grid))
        angles = np.stack([a, b, -a - b], 1)
    z = np.exp(1j * angles)
    measure = np.ones(len(z))
    for i in range(z.shape[1]):
        for j in range(i):
            measure *= abs(z[:, i] - z[:, j]) ** 2
    return z, measure / measure.sum()


def character(z, rows):
    """Schur's polynomial of a Young diagram `rows` at eigenvalues z, by determinants off the places where they meet."""
    n = z.shape[1]
    exponents = np.array([rows[j] + n - 1 - j for j in range(n)])
    above = np.linalg.det(z[:, :, None] ** exponents[None, None, :])
    below = np.linalg.det(z[:, :, None] ** np.arange(n - 1, -1, -1)[None, None, :])
    return np.where(
        abs(below) > 1e-9, above / np.where(abs(below) > 1e-9, below, 1), 0
    )  # the measure vanishes there


@pytest.mark.parametrize(
    "group, beta, rows",
    [("su2", 2.2, (k, 0)) for k in range(4)]
    + [("su3", 6.0, r) for r in [(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 0), (3, 0, 0)]],
)
def test_coefficients_by_integration_over_eigenvalues(group, beta, rows):
    """`c_r = (1 / d_r) int dU chi_r exp((beta / N) Re tr U)` by Weyl's formula."""
    z, measure = class_functions(group)
    weight = measure * np.exp(beta / z.shape[1] * z.sum(1).real)
    label = (0, rows[0] + 1) if group == "su2" else (0, rows[0] - rows[1], rows[1])
    expected = (weight * character(z, rows)).sum().real / exact.dimension(label)
    found, log_c0 = exact._coefficients(group, beta)
    assert found[label] * math.exp(log_c0) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("group, shape, beta, value", TABLE)
def test_wilson_loops(group, shape, beta, value):
    assert exact.wilson_loop(group, shape, beta, 0) == pytest.approx(1)
    areas = [exact.wilson_loop(group, shape, beta, area) for area in (1, 2, 3)]
    assert areas[0] == pytest.approx(value)
    # in a large volume the area law
    ratio = exact.wilson_loop(group, (64, 64), beta, 3) / exact.wilson_loop(group, (64, 64), beta, 2)
    assert -math.log(ratio) == pytest.approx(exact.string_tension(group, beta), rel=1e-6)


def test_strong_and_weak_coupling():
    for group, n in (("u1", 1), ("su2", 2), ("su3", 3)):
        assert exact.plaquette(group, (4, 4), 0.0) == 0
        assert exact.log_z(group, (4, 4), 0.0) == pytest.approx(0)
        # to first order each generator of each of the V - 1 independent plaquettes has 1 / 2 of beta V (1 - plaquette)
        first = max(1, n * n - 1) / (2 * 40.0)
        assert exact.plaquette(group, (4, 4), 40.0) == pytest.approx(1 - first * 15 / 16, abs=3 * first**2)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: exact.plaquette("su4", (8, 8), 1.0), "expected u1, su2 or su3"),
        (lambda: exact.plaquette("u1", (8, 8), -1.0), "expected a finite beta >= 0"),
        (lambda: exact.charges((8, 8), math.nan), "beta = nan"),
        (lambda: exact.log_z("u1", (4, 4, 4), 1.0), "two dimensions"),
        (lambda: exact.wilson_loop("u1", (4, 4), 1.0, 17), "loop of 17 plaquettes"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
