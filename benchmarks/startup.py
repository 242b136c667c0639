"""From the start of a rank to its first block, without `import torch`: alone and under mpirun on 2 ranks.

    python -m benchmarks.startup

Counted: the interpreter, all other imports, MPI, deck, weights, lock, listing what is there; until the first block begins.
The least of `repeats`, since everything that disturbs a start makes it longer; the median is printed beside it.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from .common import Bars
from .production import arguments, fresh, launcher, make_run

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--repeats", type=int, default=9)

# The program, with a clock around torch and before the first block.
CHILD = """
import sys, time
before = time.time()
import torch
after = time.time()
from latticeflow.cli import main
from latticeflow.production.worker import Worker
draw = Worker.draw
def first(self, *key):
    sys.stderr.write(f"FIRST {time.time() - (after - before)}\\n")
    Worker.draw = draw
    return draw(self, *key)
Worker.draw = first
main()
"""


def first_block(command: list[str], run: Path) -> float:
    """Seconds from the start of the command to the first block of its slowest rank, without torch's import."""
    begun = time.time()
    job = subprocess.run(command, capture_output=True, text=True, cwd=run.parent)
    found = [float(line.split()[1]) for line in job.stderr.splitlines() if line.startswith("FIRST")]
    if job.returncode or not found:
        raise SystemExit(f"{command} ended with status {job.returncode}:\n{job.stderr}")
    return max(found) - begun


def main() -> None:
    args = parser.parse_args()
    mpirun = launcher()
    alone, both = [], []
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        for repeat in range(args.repeats):
            copy = fresh(run, f"copy{repeat}")
            options = arguments(copy, "flow", 2 * 2048)[2:]  # without -m latticeflow
            command = [sys.executable, "-c", CHILD, *options]
            alone.append(first_block(command, copy))
            copy = fresh(run, f"both{repeat}")
            options = arguments(copy, "flow", 2 * 2048)[2:]
            both.append(first_block([mpirun.program, "-n", "2", sys.executable, "-c", CHILD, *options], copy))
    bars = Bars()
    for name, found in (("one process", alone), ("mpirun -n 2, its start included", both)):
        print(f"{name}: median {np.median(found):.2f} s of {len(found)}, least {min(found):.2f}")
        bars.at_most(f"start to first block without import torch [s], {name}", min(found), 1.0)
    bars.end()


if __name__ == "__main__":
    main()
