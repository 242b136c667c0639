"""The ladder's flows, tuned HMC and clusters: seconds for an independent chi2, how they grow with L, and their observables.

    python -m benchmarks.ladder_cost [E1 E2 E3 E4 E5 20x20] [--precision 0.002] [--steps 1000]

The flows are those that come with the library, from `benchmarks.ladder`, and the seconds of their training those of its
log. One core, seconds of the processor. A flow's independent chi2 per second are its draws per second (at the fastest
batch, compiled where that is faster) times `var(chi2) / (N error^2)`, the error that of the reweighted mean of N = 16,384
draws; HMC, Fourier-accelerated HMC and clusters as in `benchmarks.hmc_cost`. A point that was finished is kept in
`runs/ladder_cost/` and not measured again until its file is removed. Then, over the points,

- `seconds = c L^z`, least squares of the logarithms, with the scatter's error on z;
- the crossover: at each point, independent chi2 from which the training is paid, where the flow is the faster; and the L
  where the fitted lines of the best flow and of the best chain cross;
- chi2 and <phi^2> of the fastest flow beside HMC's and the cluster's, each with a relative error of `--precision` on chi2.

Bars: every pull below 3.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from latticeflow.files import write_text
from latticeflow.pretrained import Pretrained, load, names
from latticeflow.random import Purpose, stream
from latticeflow.statistics import mean
from latticeflow.targets import Phi4

from .common import Bars, fastest_sampler, named, one_thread
from .hmc_cost import rivals, tuned
from .ladder import FLOWS, POINTS, library_name

BLOCK = 4096

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("points", nargs="*", default=["E1", "E2", "E3", "E4", "E5", "20x20"], metavar="POINT")
parser.add_argument("--precision", type=float, default=0.002)
parser.add_argument("--steps", type=int, default=1000)


@dataclass(frozen=True)
class Row:
    """One method at one point: independent chi2 a second, seconds of training, `{observable: (value, error)}`."""

    independent: float
    training: float
    values: dict[str, tuple[float, float]]


def observables(x: torch.Tensor) -> np.ndarray:
    """chi2 and phi2 of each configuration, `[2, N]`."""
    x = x.double().flatten(1)
    return torch.stack([x.sum(1).square() / x.shape[1], x.square().mean(1)]).numpy()


class Reweighted:
    """What a flow drew so far: observables `[2, N]` and log-weights `[N]`."""

    def __init__(self, one: Pretrained):
        self.sampler, self.training = fastest_sampler(one.target, one.flow), one.log[-1]["seconds"]
        self.parts: list[np.ndarray] = []
        self.log_w: list[np.ndarray] = []
        rates = []
        for _ in range(4):
            begun = time.process_time()
            self.more()
            rates.append(BLOCK / (time.process_time() - begun))
        self.rate = float(np.median(rates[1:]))

    def more(self) -> None:
        draws, _ = self.sampler.draw(None, BLOCK, stream(4, Purpose.DRAW, len(self.parts)))
        self.parts.append(observables(draws.x))
        self.log_w.append(draws.log_w)

    def row(self) -> Row:
        """Weighted means and their errors, `error^2 = sum w^2 (o - mean)^2 / (sum w)^2`; what a draw is worth for chi2."""
        o, log_w = np.concatenate(self.parts, axis=1), np.concatenate(self.log_w)
        w = np.exp(log_w - log_w.max())
        values = o @ w / w.sum()
        squares = (o - values[:, None]) ** 2
        errors = np.sqrt(squares @ w**2) / w.sum()
        worth = squares[0] @ w / w.sum() / (o.shape[1] * errors[0] ** 2)
        found = dict(zip(("chi2", "phi2"), zip(values.tolist(), errors.tolist())))
        return Row(self.rate * worth, self.training, found)


def flow_rows(name: str, precision: float) -> dict[str, Row]:
    """Each flow that the library has for this point; the observables of the fastest to the precision."""
    known = {kind: wanted for kind in FLOWS if (wanted := library_name(name, kind)) in names()}
    drawn, rows = {}, {}
    for kind, wanted in known.items():
        drawn[kind] = one = Reweighted(load(wanted))
        rows[kind] = row = one.row()
        print(
            f"  {kind:13} {row.independent:9,.0f} independent chi2/s: {one.rate:,.0f} draws/s ({named(one.sampler)}), "
            f"{row.independent / one.rate:.3f} of a draw; training {row.training:.0f} s",
            flush=True,
        )
    if rows:
        best = max(rows, key=lambda kind: rows[kind].independent)
        row = rows[best]
        while row.values["chi2"][1] > precision * row.values["chi2"][0]:
            drawn[best].more()
            row = drawn[best].row()
        rows[best] = Row(rows[best].independent, row.training, row.values)
        print(
            f"  {best} from {BLOCK * len(drawn[best].parts):,} draws: chi2 {row.values['chi2']}", flush=True
        )
    return rows


def chain_row(name: str, target: Phi4, spec, precision: float, steps: int) -> Row:
    best, start = tuned(target, spec, steps)
    print(f"  {name:13} {best}; tuning {start:.1f} s", flush=True)
    sampler, state, series = spec.build(target), best.state, []
    for block in range(1000):
        draws, state = sampler.draw(state, 100 * spec.chains, stream(5, Purpose.DRAW, 0, block))
        series.append(observables(draws.x).reshape(2, -1, spec.chains).transpose(0, 2, 1))
        if block >= 3:
            chi2, phi2 = (mean(one) for one in np.concatenate(series, axis=2))
            if chi2.error < precision * chi2.value:
                break
    values = {"chi2": (chi2.value, chi2.error), "phi2": (phi2.value, phi2.error)}
    return Row(best.independent, start, values)


def measured(name: str, precision: float, steps: int) -> dict[str, Row]:
    """All methods at a point, from the file of an earlier run with the same arguments where that is there."""
    path = Path("runs/ladder_cost") / f"{name}_{precision:g}_{steps}.json"
    if path.is_file():
        print(f"  measured before: {path}")
        return {kind: Row(**row) for kind, row in json.loads(path.read_text(encoding="utf-8")).items()}
    target = Phi4(shape=POINTS[name].shape, m2=-4.0, lam=POINTS[name].lam)
    rows = flow_rows(name, precision)
    rows |= {kind: chain_row(kind, target, spec, precision, steps) for kind, spec in rivals().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({kind: asdict(row) for kind, row in rows.items()}, indent=1))
    return rows


def compare(bars: Bars, name: str, rows: dict[str, Row]) -> None:
    """The fastest flow beside each chain: observables, and from how many independent chi2 on its training is paid."""
    flows = {kind: row for kind, row in rows.items() if kind in FLOWS}
    if not flows:
        return
    kind = max(flows, key=lambda kind: flows[kind].independent)
    flow = flows[kind]
    for other in rivals():
        chain = rows[other]
        for observable, (value, error) in chain.values.items():
            mine, my_error = flow.values[observable]
            pull = abs(value - mine) / (error**2 + my_error**2) ** 0.5
            bars.at_most(f"{name} {observable}, {kind} flow and {other}: difference in sigma", pull, 3)
        gain = 1 / chain.independent - 1 / flow.independent
        paid = f"its training is paid from {flow.training / gain:,.0f} on" if gain > 0 else "it does not pay"
        print(
            f"  {kind} flow over {other}: {flow.independent / chain.independent:.2f} independent chi2/s; {paid}"
        )


def slope(sides: list[int], seconds: list[float]) -> tuple[float, float, float]:
    """`(z, its error, log c)` of `seconds = c L^z`."""
    x, y = np.log(sides), np.log(seconds)
    (z, c), rest = np.polyfit(x, y, 1), 0.0
    if len(x) > 2:
        residual = y - z * x - c
        rest = float(np.sqrt(residual @ residual / (len(x) - 2) / ((x - x.mean()) ** 2).sum()))
    return float(z), rest, float(c)


def main() -> None:
    args = parser.parse_args()
    if unknown := set(args.points) - set(POINTS):
        parser.error(f"unknown points {', '.join(sorted(unknown))}; known: {', '.join(POINTS)}")
    one_thread()
    bars, table = Bars(), {}
    for name in args.points:
        print(f"{name}: {'x'.join(map(str, POINTS[name].shape))}, lam = {POINTS[name].lam}", flush=True)
        table[name] = rows = measured(name, args.precision, args.steps)
        compare(bars, name, rows)
    fits = {}
    for kind in (*FLOWS, *rivals()):
        rows = {POINTS[name].shape[0]: row[kind] for name, row in table.items() if kind in row}
        if len(rows) > 2:
            fits[kind] = slope(list(rows), [1 / row.independent for row in rows.values()])
            z, error, c = fits[kind]
            print(f"{kind}: seconds for an independent chi2 = {np.exp(c):.3g} L^({z:.2f} +- {error:.2f})")
    for kind in set(fits) & set(FLOWS):
        for rival in set(fits) - set(FLOWS):
            (z, _, c), (other, _, d) = fits[kind], fits[rival]
            if z < other:
                print(
                    f"{kind} and {rival}: the fitted lines cross at L = {np.exp((c - d) / (other - z)):.0f}"
                )
            else:
                print(
                    f"{kind} and {rival}: the flow's cost grows as fast or faster, no crossover at larger L"
                )
    bars.end()


if __name__ == "__main__":
    main()
