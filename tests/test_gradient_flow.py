"""The gradient flow against its closed forms: plane waves, constant fields, orders of convergence, symmetries."""

import math

import numpy as np
import pytest
import torch
from tables import rng
from test_gauge import gauge_transform

from latticeflow.errors import InputError
from latticeflow.observables import measure, observables
from latticeflow.observables.gradient_flow import (
    energy_and_charge,
    energy_of_plaquettes,
    field_strength,
    flow,
    runge_kutta,
    times,
)
from latticeflow.targets import Wilson

torch.set_num_threads(1)
SU2 = Wilson(shape=(4, 4, 4, 4), group="su2", beta=2.4)
SU3 = Wilson(shape=(3, 4, 2, 4), group="su3", beta=6.0)
BOTH = [pytest.param(t, id=t.group) for t in (SU2, SU3)]


def rough(target, *key, n=2, scale=0.5):
    noise = torch.from_numpy(rng(*key).normal(size=(n, *target.momentum_shape)))
    return target.links.exp(scale * noise)


def plane_wave(target, amplitude, mode=1):
    """`A_1(x) = amplitude cos(k x_0)` along one generator: transverse, with one plane of plaquettes, (0, 1)."""
    k = 2 * math.pi * mode / target.shape[0]
    wave = amplitude * torch.cos(k * torch.arange(target.shape[0], dtype=torch.float64))
    shape = (1, *target.momentum_shape)
    angles = torch.zeros(shape, dtype=torch.float64)
    at = (0, 1) if target.links.n == 1 else (0, 1, ..., 2)
    angles[at] = wave.view(-1, *[1] * (len(target.shape) - 1)).expand(target.shape)
    return angles, 4 * math.sin(k / 2) ** 2


@pytest.mark.parametrize("group", ["u1", "su2", "su3"])
@pytest.mark.parametrize("mode", [1, 2])
def test_a_weak_plane_wave_decays_with_its_momentum(group, mode):
    target = Wilson(shape=(6, 2, 2, 2), group=group, beta=1.0)
    angles, khat2 = plane_wave(target, 1e-4, mode)
    links = target.links.exp(angles)
    later = target.links.log(flow(target, links, 0.7))
    torch.testing.assert_close(later, angles * math.exp(-0.7 * khat2), rtol=0, atol=2e-8)
    wrong = (later - angles * math.exp(-0.9 * 0.7 * khat2)).abs().max()
    assert wrong > 1e-6  # what another normalisation of the flow would give
    if group != "u1":  # E = (1/V) sum F^2 / 2, F = khat A sin(...), whose mean square is that of A khat^2
        e = khat2 * float(angles.square().sum()) / target.lattice.volume / 2
        assert float(energy_of_plaquettes(target, links)) == pytest.approx(e, rel=1e-6)
        clover = float(energy_and_charge(target, links)[0])
        assert clover == pytest.approx(e * math.cos(math.pi * mode / 6) ** 2, rel=1e-6)


@pytest.mark.parametrize("target", BOTH)
def test_the_action_falls(target):
    x, last = rough(target, 1, scale=1.0), math.inf
    for _ in range(20):
        s = float(target.action(x).max())
        assert s < last
        x, last = flow(target, x, 0.1), s
    target.check_field(x)


@pytest.mark.parametrize("target", BOTH)
def test_order_three(target):
    x = rough(target, 2)
    exact = flow(target, x, 0.4, 0.0025)
    errors = [float((flow(target, x, 0.4, step) - exact).abs().max()) for step in (0.05, 0.025)]
    assert errors[0] < 2e-3 and math.log2(errors[0] / errors[1]) == pytest.approx(3, abs=0.35)


def abelian(target, first, second):
    """`F_01 = 2 pi n / A_01`, `F_23 = 2 pi m / A_23` on the diagonal, integers n and m that add up to 0: Q = sum n m."""
    x = torch.zeros(4, *target.shape, len(first), dtype=torch.float64)
    for (mu, nu), numbers in (((0, 1), first), ((2, 3), second)):
        n = torch.tensor(numbers, dtype=torch.float64)
        sides = target.shape[mu], target.shape[nu]
        grid = torch.meshgrid(*(torch.arange(side).double() for side in target.shape), indexing="ij")
        x[nu] += 2 * math.pi * n * grid[mu][..., None] / (sides[0] * sides[1])
        x[mu] -= torch.where(grid[mu] == sides[0] - 1, 2 * math.pi * grid[nu] / sides[1], 0.0)[..., None] * n
    return torch.diag_embed(torch.polar(torch.ones_like(x), x))[None]


def on_lattice(target, first, second):
    """Q of such a field: `(V / 4 pi^2) tr (F G)`, F and G traceless parts of the sines of the angles."""
    area = target.shape[0] * target.shape[1], target.shape[2] * target.shape[3]
    f, g = (np.sin(2 * np.pi * np.array(n) / a) for n, a in zip((first, second), area))
    return float((f - f.mean()) @ (g - g.mean())) * math.prod(target.shape) / (4 * math.pi**2)


@pytest.mark.parametrize(
    "group, first, second",
    [("su2", (1, -1), (1, -1)), ("su3", (1, -1, 0), (0, 1, -1)), ("su3", (1, 1, -2), (0, 1, -1))],
)
def test_constant_fields_have_their_charge(group, first, second):
    q = sum(a * b for a, b in zip(first, second))
    for shape, allowed in (((6, 4, 4, 5), 0.4), ((12, 10, 12, 12), 0.02)):
        target = Wilson(shape=shape, group=group, beta=1.0)
        x = abelian(target, first, second)
        target.check_field(x)
        charge = energy_and_charge(target, x)[1]
        assert float(charge) == pytest.approx(on_lattice(target, first, second), abs=1e-9)
        assert abs(float(charge) - q) < allowed * max(abs(q), 1)
        assert float(field_strength(target, x, 0, 2).abs().max()) < 1e-12
    # a solution of the flow, and self-dual or not its action stays
    torch.testing.assert_close(runge_kutta(target, x, 0.05), x, rtol=0, atol=1e-12)


