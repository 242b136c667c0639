"""Observables as curves in a coupling, from one conditional flow: draws at a few nodes, reweighted to every point.

n draws from the flow at each of K nodes on a line of couplings g are n K draws of the mixture of their densities,
stratified; since flows are normalised, the mixture's density is known, and

    q(x) = (1/K) sum_k q_k(x),    w(x; g) = exp(-S_g(x)) / q(x),    Z(g) = < w >,    < O >_g = < w O > / < w >

at any g, with nothing to be solved: the balance heuristic (Veach and Guibas 1995), or MBAR (0801.1426) where all Z_k are
known. Every draw counts at every g, weights are bounded where any node's flow is good, and the flow's own deviation from
its target is corrected with the rest. `ESS(g) = <w>^2 / <w^2>` says how far a point is from all nodes.
"""

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..flows.conditional import ConditionalFlow, Point
from ..observables import Derived, Primary, measure, observables
from ..precision import double
from ..random import Purpose, stream
from ..samplers import FlowSampler
from ..samplers.density import DENSITY_TOLERANCE, SOLVED
from ..statistics import jackknife, summarise_weights
from ..targets import Target

OBSERVABLES = ("phi2", "chi2", "abs_m", "binder")
FEWEST = 128  # draws a node: as many as the jackknife has bins
_STREAMS = zlib.crc32(b"curve")


@dataclass(frozen=True)
class Nodes:
    """n draws at each of K `points`: fields `x` `[n, K, *event_shape]`, `log_q` of the mixture, float64 `[n, K]`.

    `density_error`: of flows that are solved in steps, the largest change of log q at twice the resolution.
    """

    target: Target
    points: list[Point]
    x: Tensor
    log_q: np.ndarray
    density_error: float = 0.0


@dataclass(frozen=True)
class Curve:
    """Along `couplings` (names with arrays `[P]`): `ess`, `log_z` and the observables in `values`.

    Errors are one sigma, by the jackknife. Estimates at different points come from the same draws and are correlated.
    """

    couplings: dict[str, np.ndarray]
    ess: np.ndarray
    log_z: np.ndarray
    log_z_error: np.ndarray
    values: dict[str, np.ndarray] = field(default_factory=dict)
    errors: dict[str, np.ndarray] = field(default_factory=dict)


@torch.no_grad()
def draw_nodes(
    family: ConditionalFlow,
    target: Target,
    points: Sequence[Point],
    n: int,
    *,
    seed: int,
    batch: int = 512,
    density_tolerance: float = DENSITY_TOLERANCE,
) -> Nodes:
    """n draws from `family` at each of `points`, and the density of their mixture at all of them.

    The draws of node k have the stream (seed, ANALYSIS, crc32("curve"), k). log q is computed in the flow's precision, as in
    production. Raises `InputError` for n < 128 or no point, `CoarseSolver` where a flow's density is not good to
    `density_tolerance`.
    """
    if n < FEWEST or not points:
        raise InputError(
            f"curve from {n} draws at each of {len(points)} nodes; expected {FEWEST} draws, 1 node at least"
        )
    flows = [family.at_point(point).eval() for point in points]
    log_q = np.empty((len(points), n, len(points)))  # of flow k, draw, drawn at node
    fields, error = [], 0.0
    for k, (point, flow) in enumerate(zip(points, flows)):
        sampler = FlowSampler(target.at(**point), flow, batch, density_tolerance)
        draws, _ = sampler.draw(None, n, stream(seed, Purpose.ANALYSIS, _STREAMS, k))
        error = max(error, sampler.check_solver(draws, SOLVED))
        for other, q in zip(flows, log_q):
            if other is flow:
                q[:, k] = draws.log_prob - draws.log_w
            else:
                parts = draws.x.to(flow.base.like).split(batch)
                q[:, k] = torch.cat([other.log_prob(part) for part in parts]).cpu().numpy()
        fields.append(draws.x)
    mixture = np.logaddexp.reduce(log_q, axis=0) - math.log(len(points))
    return Nodes(target, list(points), torch.stack(fields, dim=1), mixture, error)


def log_weights(nodes: Nodes, point: Point) -> np.ndarray:
    """`log w(x; g)` of all draws at couplings `point`, float64 `[n, K]`."""
    target = nodes.target.at(**point)
    pieces = nodes.x.flatten(0, 1).split(4096)
    log_p = torch.cat([target.log_prob(double(piece)) for piece in pieces])
    return log_p.cpu().numpy().reshape(nodes.log_q.shape) - nodes.log_q


def curve(nodes: Nodes, points: Sequence[Point], names: Sequence[str] = OBSERVABLES) -> Curve:
    """ESS, log Z and the observables called `names` at each of `points`, from the draws at the nodes.

    A jackknife bin holds equally many draws of every node. Raises `InputError` for an unknown observable, one that does not
    exist on this target, or is a vector.
    """
    wanted = [_scalar(name, nodes.target) for name in names]
    primaries = sorted(
        {n for one in wanted for n in (one.needs if isinstance(one, Derived) else (one.name,))}
    )
    found: dict[str, list[np.ndarray]] = {"log_z": [], "rest": []}
    ess = []
    for point in points:
        target, log_w = nodes.target.at(**point), log_weights(nodes, point)
        top = log_w.max()
        w = np.exp(log_w - top)
        series = measure(target, nodes.x.flatten(0, 1), *primaries)
        series = {name: a.reshape(*w.shape, *a.shape[1:]) for name, a in series.items()}

        def estimates(means: dict[str, np.ndarray], target: Target = target) -> np.ndarray:
            return np.array([_value(one, target, means) for one in wanted])

        def log_z(means: dict[str, np.ndarray], top: float = top) -> float:
            return float(np.log(means["w"]) + top)

        ess.append(summarise_weights(log_w.ravel()).ess)
        found["log_z"].append(np.stack(jackknife(log_z, {"w": w}, tau=0.5)))
        found["rest"].append(
            np.stack(jackknife(estimates, series, weights=w, tau=0.5)) if wanted else np.empty((2, 0))
        )
    z, rest = np.array(found["log_z"]), np.array(found["rest"])
    return Curve(
        couplings={name: np.array([point[name] for point in points]) for name in points[0]},
        ess=np.array(ess),
        log_z=z[:, 0],
        log_z_error=z[:, 1],
        values={name: rest[:, 0, i] for i, name in enumerate(names)},
        errors={name: rest[:, 1, i] for i, name in enumerate(names)},
    )


def _scalar(name: str, target: Target) -> Primary | Derived:
    one = observables.find(name)
    if reason := one.missing(target):
        raise InputError(f"'{name}' does not exist here: {reason}")
    if not isinstance(one, Primary | Derived) or getattr(one, "vector", False):
        raise InputError(f"'{name}' is a vector; a curve shows numbers: {', '.join(OBSERVABLES)}, ...")
    return one


def _value(one: Primary | Derived, target: Target, means: dict[str, np.ndarray]) -> float:
    return one.of(target, means) if isinstance(one, Derived) else float(means[one.name])
