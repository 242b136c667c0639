"""SU(2) and SU(3): the plaquette by HMC and heat bath, on 8x8 beside the exact one, on 4^4 and 8^4 beside each other.

    python -m benchmarks.gauge_classic                              # one thread, half an hour
    python -m benchmarks.gauge_classic --case "su3 8x8x8x8"         # one of its points

8x8 at beta = 2.2 and 6, four dimensions at beta = 6, where the plaquette is 0.5937 at large volume. Also tau_int of the
plaquette in trajectories (length one; 0.48 at 8^4) and sweeps (one of heat bath, one of over-relaxation), and CPU time of
one. Bars: in two dimensions within 3 sigma of exact, errors at most 2e-4; in four HMC and heat bath within 3 sigma of each
other, and at 8^4 within 0.001 and 3 sigma of 0.5937, of which 0.001 is for the finite volume. The flows: `gauge_sun`.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np

from latticeflow import exact
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import HeatBathSpec, HMCSpec, SamplerSpec
from latticeflow.statistics import Estimate, bracket, mean
from latticeflow.targets import Wilson

from .common import Bars, one_thread

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

LARGE_VOLUME, FINITE_VOLUME = 0.5937, 1e-3


@dataclass(frozen=True)
class Point:
    """`hmc` and `heatbath`: steps of each of `chains` chains; `step`, `length`: of HMC's Omelyan trajectories."""

    group: str
    shape: tuple[int, ...]
    beta: float
    chains: int
    hmc: int
    heatbath: int
    step: float
    length: float = 1.0

    @property
    def name(self) -> str:
        return f"{self.group} {'x'.join(map(str, self.shape))}"

    def samplers(self) -> list[tuple[SamplerSpec, int]]:
        n = self.chains
        first = 100 if len(self.shape) == 2 else 300  # from a cold start few are accepted at first
        hmc = HMCSpec(chains=n, block=n, step=self.step, length=self.length, thermalisation=first)
        return [
            (hmc, self.hmc),
            (HeatBathSpec(chains=n, block=n, overrelaxation=1, thermalisation=100), self.heatbath),
        ]


POINTS = [
    Point("su2", (8, 8), 2.2, 256, 500, 300, 0.1),
    Point("su3", (8, 8), 6.0, 256, 500, 300, 0.1),
    Point("su3", (4,) * 4, 6.0, 32, 60, 300, 0.125),
    Point("su3", (8,) * 4, 6.0, 2, 500, 400, 0.04, 0.48),
]


parser.add_argument("--case", choices=[point.name for point in POINTS], help="only this point")


def plaquette(target: Wilson, spec: SamplerSpec, chains: int, steps: int) -> tuple[Estimate, float]:
    """Its mean, and CPU seconds for a step of one chain."""
    sampler = spec.build(target)
    state, rows = sampler.start(0, stream(1, Purpose.START, 0)), []
    rng, begun, at_once = stream(1, Purpose.DRAW, 0), time.process_time(), 10
    for _ in range(steps // at_once):
        draws, state = sampler.draw(state, at_once * chains, rng)
        rows.append(measure(target, draws.x, "plaquette")["plaquette"].reshape(at_once, chains).T)
    p = np.concatenate(rows, 1)
    return mean(p), (time.process_time() - begun) / p.size


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    for point in POINTS:
        if args.case not in (None, point.name):
            continue
        target = Wilson(shape=point.shape, group=point.group, beta=point.beta)
        plane = len(point.shape) == 2
        known = exact.plaquette(point.group, point.shape, point.beta) if plane else LARGE_VOLUME
        found = []
        for spec, steps in point.samplers():
            p, seconds = plaquette(target, spec, point.chains, steps)
            found.append(p)
            name = f"{point.name}, beta = {point.beta:g}, {spec.kind}"
            print(
                f"{name}: plaquette {bracket(p.value, p.error)}, {'exact' if plane else 'at large volume'} {known:.6f}; "
                f"tau_int {p.tau}; {1e6 * seconds:,.0f} us a step of a chain",
                flush=True,
            )
            if plane:
                bars.at_most(f"{name}: |plaquette - exact| / sigma", abs(p.value - known) / p.error, 3)
                bars.at_most(f"{name}: error", p.error, 2e-4)
            elif point.shape[0] >= 8:
                beyond = max(0.0, abs(p.value - known) - FINITE_VOLUME)
                bars.at_most(f"{name}: (|plaquette - 0.5937| - 0.001) / sigma", beyond / p.error, 3)
        if not plane:
            a, b = found
            pull = abs(a.value - b.value) / float(np.hypot(a.error, b.error))
            bars.at_most(f"{point.name}: |HMC - heat bath| / sigma", pull, 3)
    bars.end()


if __name__ == "__main__":
    main()
