"""The Wilson-Dirac operator of U(1) links in two dimensions, r = 1, even-odd preconditioned.

`D = 1 - kappa H`, `(H psi)(x) = sum_mu [ (1 - gamma_mu) U_mu(x) psi(x + mu) + (1 + gamma_mu) U_mu(x - mu)^* psi(x - mu) ]`,

gamma_0 = sigma_1, gamma_1 = sigma_2, gamma_5 = sigma_3, so that `gamma_5 D gamma_5 = D^dagger`, det D real (K. Wilson 1977).
psi is periodic in space, direction 0, and antiperiodic in time, direction 1: there U_1 of the last slice counts with a minus
sign. H leads from even sites to odd ones and back, hence with `M = 1 - kappa^2 H_eo H_oe` on the V / 2 even sites

`det D = det M`, `(D^-1)_ee = M^-1`, `(D^-1)_oe = kappa H_oe M^-1`, `(D^-1)_oo = 1 + kappa^2 H_oe M^-1 H_eo`

(T. DeGrand and P. Rossi, Comput. Phys. Commun. 60 (1990) 211). Spinors of one parity are complex `[batch, V / 2, 2, ...]`,
sites in C order, matrices `[batch, V, V]` with rows `2 site + spin`. Sides must be even.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ..lattice import Lattice

HOPS = 4  # to x + e_0, x - e_0, x + e_1, x - e_1
# 1 -+ gamma_mu of these hops is w w^dagger with w = (1, LOWER)
LOWER = (-1, 1, -1j, 1j)
TURNS = [(k, l) for k in range(HOPS) for l in range(HOPS) if l != k ^ 1]  # hop and back has the spin matrix 0


class Dirac:
    """Tables of one lattice on one device; `phases` and what follows are of a batch of links."""

    def __init__(self, lattice: Lattice, device: torch.device):
        lattice.require_even("the Dirac operator by even and odd sites")
        self.half, self.volume = lattice.volume // 2, lattice.volume
        sites = np.arange(lattice.volume).reshape(lattice.shape)
        place = np.empty(lattice.volume, dtype=np.int64)  # of a site among those of its parity
        self.sites = [sites[lattice.parity == parity] for parity in (0, 1)]
        for own in self.sites:
            place[own] = np.arange(self.half)
        near = np.stack([np.roll(sites, -step, mu).ravel() for mu in (0, 1) for step in (1, -1)], 1)
        every = np.arange(lattice.volume)[:, None]
        start = np.where(np.arange(HOPS) % 2 == 0, every, near)  # of the link that is gone along, or back
        link = start + lattice.volume * (np.arange(HOPS) // 2)
        last = start % lattice.shape[1] == lattice.shape[1] - 1
        boundary = np.where(last & (np.arange(HOPS) // 2 == 1), -1.0, 1.0)

        def on(array: np.ndarray) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        self.near = [
            on(place[near[own]]) for own in self.sites
        ]  # [V / 2, 4], among sites of the other parity
        self.moves = [(HOPS * one + torch.arange(HOPS, device=device)).flatten() for one in self.near]
        self.link = [on(link[own]) for own in self.sites]
        self.boundary = [on(boundary[own]) for own in self.sites]
        self.direction = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64, device=device)
        self.lower = torch.tensor(LOWER, dtype=torch.complex128, device=device)
        self._two_hops(device)

    def _two_hops(self, device: torch.device) -> None:
        """Where in M, flat, the paths of two hops from even sites go, `[V / 2 * 12 * 4]`, and which links they use."""
        first, second = (torch.tensor(one, device=device) for one in zip(*TURNS))
        w = torch.stack([torch.ones_like(self.lower), self.lower], 1)
        spin = w[:, :, None] * w[:, None, :].conj()
        self.first, self.second, self.spin = first, second, spin[first] @ spin[second]
        self.middle = self.near[0][:, first]  # [V / 2, 12]
        end = self.near[1][self.middle, second]
        s = torch.arange(2, device=device)
        rows = (2 * torch.arange(self.half, device=device)[:, None, None, None] + s[:, None]).expand(
            -1, len(TURNS), 2, 2
        )
        columns = (2 * end[..., None, None] + s).expand(-1, -1, 2, 2)
        self.entries = (rows * self.volume + columns).flatten()
        self.transposed = (columns * self.volume + rows).flatten()
        # every link is in six paths: the sum over them is a gather, whose order is fixed on every device
        used = torch.stack([self.link[0][:, first], self.link[1][self.middle, second]]).flatten()
        self.uses = used.argsort(stable=True).view(2 * self.volume, -1)

    def phases(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """U or U^*, with the boundary's sign, of the hops to even and those to odd sites, complex128 `[batch, V / 2, 4]`."""
        theta = x.double().flatten(1)
        found = []
        for link, boundary in zip(self.link, self.boundary):
            angle = theta[:, link] * self.direction
            found.append(boundary * torch.complex(angle.cos(), angle.sin()))
        return found[0], found[1]

    def hop(self, phases: tuple[Tensor, Tensor], parity: int, psi: Tensor) -> Tensor:
        """`H psi` on the sites of `parity`, psi `[batch, V / 2, 2, ...]` on the others."""
        up, down = psi.unsqueeze(2).unbind(3)
        tail = [1] * (up.dim() - 3)
        lower = self.lower.view(-1, *tail)
        half = (up + lower.conj() * down).flatten(1, 2)  # w^dagger psi, before it moves: half the numbers
        moved = half.index_select(1, self.moves[parity]).unflatten(1, (self.half, HOPS))
        along = phases[parity].view(*phases[parity].shape, *tail) * moved
        return torch.stack([along.sum(2), (lower * along).sum(2)], 2)

    def _paths(self, phases: tuple[Tensor, Tensor]) -> Tensor:
        """The phase of each path of two hops, `[batch, V / 2, 12]`."""
        return phases[0][:, :, self.first] * phases[1][:, self.middle, self.second]

    def matrix(self, phases: tuple[Tensor, Tensor], kappa: float) -> Tensor:
        """M, `[batch, V, V]`; differentiable."""
        values = -(kappa**2) * self._paths(phases)[..., None, None] * self.spin
        one = torch.eye(self.volume, dtype=values.dtype, device=values.device).flatten()
        m = one.expand(len(values), -1).index_add(1, self.entries, values.flatten(1))
        return m.view(-1, self.volume, self.volume)

    def log_det_gradient(self, phases: tuple[Tensor, Tensor], kappa: float, inverse: Tensor) -> Tensor:
        """`d/dtheta log |det D|^2 = 2 Re tr[ M^-1 dM/dtheta ]`, float64 `[batch, 2 V]`, from `inverse` = M^-1."""
        paths = self._paths(phases)
        found = inverse.flatten(1)[:, self.transposed].view(*paths.shape, 2, 2)
        # dM = -i kappa^2 (phase) (spin) d(angle of the path)
        return self._to_links(2 * kappa**2 * (paths * (found * self.spin).sum((-2, -1))).imag)

    def bilinear_gradient(
        self, phases: tuple[Tensor, Tensor], kappa: float, left: Tensor, right: Tensor
    ) -> Tensor:
        """`d/dtheta 2 Re[ X^dagger M Y ]`, float64 `[batch, 2 V]`, X = `left`, Y = `right` `[batch, V / 2, 2]` fixed."""
        ends = right[:, self.near[1][self.middle, self.second]]  # [batch, V / 2, 12, 2]
        found = torch.einsum("bes,pst,bept->bep", left.conj(), self.spin, ends)
        return self._to_links(2 * kappa**2 * (self._paths(phases) * found).imag)

    def _to_links(self, of_paths: Tensor) -> Tensor:
        """From derivatives by the angles of paths, `[batch, V / 2, 12]`, to those by links."""
        both = [of_paths * self.direction[k] for k in (self.first, self.second)]
        return torch.stack(both, 1).flatten(1)[:, self.uses].sum(-1)

    def propagator(self, phases: tuple[Tensor, Tensor], kappa: float) -> Tensor:
        """`D^-1`, `[batch, V, 2, V, 2]`, sites in C order."""
        shape = (-1, self.half, 2, self.half, 2)
        ee = torch.linalg.inv(self.matrix(phases, kappa))
        oe = kappa * self.hop(phases, 1, ee.view(-1, self.half, 2, self.volume))
        gamma5 = torch.tensor([1.0, -1.0], dtype=torch.float64, device=ee.device)
        oe = oe.reshape(shape)
        eo = gamma5[:, None, None] * oe.conj().permute(0, 3, 4, 1, 2) * gamma5
        oo = kappa * self.hop(phases, 1, eo.reshape(-1, self.half, 2, self.volume)).reshape(ee.shape)
        oo = oo + torch.eye(self.volume, dtype=ee.dtype, device=ee.device)
        rows = [torch.cat([ee.view(shape), eo], 3), torch.cat([oe, oo.view(shape)], 3)]
        order = torch.from_numpy(np.argsort(np.concatenate(self.sites))).to(ee.device)
        return torch.cat(rows, 1)[:, order][:, :, :, order]


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # cached inference tensors could not be used in a backward pass later
def dirac(lattice: Lattice, device: torch.device) -> Dirac:
    """The tables of a lattice on a device."""
    return Dirac(lattice, device)


