"""The ladder of phi^4 points at m2 = -4 and xi = L/4: ESS of the best flow and of the exact coupling flow.

    python -m benchmarks.ladder [E1 E2 E3 E4 E5 20x20 32x32 64x64 8x8x8] [--flow continuous split fast]
                                [--ranks 2] [--share 1.0]

`fast` is the split flow with few layers: a lower ESS, and more ESS x draws per second, than `split` (both exact).

Trains each point under mpirun in `runs/ladder_POINT_FLOW`, or goes on there where a training was stopped (a run that is
done is not trained again), and prints ESS at N = 65,536 with its error, log Z, the largest change of log q at twice the
solver's resolution, and the seconds of training and of evaluation, beside the bars of E2, E5 and 20x20. `--share` of the
steps, for a shorter look, in folders of its own. `benchmarks.publish` puts such a flow into the library.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latticeflow.config import Deck
from latticeflow.run import Run
from latticeflow.training.checkpoint import load_flow
from latticeflow.training.evaluation import density_error
from latticeflow.training.log import read

from .common import Bars, one_thread, quality
from .production import launcher


@dataclass(frozen=True)
class Point:
    """A point of the ladder: shape, lam, minutes that training may take, steps, layers of the flow "split" and of "fast",
    bars on ESS.
    """

    shape: tuple[int, ...]
    lam: float
    minutes: float
    steps: int
    layers: int
    few: int
    bars: dict[str, float]


POINTS = {
    "E1": Point((6, 6), 6.975, 10, 3000, 9, 2, {}),
    "E2": Point((8, 8), 6.008, 10, 3000, 9, 2, {"continuous": 0.99, "split": 0.97}),
    "E3": Point((10, 10), 5.550, 10, 3000, 9, 3, {}),
    "E4": Point((12, 12), 5.276, 20, 4500, 9, 4, {}),
    "E5": Point((14, 14), 5.113, 20, 4500, 12, 4, {"continuous": 0.96, "split": 0.90}),
    "20x20": Point((20, 20), 4.807, 60, 5000, 14, 5, {"continuous": 0.90, "split": 0.75}),
    "32x32": Point((32, 32), 4.572, 90, 3000, 14, 6, {}),
    "64x64": Point((64, 64), 4.398, 90, 400, 14, 6, {}),
    "8x8x8": Point((8, 8, 8), 9.2, 20, 2000, 9, 3, {}),  # xi = 1.974(11) by HMC, configs/phi4_8x8x8.toml
}
FLOWS = ("continuous", "split", "fast")


def library_name(name: str, flow: str) -> str:
    """What the flow of a point is called where it comes with the library."""
    point = POINTS[name]
    sides = "x".join(map(str, point.shape))
    return (
        f"phi4_{sides}" + (f"_{name}" if name != sides else "") + ("" if flow == "continuous" else f"_{flow}")
    )


WALKED = {  # points whose training begins on smaller lattices
    "20x20": ("E3",),
    "32x32": ("E3", "20x20"),
    "64x64": ("E3", "20x20", "32x32"),
}
SLOW = {
    "64x64": {"evaluate_draws": 2048, "evaluate_every": 400, "checkpoint_every": 20}
}  # takes seconds a step
LAST = {"64x64": {"lr": 1e-3}}  # settings of the last stage; it diverges at a rate of 5e-3

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=[*POINTS], metavar="POINT")
parser.add_argument("--flow", nargs="*", default=list(FLOWS), choices=FLOWS)
parser.add_argument("--ranks", type=int, default=2)
parser.add_argument("--share", type=float, default=1.0)


def deck(name: str, flow: str, share: float) -> Deck:
    """The deck of a point: SOAP, path gradient, compiled."""
    point = POINTS[name]
    layers = {"split": point.layers, "fast": point.few}
    own = {"kind": "split", "layers": layers[flow]} if flow in layers else {"kind": flow}
    steps = max(10, int(share * point.steps))
    train: dict[str, Any] = {
        "steps": steps,
        "optimizer": "soap",
        "lr": 5e-3,
        "warmup": 50,
        "batch": 64,
        "compile": True,
        "evaluate_every": max(10, steps // 5),
        "checkpoint_every": 100,
    }
    if name in WALKED:
        smaller = [POINTS[one] for one in WALKED[name]]
        earlier = max(10, int(share * max(1500, point.steps // 2)))
        first = [
            {
                "target": {"shape": list(one.shape), "lam": one.lam},
                "steps": earlier,
                "evaluate_every": earlier // 2,
            }
            for one in smaller
        ]
        train |= SLOW.get(name, {})
        train["stage"] = [*first, {"warmup": 100, **LAST.get(name, {})}]
    return Deck.parse(
        {
            "name": f"ladder_{name}_{flow}" + (f"_{share:g}" if share != 1 else ""),
            "seed": 1,
            "target": {"kind": "phi4", "shape": list(point.shape), "m2": -4.0, "lam": point.lam},
            "flow": own,
            "train": train,
        }
    )


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(POINTS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(POINTS)}")
    one_thread()
    mpirun, bars = launcher(), Bars()
    for name in args.points:
        for flow in args.flow:
            wanted = deck(name, flow, args.share)
            folder = Path("runs") / wanted.name
            path = folder.parent / f"{wanted.name}.toml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(wanted.toml(), encoding="utf-8")
            job = [
                "-m",
                "latticeflow",
                "train",
                str(path),
                "--run",
                str(folder),
                "--resume",
                "--device",
                "cpu",
            ]
            done = mpirun(args.ranks, *job, cwd=Path.cwd(), timeout=6 * 3600)
            if done.returncode:
                raise SystemExit(
                    f"{name} {flow}: training ended with status {done.returncode}:\n{done.stderr}"
                )
            report(bars, name, flow, Run.open(folder))
    bars.end()


def report(bars: Bars, name: str, flow: str, run: Run) -> None:
    trained, _ = load_flow(run.weights, run.deck)
    begun = time.perf_counter()
    summary = quality(trained, run.deck.target)
    spent = time.perf_counter() - begun
    error = density_error(trained, seed=2)
    records = read(run.log)
    print(
        f"{name} {flow}: {summary}, log Z {summary.log_z:.4f} +- {summary.log_z_error:.4f}, "
        f"largest change of log q {error:.2g}, {trained.parameter_count()} parameters, "
        f"training {records[-1]['seconds']:.0f} s, evaluation {spent:.0f} s",
        flush=True,
    )
    if flow in POINTS[name].bars:
        bars.at_least(f"{name} {flow} ESS", summary.ess, POINTS[name].bars[flow])
        bars.at_most(f"{name} {flow} minutes of training", records[-1]["seconds"] / 60, POINTS[name].minutes)


if __name__ == "__main__":
    main()
