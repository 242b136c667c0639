"""The gradient flow of gauge fields, energy density, the scales t0 and w0, and the clover charge (Luescher, 1006.4518).

`dV/dt = i z_a T_a V`, `V(0) = U`, `z_a = -g0^2 d_a S_W(V) = 2 d_a sum_{x, mu < nu} Re tr P_mu_nu(x)` (U(1): `d sum cos P`):
a weak plane wave decays as `exp(-t khat^2)`. t is in lattice units; in four dimensions fields are smoothed over a radius
`sqrt(8 t)`. Field strength, in hermitian generators with `tr T_a T_b = delta_ab / 2`:

`F_mu_nu(x) = F_a T_a`, `F_a = 2 Im tr [ T_a C ]`, C the mean of the four plaquettes of the plane around x, from x to x;
`E = (1 / V) sum_x sum_{mu < nu} F_a F_a / 2` (clover), `(2 / V) sum_x sum_{mu < nu} Re tr(1 - P)` (plaquette);
`Q = (1 / 8 pi^2) sum_x [ F_01 . F_23 - F_02 . F_13 + F_03 . F_12 ]`, `F . G = F_a G_a`.

Scales: `t^2 <E> = 0.3` at t0, `t d/dt t^2 <E> = 0.3` at w0^2 (1203.4469).
"""

import math

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from ..errors import InputError
from ..groups import SU
from ..targets import Target, Wilson
from ..targets.gauge import neighbour, plaquette
from .base import OtherTheory, observables

STEP = 0.05  # of the observables: E is off by at most 1e-4 of itself at t = 0.5, SU(3), beta = 6, Q by 3e-6
APART = 2  # steps between the times at which observables are taken
REFERENCE = 0.3  # what defines t0 and w0


def flow(target: Wilson, x: Tensor, time: float, step: float = STEP) -> Tensor:
    """Links x `[n, *event_shape]` at flow time `time`, in steps of at most `step`, of any group and in any dimension.

    Of `target` only group and lattice count. Raises `InputError` for a negative time and a step that is not positive.
    """
    if not (time >= 0 and step > 0):
        raise InputError(
            f"gradient flow to t = {time} in steps of {step}: expected t >= 0 and a positive step"
        )
    steps = math.ceil(time / step - 1e-9)
    for _ in range(steps):
        x = runge_kutta(target, x, time / steps)
    return x


def runge_kutta(target: Wilson, x: Tensor, h: float) -> Tensor:
    """One step h of order three (1006.4518, eq. C.2). With `Z_i = h z(W_i)`, `e(Z) = exp(i Z_a T_a)`,

    `W_1 = e(Z_0 / 4) W_0`, `W_2 = e(8 Z_1 / 9 - 17 Z_0 / 36) W_1`, `W_3 = e(3 Z_2 / 4 - 8 Z_1 / 9 + 17 Z_0 / 36) W_2`.
    """
    group = target.links
    # the force at this beta is z, whatever else the target's action holds
    z = Wilson(shape=target.shape, group=target.group, beta=2.0 * group.n if group.n > 1 else 1.0).force
    k = z(x) * (h / 4)
    x = group.mul(group.exp(k), x)
    k = z(x) * (8 * h / 9) - k * (17 / 9)
    x = group.mul(group.exp(k), x)
    return group.mul(group.exp(z(x) * (3 * h / 4) - k), x)


def field_strength(target: Wilson, x: Tensor, mu: int, nu: int) -> Tensor:
    """F_a of the plane (mu, nu), `[n, *shape, N^2 - 1]`, odd under their exchange. Raises `InputError` for U(1)."""
    if not isinstance(target.links, SU):
        raise InputError(f"clover field strength of {target.group}: expected su2 or su3")

    def with_behind(p: Tensor, nu: int) -> Tensor:
        """Loops from x to x, and those from x - nu to x - nu carried on to x."""
        u = x[:, nu]
        return p + neighbour(u.mH @ p @ u, nu, -1)

    leaves = with_behind(with_behind(plaquette(target.links, x, mu, nu), nu), mu)
    return target.links.gradient(leaves).mul_(-0.5)


