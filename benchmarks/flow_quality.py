"""8x8, m2 = -4, lam = 8: the split flow beside the flow of the 2101.08176 tutorial, same seconds, same run.

    python -m benchmarks.flow_quality                       # 90 s each, one thread: the speed figures
    python -m benchmarks.flow_quality --seconds 280         # up to the 5 minutes of the quality figure

Prints ESS at N = 65,536 with its error, log Z, draws per second and their product, as ratios. Bars: ESS >= 0.90;
ESS x draws per second at least 200 times that of the tutorial's flow trained as in its notebook.
"""

import argparse

from latticeflow.flows import Split, Tutorial
from latticeflow.samplers import FlowSampler
from latticeflow.statistics import bracket
from latticeflow.targets import Phi4

from .common import SOAP, Bars, one_thread, quality, speed, train_for

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--seconds", type=float, default=90)
parser.add_argument("--draws", type=int, default=65536)

REFERENCE = (9.2923, 0.0019)  # Monte Carlo, independent of this code
NOTEBOOK = "tutorial, trained as in its notebook"


def main() -> None:
    args = parser.parse_args()
    one_thread()
    target = Phi4(shape=(8, 8), m2=-4.0, lam=8.0)
    notebook = dict(lr=1e-3, warmup=0, decay="constant", clip=1e9, estimator="reparametrised", batch=64)
    cases = {
        "split": (Split(), SOAP),
        NOTEBOOK: (Tutorial(), notebook),
        "tutorial, trained by this package's loop": (Tutorial(), dict(estimator="reparametrised")),
    }
    rows = {}
    for name, (spec, settings) in cases.items():
        flow, steps, seconds = train_for(spec, target, args.seconds, **settings)
        rows[name] = (flow, steps, seconds, quality(flow, target, args.draws))
    rates = speed([FlowSampler(target, row[0]) for row in rows.values()])

    print(
        f"phi4 8x8, m2 = -4, lam = 8; {args.seconds:.0f} s of training each, one thread; ESS at N = {args.draws:,}"
    )
    products = {}
    for (name, (flow, steps, seconds, s)), rate in zip(rows.items(), rates):
        products[name] = s.ess * rate
        pull = (s.log_z - REFERENCE[0]) / (s.log_z_error**2 + REFERENCE[1] ** 2) ** 0.5
        print(
            f"{name}:\n    {flow.parameter_count():6,} parameters  {steps:6} steps in {seconds:5.1f} s  "
            f"{s}  log Z {bracket(s.log_z, s.log_z_error)}, pull {pull:+.2f}  "
            f"largest share {s.largest_share:.1e}  {rate:8.0f} draws/s  ESS x draws/s {products[name]:9.1f}"
        )
    ratios = {name: products["split"] / products[name] for name in list(products)[1:]}
    for name, ratio in ratios.items():
        print(f"ESS x draws/s, split over {name}: {ratio:.0f}")
    bars = Bars()
    bars.at_least("ESS of split", rows["split"][3].ess, 0.90)
    bars.at_least(f"ESS x draws/s, split over {NOTEBOOK}", ratios[NOTEBOOK], 200)
    bars.end()


if __name__ == "__main__":
    main()
