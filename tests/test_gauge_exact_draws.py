"""Exact draws of U(1) in two dimensions against the character expansion, which knows nothing of them."""

import math

import numpy as np
import pytest
from tables import rng

from latticeflow import exact
from latticeflow.errors import InputError
from latticeflow.observables import measure
from latticeflow.samplers.exact import ExactSpec
from latticeflow.targets import Schwinger, Wilson
from latticeflow.transforms.plaquettes import independent

N = 40000


def pulls(target, x):
    """Of the plaquette, of loops of area 4 and of the probabilities of |Q| = 0 and 1, in standard errors."""
    shape, beta = target.shape, target.beta
    found = measure(target, x, "plaquette", "wilson_loops", "charge")
    q, p = exact.charges(shape, beta)
    rows = [
        (found["plaquette"], exact.plaquette("u1", shape, beta)),
        (found["wilson_loops"][:, 2], exact.wilson_loop("u1", shape, beta, 4)),
        *((np.abs(found["charge"]) == k, p[np.abs(q) == k].sum()) for k in range(2)),
    ]
    return np.array([(row.mean() - value) / (row.std() / math.sqrt(len(row))) for row, value in rows])


@pytest.mark.parametrize("shape, beta", [((4, 4), 0.0), ((4, 4), 1.0), ((4, 6), 3.0), ((6, 4), 7.0)])
def test_exact_draws(shape, beta):
    target = Wilson(shape=shape, group="u1", beta=beta)
    draws, _ = ExactSpec().build(target).draw(None, N, rng(1))
    assert np.abs(pulls(target, draws.x)).max() < 4
    assert np.allclose(draws.log_w, exact.log_z("u1", shape, beta))
    assert (
        draws.x.mean(0).abs().max() < 4 * math.pi / math.sqrt(3 * N) * 1.2
    )  # links of no direction: gauge is uniform


def test_without_the_rejection_they_are_off():
    target = Wilson(shape=(4, 6), group="u1", beta=3.0)
    assert np.abs(pulls(target, independent(N, target.shape, target.beta, rng(1)))).max() > 20


@pytest.mark.parametrize(
    "target",
    [
        Wilson(shape=(4, 4), group="su2", beta=2.0),
        Wilson(shape=(4, 4, 4), group="u1", beta=2.0),
        Schwinger(shape=(4, 4), beta=2.0, kappa=0.2),
    ],
)
def test_others_are_refused(target):
    with pytest.raises(InputError, match=f"'{target.kind}' cannot be sampled exactly.*u1 in two dimensions"):
        ExactSpec().build(target)
