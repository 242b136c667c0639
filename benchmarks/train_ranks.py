"""Training steps per second on 1 rank and on 2, gradients summed by one flat all-reduce or by DistributedDataParallel.

    python -m benchmarks.train_ranks

8x8 phi^4 at m2 = -4, lam = 8, the default split flow, one thread a rank, gloo. The global batch is the same on 1 and on 2
ranks (strong scaling). Medians over repeats in which the three take turns, in one job. No bar: efficiency is speed-up / 2.
"""

import sys
import time

import numpy as np
import torch

from latticeflow.config import Deck
from latticeflow.production.group import process_group
from latticeflow.production.ranks import Ranks
from latticeflow.training import TrainSettings, train
from latticeflow.training.loss import ESTIMATORS
from latticeflow.training.parallel import Group, noise

from .production import launcher

STEPS = {64: 60, 256: 30, 1024: 10}  # of each timing, by global batch
REPEATS = 5
SEED = 1


def package(deck: Deck, batch: int, group: Group) -> float:
    """Steps per second of `latticeflow train`."""
    records: list[dict[str, float]] = []
    settings = TrainSettings(steps=STEPS[batch], batch=batch, evaluate_every=10**9, evaluate_draws=1024)
    flow = deck.flow.build(deck.target.lattice, SEED)
    train(flow, deck.target, settings, seed=SEED, report=records.append, group=group)
    return STEPS[batch] / records[-1]["seconds"]


class Surrogate(torch.nn.Module):
    """What DistributedDataParallel wraps: noise to (surrogate, loss)."""

    def __init__(self, flow, target):
        super().__init__()
        self.flow, self.target = flow, target

    def forward(self, white, batch):
        return ESTIMATORS["path"](self.flow, self.target, white, batch)


def ddp(deck: Deck, batch: int, group: Group) -> float:
    """Steps per second of the same step with torch's DistributedDataParallel; the loss is summed beside it."""
    settings = TrainSettings(steps=STEPS[batch], batch=batch)
    flow = deck.flow.build(deck.target.lattice, SEED)
    model = torch.nn.parallel.DistributedDataParallel(
        Surrogate(flow, deck.target), gradient_as_bucket_view=True
    )
    optimizer = torch.optim.Adam(flow.parameters(), lr=settings.lr)
    part = group.share(batch)
    start = time.perf_counter()
    for step in range(settings.steps):
        for parameters in optimizer.param_groups:
            parameters["lr"] = settings.lr_at(step)
        optimizer.zero_grad()
        surrogate, loss = model(noise(flow, SEED, step, batch, part), batch)
        (surrogate * group.size).backward()  # it divides by the number of ranks
        numbers = group.sum(torch.tensor([float(loss), 0.0], dtype=torch.float64))
        norm = float(torch.nn.utils.clip_grad_norm_(flow.parameters(), settings.clip))
        if not np.isfinite([norm, *numbers.tolist()]).all():
            raise SystemExit("diverged")
        optimizer.step()
    return settings.steps / (time.perf_counter() - start)


def worker() -> None:
    """One rank of the job: all three in turn, rank 1 asleep while rank 0 works alone."""
    torch.set_num_threads(1)
    ranks, deck = Ranks.world(), Deck.read("configs/phi4_8x8.toml")
    with process_group(ranks, "cpu") as group:
        for batch in STEPS:
            rates: dict[str, list[float]] = {"one": [], "flat": [], "ddp": []}
            for _ in range(REPEATS + 1):
                if ranks.root:
                    rates["one"].append(package(deck, batch, Group()))
                ranks.barrier()
                rates["flat"].append(package(deck, batch, group))
                rates["ddp"].append(ddp(deck, batch, group))
                ranks.barrier()
            if ranks.root:
                one, flat, other = (float(np.median(values[1:])) for values in rates.values())
                row = f"| {batch} | {one:.1f} | {flat:.1f} | {flat / one:.2f} | {flat / one / 2:.2f} "
                print(row + f"| {other:.1f} | {other / one:.2f} |", flush=True)


def main() -> None:
    if sys.argv[1:] == ["worker"]:
        worker()
        return
    print(
        "| global batch | 1 rank, steps/s | 2 ranks, flat | speed-up | efficiency | 2 ranks, DDP | speed-up |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    job = launcher()(2, "-m", "benchmarks.train_ranks", "worker", cwd=".", timeout=3600)
    print(job.stdout, end="")
    if job.returncode:
        sys.exit(job.stderr)


if __name__ == "__main__":
    main()
