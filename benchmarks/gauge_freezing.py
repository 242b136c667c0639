"""U(1) 16x16: how fast the topological charge moves under the flow, HMC, winding updates and exact draws.

    python -m benchmarks.gauge_freezing                                     # beta = 3, 5 and 7, one thread
    python -m benchmarks.gauge_freezing --betas 7 --figure docs/charge_history.png

tau_int in `1/2 + sum rho`, in proposals, trajectories, sweeps and draws; CPU time of one. HMC: trajectories of length one by
10 leapfrog steps, 512 chains in one batch that start from exact draws. Where Q is frozen no series is long enough, so that
HMC's tau_int is also that of a single exponential with the measured rate of tunnelling,

    rho(1) = 1 - <(Q' - Q)^2> / 2 <Q^2>,    tau_int = 1 / (1 - rho(1)) - 1/2,

with the exact <Q^2>. Beside it what an independent C code found. Exact draws, by rejection from independent plaquettes, are
a control, and no flow.

Bars: tau_int(Q) of the flow at most 1; a trajectory of HMC at most 300 us for each chain, ten times plain C.
"""

import argparse
import math
import time

import numpy as np

from latticeflow import exact
from latticeflow.analysis.plots import COLOURS, styled
from latticeflow.correction import metropolis
from latticeflow.errors import StatisticsError
from latticeflow.flows.plaquettes import Plaquettes
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HeatBathSpec, HMCSpec
from latticeflow.samplers.exact import ExactSpec
from latticeflow.statistics import bracket, mean, summarise_weights
from latticeflow.targets import Wilson

from .common import Bars, one_thread, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--betas", type=float, nargs="+", default=[3.0, 5.0, 7.0])
parser.add_argument("--seconds", type=float, default=30, help="of training")
parser.add_argument("--trajectories", type=int, default=2000)
parser.add_argument("--figure", help="of the histories of Q at the last beta, PNG")

C_CODE = {1.0: "1.07", 2.0: "3.2", 3.0: "13", 4.0: "74", 5.0: "291", 6.0: "1365(230)", 7.0: "7500(2100)"}
CHAINS, PIECE, DRAWS = 512, 50, 65536
HMC = HMCSpec(chains=CHAINS, block=CHAINS, integrator="leapfrog", step=0.1, length=1.0, thermalisation=100)
WINDING = HeatBathSpec(chains=128, block=128, winding=1)


def timed(draw) -> tuple[np.ndarray, float]:
    """What `draw` returns, and its CPU time in microseconds."""
    begun = time.process_time()
    found = draw()
    return found, 1e6 * (time.process_time() - begun)


def charges_of_chains(sampler, state, steps: int, purpose_key: int) -> tuple[np.ndarray, float]:
    """Q `[chains, steps]`, and the CPU time of a step of a chain."""
    rng, rows, spent = stream(1, Purpose.DRAW, purpose_key), [], 0.0
    for _ in range(steps // PIECE):
        (draws, state), us = timed(lambda: sampler.draw(state, PIECE * sampler.chains, rng))  # noqa: B023
        rows.append(measure(sampler.target, draws.x, "charge")["charge"].reshape(PIECE, sampler.chains).T)
        spent += us
    return np.concatenate(rows, 1), spent / (len(rows) * PIECE * sampler.chains)


def tunnelling(q: np.ndarray, q2: float) -> tuple[float, float]:
    """tau_int of the docstring with its error, from the chains' scatter; q `[chains, steps]`."""
    moved = np.diff(q, axis=1) ** 2
    rate, error = moved.mean() / (2 * q2), moved.mean(1).std(ddof=1) / math.sqrt(len(q)) / (2 * q2)
    return 1 / rate - 0.5, error / rate**2


@styled
def histories(panels: dict[str, np.ndarray]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 1.6 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True, sharey=True)
    for one, colour, (name, q) in zip(axes, COLOURS, panels.items()):
        one.step(np.arange(len(q)), q, where="mid", color=colour, linewidth=0.8)
        one.set_ylabel("$Q$")
        one.yaxis.get_major_locator().set_params(integer=True)
        one.set_title(name, loc="left", fontsize=10)
    axes[-1].set_xlabel("step of the chain")
    return figure


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    for beta in args.betas:
        target = Wilson(shape=(16, 16), group="u1", beta=beta)
        q, p = exact.charges(target.shape, beta)
        q2 = float((q**2 * p).sum())
        print(f"U(1) 16x16, beta = {beta:g}, exact <Q^2> = {q2:.4f}")

        flow, _, spent = train_for(
            Plaquettes(steps=0), target, args.seconds, optimizer="soap", lr=5e-3, warmup=50
        )
        sampler = FlowSampler(target, flow)
        (draws, _), us = timed(lambda: sampler.draw(None, DRAWS, stream(2, Purpose.DRAW, 0)))  # noqa: B023
        w = summarise_weights(np.asarray(draws.log_w))
        kept = metropolis(np.asarray(draws.log_w), stream(2, Purpose.METROPOLIS)).index
        of_flow = measure(target, draws.x, "charge")["charge"][kept][None]
        tau = mean(of_flow).tau
        print(
            f"  flow, {spent:.0f} s of training: tau_int(Q) {tau} proposals of {us / DRAWS:.1f} us, {w}",
            flush=True,
        )
        bars.at_most(f"beta = {beta:g}, flow: tau_int(Q)", tau.value, 1)

        control = ExactSpec().build(target)
        (draws, _), us = timed(lambda: control.draw(None, DRAWS, stream(3, Purpose.DRAW, 0)))  # noqa: B023
        tau = mean(measure(target, draws.x, "charge")["charge"][None]).tau
        print(f"  exact draws: tau_int(Q) {tau}, {us / DRAWS:.1f} us each", flush=True)

        hmc = HMC.build(target)
        x = control.draw(None, CHAINS, stream(4, Purpose.DRAW, 0))[0].x
        state = hmc.start(0, stream(1, Purpose.START, 0))
        state |= {"x": x.numpy(), "log_prob": target.log_prob(x).numpy()}
        of_hmc, us = charges_of_chains(hmc, state, args.trajectories, 1)
        value, error = tunnelling(of_hmc, q2)
        try:
            windowed = str(mean(of_hmc).tau)
        except StatisticsError as failure:  # the series is too short for its tau_int
            windowed = f"no window ({type(failure).__name__})"
        print(
            f"  HMC: tau_int(Q) {windowed} trajectories, from the rate of tunnelling {bracket(value, error)}, C code "
            f"{C_CODE.get(beta, 'none')}; {us:.0f} us a trajectory of a chain, {CHAINS} chains",
            flush=True,
        )
        bars.at_most(f"beta = {beta:g}, HMC: us a trajectory of a chain", us, 300)

        heat = WINDING.build(target)
        of_winding, us = charges_of_chains(heat, heat.start(0, stream(5, Purpose.START, 0)), 2000, 2)
        print(
            f"  heat bath, over-relaxation and one winding update: tau_int(Q) {mean(of_winding).tau} sweeps of {us:.0f} us",
            flush=True,
        )
        panels = {
            f"HMC, trajectories ($\\beta = {beta:g}$, 16×16)": of_hmc[0, :1000],
            "heat bath with winding updates, sweeps": of_winding[0, :1000],
            "flow with Metropolis correction, proposals": of_flow[0, :1000],
        }
    if args.figure:
        with open(args.figure, "wb") as out:
            out.write(histories(panels))
    bars.end()


if __name__ == "__main__":
    main()
