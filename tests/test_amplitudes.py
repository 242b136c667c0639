"""Ordered amplitudes by recursion, against helicity amplitudes in closed form, limits and colour sums."""

import itertools
import math

import numpy as np
import pytest
import torch
from test_processes import ALPHA, G2, events

from latticeflow.collider import kinematics, processes
from latticeflow.collider.amplitudes import (
    Currents,
    QuarkLine,
    line_colours,
    lorentz,
    polarisations,
    products,
    ring_colours,
    spinors,
    vector,
)
from latticeflow.collider.processes.jets import ordered_squares


@pytest.mark.parametrize("n", [4, 5])
def test_recursion_gives_parke_and_taylor(n):
    p = events(n - 2)
    kind = {4: "gg_gg", 5: "gg_ggg"}[n]
    process = processes.parse({"kind": kind})
    total = all_helicities(p)
    torch.testing.assert_close(process.factor() * total, process.squared(p), rtol=1e-9, atol=0)
    # colours: keeping the squares only is exact in the sum over all orders but not in this basis
    assert not torch.allclose(
        process.factor() * all_helicities(p, squares=True), process.squared(p), rtol=0.1
    )


def all_helicities(p: torch.Tensor, squares: bool = False) -> torch.Tensor:
    n = p.shape[1]
    words, colours = ring_colours(n)
    mixed = torch.tensor(np.diag(np.diag(colours)) if squares else colours, dtype=torch.complex128)
    both, total = polarisations(p), torch.zeros(len(p), dtype=torch.float64)
    for h in itertools.product((0, 1), repeat=n):
        a = ordered(
            p, torch.stack([both[one, :, g] for g, one in enumerate(h)], 1), [(0, *w, n - 1) for w in words]
        )
        total += torch.einsum("br,rs,bs->b", a, mixed, a.conj()).real
    return total


def ordered(p: torch.Tensor, eps: torch.Tensor, words) -> torch.Tensor:
    sign = p.new_tensor([-1, -1] + [1] * (p.shape[1] - 2))[:, None]
    currents = Currents(sign * p, eps)
    return torch.stack([currents.amplitude(word) for word in words], -1)


def test_six_gluons_by_recursion_are_the_known_helicity_amplitudes():
    """`<12>^4 / (<12> .. <61>)` (Parke, Taylor), and three against three (Britto, Cachazo, Feng, hep-th/0412308)."""
    p = events(4)
    both = polarisations(p)
    angle = products(p)
    ranks = p.new_tensor([-1, -1, 1, 1, 1, 1])
    square = -angle.conj() * ranks[:, None] * ranks[None, :]  # <ij>[ji] = s_ij, with crossed momenta
    k = ranks[:, None] * p

    def s(*legs):
        return kinematics.mass2(k[:, list(legs)].sum(1))

    def sandwich(i, legs, j):
        return sum(angle[:, i, m] * square[:, m, j] for m in legs)

    def amplitude(negative, word):
        eps = torch.stack([both[int(g not in negative), :, g] for g in range(6)], 1)
        return ordered(p, eps, [word])[:, 0]

    word = (0, 3, 1, 5, 2, 4)
    ring = math.prod(angle[:, a, b] for a, b in zip(word, word[1:] + word[:1]))
    torch.testing.assert_close(amplitude((1, 4), word).abs(), (angle[:, 1, 4] ** 4 / ring).abs())
    one, two, three, four, five, six = word
    first = sandwich(one, (two, three), four) ** 3 / (
        square[:, two, three]
        * square[:, three, four]
        * angle[:, five, six]
        * angle[:, six, one]
        * s(two, three, four)
    )
    second = sandwich(three, (four, five), six) ** 3 / (
        square[:, six, one]
        * square[:, one, two]
        * angle[:, three, four]
        * angle[:, four, five]
        * s(three, four, five)
    )
    expected = ((first + second) / sandwich(five, (three, four), two)).abs()
    found = amplitude((one, two, three), word).abs()
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, (first / sandwich(five, (three, four), two)).abs(), rtol=1e-2)


