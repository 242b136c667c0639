"""Production on 10,000 pretended ranks and 1e9 pretended proposals: the real bookkeeping, in bounded memory.

    python -m benchmarks.scale
    python -m benchmarks.scale --proposals 1e8 --ranks 1000

Real: which blocks are missing, who draws which, where each lies, the listing of a folder tree with a file for every
block, the Metropolis scan over the log-weights with its index on disk, the sums of the weights. Pretended: the draws,
log-weights being Gaussian numbers, and block files are empty. The figures of docs/scaling.md.
"""

import argparse
import math
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from latticeflow.production.ranks import Ranks
from latticeflow.production.worker import missing_blocks, share_out
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSamplerSpec, HMCSpec
from latticeflow.store import Ensemble
from latticeflow.store.block import block_path
from latticeflow.store.chain import Piece, read_chain, write_chain

from .common import Bars

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--proposals", type=float, default=1e9)
parser.add_argument("--ranks", type=int, default=10_000)
parser.add_argument("--sigma", type=float, default=0.3, help="of the pretended log-weights")


class Pretended(Ranks):
    """Rank `rank` of `size`."""

    def __init__(self, rank: int, size: int):
        super().__init__()
        self.rank, self.size = rank, size


def peak() -> float:
    """Largest memory of this process so far [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ensemble_of(folder: Path, spec, chains: int) -> Ensemble:
    settings = spec.model_dump(mode="json", exclude_none=True)
    target = {"kind": "phi4", "shape": [8, 8], "m2": -4.0, "lam": 8.0}
    record = {"target": target, "seed": 1, "weights": None, "chains": chains, "interacting": False}
    return Ensemble.create(
        folder / spec.kind, sampler=spec.kind, settings=settings, weighted=not chains, **record
    )


def timed(what: str, work):
    begun = time.perf_counter()
    found = work()
    print(f"{what}: {time.perf_counter() - begun:.2f} s, peak memory {peak():.0f} MiB", flush=True)
    return found


def assign(ensemble: Ensemble, spec, draws: int, ranks: int, bars: Bars) -> list:
    """Every block to one rank, and no rank with much more than its share."""
    missing = timed(f"{spec.kind}: blocks to draw", lambda: missing_blocks(ensemble, spec, draws))
    shares = timed(
        f"{spec.kind}: shares of {ranks:,} ranks",
        lambda: [share_out(missing, Pretended(rank, ranks), ensemble.chains > 0) for rank in range(ranks)],
    )
    dealt = Counter(key for share in shares for key in share)
    sizes = [len(share) for share in shares]
    print(f"{len(missing):,} blocks, {min(sizes)} to {max(sizes)} a rank")
    bars.at_least(f"{spec.kind}: blocks dealt exactly once", float(dealt == Counter(missing)), 1)
    if not ensemble.chains:
        bars.at_most(
            f"{spec.kind}: blocks of the busiest rank less those of the idlest", max(sizes) - min(sizes), 1
        )
    return missing


def lay_out(ensemble: Ensemble, spec, draws: int, keys: list, bars: Bars) -> None:
    """A file for every block; the listing; what a resumed job finds missing."""

    def touch() -> None:
        for key in keys:
            path = block_path(ensemble.path, *key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    timed("an empty file for every block", touch)
    folders = Counter(block_path(ensemble.path, *key).parent for key in keys)
    print(f"{len(keys):,} files in {len(folders):,} folders")
    bars.at_most("files in one folder", max(folders.values()), 1000)
    listed = timed("listing them", lambda: ensemble.present)
    bars.at_least("blocks listed in order", float(listed == sorted(keys)), 1)
    lost = sorted(random.Random(1).sample(keys, len(keys) // 100))
    for key in lost:
        block_path(ensemble.path, *key).unlink()
    again = timed("missing after the loss of 1 %", lambda: missing_blocks(ensemble, spec, draws))
    bars.at_least("exactly the lost blocks are drawn again", float(again == lost), 1)


def pretended_weights(keys: list, size: int, sigma: float) -> Iterator[Piece]:
    for key in keys:
        log_w = sigma * stream(1, Purpose.DRAW, *key).standard_normal(size)
        yield log_w, stream(1, Purpose.METROPOLIS, *key), 0.0


def main() -> None:
    args = parser.parse_args()
    draws, bars = int(args.proposals), Bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        hmc = HMCSpec(streams=args.ranks, block=1024)
        assign(ensemble_of(folder, hmc, hmc.chains), hmc, draws // 100, args.ranks, bars)
        flow = FlowSamplerSpec()
        ensemble = ensemble_of(folder, flow, 0)
        keys = assign(ensemble, flow, draws, args.ranks, bars)
        lay_out(ensemble, flow, draws, keys, bars)
        before = peak()
        pieces = pretended_weights(keys, flow.block, args.sigma)
        begun = time.perf_counter()
        write_chain(ensemble.path, ensemble.identity, flow.block, [keys], pieces)
        seconds, n = time.perf_counter() - begun, len(keys) * flow.block
        size = (ensemble.path / "chain.h5").stat().st_size
        print(
            f"scan of {n:,} proposals: {seconds:.0f} s, {n / seconds / 1e6:.2f} million/s, weights drawn on the way; "
            f"chain.h5 {size / 1e6:.0f} MB, {size / n:.2f} bytes a proposal"
        )
        bars.at_most("memory that the scan added [MiB]", peak() - before, 64)
        chain = read_chain(ensemble.path, ensemble.identity, flow.block, [keys])
        ess, expected = chain.weights.ess, math.exp(-(args.sigma**2))
        print(f"ESS {chain.weights}, exp(-sigma^2) = {expected:.6f}; acceptance {chain.acceptance:.5f}")
        bars.at_most("|ESS - exp(-sigma^2)| in errors", abs(ess - expected) / chain.weights.ess_error, 4)
        begun = time.perf_counter()
        entries = sum(len(part) for _, part in chain.walk())
        print(f"walking the chain: {entries / (time.perf_counter() - begun) / 1e6:.0f} million entries/s")
        bars.at_most("peak memory of everything [MiB]", peak(), 512)
    bars.end()


if __name__ == "__main__":
    main()
