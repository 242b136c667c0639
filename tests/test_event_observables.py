"""Observables of events: exact means and the formulas written out for single events."""

import itertools
import math

import numpy as np
import pytest
import torch

from latticeflow.collider import MatrixElement
from latticeflow.errors import InputError
from latticeflow.observables import measure, observables
from latticeflow.targets import Camel, Phi4

TARGETS = {
    "two": {"process": {"kind": "ee_ff", "fermion": "mu", "z": True}, "energy": 91.2},
    "three": {"process": {"kind": "ee_qqg", "quark": "u"}, "energy": 91.2},
    "four": {"process": {"kind": "ee_qqgg", "quark": "u"}, "energy": 91.2},
    "five": {"process": "gg_ggg", "energy": 1000.0},
    "decay": {
        "process": {"kind": "muon_decay", "fermi": 1.1663788e-5, "electron_mass": 0.000511},
        "energy": 0.105658,
    },
    "hadrons": {"process": {"kind": "drell_yan", "mass_min": 60.0, "mass_max": 120.0}, "energy": 8000.0},
}
EXIST = {
    "two": "pt_1 abs_rapidity_max delta_r_min cos_theta forward a_fb",
    "three": "y23 pt_1 pt_min x1 x2 x3 mass_12 abs_rapidity_max delta_r_min cos_theta",
    "five": "y23 pt_1 pt_min x1 x2 x3 mass_12 abs_rapidity_max delta_r_min cos_theta",
    "four": "thrust y_min y23 pt_1 pt_min x1 x2 x3 mass_12 abs_rapidity_max delta_r_min cos_theta",
    "decay": "thrust y_min y23 x1 x2 x3 mass_12",
    "hadrons": "pt_1 mass_12 abs_rapidity_max delta_r_min",
}


def target(name: str) -> MatrixElement:
    return MatrixElement(**TARGETS[name], phase_space="rambo")


def points(one: MatrixElement, n: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).random((n, one.dim)))


@pytest.mark.parametrize("name", list(TARGETS))
def test_which_ones_exist(name):
    one = target(name)
    mine = lambda names: [one for one in names if not one.startswith("test_")]  # noqa: E731 (other files' tests add theirs)
    assert mine(found.name for found in observables.of(one)) == EXIST[name].split()
    left = set(mine(observables.left_out(one)))
    assert left == set(" ".join(EXIST.values()).split()) - set(EXIST[name].split())


def test_other_theories_have_none_and_events_have_none_of_theirs():
    for other in (Phi4(shape=(4, 4), m2=1.0, lam=1.0), Camel(dimensions=2)):
        names = {found.name for found in observables.of(other)} | set(observables.left_out(other))
        assert not names & set(" ".join(EXIST.values()).split())
    with pytest.raises(InputError, match="a decay, which has no beam axis"):
        measure(target("decay"), points(target("decay"), 2), "pt_1")


@pytest.mark.parametrize("name", list(TARGETS))
def test_values_are_the_formulas_of_single_events(name):
    one = target(name)
    u = points(one, 20)
    found = measure(one, u)
    assert all(values.shape == (20,) and values.dtype == np.float64 for values in found.values())
    single = measure(one, u.float().numpy())
    for key, values in found.items():
        np.testing.assert_allclose(single[key], values, rtol=2e-3, atol=1e-4)
    momenta = one.momenta(u).numpy()
    scale = one.generate(u).energy.numpy()
    for i, (p, e) in enumerate(zip(momenta, scale)):
        pt = np.hypot(p[:, 1], p[:, 2])
        pairs = list(itertools.combinations(p, 2))
        invariant = [(a + b)[0] ** 2 - ((a + b)[1:] ** 2).sum() for a, b in pairs]
        x = sorted(2 * p[:, 0] / e, reverse=True)
        with np.errstate(divide="ignore"):
            y = 0.5 * np.log((p[:, 0] + p[:, 3]) / (p[:, 0] - p[:, 3]))
        phi = np.arctan2(p[:, 2], p[:, 1])
        turns = [abs(math.remainder(a - b, 2 * math.pi)) for a, b in itertools.combinations(phi, 2)]
        expected = {
            "y_min": min(invariant) / e**2,
            "pt_1": pt.max(),
            "pt_min": pt.min(),
            **{f"x{k + 1}": x[k] for k in range(min(3, len(p)))},
            "mass_12": math.sqrt(invariant[0]),
            "abs_rapidity_max": abs(y).max(),
            "delta_r_min": min(
                math.hypot(a - b, t) for (a, b), t in zip(itertools.combinations(y, 2), turns)
            ),
            "cos_theta": p[0, 3] / np.linalg.norm(p[0, 1:]),
            "forward": float(p[0, 3] > 0),
        }
        size = np.linalg.norm(p[:, 1:], axis=1)
        # the axis with all particles on their sides of a plane
        sides = [
            p[list(some), 1:].sum(0) for k in (1, 2) for some in itertools.combinations(range(len(p)), k)
        ]
        expected["thrust"] = 2 * max(np.linalg.norm(one) for one in sides) / size.sum()
        if len(p) == 3 and name != "decay":
            # why they are left out
            assert expected["thrust"] == pytest.approx(x[0]) and expected["y_min"] == pytest.approx(1 - x[0])
            durham = [2 * min(a[0], b[0]) ** 2 * (1 - a[1:] @ b[1:] / a[0] / b[0]) / e**2 for a, b in pairs]
            expected["y23"] = min(durham)
        for key in set(expected) & set(found):
            assert found[key][i] == pytest.approx(expected[key], rel=1e-6), key


def test_three_massless_particles_have_one_thrust():
    reasons = observables.left_out(target("three"))
    assert reasons["thrust"] == reasons["y_min"] == "of three massless particles T = x₁ and y_min = 1 − x₁"
    with pytest.raises(InputError, match="'thrust' does not exist here: of three massless"):
        measure(target("three"), points(target("three"), 2), "thrust")


def test_means_over_flat_phase_space():
    """In the triangle of (x1, x2), flat: the greatest x has mean 7/9, the least 4/9."""
    one = target("three")
    found = measure(one, points(one, 100_000), "x1", "x2", "x3", "cos_theta")
    # 1 - x_i are flat on the simplex: ordered, their means are 11/18, 5/18 and 2/18
    means = {
        "x1": 1 - 2 / 18,
        "x2": 1 - 5 / 18,
        "x3": 1 - 11 / 18,
        "cos_theta": 0,
    }
    for key, expected in means.items():
        error = found[key].std() / math.sqrt(len(found[key]))
        assert abs(found[key].mean() - expected) < 3.5 * error, key


def test_asymmetry_of_the_published_number():
    """Weighted by the integrand, on midpoints: A_FB of e+e- to muons at 91.2 GeV."""
    one = target("two")
    u = torch.stack(
        [(torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000, torch.full((10_000,), 0.2)], 1
    )
    weights = one.log_prob(u).exp().numpy()
    forward = (measure(one, u, "forward")["forward"] * weights).sum() / weights.sum()
    derived = observables.find("a_fb")
    assert derived.of(one, {"forward": np.array(forward)}) == pytest.approx(0.0172941, abs=1e-6)


def test_peaks_of_the_camel():
    camel = Camel(dimensions=3)
    found = measure(camel, torch.tensor([[0.3, 0.3, 0.4], [0.7, 0.6, 0.4]]), "upper_peak")["upper_peak"]
    assert found.tolist() == [0, 1]
    assert observables.find("upper_peak").exact(camel) == 0.5
