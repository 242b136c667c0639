"""Pure gauge theories with Wilson's action."""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..errors import InputError
from ..groups import GROUPS, Group, wrap
from .base import LatticeTarget, targets

OFF_GROUP = 1e-3  # largest |U^dagger U - 1| of links that are taken for rounded ones


@targets.add("wilson")
class Wilson(LatticeTarget):
    """Wilson's gauge theory, `log_prob = -S` with respect to normalised Haar measure:

    `S = -(beta / N) sum_x sum_{mu < nu} Re tr P_mu_nu(x)`; U(1): `-beta sum cos P`, N = 1,
    `P_mu_nu(x) = U_mu(x) U_nu(x + mu) U_mu(x + nu)^dagger U_nu(x)^dagger`,

    U_mu(x) the link from x to x + mu, on a periodic lattice of 2 to 4 dimensions (Wilson, Phys. Rev. D 10 (1974) 2445). No
    constant: S = -beta D (D - 1) V / 2 at U = 1. `group`: "u1", links as angles, x float `[batch, D, *shape]`; "su2" and
    "su3", links as matrices, x complex `[batch, D, *shape, N, N]`. Momenta and forces are coefficients in the algebra
    (`groups.py`). Raises `InputError` for beta < 0 and for one dimension.
    """

    measure: ClassVar[str] = "haar"
    group: Literal["u1", "su2", "su3"]
    beta: float

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if self.beta < 0:
            raise InputError(f"{self.kind} with beta = {self.beta}: expected beta >= 0")
        if len(self.shape) < 2:
            raise InputError(f"{self.kind} on {self.shape}: plaquettes need 2 to 4 dimensions")
        if min(self.shape) < 2:  # a link would be its own neighbour, and the action not linear in it
            raise InputError(f"{self.kind} on {self.shape}: expected sides of at least 2")

    @property
    def links(self) -> Group:
        return GROUPS[self.group]

    @property
    def event_shape(self) -> tuple[int, ...]:
        return (len(self.shape), *self.shape, *self.links.tail)

    @property
    def momentum_shape(self) -> tuple[int, ...]:
        return (len(self.shape), *self.shape, *self.links.algebra_tail)

    def field_dtype(self, precision: torch.dtype) -> torch.dtype:
        return self.links.dtype(precision)

    def move(self, x: Tensor, p: Tensor, time: float) -> Tensor:
        """`U -> exp(i time p_a T_a) U`; angles are not wrapped on the way."""
        if self.group == "u1":
            return x.add_(p, alpha=time)
        return self.links.exp(time * p) @ x

    def settle(self, x: Tensor) -> Tensor:
        return self.links.project(x)

    def pair(self, covector: Tensor, x: Tensor) -> Tensor:
        return self.links.pair(covector, x)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        return wrap(x - y).abs() if self.group == "u1" else (x - y).abs()

    def start(self, noise: Tensor) -> Tensor:
        return self.links.exp(0.1 * noise)

    def slow(self, x: Tensor) -> Tensor:
        """`|L|^2`, L the mean of all Polyakov loops in the last direction."""
        return polyakov_loops(self.links, x, len(self.shape) - 1).flatten(1).mean(1).abs().square()

    def action(self, x: Tensor) -> Tensor:
        """S, `[batch]`."""
        self.check(x)
        total = x.new_zeros(len(x), dtype=x.real.dtype)
        for _, _, p in self.plaquettes(x):
            total = total - self.links.trace(p).flatten(1).sum(1)
        return self.beta * total

    def plaquettes(self, x: Tensor):
        """`(mu, nu, P_mu_nu)` of every plane mu < nu, P `[batch, *shape, *tail]`."""
        for mu in range(len(self.shape)):
            for nu in range(mu + 1, len(self.shape)):
                yield mu, nu, plaquette(self.links, x, mu, nu)

    def force(self, x: Tensor) -> Tensor:
        """`-d_a S`, `[batch, *momentum_shape]`: for each link `(beta / N) d_a Re tr U A`, A the sum of its staples."""
        self.check(x)
        return _angle_force(self, x) if self.group == "u1" else _matrix_force(self, x)

    def laplacian(self, x: Tensor) -> Tensor:
        """`sum d_a d_a S` over links and a, `[batch]`: `-4 C S`, `C = (N^2 - 1) / 2 N` (U(1): 1): plaquettes have four."""
        n = self.links.n
        casimir = (n**2 - 1) / (2 * n) if n > 1 else 1.0
        return -4 * casimir * Wilson.action(self, x)

    def check_field(self, x: Tensor) -> Tensor:
        """x itself; raises `InputError` where a link is off the group by more than rounding."""
        off = self.links.violation(self.check(x)).flatten(1).amax(1)
        bad = ~(off <= OFF_GROUP)  # NaN is off, too
        if bad.any():
            raise InputError(
                f"{self.kind}: {int(bad.sum())} of {len(x)} configurations, the first number {int(bad.int().argmax())}, "
                f"hold links off {self.links.name}, by up to {float(off.max()):.3g}; allowed {OFF_GROUP}"
            )
        return x


