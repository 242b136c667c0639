"""Antennas and jets along the beam: the poles that the maps follow and the regions that they cover."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_phase_space import E, build, off, points

from latticeflow.collider.phase_space.frames import excess
from latticeflow.collider.phase_space.rambo import massless_volume
from latticeflow.errors import InputError

LIGHT = {n: (0.0,) * n for n in range(2, 7)}
THREE_JETS = 0.4585858813  # share of three jets, y > 0.02, alpha_s 0.118: PHYSICS.md


def invariants(p):
    """`s_ij / s` of massless momenta, `[batch, n, n]`, 1 on the diagonal."""
    pairs = 2 * excess(p, p.new_zeros(p.shape[1])) / p[..., 0].sum(1).square()[:, None, None]
    return pairs + torch.eye(p.shape[1], dtype=p.dtype)


def three_jets(p, log_jac):
    """Weights of which the mean is the share of three jets: `C_F alpha_s / 2 pi (x_1^2 + x_2^2) / ((1 - x_1)(1 - x_2))`."""
    x = 2 * p[..., 0] / E
    lo = (
        4
        / 3
        * 0.118
        / (2 * math.pi)
        * (x[:, 0].square() + x[:, 1].square())
        / ((1 - x[:, 0]) * (1 - x[:, 1]))
    )
    return torch.where((1 - x > 0.02).all(1), lo * log_jac.exp() * 128 * math.pi**3 / E**2, 0.0)


def relative_std(w):
    return float(w.std() / w.mean())


@pytest.mark.parametrize("y", [0.02, 0.2, 0.33])
def test_sharp_antenna_covers_exactly_what_a_cut_leaves_of_three_jets(y):
    space = build({"kind": "antenna", "y_min": y, "sharp": True}, LIGHT[3])
    p, log_jac = space.forward(*points(space, 40_000))
    assert invariants(p).amin((1, 2)).min() > y * (1 - 1e-9)
    assert off(log_jac.exp(), (1 - 3 * y) ** 2 * massless_volume(3, E)) < 3.5


def test_antenna_outside_of_which_there_is_no_density():
    sharp = build({"kind": "antenna", "y_min": 0.05, "sharp": True}, LIGHT[3])
    flat = build({"kind": "rambo"}, LIGHT[3])
    p, _ = flat.forward(*points(flat, 5000))
    u, log_jac = sharp.inverse(p)
    inside = invariants(p).amin((1, 2)) > 0.05
    assert 0.5 < inside.double().mean() < 0.9
    assert torch.equal(torch.isfinite(log_jac), inside)
    assert ((u >= 0) & (u <= 1))[inside].all()


@pytest.mark.parametrize("n", [4, 5])
def test_sharp_antenna_of_more_particles(n):
    """Left out is what has a pair below y_min among the last three of the chain, and no more: the share counted in RAMBO."""
    y = 0.02
    space = build({"kind": "antenna", "y_min": y, "sharp": True}, LIGHT[n])
    flat = build({"kind": "rambo"}, LIGHT[n])
    p, _ = flat.forward(*points(flat, 100_000, seed=3))
    last = [n - 2, n - 1, 1]
    inside = (invariants(p)[:, last][:, :, last] > y).all(2).all(1).double()
    weight = space.forward(*points(space, 100_000))[1].exp() / massless_volume(n, E)
    error = math.hypot(float(inside.std()), float(weight.std())) / 100_000**0.5
    assert abs(float(weight.mean() - inside.mean())) < 3.5 * error
    assert error < 0.03 * float(inside.mean())


def test_antenna_makes_three_jets_smooth():
    """Cross section against PHYSICS.md; weights as flat as `x_1^2 + x_2^2` and one function of one coordinate leave them."""
    weights = {}
    for name, table in (
        ("sharp", {"kind": "antenna", "y_min": 0.02, "sharp": True}),
        ("soft", {"kind": "antenna", "y_min": 0.02}),
        ("rambo", {"kind": "rambo"}),
    ):
        space = build(table, LIGHT[3])
        u, energy = points(space, 60_000)
        weights[name] = three_jets(*space.forward(u, energy))
        assert off(weights[name], THREE_JETS) < 3.5
        if name == "sharp":
            bins = (u[:, 0] * 40).long()
            means = torch.stack([weights[name][bins == k].mean() for k in range(40)])
            assert relative_std(weights[name] / means[bins]) < 0.08
    assert relative_std(weights["sharp"]) < 0.36
    assert relative_std(weights["soft"]) < 1.1 < relative_std(weights["rambo"])


def test_chain_and_its_reverse_follow_the_poles_of_two_gluons():
    """Integrand `1 / (s_02 s_23 s_31)`, all pairs above 1e-3 s: deviation of the weights 1.7; of the first chain alone 5."""
    spread = {}
    for name, chains in (
        ("both", [[0, 2, 3, 1], [1, 3, 2, 0]]),
        ("one", [[0, 2, 3, 1]]),
        ("other order", [[0, 3, 2, 1], [1, 2, 3, 0]]),
    ):
        channels = [{"kind": "antenna", "y_min": 1e-3, "chain": chain} for chain in chains]
        space = build({"kind": "multi_channel", "channels": channels}, LIGHT[4])
        p, log_jac = space.forward(*points(space, 40_000))
        pairs = invariants(p)
        weight = log_jac.exp() / (pairs[:, 0, 2] * pairs[:, 2, 3] * pairs[:, 3, 1])
        spread[name] = relative_std(torch.where((pairs > 1e-3).all(2).all(1), weight, 0.0))
    assert spread["both"] < 2.0 < 4.0 < spread["one"] < spread["other order"]


@pytest.mark.parametrize(
    ("settings", "masses", "message"),
    [
        ({"y_min": 0.1}, (0.0, 0.0, 1.0), "without mass"),
        ({"y_min": 0.1, "chain": [0, 1, 1]}, LIGHT[3], "order of the 3 particles"),
        ({"y_min": 0.1, "chain": [0, 1]}, LIGHT[3], "order of the 3 particles"),
        ({"y_min": 0.34, "sharp": True}, LIGHT[3], "less than 0.333333"),
        ({"y_min": 0.0}, LIGHT[3], "greater than 0"),
    ],
)
def test_bad_antennas(settings, masses, message):
    with pytest.raises(InputError, match=message):
        build({"kind": "antenna", **settings}, masses)


def transverse(p):
    pt = p[..., 1:3].square().sum(-1).sqrt()
    return pt, (p[..., 3] / pt).asinh(), torch.atan2(p[..., 2], p[..., 1])


@pytest.mark.parametrize("n", [3, 4])
def test_jets_above_pt_min_are_what_is_covered(n):
    """Nothing below pt_min, no density there, and the volume above that RAMBO counts."""
    space = build({"kind": "pt_rapidity", "pt_min": 8.0}, LIGHT[n])
    flat = build({"kind": "rambo"}, LIGHT[n])
    p, _ = flat.forward(*points(flat, 40_000, seed=3))
    above = (transverse(p)[0] > 8).all(1)
    assert torch.equal(torch.isfinite(space.inverse(p)[1]), above)
    p, log_jac = space.forward(*points(space, 40_000))
    assert transverse(p)[0].min() > 8 * (1 - 1e-9)
    weight = log_jac.exp() / massless_volume(n, E)
    error = math.hypot(float(above.double().std()), float(weight.std())) / 200
    assert abs(float(weight.mean() - above.double().mean())) < 3.5 * error
    assert error < 0.02


@pytest.mark.parametrize("n", [3, 4])
def test_every_order_of_rapidities_has_its_interval(n):
    space = build({"kind": "pt_rapidity", "pt_min": 0.0, "pt_scale": 10.0}, LIGHT[n])
    u, energy = points(space, 20 * math.factorial(n))
    place = np.repeat(np.arange(math.factorial(n)), 20)
    u[:, n - 2] = (torch.from_numpy(place) + u[:, n - 2]) / math.factorial(n)
    p, log_jac = space.forward(u, energy)
    found = transverse(p)[1].argsort(1, descending=True)
    assert found.tolist() == [list(order) for order in itertools.permutations(range(n)) for _ in range(20)]
    assert (space.inverse(p)[0] - u).abs().max() < 1e-9
    turned = u.clone()  # nothing but the azimuth and the names of the particles depends on this coordinate
    turned[:, n - 2] = 0.3
    q, again = space.forward(turned, energy)
    assert (again - log_jac).abs().max() < 1e-12
    assert (transverse(q)[0].sort(1)[0] - transverse(p)[0].sort(1)[0]).abs().max() < 1e-10


def gluons(p):
    """`sum_(i<j) s_ij^4 sum_orders 1 / (s_12 s_23 ... s_n1)`, incoming first: Parke and Taylor, summed over colours."""
    half = p[..., 0].sum(1) / 2
    beams = torch.stack([half, 0 * half, 0 * half, half, half, 0 * half, 0 * half, -half], 1).view(-1, 2, 4)
    s = invariants(torch.cat([beams, p], 1))
    n = s.shape[1]
    orders = sum(
        1 / math.prod(s[:, a, b] for a, b in itertools.pairwise([0, *order, 0]))
        for order in itertools.permutations(range(1, n))
    )
    return orders * sum(s[:, i, j] ** 4 for i in range(n) for j in range(i))


def jets(p):
    """pT > 30, Delta R > 0.4."""
    pt, y, phi = transverse(p)
    turn = torch.remainder(phi[:, :, None] - phi[:, None, :] + math.pi, 2 * math.pi) - math.pi
    apart = (turn.square() + (y[:, :, None] - y[:, None, :]).square()).sqrt() + 9 * torch.eye(p.shape[1])
    return (pt > 30).all(1) & (apart > 0.4).all(2).all(1)


def test_gluons_at_1_tev_are_smooth_in_pt_and_rapidity():
    """Relative deviation of the weights of gg -> ggg at uniform u: 1, of RAMBO 20; both find the same cross section."""
    found = {}
    for kind, table in (("pt_rapidity", {"pt_min": 30.0}), ("rambo", {})):
        space = build({"kind": kind, **table}, LIGHT[3])
        u, _ = points(space, 60_000)
        p, log_jac = space.forward(u, torch.full((60_000,), 1000.0, dtype=torch.float64))
        w = torch.where(jets(p), gluons(p) * log_jac.exp(), 0.0)
        found[kind] = float(w.mean()), float(w.std()) / 60_000**0.5, relative_std(w)
    (a, error_a, spread), (b, error_b, rambo) = found["pt_rapidity"], found["rambo"]
    assert spread < 1.05 < 8 < rambo
    assert abs(a - b) < 3.5 * math.hypot(error_a, error_b)


@pytest.mark.parametrize(
    ("settings", "masses", "message"),
    [
        ({"pt_min": 0.0}, LIGHT[3], "bound the density"),
        ({"pt_min": -1.0}, LIGHT[3], "greater than or equal to 0"),
        ({"pt_min": 1.0}, (0.0, 0.0, 1.0), "without mass"),
        ({"pt_min": 1.0}, LIGHT[2], "at least 3"),
        ({"pt_min": 1.0}, (0.0,) * 9, "3 to 8"),
    ],
)
def test_bad_jets(settings, masses, message):
    with pytest.raises(InputError, match=message):
        build({"kind": "pt_rapidity", **settings}, masses)


def test_energy_too_low_for_pt_min():
    space = build({"kind": "pt_rapidity", "pt_min": 40.0}, LIGHT[3])
    with pytest.raises(InputError, match="3 pt_min"):
        space.forward(*points(space, 3))
