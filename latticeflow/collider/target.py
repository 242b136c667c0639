"""A matrix element on phase space as a target on the unit hypercube: its Z is the cross section."""

from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import Field, field_serializer, field_validator
from torch import Tensor

from ..errors import InputError, NumericalError
from ..spec import Registry
from ..targets import targets
from ..targets.hypercube import Hypercube
from .cuts import Cuts
from .phase_space import PhaseSpace, PhaseSpaceMap, phase_spaces
from .processes import Process, processes

HBARC2 = 389379372.1  # (hbar c)^2 in pb GeV^2


def _parsed(registry: Registry, value: Any) -> Any:
    if isinstance(value, str):
        value = {"kind": value}
    return registry.parse(value) if isinstance(value, dict) else value


@targets.add("matrix_element")
class MatrixElement(Hypercube):
    """`f(u) = (hbar c)^2 / (2 s) |M|^2(p) |dPhi_n/du|` inside the cuts, 0 outside; p = p(u) by the phase-space map.

    `Z = integral f du` is the cross section in pb; of a decay at mass `energy`, with `1 / (2 M)` and no
    `(hbar c)^2`, the partial width in GeV. `process`, `phase_space`: a kind, or a table with `kind` and its settings. `energy`: of the
    centre of mass, GeV.

    Raises `InputError` for an energy below the threshold; `NumericalError` where |M|^2 is NaN, infinite or
    negative, with the momenta.
    """

    measure: ClassVar[str] = "hypercube"
    process: Process
    energy: float = Field(gt=0)
    phase_space: PhaseSpace
    cuts: Cuts = Cuts()

    @field_validator("process", mode="before")
    @classmethod
    def _process(cls, value: Any) -> Any:
        return _parsed(processes, value)

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
        if self.energy <= threshold:
            raise InputError(
                f"matrix_element: energy = {self.energy} GeV; {self.process.kind} needs more than {threshold} GeV, the sum of "
                "the outgoing masses"
            )
        self.map  # raises

    @cached_property
    def map(self) -> PhaseSpaceMap:
        return self.phase_space.build(self.process.masses)

    @property
    def dim(self) -> int:  # type: ignore[override]
        return self.map.dim

    @property
    def periodic(self) -> tuple[int, ...]:
        return self.map.periodic

    @property
    def unit(self) -> str:
        return self.process.unit

    def incoming(self, energy: Tensor) -> Tensor:
        """Momenta of the incoming particles, massless and along z, `[batch, 2, 4]`; of a decay `[batch, 1, 4]`, at rest."""
        zero = torch.zeros_like(energy)
        if len(self.process.incoming) == 1:
            return torch.stack([energy, zero, zero, zero], 1)[:, None]
        half = energy / 2
        return torch.stack([torch.stack([half, zero, zero, s * half], 1) for s in (1, -1)], 1)

    def event(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """All momenta `[batch, incoming + outgoing, 4]` in the laboratory, and `log |dPhi_n/du|`, `[batch]`."""
        energy = torch.full_like(u[:, 0], self.energy)
        p, log_jac = self.map.forward(u, energy)
        return torch.cat([self.incoming(energy), p], 1), log_jac

    def momenta(self, u: Tensor) -> Tensor:
        """Outgoing momenta `[batch, n, 4]` in the laboratory."""
        return self.event(u)[0][:, len(self.process.incoming) :]

    def log_integrand(self, u: Tensor) -> Tensor:
        p, log_jac = self.event(u)
        energy = torch.full_like(u[:, 0], self.energy)
        inside = self.cuts.passes(p[:, len(self.process.incoming) :], energy)
        squared = self._squared(p[inside])
        found = torch.full_like(log_jac, -torch.inf)
        found[inside] = squared.log() + log_jac[inside] + self._log_flux
        return found

    @property
    def _log_flux(self) -> float:
        flux = 1 / (2 * self.energy) if len(self.process.incoming) == 1 else HBARC2 / (2 * self.energy**2)
        return float(torch.tensor(flux, dtype=torch.float64).log())

    def _squared(self, p: Tensor) -> Tensor:
        squared = self.process.squared(p)
        bad = ~(torch.isfinite(squared) & (squared >= 0))
        if bad.any():
            first = int(bad.nonzero()[0])
            raise NumericalError(
                f"{self.process.kind}: |M|^2 = {float(squared[first])} in {int(bad.sum())} of {len(p)} events; expected finite and not "
                f"negative. The first, rows (E, px, py, pz) in GeV, incoming first: {p[first].tolist()}"
            )
        return squared
