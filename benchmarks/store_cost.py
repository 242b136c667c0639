"""What storing and bookkeeping cost over pure sampling: 16x16, fields stored with checksums, one rank.

    python -m benchmarks.store_cost

`(whole - pure) / pure`: whole is the wall time of `sample_run`: opening the run, loading the flow, drawing, storing
(digest, checksums, fsync, read back), the Metropolis scan and the summary; pure is the time spent in the sampler's
`draw`, as recorded with each block.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from latticeflow.production.sample import sample_run

from .common import Bars, one_thread
from .production import fresh, make_run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeats", type=int, default=3)
parser.add_argument("--blocks", type=int, default=40, help="of 8,192 configurations")


def main() -> None:
    args = parser.parse_args()
    one_thread()
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", block=8192, shape=[16, 16], steps=40, lr=1e-3)
        for repeat in range(args.repeats):
            copy = fresh(run, f"copy{repeat}")
            begun = time.perf_counter()
            ensemble = sample_run(copy, sampler="flow", draws=args.blocks * 8192, device="cpu")
            whole, pure = time.perf_counter() - begun, ensemble.seconds
            costs.append((whole - pure) / pure)
            print(f"whole {whole:.2f} s, pure sampling {pure:.2f} s: {100 * costs[-1]:.2f} %", flush=True)
    bars = Bars()
    bars.at_most("store and bookkeeping over pure sampling [%]", 100 * float(np.median(costs)), 5.0)
    bars.end()


if __name__ == "__main__":
    main()
