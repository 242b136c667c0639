"""Put a trained run's flow among those that come with the library: python -m benchmarks.publish RUN NAME"""

import argparse

from latticeflow.pretrained import load, publish
from latticeflow.run import Run

from .common import one_thread, quality

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("run")
parser.add_argument("name")


def main() -> None:
    args = parser.parse_args()
    one_thread()
    place = publish(Run.open(args.run), args.name)
    flow = load(args.name)
    print(f"{place}: {flow.flow.parameter_count()} parameters, {quality(flow.flow, flow.target)}")


if __name__ == "__main__":
    main()
