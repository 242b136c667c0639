"""Independent chi2 per second of chains that learn nothing: HMC, Fourier-accelerated HMC and clusters, m2 = -4.

    python -m benchmarks.hmc_cost [8x8 10x10 14x14 20x20] [--steps 1000]

One core, drawing alone; seconds are those of the processor, so that other jobs disturb little. The first line is the
default HMC, as it tunes itself, 128 chains in float64. Each of the others

1. tunes itself with 256 chains in float32;
2. tau_int of chi2, in `1/2 + sum rho`, is measured at the tuned number of integration steps, at 1.5 and at 2 times as
   many (the tuning counts force evaluations and is noisy), from `--steps` trajectories of all chains;
3. so are draws per second over chains x precision, medians of several turns, on which tau_int does not depend.

The best `draws per second / (2 tau_int)` is printed. No bar: this is what a flow's cost stands against.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from latticeflow.random import Purpose, stream
from latticeflow.samplers import ClusterSpec, HMCSpec
from latticeflow.statistics import Estimate, mean
from latticeflow.targets import Phi4

from .common import one_thread

LAMBDA = {
    "6x6": 6.975,
    "8x8": 6.008,
    "10x10": 5.550,
    "12x12": 5.276,
    "14x14": 5.113,
    "20x20": 4.807,
    "32x32": 4.572,
}
BATCHES = [(c, p) for p in ("float32", "float64") for c in (128, 256, 512, 1024, 2048)]
LENGTHS = (1.0, 1.5, 2.0)  # of the tuned trajectory
TURNS = 5

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["8x8", "10x10", "14x14", "20x20"], metavar="POINT")
parser.add_argument("--steps", type=int, default=1000)


def rivals() -> dict[str, HMCSpec]:
    one = {"chains": 256, "block": 256, "precision": "float32"}
    return {
        "HMC": HMCSpec(**one),
        "HMC, Fourier": HMCSpec(acceleration="fourier", **one),
        "cluster": ClusterSpec(**one),
    }


@dataclass(frozen=True)
class Cost:
    """Draws per second with so many chains of that precision, chi2 with its tau_int, and the state's settings."""

    speed: float
    batch: tuple[int, str]
    chi2: Estimate
    state: dict

    @property
    def independent(self) -> float:
        """Independent chi2 per second, `speed / (2 tau_int)`."""
        return self.speed / (2 * self.chi2.tau.value)

    def __str__(self) -> str:
        tau, (chains, precision) = self.chi2.tau, self.batch
        mass = f", mass {float(self.state['fourier_mass']):g}" if "fourier_mass" in self.state else ""
        return (
            f"{self.independent:9,.0f} +- {self.independent * tau.error / tau.value:,.0f} independent chi2/s: "
            f"{self.speed:,.0f} draws/s ({chains} chains, {precision}), tau_int {tau.value:.3f} +- {tau.error:.3f}, "
            f"{int(self.state['n_steps'])} steps of {float(self.state['step']):.3f}{mass}; "
            f"chi2 {self.chi2.value:.4f} +- {self.chi2.error:.4f}"
        )


def cost(target: Phi4, spec: HMCSpec, state: dict, batches: list[tuple[int, str]], steps: int) -> Cost:
    """The cost at the state's settings, with the best of the batches."""
    chi2, state = measure(target, spec, state, steps)
    speed = rates(target, spec, state, batches)
    batch = max(speed, key=speed.__getitem__)
    return Cost(speed[batch], batch, chi2, state)


def measure(target: Phi4, spec: HMCSpec, state: dict, steps: int) -> tuple[Estimate, dict]:
    """chi2 with its tau_int, and the chains' last state."""
    sampler, series = spec.build(target), []
    for block in range(10):
        draws, state = sampler.draw(state, steps // 10 * spec.chains, stream(1, Purpose.DRAW, 0, block))
        chi2 = draws.x.double().flatten(1).sum(1).square() / target.lattice.volume
        series.append(chi2.reshape(-1, spec.chains).T.numpy())
    return mean(np.concatenate(series, axis=1)), state


def rates(target: Phi4, spec: HMCSpec, state: dict, batches: list[tuple[int, str]]) -> dict:
    """Draws per second for each (chains, precision), measured in turn so that a busy machine hits all alike."""
    found: dict[tuple[int, str], list[float]] = {one: [] for one in batches}
    x = state["x"]
    for turn in range(TURNS):
        for chains, precision in batches:
            settings = {**spec.model_dump(), "chains": chains, "block": chains, "precision": precision}
            sampler = type(spec)(**settings).build(target)
            y = np.resize(x, (chains, *x.shape[1:])).astype(precision)  # chains in turn: equilibrium all
            log_prob = target.log_prob(torch.from_numpy(y).double()).numpy()
            own = {**state, "x": y, "log_prob": log_prob, "accepted": np.zeros(chains, dtype=np.int64)}
            steps = max(2, 400_000 // (chains * target.lattice.volume))
            begun = time.process_time()
            sampler.draw(own, steps * chains, stream(2, Purpose.DRAW, 0, turn))
            found[chains, precision].append(steps * chains / (time.process_time() - begun))
    return {one: float(np.median(rate)) for one, rate in found.items()}


def tuned(target: Phi4, spec, steps: int):
    """The best of `LENGTHS` and `BATCHES` after the sampler's own tuning, and the seconds of that tuning."""
    begun = time.process_time()
    state = spec.build(target).start(0, stream(1, Purpose.START, 0))
    start = time.process_time() - begun
    found = []
    for factor in LENGTHS:
        longer = {**state, "n_steps": np.array(round(factor * int(state["n_steps"])))}
        found.append(cost(target, spec, longer, BATCHES, steps))
    return max(found, key=lambda one: one.independent), start


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(LAMBDA):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(LAMBDA)}")
    one_thread()
    for point in args.points:
        shape = tuple(int(side) for side in point.split("x"))
        target = Phi4(shape=shape, m2=-4.0, lam=LAMBDA[point])
        print(f"{point}, lam = {LAMBDA[point]}", flush=True)
        spec = HMCSpec()
        state = spec.build(target).start(0, stream(1, Purpose.START, 0))
        print(f"  HMC, default  {cost(target, spec, state, [(128, 'float64')], args.steps)}", flush=True)
        for name, spec in rivals().items():
            best, start = tuned(target, spec, args.steps)
            print(f"  {name:13} {best}; tuning {start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
