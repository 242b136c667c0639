"""ESS x draws per second of the split flow beside affine flows, at E2 and E5.

    python -m benchmarks.affine_flows [E2 E5] [--seconds 180]

All are trained here, one after the other, on one thread for the same seconds: the split flow with few layers (the ladder's
`fast`) with SOAP; the flow of the 2101.08176 tutorial by this package's loop; and the strongest affine flow we know of, with
the trainable spectrum as base, odd networks (exact Z2) and the path gradient. ESS at N = 65,536; draws per second in turn,
each flow at its fastest batch. Nothing is compiled, since affine flows cannot be. Bar: ours is worth 20 of the better rival.
"""

import argparse

from latticeflow.flows import Affine, Split, Tutorial
from latticeflow.targets import Phi4

from .common import SOAP, Bars, at_fastest_batch, named, one_thread, quality, speed, train_for
from .ladder import POINTS

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["E2", "E5"], metavar="POINT")
parser.add_argument("--seconds", type=float, default=180, help="of training, for each flow")
parser.add_argument("--draws", type=int, default=65536)


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(POINTS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(POINTS)}")
    one_thread()
    bars = Bars()
    for name in args.points:
        point = POINTS[name]
        target = Phi4(shape=point.shape, m2=-4.0, lam=point.lam)
        ours = f"split, {point.few} layers"
        trainings = {
            ours: (Split(layers=point.few), SOAP),
            "tutorial": (Tutorial(), {"estimator": "reparametrised"}),
            "affine on a spectrum, odd, path gradient": (Affine(z2=True), {"estimator": "path"}),
        }
        samplers, steps = {}, {}
        for kind, (spec, settings) in trainings.items():
            flow, *steps[kind] = train_for(spec, target, args.seconds, **settings)
            samplers[kind] = at_fastest_batch(target, flow)
        worth = {}
        for (kind, sampler), rate in zip(samplers.items(), speed([*samplers.values()], draws=8192)):
            ess = quality(sampler.flow, target, args.draws)
            worth[kind] = ess.ess * rate
            print(
                f"{name} {kind}: {steps[kind][0]:,} steps in {steps[kind][1]:.0f} s, {sampler.flow.parameter_count()} "
                f"parameters, {ess}, {rate:.0f} draws/s ({named(sampler)}), ESS x draws/s {worth[kind]:.0f}",
                flush=True,
            )
        best = max(value for kind, value in worth.items() if kind != ours)
        bars.at_least(f"{name} ESS x draws/s, {ours} over the best affine flow", worth[ours] / best, 20)
    bars.end()


if __name__ == "__main__":
    main()
