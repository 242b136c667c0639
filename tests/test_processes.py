"""Matrix elements: exact and published numbers, other forms of the same amplitude, and what an error would have changed."""

import itertools
import math

import numpy as np
import pytest
import torch

from latticeflow.collider import MatrixElement, kinematics, processes
from latticeflow.collider.kinematics import HBARC2
from latticeflow.collider.partons import density, momentum_densities
from latticeflow.collider.phase_space import phase_spaces
from latticeflow.errors import InputError

ALPHA, ALPHA_S = 1 / 137.035999084, 0.118
G2 = 4 * math.pi * ALPHA_S


def events(n: int, batch: int = 6, energy: float = 91.2, seed: int = 1, masses=None) -> torch.Tensor:
    """Momenta `[batch, 2 + n, 4]` of two beams and n particles, anywhere in phase space."""
    phase_space = phase_spaces.parse({"kind": "rambo"}).build(masses or (0.0,) * n)
    u = torch.from_numpy(np.random.default_rng(seed).uniform(0.05, 0.95, (batch, phase_space.dim)))
    p, _ = phase_space.forward(u, torch.full((batch,), energy, dtype=torch.float64))
    half = energy / 2
    beams = torch.tensor([[half, 0, 0, half], [half, 0, 0, -half]], dtype=torch.float64)
    return torch.cat([beams.expand(batch, 2, 4), p], 1)


