"""U(1) in two dimensions: ESS of the flow, and its plaquette and topological susceptibility beside the exact ones.

    python -m benchmarks.gauge_u1                                  # 30 s of training each, one thread
    python -m benchmarks.gauge_u1 --seconds 10 --draws 262144

1. ESS at N = 65,536 from independent plaquettes and from Haar's measure: 8x8, beta = 2; 16x16, beta = 3 and 7. Bars: 8x8
   0.95 and 0.65; 16x16 at beta = 7 0.8 from independent plaquettes. Beside the first, what a smooth flow that keeps Haar's
   distribution of Q cannot pass, `1 / sum_Q p(Q)^2 / q(Q)`; the maps here move Q.
2. Plaquette and chi_Q along the Metropolis chain from independent plaquettes, 8x8 at beta = 1, 2, 3 and 16x16 at beta = 1,
   ..., 7. Bars: within 3 sigma of exact; errors at most 1e-4 and 2 %.
"""

import argparse

import numpy as np

from latticeflow import exact
from latticeflow.correction import metropolis
from latticeflow.flows import Flow
from latticeflow.flows.plaquettes import Plaquettes
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import bracket, mean
from latticeflow.targets import Wilson

from .common import Bars, one_thread, quality, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=30)
parser.add_argument("--draws", type=int, default=1 << 20, help="of each chain of the second part")

SETTINGS = {"optimizer": "soap", "lr": 5e-3, "warmup": 50, "batch": 64}
INDEPENDENT = Plaquettes(steps=0)
HAAR = Plaquettes(base="haar", map=True, steps=0)
FLOWS = [  # side, beta, flow, bar of ESS
    (8, 2.0, INDEPENDENT, 0.95),
    (8, 2.0, HAAR, 0.65),
    (16, 3.0, HAAR, None),
    (16, 7.0, INDEPENDENT, 0.8),
    (16, 7.0, HAAR, None),
]
POINTS = [(8, float(beta)) for beta in (1, 2, 3)] + [(16, float(beta)) for beta in range(1, 8)]
PIECE = 16384  # draws at once


def u1(side: int, beta: float) -> Wilson:
    return Wilson(shape=(side, side), group="u1", beta=beta)


def haars_ceiling(target: Wilson) -> float:
    """`1 / sum_Q p(Q)^2 / q(Q)`, q of beta = 0."""
    q, p = exact.charges(target.shape, target.beta)
    haar = dict(zip(*exact.charges(target.shape, 0.0)))
    return 1 / sum(p_q**2 / haar[k] for k, p_q in zip(q, p) if k in haar)


def chain(flow: Flow, target: Wilson, draws: int) -> dict[str, np.ndarray]:
    """Plaquette and Q^2 `[1, draws]` along the Metropolis chain, drawn in pieces."""
    sampler, log_w, rows = FlowSampler(target, flow), [], []
    for k in range(-(-draws // PIECE)):
        piece, _ = sampler.draw(None, PIECE, stream(2, Purpose.DRAW, k))
        log_w.append(np.asarray(piece.log_w))
        rows.append(measure(target, piece.x, "plaquette", "charge2"))
    kept = metropolis(np.concatenate(log_w), stream(2, Purpose.METROPOLIS)).index
    return {name: np.concatenate([row[name] for row in rows])[kept][None] for name in rows[0]}


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    trained = {}
    for side, beta, spec, bar in FLOWS:
        target = u1(side, beta)
        flow, steps, spent = train_for(spec, target, args.seconds, **SETTINGS)
        w = quality(flow, target)
        if spec is INDEPENDENT:
            trained[side, beta] = flow
        name = f"{side}x{side}, beta = {beta:g}, from {spec.base}"
        print(
            f"{name}: {flow.parameter_count()} parameters, {steps} steps in {spent:.0f} s, {w}, log Z "
            f"{bracket(w.log_z, w.log_z_error)}, exact {exact.log_z('u1', target.shape, beta):.5f}; "
            f"Haar's sectors kept: at most {haars_ceiling(target):.2g}",
            flush=True,
        )
        if bar is not None:
            bars.at_least(f"{name}: ESS", w.ess, bar)
    for side, beta in POINTS:
        target = u1(side, beta)
        if (side, beta) not in trained:
            trained[side, beta] = train_for(INDEPENDENT, target, args.seconds / 3, **SETTINGS)[0]
        series = chain(trained[side, beta], target, args.draws)
        p, q2 = mean(series["plaquette"]), mean(series["charge2"])
        known = exact.plaquette("u1", target.shape, beta)
        chi, chi_error = q2.value / side**2, q2.error / side**2
        known_chi = exact.topological_susceptibility(target.shape, beta)
        name = f"{side}x{side}, beta = {beta:g}"
        print(
            f"{name}: plaquette {bracket(p.value, p.error)}, exact {known:.6f}; chi_Q {bracket(chi, chi_error)}, exact "
            f"{known_chi:.7f}; tau_int(Q^2) {q2.tau}",
            flush=True,
        )
        bars.at_most(f"{name}: |plaquette - exact| / sigma", abs(p.value - known) / p.error, 3)
        bars.at_most(f"{name}: error of the plaquette", p.error, 1e-4)
        bars.at_most(f"{name}: |chi_Q - exact| / sigma", abs(chi - known_chi) / chi_error, 3)
        bars.at_most(f"{name}: relative error of chi_Q", chi_error / known_chi, 0.02)
    bars.end()


if __name__ == "__main__":
    main()
