"""Jets by sequential recombination: the closest pair is merged, by adding four-momenta (E scheme), again and again.

All events of a batch at once, in n steps for n particles. Momenta `[batch, n, 4]`, (E, px, py, pz).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import InputError
from . import kinematics

_MEASURES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "jade": kinematics.jade,
    "durham": kinematics.durham,
}


def _check(p: Tensor, what: str) -> None:
    if p.dim() != 3 or p.shape[2] != 4 or p.shape[1] < 1:
        raise InputError(f"{what}: momenta of shape {list(p.shape)}; expected [batch, n, 4]")


def _distances(p: Tensor, alive: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Of all pairs i < j, `[batch, n, n]`, infinite elsewhere and for what is no longer there."""
    n = p.shape[1]
    i, j = kinematics.pair_indices(n)
    found = p.new_full((len(p), n, n), torch.inf)
    found[:, i, j] = torch.where(alive[:, i] & alive[:, j], measure(p[:, i], p[:, j]), torch.inf)
    return found


def _merge(p: Tensor, alive: Tensor, i: Tensor, j: Tensor, which: Tensor) -> None:
    """Add particle j to i in the events `which`, in place."""
    rows = which.nonzero()[:, 0]
    p[rows, i[rows]] += p[rows, j[rows]]
    alive[rows, j[rows]] = False


def _sorted(p: Tensor, alive: Tensor, by: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.where(alive, by, -torch.inf).argsort(stable=True, dim=1, descending=True)
    jets = torch.where(alive[..., None], p, torch.zeros_like(p))
    return jets.gather(1, order[..., None].expand_as(jets)), alive.sum(1)


def transitions(p: Tensor, energy: Tensor, measure: str) -> Tensor:
    """`y_(m, m+1)` of merging m + 1 jets to m by the measure "jade" or "durham", for m = 1 .. n - 1, `[batch, n - 1]`.

    energy `[batch]`: of the centre of mass. Column m - 1 holds `y_(m, m+1)`: the third, fourth, ... are y_34, y_45; y_23 is
    column 1. Not always ordered: a merged jet may be closer than its parts were. Raises `InputError` for unknown measures.
    """
    _check(p, "transitions")
    jets, alive = p.clone(), torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
    found = []
    for _ in range(p.shape[1] - 1):
        least, i, j = _closest(jets, alive, energy, measure)
        found.append(least)
        _merge(jets, alive, i, j, torch.ones_like(least, dtype=torch.bool))
    return torch.stack(found[::-1], 1)


def exclusive(p: Tensor, energy: Tensor, y_cut: float, measure: str) -> tuple[Tensor, Tensor]:
    """Jets `[batch, n, 4]`, the most energetic first and 0 behind the last, and their number `[batch]`, merged while the
    least

    y of a pair is below `y_cut`.
    """
    _check(p, "exclusive")
    jets, alive = p.clone(), torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
    for _ in range(p.shape[1] - 1):
        least, i, j = _closest(jets, alive, energy, measure)
        _merge(jets, alive, i, j, least < y_cut)
    return _sorted(jets, alive, jets[..., 0])


def _closest(p: Tensor, alive: Tensor, energy: Tensor, measure: str) -> tuple[Tensor, Tensor, Tensor]:
    if measure not in _MEASURES:
        raise InputError(f"jets by '{measure}'; known: {', '.join(_MEASURES)}")
    of = _MEASURES[measure]
    flat = _distances(p, alive, lambda a, b: of(a, b, energy[:, None])).flatten(1)
    least, at = flat.min(1)
    return least, at // p.shape[1], at % p.shape[1]


def inclusive(p: Tensor, radius: float, power: float, pt_min: float = 0.0) -> tuple[Tensor, Tensor]:
    """Jets of hadron colliders by the generalised kT algorithm (Cacciari, Salam, Soyez, 0802.1189), as of `exclusive`:

        d_ij = min(pT_i^2p, pT_j^2p) (Delta R_ij / R)^2,    d_iB = pT_i^2p,

    p = `power`: 1 kT, 0 Cambridge/Aachen, -1 anti-kT. While anything is left: merge the pair of the least d_ij, or, where
    a d_iB is smaller, call that one a jet. Jets below `pt_min` (GeV) are dropped; the hardest comes first. Raises
    `InputError` unless R > 0 and pt_min >= 0."""
    _check(p, "inclusive")
    if not radius > 0 or not pt_min >= 0:
        raise InputError(f"jets with R = {radius}, pt_min = {pt_min}; expected R > 0 and pt_min >= 0")

    def distance(a: Tensor, b: Tensor) -> Tensor:
        scale = torch.minimum(kinematics.pt(a) ** (2 * power), kinematics.pt(b) ** (2 * power))
        return scale * (kinematics.delta_r(a, b) / radius).square()

    n = p.shape[1]
    jets, alive = p.clone(), torch.ones(p.shape[:2], dtype=torch.bool, device=p.device)
    done = torch.zeros_like(alive)
    for _ in range(n):
        beam = torch.where(alive, kinematics.pt(jets) ** (2 * power), torch.inf)
        least, at = _distances(jets, alive, distance).flatten(1).min(1)
        closest, who = beam.min(1)
        some = alive.any(1)
        _merge(jets, alive, at // n, at % n, some & (least < closest))
        rows = (some & ~(least < closest)).nonzero()[:, 0]
        alive[rows, who[rows]] = False
        done[rows, who[rows]] = True
    pt = kinematics.pt(jets)
    return _sorted(jets, done & (pt >= pt_min), pt)
