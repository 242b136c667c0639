"""What holds for every phase-space map: momenta, masses, inverse, Jacobian, volume."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latticeflow.collider.phase_space import phase_spaces
from latticeflow.collider.phase_space.rambo import massless_volume
from latticeflow.errors import InputError

E = 91.2


def chain(n):
    """The tree [0, [1, [2, ...]]]."""
    tree = n - 1
    for i in reversed(range(n - 1)):
        tree = [i, tree]
    return tree


def case(kind, masses, **settings):
    return pytest.param(
        {"kind": kind, **settings}, masses, id=f"{kind}{len(masses)}{'m' if any(masses) else ''}"
    )


LIGHT = [(0.0,) * n for n in range(2, 7)]
HEAVY = [(10.0, 20.0), (1.0, 0.0, 30.0), (5.0, 5.0, 0.0, 8.0), (0.1, 0.2, 4.0, 5.0, 30.0)]
RESONANCE = [
    {"particles": [1, 0], "kind": "breit_wigner", "mass": 40.0, "width": 5.0},
    {"particles": [2, 3], "kind": "power", "exponent": 0.5},
]
POWERS = [
    {"particles": [1, 2, 3], "kind": "power", "exponent": 1.0, "shift": 200.0},
    {"particles": [3, 2], "kind": "power", "exponent": 1.3, "shift": 300.0},
]
ANGLES = [
    {"particles": [0, 1, 2, 3], "kind": "both", "exponent": 1.5, "shift": 0.5},
    {"particles": [1, 2, 3], "kind": "forward", "exponent": 1.0, "shift": 0.5},
    {"particles": [2, 3], "kind": "backward", "exponent": 2.0, "shift": 0.9},
]
# of these the volume is known and the weight is mild enough to find it
MAPS = [
    *(case("rambo", masses) for masses in LIGHT),
    *(case("rambo", masses) for masses in HEAVY),
    *(case("sequential", masses, tree=chain(len(masses))) for masses in LIGHT[:4]),
    *(case("sequential", masses, tree=chain(len(masses))) for masses in HEAVY),
    pytest.param(
        {"kind": "sequential", "tree": [[0, 1], [2, 3]], "propagators": RESONANCE}, LIGHT[2], id="resonance"
    ),
    pytest.param(
        {"kind": "sequential", "tree": chain(4), "propagators": POWERS, "angles": ANGLES},
        LIGHT[2],
        id="powers",
    ),
    *(case("antenna", masses, y_min=0.1) for masses in LIGHT[:4]),
    *(case("pt_rapidity", masses, pt_min=0.0, pt_scale=15.0) for masses in LIGHT[1:4]),
]


def points(space, number, seed=0, dtype=torch.float64):
    u = torch.from_numpy(np.random.default_rng(seed).random((number, space.dim))).to(dtype)
    return u, torch.full((number,), E, dtype=dtype)


def build(table, masses):
    return phase_spaces.parse(table).build(masses)


def measure(p):
    """log of `dPhi_n / d(p_1, ..., p_(n-1) but for its last component)`, from the definition: the deltas fix the others."""
    energy = p[..., 0]
    speed = (p[..., 3] / energy)[:, -2:]
    return (
        (4 - 3 * p.shape[1]) * math.log(2 * math.pi)
        - (2 * energy).log().sum(1)
        - (speed[:, 0] - speed[:, 1]).abs().log()
    )


def numerical_log_jac(space, u, energy, step=1e-6):
    """`log |dPhi_n/du|` from differences of the momenta."""

    def independent(v):
        return space.forward(v, energy)[0][:, :-1, 1:].flatten(1)[:, :-1]

    columns = []
    for i in range(space.dim):
        shift = torch.zeros_like(u)
        shift[:, i] = step
        columns.append((independent(u + shift) - independent(u - shift)) / (2 * step))
    jacobian = torch.stack(columns, 2)
    return jacobian.det().abs().log() + measure(space.forward(u, energy)[0])


def off(values, exact):
    """Distance of the mean from an exact value, in standard errors; rounding where all values are equal."""
    error = values.std() / len(values) ** 0.5 + 1e-13 * abs(exact)
    return float((values.mean() - exact).abs() / error)


def volume(masses, energy=E, nodes=200):
    """Of n massive bodies, by quadrature over the mass of all but the first: exact for two, recursive for more."""
    if len(masses) == 2:
        s, (a, b) = energy**2, masses
        return np.sqrt((s - (a + b) ** 2) * (s - (a - b) ** 2)) / (8 * np.pi * s)
    x, w = np.polynomial.legendre.leggauss(nodes)
    angle = np.pi / 4 * (x + 1)  # s = low + (high - low) sin^2: smooth where the momentum is a square root
    low, high = sum(masses[1:]), energy - masses[0]
    mass = np.sqrt(low**2 + (high**2 - low**2) * np.sin(angle) ** 2)
    ds = w * np.pi / 4 * (high**2 - low**2) * np.sin(2 * angle)
    rest = (
        np.array([volume(masses[1:], m, nodes // 3) for m in mass])
        if len(masses) > 3
        else volume(masses[1:], mass)
    )
    return float((ds / (2 * np.pi) * volume((masses[0], mass), energy) * rest).sum())


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_momentum_is_conserved_and_masses_are_kept(table, masses):
    space = build(table, masses)
    u, energy = points(space, 500)
    energy = energy * torch.linspace(1, 3, 500, dtype=u.dtype)
    p, log_jac = space.forward(u, energy)
    total = torch.nn.functional.pad(energy[:, None], (0, 3))
    assert ((p.sum(1) - total).abs() < 1e-12 * energy[:, None]).all()
    shell = (
        p[..., 0].square() - p[..., 1:].square().sum(-1) - torch.tensor(masses, dtype=p.dtype).square()
    ).abs()
    assert (shell < 1e-14 * p[..., 0].square()).all()
    assert torch.isfinite(log_jac).all()
    assert space.dim == 3 * len(masses) - 4
    assert all(0 <= i < space.dim for i in space.periodic)


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_inverse_undoes_forward(table, masses):
    space = build(table, masses)
    u, energy = points(space, 1000)
    u = 0.01 + 0.98 * u
    p, log_jac = space.forward(u, energy)
    v, back = space.inverse(p)
    assert (u - v).abs().max() < 1e-8
    assert (log_jac + back).abs().max() < 1e-8
    again, _ = space.forward(v, energy)
    assert (again - p).abs().max() < 1e-9 * E


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_jacobian_is_that_of_the_definition(table, masses):
    space = build(table, masses)
    u, energy = points(space, 100, seed=1)
    u = 0.05 + 0.9 * u
    found = space.forward(u, energy)[1]
    expected = numerical_log_jac(space, u, energy)
    assert (found - expected).abs().quantile(0.95) < 1e-6  # differences are worse near an edge in energy
    assert (found - expected).abs().max() < 1e-3


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_volume(table, masses):
    space = build(table, masses)
    log_jac = space.forward(*points(space, 40_000, seed=2))[1]
    exact = volume(masses) if any(masses) else massless_volume(len(masses), E)
    assert off(log_jac.exp(), exact) < 3.5
    if len(masses) > 2:
        assert log_jac.exp().std() / log_jac.exp().mean() < 6  # so that the next check means something


def test_a_wrong_jacobian_is_caught():
    """Two checks above see a Jacobian without one of its factors."""
    space = build({"kind": "antenna", "y_min": 0.1}, LIGHT[1])
    u, energy = points(space, 40_000, seed=2)
    p, log_jac = space.forward(u, energy)
    assert off(log_jac.exp(), massless_volume(3, E)) < 3.5
    assert off((log_jac - (p[:, 0, 0] / p[:, 1, 0]).log()).exp(), massless_volume(3, E)) > 10
    inner = 0.05 + 0.9 * u[:50]
    p, log_jac = space.forward(inner, energy[:50])
    wrong = log_jac + 1e-3 * p[:, 0, 0] / E
    assert (wrong - numerical_log_jac(space, inner, energy[:50])).abs().quantile(0.95) > 1e-4


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_single_precision(table, masses):
    space = build(table, masses)
    u, energy = points(space, 300, dtype=torch.float32)
    u = 0.02 + 0.96 * u
    p, log_jac = space.forward(u, energy)
    assert p.dtype == log_jac.dtype == torch.float32
    exact, exact_jac = space.forward(u.double(), energy.double())
    assert (p - exact).abs().max() < 1e-6 * E
    assert (log_jac - exact_jac).abs().max() < 1e-5
    v, back = space.inverse(p)
    assert v.dtype == back.dtype == torch.float32
    assert (u - v).abs().median() < 1e-5


@pytest.mark.parametrize(("table", "masses"), MAPS)
def test_walls_of_the_cube_give_numbers(table, masses):
    space = build(table, masses)
    u = torch.tensor([[0.0] * space.dim, [1.0] * space.dim, [0.5] * space.dim], dtype=torch.float64)
    p, log_jac = space.forward(u, torch.full((3,), E, dtype=torch.float64))
    assert torch.isfinite(p).all()
    assert (log_jac < math.inf).all()  # it may be 0 there, and not NaN
    assert (p.sum(1)[:, 0] - E).abs().max() < 1e-6 * E


def test_batches_are_independent_and_may_be_empty():
    space = build({"kind": "antenna", "y_min": 0.01}, LIGHT[2])
    u, energy = points(space, 20)
    whole = space.forward(u, energy)
    assert torch.allclose(space.forward(u[5:6], energy[5:6])[0], whole[0][5:6], rtol=1e-12)
    p, log_jac = space.forward(u[:0], energy[:0])
    assert p.shape == (0, 4, 4) and log_jac.shape == (0,)


@settings(max_examples=60, deadline=None)
@given(
    masses=st.lists(st.floats(0, 20), min_size=2, max_size=6),
    surplus=st.floats(1e-3, 1e4),
    seed=st.integers(0, 2**31),
)
def test_any_masses_at_any_energy_above_threshold(masses, surplus, seed):
    space = build({"kind": "rambo"}, tuple(masses))
    energy = torch.full((50,), sum(masses) + surplus, dtype=torch.float64)
    u, _ = points(space, 50, seed)
    u = 0.01 + 0.98 * u
    p, log_jac = space.forward(u, energy)
    total = torch.nn.functional.pad(energy[:, None], (0, 3))
    assert ((p.sum(1) - total).abs() < 1e-11 * energy[:, None]).all()
    v, _ = space.inverse(p)
    slow = float(energy[0] / surplus)  # digits of momenta of which the motion is a small part
    assert (u - v).abs().max() < 1e-9 * max(1.0, slow)
    assert torch.isfinite(log_jac).all()


@pytest.mark.parametrize("kind", ["rambo", "sequential", "antenna", "pt_rapidity", "multi_channel"])
def test_bad_particles(kind):
    table = {
        "sequential": {"tree": [0, 1]},
        "antenna": {"y_min": 0.1},
        "pt_rapidity": {"pt_min": 1.0},
        "multi_channel": {"channels": [{"kind": "rambo"}]},
    }.get(kind, {})
    for masses, message in (
        ((0.0,), "particles"),
        ((0.0, -1.0, 0.0), "negative"),
        ((0.0, math.nan, 1.0), "finite"),
    ):
        with pytest.raises(InputError, match=message):
            build({"kind": kind, **table}, masses)


def test_bad_points():
    space = build({"kind": "rambo"}, (10.0, 20.0, 30.0))
    u, energy = points(space, 4)
    with pytest.raises(InputError, match="more than 60"):
        space.forward(u, energy * 0 + 60)
    with pytest.raises(InputError, match="more than 60"):
        space.forward(u, energy * math.nan)
    with pytest.raises(InputError, match=r"\[batch, 5\]"):
        space.forward(u[:, :4], energy)
    with pytest.raises(InputError, match=r"\[batch, 5\]"):
        space.forward(u, energy[:2])
    with pytest.raises(InputError, match=r"\[batch, 3, 4\]"):
        space.inverse(torch.zeros(4, 2, 4))
