"""Heat bath and over-relaxation of gauge links, and winding updates of U(1) in two dimensions."""

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..groups import wrap
from ..lattice import Lattice
from ..precision import DTYPES, double
from ..targets import Target, Wilson
from .base import Draws, Sampler, SamplerSpec, State, samplers

CREUTZ = 1.5  # kappa below which Creutz's way to draw a0 accepts more often than Kennedy and Pendleton's


@samplers.add("heatbath")
class HeatBathSpec(SamplerSpec):
    """`[sampler.heatbath]`: C chains at once. A step is one stored configuration of every chain.

    `thin`: sweeps per step; a sweep is one of heat bath, `overrelaxation` of over-relaxation, and `winding` winding updates
    (U(1) in two dimensions only). `thermalisation`: sweeps before the first draw, from a cold start. Other settings: as
    HMC's.
    """

    chains: int = Field(128, ge=1)
    streams: int = Field(8, ge=1)
    block: int = Field(8192, ge=1)
    thin: int = Field(1, ge=1)
    overrelaxation: int = Field(3, ge=0)
    winding: int = Field(0, ge=0)
    thermalisation: int = Field(300, ge=1)

    def model_post_init(self, context) -> None:
        if self.block % self.chains:
            raise InputError(
                f"{self.kind}: block = {self.block} is not a multiple of chains = {self.chains}; expected e.g. block = "
                f"{max(1, self.block // self.chains) * self.chains}"
            )

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "HeatBath":
        """The sampler. Raises `InputError` for another target than Wilson's, for odd sides, and for winding elsewhere than
        in U(1) in two dimensions."""
        if type(target) is not Wilson:  # what inherits from it has more than plaquettes in its action
            raise InputError(
                f"{self.kind}: the action of target '{target.kind}' is no sum over links with staples; expected "
                "'wilson'. Use hmc"
            )
        target.lattice.require_even(self.kind)
        if self.winding and (target.group != "u1" or len(target.shape) != 2):
            raise InputError(
                f"{self.kind}: winding = {self.winding} for {target.group} on {target.shape}; winding updates are known for "
                "u1 in two dimensions"
            )
        return HeatBath(target, self, device)


