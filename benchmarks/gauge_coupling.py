"""Coupling flows of gauge fields in two dimensions: ESS after so many seconds of training on one thread.

    python -m benchmarks.gauge_coupling                                     # 180 s each
    python -m benchmarks.gauge_coupling --seconds 600 --case "u1 spline"    # cases whose name begins so

U(1) 8x8, beta = 2, by splines and non-compact projections, from Haar's measure and from independent plaquettes, by both
masks; SU(2) 8x8, beta = 2.2; SU(3) 4x4, beta = 5. ESS and log Z at N = 65,536, beside the exact log Z; `largest share` of
a draw in the weights says whether ESS can be trusted. Published, U(1) 8x8 beta = 2 from Haar: ESS about 0.4
(2101.08176), 0.23 acceptance in a rerun of its own weights. Bar: log Z within 4 sigma wherever ESS >= 0.05.
"""

import argparse

from latticeflow import exact
from latticeflow.flows.gauge_coupling import GaugeCoupling
from latticeflow.statistics import bracket
from latticeflow.targets import Wilson

from .common import Bars, one_thread, quality, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=180)
parser.add_argument("--draws", type=int, default=65536)
parser.add_argument("--case", default="", help="only cases whose name begins so")

U1 = Wilson(shape=(8, 8), group="u1", beta=2.0)
SU2 = Wilson(shape=(8, 8), group="su2", beta=2.2)
SU3 = Wilson(shape=(4, 4), group="su3", beta=5.0)
SMALL = {"sweeps": 2, "hidden": (8,), "bins": 6}
CASES = {
    "u1 spline": (U1, GaugeCoupling(**SMALL)),
    "u1 ncp": (U1, GaugeCoupling(coupling="ncp", **SMALL)),
    "u1 stripes": (U1, GaugeCoupling(mask="stripes", **SMALL)),
    "u1 independent": (U1, GaugeCoupling(base="independent", **SMALL)),
    "su2": (SU2, GaugeCoupling(**SMALL)),
    "su3": (SU3, GaugeCoupling(**SMALL)),
}
SETTINGS = {"lr": 3e-3, "warmup": 50}


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    print(f"{args.seconds:.0f} s of training each, one thread; ESS at N = {args.draws:,}")
    for name, (target, spec) in CASES.items():
        if not name.startswith(args.case):
            continue
        flow, steps, spent = train_for(spec, target, args.seconds, **SETTINGS)
        w = quality(flow, target, args.draws)
        log_z = exact.log_z(target.group, target.shape, target.beta)
        pull = (w.log_z - log_z) / w.log_z_error
        print(
            f"{name}, {target.group} {target.shape} beta = {target.beta}:\n    {flow.parameter_count():,} parameters, "
            f"{len(flow.layers)} layers, {steps} steps in {spent:.0f} s  {w}  log Z "
            f"{bracket(w.log_z, w.log_z_error)}, exact {log_z:.4f}  largest share {w.largest_share:.1e}",
            flush=True,
        )
        if w.ess >= 0.05:
            bars.at_most(f"{name}: |log Z - exact| / sigma", abs(pull), 4)
    bars.end()


if __name__ == "__main__":
    main()
