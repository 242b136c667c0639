"""Sums of phase-space maps: density, permutations, weights by Kleiss and Pittau, bad settings."""

import math

import pytest
import torch
from test_phase_space import E, build, off, points

from latticeflow.collider.phase_space import optimise_weights, phase_spaces
from latticeflow.collider.phase_space.frames import excess
from latticeflow.collider.phase_space.rambo import massless_volume
from latticeflow.errors import InputError, NumericalError
from latticeflow.random import Purpose, stream

MASSES = (0.0, 0.0, 0.0)
LINE = {"particles": [0, 1], "kind": "breit_wigner", "mass": 40.0, "width": 1.0}
DECAY = {"kind": "sequential", "tree": [[0, 1], 2], "propagators": [LINE]}
TABLE = {
    "kind": "multi_channel",
    "channels": [{"kind": "rambo"}, DECAY, {**DECAY, "permutation": [1, 2, 0]}],
    "weights": [1, 2, 3],
}


def lines(p):
    """Two resonances of unequal strength, of particles 0 and 1 and of 1 and 2."""
    pairs = 2 * excess(p, p.new_zeros(3))

    def one(s):
        return 1 / ((s - 1600).square() + 1600)

    return one(pairs[:, 0, 1]) + 3 * one(pairs[:, 1, 2])


def weights_of(space, number=20_000):
    p, log_jac = space.forward(*points(space, number, seed=4))
    return lines(p) * log_jac.exp()


def test_density_is_the_sum_of_its_channels():
    """`|du/dPhi|` against the channels' own maps, called by hand with the particles renamed; momentum and volume."""
    space = build(TABLE, MASSES)
    assert space.dim == 6
    assert space.periodic == (3, 5)
    u, energy = points(space, 20_000)
    p, log_jac = space.forward(u, energy)
    flat, decay = build({"kind": "rambo"}, MASSES), build(DECAY, MASSES)
    renamed = p[:, [1, 2, 0]]
    density = sum(
        share * each.inverse(q)[1].exp()
        for share, each, q in ((1 / 6, flat, p), (2 / 6, decay, p), (3 / 6, decay, renamed))
    )
    assert (log_jac + density.log()).abs().max() < 1e-9
    assert (p.sum(1)[:, 1:]).abs().max() < 1e-11
    assert off(log_jac.exp(), massless_volume(3, E)) < 3.5
    only = build(DECAY, MASSES).forward(u[:, 1:], energy)[1]  # one channel's density for all: not the sum
    assert off(torch.where(u[:, 0] < 0.5, only, log_jac).exp(), massless_volume(3, E)) > 5


def test_first_coordinate_picks_the_channel_by_its_weight():
    space = build(TABLE, MASSES)
    u, energy = points(space, 600)
    u[:, 0] = torch.linspace(0.0005, 0.9995, 600, dtype=u.dtype)
    p, _ = space.forward(u, energy)
    flat, _ = build({"kind": "rambo"}, MASSES).forward(u[:100, 1:], energy[:100])
    decay, _ = build(DECAY, MASSES).forward(u[100:, 1:], energy[100:])
    assert torch.equal(p[:100], flat)
    assert torch.equal(p[100:300], decay[:200])
    assert torch.equal(p[300:, [1, 2, 0]], decay[200:])


def test_inverse_leads_back_to_the_momenta():
    space = build(TABLE, MASSES)
    u, energy = points(space, 2000)
    p, log_jac = space.forward(u, energy)
    v, back = space.inverse(p)
    again, same = space.forward(v, energy)
    assert (again - p).abs().max() < 1e-8 * E
    assert (back + log_jac).abs().max() < 1e-9
    assert (same - log_jac).abs().max() < 1e-7


def test_masses_go_with_the_particles():
    space = build(
        {"kind": "multi_channel", "channels": [{"kind": "rambo", "permutation": [2, 0, 1]}]}, (1.0, 2.0, 30.0)
    )
    p, log_jac = space.forward(*points(space, 20_000))
    mass = (p[..., 0].square() - p[..., 1:].square().sum(-1)).clamp(min=0).sqrt()
    assert (mass - torch.tensor([1.0, 2.0, 30.0], dtype=p.dtype)).abs().max() < 1e-5
    reference = build({"kind": "rambo"}, (1.0, 2.0, 30.0))
    assert off(log_jac.exp(), float(reference.forward(*points(reference, 400_000))[1].exp().mean())) < 3.5


