"""Convolution between sublattices, against sums over sites."""

import numpy as np
import pytest
import torch
from tables import rng

from latticeflow.errors import InputError
from latticeflow.lattice import Lattice
from latticeflow.transforms.sublattices import (
    bases,
    eigenvalues,
    parities,
    site_order,
    to_momentum,
    to_position,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("dense", [1, 100], ids=["axis by axis", "one matrix"])
@pytest.mark.parametrize("shape", [(6,), (8,), (2, 4), (6, 8), (10, 4), (2, 4, 6), (4, 2, 2, 2)])
def test_couplings_are_sums_over_sites(shape, dense, monkeypatch):
    monkeypatch.setattr("latticeflow.transforms.sublattices.DENSE", dense)
    bases.cache_clear()
    lattice, n = Lattice(shape), 2 ** len(shape)
    orbits = lattice.displacement_orbits
    kernel = torch.from_numpy(rng(1).normal(size=int(orbits.max()) + 1))
    sites = site_order(lattice).reshape(n, -1)
    basis = bases(lattice, torch.float64, CPU)
    table = eigenvalues(lattice, torch.float64, CPU)
    x = torch.from_numpy(rng(2).normal(size=(sites.shape[1], 3)))
    for a in range(n):
        for b in range(n):
            d = (lattice.coordinates[sites[a], None] - lattice.coordinates[sites[b]][None]) % np.array(shape)
            expected = kernel[torch.from_numpy(orbits[tuple(np.moveaxis(d, -1, 0))])] @ x
            momentum = (kernel @ table[a ^ b])[:, None] * to_momentum(basis[b], x)
            torch.testing.assert_close(to_position(basis[a], momentum), expected)
            wrong = (kernel @ table[a ^ b ^ 1])[:, None] * to_momentum(basis[b], x)
            assert not torch.allclose(to_position(basis[a], wrong), expected)  # negative control
    bases.cache_clear()


@pytest.mark.parametrize("shape", [(8,), (6, 4), (2, 2, 4)])
def test_sites_and_bases(shape):
    lattice = Lattice(shape)
    order = site_order(lattice).reshape(2 ** len(shape), -1)
    for sites, parity in zip(order, parities(lattice)):
        assert (lattice.coordinates[sites] % 2 == parity).all() and (np.diff(sites) > 0).all()
    for matrices in bases(lattice, torch.float64, CPU):
        for m in matrices:
            torch.testing.assert_close(m @ m.T, torch.eye(len(m), dtype=torch.float64))


def test_odd_sides_are_refused():
    with pytest.raises(InputError, match="even sides"):
        site_order(Lattice((4, 5)))
