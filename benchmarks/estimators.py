"""Which gradient estimator converges best per second: each trains the default split flow for the same seconds.

    python -m benchmarks.estimators                                   # E1 and E2, 60 s each, one seed: 6 minutes
    python -m benchmarks.estimators E1 --seconds 60 --seeds 1 2 3

Seconds are processor seconds of one thread, so that a busy machine changes no figure; a probe measures the rate, which fixes
the number of steps. Prints ESS and loss `< log q + S >` at N = 65,536 fresh draws, with errors, and steps per second. Bars:
the ESS of the default estimator, mean of the seeds, is the largest at every point, within two errors of the difference.
"""

import argparse
import math
import time

import numpy as np

from latticeflow.flows import Flow, Split
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import bracket, summarise_weights
from latticeflow.targets import LatticeTarget, Phi4
from latticeflow.training import TrainSettings, train
from latticeflow.training.loss import ESTIMATORS

from .common import Bars, one_thread

POINTS = {"E1": ((6, 6), 6.975), "E2": ((8, 8), 6.008)}
PROBE = 40  # steps
DEFAULT = TrainSettings(steps=1).estimator

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=list(POINTS), metavar="POINT")
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--seeds", type=int, nargs="+", default=[1])
parser.add_argument("--draws", type=int, default=65536)


def trained(target: LatticeTarget, estimator: str, steps: int, seed: int) -> tuple[Flow, float]:
    """The flow after `steps`, and the processor seconds that they took."""
    settings = TrainSettings(steps=steps, estimator=estimator, evaluate_every=10**9, evaluate_draws=1024)
    flow = Split().build(target.lattice, seed)
    marks: list[float] = []
    train(flow, target, settings, seed=seed, tick=lambda done: marks.append(time.process_time()))
    return flow, (marks[-1] - marks[0]) * steps / max(1, steps - 1)


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(POINTS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(POINTS)}")
    one_thread()
    bars = Bars()
    for point in args.points:
        shape, lam = POINTS[point]
        target = Phi4(shape=shape, m2=-4.0, lam=lam)
        print(f"{point}: phi4 {shape}, m2 = -4, lam = {lam}; {args.seconds:.0f} processor seconds each")
        means: dict[str, tuple[float, float]] = {}
        for estimator in ESTIMATORS:
            steps = max(2, int(args.seconds * PROBE / trained(target, estimator, PROBE, 1)[1]))
            found = []
            for seed in args.seeds:
                flow, spent = trained(target, estimator, steps, seed)
                rng = stream(seed, Purpose.DRAW, 0)
                log_w = FlowSampler(target, flow).draw(None, args.draws, rng)[0].log_w
                s, error = summarise_weights(log_w), log_w.std() / math.sqrt(args.draws)
                found.append((s.ess, s.ess_error))
                print(
                    f"    {estimator:15} seed {seed}: ESS {bracket(s.ess, s.ess_error)}  loss "
                    f"{bracket(-log_w.mean(), error)}  log Z {bracket(s.log_z, s.log_z_error)}  {steps} steps, "
                    f"{steps / spent:.1f} a second",
                    flush=True,
                )
            ess, own = np.array(found).T
            spread = ess.std(ddof=1) if len(ess) > 1 else 0.0
            means[estimator] = ess.mean(), math.hypot(spread, own.mean()) / math.sqrt(len(ess))
        best, error = means.pop(DEFAULT)
        for other, (value, its) in means.items():
            allowed = 2 * math.hypot(error, its)
            bars.at_least(
                f"{point}: ESS of {DEFAULT} over that of {other}", best / value, 1 - allowed / value
            )
    bars.end()


if __name__ == "__main__":
    main()