def monte_carlo(target: MatrixElement, n: int, seed: int = 3) -> tuple[float, float]:
    """Mean and error of the integrand at n flat points, by numpy."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(0, n, 100_000):
        found.append(
            target.log_prob(torch.from_numpy(rng.random((min(n, 100_000), target.dim)))).exp().numpy()
        )
    weights = np.concatenate(found)
    return weights.mean(), weights.std() / math.sqrt(len(weights))


def assert_within(target: MatrixElement, exact: float, n: int, error: float = 2e-3) -> None:
    mean, sigma = monte_carlo(target, n)
    assert sigma <= error * mean
    assert abs(mean - exact) < 3 * sigma


def two_body(target: MatrixElement, nodes: int) -> tuple[np.ndarray, np.ndarray]:
    """Midpoints of the first coordinate, with integrand and cos(theta) there; nothing depends on the azimuth."""
    u = torch.stack([(torch.arange(nodes, dtype=torch.float64) + 0.5) / nodes, torch.full((nodes,), 0.3)], 1)
    cos = kinematics.cos_theta(target.momenta(u)[:, 0])
    return target.log_prob(u).exp().numpy(), cos.numpy()


def ee(z: bool, **settings) -> MatrixElement:
    process = {"kind": "ee_ff", "fermion": "mu", "z": z, **settings}
    return MatrixElement(process=process, energy=91.2, phase_space="rambo")


# electron and positron to fermions


def test_photon_and_z_reach_the_published_cross_section_and_asymmetry():
    weights, _ = two_body(ee(False), 20_000)
    assert weights.mean() == pytest.approx(10.442453, rel=1e-7)
    assert weights.mean() == pytest.approx(86.8545e3 / 91.2**2, rel=1e-5)
    weights, cos = two_body(ee(True), 20_000)
    assert weights.mean() == pytest.approx(1751.3433, rel=1e-7)
    asymmetry = (weights * np.sign(cos)).mean() / weights.mean()
    assert asymmetry == pytest.approx(0.0172941, abs=1e-6)
    # without the width it would be far off: the numbers know about it
    assert two_body(ee(True, z_width=2.6), 2000)[0].mean() != pytest.approx(1751.3433, rel=1e-2)


def test_flat_points_reach_them_within_their_errors():
    assert_within(ee(False), 10.442453, 100_000)
    assert_within(ee(True), 1751.3433, 100_000)


def test_colours_charges_and_spins_of_other_fermions():
    muon, _ = two_body(ee(False), 1000)
    up, cos = two_body(ee(False, fermion="u"), 1000)
    np.testing.assert_allclose(up, 3 * (2 / 3) ** 2 * muon, rtol=1e-12)
    np.testing.assert_allclose(up / up.mean(), 0.75 * (1 + cos**2), rtol=1e-6)
    neutrinos, _ = two_body(ee(True, fermion="nu_mu"), 1000)
    # Gamma_nu / Gamma_mu = 2 / (1 + (1 - 4 sin^2)^2) at the peak, where the photon is negligible
    assert neutrinos.mean() / two_body(ee(True), 1000)[0].mean() == pytest.approx(
        2 / (1 + (1 - 4 * 0.2315) ** 2), rel=0.02
    )
    assert two_body(ee(False, fermion="nu_mu"), 10)[0].max() == 0
    assert ee(True, fermion="b").process.outgoing == (5, -5)


# gluons


def test_four_gluons_are_the_textbook_formula_and_the_published_cross_section():
    p = events(2)
    s, t, u = (2 * kinematics.dot(p[:, 0], p[:, i]) for i in (1, 2, 3))
    textbook = 9 / 4 * G2**2 * (3 - t * u / s**2 + s * u / t**2 + s * t / u**2)  # here t, u > 0
    torch.testing.assert_close(processes.parse({"kind": "gg_gg"}).squared(p), textbook)
    cuts = {"pt_min": 30, "delta_r_min": 0.4}
    target = MatrixElement(process="gg_gg", energy=1000, phase_space="rambo", cuts=cuts)
    edge = math.acosh(
        1000 / 2 / 30
    )  # of the rapidity, from pT = E / (2 cosh y); (1 + cos) / 2 = 1 / (1 + e^-2y)
    y, w = np.polynomial.legendre.leggauss(200)
    u0 = torch.from_numpy(1 / (1 + np.exp(-2 * edge * y)))
    weights = target.log_prob(torch.stack([u0, torch.full_like(u0, 0.3)], 1)).exp() * 2 * u0 * (1 - u0)
    assert float((weights * torch.from_numpy(edge * w)).sum()) == pytest.approx(84581.70, abs=0.005)
    assert target.log_prob(torch.tensor([[1 / (1 + math.exp(-2.0001 * edge)), 0.3]])) == -math.inf


@pytest.mark.parametrize("kind, expected", [("gg_gg", 2), ("gg_ggg", 6), ("gg_gggg", 24), ("ee_qqgg", 2)])
def test_identical_gluons_are_counted_once(kind, expected):
    """And the average is over what comes in: 2 * 2 * 8 * 8 of gluons, 2 * 2 of electron and positron."""
    if kind == "ee_qqgg":
        couplings, average = (4 * math.pi * ALPHA) ** 2 * 4 / 9 * G2**2, 4
        process = processes.parse({"kind": kind, "quark": "u"})
    else:
        process, average = processes.parse({"kind": kind}), 256
        couplings = G2 ** len(process.outgoing)
    assert couplings / average / process.factor() == pytest.approx(expected)


# quarks and gluons


@pytest.fixture(scope="module")
def three_jets() -> MatrixElement:
    process = {"kind": "ee_qqg", "quark": "u"}
    return MatrixElement(process=process, energy=91.2, phase_space="rambo", cuts={"y_min": 0.02})


def test_three_jet_fraction_is_the_published_one(three_jets):
    """By quadrature over x1, x2; |M|^2 is quadratic in the direction of the beam, so that three axes average over all."""
    y, s = 0.02, 91.2**2
    t, w = np.polynomial.legendre.leggauss(60)
    # y_23 = 1 - x1 and y_13 = 1 - x2 above y, y_12 = x1 + x2 - 1 too, in logarithms of y_13, y_23
    low, high = math.log(y), math.log(1 - 2 * y)
    a = np.exp(low + (high - low) * (t[:, None] + 1) / 2)
    top = np.log(1 - y - a)
    b = np.exp(low + (top - low) * (t[None, :] + 1) / 2)
    weight = w[:, None] * w[None, :] * (high - low) / 2 * (top - low) / 2 * a * b
    x1, x2 = (
        torch.from_numpy(0 * a + 1 - b),
        torch.from_numpy(1 - a + 0 * b),
    )
    x1, x2, e = x1.flatten(), x2.flatten(), 91.2 / 2
    cos = 1 - 2 * (x1 + x2 - 1) / (x1 * x2)
    zero = torch.zeros_like(x1)
    q = e * torch.stack([x1, x1, zero, zero], 1)
    qbar = e * torch.stack([x2, x2 * cos, x2 * (1 - cos**2).clamp(min=0).sqrt(), zero], 1)
    p = torch.stack([q, qbar, q.new_tensor([2 * e, 0, 0, 0]) - q - qbar], 1)
    mean = torch.zeros_like(x1)
    for axis in range(1, 4):
        beams = torch.zeros(2, 4, dtype=torch.float64)
        beams[:, 0], beams[0, axis], beams[1, axis] = e, e, -e
        mean += three_jets.process.squared(torch.cat([beams.expand(len(p), 2, 4), p], 1)) / 3
    shape = (4 * math.pi * ALPHA_S) / (6 * math.pi**2) * (x1**2 + x2**2) / ((1 - x1) * (1 - x2))
    volume = s / (128 * math.pi**3)  # dPhi_3 / dx1 dx2
    density_ = HBARC2 * mean * volume / (2 * s) / three_jets.process.sigma_0(91.2)
    torch.testing.assert_close(density_, shape, rtol=1e-9, atol=0)  # C_F alpha_s / (2 pi) = g^2 / (6 pi^2)
    assert float((density_ * torch.from_numpy(weight.flatten())).sum()) == pytest.approx(
        0.4585858813, abs=2e-10
    )


def test_three_jet_fraction_on_phase_space(three_jets):
    sigma_0 = three_jets.process.sigma_0(91.2)
    photon = two_body(ee(False, fermion="u"), 5000)[0].mean()
    assert sigma_0 == pytest.approx(photon, rel=1e-6)
    assert_within(three_jets, 0.4585858813 * sigma_0, 3_000_000)


# symmetries that every process has

ALL = [
    ({"kind": "ee_ff", "fermion": "mu", "z": True}, 91.2),
    ({"kind": "ee_qqg", "quark": "u"}, 91.2),
    ({"kind": "ee_qqgg", "quark": "b"}, 91.2),
    ({"kind": "gg_gg"}, 1000.0),
    ({"kind": "gg_ggg"}, 1000.0),
    ({"kind": "gg_gggg"}, 1000.0),
    ({"kind": "muon_decay", "fermi": 1.1663788e-5, "electron_mass": 0.000511}, 0.1056583755),
    ({"kind": "drell_yan", "mass_min": 50.0, "mass_max": 100.0}, 91.2),
]


def momenta(table, energy) -> torch.Tensor:
    process = processes.parse(table)
    p = events(len(process.outgoing), energy=energy, masses=process.masses)
    if len(process.incoming) == 1:
        p = torch.cat([p[:, :2].sum(1, keepdim=True), p[:, 2:]], 1)
    return p


def boosted(p: torch.Tensor, seed: int = 5) -> torch.Tensor:
    """All momenta turned and seen from a moving frame."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn = turn * np.linalg.det(turn)
    beta = 0.6
    boost = np.eye(4)
    boost[0, 0] = boost[3, 3] = 1 / math.sqrt(1 - beta**2)
    boost[0, 3] = boost[3, 0] = beta / math.sqrt(1 - beta**2)
    matrix = np.eye(4)
    matrix[1:, 1:] = turn
    return p @ torch.from_numpy(matrix.T @ boost @ matrix).T @ torch.from_numpy(matrix).T


