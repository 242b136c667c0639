"""kill -9 of the whole job at a random moment, then resume: 20 trials against an uninterrupted run.

    python -m benchmarks.kill_resume
    python -m benchmarks.kill_resume --trials 5 --seed 2

In every third trial only the launcher is killed: its ranks may outlive it for a block, and the run's lock keeps the job that
resumes out until they are gone, so that the command is repeated. Jobs and resumed jobs take 1, 2 and 3 ranks in turn.
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.jobs import contents, kill_9

from .common import Bars, one_thread
from .production import arguments, fresh, launcher, make_run, sample

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--trials", type=int, default=20)
parser.add_argument("--seed", type=int, default=1)


def blocks(run: Path) -> int:
    return len(list(run.glob("ensembles/*/blocks/*/s*.h5")))


def go_on(mpirun, n: int, run: Path, sampler: str, patience: float = 60.0) -> None:
    """The same command again, until the run's lock admits it."""
    begun = time.monotonic()
    while True:
        job = mpirun(n, *arguments(run, sampler), cwd=run.parent, timeout=3600)
        if job.returncode == 0:
            return
        if "in use by another job" not in job.stderr or time.monotonic() - begun > patience:
            raise SystemExit(f"sample on {n} ranks ended with status {job.returncode}:\n{job.stderr}")


def trial(mpirun, run: Path, number: int, rng: random.Random, seconds: float, reference: dict) -> bool:
    """Kill one job, resume it, compare. `seconds`: that drawing takes."""
    sampler = ("flow", "hmc")[number % 2]
    n, again = 1 + number % 3, 1 + (number // 3) % 3
    alone = number % 3 == 2
    job = mpirun.start(n, *arguments(run, sampler), cwd=run.parent)
    while not list(run.glob("ensembles/*/ensemble.json")):
        time.sleep(0.001)
    time.sleep(rng.uniform(0, seconds))
    if alone:
        job.kill()
        job.wait()
    else:
        kill_9(job)
    killed = blocks(run)
    wanted = {name: data for name, data in reference.items() if f"/{sampler}/" in name}
    total = sum("/s0" in name for name in wanted)
    go_on(mpirun, again, run, sampler)
    same = contents(run) == wanted
    print(
        f"trial {number + 1}: {sampler}, {n} rank(s), {'launcher' if alone else 'all'} killed with {killed} of "
        f"{total} blocks, resumed on {again}: {'identical' if same else 'DIFFERENT'}",
        flush=True,
    )
    return same


def main() -> None:
    args = parser.parse_args()
    one_thread()
    mpirun, rng = launcher(), random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run")
        whole = fresh(run, "whole")
        seconds = []
        for sampler in ("flow", "hmc"):
            sample(mpirun, 1, whole, sampler)
            times = [path.stat().st_mtime for path in (whole / "ensembles" / sampler).glob("blocks/*/s*.h5")]
            seconds.append(max(times) - min(times))
        reference = contents(whole)
        good = 0
        for number in range(args.trials):
            copy = fresh(run, "trial")
            share = seconds[number % 2] / (1 + number % 3)
            good += trial(mpirun, copy, number, rng, share, reference)
            shutil.rmtree(copy)
    bars = Bars()
    bars.at_least("trials identical to the uninterrupted run", good, args.trials)
    bars.end()


if __name__ == "__main__":
    main()
