"""Floating-point operations of a draw beside the machine's rate of matrix products, and how the batch matters.

    python -m benchmarks.operations [8 14 20 32] [--compile]

For the split and the continuous flow, weights of some size, in float32 on one thread: operations in matrix products for one
configuration (torch's counter), seconds of the processor for one at the best of `BATCHES` and how much slower the others
are, and the ratio of those seconds to the operations over the measured rate of a 1024^3 product: 1 would be a flow that
does nothing but matrix products at full speed. `--compile`: the same with `torch.compile` (which needs a C++ compiler),
and by how much its log q differs.
"""

import argparse
import time
from functools import partial

import torch
from torch.utils.flop_counter import FlopCounterMode

from latticeflow.flows import Continuous, Split
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream

from .common import one_thread

BATCHES = (64, 256, 1024, 4096)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("sides", nargs="*", type=int, default=[8, 14, 20, 32])
parser.add_argument("--compile", action="store_true")


def seconds(call, repeats: int = 5) -> float:
    """Of the processor, the least of some."""
    call()
    found = []
    for _ in range(repeats):
        begun = time.process_time()
        call()
        found.append(time.process_time() - begun)
    return min(found)


@torch.no_grad()
def shake(flow) -> None:
    """Away from the identity: kernels of some size."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in flow.layers.named_parameters():
        if "kernel" in name or "strength" in name:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))


def main() -> None:
    args = parser.parse_args()
    one_thread()
    a = torch.rand(1024, 1024)
    rate = 2 * 1024**3 / seconds(lambda: a @ a)
    print(f"a 1024^3 product: {rate / 1e9:.0f} Gflop/s")
    for side in args.sides:
        for spec in (Split(), Continuous()):
            flow = spec.build(Lattice((side, side)), 1)
            shake(flow)
            noise = {n: flow.noise(n, stream(1, Purpose.DRAW, n)) for n in BATCHES}
            with torch.no_grad():
                with FlopCounterMode(display=False) as counter:
                    flow.push(noise[64])
                operations = counter.get_total_flops() / 64
                times = {n: seconds(partial(flow.push, z)) / n for n, z in noise.items()}
            batch = min(times, key=times.__getitem__)
            others = ", ".join(f"{n}: {t / times[batch]:.2f}" for n, t in times.items())
            print(
                f"{side}x{side} {spec.kind}: {operations / 1e6:.2f} Mflop a configuration in {times[batch] * 1e6:.1f} us, "
                f"{times[batch] * rate / operations:.1f} times the product's; batch {batch}, relative times {others}",
                flush=True,
            )
            if args.compile:
                compare(flow, noise[batch], times[batch])


def compare(flow, noise, plain: float) -> None:
    with torch.no_grad():
        before = flow.push(noise)[1]
        begun = time.perf_counter()
        flow.compile_parts()
        change = float((flow.push(noise)[1] - before).abs().max())
        spent = time.perf_counter() - begun
        ratio = plain / (seconds(lambda: flow.push(noise)) / len(noise))
    print(
        f"    compiled in {spent:.0f} s: {ratio:.2f} times as fast, largest change of log q {change:.2g}",
        flush=True,
    )


if __name__ == "__main__":
    main()
