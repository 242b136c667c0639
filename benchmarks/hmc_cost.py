"""Seconds per independent chi2 of HMC at 8x8, m2 = -4, lam = 8: the defaults, and a larger batch in float32.

    python -m benchmarks.hmc_cost

Drawing alone, one rank; thermalisation is left out. No bar: this is what the flow's cost in `compare` stands against.
"""

import contextlib
import io
import tempfile
from pathlib import Path

from latticeflow.analysis.measure import estimates
from latticeflow.analysis.quality import quality
from latticeflow.analysis.series import Series
from latticeflow.config import Deck
from latticeflow.production.sample import sample_run
from latticeflow.run import Run

SETTINGS = {
    "128 chains, float64 (default)": [],
    "256 chains, float32": [
        "sampler.hmc.chains=256",
        "sampler.hmc.precision=float32",
        "sampler.hmc.streams=4",
    ],
}


def main() -> None:
    deck = Deck.read("configs/phi4_8x8.toml")
    for number, (name, settings) in enumerate(SETTINGS.items()):
        with tempfile.TemporaryDirectory() as temporary:
            run = Run.create(deck, Path(temporary) / str(number))
            with contextlib.redirect_stdout(io.StringIO()):
                sample_run(run, sampler="hmc", draws=500_000, overrides=settings)
            series = Series.open(run, "hmc")
            found = quality(series, estimates(series), None)
            print(
                f"{name}: {found['cost'].text} s per independent chi2, acceptance {found['acceptance'].text}, "
                f"<exp(-dH)> = {found['exp_minus_dh'].text}",
                flush=True,
            )


if __name__ == "__main__":
    main()
