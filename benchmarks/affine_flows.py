"""ESS x draws per second of the ladder's flows beside affine flows, at E2 and E5.

    python -m benchmarks.affine_flows [E2 E5]

The ladder's flows are those that come with the library. The rivals are trained here on one thread for as many seconds as
the better of ours took in `benchmarks.ladder`: the flow of the 2101.08176 tutorial by this package's loop, and the
strongest affine flow we know of, with the trainable spectrum as base, odd networks (exact Z2) and the path gradient. ESS
at N = 65,536; draws per second in turn, in one run, one thread, each flow at its fastest batch; none is compiled, since
affine flows cannot be. Bar: the better of ours is worth 20 of the better rival.
"""

import argparse

from latticeflow.flows import Affine, Flow, Tutorial
from latticeflow.pretrained import load
from latticeflow.targets import Phi4

from .common import Bars, at_fastest_batch, named, one_thread, quality, speed, train_for
from .ladder import FLOWS, POINTS, library_name

RIVALS = {
    "tutorial": (Tutorial(), {"estimator": "reparametrised"}),
    "affine on a spectrum, odd, path gradient": (Affine(z2=True), {"estimator": "path"}),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["E2", "E5"], choices=list(POINTS), metavar="POINT")
parser.add_argument("--draws", type=int, default=65536)


def worth(name: str, target: Phi4, flows: dict[str, Flow], n: int) -> dict[str, float]:
    """ESS x draws per second of each, the speeds in turn."""
    samplers = {kind: at_fastest_batch(target, flow) for kind, flow in flows.items()}
    found = {}
    for (kind, flow), rate in zip(flows.items(), speed(list(samplers.values()), draws=8192)):
        ess = quality(flow, target, n)
        found[kind] = ess.ess * rate
        print(
            f"{name} {kind}: {flow.parameter_count()} parameters, {ess}, {rate:.0f} draws/s "
            f"({named(samplers[kind])}), ESS x draws/s {found[kind]:.0f}",
            flush=True,
        )
    return found


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    for name in args.points:
        target = Phi4(shape=POINTS[name].shape, m2=-4.0, lam=POINTS[name].lam)
        ours = {kind: load(library_name(name, kind)) for kind in FLOWS}
        flows = {kind: one.flow for kind, one in ours.items()}
        products = worth(name, target, flows, args.draws)
        best = max(FLOWS, key=products.__getitem__)
        seconds = ours[best].log[-1]["seconds"]
        print(f"{name}: rivals are trained for {seconds:.0f} s each, as the {best} flow was", flush=True)
        for kind, (spec, settings) in RIVALS.items():
            flows[kind] = train_for(spec, target, seconds, **settings)[0]
        products = worth(name, target, flows, args.draws)
        ratio = max(products[kind] for kind in FLOWS) / max(products[kind] for kind in RIVALS)
        bars.at_least(f"{name} ESS x draws/s, best flow over best affine flow", ratio, 20)
    bars.end()


if __name__ == "__main__":
    main()
