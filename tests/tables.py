"""One row for each constructor: the registry-driven tests run over these. A newcomer adds a file and a row."""

import numpy as np
import torch

from latticeflow.flows import Affine, AffineCoupling, Continuous, Split, SplitLayer, Symmetrised, Tutorial
from latticeflow.flows.networks import conv_net
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.targets import FreeField, Phi4, Schwinger, Wilson
from latticeflow.transforms.harmonic import HarmonicMap, harmonic_inverse

TARGETS = {
    "phi4": [
        Phi4(shape=(6,), m2=0.5, lam=1.0),
        Phi4(shape=(4, 4), m2=-4.0, lam=8.0),
        Phi4(shape=(2, 6), m2=-4.0, lam=6.0),
        Phi4(shape=(2, 3, 4), m2=-1.0, lam=0.7),
        Phi4(shape=(2, 2, 4, 3), m2=0.0, lam=2.0),
    ],
    "free": [
        FreeField(shape=(5,), m2=0.3),
        FreeField(shape=(4, 6), m2=1.0),
        FreeField(shape=(2, 3, 4, 2), m2=2.0),
    ],
    "wilson": [
        Wilson(shape=(4, 6), group="u1", beta=2.0),
        Wilson(shape=(2, 3, 4), group="u1", beta=1.3),
        Wilson(shape=(3, 4), group="su2", beta=2.2),
        Wilson(shape=(2, 2, 3, 2), group="su2", beta=1.0),
        Wilson(shape=(3, 3), group="su3", beta=6.0),
        Wilson(shape=(2, 3, 2, 2), group="su3", beta=5.5),
    ],
    "schwinger": [
        Schwinger(shape=(4, 4), beta=2.0, kappa=0.276),
        Schwinger(shape=(2, 6), beta=1.0, kappa=0.2),
    ],
}
SCALARS = ("phi4", "free")

FLOWS = {
    "split": [
        (Split(layers=3, sines=3, site_sines=2, modes=3), (4, 4), True),
        (Split(layers=2, modes=1, base="white"), (2, 6), True),
        (Split(layers=2, sines=1, psi_sines=1, modes=3), (6,), True),
        (Split(layers=2, modes=3), (2, 2, 4), True),
        (Split(layers=1, modes=3), (2, 2, 2, 2), True),
        (Split(layers=2, modes=3, base="mean_field"), (4, 4), True),
    ],
    "continuous": [
        (Continuous(modes=3, steps=20, solver="rk6"), (5,), True),
        (Continuous(sines=3, modes=2, steps=15, solver="rk6", base="white"), (4, 6), True),
        (Continuous(sines=2, modes=3, steps=16, solver="rk6"), (2, 4, 3), True),
        (Continuous(sines=1, modes=1, steps=24), (2, 2, 2, 2), True),
    ],
    "affine": [
        (Affine(layers=2, hidden=(3,)), (6,), False),
        (Affine(layers=3, hidden=(3, 2), z2=True), (4, 4), True),
        (Affine(layers=2, hidden=(2,), base="white"), (2, 4, 2), False),
        (Affine(layers=2, hidden=(2,), z2=True), (2, 2, 2, 4), True),
    ],
    "tutorial": [(Tutorial(layers=4), (4, 4), False)],
    "symmetrised": [(Symmetrised(flow=Affine(layers=3, hidden=(3,))), (4, 4), True)],
}


def rng(*key: int) -> np.random.Generator:
    return stream(20261123, Purpose.ANALYSIS, *key)


def field(shape, *key: int, n: int = 3, scale: float = 0.7) -> torch.Tensor:
    return torch.from_numpy(rng(*key).normal(size=(n, *shape)) * scale)


def scramble(module: torch.nn.Module, *key: int, scale: float = 0.3) -> torch.nn.Module:
    """The module in float64 with every parameter moved off its start, so that nothing is trivially zero."""
    module = module.double()
    generator = rng(*key)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += torch.as_tensor(generator.normal(size=tuple(parameter.shape)) * scale)
    return module


def layers():
    """(name, layer, shape) of every layer kind, scrambled."""
    for shape, sines in [((6,), 3), ((4, 4), 2), ((4, 6), 3), ((2, 2, 2), 1)]:
        layer = SplitLayer(Lattice(shape), 3, sines, 2, 1, 2, [0.9, 0.7])
        yield f"split-{shape}", scramble(layer, 2), shape
    for shape, z2 in [((6,), False), ((4, 4), True), ((2, 2, 4), False), ((2, 2, 2, 2), True)]:
        net = conv_net(len(shape), [1, 3, 2], 3, rng(3))
        yield f"affine-{shape}-{z2}", scramble(AffineCoupling(Lattice(shape), 0, net, z2), 4), shape


def harmonic_map(x, *parameters):
    """g site by site of x `[batch, n]`, and its log-det."""
    g = HarmonicMap(x.T, *parameters)
    return g.value().T, g.first().log().sum(0)


def harmonic_map_inverse(y, *parameters):
    x = harmonic_inverse(y.T, *parameters)
    return x.T, -HarmonicMap(x, *parameters).first().log().sum(0)
