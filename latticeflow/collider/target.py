"""A matrix element on phase space as a target on the unit hypercube: its Z is the cross section."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import Field, field_serializer, field_validator
from torch import Tensor

from ..errors import InputError, NumericalError
from ..spec import Registry
from ..targets import targets
from ..targets.hypercube import Hypercube
from .beams import Beams, along_beam
from .cuts import Cuts
from .kinematics import HBARC2, dot, pairs
from .phase_space import PhaseSpace, PhaseSpaceMap, phase_spaces
from .processes import Process, processes

_PARALLEL = 1e-12  # p_i.p_j over E^2, E the energy of the first particle, below which it is of rounding


def _parsed(registry: Registry, value: Any) -> Any:
    if isinstance(value, str):
        value = {"kind": value}
    return registry.parse(value) if isinstance(value, dict) else value


@dataclass(frozen=True)
class Event:
    """Events of a batch, float64.

    All momenta p `[batch, incoming + outgoing, 4]` in the centre-of-mass frame of what collides or decays, the same in the
    laboratory, the energy `[batch]`, the momentum fractions x `[batch, 2]` of partons in hadrons, log of the Jacobian.
    """

    p: Tensor
    laboratory: Tensor
    energy: Tensor
    x: Tensor | None
    log_jac: Tensor

    def take(self, which: Tensor) -> "Event":
        x = None if self.x is None else self.x[which]
        return Event(self.p[which], self.laboratory[which], self.energy[which], x, self.log_jac[which])


@targets.add("matrix_element")
class MatrixElement(Hypercube):
    """`f(u) = (hbar c)^2 / (2 s) |M|^2(p) |dPhi_n/du|` inside the cuts, 0 outside; p = p(u) by the phase-space map.

    `Z = integral f du` is the cross section in pb; of a decay at mass `energy`, with `1 / (2 M)` and no `(hbar c)^2`,
    the partial width in GeV. Of colliding hadrons (`Process.hadronic`) the first two coordinates are the parton pair's
    (`Beams`), s is theirs, and `f = sum_ab f_a(x_1) f_b(x_2) |M_ab|^2 ...` over the pairs of partons.

    `process`, `phase_space`: a kind, or a table with `kind` and its settings. `energy`: of the centre of mass of what
    collides or decays, GeV. Everything inside is float64, whatever the precision of u and of log_prob.

    Raises `InputError` for an energy below the threshold; `NumericalError` where |M|^2 is NaN, infinite or negative, with
    the momenta.
    """

    measure: ClassVar[str] = "hypercube"
    process: Process
    energy: float = Field(gt=0)
    phase_space: PhaseSpace
    cuts: Cuts = Cuts()

    @field_validator("process", mode="before")
    @classmethod
    def _process(cls, value: Any) -> Any:
        try:
            return _parsed(processes, value)
        except InputError as error:
            if not str(error).startswith("unknown process"):
                raise
            raise InputError(
                f"{error}. One of your own is known to commands that its script starts"
            ) from None

    @field_validator("phase_space", mode="before")
    @classmethod
    def _phase_space(cls, value: Any) -> Any:
        return _parsed(phase_spaces, value)

    @field_serializer("process")
    def _process_table(self, value: Process) -> dict[str, Any]:
        return processes.table(value)

    @field_serializer("phase_space")
    def _phase_space_table(self, value: PhaseSpace) -> dict[str, Any]:
        return phase_spaces.table(value)

    def model_post_init(self, context) -> None:
        threshold = sum(self.process.masses)
        lowest = self.process.mass_range[0] if self.process.hadronic else self.energy
        if lowest <= threshold:
            what = f"masses from {lowest} GeV" if self.process.hadronic else f"energy = {self.energy} GeV"
            raise InputError(
                f"matrix_element: {what}; {self.process.kind} needs more than {threshold} GeV, "
                "the sum of the outgoing masses"
            )
        self.cuts.check(len(self.process.outgoing))
        _ = self.map, self.beams  # raise for what cannot be

    @cached_property
    def map(self) -> PhaseSpaceMap:
        return self.phase_space.build(self.process.masses)

    @cached_property
    def beams(self) -> Beams | None:
        """Of colliding hadrons."""
        return Beams(self.energy, *self.process.mass_range) if self.process.hadronic else None

    @property
    def _ahead(self) -> int:
        return 2 if self.process.hadronic else 0

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self._ahead + self.map.dim

    @property
    def periodic(self) -> tuple[int, ...]:
        return tuple(self._ahead + one for one in self.map.periodic)

    @property
    def unit(self) -> str:
        return self.process.unit

    def incoming(self, energy: Tensor) -> Tensor:
        """Momenta of the incoming particles in their centre-of-mass frame, massless and along z, `[batch, 2, 4]`;

        of a decay `[batch, 1, 4]`, at rest. energy `[batch]`.
        """
        zero = torch.zeros_like(energy)
        if len(self.process.incoming) == 1:
            return torch.stack([energy, zero, zero, zero], 1)[:, None]
        half = energy / 2
        return torch.stack([torch.stack([half, zero, zero, s * half], 1) for s in (1, -1)], 1)

    def generate(self, u: Tensor) -> Event:
        """The events of points u `[batch, dim]`."""
        u = u.double()
        energy, log_jac, x = torch.full_like(u[:, 0], self.energy), torch.zeros_like(u[:, 0]), None
        if self.beams is not None:
            *fractions, log_jac = self.beams.forward(u[:, :2])
            x = torch.stack(fractions, 1)
            energy = energy * x.prod(1).sqrt()
        p, log_phase_space = self.map.forward(u[:, self._ahead :], energy)
        p = torch.cat([self.incoming(energy), p], 1)
        return Event(
            p,
            p if x is None else along_beam(p, (x[:, 0] / x[:, 1]).log() / 2),
            energy,
            x,
            log_jac + log_phase_space,
        )

    def event(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """All momenta `[batch, incoming + outgoing, 4]` in the laboratory, and `log |dPhi_n/du|`, `[batch]`, in float64.

        Of colliding hadrons `log |dx_1 dx_2 dPhi_n / du|`.
        """
        event = self.generate(u)
        return event.laboratory, event.log_jac

    def momenta(self, u: Tensor) -> Tensor:
        """Outgoing momenta `[batch, n, 4]` in the laboratory, float64."""
        return self.outgoing(self.generate(u))

    def channel_weights(self, u: Tensor) -> Tensor:
        """Probabilities of the pairs of partons in `Process.channels` in each event, `[batch, K]`; 1 without hadrons."""
        event = self.generate(u)
        if event.x is None:
            return torch.ones_like(event.energy)[:, None]
        found = self._channels(event, event.x)
        total = found.sum(1, keepdim=True)
        return torch.where(
            total > 0, found / total.clamp(min=torch.finfo(found.dtype).tiny), 1 / found.shape[1]
        )

    def inside(self, u: Tensor) -> Tensor:
        self.check(u)
        return self._passes(self.generate(u))

    def log_integrand(self, u: Tensor) -> Tensor:
        event = self.generate(u)
        inside = self._passes(event)
        found = torch.full_like(event.log_jac, -torch.inf)
        if inside.any():
            chosen = event.take(inside)
            squared = (
                self._channels(chosen, chosen.x).sum(1) if chosen.x is not None else self._squared(chosen)
            )
            found[inside] = squared.log() + chosen.log_jac + self._log_flux(chosen.energy)
        return found.to(u.dtype)

    def outgoing(self, event: Event) -> Tensor:
        """Its outgoing momenta in the laboratory, `[batch, n, 4]`."""
        return event.laboratory[:, len(self.process.incoming) :]

    def _passes(self, event: Event) -> Tensor:
        reached = event.log_jac != -torch.inf  # a map may leave points without an event
        return reached & self.cuts.passes(self.outgoing(event), event.energy)

    def _log_flux(self, energy: Tensor) -> Tensor:
        if len(self.process.incoming) == 1:
            return -(2 * energy).log()
        return math.log(HBARC2) - (2 * energy.square()).log()

    def _channels(self, event: Event, x: Tensor) -> Tensor:
        """`f_a f_b |M_ab|^2`, `[batch, K]`."""
        densities = self.process.densities(x[:, 0], x[:, 1], event.energy.square())
        return self._squared(event) * densities

    def _squared(self, event: Event) -> Tensor:
        p, shape = event.p, (len(event.p), len(self.process.channels))[: 1 + self.process.hadronic]
        squared = self.process.squared(p)
        if squared.shape != shape:
            raise InputError(
                f"{self.process.kind}: |M|^2 of shape {list(squared.shape)} for momenta {list(p.shape)}; "
                f"expected {list(shape)}"
            )
        bad = ~(torch.isfinite(squared) & (squared >= 0))
        if bad.any():
            bad_events = bad.reshape(len(p), -1).any(1)
            first = int(bad_events.nonzero()[0])
            raise NumericalError(
                f"{self.process.kind}: |M|^2 = {squared[first].tolist()} in {int(bad_events.sum())} of {len(p)} events; "
                "expected finite and not negative. The momenta of the first, rows (E, px, py, pz) in GeV, incoming first: "
                f"{p[first].tolist()}{self._why_bad(p[first])}"
            )
        return squared

    def _why_bad(self, p: Tensor) -> str:
        """Of one event `[incoming + outgoing, 4]`: whether massless particles are parallel, or one soft, to rounding."""
        massless = [*(0.0,) * len(self.process.incoming), *self.process.masses]
        chosen = p[[mass == 0 for mass in massless]] if len(self.process.incoming) == 2 else p[1:]
        least = float(dot(*pairs(chosen)).abs().amin() / p[0, 0].square()) if len(chosen) > 1 else 1.0
        if not least <= _PARALLEL:
            return ""
        return (
            f". The least p_i.p_j is {least:.1e} E^2: particles are parallel or soft to rounding, where a massless "
            "|M|^2 has its poles, and no cut excludes them: set y_min, durham_min, mass_min, delta_r_min or pt_min"
        )

    def _why_empty(self, n: int) -> str:
        counts: dict[str, int] = {}
        for u in self.flat(n):
            event = self.generate(u)
            for name, passes in self.cuts.each(self.outgoing(event), event.energy).items():
                counts[name] = counts.get(name, 0) + int(passes.sum())
        alone = [
            f"{name} = {self.cuts.bounds[name]} leaves {k / n:.3g} of them" for name, k in counts.items()
        ]
        return " inside the cuts; alone, " + ", ".join(alone) if alone else ""
