"""Molecular dynamics for HMC: `H = p^2 / 2 - log_prob(x)`, so `dx/dt = p`, `dp/dt = force(x)`.

On a group `dU/dt = i p_a T_a U`, `dp_a/dt = d_a log_prob`: the target knows how x moves (`Target.move`) and what a force is.
"""

import torch
from torch import Tensor

from ..errors import InputError
from ..precision import double
from ..targets import Target
from .fourier import FourierMass

LAMBDA = 0.1931833275037836  # least error norm of the five-stage scheme (Omelyan, Mryglod, Folk)

# One step as coefficients c of x += c eps p and p += c eps force(x) in turn.
SCHEMES = {
    "leapfrog": (0.5, 1.0, 0.5),
    "omelyan": (LAMBDA, 0.5, 1 - 2 * LAMBDA, 0.5, LAMBDA),
}
GROWTH = 10.0  # of a difference along a trajectory, in `rounding_bound`
FORCES = {"leapfrog": 1, "omelyan": 2}  # evaluations per step


def trajectory(
    target: Target,
    x: Tensor,
    p: Tensor,
    step: float,
    n_steps: int,
    integrator: str = "omelyan",
    mass: FourierMass | None = None,
) -> tuple[Tensor, Tensor]:
    """Integrate x `[chains, *event_shape]` and p `[chains, *momentum_shape]` over a time `step * n_steps`; a new `(x, p)`.

    With `mass`, p stands for the velocity `M^{-1} p`, which `M^{-1} force(x)` changes.

    With A moving x and B moving p, eps = step, a step is

    leapfrog: `exp(eps/2 A) exp(eps B) exp(eps/2 A)`;
    omelyan: `exp(l eps A) exp(eps/2 B) exp((1 - 2l) eps A) exp(eps/2 B) exp(l eps A)`,
    l = 0.1931833275037836, the second-order scheme of minimum norm (Omelyan, Mryglod, Folk, CPC 146, 188).

    Positions move first: slightly better, and no force is left over at the ends (Takaishi and de Forcrand,
    hep-lat/0505020). Both are reversible, preserve volume and err by eps^2. Neighbouring moves of x are one.
    """
    first, *inner, last = SCHEMES[integrator]
    x, p = x.clone(), p.clone()
    x = target.move(x, p, first * step)
    for k in range(n_steps):
        for i, c in enumerate(inner):
            if i % 2 == 0:
                p.add_(target.force(x) if mass is None else mass.force(target, x), alpha=c * step)
            else:
                x = target.move(x, p, c * step)
        x = target.move(x, p, (last if k == n_steps - 1 else last + first) * step)
    return target.settle(x), p


def hamiltonian(log_prob: Tensor, p: Tensor) -> Tensor:
    """`H = p^2 / 2 - log_prob`, float64 `[chains]`."""
    return 0.5 * p.double().square().flatten(1).sum(1) - log_prob


def rounding_bound(x: Tensor, p: Tensor, n_steps: int, integrator: str = "omelyan") -> float:
    """What rounding allows `|x - x_back|` to be: `GROWTH N eps max(|x|, |p|)`, eps of the fields' dtype.

    N counts the moves of x and p there and back, each of which rounds by up to eps of its largest number; all
    add up at worst. The trajectory may stretch them by GROWTH = 10: phi^4 comes back within 0.1 of the sum at
    tuned lengths and within 1 at length 6, while a scheme that is not reversible misses by about step^2.
    """
    moves = 2 * n_steps * len(SCHEMES[integrator])
    largest = max(float(x.abs().max()), float(p.abs().max()))
    return GROWTH * moves * torch.finfo(p.dtype).eps * largest


def check_reversibility(
    target: Target,
    x: Tensor,
    p: Tensor,
    step: float,
    n_steps: int,
    integrator: str = "omelyan",
    mass: FourierMass | None = None,
) -> tuple[float, float]:
    """Go a trajectory, turn p round, go back: the largest `|x - x_back|` and `|H - H_back|` of any chain.

    Both are rounding (1e-10 and less in float64), unless the force depends on more than x or the trajectory
    is chaotic at this step. p is white noise: with `mass` the velocity is made of it.
    Raises `InputError` for an unknown integrator.
    """
    if integrator not in SCHEMES:
        raise InputError(f"unknown integrator '{integrator}'; known: {', '.join(SCHEMES)}")
    with torch.no_grad():
        v = p if mass is None else mass.velocity(p)
        y, q = trajectory(target, x, v, step, n_steps, integrator, mass)
        back, r = trajectory(target, y, -q, step, n_steps, integrator, mass)
        before = hamiltonian(target.log_prob(double(x)), p)
        after = hamiltonian(target.log_prob(double(back)), r if mass is None else mass.white(r))
        return float(target.distance(back, x).max()), float((after - before).abs().max())
