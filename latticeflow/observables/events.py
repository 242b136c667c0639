"""Observables of scattering events: targets `MatrixElement`, momenta in the laboratory in GeV; and of the test function
`Camel`.

Particles are the outgoing ones of the process, in its order; E is the energy of the centre of mass of what collides (of
partons, where hadrons do) or decays.
"""

import numpy as np
from torch import Tensor

from ..collider import MatrixElement, kinematics
from ..collider.jets import transitions
from ..targets import Camel, Target
from .base import OtherTheory, observables


def _events(least: int = 2, beam: bool = False, point: bool = False):
    """Exists for events of at least `least` particles; along a `beam`; without hadrons, `point`."""

    def missing(target: Target) -> str | None:
        if not isinstance(target, MatrixElement):
            return OtherTheory(f"target '{target.kind}' has no events")
        n = len(target.process.outgoing)
        if n < least:
            return f"it needs {least} outgoing particles; {target.process.kind} has {n}"
        if beam and len(target.process.incoming) == 1:
            return f"{target.process.kind} is a decay, which has no beam axis"
        if point and target.process.hadronic:
            return f"{target.process.kind} collides hadrons, whose partons have no fixed energy"
        return None

    return missing


def _pair(target: Target) -> str | None:
    """Two of at least three particles, or all two of a pair of partons: else their mass is the energy."""
    reason = _events()(target)
    if reason is None and len(target.process.outgoing) == 2 and not target.process.hadronic:  # type: ignore[attr-defined]
        return "two particles alone have the mass of all"
    return reason


def _charged(target: Target) -> str | None:
    reason = _events(beam=True, point=True)(target)
    if reason is None and len(target.process.outgoing) != 2:  # type: ignore[attr-defined]
        return "it is about two outgoing particles"
    return reason


def _not_of_three(point: bool = False):
    """Of at least three particles, but of three massless ones at a fixed energy only under the name x1."""
    exists = _events(3, point=point)

    def missing(target: Target) -> str | None:
        reason = exists(target)
        if reason is None:
            process = target.process  # type: ignore[attr-defined]
            if len(process.outgoing) == 3 and not any(process.masses) and not process.hadronic:
                return "of three massless particles T = x₁ and y_min = 1 − x₁"
        return reason

    return missing


def _camel(target: Target) -> str | None:
    return None if isinstance(target, Camel) else OtherTheory(f"target '{target.kind}' has no two peaks")


def _pairs(target: MatrixElement, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both particles of all pairs, `[n, pairs, 4]`, and E, `[n, 1]`."""
    event = target.generate(x)
    return *kinematics.pairs(target.outgoing(event)), event.energy[:, None]


@observables.primary("thrust", "T", r"T", _not_of_three(point=True))
def thrust(target: MatrixElement, x: Tensor) -> Tensor:
    """`max_n sum_i |p_i.n| / sum_i |p_i|`, `[n]`."""
    return kinematics.thrust(target.momenta(x))


@observables.primary("y_min", "y_min", r"y_\mathrm{min}", _not_of_three())
def y_min(target: MatrixElement, x: Tensor) -> Tensor:
    """`min_(i<j) (p_i + p_j)^2 / E^2`, the least JADE y of a pair, `[n]`."""
    return kinematics.jade(*_pairs(target, x)).amin(1)


@observables.primary("y23", "y₂₃", r"y_{23}", _events(3, point=True))
def y23(target: MatrixElement, x: Tensor) -> Tensor:
    """The y of the Durham algorithm where three jets become two, `[n]`."""
    event = target.generate(x)
    return transitions(target.outgoing(event), event.energy, "durham")[:, 1]


@observables.primary("pt_1", "p_T,1", r"p_{T,1}", _events(beam=True))
def pt_1(target: MatrixElement, x: Tensor) -> Tensor:
    """The greatest transverse momentum of a particle, GeV, `[n]`."""
    return kinematics.pt(target.momenta(x)).amax(1)


@observables.primary("pt_min", "p_T,min", r"p_{T,\mathrm{min}}", _events(3, beam=True))
def pt_min(target: MatrixElement, x: Tensor) -> Tensor:
    """The least transverse momentum of a particle, GeV, `[n]`; of two particles it is the greatest one."""
    return kinematics.pt(target.momenta(x)).amin(1)


def _fraction(rank: int):
    def of(target: MatrixElement, x: Tensor) -> Tensor:
        event = target.generate(x)
        energies = target.outgoing(event)[..., 0].sort(1, descending=True).values
        return 2 * energies[:, rank - 1] / event.energy

    of.__doc__ = f"`x_{rank} = 2 E_{rank} / E`, energies in descending order, `[n]`."
    return of


for _rank, _symbol in ((1, "x₁"), (2, "x₂"), (3, "x₃")):
    observables.primary(f"x{_rank}", _symbol, f"x_{_rank}", _events(3, point=True))(_fraction(_rank))


@observables.primary("mass_12", "m₁₂", r"m_{12}", _pair)
def mass_12(target: MatrixElement, x: Tensor) -> Tensor:
    """`sqrt( (p_1 + p_2)^2 )` of the first two particles, GeV, `[n]`."""
    p = target.momenta(x)
    return kinematics.mass(p[:, 0] + p[:, 1])


@observables.primary("abs_rapidity_max", "|y|_max", r"|y|_\mathrm{max}", _events(beam=True))
def abs_rapidity_max(target: MatrixElement, x: Tensor) -> Tensor:
    """The greatest |rapidity| of a particle, `[n]`."""
    return kinematics.rapidity(target.momenta(x)).abs().amax(1)


@observables.primary("delta_r_min", "ΔR_min", r"\Delta R_\mathrm{min}", _events(beam=True))
def delta_r_min(target: MatrixElement, x: Tensor) -> Tensor:
    """The least `Delta R = sqrt(dy^2 + dphi^2)` of a pair, `[n]`."""
    p, q, _ = _pairs(target, x)
    return kinematics.delta_r(p, q).amin(1)


@observables.primary("cos_theta", "cos θ", r"\cos\theta", _events(beam=True, point=True))
def cos_theta(target: MatrixElement, x: Tensor) -> Tensor:
    """Of the first particle to the first incoming one, `[n]`."""
    return kinematics.cos_theta(target.momenta(x)[:, 0])


@observables.primary("forward", "F", r"F", _charged)
def forward(target: MatrixElement, x: Tensor) -> Tensor:
    """1 where the first particle has `cos theta > 0`, else 0, `[n]`."""
    return (target.momenta(x)[:, 0, 3] > 0).to(x.dtype)


@observables.derived("a_fb", "A_FB", r"A_\mathrm{FB}", _charged, ("forward",))
def a_fb(target: MatrixElement, means: dict[str, np.ndarray]) -> float:
    """The forward-backward asymmetry `(sigma_F - sigma_B) / (sigma_F + sigma_B) = 2 <F> - 1`."""
    return float(2 * means["forward"] - 1)


@observables.primary("upper_peak", "P_up", r"P_\mathrm{up}", _camel, exact=lambda target: 0.5)
def upper_peak(target: Camel, x: Tensor) -> Tensor:
    """1 nearer to the upper of the two peaks, `sum_i u_i > d / 2`, else 0, `[n]`; the mean is 1/2."""
    return (x.mean(1) > 0.5).to(x.dtype)
