"""Peak memory of `sample` (with the scan), `measure` and `verify` at many draws over that at few: 8x8, observables only.

    python -m benchmarks.memory [--few 100000] [--many 3000000] [--sampler flow]

Each command is a process of its own on one rank; its peak is Linux's VmHWM. A flow trained for some seconds is enough.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .common import Bars
from .production import arguments, fresh, make_run

BAR = 1.2
COMMAND = """
import atexit, re, sys
from pathlib import Path

def peak():
    print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1], file=sys.stderr)

atexit.register(peak)
from latticeflow.cli import main
main()
"""

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--few", type=int, default=100_000)
parser.add_argument("--many", type=int, default=3_000_000)
parser.add_argument("--sampler", default="flow", choices=("flow", "hmc"))


def peak(*command: str) -> float:
    """Peak memory of one command in MiB."""
    begun = time.perf_counter()
    job = subprocess.run([sys.executable, "-c", COMMAND, *command], capture_output=True, text=True)
    lines = job.stderr.splitlines()
    if job.returncode or not lines or not lines[-1].startswith("peak"):
        raise SystemExit(f"latticeflow {' '.join(command)} ended with status {job.returncode}:\n{job.stderr}")
    found = int(lines[-1].split()[1]) / 1024
    print(f"{command[0]}: {found:.0f} MiB, {time.perf_counter() - begun:.0f} s", flush=True)
    return found


def peaks(run: Path, sampler: str, draws: int) -> dict[str, float]:
    """By command, on a copy of the run."""
    copy = fresh(run, f"draws{draws}")
    print(f"{draws:,} draws of {sampler}", flush=True)
    sample = [*arguments(copy, sampler, draws)[2:], "--set", f"sampler.{sampler}.keep_fields=0"]
    commands = {"sample": sample, "measure": ["measure", str(copy), "--sampler", sampler]}
    return {name: peak(*command) for name, command in commands.items()} | {
        "verify": peak("verify", str(copy))
    }


def main() -> None:
    args = parser.parse_args()
    bars = Bars()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", block=8192)
        few, many = (peaks(run, args.sampler, draws) for draws in (args.few, args.many))
    for name in few:
        bars.at_most(f"{name}: peak at {args.many:,} draws over {args.few:,}", many[name] / few[name], BAR)
    bars.end()


if __name__ == "__main__":
    main()
