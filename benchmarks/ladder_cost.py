"""The ladder's flows, tuned HMC and clusters: seconds for an independent chi2, how they grow with L, and their observables.

    python -m benchmarks.ladder_cost [E1 E2 E3 E4 E5 20x20] [--precision 0.002] [--steps 1000]

The flows are those that come with the library, from `benchmarks.ladder`, and the seconds of their training those of its
log. One core, seconds of the processor. A flow's independent chi2 per second are its draws per second (at the fastest
batch, compiled where that is faster) times `var(chi2) / (N error^2)`, the error that of the reweighted mean of N draws;
HMC, Fourier-accelerated HMC and clusters as in `benchmarks.hmc_cost`. Then, over the points,

- `seconds = c L^z`, least squares of the logarithms, with the scatter's error on z;
- the crossover: at each point, independent chi2 from which the training is paid, where the flow is the faster; and the L
  where the fitted lines of the best flow and of the best chain cross;
- chi2 and <phi^2> of the better flow beside HMC's and the cluster's, each with a relative error of `--precision` on chi2.

Bars: every pull below 3.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
import torch

from latticeflow.pretrained import load, names
from latticeflow.random import Purpose, stream
from latticeflow.statistics import mean
from latticeflow.targets import Phi4

from .common import Bars, fastest_sampler, named, one_thread
from .hmc_cost import rivals, tuned
from .ladder import FLOWS, POINTS, library_name

BLOCK = 16384

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


def reweighted(o: np.ndarray, log_w: np.ndarray) -> list[tuple[float, float]]:
    """Weighted means of the rows of o and their errors, `error^2 = sum w^2 (o - mean)^2 / (sum w)^2`."""
    w = np.exp(log_w - log_w.max())
    values = o @ w / w.sum()
    errors = np.sqrt((o - values[:, None]) ** 2 @ w**2) / w.sum()
    return list(zip(values.tolist(), errors.tolist()))


def flow_row(name: str, kind: str, precision: float) -> Row | None:
    known = library_name(name, kind)
    if known not in names():
        return None
    one = load(known)
    flow, target = one.flow, one.target
    sampler, rates = fastest_sampler(target, flow), []
    for turn in range(4):
        begun = time.process_time()
        sampler.draw(None, 4096, stream(3, Purpose.DRAW, turn))
        rates.append(4096 / (time.process_time() - begun))
    rate = float(np.median(rates[1:]))
    parts, weights = [], []
    for block in range(1000):
        draws, _ = sampler.draw(None, BLOCK, stream(4, Purpose.DRAW, block))
        parts.append(observables(draws.x))
        weights.append(draws.log_w)
        o, log_w = np.concatenate(parts, axis=1), np.concatenate(weights)
        (chi2, error), phi2 = reweighted(o, log_w)
        if block >= 3 and error < precision * chi2:
            break
    w = np.exp(log_w - log_w.max())
    variance = np.average((o[0] - chi2) ** 2, weights=w)
    independent = rate * variance / (o.shape[1] * error**2)
    training = one.log[-1]["seconds"]
    print(
        f"  {kind:13} {independent:9,.0f} independent chi2/s: {rate:,.0f} draws/s ({named(sampler)}), "
        f"{variance / (o.shape[1] * error**2):.3f} of a draw; training {training:.0f} s; "
        f"chi2 {chi2:.4f} +- {error:.4f} from {o.shape[1]:,} draws",
        flush=True,
    )
    return Row(independent, training, {"chi2": (chi2, error), "phi2": phi2})


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
        point = POINTS[name]
        target = Phi4(shape=point.shape, m2=-4.0, lam=point.lam)
        print(f"{name}: {'x'.join(map(str, point.shape))}, lam = {point.lam}", flush=True)
        flows = {kind: row for kind in FLOWS if (row := flow_row(name, kind, args.precision))}
        chains = {
            kind: chain_row(kind, target, spec, args.precision, args.steps) for kind, spec in rivals().items()
        }
        table[name] = {**flows, **chains}
        if not flows:
            continue
        kind = max(flows, key=lambda kind: flows[kind].independent)
        flow = flows[kind]
        for rival, row in chains.items():
            for observable, (value, error) in row.values.items():
                mine, my_error = flow.values[observable]
                pull = abs(value - mine) / (error**2 + my_error**2) ** 0.5
                bars.at_most(f"{name} {observable}, {kind} flow and {rival}: difference in sigma", pull, 3)
        rival = max(chains, key=lambda kind: chains[kind].independent)
        gain = 1 / chains[rival].independent - 1 / flow.independent
        if gain > 0:
            print(f"  training is paid from {flow.training / gain:,.0f} independent chi2 on, against {rival}")
        else:
            print(
                f"  the {kind} flow does not pay: {rival} is {chains[rival].independent / flow.independent:.1f} times faster"
            )
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
