"""Proposals per second of the Metropolis scan on one core, streaming, at several acceptances.

python -m benchmarks.metropolis_speed
"""

import time

import numpy as np

from latticeflow.correction import MetropolisScan

from .common import Bars

BLOCK, BLOCKS = 8192, 500


def main() -> None:
    rng, bars = np.random.default_rng(1), Bars()
    for sigma in (0.1, 0.3, 1.0, 3.0):
        blocks = [sigma * rng.normal(size=BLOCK) for _ in range(BLOCKS)]
        rates = []
        for _ in range(3):
            scan, start = MetropolisScan(), time.perf_counter()
            for number, log_w in enumerate(blocks):
                scan.feed(log_w, np.random.default_rng(number))
            rates.append(BLOCK * BLOCKS / (time.perf_counter() - start))
        bars.at_least(
            f"sigma(log w) = {sigma}, acceptance {scan.acceptance:.3f}: proposals per second, best of 3 "
            f"(worst {min(rates):.4g})",
            max(rates),
            2e6,
        )
    bars.end()


if __name__ == "__main__":
    main()
