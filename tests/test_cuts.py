"""Kinematics, jets and cuts against formulas written out for single events, and what cuts do to a target."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_processes import events

from latticeflow.collider import Cuts, MatrixElement, jets, kinematics, process, processes
from latticeflow.errors import InputError

ENERGY = 91.2


def particles(n: int, batch: int = 40) -> torch.Tensor:
    return events(n, batch, ENERGY, seed=n)[:, 2:]


def energy(p: torch.Tensor) -> torch.Tensor:
    return torch.full((len(p),), ENERGY, dtype=torch.float64)


# functions of one or two momenta


def test_one_momentum():
    p = torch.tensor(
        [[5.0, 3.0, 4.0, 0.0], [13.0, 0.0, 3.0, 4.0], [2.0, 0.0, 0.0, -2.0]], dtype=torch.float64
    )
    assert kinematics.mass(p).tolist() == [0, 12, 0]
    assert kinematics.pt(p).tolist() == [5, 3, 0]
    assert kinematics.phi(p).tolist() == [math.atan2(4, 3), math.pi / 2, 0]
    assert kinematics.cos_theta(p).tolist() == [0, 0.8, -1]
    y, eta = kinematics.rapidity(p), kinematics.pseudorapidity(p)
    assert y[:2].tolist() == pytest.approx([0, 0.5 * math.log(17 / 9)])
    assert eta[:2].tolist() == pytest.approx([0, -math.log(math.tan(math.acos(0.8) / 2))])
    assert -1e4 < y[2] < -100 and -1e4 < eta[2] < -100  # along the beam: large, not infinite


def test_rapidities_add_up_along_the_beam_and_angles_wrap():
    p = particles(2)
    boost = 0.7
    cosh, sinh = math.cosh(boost), math.sinh(boost)
    moved = torch.stack(
        [cosh * p[..., 0] + sinh * p[..., 3], p[..., 1], p[..., 2], sinh * p[..., 0] + cosh * p[..., 3]], -1
    )
    torch.testing.assert_close(kinematics.rapidity(moved), kinematics.rapidity(p) + boost)
    torch.testing.assert_close(
        kinematics.delta_r(moved[:, 0], moved[:, 1]), kinematics.delta_r(p[:, 0], p[:, 1])
    )
    a, b = (torch.tensor([1.0, math.cos(phi), math.sin(phi), 0.0]) for phi in (3.1, -3.1))
    assert float(kinematics.delta_r(a, b)) == pytest.approx(2 * math.pi - 6.2, rel=1e-5)


def test_pair_measures():
    p = particles(4)
    a, b = p[:, 0].numpy(), p[:, 1].numpy()
    cos = (a[:, 1:] * b[:, 1:]).sum(1) / (a[:, 0] * b[:, 0])
    e = energy(p)
    found = kinematics.jade(p[:, 0], p[:, 1], e).numpy()
    np.testing.assert_allclose(found, 2 * a[:, 0] * b[:, 0] * (1 - cos) / ENERGY**2, rtol=1e-9)
    found = kinematics.durham(p[:, 0], p[:, 1], e).numpy()
    np.testing.assert_allclose(
        found, 2 * np.minimum(a[:, 0], b[:, 0]) ** 2 * (1 - cos) / ENERGY**2, rtol=1e-9
    )


def test_thrust_of_three_is_the_greatest_energy_and_of_a_star_two_thirds():
    p = particles(3)
    torch.testing.assert_close(kinematics.thrust(p), 2 * p[..., 0].amax(1) / ENERGY)
    angles = [2 * math.pi * k / 3 for k in range(3)]
    star = torch.tensor([[[1.0, math.cos(phi), math.sin(phi), 0.0] for phi in angles]])
    assert float(kinematics.thrust(star)) == pytest.approx(2 / 3)
    assert kinematics.thrust(particles(2)).numpy() == pytest.approx(1)
    with pytest.raises(InputError, match="thrust of 15 particles"):
        kinematics.thrust(torch.ones(1, 15, 4))


def test_thrust_of_six_is_the_greatest_over_all_axes():
    p = particles(6, 8)
    axes = np.random.default_rng(1).normal(size=(200_000, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    k = p[..., 1:].numpy()
    scanned = np.abs(np.einsum("ax,bnx->ban", axes, k)).sum(2).max(1) / np.linalg.norm(k, axis=2).sum(1)
    found = kinematics.thrust(p).numpy()
    assert (scanned <= found + 1e-12).all()
    np.testing.assert_allclose(scanned, found, atol=1e-4)


# jets


def reference_transitions(p: np.ndarray, measure: str) -> list[float]:
    """One event, by lists."""
    jets_, found = list(p), []
    while len(jets_) > 1:
        pairs = {}
        for i, j in itertools.combinations(range(len(jets_)), 2):
            a, b = jets_[i], jets_[j]
            if measure == "jade":
                total = a + b
                pairs[i, j] = (total[0] ** 2 - (total[1:] ** 2).sum()) / ENERGY**2
            else:
                cos = (a[1:] * b[1:]).sum() / np.linalg.norm(a[1:]) / np.linalg.norm(b[1:])
                pairs[i, j] = 2 * min(a[0], b[0]) ** 2 * (1 - cos) / ENERGY**2
        i, j = min(pairs, key=pairs.get)
        found.append(pairs[i, j])
        jets_ = [one for k, one in enumerate(jets_) if k not in (i, j)] + [jets_[i] + jets_[j]]
    return found[::-1]


@pytest.mark.parametrize("measure", ["jade", "durham"])
@pytest.mark.parametrize("n", [2, 3, 5, 7])
def test_transitions_are_those_of_single_events(measure, n):
    p = particles(n, 30)
    before = p.clone()
    found = jets.transitions(p, energy(p), measure).numpy()
    expected = [reference_transitions(one, measure) for one in p.numpy()]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert torch.equal(p, before)
    with pytest.raises(InputError, match="jets by 'cone'"):
        jets.transitions(p, energy(p), "cone")


def test_exclusive_jets_are_counted_by_the_transitions():
    p = particles(5, 200)
    cut = 0.02
    found, count = jets.exclusive(p, energy(p), cut, "jade")
    y = jets.transitions(p, energy(p), "jade")
    # merging stops at the first y above the cut, even if a later one would be below
    expected = 1 + torch.stack([(y[:, k:] >= cut).any(1) for k in range(4)], 1).sum(1)
    assert torch.equal(count, expected) and len(count.unique()) >= 3
    torch.testing.assert_close(found.sum(1), p.sum(1))
    assert (found[..., 0].diff(dim=1) <= 0).all()
    assert torch.equal((found[..., 0] > 0).sum(1), count)


def reference_inclusive(p: np.ndarray, radius: float, power: float) -> list[float]:
    """pT of the jets of one event, by lists."""
    left, done = list(p), []

    def pt(a):
        return math.hypot(a[1], a[2])

    def apart(a, b):
        y = [0.5 * math.log((c[0] + c[3]) / (c[0] - c[3])) for c in (a, b)]
        phi = abs(math.atan2(a[2], a[1]) - math.atan2(b[2], b[1]))
        return math.hypot(y[0] - y[1], min(phi, 2 * math.pi - phi))

    while left:
        options = {(i,): pt(a) ** (2 * power) for i, a in enumerate(left)}
        for i, j in itertools.combinations(range(len(left)), 2):
            a, b = left[i], left[j]
            options[i, j] = min(pt(a) ** (2 * power), pt(b) ** (2 * power)) * (apart(a, b) / radius) ** 2
        best = min(options, key=options.get)
        merged = sum(left[k] for k in best)
        left = [one for k, one in enumerate(left) if k not in best]
        if len(best) == 1:
            done.append(pt(merged))
        else:
            left.append(merged)
    return sorted(done, reverse=True)


@pytest.mark.parametrize("power", [1, 0, -1])
def test_inclusive_jets_are_those_of_single_events(power):
    p = particles(6, 40)
    found, count = jets.inclusive(p, 0.8, power)
    expected = [reference_inclusive(one, 0.8, power) for one in p.numpy()]
    assert count.tolist() == [len(one) for one in expected] and len(set(count.tolist())) >= 3
    for event, number, pts in zip(kinematics.pt(found), count, expected):
        assert event[:number].tolist() == pytest.approx(pts)
    harder, fewer = jets.inclusive(p, 0.8, power, pt_min=15.0)
    assert torch.equal(fewer, (kinematics.pt(found) >= 15).sum(1)) and (fewer < count).any()
    assert torch.equal(harder[:, 0] * (fewer > 0)[:, None], found[:, 0] * (fewer > 0)[:, None])
    with pytest.raises(InputError, match="R = 0"):
        jets.inclusive(p, 0.0, power)


# cuts


BOUNDS = {
    "energy_min": (10.0, lambda p: p[..., 0].min(1).values >= 10),
    "pt_min": (8.0, lambda p: (p[..., 1].square() + p[..., 2].square()).min(1).values >= 64),
    "rapidity_max": (1.0, lambda p: ((p[..., 3] / p[..., 0]).abs() <= math.tanh(1)).all(1)),
    "cos_theta_max": (0.8, lambda p: ((p[..., 3] / p[..., 0]).abs() <= 0.8).all(1)),
    "delta_r_min": (0.7, lambda p: every_pair(p, kinematics.delta_r) >= 0.7),
    "mass_min": (15.0, lambda p: every_pair(p, lambda a, b: kinematics.mass2(a + b)) >= 225),
    "y_min": (0.02, lambda p: every_pair(p, lambda a, b: kinematics.mass2(a + b)) >= 0.02 * ENERGY**2),
    "durham_min": (0.01, lambda p: every_pair(p, lambda a, b: kinematics.durham(a, b, energy(a))) >= 0.01),
}


def every_pair(p, of):
    return torch.stack([of(p[:, i], p[:, j]) for i, j in itertools.combinations(range(p.shape[1]), 2)]).amin(
        0
    )


def test_rows_name_every_cut():
    assert set(BOUNDS) == set(Cuts.model_fields) - {"particles"}


@pytest.mark.parametrize("name", list(BOUNDS))
def test_one_cut(name):
    bound, expected = BOUNDS[name]
    p = particles(4, 500)
    found = Cuts(**{name: bound}).passes(p, energy(p))
    assert torch.equal(found, expected(p))
    assert 20 < found.sum() < 480
    some = Cuts(**{name: bound, "particles": (0, 2)}).passes(p, energy(p))
    assert torch.equal(some, expected(p[:, [0, 2]])) and some.sum() > found.sum()
    with pytest.raises(InputError, match=name):
        Cuts(**{name: -bound})
    p[3] = math.nan
    assert not Cuts(**{name: bound}).passes(p, energy(p))[3]


def test_cuts_combine_and_none_lets_all_pass():
    p = particles(4, 500)
    both = Cuts(pt_min=8.0, y_min=0.01)
    assert both.bounds == {"pt_min": 8.0, "y_min": 0.01}
    one, other = both.each(p, energy(p)).values()
    assert torch.equal(both.passes(p, energy(p)), one & other) and not torch.equal(one, one & other)
    assert Cuts().passes(p, energy(p)).all()


def test_wrong_cuts_say_so():
    with pytest.raises(InputError, match="did you mean 'pt_min'"):
        Cuts(ptmin=3)
    with pytest.raises(InputError, match=r"particles = \[1, 1\]"):
        Cuts(particles=(1, 1), pt_min=1.0)
    with pytest.raises(InputError, match="y_min is on pairs"):
        Cuts(particles=(1,), y_min=0.1)
    with pytest.raises(InputError, match="there are 3 outgoing ones"):
        three_jets(cuts={"particles": [0, 3], "y_min": 0.1})


# cuts of a target


def three_jets(**settings) -> MatrixElement:
    table = {"process": {"kind": "ee_qqg", "quark": "u"}, "energy": ENERGY, "phase_space": "rambo"}
    return MatrixElement(**{**table, **settings})


def test_outside_cuts_there_is_no_density():
    target = three_jets(cuts={"y_min": 0.1})
    u = torch.from_numpy(np.random.default_rng(1).random((500, 5)))
    log_prob, inside = target.log_prob(u), target.inside(u)
    assert torch.equal(log_prob > -math.inf, inside) and 100 < inside.sum() < 400
    torch.testing.assert_close(log_prob[inside], three_jets().log_prob(u)[inside])
    narrow = target.log_prob(u.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, target.log_prob(u.float().double()).float())


def test_survival_is_the_area_of_the_triangle():
    """Flat in (x1, x2), the three-body region is a triangle, and y > c leaves one (1 - 3 c) as long."""
    share, error = three_jets(cuts={"y_min": 0.1}).survival(20_000)
    assert abs(share - 0.49) < 3 * error and error == pytest.approx(0.5 / math.sqrt(20_000), rel=0.01)
    assert three_jets().survival(1000)[0] == 1
    three_jets(cuts={"y_min": 0.1}).require_support(1000)


def test_cuts_that_kill_everything_are_named():
    target = three_jets(cuts={"y_min": 0.34, "energy_min": 5.0})
    share, error = target.survival(5000)
    assert share == 0 and error > 0
    with pytest.raises(InputError) as found:
        target.require_support(5000)
    assert "none of 5,000 flat points" in str(found.value)
    assert "y_min = 0.34 leaves 0 of them" in str(found.value)
    assert "energy_min = 5.0 leaves 0." in str(found.value)


def test_momenta_of_a_bad_matrix_element_are_named():
    from latticeflow.errors import NumericalError

    try:
        worst: list[float] = [math.nan]

        @process("bad_one", incoming=(11, -11), outgoing=(13, -13))
        def squared(p):
            return torch.where(p[:, 2, 3] > 0, worst[0], 1.0)

        target = MatrixElement(process="bad_one", energy=10.0, phase_space="rambo")
        below, above = torch.tensor([[0.3, 0.0]]), torch.tensor([[0.6, 0.0]])
        assert target.log_prob(below).isfinite().all()
        for value, text in ((math.nan, "nan"), (math.inf, "inf"), (-1.0, "-1.0")):
            worst[0] = value
            with pytest.raises(
                NumericalError, match=rf"bad_one: \|M\|\^2 = {text} in 1 of 2 events.*\[5.0, 4.8"
            ):
                target.log_prob(torch.cat([below, above]))
        worst[0] = 0.0
        assert target.log_prob(above) == -math.inf

        @process("bad_shape", incoming=(11, -11), outgoing=(13, -13))
        def one_number(p):
            return p.sum()

        with pytest.raises(
            InputError, match=r"bad_shape: .* shape \[\] for momenta \[1, 4, 4\]; expected \[1\]"
        ):
            MatrixElement(process="bad_shape", energy=10.0, phase_space="rambo").log_prob(above)
    finally:
        processes.classes.pop("bad_one", None)
        processes.classes.pop("bad_shape", None)


def test_a_pole_that_nothing_cuts_is_named():
    """Two parallel particles: the error says what is missing; of an |M|^2 that is bad elsewhere it does not."""
    from dataclasses import replace

    from latticeflow.errors import NumericalError

    target = three_jets()
    event = target.generate(torch.from_numpy(np.random.default_rng(5).random((3, target.dim))))
    assert target._squared(event).isfinite().all()
    p = event.p.clone()
    p[1, 2] = p[1, 4] = p.new_tensor([30.0, 0.0, 0.0, 30.0])
    with pytest.raises(NumericalError, match=r"= inf in 1 of 3.*parallel or soft to rounding.*set y_min"):
        target._squared(replace(event, p=p))
    p = event.p.clone()
    p[1, 2, 0] = math.nan
    with pytest.raises(NumericalError, match="= nan in 1 of 3") as found:
        target._squared(replace(event, p=p))
    assert "parallel" not in str(found.value)


def test_a_scale_of_ones_own():
    """`process(scale=)` replaces the mass of the system, and is called with the same momenta."""

    def pt(p):
        return p[:, 2, 1:3].norm(dim=1)

    for name, scale in (("test_scaled", pt), ("test_unscaled", None)):

        @process(name, incoming=(11, -11), outgoing=(13, -13), scale=scale)
        def one(p):
            return torch.ones_like(p[:, 0, 0])

    p = torch.tensor([[[5.0, 0, 0, 5], [5, 0, 0, -5], [5, 3, 0, 4], [5, -3, 0, -4]]])
    assert processes.parse({"kind": "test_scaled"}).scale(p).tolist() == [3.0]
    assert processes.parse({"kind": "test_unscaled"}).scale(p).tolist() == [10.0]
