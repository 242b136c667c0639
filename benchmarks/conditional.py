"""One conditional flow for a line of couplings: 12x12 phi^4 at m2 = -4, lam from 4.5 to 7 (configs/phi4_12x12_line.toml).

    python -m benchmarks.conditional [--share 1.0] [--draws 65536] [--hmc 400000]

Trains in `runs/conditional_line`, or goes on where a training was stopped, and prints ESS at 11 couplings from N draws at
each, the smallest beside its bar, 0.8; then chi2 and log Z as curves (draws at 5 couplings, reweighted), and at three
couplings, one of them between those, chi2 beside tuned HMC's, with the difference in sigma, at most 3. What is finished
is kept in the run's folder and not computed again. `--share` of the steps, for a shorter look, in a folder of its own.
"""

import argparse
import contextlib
import io
import json
import time
from pathlib import Path

import numpy as np

from latticeflow.analysis.curve_run import curve_run
from latticeflow.analysis.measure import measure_run
from latticeflow.config import Deck
from latticeflow.files import write_text
from latticeflow.production.at import at_run
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.statistics import bracket
from latticeflow.training.checkpoint import load_family
from latticeflow.training.evaluation import density_error
from latticeflow.training.log import read

from .common import Bars, one_thread, quality

DECK = Path("configs/phi4_12x12_line.toml")
BAR = 0.8
RIVALS = (4.5, 5.5, 7.0)  # couplings at which HMC is asked, too

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--share", type=float, default=1.0)
parser.add_argument("--draws", type=int, default=65_536)
parser.add_argument("--hmc", type=int, default=400_000)


def ess_along(run: Run, couplings: np.ndarray, draws: int) -> dict[str, dict[str, float]]:
    """ESS and what goes with it at each coupling, from RUN/ess.json where it is there already for these weights."""
    family, digest = load_family(run.weights, run.deck)
    path = run.path / "ess.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if found.get("weights") != digest or found.get("draws") != draws:
        found = {"weights": digest, "draws": draws, "at": {}}
    for lam in couplings:
        key = f"{lam:g}"
        if key not in found["at"]:
            flow, begun = family.at(lam=float(lam)), time.process_time()
            summary = quality(flow, run.deck.target.at(lam=float(lam)), draws)
            spent = time.process_time() - begun
            found["at"][key] = {
                "ess": summary.ess,
                "ess_error": summary.ess_error,
                "log_z": summary.log_z,
                "log_z_error": summary.log_z_error,
                "density_error": density_error(flow, seed=2),
                "draws_per_cpu_second": draws / spent,
            }
            write_text(path, json.dumps(found, indent=1))
        one = found["at"][key]
        print(
            f"lam = {key}: ESS {bracket(one['ess'], one['ess_error'])} at N = {draws:,}, log Z "
            f"{bracket(one['log_z'], one['log_z_error'])}, largest change of log q {one['density_error']:.2g}, "
            f"{one['draws_per_cpu_second']:.0f} draws a CPU second",
            flush=True,
        )
    return found["at"]


def chi2_of_hmc(run: Run, lam: float, draws: int) -> tuple[float, float]:
    """chi2 and its error from tuned HMC, in a run of its own beside `run`."""
    folder = run.path.with_name(f"{run.path.name}_{lam:g}")
    there = (
        Run.open(folder) if (folder / "deck.toml").is_file() else at_run(run, [f"target.lam={lam}"], folder)
    )
    # at lam = 4.5 the sign of m lives for some 50 trajectories
    settings = ["sampler.hmc.keep_fields=0", "sampler.hmc.thermalisation=2000"]
    sample_run(there, sampler="hmc", draws=draws, overrides=settings, device="cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        row = measure_run(there.path, "hmc")["chi2"]
    return row.value, row.error


def main() -> None:
    args = parser.parse_args()
    one_thread()
    name = "conditional_line" + (f"_{args.share:g}" if args.share != 1 else "")
    steps = max(10, int(args.share * Deck.read(DECK).train.steps))  # type: ignore[union-attr]
    changes = [f'name="{name}"', f"train.steps={steps}"]
    run = train_run(DECK, overrides=changes, folder=Path("runs") / name, resume=True, device="cpu")
    print(f"{steps} steps, {read(run.log)[-1]['seconds']:.0f} s of training", flush=True)

    bars = Bars()
    a, b = run.deck.flow.range["lam"]  # type: ignore[union-attr]
    couplings = np.linspace(a, b, 11)
    found = ess_along(run, couplings, args.draws)
    bars.at_least("smallest ESS along the line", min(one["ess"] for one in found.values()), BAR)

    curve = curve_run(run, along=f"lam={a}:{b}:11", nodes=5, draws=4096)
    for i, lam in enumerate(couplings):
        one = found[f"{lam:g}"]  # other draws, and no reweighting between couplings
        pull = (curve.log_z[i] - one["log_z"]) / np.hypot(curve.log_z_error[i], one["log_z_error"])
        bars.at_most(f"lam = {lam:g}: log Z of the curve and of draws there, |pull|", abs(pull), 4)
    for lam in RIVALS:
        i = int(np.argmin(abs(couplings - lam)))
        value, error = chi2_of_hmc(run, lam, args.hmc)
        mine = curve.values["chi2"][i], curve.errors["chi2"][i]
        pull = (mine[0] - value) / np.hypot(mine[1], error)
        print(
            f"lam = {lam:g}: chi2 {bracket(*mine)} of the curve, {bracket(value, error)} of HMC, {pull:+.1f} sigma"
        )
        bars.at_most(f"lam = {lam:g}: chi2 |pull|", abs(pull), 3)
    bars.end()


if __name__ == "__main__":
    main()
