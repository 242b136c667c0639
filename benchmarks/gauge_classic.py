"""SU(2) and SU(3) on 8x8: the plaquette by HMC and heat bath, beside the exact one.

    python -m benchmarks.gauge_classic              # one thread

beta = 2.2 and 6; also tau_int of the plaquette in trajectories (length one, ten Omelyan steps) and sweeps (one of heat bath,
one of over-relaxation), and CPU time of one. Bars: within 3 sigma of exact, errors at most 2e-4. The flows: `gauge_flows`.
"""

import argparse
import time

import numpy as np

from latticeflow import exact
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HeatBathSpec, HMCSpec
from latticeflow.statistics import bracket, mean
from latticeflow.targets import Wilson

from .common import Bars, one_thread

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=300, help="trajectories and sweeps of each of 256 chains")

CHAINS, PIECE = 256, 10
TARGETS = [Wilson(shape=(8, 8), group="su2", beta=2.2), Wilson(shape=(8, 8), group="su3", beta=6.0)]
SAMPLERS = [
    HMCSpec(chains=CHAINS, block=CHAINS, step=0.1, length=1.0, thermalisation=100),
    HeatBathSpec(chains=CHAINS, block=CHAINS, overrelaxation=1, thermalisation=50),
]


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    for target in TARGETS:
        known = exact.plaquette(target.group, target.shape, target.beta)
        for spec in SAMPLERS:
            sampler = spec.build(target)
            state, rows = sampler.start(0, stream(1, Purpose.START, 0)), []
            rng, begun = stream(1, Purpose.DRAW, 0), time.process_time()
            for _ in range(args.steps // PIECE):
                draws, state = sampler.draw(state, PIECE * CHAINS, rng)
                rows.append(measure(target, draws.x, "plaquette")["plaquette"].reshape(PIECE, CHAINS).T)
            us = 1e6 * (time.process_time() - begun) / (len(rows) * PIECE * CHAINS)
            p = mean(np.concatenate(rows, 1))
            name = f"{target.group} 8x8, beta = {target.beta:g}, {spec.kind}"
            print(
                f"{name}: plaquette {bracket(p.value, p.error)}, exact {known:.6f}; tau_int {p.tau}; {us:.0f} us a step of "
                "a chain",
                flush=True,
            )
            bars.at_most(f"{name}: |plaquette - exact| / sigma", abs(p.value - known) / p.error, 3)
            bars.at_most(f"{name}: error", p.error, 2e-4)
    bars.end()


if __name__ == "__main__":
    main()
