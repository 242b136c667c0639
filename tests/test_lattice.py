import itertools

import numpy as np
import pytest
import torch

from latticeflow.errors import InputError
from latticeflow.lattice import Lattice


def group_elements(lattice):
    return list(lattice.point_group())


@pytest.mark.parametrize(
    "shape, order", [((5,), 2), ((8, 8), 8), ((8, 16), 4), ((4, 4, 4), 48), ((2, 4, 4, 6), 32)]
)
def test_point_group_is_that_of_the_shape(shape, order):
    assert len(group_elements(Lattice(shape))) == order


@pytest.mark.parametrize("shape", [(7,), (4, 6), (4, 4), (2, 4, 4)])
def test_orbits_are_those_of_the_group_by_brute_force(shape):
    lattice = Lattice(shape)
    label = lattice.displacement_orbits
    for d in itertools.product(*(range(L) for L in shape)):
        orbit = set()
        for order, flips in lattice.point_group():
            image = [d[axis] for axis in order]
            orbit.add(tuple((-c) % L if flip else c for c, flip, L in zip(image, flips, shape)))
        same = {tuple(e) for e in np.argwhere(label == label[d])}
        assert same == orbit
    assert label.max() + 1 == len(np.unique(label))


def test_8x8_has_15_orbits():
    assert Lattice((8, 8)).displacement_orbits.max() + 1 == 15


def test_shift_reads_the_forward_neighbour():
    lattice = Lattice((3, 4))
    x = torch.arange(12.0).reshape(1, 3, 4)
    for s in itertools.product(range(3), range(4)):
        assert lattice.shift(x, 0)[0][s] == x[0][(s[0] + 1) % 3, s[1]]
        assert lattice.shift(x, 1, -1)[0][s] == x[0][s[0], (s[1] - 1) % 4]


def test_khat2_diagonalises_the_laplacian():
    lattice = Lattice((4, 6))
    k = 2 * np.pi * np.array([1 / 4, 2 / 6])
    wave = np.cos(lattice.coordinates @ k).reshape(4, 6)
    laplacian = sum(np.roll(wave, s, mu) for mu in (0, 1) for s in (1, -1)) - 4 * wave
    np.testing.assert_allclose(laplacian, -lattice.khat2[1, 2] * wave, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (0, 4), (2, 2, 2, 2, 2)])
def test_impossible_shapes(shape):
    with pytest.raises(InputError, match="1 to 4 sides"):
        Lattice(shape)


def test_odd_side_where_parity_is_used():
    with pytest.raises(InputError, match=r"even sides, found \(4, 5\)"):
        Lattice((4, 5)).require_even("a checkerboard coupling")