def energy_of_plaquettes(target: Wilson, x: Tensor) -> Tensor:
    """E by plaquettes, `[n]`; of SU(N)."""
    lost = [1 - target.links.trace(p).flatten(1).mean(1) for _, _, p in target.plaquettes(x)]
    return 2 * target.links.n * torch.stack(lost).sum(0)


def energy_and_charge(target: Wilson, x: Tensor) -> tuple[Tensor, Tensor]:
    """E and Q by clovers, `[n]` each. Raises `InputError` for other than four dimensions, and for U(1)."""
    if len(target.shape) != 4:
        raise InputError(f"the clover charge on {target.shape}: expected four dimensions")
    f = {(m, n): field_strength(target, x, m, n) for m in range(4) for n in range(m + 1, 4)}
    energy = sum(one.square().flatten(1).sum(1) for one in f.values()) / (2 * target.lattice.volume)
    dual = f[0, 1] * f[2, 3] - f[0, 2] * f[1, 3] + f[0, 3] * f[1, 2]
    return energy, dual.flatten(1).sum(1) / (8 * math.pi**2)  # type: ignore[return-value]


def times(target: Wilson) -> np.ndarray:
    """Times t of the columns of `gradient_flow`, `[K]`: every 0.1 up to a radius `sqrt(8 t)` of half the shortest side."""
    return STEP * APART * np.arange(1, max(1, round(min(target.shape) ** 2 / 32 / (STEP * APART))) + 1)


def _four_dimensional(target: Target) -> str | None:
    if not isinstance(target, Wilson):
        return OtherTheory(f"target '{target.kind}' is not a gauge theory")
    if isinstance(target.links, SU) and len(target.shape) == 4:
        return None
    return (
        f"gradient flow and clover charge are of su2 and su3 in four dimensions, found {target.group} on "
        f"{target.shape}"
    )


@observables.primary("gradient_flow", "t²E(t), Q(t)", "t^2 E(t), Q(t)", _four_dimensional, vector=True)
def gradient_flow(target: Wilson, x: Tensor) -> Tensor:
    """At each of `times`: t^2 E by clovers, t^2 E by plaquettes, Q and Q^2 by clovers, `[n, K, 4]` flattened."""
    rows = []
    for t in times(target):
        x = flow(target, x, STEP * APART)
        energy, charge = energy_and_charge(target, x)
        rows.append(
            torch.stack([t**2 * energy, t**2 * energy_of_plaquettes(target, x), charge, charge**2], -1)
        )
    return torch.stack(rows, 1).flatten(1)


def _curve(target: Wilson, means: dict[str, np.ndarray]) -> CubicSpline:
    """`t^2 <E>` by clovers as a spline, zero at t = 0."""
    t2e = means["gradient_flow"].reshape(-1, 4)[:, 0]
    return CubicSpline(np.append(0.0, times(target)), np.append(0.0, t2e))


def _first(spline: CubicSpline, value: float) -> float:
    """The first t in range where the spline is `value`; NaN where there is none."""
    roots = spline.solve(value, extrapolate=False)
    return float(roots[0]) if len(roots) else math.nan


_TOO_SMALL = "0.3 is not reached before the smoothing radius sqrt(8 t) is half of the shortest side"


@observables.derived("t0", "t₀", "t_0", _four_dimensional, ("gradient_flow",), _TOO_SMALL)
def t0(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """t where `t^2 <E> = 0.3`, E by clovers."""
    return _first(_curve(target, means), REFERENCE)


@observables.derived("w0", "w₀", "w_0", _four_dimensional, ("gradient_flow",), _TOO_SMALL)
def w0(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """sqrt t where `t d/dt t^2 <E> = 0.3`, E by clovers."""
    curve = _curve(target, means)
    slope = curve.derivative()
    t = curve.x
    return math.sqrt(_first(CubicSpline(t, t * slope(t)), REFERENCE))


@observables.derived("chi_top", "χ_t", r"\chi_t", _four_dimensional, ("gradient_flow",))
def chi_top(target: Wilson, means: dict[str, np.ndarray]) -> float:
    """Topological susceptibility `<Q^2> / V` of the clover charge at the last of `times`."""
    return float(means["gradient_flow"].reshape(-1, 4)[-1, 3] / target.lattice.volume)
