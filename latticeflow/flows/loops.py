"""A continuous flow of U(1) in two dimensions along gradients of Wilson and Polyakov loops, for actions that depend on them.

`dtheta/dt = sum_C C^T sum_n K_Cn(t) * sin(n C theta)`: each kind C of loops is a matrix of 0, 1 and -1, `C theta` its angles
at all places, C^T the links that turn them, and K_Cn a kernel of any range in the place, even in every direction, a sum of
cosines in time: Luescher's trivializing flow (0907.5491) at linear order in sines, but with long kernels. Kinds: rectangles
with sides up to `sides`, Polyakov loops of both directions, and Polyakov loops that go round one plaquette on their way.
Where plaquettes alone are moved (`PlaquetteDrift`) Polyakov loops stay uniform; a fermion determinant weighs them.

Gauge transformations, charge conjugation, translations and reflections are exact. The divergence is
`sum_C sum_n n kappa_Cn sum cos(n C theta)`, `kappa_Cn` the diagonal of `C C^T K_Cn`.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from ..errors import InputError
from ..groups import wrap
from ..lattice import Lattice
from ..targets import LatticeTarget, Wilson
from ..transforms import runge_kutta
from ..transforms.harmonic import multiples
from ..transforms.runge_kutta import State
from .continuous import ContinuousLayer
from .flow import Flow, Layer
from .plaquettes import Spread
from .sectors import SuppressedCharge
from .spec import FlowSpec, flows


@dataclass(frozen=True)
class Kind:
    """`images` C `[m, places, 2 V]`: loops that a reflection takes to one another, with one kernel for all of them;

    `orbit` `[places, places]` of the displacement; `weight` `[orbits]`: `kappa = sum_orbits K weight`; `links`, of one loop.
    """

    images: Tensor
    orbit: Tensor
    weight: Tensor
    links: float


def _kind(images: list[np.ndarray], shape: tuple[int, ...]) -> Kind:
    """Of matrices `[places, 2 V]`, places on a lattice of `shape`, in C order."""
    sides = np.array(shape)
    place = np.stack(np.unravel_index(np.arange(sides.prod()), shape), 1)
    apart = np.abs(place[:, None] - place[None])
    folded = np.minimum(apart, sides - apart)  # even in each direction; the directions may differ
    orbit = np.ravel_multi_index(tuple(np.moveaxis(folded, -1, 0)), tuple(sides // 2 + 1))
    square = images[0] @ images[0].T
    weight = np.bincount(orbit[0], weights=square[0], minlength=int((sides // 2 + 1).prod()))
    return Kind(
        torch.from_numpy(np.stack(images)), torch.from_numpy(orbit), torch.from_numpy(weight), square[0, 0]
    )


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def kinds(lattice: Lattice, sides: int, winding: bool) -> list[Kind]:
    """All kinds of the module's docstring, the plaquette first; matrices float64 on the CPU."""
    shape, volume = lattice.shape, lattice.volume
    site = np.arange(volume).reshape(shape)

    def link(mu: int, at: np.ndarray) -> np.ndarray:
        """Rows that hold the link in direction mu from each of the sites `at`."""
        return np.eye(2 * volume)[mu * volume + at.ravel()]

    def line(mu: int, at: np.ndarray, length: int) -> np.ndarray:
        """Of straight lines."""
        found = np.zeros((at.size, 2 * volume))
        for _ in range(length):
            found, at = found + link(mu, at), _step(site, at, mu)
        return found

    found = []
    for r in range(1, min(sides, shape[0] - 1) + 1):
        for t in range(1, min(sides, shape[1] - 1) + 1):
            loop = line(0, site, r) + line(1, _step(site, site, 0, r), t)
            found.append(_kind([loop - line(0, _step(site, site, 1, t), r) - line(1, site, t)], shape))
    for mu in (0, 1) if winding else ():
        first = np.take(site, [0], mu).squeeze(mu)
        found.append(_kind([line(mu, first, shape[mu])], first.shape))
        straight, plaquette = line(mu, site, shape[mu]), found[0].images[0].numpy()
        beside = _step(site, site, 1 - mu, -1).ravel()
        found.append(
            _kind([straight - (-1) ** mu * plaquette, straight + (-1) ** mu * plaquette[beside]], shape)
        )
    return found