def neighbour(u: Tensor, mu: int, steps: int = 1) -> Tensor:
    """`v(x) = u(x + steps mu)`, u `[batch, *shape, *tail]`."""
    return torch.roll(u, -steps, 1 + mu)


def plaquette(group: Group, x: Tensor, mu: int, nu: int) -> Tensor:
    """`P_mu_nu`, `[batch, *shape, *tail]`."""
    u, v = x[:, mu], x[:, nu]
    there = group.mul(u, neighbour(v, mu))
    back = group.mul(v, neighbour(u, nu))
    return group.mul(there, group.dagger(back))


def polyakov_loops(group: Group, x: Tensor, mu: int) -> Tensor:
    """`L = tr [ U_mu(x) U_mu(x + mu) ... ] / N` around the torus, complex `[batch, *shape without mu]`."""
    first, *others = x[:, mu].unbind(1 + mu)
    loop = first
    for u in others:
        loop = group.mul(loop, u)
    if group.n == 1:
        return torch.polar(torch.ones_like(loop), loop)
    return loop.diagonal(dim1=-2, dim2=-1).sum(-1) / group.n


def _angle_force(target: Wilson, x: Tensor) -> Tensor:
    """`-beta sum_nu [ sin P_mu_nu(x) - sin P_mu_nu(x - nu) ]`, each plaquette's sine once."""
    force = torch.zeros_like(x)
    for mu, nu, p in target.plaquettes(x):
        s = p.sin_()
        force[:, mu] += neighbour(s, nu, -1).sub_(s)
        force[:, nu] -= neighbour(s, mu, -1).sub_(s)
    return force.mul_(target.beta)


def _matrix_force(target: Wilson, x: Tensor) -> Tensor:
    group, dim = target.links, len(target.shape)
    force = x.new_empty((len(x), *target.momentum_shape), dtype=x.real.dtype)
    for mu in range(dim):
        force[:, mu] = group.gradient(x[:, mu] @ staples(x, mu, dim))
    return force.mul_(target.beta / group.n)


def staples(x: Tensor, mu: int, dim: int) -> Tensor:
    """`A = sum_{nu != mu} [ U_nu(x+mu) U_mu(x+nu)^+ U_nu(x)^+ + U_nu(x+mu-nu)^+ U_mu(x-nu)^+ U_nu(x-nu) ]` of SU(N) links,

    `[batch, *shape, N, N]`: the part of S that holds U_mu(x) is `-(beta / N) Re tr U_mu(x) A`.
    """
    u, total = x[:, mu], torch.zeros_like(x[:, mu])
    for nu in range(dim):
        if nu != mu:
            v = x[:, nu]
            ahead = neighbour(v, mu)
            total = total + ahead @ (v @ neighbour(u, nu)).mH
            total = total + neighbour((u @ ahead).mH @ v, nu, -1)
    return total
