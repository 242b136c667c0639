"""Do samplers that learn nothing match the trained ones (the claim of arXiv:2511.15196)? AIS beside flows, phi^4, m2 = -4.

    python -m benchmarks.learning_free                          # 8x8 and 14x14, 60 s of training a flow: some 6 minutes
    python -m benchmarks.learning_free 8x8 --seconds 300 --draws 65536
    python -m benchmarks.learning_free 14x14 --run runs/phi4_14x14_E5

For every sampler: ESS, log Z and its error, CPU seconds of drawing (one thread) a draw and an independent configuration,
`seconds / (N ESS)`, then the draws at which a flow's training is paid for against the cheapest AIS. N is less for the long
paths, and printed. `--run`: trained flows of these points in place of new ones. No bars: whatever comes out is the result.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latticeflow.flows import Split
from latticeflow.flows.stochastic import Stochastic
from latticeflow.random import Purpose, stream
from latticeflow.run import Run
from latticeflow.samplers import AnnealedSpec, FlowSampler, Sampler
from latticeflow.statistics import bracket
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import Phi4
from latticeflow.training.checkpoint import load_flow

from .common import SOAP, one_thread, train_for

POINTS = {"8x8": 6.008, "14x14": 5.113, "20x20": 4.807}
STEPS = (8, 16, 32, 64, 128, 256)
SMC = (32, 8)  # steps, particles
BATCH = ((0.0, 64), (0.7, 256))

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["8x8", "14x14"], metavar="POINT")
parser.add_argument("--seconds", type=float, default=60, help="of training, for each flow; 0: none")
parser.add_argument("--run", type=Path, nargs="*", default=[], help="runs with trained flows of these points")
parser.add_argument("--draws", type=int, default=16384)
parser.add_argument("--longest", type=int, default=STEPS[-1], help="most steps of AIS")


@dataclass(frozen=True)
class Line:
    """A sampler's figures; `cost`: CPU seconds an independent configuration, infinite where the ESS is no estimate."""

    name: str
    cost: float
    training: float = 0.0


def measure(name: str, sampler: Sampler, draws: int, training: float = 0.0) -> Line:
    """Draw and print. The first call, of 64 draws, warms up and has AIS make its pilot run."""
    begun = time.process_time()
    sampler.draw(None, 64, stream(5, Purpose.DRAW, 0))
    start = time.process_time() - begun
    begun = time.process_time()
    log_w = sampler.draw(None, draws, stream(5, Purpose.DRAW, 1))[0].log_w
    seconds = time.process_time() - begun
    if log_w is None:
        raise TypeError(f"{name} has no weights")
    found = summarise_weights(np.asarray(log_w))
    cost = seconds / (draws * found.ess)
    # a few weights that hold a tenth of the sum say nothing of the rest: such an ESS is an upper bound at best
    doubtful = found.largest_share > 0.05
    print(
        f"  {name:34s} N {draws:7,}  ESS {bracket(found.ess, found.ess_error):13s} log Z "
        f"{bracket(found.log_z, found.log_z_error):12s} {1e6 * seconds / draws:8.1f} us a draw  "
        f"{1e6 * cost:9.1f} us an independent one{' (doubtful: one weight dominates)' if doubtful else ''}  "
        f"{f'training {training:.0f} s' if training else f'start {start:.1f} s'}",
        flush=True,
    )
    return Line(name, float("inf") if doubtful else cost, training)


def learning_free(target: Phi4, draws: int, longest: int) -> list[Line]:
    """AIS with growing numbers of steps, and SMC: no parameter is learned but the updates' angle and the schedule."""
    lines = []
    for steps in [one for one in STEPS if one <= longest]:
        n = max(2048, draws * 32 // max(32, steps))
        lines.append(measure(f"AIS, {steps} steps", AnnealedSpec(steps=steps).build(target), n))
    steps, particles = SMC
    spec = AnnealedSpec(steps=steps, particles=particles)
    lines.append(
        measure(
            f"SMC, {steps} steps, {particles} paths a draw", spec.build(target), max(1024, draws // particles)
        )
    )
    return lines


def trained(target: Phi4, seconds: float, draws: int, runs: list[Path]) -> list[Line]:
    lines = []
    for path in runs:
        run = Run.open(path)
        if run.deck.target == target:
            flow = load_flow(run.weights, run.deck)[0].float().eval()
            lines.append(measure(f"{run.deck.flow.kind}, {path.name}", FlowSampler(target, flow), draws))
    if seconds:
        for name, spec, settings in (
            ("split flow", Split(), SOAP),
            ("stochastic flow, 2 blocks", Stochastic(), {"batch": BATCH}),
        ):
            flow, steps, spent = train_for(spec, target, seconds, **settings)
            lines.append(measure(f"{name}, {steps} steps", FlowSampler(target, flow.eval()), draws, spent))
    return lines


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(POINTS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(POINTS)}")
    one_thread()
    for point in args.points:
        side = int(point.split("x")[0])
        target = Phi4(shape=(side, side), m2=-4.0, lam=POINTS[point])
        print(f"{point}, lam = {target.lam}; CPU seconds, one thread", flush=True)
        free = min(learning_free(target, args.draws, args.longest), key=lambda line: line.cost)
        for line in trained(target, args.seconds, args.draws, args.run):
            ratio = free.cost / line.cost
            verdict = (
                f"  {line.name}: {ratio:.2g} times cheaper an independent configuration than {free.name}"
            )
            if line.training and ratio > 1:
                verdict += f"; training paid for after {line.training / (free.cost - line.cost):,.0f} of them"
            print(verdict, flush=True)


if __name__ == "__main__":
    main()
