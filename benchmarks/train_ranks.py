"""Training steps per second on 1 rank and on 2, gradients summed by one flat all-reduce or by DistributedDataParallel.

    python -m benchmarks.train_ranks
    python -m benchmarks.train_ranks 16

phi^4 at m2 = -4, lam = 8 on 8x8 (or the side given), the default split flow, one thread a rank, gloo. The global batch
is the same on 1 and on 2 ranks (strong scaling). "Half the batch" is 1 rank that has what each of 2 ranks has: what
there is to gain, without communication. Medians over repeats in which the four take turns, in one job. No bar.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from latticeflow.config import Deck
from latticeflow.production.group import process_group
from latticeflow.production.ranks import Ranks
from latticeflow.training import TrainSettings, train
from latticeflow.training.loss import ESTIMATORS
from latticeflow.training.parallel import ALONE, Group, noise

from .production import launcher

STEPS = {64: 40, 256: 20, 1024: 8}  # of each timing, by global batch
REPEATS = 4
SEED = 1


def package(deck: Deck, batch: int, steps: int, group: Group) -> float:
    """Steps per second of `latticeflow train`."""
    records: list[dict[str, float]] = []
    settings = TrainSettings(steps=steps, batch=batch, evaluate_every=10**9, evaluate_draws=1024)
    flow = deck.flow.build(deck.target.lattice, SEED)
    train(flow, deck.target, settings, seed=SEED, report=records.append, group=group)
    return steps / records[-1]["seconds"]


class Surrogate(torch.nn.Module):
    """What DistributedDataParallel wraps: noise to (surrogate, loss)."""

    def __init__(self, flow, target):
        super().__init__()
        self.flow, self.target = flow, target

    def forward(self, white, batch):
        return ESTIMATORS["path"](self.flow, self.target, white, batch)


def ddp(deck: Deck, batch: int, steps: int, group: Group) -> float:
    """Steps per second of the same step with torch's DistributedDataParallel; the loss is summed beside it."""
    settings = TrainSettings(steps=steps, batch=batch)
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


def worker(side: int) -> None:
    """One rank of the job: all in turn, rank 1 asleep while rank 0 works alone."""
    torch.set_num_threads(1)
    table = Deck.read("configs/phi4_8x8.toml").table()
    table["target"]["shape"] = [side, side]
    ranks, deck = Ranks.world(), Deck.parse(table)
    with process_group(ranks, "cpu") as group:
        for batch, steps in STEPS.items():
            rates: dict[str, list[float]] = {"one": [], "half": [], "flat": [], "ddp": []}
            for _ in range(REPEATS + 1):
                if ranks.root:
                    rates["one"].append(package(deck, batch, steps, ALONE))
                    rates["half"].append(package(deck, batch // 2, steps, ALONE))
                ranks.barrier()
                rates["flat"].append(package(deck, batch, steps, group))
                rates["ddp"].append(ddp(deck, batch, steps, group))
                ranks.barrier()
            if ranks.root:
                one, *others = (float(np.median(values[1:])) for values in rates.values())
                parts = " | ".join(f"{rate:.1f} ({rate / one:.2f})" for rate in others)
                print(f"| {batch} | {one:.1f} | {parts} | {others[1] / one / 2:.2f} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]))
        return
    side = (sys.argv[1:] or ["8"])[0]
    print("steps per second (over those of 1 rank); efficiency of the flat all-reduce")
    print("| global batch | 1 rank | 1 rank, half the batch | 2 ranks, flat | 2 ranks, DDP | efficiency |")
    print("|---|---|---|---|---|---|", flush=True)
    job = launcher()(2, "-m", "benchmarks.train_ranks", "worker", side, cwd=Path("."), timeout=3600)
    print(job.stdout, end="")
    if job.returncode:
        sys.exit(job.stderr)


if __name__ == "__main__":
    main()
