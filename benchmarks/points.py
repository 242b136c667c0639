"""Known answers: 2x2 (quadrature), 8x8 at lam = 8, E1 and E2 (Monte Carlo of others), flow and HMC.

    python -m benchmarks.points [2x2 8x8 E1 E2] [--draws 1000000] [--ranks 2]

Runs the README's own commands on the decks in configs/ (train, then sample under mpirun with either sampler) in a
temporary folder, and prints each value with its error, relative error and pull against the reference.
"""

import argparse
import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from latticeflow.analysis.measure import measure_run
from latticeflow.store import Ensemble

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

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=list(DECKS), metavar="POINT")
parser.add_argument("--draws", type=int, default=1_000_000)
parser.add_argument("--ranks", type=int, default=2)


def run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def report(point: str, sampler: str, name: str, value: float, error: float) -> bool:
    reference, reference_error = REFERENCES[point][name]
    pull = (value - reference) / math.hypot(error, reference_error)
    print(
        f"{point:4} {sampler:5} {name:6} {value:.6f} +- {error:.6f} ({error / abs(value):.3%})  "
        f"reference {reference:.6f} +- {reference_error:.6f}  pull {pull:+.2f}",
        flush=True,
    )
    return abs(pull) <= 3


def main() -> None:
    args = parser.parse_args()
    cli = [sys.executable, "-m", "latticeflow"]
    mpirun = ["mpirun", "-n", str(args.ranks)]
    good = True
    with tempfile.TemporaryDirectory() as temporary:
        for point in args.points:
            folder = Path(temporary) / point
            run(*cli, "train", f"configs/{DECKS[point]}.toml", "--run", str(folder))
            for sampler in ("flow", "hmc"):
                run(*mpirun, *cli, "sample", str(folder), "--sampler", sampler, "--draws", str(args.draws))
                with contextlib.redirect_stdout(io.StringIO()):
                    rows = measure_run(folder, sampler)
                for name in REFERENCES[point]:
                    if name in rows:
                        good &= report(point, sampler, name, rows[name].value, rows[name].error)
            weights = Ensemble.open(folder / "ensembles" / "flow").summary().weights
            if "log_z" in REFERENCES[point]:
                good &= report(point, "flow", "log_z", weights.log_z, weights.log_z_error)
            print(f"{point:4} flow  {weights}", flush=True)
    sys.exit(0 if good else "a pull exceeds 3")


if __name__ == "__main__":
    main()
