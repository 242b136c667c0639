"""SU(2) and SU(3) in two dimensions from Haar's measure: ESS of a flow, log Z and plaquette beside the exact ones.

    python -m benchmarks.gauge_sun                                       # 20 s of training each, one thread
    python -m benchmarks.gauge_sun --case "su3 16x16" --draws 262144     # cases whose name begins so
    python -m benchmarks.gauge_sun --kind trivializing --seconds 600     # the continuous flow
    python -m benchmarks.gauge_sun --seconds 0                           # no training

SU(2) 8x8, beta = 2.2; SU(3) 8x8 and 16x16, beta = 6. ESS at N = 65,536: bars 0.9, 0.75, 0.7. Plaquette along the Metropolis
chain and by reweighting, of `--draws` draws: bars: within 3 sigma of exact, errors at most 2e-4; log Z within 4 sigma.
Published, SU(3) 16x16, beta = 6: ESS 0.48 (2008.05456) and 0.70 (2212.08469), by flows that are not special to two
dimensions, as `--kind plaquettes` is.
"""

import argparse
import time

import numpy as np

from latticeflow import exact
from latticeflow.correction import metropolis
from latticeflow.flows import Flow
from latticeflow.flows.plaquettes import Plaquettes
from latticeflow.flows.trivializing import Trivializing
from latticeflow.observables import measure
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import bracket, mean, summarise_weights
from latticeflow.targets import Wilson

from .common import Bars, one_thread, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--kind", choices=("plaquettes", "trivializing"), default="plaquettes")
parser.add_argument("--seconds", type=float, default=20, help="of training; 0: none")
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--lr", type=float, default=5e-3)
parser.add_argument("--draws", type=int, default=1 << 17, help="of the plaquette's chain; 65,536 at least")
parser.add_argument("--case", default="", help="only cases whose name begins so")

QUALITY = 65536  # draws of ESS, the first ones
PIECE, BATCH = 1024, 256  # draws of a random stream, and at once
CASES = {  # target and bar of ESS
    "su2 8x8": (Wilson(shape=(8, 8), group="su2", beta=2.2), 0.9),
    "su3 8x8": (Wilson(shape=(8, 8), group="su3", beta=6.0), 0.75),
    "su3 16x16": (Wilson(shape=(16, 16), group="su3", beta=6.0), 0.7),
}
KINDS = {
    "plaquettes": Plaquettes(base="haar", map=True),
    "trivializing": Trivializing(),
}


def drawn(flow: Flow, target: Wilson, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """log w and plaquette of each draw, drawn in pieces."""
    sampler, log_w, rows = FlowSampler(target, flow, BATCH), [], []
    for k in range(-(-draws // PIECE)):
        piece, _ = sampler.draw(None, PIECE, stream(2, Purpose.DRAW, k))
        log_w.append(np.asarray(piece.log_w))
        rows.append(measure(target, piece.x, "plaquette")["plaquette"])
    return np.concatenate(log_w), np.concatenate(rows)


def reweighted(values: np.ndarray, log_w: np.ndarray) -> tuple[float, float]:
    """Mean and error of independent draws."""
    share = np.exp(log_w - log_w.max())
    share /= share.sum()
    found = share @ values
    return found, float(np.sqrt(share**2 @ (values - found) ** 2))


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars, spec = Bars(), KINDS[args.kind]
    settings = {"optimizer": "soap", "lr": args.lr, "warmup": 20, "batch": args.batch}
    for name, (target, bar) in CASES.items():
        if not name.startswith(args.case):
            continue
        flow, steps, spent = spec.build_for(target, 1), 0, 0.0
        if args.seconds:
            flow, steps, spent = train_for(spec, target, args.seconds, within=0.5, **settings)
        started = time.process_time()
        log_w, plaquette = drawn(flow, target, max(args.draws, QUALITY))
        each = (time.process_time() - started) / len(log_w)
        w, all_w = summarise_weights(log_w[:QUALITY]), summarise_weights(log_w)
        log_z = exact.log_z(target.group, target.shape, target.beta)
        known = exact.plaquette(target.group, target.shape, target.beta)
        chain = mean(plaquette[metropolis(log_w, stream(2, Purpose.METROPOLIS)).index][None])
        by_weight = reweighted(plaquette, log_w)
        print(
            f"{name}, beta = {target.beta:g}, {args.kind}: {flow.parameter_count()} parameters, {steps} steps in "
            f"{spent:.0f} s, {w}\n    {len(log_w):,} draws of {1e6 * each:.0f} us (CPU): log Z "
            f"{bracket(all_w.log_z, all_w.log_z_error)}, exact {log_z:.5f}; plaquette: chain "
            f"{bracket(chain.value, chain.error)}, tau_int {chain.tau}, reweighted {bracket(*by_weight)}, exact {known:.6f}",
            flush=True,
        )
        bars.at_least(f"{name}: ESS", w.ess, bar)
        bars.at_most(f"{name}: |log Z - exact| / sigma", abs(all_w.log_z - log_z) / all_w.log_z_error, 4)
        for how, (value, error) in {"chain": (chain.value, chain.error), "reweighted": by_weight}.items():
            bars.at_most(f"{name}: |plaquette - exact| / sigma, {how}", abs(value - known) / error, 3)
            bars.at_most(f"{name}: error of the plaquette, {how}", error, 2e-4)
    bars.end()


if __name__ == "__main__":
    main()