def test_rows_name_every_process():
    assert {table["kind"] for table, _ in ALL} <= set(processes.classes)
    ours = {kind for kind, cls in processes.classes.items() if cls.__module__.startswith("latticeflow.")}
    assert ours == {table["kind"] for table, _ in ALL}


@pytest.mark.parametrize("table, energy", ALL, ids=lambda one: one["kind"] if isinstance(one, dict) else "")
def test_squares_are_lorentz_invariant(table, energy):
    process, p = processes.parse(table), momenta(table, energy)
    torch.testing.assert_close(process.squared(boosted(p)), process.squared(p), rtol=1e-7, atol=0)


@pytest.mark.parametrize("table, energy", ALL, ids=lambda one: one["kind"] if isinstance(one, dict) else "")
def test_gluons_are_alike(table, energy):
    process, p = processes.parse(table), momenta(table, energy)
    codes = [*process.incoming, *process.outgoing]
    gluons = [i for i, code in enumerate(codes) if code == 21]
    for i, j in itertools.combinations(gluons, 2):
        if i < 2 <= j:
            continue
        order = list(range(len(codes)))
        order[i], order[j] = j, i
        torch.testing.assert_close(process.squared(p[:, order]), process.squared(p), rtol=1e-8, atol=0)


# decays and hadrons


@pytest.mark.parametrize("ratio", [0.0, 0.3])
def test_muon_width(ratio):
    fermi, muon = 1.1663788e-5, 0.1056583755
    process = {"kind": "muon_decay", "fermi": fermi, "electron_mass": ratio * muon}
    target = MatrixElement(process=process, energy=muon, phase_space="rambo")
    x = ratio**2
    f = 1 - 8 * x + 8 * x**3 - x**4 - (12 * x**2 * math.log(x) if x else 0)
    assert_within(target, fermi**2 * muon**5 / (192 * math.pi**3) * f, 200_000)
    assert target.unit == "GeV"


