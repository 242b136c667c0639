"""Colour flows: singlets, whose orders follow the poles of the amplitude."""

import math

import numpy as np
import pytest

from latticeflow.collider.colour_flow import FIRST, colour_flow
from latticeflow.errors import InputError


def singlet(ids, incoming, tags):
    """Every tag connects a colour with an anticolour, as if all were outgoing, and particles carry what they may."""
    out = np.where(np.arange(len(ids))[:, None] < incoming, tags[:, ::-1], tags)
    colours, antis = sorted(t for t in out[:, 0] if t), sorted(t for t in out[:, 1] if t)
    assert colours == antis == list(range(FIRST, FIRST + len(colours)))
    for at, (code, pair) in enumerate(zip(ids, tags)):
        wanted = {21: (True, True)}.get(
            code, (0 < code <= 6, -6 <= code < 0) if abs(code) <= 6 else (False, False)
        )
        assert (pair[0] > 0, pair[1] > 0) == wanted, (at, code, pair)
        assert not (code == 21 and pair[0] == pair[1])


@pytest.mark.parametrize(
    "ids",
    [
        (11, -11, 1, -1),
        (11, -11, 2, -2, 21, 21),
        (21, 21, 21, 21),
        (21, 21, 21, 21, 21),
        (2, -2, 11, -11),
        (-1, 1, 22, 22),
        (21, 1, 21, 1),
        (1, 2, 1, 2, 21),
        (2212, 2212, 22, 22),
    ],
)
def test_colours_are_singlets(ids):
    rng = np.random.default_rng(3)
    p = rng.normal(size=(50, len(ids), 4))
    p[..., 0] = np.sqrt(np.square(p[..., 1:]).sum(-1))
    tags = colour_flow(ids, 2, p, rng.random(50))
    for one in tags:
        singlet(ids, 2, one)


def test_colour_orders_follow_the_poles():
    """q qbar g g: shares of the two orders by hand; what is no singlet is refused."""
    rng, n = np.random.default_rng(4), 20_000
    p = rng.normal(size=(1, 6, 4))
    p[..., 0] = np.sqrt(np.square(p[..., 1:]).sum(-1))
    s = lambda i, j: p[0, i, 0] * p[0, j, 0] - p[0, i, 1:] @ p[0, j, 1:]  # noqa: E731
    one = 1 / (s(2, 4) * s(4, 5) * s(5, 3))
    two = 1 / (s(2, 5) * s(5, 4) * s(4, 3))
    tags = colour_flow((11, -11, 1, -1, 21, 21), 2, np.repeat(p, n, axis=0), rng.random(n))
    share = (tags[:, 4, 1] == tags[:, 2, 0]).mean()  # gluon 4 next to the quark
    expected = one / (one + two)
    assert share == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))
    assert 0.02 < expected < 0.98
    for bad in [(11, -11, 21, 22), (11, -11, 1, 21), (1, 1, 2, 2, 2)]:
        with pytest.raises(InputError, match="no colour flow"):
            colour_flow(bad, 2, np.repeat(p[:, : len(bad)], 2, axis=0), rng.random(2))