def test_a_photon_decouples_from_six_gluons():
    p = events(4)
    eps = torch.stack([polarisations(p)[h, :, g] for g, h in enumerate((0, 1, 0, 1, 1, 0))], 1)
    rest = (1, 3, 2, 4)
    words = [(0, *rest[:i], 5, *rest[i:]) for i in range(5)]
    amplitudes = ordered(p, eps, words)
    assert (amplitudes.sum(1).abs() < 1e-11 * amplitudes.abs().sum(1)).all()


def test_a_gluon_polarised_along_its_momentum_does_not_couple():
    p = events(4)
    eps = polarisations(p)[0].clone()
    before = ordered(p, eps, [(0, 2, 1, 3, 4, 5)]).abs()
    eps[:, 3] = p[:, 3].to(eps.dtype) / p[:, 3, :1]
    word = ordered(p, eps, [(0, 2, 1, 3, 4, 5)]).abs()
    eps = polarisations(p)[[0, 1, 0, 1, 0, 1], :, range(6)].transpose(0, 1)
    scale = ordered(p, eps, [(0, 2, 1, 3, 4, 5)]).abs()
    assert (before < 1e-10 * scale).all()  # all helicities alike: 0 as well
    assert (word < 1e-10 * scale).all()


@pytest.mark.parametrize("gluons", [0, 1])
def test_recursion_gives_the_closed_forms_of_quark_lines(gluons):
    p = events(2 + gluons)
    if gluons == 1:
        process = processes.parse({"kind": "ee_qqg", "quark": "d"})
        expected, factor = process.squared(p), process.factor()
    else:
        process = processes.parse({"kind": "ee_ff", "fermion": "d", "z": False})
        expected, factor = process.squared(p), (4 * math.pi * ALPHA) ** 2 / 9 / 4
    torch.testing.assert_close(factor * ordered_squares(p), expected, rtol=1e-10, atol=0)


def test_two_gluons_on_a_quark_line_are_the_known_helicity_amplitudes():
    """`A(q+, 1+, 2+, qbar-; e-, e+)` and with one gluon negative (Bern, Dixon, Kosower, hep-ph/9708239, section 8)."""
    p = events(4)
    q, one, two, qbar, em, ep = 2, 4, 5, 3, 0, 1
    angle = products(p)
    ranks = p.new_tensor([-1, -1, 1, 1, 1, 1])
    square = -angle.conj() * ranks[:, None] * ranks[None, :]
    k = ranks[:, None] * p

    def s(*legs):
        return kinematics.mass2(k[:, list(legs)].sum(1))

    def sandwich(i, legs, j):
        return sum(angle[:, i, m] * square[:, m, j] for m in legs)

    def amplitude(helicities, lepton):
        both = polarisations(p[:, 4:])
        eps = torch.stack([both[h, :, g] for g, h in enumerate(helicities)], 1)
        line = QuarkLine(p[:, q], p[:, qbar], Currents(p[:, 4:], eps)).current((0, 1))
        current = vector(spinors(p[:, ep]).conj(), spinors(p[:, em]))
        return (lorentz(line, current if lepton else current.conj()) / s(em, ep)).abs() / 2

    for lepton, (a, b) in ((0, (ep, em)), (1, (em, ep))):
        plus = angle[:, qbar, a] ** 2 / (
            angle[:, q, one] * angle[:, one, two] * angle[:, two, qbar] * angle[:, a, b]
        )
        torch.testing.assert_close(amplitude((1, 1), lepton), plus.abs())
        left, right = sandwich(a, (two, qbar), one), sandwich(two, (q, one), b)
        mixed = (
            left * right / (angle[:, q, one] * square[:, two, qbar])
            - angle[:, two, q]
            * square[:, q, one]
            * angle[:, qbar, a]
            * right
            / (angle[:, q, one] * s(q, one, two))
            + angle[:, two, qbar]
            * square[:, qbar, one]
            * square[:, q, b]
            * left
            / (square[:, two, qbar] * s(one, two, qbar))
        ) / (s(one, two) * s(a, b))
        torch.testing.assert_close(amplitude((1, 0), lepton), mixed.abs())
        left, right = sandwich(a, (one, qbar), two), sandwich(one, (q, two), b)
        mixed = (
            angle[:, one, qbar]
            * angle[:, qbar, a]
            * square[:, q, two]
            * square[:, q, b]
            / (angle[:, two, qbar] * square[:, q, one])
            - angle[:, qbar, a] * square[:, q, two] ** 2 * right / (square[:, q, one] * s(q, one, two))
            + angle[:, one, qbar] ** 2 * square[:, q, b] * left / (angle[:, two, qbar] * s(one, two, qbar))
        ) / (s(one, two) * s(a, b))
        torch.testing.assert_close(amplitude((0, 1), lepton), mixed.abs())
        assert not torch.allclose(amplitude((0, 1), lepton), amplitude((1, 0), lepton), rtol=0.1)