class HeatBath(Sampler):
    """Every link in turn from `p(U) ~ exp((beta / N) Re tr U A)`, its distribution given all others; A: sum of its staples.

    Links of one direction on sites of one parity do not meet in a plaquette and are updated together.

    - U(1): `theta + arg A` is von Mises distributed with kappa = beta |A|.
    - SU(2): with `U A = k V`, V in SU(2), U becomes `X V^dagger U`, `X = a0 + i a . sigma` with
      `p(a0) ~ sqrt(1 - a0^2) exp(kappa a0)`, kappa = beta k, a in any direction; a0 as Kennedy and Pendleton (Phys. Lett. B
      156 (1985) 393), and as Creutz (Phys. Rev. D 21 (1980) 2308) where kappa is small.
    - SU(3): the same in each of three SU(2) subgroups, `kappa = (2 beta / N) k`, k V the part of the subgroup's block of
      U A that is a multiple of SU(2) (Cabibbo and Marinari, Phys. Lett. B 119 (1982) 387).

    Over-relaxation takes U A to its mirror image, with the same action: `(V^dagger)^2 U`, for U(1)
    `theta -> -theta - 2 arg A` (Creutz, Phys. Rev. D 36 (1987) 515). A winding update adds or takes off, with equal
    probability, the field of one instanton, 2 pi / V on every plaquette, and is accepted with `min(1, exp(-dS))`: it moves Q
    where everything else is frozen.

    Everything but the random numbers is done on the device. State: `x`, `log_prob`. `Draws.info`, with winding:
    `winding_acceptance` of a step.
    """

    def __init__(self, target: Wilson, spec: HeatBathSpec, device: str = "cpu"):
        self.target: Wilson = target
        self.spec, self.device, self.chains = spec, device, spec.chains
        self.dtype = DTYPES[spec.precision]
        self.field_dtype = target.field_dtype(self.dtype)

    @torch.no_grad()
    def start(self, stream: int, rng: np.random.Generator) -> State:
        """From all links 1, `thermalisation` sweeps."""
        one = torch.zeros((), dtype=self.field_dtype, device=self.device)
        dim = len(self.target.shape)
        x = self.target.links.identity((self.chains, dim, *self.target.shape), one).contiguous()
        for _ in range(self.spec.thermalisation):
            x, _ = self.sweep(x, rng)
        return self._state(x)

    def _state(self, x: Tensor) -> State:
        return {"x": x.cpu().numpy(), "log_prob": self.target.log_prob(double(x)).cpu().numpy()}

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State]:
        """n configurations, n a multiple of `chains`: draw i is step i // chains of chain i % chains."""
        expected = (self.chains, *self.target.event_shape)
        if n < 1 or n % self.chains:
            raise InputError(f"heatbath: {n} draws; expected a positive multiple of {self.chains} chains")
        if state is None or state["x"].shape != expected:
            raise InputError(f"heatbath: expected a state that `start` gave, with x of shape {expected}")
        x = torch.from_numpy(state["x"]).to(self.device)
        steps = n // self.chains
        xs, acceptance = torch.empty((steps, *x.shape), dtype=x.dtype), np.zeros(steps)
        for i in range(steps):
            for _ in range(self.spec.thin):
                x, accepted = self.sweep(x, rng)
                acceptance[i] += accepted / self.spec.thin
            xs[i] = x
        flat = xs.flatten(0, 1)
        pieces = [self.target.log_prob(double(piece)) for piece in flat.split(1024)]
        info = {"winding_acceptance": acceptance} if self.spec.winding else {}
        return Draws(flat, torch.cat(pieces).numpy(), info=info), self._state(x)

    def sweep(self, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
        """One sweep of all links of every chain: the new x, and the share of winding updates that were accepted."""
        x = self._links(x, rng)
        for _ in range(self.spec.overrelaxation):
            x = self._links(x, None)
        accepted = 0.0
        for _ in range(self.spec.winding):
            x, ok = winding_update(self.target, x, rng)
            accepted += ok / self.spec.winding
        return self.target.settle(x), accepted

    def _links(self, x: Tensor, rng: np.random.Generator | None) -> Tensor:
        """All links once: from their heat baths, or with rng None by over-relaxation."""
        lattice, group, beta = self.target.lattice, self.target.links, self.target.beta
        flat = x.reshape(self.chains, lattice.dim, lattice.volume, *group.tail).clone()
        for mu in range(lattice.dim):
            for parity in (0, 1):
                here, around = _neighbourhood(lattice, mu, parity)
                u = flat[:, mu, here]
                if group.n == 1:
                    flat[:, mu, here] = _angles(u, _angle_staples(flat, mu, here, around), beta, rng)
                else:
                    flat[:, mu, here] = _matrices(
                        u, _matrix_staples(flat, mu, here, around), 2 * beta / group.n, rng
                    )
        return flat.view_as(x)


@lru_cache(maxsize=64)
def _neighbourhood(
    lattice: Lattice, mu: int, parity: int
) -> tuple[Tensor, list[tuple[int, Tensor, Tensor, Tensor, Tensor]]]:
    """Sites x of one parity, and for each nu != mu: nu and the sites x + mu, x + nu, x - nu, x + mu - nu."""
    sites = np.arange(lattice.volume).reshape(lattice.shape)

    def at(*moves: tuple[int, int]) -> Tensor:
        moved = sites
        for axis, step in moves:
            moved = np.roll(moved, -step, axis)
        return torch.from_numpy(moved[lattice.parity == parity].copy())

    around = [
        (nu, at((mu, 1)), at((nu, 1)), at((nu, -1)), at((mu, 1), (nu, -1)))
        for nu in range(lattice.dim)
        if nu != mu
    ]
    return at(), around


def _angle_staples(flat: Tensor, mu: int, here: Tensor, around) -> Tensor:
    """A of the links `flat[:, mu, here]` of U(1), complex `[C, sites]`; `Re tr U A = Re exp(i theta) A`."""
    angles = []
    for nu, ahead, beside, behind, corner in around:
        u, v = flat[:, mu], flat[:, nu]
        angles.append(v[:, ahead] - u[:, beside] - v[:, here])
        angles.append(v[:, behind] - u[:, behind] - v[:, corner])
    angle = torch.stack(angles)
    return torch.polar(torch.ones_like(angle), angle).sum(0)


def _matrix_staples(flat: Tensor, mu: int, here: Tensor, around) -> Tensor:
    """A of the links `flat[:, mu, here]` of SU(N), `[C, sites, N, N]`."""
    total: Tensor | float = 0.0
    for nu, ahead, beside, behind, corner in around:
        u, v = flat[:, mu], flat[:, nu]
        total = total + v[:, ahead] @ (v[:, here] @ u[:, beside]).mH
        total = total + (u[:, behind] @ v[:, corner]).mH @ v[:, behind]
    return total  # type: ignore[return-value]


def _angles(theta: Tensor, a: Tensor, beta: float, rng: np.random.Generator | None) -> Tensor:
    """New angles of U(1)."""
    if rng is None:
        return wrap(-theta - 2 * a.angle())
    drawn = rng.vonmises(0.0, beta * a.abs().double().cpu().numpy())
    return wrap(torch.from_numpy(drawn).to(theta) - a.angle())


def _matrices(u: Tensor, a: Tensor, coupling: float, rng: np.random.Generator | None) -> Tensor:
    """New links of SU(N), subgroup after subgroup; `coupling` = 2 beta / N."""
    n = u.shape[-1]
    for i, j in [(0, 1)] if n == 2 else [(0, 1), (0, 2), (1, 2)]:
        rows, w = u[..., [i, j], :], (u[..., [i, j], :] @ a)[..., [i, j]]
        v = torch.stack(
            [
                w[..., 0, 0].real + w[..., 1, 1].real,
                w[..., 0, 1].imag + w[..., 1, 0].imag,
                w[..., 0, 1].real - w[..., 1, 0].real,
                w[..., 0, 0].imag - w[..., 1, 1].imag,
            ],
            -1,
        )
        v = v / 2  # k V = v0 + i v . sigma, the part of w that is a multiple of SU(2)
        k = torch.linalg.vector_norm(v, dim=-1)
        inverse = _conjugate(v / k.clamp_min(torch.finfo(k.dtype).tiny)[..., None])
        if rng is None:
            g = _product(inverse, inverse)
        else:
            g = _product(su2_heat_bath(coupling * k, rng), inverse)
        u = u.clone()
        u[..., [i, j], :] = _as_matrix(g) @ rows
    return u


def _conjugate(q: Tensor) -> Tensor:
    return torch.cat([q[..., :1], -q[..., 1:]], -1)


def _product(p: Tensor, q: Tensor) -> Tensor:
    """Of `p0 + i p . sigma` and `q0 + i q . sigma`."""
    a, b, c, d = p.unbind(-1)
    e, f, g, h = q.unbind(-1)
    return torch.stack(
        [
            a * e - b * f - c * g - d * h,
            a * f + b * e - c * h + d * g,
            a * g + c * e - d * f + b * h,
            a * h + d * e - b * g + c * f,
        ],
        -1,
    )


def _as_matrix(q: Tensor) -> Tensor:
    """`q0 + i q . sigma`, complex `[..., 2, 2]`."""
    a, b, c, d = q.unbind(-1)
    rows = [torch.complex(a, d), torch.complex(c, b), torch.complex(-c, b), torch.complex(a, -d)]
    return torch.stack(rows, -1).unflatten(-1, (2, 2))


def su2_heat_bath(kappa: Tensor, rng: np.random.Generator) -> Tensor:
    """Quaternions X with density `exp(kappa a0)` on SU(2), `[..., 4]`, for kappa `[...]`, not negative."""
    strength = kappa.double().cpu().numpy().ravel()
    a0, missing = np.empty_like(strength), np.arange(len(strength))
    while len(missing):
        k = strength[missing]
        r = 1 - rng.random((4, len(missing)))  # in (0, 1]
        # Kennedy and Pendleton: 1 - a0 is the sum of a Gaussian's square and an exponential variate
        found = 1 + (np.log(r[0]) + np.cos(2 * np.pi * r[1]) ** 2 * np.log(r[2])) / np.maximum(k, CREUTZ)
        ok = r[3] ** 2 <= (1 + found) / 2
        # Creutz: a0 from exp(kappa a0) on [-1, 1]
        weak = k < CREUTZ
        small = np.maximum(k[weak], 1e-9)
        found[weak] = np.log(np.exp(-small) + r[0, weak] * 2 * np.sinh(small)) / small
        ok[weak] = r[3, weak] ** 2 <= 1 - found[weak] ** 2
        a0[missing[ok]] = np.clip(found[ok], -1, 1)
        missing = missing[~ok]
    z = 2 * rng.random(len(a0)) - 1
    angle, length = 2 * np.pi * rng.random(len(a0)), np.sqrt(1 - a0**2)
    across = np.sqrt(1 - z**2) * length
    x = np.stack([a0, across * np.cos(angle), across * np.sin(angle), z * length], -1)
    return torch.from_numpy(x).to(kappa).view(*kappa.shape, 4)


@lru_cache(maxsize=16)
def instanton(shape: tuple[int, int]) -> Tensor:
    """Angles `[2, *shape]`, float64, of the field with 2 pi / V on every plaquette, modulo 2 pi, and Q = 1."""
    (a, b), volume = shape, shape[0] * shape[1]
    theta = torch.zeros(2, a, b, dtype=torch.float64)
    theta[1] = 2 * math.pi / volume * torch.arange(a, dtype=torch.float64)[:, None]
    theta[0, a - 1] = -2 * math.pi / b * torch.arange(b, dtype=torch.float64)
    return theta


def winding_update(target: Wilson, x: Tensor, rng: np.random.Generator) -> tuple[Tensor, float]:
    """One winding update of every chain: the new x, and the share that was accepted."""
    sign = torch.from_numpy(rng.integers(2, size=len(x)) * 2.0 - 1).to(x)
    shift = sign.view(-1, 1, 1, 1) * instanton(target.shape).to(x)  # type: ignore[arg-type]
    new = wrap(x + shift)
    change = target.log_prob(double(new)) - target.log_prob(double(x))
    ok = -torch.from_numpy(rng.standard_exponential(len(x))).to(change) < change
    return torch.where(ok.view(-1, 1, 1, 1), new, x), float(ok.double().mean())
