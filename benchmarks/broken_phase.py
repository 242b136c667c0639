"""Broken phase, 8x8, m2 = -4, lam = 2.5: HMC stays in the well it began in, and the flow misses neither.

    python -m benchmarks.broken_phase                       # about 8 minutes on one core: 1e5 trajectories, two trainings
    python -m benchmarks.broken_phase --trajectories 10000 --seconds 60

1. HMC: changes of sign of M = sum phi in 16 chains, looked at after every trajectory. Bar: none in 1e5 trajectories each.
2. The split flow on the mean-field base: share of draws in each well, ESS and log Z in reverse (N = 65,536 draws) and
   forward (65,536 configurations of 256 HMC chains from hot starts, which are in both wells), <|m|> against HMC's.
   Bars: share of a well within 3 sigma of 1/2; reverse and forward ESS, log Z, and <|m|> within 3 sigma of each other.
3. What the estimates say of a flow that is in one well: an affine flow, which is not odd, falls into one by itself. Then
   the same weights as a `SymmetrisedFlow`. Bars: ESS of the first, reverse from forward, by more than 10 sigma (forward it
   is 0, and log Z differs by log 2); of the second ESS and log Z within 3 sigma.
"""

import argparse
import math

import numpy as np
import torch

from latticeflow.analysis.forward import Forward, log_weights_at
from latticeflow.flows import Affine, Flow, Split, SymmetrisedFlow
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HMCSpec
from latticeflow.statistics import bracket, forward_weights, jackknife, summarise_weights
from latticeflow.targets import Phi4

from .common import SOAP, Bars, one_thread, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--lam", type=float, default=2.5)
parser.add_argument("--trajectories", type=int, default=100_000)
parser.add_argument("--seconds", type=float, default=150, help="training of each flow")
parser.add_argument("--draws", type=int, default=65_536)

CHAINS, PIECE = 16, 2000  # of the search for a flip; trajectories held in memory
MANY = 256  # chains of the forward estimate


def magnetisation(x) -> np.ndarray:
    """m = mean over sites of phi, float64."""
    return x.double().flatten(1).mean(1).numpy()


def count_flips(target: Phi4, trajectories: int) -> int:
    """Changes of sign of m between successive trajectories, all chains together."""
    hmc = HMCSpec(chains=CHAINS, block=CHAINS).build(target)
    state, flips, before = hmc.start(0, stream(1, Purpose.START, 0)), 0, None
    for piece in range(-(-trajectories // PIECE)):
        steps = min(PIECE, trajectories - piece * PIECE)
        draws, state = hmc.draw(state, steps * CHAINS, stream(1, Purpose.DRAW, 0, piece))
        signs = np.sign(magnetisation(draws.x)).reshape(steps, CHAINS)
        if before is not None:
            signs = np.concatenate([before, signs])
        flips, before = flips + int((signs[1:] != signs[:-1]).sum()), signs[-1:]
    up = int((before > 0).sum())
    print(
        f"HMC: {CHAINS} chains of {trajectories:,} trajectories, {up} in the upper well: {flips} flips",
        flush=True,
    )
    return flips


def both_wells(target: Phi4, draws: int) -> torch.Tensor:
    """Configurations `[MANY, steps, 8, 8]` of HMC from hot starts, each chain in the well where it fell."""
    hmc = HMCSpec(chains=MANY, block=MANY, thin=5).build(target)
    state = hmc.start(0, stream(1, Purpose.START, 1))
    x = hmc.draw(state, -(-draws // MANY) * MANY, stream(1, Purpose.DRAW, 1))[0].x
    return x.view(-1, MANY, *target.shape).transpose(0, 1)


def mean_abs_m(m: np.ndarray, weights: np.ndarray | None = None) -> tuple[float, float]:
    value, error = jackknife(lambda mean: mean["m"], {"m": np.abs(m)}, weights=weights, tau=0.5)
    return float(value), float(error)


def look(
    name: str, flow: Flow, target: Phi4, x: torch.Tensor, draws: int
) -> tuple[Forward, dict[str, float]]:
    """Both estimates of one flow, printed; share of draws in the upper well, and the pull of <|m|> against HMC's."""
    sampler = FlowSampler(target, flow)
    own, _ = sampler.draw(None, draws, stream(2, Purpose.DRAW))
    log_w = log_weights_at(sampler, x.flatten(0, 1)).reshape(x.shape[:2])
    found = Forward(name, "hmc", summarise_weights(own.log_w), forward_weights(log_w))
    m = magnetisation(own.x)
    up = float((m > 0).mean())
    weights = np.exp(own.log_w - own.log_w.max())[None]
    (a, da), (b, db) = (
        mean_abs_m(m[None], weights),
        mean_abs_m(magnetisation(x.flatten(0, 1)).reshape(x.shape[:2])),
    )
    pull = (a - b) / math.hypot(da, db)
    print(f"{name}: {up:.4f} of the draws in the upper well, {1 - up:.4f} in the lower")
    for line in found.lines():
        print(f"    {line}")
    print(f"    <|m|> {bracket(a, da)}, HMC {bracket(b, db)}, pull {pull:+.2f}", flush=True)
    return found, {"up": up, "pull": pull}


def bars_of_agreement(bars: Bars, name: str, found: Forward) -> None:
    bars.at_most(f"{name}: |ESS reverse - forward| / sigma", abs(found.pull), 3)
    bars.at_most(f"{name}: |log Z reverse - forward| / sigma", abs(found.log_z_pull), 3)


def main() -> None:
    args = parser.parse_args()
    one_thread()
    target, bars = Phi4(shape=(8, 8), m2=-4.0, lam=args.lam), Bars()
    print(f"phi4 8x8, m2 = -4, lam = {args.lam}; {args.seconds:.0f} s of training each, one thread")
    bars.at_most("flips of HMC", count_flips(target, args.trajectories), 0)
    x = both_wells(target, args.draws)
    up = float((magnetisation(x[:, -1]) > 0).mean())
    print(f"HMC from hot starts: {up:.3f} of {MANY} chains in the upper well")

    split, steps, spent = train_for(Split(base="mean_field"), target, args.seconds, **SOAP)
    print(
        f"split flow, mean-field base: {split.parameter_count():,} parameters, {steps} steps in {spent:.0f} s"
    )
    found, more = look("split", split, target, x, args.draws)
    bars.at_most(
        "split: |share of the upper well - 1/2| / sigma", abs(more["up"] - 0.5) * 2 * args.draws**0.5, 3
    )
    bars.at_least("split: reverse ESS", found.reverse.ess, 0.5)
    bars_of_agreement(bars, "split", found)
    bars.at_most("split: |<|m|> flow - HMC| / sigma", abs(more["pull"]), 3)

    affine, steps, spent = train_for(
        Affine(layers=8), target, args.seconds, batch=((0.0, 64), (0.7, 256)), estimator="path"
    )
    print(f"affine flow: {affine.parameter_count():,} parameters, {steps} steps in {spent:.0f} s")
    found, more = look("affine", affine, target, x, args.draws)
    bars.at_least("affine: share of one well", max(more["up"], 1 - more["up"]), 0.999)
    bars.at_least("affine: (ESS reverse - forward) / sigma", found.pull, 10)
    found, _ = look("affine, symmetrised", SymmetrisedFlow.of(affine), target, x, args.draws)
    bars_of_agreement(bars, "affine, symmetrised", found)
    bars.end()


if __name__ == "__main__":
    main()
