"""Known answers: 2x2 (quadrature), 8x8 at lam = 8, E1 and E2 (Monte Carlo of others), flow and HMC.

    python -m benchmarks.points [2x2 8x8 E1 E2] [--draws 1000000] [--ranks 2]

Runs the README's own commands on the decks in configs/ (train, then sample under mpirun with either sampler) in a
temporary folder, and prints each value with its error, relative error and pull against the reference, beside the
bars: |pull| <= 3; own relative error <= 0.3 %, of phi2 at 2x2 <= 0.1 %; own error of log Z <= 0.002.
"""

import argparse
import contextlib
import io
import math
import subprocess
import sys
import tempfile
from pathlib import Path

from latticeflow.analysis.measure import measure_run
from latticeflow.store import Ensemble

from .common import Bars
from .production import launcher, sample

DECKS = {"2x2": "phi4_2x2", "8x8": "phi4_8x8", "E1": "phi4_6x6_E1", "E2": "phi4_8x8_E2"}

# value, error; none of it from this code (2x2: four-dimensional quadrature; else Monte Carlo)
REFERENCES: dict[str, dict[str, tuple[float, float]]] = {
    "2x2": {
        "phi2": (0.171434423240, 0.0),
        "phi4": (0.056169583896, 0.0),
        "abs_m": (0.2894756228, 0.0),
        "log_z": (0.914433978425, 0.0),
    },
    "8x8": {"chi2": (0.7446, 0.0005), "log_z": (9.2923, 0.0019)},
    "E1": {"phi2": (0.161400, 0.000013), "chi2": (1.0631, 0.0004)},
    "E2": {"phi2": (0.183885, 0.000015), "chi2": (1.8973, 0.0009)},
}

RELATIVE = {("2x2", "phi2"): 0.001, ("2x2", "phi4"): math.inf, ("2x2", "abs_m"): math.inf}  # else 0.003
LOG_Z = 0.002

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=list(DECKS), metavar="POINT")
parser.add_argument("--draws", type=int, default=1_000_000)
parser.add_argument("--ranks", type=int, default=2)


def report(bars: Bars, point: str, sampler: str, name: str, value: float, error: float) -> None:
    reference, reference_error = REFERENCES[point][name]
    what = f"{point} {sampler} {name}"
    print(f"{what}: {value:.6f} +- {error:.6f}, reference {reference:.6f} +- {reference_error:.6f}")
    bars.at_most(f"{what} |pull|", abs(value - reference) / math.hypot(error, reference_error), 3)
    if name == "log_z":
        bars.at_most(f"{what} own error", error, LOG_Z)
    elif (bar := RELATIVE.get((point, name), 0.003)) < math.inf:
        bars.at_most(f"{what} own relative error", error / abs(value), bar)


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(DECKS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(DECKS)}")
    mpirun, bars = launcher(), Bars()
    with tempfile.TemporaryDirectory() as temporary:
        for point in args.points:
            folder = Path(temporary) / point
            train = ["-m", "latticeflow", "train", f"configs/{DECKS[point]}.toml", "--run", str(folder)]
            subprocess.run([sys.executable, *train], check=True, stdout=subprocess.DEVNULL)
            for sampler in ("flow", "hmc"):
                sample(mpirun, args.ranks, folder, sampler, args.draws)
                with contextlib.redirect_stdout(io.StringIO()):
                    rows = measure_run(folder, sampler)
                for name in [name for name in REFERENCES[point] if name in rows]:
                    report(bars, point, sampler, name, rows[name].value, rows[name].error)
            weights = Ensemble.open(folder / "ensembles" / "flow").summary().weights
            if "log_z" in REFERENCES[point]:
                report(bars, point, "flow", "log_z", weights.log_z, weights.log_z_error)
            print(f"{point} flow: {weights}", flush=True)
    bars.end()


if __name__ == "__main__":
    main()
