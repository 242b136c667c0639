"""The Schwinger model, 8x8, beta = 2, kappa = 0.276: the flow along loops beside HMC, exact and with pseudofermions.

    python -m benchmarks.schwinger      # 10 minutes of training on one core, and some 15 more
    python -m benchmarks.schwinger --steps 200 --plain 100 --trajectories 100 --draws 8192

1. On 4x4: plaquette, chi_Q, chiral condensate, the pion's correlator in the middle and its mass, by quenched sampling
   (heat bath with winding updates) reweighted with the determinant; flow, exact HMC and pseudofermions beside it.
2. On 8x8: the same of HMC on the exact determinant and with pseudofermions, 64 chains each, with tau_int of Q in
   trajectories, and of reweighted quenched sampling.
3. On 8x8: the flow. CPU seconds of training with all its evaluations, ESS and its error at N = 65,536, the largest change of
   log q of all these draws at twice the solver's resolution, tau_int of Q in the Metropolis chain, in proposals. What
   plaquettes alone reach (no Polyakov loops, no larger ones) is printed after `--plain` steps, without a bar.

Where an eigenvalue of D crosses zero the density vanishes, and HMC does not cross: it stays where det D > 0. The share of
draws with det D < 0 is printed, and HMC is compared with that part of the others that has det D > 0.

Bars: training <= 30 CPU minutes, ESS >= 0.5, change of log q <= 0.02, tau_int(Q) <= 10 proposals; the flow's observables
within 3 sigma of reweighted quenched sampling on both lattices; HMC's, exact and with pseudofermions, on 4x4 of quenched
sampling, on 8x8 of the flow, without the pion's: where lambda vanishes the density goes as lambda^2 and the correlator as
lambda^-2, so that its variance is infinite in HMC, whose errors then are too small; with weights of lambda^2 it is finite.
The identity of Schwinger and Dyson, exact for all and for that part, within 3 sigma of zero, but for HMC on 8x8, where it
is as the pion.
"""

import argparse
import math
import time

import numpy as np
import torch

from latticeflow.correction import metropolis
from latticeflow.flows import Flow
from latticeflow.flows.loops import Loops
from latticeflow.flows.sectors import charge
from latticeflow.observables import measure, observables
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HeatBathSpec, HMCSpec, PseudofermionsSpec
from latticeflow.samplers.base import SamplerSpec
from latticeflow.statistics import bracket, jackknife, summarise_weights, tau_int
from latticeflow.targets import Schwinger, Wilson
from latticeflow.training import TrainSettings, train

from .common import Bars, one_thread

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--steps", type=int, default=1500, help="of training")
parser.add_argument("--plain", type=int, default=300, help="of the flow of plaquettes alone; 0: none")
parser.add_argument("--draws", type=int, default=65536)
parser.add_argument("--trajectories", type=int, default=500)

TARGET = Schwinger(shape=(8, 8), beta=2.0, kappa=0.276)
FLOW = {"base_beta": 2.4, "suppression": 1.6, "sides": 2, "steps": 6, "solver": "rk6"}
# Weight decay keeps the drift smooth, and with it the solver's steps few. A look at the density every 200 steps, so that
# training does not learn the solver's errors: 4,334 steps without one left a density that 243 of the solver do not cure
TRAINING = {
    "optimizer": "soap",
    "lr": 2e-3,
    "warmup": 50,
    "weight_decay": 2.0,
    "batch": ((0.0, 64), (0.7, 128)),
    "evaluate_every": 200,
    "evaluate_draws": 1024,
}
SMALL = Schwinger(shape=(4, 4), beta=2.0, kappa=0.276)
SMALL_FLOW, SMALL_STEPS = {**FLOW, "suppression": 1.0}, 300
CHAINS = 64
HMC = {"chains": CHAINS, "block": CHAINS, "thermalisation": 200, "step": 0.25, "length": 1.0}
SMALL_HMC = {"chains": 256, "block": 256, "thermalisation": 100, "step": 0.4, "length": 1.2}
NAMES = ("plaquette", "charge2", "condensate", "pion", "schwinger_dyson")
SIGMAS = 3.0
INFINITE = ("C_pi(L/2)", "m_pi", "schwinger_dyson")  # variance in HMC, near zeros of det D
Table = dict[str, tuple[float, float]]  # value and error by name


