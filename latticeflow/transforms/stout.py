"""The move of a link along the gradient of its plaquettes, and its Jacobian (stout smearing, hep-lat/0311018; 2412.00200).

`U' = exp(i v_a T_a) U`, `v_a = rho d_a Re tr W`, `W = U A`, A the sum of the link's staples, which is held fixed. To first
order in `exp(i eps_b T_b)` in front of U, `v_a` changes by `M_ab eps_b` and U' by `exp(i J_ab eps_b T_a)`,

`M_ab = -rho Re tr(T_a T_b W)`,  `J = e^K + Phi(K) M`,  `Phi(z) = (e^z - 1) / z`,  `K_cb = -f_abc v_a`,

K the adjoint of `i v_a T_a`: real and antisymmetric, so that with respect to Haar's measure

`log |det J| = log det [ 1 + Phi(-K) M ]`,

a determinant of N^2 - 1 rows for each link, exact. `|M| <= |rho| |A| / 2` and `|Phi| <= 1`: with k staples J is regular
wherever `|rho| < 2 / k`, and as the map can be drawn back to the identity it is then one-to-one on the whole group.
"""

from functools import lru_cache

import torch
from torch import Tensor

from ..groups import GROUPS, SU

TERMS = 40  # of the series of Phi, at most: enough for |K| of order 10


def move(group: SU, u: Tensor, a: Tensor, rho: Tensor) -> tuple[Tensor, Tensor]:
    """`(U', log |det J|)`, `[..., N, N]` and `[...]`, of links u and their staples a `[..., N, N]`; rho: one number."""
    w = u @ a
    v = rho * group.gradient(w)
    size = group.generators
    structure, products = _tables(group.name)
    k = (v @ structure.to(v)).unflatten(-1, (size, size))
    numbers = torch.view_as_real(w.resolve_conj()).flatten(-3)
    m = (-rho * (numbers @ products.to(v))).unflatten(-1, (size, size))
    jacobian = torch.eye(size, dtype=v.dtype, device=v.device) + _phi_of_minus(k, v, m)
    return group.exp(v) @ u, torch.linalg.slogdet(jacobian).logabsdet


def _phi_of_minus(k: Tensor, v: Tensor, m: Tensor) -> Tensor:
    """`Phi(-K) M = sum_n (-K)^n M / (n + 1)!`, to rounding; `|K| <= |v|`."""
    largest = float(torch.linalg.vector_norm(v.detach(), dim=-1).max()) if v.numel() else 0.0
    term = total = m
    size = 1.0
    for n in range(1, TERMS):
        size *= largest / (n + 1)
        if size < torch.finfo(v.dtype).eps:
            break
        term = (k @ term) * (-1 / (n + 1))
        total = total + term
    return total


@lru_cache
def _tables(name: str) -> tuple[Tensor, Tensor]:
    """float64: `-f_abc`, `[a, (c, b)]`, and weights of `Re tr(T_a T_b W)` in the real numbers of W, `[2 N^2, (a, b)]`."""
    t = next(group for group in GROUPS.values() if group.name == name).basis  # type: ignore[attr-defined]
    pairs = torch.einsum("aij,bjk->abik", t, t)
    commutators = 1j * (pairs - pairs.transpose(0, 1))  # i [T_a, T_b] = -f_abc T_c
    structure = 2 * torch.einsum("cij,abji->acb", t, commutators).real
    turned = pairs.mT  # Re tr(G W) = sum_ij Re G_ji Re W_ij - Im G_ji Im W_ij
    weights = torch.stack([turned.real, -turned.imag], -1)
    return structure.flatten(1).contiguous(), weights.flatten(2).permute(2, 0, 1).flatten(1).contiguous()