def test_a_channel_that_does_not_reach_everywhere():
    """A sharp antenna beside RAMBO: density 0 of the one outside, and the sum still gives the volume."""
    sharp = {"kind": "antenna", "y_min": 0.1, "sharp": True}
    space = build({"kind": "multi_channel", "channels": [sharp, {"kind": "rambo"}]}, MASSES)
    p, log_jac = space.forward(*points(space, 40_000))
    assert torch.isfinite(log_jac).all()
    assert off(log_jac.exp(), massless_volume(3, E)) < 3.5
    outside = ~torch.isfinite(space.log_densities(p)[:, 0])
    assert 0.1 < outside.double().mean() < 0.5
    assert (log_jac.exp()[outside] / (2 * massless_volume(3, E)) - 1).abs().max() < 1e-12


def test_weights_that_fit_the_integrand():
    """Kleiss and Pittau: the variance falls, the integral stays, the stronger line gets more, the same stream the same."""
    spec = phase_spaces.parse({**TABLE, "weights": [6, 2, 1]})
    best = optimise_weights(spec, MASSES, E, lines, stream(7, Purpose.INIT))
    before, after = weights_of(spec.build(MASSES)), weights_of(best.build(MASSES))
    assert after.std() < 0.3 * before.std()
    spread = math.hypot(float(before.std()), float(after.std())) / 20_000**0.5
    assert abs(float(before.mean() - after.mean())) < 3.5 * spread
    assert sum(best.weights) == pytest.approx(1)
    assert min(best.weights) > 1e-3 * (1 - 1e-9)
    # lines of strength 1 and 3 apart: their integrals are as 1 to 3, and so are the best weights
    assert best.weights[2] / best.weights[1] == pytest.approx(3, rel=0.15)
    assert best.weights[0] < 0.1
    assert optimise_weights(spec, MASSES, E, lines, stream(7, Purpose.INIT)).weights == best.weights
    assert optimise_weights(spec, MASSES, E, lines, stream(8, Purpose.INIT)).weights != best.weights


def test_best_weights_are_a_minimum():
    """No step away from them lowers the second moment on an independent sample by more than its noise."""
    spec = optimise_weights(
        phase_spaces.parse(TABLE), MASSES, E, lines, stream(7, Purpose.INIT), draws=20_000
    )
    least = float(weights_of(spec.build(MASSES)).square().mean())
    for i in range(3):
        moved = [w * (1.5 if k == i else 1.0) for k, w in enumerate(spec.weights)]
        other = spec.model_copy(update={"weights": tuple(moved)})
        assert float(weights_of(other.build(MASSES)).square().mean()) > 0.995 * least
    flat = phase_spaces.parse({**TABLE, "weights": [1, 0, 0]})
    assert float(weights_of(flat.build(MASSES)).square().mean()) > 5 * least


def test_weights_for_what_cannot_be_integrated():
    spec = phase_spaces.parse(TABLE)

    def run(integrand, **settings):
        return optimise_weights(spec, MASSES, E, integrand, stream(1, Purpose.INIT), draws=100, **settings)

    with pytest.raises(InputError, match="is 0 at all"):
        run(lambda p: 0 * p[:, 0, 0])
    for bad in (math.nan, -1.0, math.inf):
        with pytest.raises(NumericalError, match="finite"):
            run(lambda p, bad=bad: 0 * p[:, 0, 0] + bad)
    with pytest.raises(InputError, match="least"):
        run(lines, least=0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": []}, "at least 1"),
        ({"channels": [{"kind": "ramboo"}]}, "did you mean 'rambo'"),
        ({"channels": [{"kind": "rambo", "m": 1}]}, "unknown key"),
        ({"channels": [{"kind": "rambo"}], "weights": [1, 2]}, "of 1 channels"),
        ({"channels": [{"kind": "rambo"}, {"kind": "rambo"}], "weights": [1, -2]}, "none negative"),
        ({"channels": [{"kind": "rambo"}, {"kind": "rambo"}], "weights": [0, 0]}, "not all 0"),
        ({"channels": [{"kind": "rambo", "permutation": [0, 0, 1]}]}, "order of the 3 particles"),
        ({"channels": [{"kind": "rambo", "permutation": [0, 1]}]}, "order of the 3 particles"),
        ({"channels": [TABLE]}, "itself multi_channel"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        build({"kind": "multi_channel", **settings}, MASSES)


def test_table_of_a_deck_comes_back():
    spec = phase_spaces.parse(TABLE)
    table = phase_spaces.table(spec)
    assert table["channels"][2]["permutation"] == [1, 2, 0]
    assert phase_spaces.parse(table) == spec