def test_partons_hold_the_proton():
    """Two u, one d and all of the momentum; integrals of powers are Euler's beta function."""
    t, w = np.polynomial.legendre.leggauss(200)
    z = torch.from_numpy((t + 1) / 2)
    x, weight = z**10, torch.from_numpy(w / 2) * 10 * z**9  # x^-0.2 dx is a polynomial in z
    parts = momentum_densities(x)
    numbers = {q: float(((parts[q] - parts[-q]) / x * weight).sum()) for q in (1, 2, 3)}
    assert numbers == pytest.approx({1: 1, 2: 2, 3: 0}, abs=1e-5)
    assert sum(float((one * weight).sum()) for one in parts.values()) == pytest.approx(1, abs=1e-5)
    assert float(density(21, torch.tensor(0.1))) == pytest.approx(1.7 * 0.1**-1.1 * 0.9**5)
    with pytest.raises(InputError, match="no parton 6"):
        density(6, x)


def test_drell_yan_is_the_integral_over_densities():
    """`d sigma / dM^2 = 4 pi alpha^2 / (9 M^2 S) sum Q^2 int dx / x [..]` by quadrature, densities written out again."""

    def quarks(x):
        dbar = 0.1939875 * x**-0.1 * (1 - x) ** 6
        ubar, rest = (1 - x) * dbar, 0.2 * (2 - x) * dbar
        u, d = 5.1072 * x**0.8 * (1 - x) ** 3 + ubar, 3.06432 * x**0.8 * (1 - x) ** 4 + dbar
        return np.stack([u, d, rest]) / x, np.stack([ubar, dbar, rest]) / x

    energy, low, high = 8000.0, 50.0, 100.0
    t, w = np.polynomial.legendre.leggauss(120)
    mass2 = low**2 * (high / low) ** (t + 1)  # M^2 in logarithms
    tau = mass2 / energy**2
    span = -np.log(tau)[:, None] / 2
    x = tau[:, None] * np.exp(span * (t + 1))
    (q1, a1), (q2, a2) = quarks(x), quarks(tau[:, None] / x)
    charges = np.array([4, 1, 1])[:, None, None] / 9
    inner = ((charges * (q1 * a2 + a1 * q2)).sum(0) * span * w).sum(1)
    spectrum = 4 * math.pi * ALPHA**2 / (9 * mass2 * energy**2) * inner
    exact = HBARC2 * (spectrum * mass2 * math.log(high / low) * w).sum()

    process = {"kind": "drell_yan", "mass_min": low, "mass_max": high}
    target = MatrixElement(process=process, energy=energy, phase_space="rambo")
    assert target.dim == 4 and target.periodic == (3,)
    assert_within(target, exact, 400_000)
    # which partons: u against d and s, from either side
    u = torch.from_numpy(np.random.default_rng(2).random((100_000, 4)))
    shares = (target.log_prob(u).exp()[:, None] * target.channel_weights(u)).mean(0) / exact
    assert float(shares.sum()) == pytest.approx(1, abs=0.01)
    one = [
        HBARC2
        * (4 * math.pi * ALPHA**2 / 9 / energy**2 * c * math.log(high / low) * w * inner_k).sum()
        / exact
        for c, inner_k in zip((4 / 9, 1 / 9, 1 / 9), ((q1 * a2) * span * w).sum(2))
    ]
    np.testing.assert_allclose(shares.numpy(), np.repeat(one, 2), rtol=0.02)


def test_hadrons_events_are_those_of_their_partons():
    process = {"kind": "drell_yan", "mass_min": 60.0, "mass_max": 120.0}
    target = MatrixElement(process=process, energy=1000.0, phase_space="rambo")
    u = torch.from_numpy(np.random.default_rng(2).random((200, 4)))
    event = target.generate(u)
    total = event.laboratory[:, 2:].sum(1)
    torch.testing.assert_close(total, event.laboratory[:, :2].sum(1))
    x1, x2 = event.x.T
    torch.testing.assert_close(event.laboratory[:, 0, 0], 500 * x1)
    torch.testing.assert_close(event.laboratory[:, 1, 3], -500 * x2)
    mass = kinematics.mass(total)
    assert (mass > 59.999).all() and (mass < 120.001).all()
    torch.testing.assert_close(target.beams.inverse(x1, x2), u[:, :2])
    torch.testing.assert_close(target.channel_weights(u).sum(1), torch.ones(200, dtype=torch.float64))
    forwards = MatrixElement(process=process, energy=1000.0, phase_space="rambo", cuts={"rapidity_max": 1.0})
    inside = forwards.inside(u)
    expected = (kinematics.rapidity(event.laboratory[:, 2:]).abs() <= 1).all(1)
    assert torch.equal(inside, expected) and 0 < inside.sum() < 200