def _step(site: np.ndarray, at: np.ndarray, mu: int, steps: int = 1) -> np.ndarray:
    """The sites that lie `steps` ahead of those in `at`."""
    return np.roll(site, -steps, mu).ravel()[at]


@dataclass(frozen=True)
class _Group:
    """All images of those kinds that have as many places and harmonics, for one product of matrices instead of many.

    `links` C `[m, places, 2 V]`; `kind`, the number of each image's; `orbit` and `weight` `[m, orbits]`, of `Kind`.
    """

    links: Tensor
    kind: list[int]
    orbit: Tensor
    weight: Tensor

    def at(self, kernels: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """`(C, K, kappa)` from kernels of all kinds `[n, orbits]`: K `[m, places, n places]`, kappa `[m, n]`."""
        own = torch.stack([kernels[k] for k in self.kind])
        return (
            self.links,
            own[:, :, self.orbit].transpose(1, 2).flatten(2),
            (own @ self.weight[..., None])[..., 0],
        )


@lru_cache(maxsize=16)
@torch.inference_mode(False)
def _groups(
    lattice: Lattice,
    sides: int,
    winding: bool,
    counts: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
) -> list[_Group]:
    """Of `kinds`, with so many harmonics each."""
    found, alike = kinds(lattice, sides, winding), defaultdict(list)
    for k, (kind, count) in enumerate(zip(found, counts)):
        alike[kind.images.shape[1], len(kind.weight), count].extend([k] * len(kind.images))
    return [
        _Group(
            torch.cat([found[k].images for k in dict.fromkeys(group)]).to(device, dtype),
            group,
            found[group[0]].orbit.to(device),
            torch.stack([found[k].weight for k in group]).to(device, dtype),
        )
        for group in alike.values()
    ]


def _drift(x: Tensor, groups: list[tuple[Tensor, Tensor, Tensor]]) -> State:
    """`(v, divergence)` at links x `[2 V, batch]`."""
    v, divergence = torch.zeros_like(x), x.new_zeros(x.shape[1], dtype=torch.float64)
    for links, kernel, kappa in groups:
        value, slope = _sines(links @ x, kappa.shape[1])
        v = v + _adjoint(links, kernel @ value.flatten(1, 2))
        divergence = divergence + torch.tensordot(kappa, slope.sum(2), 2)
    return v, divergence


def _drift_with_score(x: Tensor, score: Tensor, groups: list[tuple[Tensor, Tensor, Tensor]]) -> State:
    """`_drift`, and without gradient `d score / dt = -(dv/dtheta)^T score - d divergence / dtheta` along the flow."""
    v, divergence = torch.zeros_like(x), x.new_zeros(x.shape[1], dtype=torch.float64)
    rate = torch.zeros_like(score)
    for links, kernel, kappa in groups:
        value, slope = _sines(links @ x, kappa.shape[1])
        v = v + _adjoint(links, kernel @ value.flatten(1, 2))
        divergence = divergence + torch.tensordot(kappa, slope.sum(2), 2)
        with torch.no_grad():
            back = (kernel.mT @ (links @ score)).view_as(slope)
            n2 = kappa * torch.arange(1, kappa.shape[1] + 1, dtype=x.dtype, device=x.device).square()
            rate = rate + _adjoint(links, (n2[..., None, None] * value - slope * back).sum(1))
    return v, divergence, rate


def _sines(angle: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """`sin(n a)` and `n cos(n a)`, n = 1 ... count, `[m, n, places, batch]`."""
    sin, cos = angle.sin(), angle.cos()
    one, zero, twice = torch.ones_like(angle), torch.zeros_like(angle), 2 * cos
    sines, cosines = multiples(zero, sin, twice, count), multiples(one, cos, twice, count)
    return torch.stack(sines, 1), torch.stack([(k + 1) * c for k, c in enumerate(cosines)], 1)


def _adjoint(links: Tensor, u: Tensor) -> Tensor:
    """`sum over images of C^T u`, `[2 V, batch]`."""
    return links.flatten(0, 1).T @ u.flatten(0, 1)


class LoopDrift(ContinuousLayer):
    """The flow of the module's docstring from t = 0 to 1; `harmonics` n of plaquettes, `others` of all other kinds."""

    def __init__(
        self,
        lattice: Lattice,
        sides: int,
        winding: bool,
        harmonics: int,
        others: int,
        modes: int,
        steps: int,
        solver: str,
    ):
        super().__init__(lattice, 0, modes, steps, solver, 1.0)
        self.log_w.requires_grad_(False)
        del self.kernel
        self.kinds = kinds(lattice, sides, winding)
        counts = (harmonics, *[others] * (len(self.kinds) - 1))
        self.group_key = (lattice, sides, winding, counts)
        self.kernels = nn.ParameterList(
            nn.Parameter(torch.zeros(modes, n, len(kind.weight))) for n, kind in zip(counts, self.kinds)
        )
        self.drift, self.drift_with_score = _drift, _drift_with_score

    def compile_parts(self) -> None:
        """Nothing: matrix products take the time."""

    def adopt(self, previous: "LoopDrift") -> None:  # type: ignore[override]
        """All weights, of the same lattice."""
        self.load_state_dict(previous.state_dict())

    def _rate(self, steps: int, drift: Callable[..., State] = _drift) -> runge_kutta.Rate:
        c = sorted({*self.tableau.c, *(1 - c for c in self.tableau.c)})
        times = {_key((k + one) / steps): (k + one) / steps for k in range(steps) for one in c}
        t = torch.tensor(list(times.values()), dtype=torch.float64).unsqueeze(1)
        like = self.kernels[0]
        cosines = torch.cos(math.pi * torch.arange(self.modes) * t).to(like)
        # divided by the links of a loop, a number turns its own loop by about itself, whatever its kind
        kernels = [torch.tensordot(cosines, k, 1) / kind.links for k, kind in zip(self.kernels, self.kinds)]
        groups = _groups(*self.group_key, like.dtype, like.device)
        at = {key: [group.at([k[i] for k in kernels]) for group in groups] for i, key in enumerate(times)}

        def rate(t: float, state: State) -> State:
            x, _, *score = state
            return drift(x, *score, at[_key(t)])

        return rate

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_det = super().forward(x)
        return wrap(y), log_det

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, log_det, score = super().forward_with_score(x, score)
        return wrap(y), log_det, score

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().inverse(y)
        return wrap(x), log_det

    def finer_inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, log_det = super().finer_inverse(y)
        return wrap(x), log_det


def _key(t: float) -> int:
    return round(t * 2**40)


@flows.add("loops")
class Loops(FlowSpec):
    """A flow of U(1) in two dimensions whose action has more than plaquettes, such as the Schwinger model's.

    Base: independent plaquettes at `base_beta` (the target's beta unless it is given; fermions make it larger), with an
    extra weight `exp(-suppression |Q|)` of the topological charge. Then, with `spread`, the layer of `bins` that takes care
    of the last plaquette (`flows.plaquettes`), and the continuous flow: rectangles with sides up to `sides`, with `winding`
    also Polyakov loops; `harmonics` of plaquettes and `others` of the other loops, `modes` cosines in time, `steps` of
    `solver` to start with (training raises them where the density asks for it).
    """

    base_beta: float | None = Field(None, ge=0)
    suppression: float = Field(0.0, ge=0)
    spread: bool = True
    bins: int = Field(12, ge=1, le=100)
    sides: int = Field(2, ge=1)
    winding: bool = True
    harmonics: int = Field(4, ge=1)
    others: int = Field(2, ge=1)
    modes: int = Field(4, ge=1)
    steps: int = Field(6, ge=1)
    solver: Literal["rk4", "rk6"] = "rk4"

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError("loops: the base needs the target's beta: in Python use build_for(target, seed)")

    def build_for(self, target: LatticeTarget, seed: int) -> Flow:
        """Raises `InputError` for another target than U(1) in two dimensions."""
        if not isinstance(target, Wilson) or target.group != "u1" or len(target.shape) != 2:
            found = getattr(target, "group", target.kind)
            raise InputError(f"loops: a flow of u1 in two dimensions; found {found} on {target.shape}")
        beta = target.beta if self.base_beta is None else self.base_beta
        lattice = target.lattice
        layers: list[Layer] = [Spread(lattice, self.bins, beta)] if self.spread else []
        layers.append(
            LoopDrift(
                lattice,
                self.sides,
                self.winding,
                self.harmonics,
                self.others,
                self.modes,
                self.steps,
                self.solver,
            )
        )
        return Flow(SuppressedCharge(lattice, beta, self.suppression), layers)