def negative(target: Schwinger, x: torch.Tensor) -> np.ndarray:
    """Whether det D < 0, bool `[n]`."""
    d = target.dirac(x)
    parts = [
        torch.linalg.slogdet(d.matrix(d.phases(part), target.kappa)).sign.real < 0 for part in x.split(256)
    ]
    return torch.cat(parts).numpy()


def tables(target: Schwinger, x: torch.Tensor, chains: int, weights: np.ndarray) -> tuple[Table, Table]:
    """`table` with these weights, and of the draws with det D > 0 alone."""
    below = negative(target, x)
    share = (weights * below).reshape(-1, 64).sum(1) / weights.mean() / 64
    error = float(share.std() / (len(share) - 1) ** 0.5)
    print(
        f"    det D < 0: {below.mean():.4f} of the draws, {bracket(float(share.mean()), error)} of the weight; "
        "all, then det D > 0:"
    )
    observed = measure(target, x, *NAMES)
    return table(target, observed, chains, weights), table(target, observed, chains, weights * ~below)


def table(
    target: Schwinger, observed: dict[str, np.ndarray], chains: int, weights: np.ndarray | None = None
) -> Table:
    """What the benchmark compares, printed, of draws in which chains are side by side; `weights` of each draw."""

    def by_chain(one: np.ndarray) -> np.ndarray:
        return one.reshape(-1, chains, *one.shape[1:]).swapaxes(0, 1)

    series = {name: by_chain(one) for name, one in observed.items()}
    w = None if weights is None else by_chain(weights)
    volume, mass = target.lattice.volume, observables.find("pion_mass").of
    functions = {
        "plaquette": lambda m: m["plaquette"],
        "chi_Q": lambda m: m["charge2"] / volume,
        "condensate": lambda m: m["condensate"],
        "C_pi(L/2)": lambda m: m["pion"][target.shape[1] // 2],
        "m_pi": lambda m: mass(target, m),
        "schwinger_dyson": lambda m: m["schwinger_dyson"],
    }
    found = {}
    for name, f in functions.items():
        value, error = jackknife(f, series, bins=64, weights=w, tau=0.5)
        found[name] = float(value), float(error)
    print("    " + ", ".join(f"{name} {bracket(*one)}" for name, one in found.items()), flush=True)
    return found


def trained(target: Schwinger, spec: Loops, steps: int) -> tuple[Flow, float]:
    """The flow, and the CPU seconds of its training with all evaluations."""
    begun, flow = time.process_time(), spec.build_for(target, 1)
    settings = TrainSettings(steps=steps, **TRAINING)

    def report(record: dict[str, float]) -> None:
        print(
            f"    step {record['step']}: loss {record['loss']:.3f}, ESS {record['ess']:.3f} (N = 1,024), log q to "
            f"{record['density_error']:.4f} at {int(flow.layers[-1].steps)} steps, {time.process_time() - begun:.0f} s",
            flush=True,
        )

    train(flow, target, settings, seed=1, report=report)
    return flow.eval(), time.process_time() - begun


def flow_draws(
    target: Schwinger, spec: Loops, steps: int, draws: int
) -> tuple[tuple[Table, Table], dict[str, float]]:
    """Observables by importance sampling; CPU seconds, ESS, change of log q, and tau_int of Q after Metropolis."""
    flow, cpu = trained(target, spec, steps)
    sampler = FlowSampler(target, flow, density_tolerance=math.inf)
    drawn, _ = sampler.draw(None, draws, stream(2, Purpose.DRAW))
    log_w = np.asarray(drawn.log_w)
    w = summarise_weights(log_w)
    change = sampler.check_solver(drawn, draws)
    kept = metropolis(log_w, stream(2, Purpose.METROPOLIS)).index
    q = charge(drawn.x).numpy()
    tau = tau_int(q[kept][None])
    weights = np.exp(log_w - log_w.max())
    print(
        f"{flow.parameter_count():,} parameters, {steps} steps, {cpu:.0f} s of CPU with evaluations: {w}, largest share "
        f"{w.largest_share:.1e}, log q changes by {change:.4f} at most, {int(flow.layers[-1].steps)} steps of the solver; "
        f"acceptance {(np.diff(kept) != 0).mean():.3f}, tau_int(Q) {tau} proposals, log Z {bracket(w.log_z, w.log_z_error)}"
    )
    for k in (0, 1, 2):
        own = weights[abs(q) == k]
        print(
            f"    |Q| = {k}: {own.sum() / weights.sum():.4f} of the weight, {len(own) / draws:.4f} of the draws, ESS "
            f"within {own.sum() ** 2 / (own**2).sum() / len(own):.3f}"
        )
    figures = {"cpu": cpu, "ess": w.ess, "change": change, "tau": tau.value}
    return tables(target, drawn.x, 1, weights), figures


def hmc_chains(target: Schwinger, spec: SamplerSpec, trajectories: int) -> Table:
    sampler, chains = spec.build(target), spec.chains
    state = sampler.start(0, stream(1, Purpose.START, 0))
    begun = time.process_time()
    draws, _ = sampler.draw(state, trajectories * chains, stream(1, Purpose.DRAW, 0))
    spent = (time.process_time() - begun) / trajectories / chains
    tau = tau_int(charge(draws.x).numpy().reshape(-1, chains).T)
    print(
        f"{spec.kind}: {1e3 * spent:.2f} ms of CPU a trajectory of a chain, acceptance "
        f"{draws.info['acceptance'].mean():.3f}, tau_int(Q) {tau} trajectories, det D < 0: "
        f"{negative(target, draws.x).mean():.5f}"
    )
    return table(target, measure(target, draws.x, *NAMES), chains)


def quenched(target: Schwinger, draws: int) -> tuple[Table, Table]:
    """Reweighted with `|det D|^2`."""
    spec = HeatBathSpec(chains=512, block=512, winding=2, overrelaxation=1, thermalisation=50, thin=2)
    sampler = spec.build(Wilson(shape=target.shape, group="u1", beta=target.beta))
    state = sampler.start(0, stream(1, Purpose.START, 0))
    drawn, _ = sampler.draw(state, draws // 512 * 512, stream(1, Purpose.DRAW, 0))
    log_w = 2 * target.log_det(drawn.x).numpy()
    print(f"quenched, reweighted: {summarise_weights(log_w)}")
    return tables(target, drawn.x, 512, np.exp(log_w - log_w.max()))


def compare(
    bars: Bars, where: str, others: dict[str, Table], known: Table, by: str, without: tuple[str, ...] = ()
) -> None:
    for who, found in others.items():
        for name, (value, error) in found.items():
            if name in without:
                continue
            other, its = (0.0, 0.0) if name == "schwinger_dyson" else known[name]
            what = f"|{name}|" if name == "schwinger_dyson" else f"|{name} - {by}|"
            bars.at_most(
                f"{where}, {who}: {what} / sigma", abs(value - other) / math.hypot(error, its), SIGMAS
            )


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    print(f"Schwinger model, beta = {TARGET.beta}, kappa = {TARGET.kappa}; one thread; 4x4", flush=True)
    known, above = quenched(SMALL, 32768)
    chains = {
        "hmc": hmc_chains(SMALL, HMCSpec(**SMALL_HMC), 100),
        "pseudofermions": hmc_chains(SMALL, PseudofermionsSpec(**SMALL_HMC), 100),
    }
    (flow, _), _ = flow_draws(SMALL, Loops(**SMALL_FLOW), SMALL_STEPS, 16384)
    compare(bars, "4x4", {"flow": flow}, known, "quenched")
    compare(bars, "4x4", chains, above, "quenched")

    print("8x8", flush=True)
    chains = {
        "hmc": hmc_chains(TARGET, HMCSpec(**HMC), args.trajectories),
        "pseudofermions": hmc_chains(TARGET, PseudofermionsSpec(**HMC), args.trajectories),
    }
    known, _ = quenched(TARGET, max(512 * 64, args.draws))
    if args.plain:
        print("flow of plaquettes alone:", flush=True)
        plain = Loops(**{**FLOW, "sides": 1, "winding": False})
        flow_draws(TARGET, plain, args.plain, min(args.draws, 16384))
    print("flow along loops:", flush=True)
    (flow, above), figures = flow_draws(TARGET, Loops(**FLOW), args.steps, args.draws)
    bars.at_most("flow: CPU seconds of training", figures["cpu"], 1800)
    bars.at_least("flow: ESS", figures["ess"], 0.5)
    bars.at_most("flow: largest change of log q at twice the resolution", figures["change"], 0.02)
    bars.at_most("flow: tau_int(Q) in proposals", figures["tau"], 10)
    compare(bars, "8x8", {"flow": flow}, known, "quenched")
    compare(bars, "8x8", chains, above, "flow", INFINITE)
    bars.end()


if __name__ == "__main__":
    main()