def test_noise_hides_the_charge_and_the_flow_brings_it_back():
    target = Wilson(shape=(6, 6, 6, 6), group="su2", beta=1.0)
    smooth = torch.cat([abelian(target, (1, -1), m) for m in ((1, -1), (0, 0), (-1, 1))])
    noisy = target.links.mul(rough(target, 3, n=3, scale=0.35), smooth)
    before, after = (energy_and_charge(target, x)[1] for x in (noisy, flow(target, noisy, 2.0, 0.1)))
    expected = torch.tensor([2.0, 0.0, -2.0], dtype=torch.float64)
    assert (before - expected).abs().max() > 0.3 and (after - expected).abs().max() < 0.06


@pytest.mark.parametrize("target", BOTH)
def test_reflections_and_exchanges_of_axes_turn_the_charge_over(target):
    x = rough(target, 5)
    energy, q = energy_and_charge(target, x)
    assert float(q.abs().min()) > 1e-3
    for mu in range(4):
        mirror = torch.flip(x, (2 + mu,))  # site x_mu -> -1 - x_mu
        link = torch.roll(mirror[:, mu], -1, 1 + mu).mH  # from x to x + mu: back along the image
        turned = mirror.clone()
        turned[:, mu] = link
        e, other = energy_and_charge(target, turned)
        torch.testing.assert_close(other, -q)
        torch.testing.assert_close(e, energy)
    square = Wilson(shape=(3, 3, 2, 4), group=target.group, beta=1.0)
    x = rough(square, 6)
    swapped = x.transpose(2, 3)[:, [1, 0, 2, 3]]
    torch.testing.assert_close(energy_and_charge(square, swapped)[1], -energy_and_charge(square, x)[1])


@pytest.mark.parametrize("target", BOTH)
def test_gauge_transformations(target):
    x = rough(target, 7)
    g = target.links.haar((2, *target.shape), rng(8), torch.float64)
    turned = gauge_transform(target, x, g)
    torch.testing.assert_close(flow(target, turned, 0.1), gauge_transform(target, flow(target, x, 0.1), g))
    for name, value in measure(target, x, "gradient_flow").items():
        np.testing.assert_allclose(measure(target, turned, name)[name], value, atol=1e-10)
    pure = gauge_transform(target, target.links.identity((2, 4, *target.shape), x), g)
    energy, q = energy_and_charge(target, pure)
    assert float(q.abs().max()) < 1e-12 and float(energy.abs().max()) < 1e-12
    assert float(energy_of_plaquettes(target, pure).abs().max()) < 1e-12


def test_the_observable_is_what_it_says():
    x = rough(SU3, 9)
    found = measure(SU3, x, "gradient_flow")["gradient_flow"].reshape(2, -1, 4)
    assert times(SU3).tolist() == pytest.approx([0.1]) and found.shape[1] == 1
    later = flow(SU3, x, 0.1)
    energy, q = energy_and_charge(SU3, later)
    np.testing.assert_allclose(found[:, 0, 0], 0.01 * energy, rtol=1e-12)
    np.testing.assert_allclose(found[:, 0, 1], 0.01 * energy_of_plaquettes(SU3, later), rtol=1e-12)
    np.testing.assert_allclose(found[:, 0, 2:], np.stack([q, q**2], 1), rtol=1e-12)


def test_scales_of_a_known_curve():
    """`<E> = c exp(-t / 4)`: the roots of t^2 c exp(-t/4) = 0.3 and of t d/dt, by bisection here."""
    target = Wilson(shape=(12, 12, 12, 12), group="su3", beta=6.0)
    t = times(target)
    assert t[-1] == pytest.approx(4.5)

    def root(f):
        low, high = 0.0, 3.0
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if f(middle) < 0.3 else (low, middle)
        return low

    def curve(s):
        return 0.2 * s**2 * np.exp(-s / 4)

    rows = np.zeros((len(t), 4))
    rows[:, 0], rows[:, 3] = curve(t), 5.0
    means = {"gradient_flow": rows.ravel()}
    assert observables.find("t0").of(target, means) == pytest.approx(root(curve), rel=1e-5)
    w2 = root(lambda s: 0.2 * (2 * s**2 - s**3 / 4) * np.exp(-s / 4))
    assert observables.find("w0").of(target, means) == pytest.approx(math.sqrt(w2), rel=1e-4)
    assert observables.find("chi_top").of(target, means) == pytest.approx(5 / 12**4)
    rows[:, 0] *= 0.01
    assert math.isnan(observables.find("t0").of(target, means))
    assert math.isnan(observables.find("w0").of(target, means))


def test_where_it_exists_and_bad_input():
    flat = Wilson(shape=(4, 4), group="su2", beta=1.0)
    assert "su2 and su3 in four dimensions, found su2 on (4, 4)" in observables.left_out(flat)["t0"]
    assert observables.find("gradient_flow").missing(SU2) is None
    with pytest.raises(InputError, match="expected four dimensions"):
        energy_and_charge(flat, rough(flat, 10))
    u1 = Wilson(shape=(2, 2, 2, 2), group="u1", beta=1.0)
    with pytest.raises(InputError, match="expected su2 or su3"):
        field_strength(u1, rough(u1, 11), 0, 1)
    for time, step in ((-1.0, 0.1), (1.0, 0.0)):
        with pytest.raises(InputError, match="expected t >= 0 and a positive step"):
            flow(SU2, rough(SU2, 12), time, step)
