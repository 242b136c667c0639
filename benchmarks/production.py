"""mpirun for the benchmarks, and a short production run for those of ranks and kills: 8x8 phi^4, a flow and HMC."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latticeflow.config import Deck
from latticeflow.run import Run
from latticeflow.training import TrainSettings, train
from tests.jobs import Launcher, find_mpirun

DECK: dict[str, Any] = {
    "name": "job",
    "seed": 1,
    "target": {"kind": "phi4", "shape": [8, 8], "m2": -4.0, "lam": 8.0},
    "flow": {"kind": "split"},
    "sampler": {
        "flow": {"block": 2048},
        "hmc": {"chains": 64, "streams": 5, "block": 1024, "thermalisation": 100, "step": 0.1, "length": 1.0},
    },
}
DRAWS = {"flow": 40 * 2048, "hmc": 60 * 1024}


def make_run(
    folder: Path,
    block: int = 2048,
    shape: Sequence[int] = (8, 8),
    steps: int = 150,
    lr: float = 5e-3,
    **sampler,
) -> Path:
    """A run whose flow has been trained for some seconds, enough for a chain that moves.

    `sampler`: further settings of `[sampler.flow]`.
    """
    table = copy.deepcopy(DECK)
    table["target"]["shape"] = list(shape)
    table["sampler"]["flow"] = {"block": block, **sampler}
    run = Run.create(Deck.parse(table), folder)
    settings = TrainSettings(steps=steps, lr=lr, warmup=10, evaluate_draws=1024)
    flow = run.deck.flow.build(run.deck.target.lattice, run.deck.seed)
    train(flow, run.deck.target, settings, seed=run.deck.seed, weights=run.weights)
    return run.path


def fresh(run: Path, name: str) -> Path:
    """A copy of the run without ensembles."""
    return shutil.copytree(run, run.parent / name, ignore=shutil.ignore_patterns("ensembles"))


def launcher() -> Launcher:
    program = find_mpirun()
    if program is None:
        raise SystemExit("no mpirun: pip install 'latticeflow[mpi]', or load the cluster's MPI module")
    return Launcher(program)


def arguments(run: Path, sampler: str, draws: int | None = None) -> list[str]:
    """`python ...` of `latticeflow sample`; without `draws` those of the short run."""
    options = {"--sampler": sampler, "--draws": str(draws or DRAWS[sampler]), "--device": "cpu"}
    return ["-m", "latticeflow", "sample", str(run), *(part for pair in options.items() for part in pair)]


def sample(mpirun: Launcher, n: int, run: Path, sampler: str, draws: int | None = None) -> None:
    """`mpirun -n N latticeflow sample`, to its end, an hour at most; raises where it fails."""
    job = mpirun(n, *arguments(run, sampler, draws), cwd=run.parent, timeout=3600)
    if job.returncode:
        raise SystemExit(f"sample on {n} ranks ended with status {job.returncode}:\n{job.stderr}")
