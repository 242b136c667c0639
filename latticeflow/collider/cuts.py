"""Cuts: which events belong to the measurement."""

from collections.abc import Callable

import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..spec import Spec
from . import kinematics


def _pairs(of: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda p, energy: of(*kinematics.pairs(p), energy[:, None]).amin(1)


# The number of an event that a lower bound is on; upper bounds end in "_max" and are on the greatest.
_QUANTITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "energy_min": lambda p, energy: p[..., 0].amin(1),
    "pt_min": lambda p, energy: kinematics.pt(p).amin(1),
    "rapidity_max": lambda p, energy: kinematics.rapidity(p).abs().amax(1),
    "cos_theta_max": lambda p, energy: kinematics.cos_theta(p).abs().amax(1),
    "delta_r_min": _pairs(lambda p, q, energy: kinematics.delta_r(p, q)),
    "mass_min": _pairs(lambda p, q, energy: kinematics.mass(p + q)),
    "y_min": _pairs(kinematics.jade),
    "durham_min": _pairs(kinematics.durham),
}


class Cuts(Spec):
    """Bounds on the outgoing particles, all optional; an event passes if it fulfils every one that is set.

    `energy_min`, `pt_min`: of each particle, GeV; `rapidity_max`, `cos_theta_max`: of the absolute value, of each particle;
    `delta_r_min`, `mass_min` (GeV), `y_min` (JADE), `durham_min`: of each pair (`kinematics`). `particles`: the outgoing
    particles that the bounds are on, counted from 0; all by default. Momenta are those of the laboratory, and y is over the
    squared energy of the colliding particles' centre of mass.

    Raises `InputError` for negative bounds, for particles named twice, and for a bound on pairs with fewer than two.
    """

    energy_min: float | None = Field(default=None, ge=0)
    pt_min: float | None = Field(default=None, ge=0)
    rapidity_max: float | None = Field(default=None, ge=0)
    cos_theta_max: float | None = Field(default=None, ge=0)
    delta_r_min: float | None = Field(default=None, ge=0)
    mass_min: float | None = Field(default=None, ge=0)
    y_min: float | None = Field(default=None, ge=0)
    durham_min: float | None = Field(default=None, ge=0)
    particles: tuple[int, ...] | None = None

    def model_post_init(self, context) -> None:
        chosen = self.particles
        if chosen is not None and (not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0):
            raise InputError(f"cuts: particles = {list(chosen)}; expected different numbers from 0 upwards")
        paired = [name for name in ("delta_r_min", "mass_min", "y_min", "durham_min") if name in self.bounds]
        if chosen is not None and len(chosen) < 2 and paired:
            raise InputError(f"cuts: {paired[0]} is on pairs; particles = {list(chosen)} has none")

    @property
    def bounds(self) -> dict[str, float]:
        """Those that are set, by name."""
        return {name: bound for name in _QUANTITIES if (bound := getattr(self, name)) is not None}

    def check(self, n: int) -> None:
        """Raises `InputError` where `particles` names one that n outgoing particles do not have."""
        if self.particles is not None and max(self.particles) >= n:
            raise InputError(
                f"cuts: particles = {list(self.particles)}; there are {n} outgoing ones, counted from 0"
            )

    def each(self, p: Tensor, energy: Tensor) -> dict[str, Tensor]:
        """For each bound that is set, which events fulfil it, bool `[batch]`; arguments as of `passes`."""
        chosen = p if self.particles is None else p[:, list(self.particles)]
        found = {}
        for name, bound in self.bounds.items():
            value = _QUANTITIES[name](chosen, energy)
            found[name] = value <= bound if name.endswith("_max") else value >= bound
        return found

    def passes(self, p: Tensor, energy: Tensor) -> Tensor:
        """Bool `[batch]`; p `[batch, n, 4]` outgoing momenta, energy `[batch]`, of the centre of mass. NaN does not pass."""
        found = torch.ones(len(p), dtype=torch.bool, device=p.device)
        for one in self.each(p, energy).values():
            found &= one
        return found
