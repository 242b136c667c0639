"""Our VEGAS grid beside that of the `vegas` package (extra `bench`, which tests do not install: GPL)."""

import math

import numpy as np
import pytest
import torch

from latticeflow.collider import MatrixElement
from latticeflow.random import Purpose, stream
from latticeflow.samplers.vegas import FlatSpec, VegasSpec
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import Camel

torch.set_num_threads(1)
JETS = MatrixElement(
    process={"kind": "ee_qqg", "quark": "u"}, energy=91.2, phase_space="rambo", cuts={"y_min": 0.02}
)
DRAWS = 200_000


def by_package(vegas, target):
    """Log-weights of uniform points through the map that the package adapts, without its strata."""
    rng = np.random.default_rng(3)

    @vegas.lbatchintegrand
    def integrand(x):
        return target.log_prob(torch.from_numpy(np.array(x))).exp().numpy()

    integrator = vegas.Integrator([[0.0, 1.0]] * target.dim, ran_array_generator=rng.random)
    integrator(integrand, nitn=10, neval=20_000)
    y, x, jac = rng.random((DRAWS, target.dim)), np.empty((DRAWS, target.dim)), np.empty(DRAWS)
    vegas.AdaptiveMap(integrator.map).map(y, x, jac)
    return target.log_prob(torch.from_numpy(x).clamp(0, 1)).numpy() + np.log(jac)


def ours(spec, target):
    return spec.build(target).draw(None, DRAWS, stream(3, Purpose.DRAW, 0))[0].log_w


def deviation(log_w):
    return math.sqrt(1 / summarise_weights(log_w).ess - 1)


@pytest.mark.parametrize("target", [JETS, Camel(dimensions=4)], ids=["jets", "camel"])
def test_the_same_integral_and_as_small_weights(target):
    vegas = pytest.importorskip("vegas")
    package, grid = by_package(vegas, target), ours(VegasSpec(), target)
    a, b = summarise_weights(package), summarise_weights(grid)
    assert abs(a.log_z - b.log_z) < 4 * math.hypot(a.log_z_error, b.log_z_error)
    assert deviation(grid) < 1.1 * deviation(package)
    assert deviation(ours(FlatSpec(), target)) > 1.3 * deviation(package)  # control: without a grid