def test_colours_of_a_quark_line_with_two_gluons():
    words, colours = line_colours(2)
    cf, n = 4 / 3, 3
    assert words == [(0, 1), (1, 0)]
    np.testing.assert_allclose(
        colours, 4 * n * cf * np.array([[cf, cf - n / 2], [cf - n / 2, cf]]), atol=1e-12
    )
    _, colours = line_colours(1)
    np.testing.assert_allclose(colours, [[8]], atol=1e-12)


def test_four_jets_factorise_where_a_gluon_is_soft():
    """`|M_4|^2 -> 2 g^2 |M_3|^2 [ (N/2) (E(q, g) + E(qbar, g)) - E(q, qbar) / 2N ]`, `E(a, b) = a.b / (a.k b.k)`."""
    hard = events(3, 4)
    small = 1e-6
    k = small * torch.tensor([3.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    p = torch.cat([hard, k.expand(4, 1, 4)], 1)  # momentum is conserved to order k
    dot = kinematics.dot
    q, qbar, g = hard[:, 2], hard[:, 3], hard[:, 4]

    def eikonal(a, b):
        return dot(a, b) / (dot(a, k) * dot(b, k))

    expected = 2 * (1.5 * (eikonal(q, g) + eikonal(qbar, g)) - eikonal(q, qbar) / 6) * G2
    three = processes.parse({"kind": "ee_qqg", "quark": "u"}).squared(hard)
    found = (
        processes.parse({"kind": "ee_qqgg", "quark": "u"}).squared(p) * 2
    )  # of two gluons that are told apart
    torch.testing.assert_close(found / three, expected, rtol=1e-4, atol=0)
    wrong = 2 * (1.5 * (eikonal(q, g) + eikonal(qbar, g))) * G2  # leading colour
    assert not torch.allclose(found / three, wrong, rtol=1e-2)


def test_six_gluons_do_not_know_which_ones_their_colour_basis_singles_out():
    """Crossing a gluon from in to out only changes signs of momenta, which the sum over all does not know."""
    process = processes.parse({"kind": "gg_gggg"})
    words, colours = ring_colours(6)
    p = events(4)
    eps = torch.stack([polarisations(p)[h, :, g] for g, h in enumerate((0, 1, 0, 1, 1, 0))], 1)
    squares = []
    for first, last in ((0, 5), (2, 1), (3, 4)):
        rest = [g for g in range(6) if g not in (first, last)]
        orders = [(first, *(rest[g - 1] for g in word), last) for word in words]
        a = ordered(p, eps, orders)
        mixed = torch.tensor(colours, dtype=a.dtype)
        squares.append(torch.einsum("br,rs,bs->b", a, mixed, a.conj()).real)
    torch.testing.assert_close(squares[0], squares[1])
    torch.testing.assert_close(squares[0], squares[2])
    assert process.factor() == pytest.approx(G2**4 / 256 / 24)


def test_six_gluons_are_their_sum_over_helicities():
    p = events(4, 2)
    process = processes.parse({"kind": "gg_gggg"})
    torch.testing.assert_close(process.factor() * all_helicities(p), process.squared(p), rtol=1e-9, atol=0)
