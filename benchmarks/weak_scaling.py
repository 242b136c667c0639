"""Weak scaling from 1 to 2 ranks, one thread each: twice the blocks on twice the ranks should take the same time.

    python -m benchmarks.weak_scaling
    python -m benchmarks.weak_scaling --repeats 9 --draws 600000

Times are those that `sample` prints: opening the run, drawing, storing, the barrier, the serial Metropolis scan and the
summary; not the start of the processes. Beside it, what the machine itself allows: two jobs of one rank each, at the
same time and independent of one another. The three are taken in turn, `repeats` times; medians.
"""

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np

from tests.jobs import Launcher

from .common import Bars
from .production import arguments, fresh, launcher, make_run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeats", type=int, default=7)
parser.add_argument("--draws", type=int, default=60 * 8192, help="for each rank")


def seconds(job) -> float:
    out, err = job.communicate(timeout=3600)
    found = re.search(r"drawn in ([\d.]+) s", out)
    if job.returncode or not found:
        raise SystemExit(f"sample ended with status {job.returncode}:\n{err}")
    return float(found[1])


def jobs(mpirun: Launcher, runs: list[Path], ranks: int, draws: int) -> float:
    """The mean time of jobs started together, each on `ranks` ranks."""
    started = [mpirun.start(ranks, *arguments(run, "flow", draws), cwd=run.parent) for run in runs]
    found = [seconds(job) for job in started]
    for run in runs:
        shutil.rmtree(run)
    return float(np.mean(found))


def main() -> None:
    args = parser.parse_args()
    mpirun = launcher()
    times: dict[str, list[float]] = {"one rank": [], "two ranks": [], "two jobs of one rank": []}
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", block=8192)
        for _ in range(args.repeats):
            times["one rank"].append(jobs(mpirun, [fresh(run, "a")], 1, args.draws))
            times["two ranks"].append(jobs(mpirun, [fresh(run, "a")], 2, 2 * args.draws))
            pair = [fresh(run, "a"), fresh(run, "b")]
            times["two jobs of one rank"].append(jobs(mpirun, pair, 1, args.draws))
    one, two, apart = (np.array(found) for found in times.values())
    for name, found in times.items():
        print(f"{name}: median {np.median(found):.2f} s, {found}")
    print(f"two independent jobs beside one: {np.median(one / apart):.3f}, what the machine allows")
    bars = Bars()
    bars.at_least("weak scaling from 1 to 2 ranks", float(np.median(one / two)), 0.95)
    bars.end()


if __name__ == "__main__":
    main()