def gamma(mu: int) -> Tensor:
    """`gamma_mu`, complex128 `[2, 2]`."""
    return torch.tensor([[0, 1], [1, 0]] if mu == 0 else [[0, -1j], [1j, 0]], dtype=torch.complex128)


def pieces(x: Tensor, numbers: int) -> tuple[Tensor, ...]:
    """x in pieces of so many configurations that `numbers` complex ones of each of them stay within some 64 MB."""
    return x.split(max(1, (1 << 22) // numbers))


def free_eigenvalues(shape: tuple[int, ...], kappa: float) -> np.ndarray:
    """Eigenvalues of D at U = 1, complex `[2 V]`: `1 - 2 kappa sum_mu cos p_mu +- 2 i kappa sqrt(sum_mu sin^2 p_mu)`,

    p_0 = 2 pi n / L_0, p_1 = 2 pi (n + 1/2) / L_1.
    """
    p0 = 2 * math.pi * np.arange(shape[0])[:, None] / shape[0]
    p1 = 2 * math.pi * (np.arange(shape[1])[None] + 0.5) / shape[1]
    real = 1 - 2 * kappa * (np.cos(p0) + np.cos(p1))
    imag = 2 * kappa * np.sqrt(np.sin(p0) ** 2 + np.sin(p1) ** 2)
    return np.stack([real + 1j * imag, real - 1j * imag]).ravel()
