"""ESS x draws per second of the ladder's flows beside affine flows, at E2 and E5.

    python -m benchmarks.ladder E2 E5            # first: trains what is compared here
    python -m benchmarks.affine_flows [E2 E5] [--seconds 600 1200]

The rivals, trained here on one thread for `--seconds` at each point: the flow of the 2101.08176 tutorial by this package's
loop, and the strongest affine flow we know of, with the trainable spectrum as base, odd networks (exact Z2) and the path
gradient. ESS at N = 65,536; draws per second in turn, in one run, one thread, each flow at its fastest batch, compiled
where that is faster. Bar: the better of the ladder's two flows is worth 20 of the better rival.
"""

import argparse
from pathlib import Path

from latticeflow.flows import Affine, Flow, Tutorial
from latticeflow.run import Run
from latticeflow.targets import Phi4
from latticeflow.training.checkpoint import load_flow

from .common import Bars, fastest_sampler, named, one_thread, quality, speed, train_for
from .ladder import FLOWS, POINTS

RIVALS = {
    "tutorial": (Tutorial(), {"estimator": "reparametrised"}),
    "affine on a spectrum, odd, path gradient": (Affine(z2=True), {"estimator": "path"}),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["E2", "E5"], choices=list(POINTS), metavar="POINT")
parser.add_argument("--seconds", type=float, nargs="*", default=[600, 1200])
parser.add_argument("--draws", type=int, default=65536)


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    for name, seconds in zip(args.points, args.seconds, strict=True):
        point = POINTS[name]
        target = Phi4(shape=point.shape, m2=-4.0, lam=point.lam)
        found: dict[str, Flow] = {}
        for kind in FLOWS:
            run = Run.open(Path("runs") / f"ladder_{name}_{kind}")
            found[kind] = load_flow(run.weights, run.deck)[0]
        for kind, (spec, settings) in RIVALS.items():
            found[kind] = train_for(spec, target, seconds, **settings)[0]
        ess = {kind: quality(flow, target, args.draws) for kind, flow in found.items()}
        samplers = {kind: fastest_sampler(target, flow) for kind, flow in found.items()}
        rates = speed(list(samplers.values()), draws=8192)
        products = {}
        for (kind, flow), rate in zip(found.items(), rates):
            products[kind] = ess[kind].ess * rate
            print(
                f"{name} {kind}: {flow.parameter_count()} parameters, {ess[kind]}, {rate:.0f} draws/s "
                f"({named(samplers[kind])}), ESS x draws/s {products[kind]:.0f}",
                flush=True,
            )
        ratio = max(products[kind] for kind in FLOWS) / max(products[kind] for kind in RIVALS)
        bars.at_least(f"{name} ESS x draws/s, best flow over best affine flow", ratio, 20)
    bars.end()


if __name__ == "__main__":
    main()
