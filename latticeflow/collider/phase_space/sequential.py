"""Phase space as a tree of two-body decays, with propagators for what decays."""

import math
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ...errors import InputError
from ...spec import Spec
from . import densities, frames
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces


class Propagator(Spec):
    """The density of `s = (sum of p)^2` of the particles that a node of the tree decays to.

    `flat`; `breit_wigner`, `1 / ((s - mass^2)^2 + mass^2 width^2)`; `power`, `(s + shift)^-exponent`, exponent 1 being
    logarithmic. mass and width in GeV, shift in GeV^2.
    """

    particles: tuple[int, ...]
    kind: Literal["flat", "breit_wigner", "power"] = "flat"
    mass: float | None = Field(default=None, gt=0)
    width: float | None = Field(default=None, gt=0)
    exponent: float | None = Field(default=None, ge=-4, le=10)
    shift: float = Field(default=0.0, ge=0)

    def model_post_init(self, context) -> None:
        needs = {"flat": (), "breit_wigner": ("mass", "width"), "power": ("exponent",)}[self.kind]
        given = tuple(key for key in ("mass", "width", "exponent") if getattr(self, key) is not None)
        if given != needs:
            raise InputError(
                f"sequential: propagator '{self.kind}' of {list(self.particles)} has {list(given)}; expected {list(needs)}"
            )

    def draw(self, u: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """s in [low, high] and `log ds/du`."""
        if self.mass is not None and self.width is not None:
            return densities.breit_wigner(u, low, high, self.mass, self.width)
        return densities.power(u, low, high, self.exponent or 0.0, self.shift)

    def find(self, s: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """u and `log ds/du`."""
        if self.mass is not None and self.width is not None:
            return densities.breit_wigner_inverse(s, low, high, self.mass, self.width)
        return densities.power_inverse(s, low, high, self.exponent or 0.0, self.shift)


class Angle(Spec):
    """The density of cos(theta) in the decay of a node, theta between its first branch and the z axis, in its rest frame.

    `forward`: `(1 - cos + shift)^-exponent`, like a t channel; `backward`: with -cos; `both`: with |cos|.
    """

    particles: tuple[int, ...]
    kind: Literal["forward", "backward", "both"]
    exponent: float = Field(ge=-4, le=10)
    shift: float = Field(gt=0)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`(1 + cos) / 2` and the log of its derivative."""
        v, flip = self._fold(u)
        x, slope = self._power(densities.power, v)
        return torch.where(flip, 1 - x, x), slope

    def find(self, half: Tensor) -> tuple[Tensor, Tensor]:
        """u, and what `draw` gives."""
        flip = half > 0.5 if self.kind == "both" else torch.full_like(half, self.kind == "forward").bool()
        v, slope = self._power(densities.power_inverse, torch.where(flip, 1 - half, half))
        if self.kind == "both":
            return torch.where(flip, 1 - v / 2, v / 2), slope
        return torch.where(flip, 1 - v, v), slope

    def _fold(self, u: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "both":
            return 2 * torch.minimum(u, 1 - u), u > 0.5
        forward = self.kind == "forward"
        return (1 - u if forward else u), torch.full_like(u, forward).bool()

    def _power(self, function, v: Tensor) -> tuple[Tensor, Tensor]:
        high = torch.full_like(v, 0.5 if self.kind == "both" else 1.0)
        x, slope = function(v, torch.zeros_like(v), high, self.exponent, self.shift / 2)
        return x, slope + (math.log(2) if self.kind == "both" else 0)


@phase_spaces.add("sequential")
class Sequential(PhaseSpace):
    """A tree of two-body decays, for any masses and any n >= 2.

        dPhi_n = prod_nodes |p| / (4 pi M) dOmega / 4 pi   prod_(nodes but the first) ds / (2 pi)

    `tree`: a pair of branches, each a particle or again a pair: `[[0, 1], 2]` is a decay to particle 2 and a system that
    decays to 0 and 1. `propagators`: of such systems, named by their particles in any order, flat where none is given;
    `angles`: of the first branch of a decay, likewise, uniform on the sphere where none is given. In Byckling and Kajantie,
    Particle Kinematics (1973), ch. V.

    u: s of the nodes (n - 2) as they are met from the left, the outer before the inner; then `(1 + cos theta) / 2` and
    `phi / 2 pi` of the first branch of each of the n - 1 decays, in the rest frame of what decays.

    Raises `InputError` for a tree that is not of pairs or does not hold every particle once, a propagator or an angle of
    particles that are no node of it, and a power without end: exponent 1 or more, with shift and masses zero.
    """

    tree: tuple[Any, ...]
    propagators: tuple[Propagator, ...] = ()
    angles: tuple[Angle, ...] = ()

    def build(self, masses: tuple[float, ...]) -> PhaseSpaceMap:
        masses = check_masses("sequential", masses)
        nodes: list[_Node] = []
        root = _grow(self.tree, nodes, masses)
        if sorted(root.particles) != list(range(len(masses))):
            raise InputError(
                f"sequential: tree {_plain(self.tree)} holds {sorted(root.particles)}; expected each of "
                f"0 to {len(masses) - 1} once"
            )
        for what, items, allowed in (
            ("propagator", self.propagators, nodes[1:]),
            ("angle", self.angles, nodes),
        ):
            found = {frozenset(node.particles): node for node in allowed}
            for item in items:
                node = found.pop(frozenset(item.particles), None)
                if node is None or len(set(item.particles)) < len(item.particles):
                    raise InputError(
                        f"sequential: {what} of {list(item.particles)}; expected one of each of the nodes "
                        f"{[list(x.particles) for x in allowed]} of tree {_plain(self.tree)} at most"
                    )
                setattr(node, what, item)
        for node in nodes[1:]:
            power = node.propagator.exponent
            if power is not None and power >= 1 and node.least + node.propagator.shift <= 0:
                raise InputError(
                    f"sequential: the integral of s^-{power} from 0, s of {list(node.particles)}, has no end; "
                    "expected a shift > 0"
                )
        return SequentialMap(masses, nodes)


class _Node:
    """Particles that come from one system, its two branches (none for a particle), and the least mass of it."""

    def __init__(self, particles: tuple[int, ...], branches: "tuple[_Node, ...]", least: float):
        self.particles = particles
        self.branches = branches
        self.least = least
        self.propagator = Propagator(particles=particles)
        self.angle: Angle | None = None


def _grow(tree: Any, nodes: list[_Node], masses: tuple[float, ...]) -> _Node:
    if isinstance(tree, int) and not isinstance(tree, bool):
        return _Node((tree,), (), masses[tree] if 0 <= tree < len(masses) else 0.0)
    if not isinstance(tree, (list, tuple)) or len(tree) != 2:
        raise InputError(
            f"sequential: branch {_plain(tree)!r} of the tree; expected a particle's number or a pair of branches"
        )
    place = len(nodes)
    first, second = (_grow(branch, nodes, masses) for branch in tree)
    node = _Node(first.particles + second.particles, (first, second), first.least + second.least)
    nodes.insert(place, node)
    return node


def _plain(tree: Any) -> Any:
    return [_plain(x) for x in tree] if isinstance(tree, (list, tuple)) else tree


class SequentialMap(PhaseSpaceMap):
    def __init__(self, masses: tuple[float, ...], nodes: list[_Node]):
        n = len(masses)
        self.masses = masses
        self.nodes = nodes
        self.periodic = tuple(n - 1 + 2 * i for i in range(n - 1))

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        n = len(self.masses)
        zero = torch.zeros_like(energy)
        systems = {self.nodes[0].particles: (torch.stack([energy, zero, zero, zero], 1), energy)}
        log_jac, found = zero, {}
        for i, node in enumerate(self.nodes):
            frame, mass = systems[node.particles]
            first, second = node.branches
            sizes: list[Tensor] = []
            for branch, other in ((first, torch.full_like(mass, second.least)), (second, None)):
                if not branch.branches:
                    sizes.append(torch.full_like(mass, branch.least))
                    continue
                low, high = _range(branch, mass, sizes[0] if other is None else other)
                s, slope = branch.propagator.draw(u[:, self.nodes.index(branch) - 1], low, high)
                log_jac = log_jac + slope - math.log(2 * math.pi)
                sizes.append(s.sqrt())
            half = u[:, n - 2 + 2 * i]
            if node.angle is not None:
                half, slope = node.angle.draw(half)
                log_jac = log_jac + slope
            momentum = _momentum(mass, *sizes)
            log_jac = log_jac + (momentum / (4 * math.pi * mass)).log()
            unit = frames.direction(half, u[:, n - 1 + 2 * i])
            parts = frames.decay(frame, mass, momentum, sizes[0], sizes[1], unit)
            for branch, part, size in zip(node.branches, parts, sizes, strict=True):
                systems[branch.particles] = part, size
                if not branch.branches:
                    found[branch.particles[0]] = part
        p = torch.stack([found[i] for i in range(n)], 1)
        return frames.on_shell(p, u.new_tensor(self.masses)), log_jac

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        masses = p.new_tensor(self.masses)
        p = frames.on_shell(p, masses)
        pairs = frames.excess(p, masses)
        levels: dict[tuple[int, ...], Tensor] = {}
        angles: list[Tensor] = []
        log_jac = torch.zeros_like(p[:, 0, 0])
        for node in self.nodes:
            sizes: list[Tensor] = []
            mass = _mass(pairs, node)
            for k, branch in enumerate(node.branches):
                sizes.append(_mass(pairs, branch))
                if branch.branches:
                    other = sizes[0] if k else torch.full_like(mass, node.branches[1].least)
                    levels[branch.particles], slope = branch.propagator.find(
                        sizes[k].square(), *_range(branch, mass, other)
                    )
                    log_jac = log_jac + slope - math.log(2 * math.pi)
            log_jac = log_jac + (_momentum(mass, *sizes) / (4 * math.pi * mass)).log()
            first, both = (p[:, list(x.particles)].sum(1) for x in (node.branches[0], node))
            half, turn = frames.direction_inverse(frames.boost(first, both, mass, back=True)[:, 1:])
            if node.angle is not None:
                half, slope = node.angle.find(half)
                log_jac = log_jac + slope
            angles += [half, turn]
        return torch.stack([*(levels[node.particles] for node in self.nodes[1:]), *angles], 1), -log_jac


def _range(branch: _Node, mass: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Bounds of s of a branch, from the mass of what decays and the (least) mass of the other branch."""
    low = torch.full_like(mass, branch.least**2)
    return low, torch.maximum((mass - other).square(), low * (1 + 1e-15))


def _mass(pairs: Tensor, node: _Node) -> Tensor:
    index = list(node.particles)
    return (node.least**2 + pairs[:, index][:, :, index].sum((1, 2))).sqrt()


def _momentum(mass: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """|p| of a decay to masses a and b, in the rest frame; the smallest number where rounding leaves nothing."""
    product = (
        (mass - a - b).clamp(min=torch.finfo(mass.dtype).tiny)
        * (mass + a + b)
        * (mass - a + b)
        * (mass + a - b)
    )
    return product.sqrt() / (2 * mass)
