"""What each phase-space map promises on its own: exact volumes, the poles it follows, the region it covers, bad settings."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special
from test_phase_space import E, build, off, points

from latticeflow.collider.phase_space import densities, phase_spaces
from latticeflow.collider.phase_space.frames import excess
from latticeflow.collider.phase_space.rambo import massless_volume, shares
from latticeflow.errors import InputError

# sqrt s = 91.2, n = 2, 3, 4, 5: PHYSICS.md
VOLUMES = {2: 0.0397887358, 3: 1.0478523537, 4: 9.1985376757, 5: 40.3745313304}


def two_body(mass, a, b):
    s = mass**2
    return np.sqrt(np.maximum((s - (a + b) ** 2) * (s - (a - b) ** 2), 0)) / (8 * np.pi * s)


def invariants(p):
    """`s_ij / s` of massless momenta, `[batch, n, n]`."""
    return 2 * excess(p, p.new_zeros(p.shape[1])) / p[..., 0].sum(1).square()[:, None, None]


@pytest.mark.parametrize("n", VOLUMES)
def test_massless_weight_is_the_published_volume(n):
    log_jac = build({"kind": "rambo"}, (0.0,) * n).forward(
        *points(build({"kind": "rambo"}, (0.0,) * n), 100)
    )[1]
    assert (log_jac.exp() / VOLUMES[n] - 1).abs().max() < 1e-9  # as many digits as are published
    assert log_jac.std() < 1e-14
    exact = (np.pi / 2) ** (n - 1) * (2 * np.pi) ** (4 - 3 * n) * E ** (2 * n - 4)
    exact /= math.factorial(n - 1) * math.factorial(n - 2)
    assert (log_jac.exp() / exact - 1).abs().max() < 1e-12


def test_massive_weight_of_two():
    space = build({"kind": "rambo"}, (10.0, 20.0))
    log_jac = space.forward(*points(space, 50))[1]
    assert (log_jac.exp() / two_body(E, 10.0, 20.0) - 1).abs().max() < 1e-12


@pytest.mark.parametrize("masses", [(1.0, 2.0, 3.0), (30.0, 0.0, 30.0), (0.0, 5.0, 80.0)])
def test_massive_volume_of_three(masses):
    """The weight depends on one coordinate alone: two quadratures, of it and of the recursion in the mass of two."""
    space = build({"kind": "rambo"}, masses)

    def weight(v):  # u = 1 - v^4 takes out the root at u = 1
        u = torch.full((1, 5), 0.5, dtype=torch.float64)
        u[0, 0] = 1 - v**4
        return 4 * v**3 * float(space.forward(u, torch.tensor([E], dtype=torch.float64))[1].exp())

    a, b, c = masses
    found = integrate.quad(weight, 0, 1, epsrel=1e-11, limit=200)[0]
    exact = integrate.quad(
        lambda m: m / np.pi * two_body(E, a, m) * two_body(m, b, c), b + c, E - a, epsrel=1e-12, limit=400
    )[0]
    assert found == pytest.approx(exact, rel=1e-8)
    assert found != pytest.approx(massless_volume(3, E), rel=1e-2)


@pytest.mark.parametrize("m", range(1, 9))
def test_shares_solve_their_polynomial_to_rounding(m):
    rng = np.random.default_rng(m)
    small = 10 ** (-14 * rng.random(500))
    v = torch.from_numpy(np.concatenate([rng.random(2000), small, 1 - small]))
    x, rest = shares(v, m)
    low = v < 0.5
    quantile = torch.from_numpy(special.betaincinv(m, 2, v.numpy()))
    upper = torch.from_numpy(special.betaincinv(2, m, 1 - v.numpy()))
    assert (x / quantile - 1)[low].abs().max() < 1e-13
    assert (rest / upper - 1)[~low].abs().max() < 1e-13
    assert (x + rest - 1).abs().max() < 1e-15


@pytest.mark.parametrize("n", [3, 4, 5])
def test_rambo_treats_all_particles_alike(n):
    """`sum_(i<j) s_ij = s`: in uniform phase space each pair has the same share of it, 2 / (n (n - 1))."""
    space = build({"kind": "rambo"}, (0.0,) * n)
    u, energy = points(space, 20_000)
    pairs = invariants(space.forward(u, energy)[0])
    for i in range(n):
        for j in range(i):
            assert off(pairs[:, i, j], 2 / (n * (n - 1))) < 3.5
    u[:, 0] = u[:, 0].square()
    assert off(invariants(space.forward(u, energy)[0])[:, 0, 1], 2 / (n * (n - 1))) > 10


def _stretched(draw, u, low, high, start, width):
    """What is on [0, 1], on [low, high]."""
    x, slope = draw(u, torch.full_like(u, start), width)
    return low + (high - low) * x, slope + (high - low).log()


def _squeezed(find, x, low, high, start, width):
    u, slope = find((x - low) / (high - low), torch.full_like(x, start), width)
    return u, slope + (high - low).log()


@pytest.mark.parametrize(
    ("draw", "find", "density", "arguments"),
    [
        *(
            (
                densities.power,
                densities.power_inverse,
                lambda x, nu=nu: (x + 0.5) ** -nu,
                (nu, 0.5),
            )
            for nu in (-1.0, 0.0, 0.7, 1.0, 1.0 + 1e-9, 2.5)
        ),
        *(
            (
                lambda u, low, high, *rest: _stretched(densities.onset, u, low, high, *rest),
                lambda x, low, high, *rest: _squeezed(densities.onset_inverse, x, low, high, *rest),
                lambda x, start=start: start + 1 - 0.09 / ((x - 1) / 8 + 0.3) ** 2,
                (start, 0.3),
            )
            for start in (0.0, 0.02, 2.0)
        ),
        (
            densities.breit_wigner,
            densities.breit_wigner_inverse,
            lambda x: 1 / ((x - 4) ** 2 + 0.04),
            (2.0, 0.1),
        ),
    ],
)
def test_densities(draw, find, density, arguments):
    """x(u) is the quantile of the density, `dx/du` its inverse, and u(x) the way back."""
    u = torch.linspace(0.001, 0.999, 41, dtype=torch.float64)
    low, high = torch.full_like(u, 1.0), torch.full_like(u, 9.0)
    x, slope = draw(u, low, high, *arguments)
    total = integrate.quad(density, 1, 9, points=[4], epsabs=1e-13)[0]
    for point, share, log_slope in zip(x.tolist(), u.tolist(), slope.tolist(), strict=True):
        below = integrate.quad(density, 1, point, points=[4] if point > 4 else None, epsabs=1e-13)[0]
        assert below / total == pytest.approx(share, abs=1e-8)
        assert math.exp(log_slope) == pytest.approx(total / density(point), rel=1e-8)
    back, again = find(x, low, high, *arguments)
    assert (back - u).abs().max() < 1e-12
    assert (again - slope).abs().max() < 1e-11


def test_angle_with_a_peak():
    """A wrapped Cauchy density, cut off at the largest angle."""
    u = torch.linspace(0.01, 0.99, 21, dtype=torch.float64)
    for width, largest in ((0.1, math.pi), (0.5, 2.0), (1.0, math.pi)):
        k, bound = torch.full_like(u, width), torch.full_like(u, largest)
        x, slope = densities.peaked_angle(u, k, bound)

        def density(a, w=width):
            return 1 / (w**2 * math.cos(a / 2) ** 2 + math.sin(a / 2) ** 2)

        total = integrate.quad(density, -largest, largest, points=[0])[0]
        for point, share, log_slope in zip(x.tolist(), u.tolist(), slope.tolist(), strict=True):
            assert integrate.quad(density, -largest, point, points=[min(0, point)])[
                0
            ] / total == pytest.approx(share)
            assert math.exp(log_slope) == pytest.approx(total / density(point))
        back, _ = densities.peaked_angle_inverse(x, k, bound)
        assert (back - u).abs().max() < 1e-12


def test_breit_wigner_map_makes_a_resonance_flat():
    """`int dPhi_3 / ((s_01 - m^2)^2 + m^2 Gamma^2)` against quadrature; a hundredth of flat phase space's variance."""
    mass, width = 60.0, 1.0
    line = {"particles": [0, 1], "kind": "breit_wigner", "mass": mass, "width": width}
    exact = integrate.quad(
        lambda m: (
            m / np.pi * two_body(E, 0, m) * two_body(m, 0, 0) / ((m**2 - mass**2) ** 2 + (mass * width) ** 2)
        ),
        0,
        E,
        points=[mass - 2, mass, mass + 2],
        limit=400,
    )[0]
    spread = {}
    for name, lines in (("flat", []), ("resonant", [line])):
        space = build({"kind": "sequential", "tree": [[0, 1], 2], "propagators": lines}, (0.0,) * 3)
        p, log_jac = space.forward(*points(space, 20_000))
        s = invariants(p)[:, 0, 1] * E**2
        weight = log_jac.exp() / ((s - mass**2).square() + (mass * width) ** 2)
        assert off(weight, exact) < 3.5
        spread[name] = float(weight.std() / weight.mean())
    assert spread["resonant"] < 0.25 < 5 * spread["resonant"] < spread["flat"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tree": [0, 1, 2]}, "pair of branches"),
        ({"tree": [[0, 1], [2]]}, "pair of branches"),
        ({"tree": [[0, 1], "2"]}, "pair of branches"),
        ({"tree": [[0, 1], True]}, "pair of branches"),
        ({"tree": [0, 1]}, "each of 0 to 2 once"),
        ({"tree": [[0, 1], 1]}, "each of 0 to 2 once"),
        ({"tree": [[0, 1], 3]}, "each of 0 to 2 once"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [1, 2]}]}, "propagator of"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1, 2]}]}, "propagator of"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1]}, {"particles": [1, 0]}]}, "at most"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1], "kind": "breit_wigner"}]}, "mass"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1], "kind": "power"}]}, "exponent"),
        ({"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1], "exponent": 1.0}]}, "exponent"),
        (
            {"tree": [[0, 1], 2], "propagators": [{"particles": [0, 1], "kind": "power", "exponent": 1}]},
            "no end",
        ),
        (
            {
                "tree": [[0, 1], 2],
                "angles": [{"particles": [0, 2], "kind": "both", "exponent": 1, "shift": 1}],
            },
            "angle",
        ),
        ({"tree": [[0, 1], 2], "angles": [{"particles": [0, 1], "kind": "both", "exponent": 1}]}, "shift"),
    ],
)
def test_bad_trees(settings, message):
    with pytest.raises(InputError, match=message):
        build({"kind": "sequential", **settings}, (0.0,) * 3)


def test_tables_of_a_deck_come_back():
    tree = {
        "kind": "sequential",
        "tree": [[0, 1], [2, 3]],
        "propagators": [{"particles": [0, 1], "kind": "power", "exponent": 0.5}],
        "angles": [{"particles": [2, 3], "kind": "both", "exponent": 1.0, "shift": 0.1}],
    }
    for table in (
        tree,
        {"kind": "antenna", "y_min": 0.1, "chain": [1, 0, 2]},
        {"kind": "pt_rapidity", "pt_min": 3.0},
    ):
        spec = phase_spaces.parse(table)
        assert phase_spaces.parse(phase_spaces.table(spec)) == spec
