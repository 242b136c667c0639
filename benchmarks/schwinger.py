"""The Schwinger model, 8x8, beta = 2, kappa = 0.276: the flow along loops beside HMC, exact and with pseudofermions.

    python -m benchmarks.schwinger                                  # 30 minutes of training on one core, and some 10 more
    python -m benchmarks.schwinger --seconds 120 --trajectories 200

1. The flow: ESS and its error at N = 65,536; tau_int of Q in the Metropolis chain, in proposals. Bars: ESS >= 0.5, and Q
   mixes: tau_int(Q) <= 10 proposals.
2. HMC on the exact determinant and with pseudofermions, 64 chains each: tau_int of Q in trajectories, and their CPU time.
3. Plaquette, chiral condensate and Q^2 of all three. Bars: each of flow and pseudofermions within 3 sigma of exact HMC, and
   the identity of Schwinger and Dyson, exact for all three, within 3 sigma of zero.

What plaquettes alone reach (no Polyakov loops, no larger ones) is printed after `--plain` seconds, without a bar.
"""

import argparse
import math
import time

import numpy as np

from latticeflow.correction import metropolis
from latticeflow.flows.loops import Loops
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HMCSpec, PseudofermionsSpec
from latticeflow.samplers.base import SamplerSpec
from latticeflow.statistics import bracket, mean, summarise_weights
from latticeflow.statistics.autocorrelation import Estimate
from latticeflow.targets import Schwinger

from .common import Bars, one_thread, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=1800)
parser.add_argument(
    "--plain", type=float, default=120, help="of training of the flow of plaquettes alone; 0: none"
)
parser.add_argument("--draws", type=int, default=65536)
parser.add_argument("--trajectories", type=int, default=500)

TARGET = Schwinger(shape=(8, 8), beta=2.0, kappa=0.276)
BASE = {"base_beta": 2.4, "suppression": 1.6, "sides": 3, "steps": 6}
# looked at so often that training does not learn the solver's errors: 4,334 steps without a look, at six steps of the
# solver, ended with a density that 243 of them do not cure
TRAINING = {
    "optimizer": "soap",
    "lr": 2e-3,
    "warmup": 50,
    "batch": ((0.0, 64), (0.7, 256)),
    "evaluate_every": 100,
}
WITHIN = 1.0  # of the time: the probe sees a shared machine
CHAINS = 64
HMC = {"chains": CHAINS, "block": CHAINS, "thermalisation": 200, "step": 0.25, "length": 1.0}
NAMES = ("plaquette", "condensate", "charge", "charge2", "schwinger_dyson")


def show(series: dict[str, np.ndarray], what: str) -> dict[str, Estimate]:
    """Means of series `[chains, steps]` by name, printed."""
    found = {key: mean(one) for key, one in series.items()}
    for key, one in found.items():
        print(f"    {key} {bracket(one.value, one.error)}, tau_int {one.tau} {what}", flush=True)
    return found


def flow_chain(spec: Loops, seconds: float, draws: int) -> tuple[float, dict[str, np.ndarray]]:
    """ESS, and observables `[1, draws]` along the Metropolis chain of a trained flow."""
    begun = time.process_time()
    flow, steps, spent = train_for(spec, TARGET, seconds, within=WITHIN, **TRAINING)
    cpu = time.process_time() - begun
    drawn, _ = FlowSampler(TARGET, flow.eval()).draw(None, draws, stream(2, Purpose.DRAW))
    w = summarise_weights(np.asarray(drawn.log_w))
    kept = metropolis(np.asarray(drawn.log_w), stream(2, Purpose.METROPOLIS)).index
    print(
        f"{flow.parameter_count():,} parameters, {steps} steps in {spent:.0f} s ({cpu:.0f} s of CPU with probe and "
        f"evaluation): {w}, largest share {w.largest_share:.1e}, "
        f"acceptance {(np.diff(kept) != 0).mean():.3f}, log Z {bracket(w.log_z, w.log_z_error)}",
        flush=True,
    )
    return w.ess, {name: one[kept][None] for name, one in measure(TARGET, drawn.x, *NAMES).items()}


def hmc_chains(spec: SamplerSpec, trajectories: int) -> dict[str, np.ndarray]:
    """Observables `[chains, trajectories]`."""
    sampler = spec.build(TARGET)
    state = sampler.start(0, stream(1, Purpose.START, 0))
    begun = time.process_time()
    draws, _ = sampler.draw(state, trajectories * CHAINS, stream(1, Purpose.DRAW, 0))
    spent = (time.process_time() - begun) / trajectories / CHAINS
    print(
        f"{spec.kind}: {1e3 * spent:.2f} ms a trajectory of a chain, acceptance {draws.info['acceptance'].mean():.3f}"
    )
    return {
        name: one.reshape(trajectories, CHAINS).T for name, one in measure(TARGET, draws.x, *NAMES).items()
    }


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    print(
        f"Schwinger model {TARGET.shape}, beta = {TARGET.beta}, kappa = {TARGET.kappa}; one thread",
        flush=True,
    )
    if args.plain:
        print("flow of plaquettes alone: ", end="")
        flow_chain(Loops(**{**BASE, "sides": 1, "winding": False}), args.plain, args.draws)
    print("flow along loops: ", end="")
    ess, series = flow_chain(Loops(**BASE), args.seconds, args.draws)
    flow = show(series, "proposals")
    exact = show(hmc_chains(HMCSpec(**HMC), args.trajectories), "trajectories")
    pseudo = show(hmc_chains(PseudofermionsSpec(**HMC), args.trajectories), "trajectories")

    bars.at_least("flow: ESS", ess, 0.5)
    bars.at_most("flow: tau_int(Q) in proposals", flow["charge"].tau.value, 10)
    for name in ("plaquette", "condensate", "charge2"):
        for who, found in (("flow", flow[name]), ("pseudofermions", pseudo[name])):
            pull = (found.value - exact[name].value) / math.hypot(found.error, exact[name].error)
            bars.at_most(f"{who}: |{name} - HMC| / sigma", abs(pull), 3)
    for who, found in (("flow", flow), ("pseudofermions", pseudo), ("hmc", exact)):
        one = found["schwinger_dyson"]
        bars.at_most(f"{who}: |schwinger_dyson| / sigma", abs(one.value / one.error), 3)
    bars.end()


if __name__ == "__main__":
    main()
