"""Event generation: flows on phase space beside flat points, VEGAS and MadNIS, in one run on one core.

    python -m benchmarks.events                                 # everything, some 75 s of training each
    python -m benchmarks.events camel --seconds 60              # the parts whose names begin so
    python -m benchmarks.events cross_sections

1. Six integrands: by flat points, the VEGAS grid of this package, its flow, the map of the `vegas` package, and MadNIS
   trained for the flow's CPU seconds (the last two where they are installed: extra `bench`). Printed are the relative
   standard deviation of the weights, error by linear propagation; the unweighting efficiency `<min(w, w_q)> / w_q`, w_q the
   99.9 % quantile of all weights, zeros included, error by the jackknife over 32 blocks; the share of draws with a weight;
   the largest weight over the mean; the integral; CPU time a draw, integrand included. Bars: deviation and efficiency; at
   most 150 s of training; integrals of the camels within 2 sigma of exact, at each of their peaks half its share of the
   draws at least. Points a second with density, each at its best batch in float32: of the flow, of a small one (networks of
   32 and 32, a quarter of the training) that is to be as good as MadNIS, and of MadNIS; bar: the small flow three times
   MadNIS's.
2. `defensive`: the mixture of the flow with its grid, by the share eps of the grid.
3. `choices`, 3 jets on RAMBO: couplings and the autoregressive flow at the same CPU seconds; orders of the divergence and
   re-use of points at the same steps.
4. `peaks`: the camel in 16 dimensions, short trainings of ten seeds, with pools of which the grid draws a share (`explore`)
   and without. Bar: with it, at least 0.4 of the draws at either peak, whatever the seed.
5. `cross_sections`: massless volumes to 1e-10, cross sections by VEGAS within 3 sigma at 2e-3.

CPU seconds are those of this process, which has one thread.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from latticeflow.collider import MatrixElement, phase_spaces
from latticeflow.flows.cube import CubeFlow
from latticeflow.flows.spec import FlowSpec
from latticeflow.flows.spline import AutoregressiveSpline, Spline
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler
from latticeflow.samplers.vegas import FlatSpec, VegasSpec
from latticeflow.statistics import bracket
from latticeflow.statistics.unweighting import Integration, integrate
from latticeflow.targets import Camel, Hypercube
from latticeflow.training import TrainSettings, train

from .common import Bars, one_thread
from .event_rivals import HOW, MADNIS, Draw, Madnis, missing, vegas_map

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("names", nargs="*", help="of parts, or their beginnings; all by default")
parser.add_argument("--seconds", type=float, default=75, help="of CPU time for each training")
parser.add_argument("--draws", type=int, default=1 << 20, help="of each sampler")
parser.add_argument("--steps", type=int, default=1500, help="of each training in the tables of `choices`")

LIMIT = 150  # s of training
BLOCK = 16384  # draws
BATCHES = (512, 1024, 2048, 4096, 8192, 16384)
SPEC = {"bins": 20}
SMALL = {"bins": 20, "hidden": (32, 32)}
SETTINGS = {"objective": "importance", "batch": 1024, "lr": 5e-3}


def three_jets(phase_space) -> MatrixElement:
    process = {"kind": "ee_qqg", "quark": "u", "alpha_s": 0.118}
    return MatrixElement(process=process, energy=91.2, phase_space=phase_space, cuts={"y_min": 0.02})


def gluons(kind: str, phase_space) -> MatrixElement:
    process, cuts = {"kind": kind, "alpha_s": 0.118}, {"pt_min": 30.0, "delta_r_min": 0.4}
    return MatrixElement(process=process, energy=1000.0, phase_space=phase_space, cuts=cuts)


ANTENNA = {"kind": "antenna", "y_min": 0.02, "sharp": True, "chain": [0, 2, 1]}


@dataclass(frozen=True)
class Case:
    """An integrand with the bars of the flow's deviation and unweighting efficiency."""

    title: str
    target: Hypercube
    deviation: float | None = None
    efficiency: float | None = None


CASES = {
    "jets_rambo": Case("3 jets, y > 0.02, RAMBO on diet", three_jets("rambo"), 0.45, 0.40),
    "jets_antenna": Case("3 jets, y > 0.02, antenna map", three_jets(ANTENNA), 0.10, 0.65),
    "ggg_rambo": Case("gg -> ggg, 1 TeV, RAMBO on diet", gluons("gg_ggg", "rambo"), 1.0, 0.15),
    "ggg_pt": Case(
        "gg -> ggg, 1 TeV, pT and rapidity",
        gluons("gg_ggg", {"kind": "pt_rapidity", "pt_min": 30.0}),
        1.0,
        0.15,
    ),
    "camel_8": Case("camel, 8 dimensions", Camel(dimensions=8), 0.40, 0.35),
    "camel_16": Case("camel, 16 dimensions", Camel(dimensions=16)),
}


@dataclass(frozen=True)
class Measured:
    integral: Integration
    low: float  # share of draws nearer to the lower of the camel's peaks
    cpu: float  # seconds a draw

    @property
    def deviation(self) -> float:
        return self.integral.weights.deviation

    @property
    def efficiency(self) -> float:
        return self.integral.unweighting.efficiency if self.integral.unweighting else math.nan

    @property
    def largest(self) -> float:
        return self.integral.weights.largest_share * self.integral.weights.n

    def pull(self, exact: float) -> float:
        return (self.integral.weights.z - exact) / self.integral.weights.z_error

    def __str__(self) -> str:
        w, u = self.integral.weights, self.integral.unweighting
        kept = (
            f"unweighting {bracket(u.efficiency, u.efficiency_error)}, with a weight {u.survival:.3f}"
            if u
            else f"no unweighting ({self.integral.problem})"
        )
        return (
            f"std {bracket(w.deviation, w.deviation_error)}, {kept}, largest {self.largest:.3g}, "
            f"integral {bracket(w.z, w.z_error)}, {1e6 * self.cpu:.2f} us a draw"
        )


def measure(draw: Draw, n: int) -> Measured:
    low, done, begun = 0, 0, time.process_time()

    def blocks() -> Iterator[np.ndarray]:
        nonlocal low, done
        for k in range(max(1, n // BLOCK)):
            x, log_w = draw(BLOCK, stream(5, Purpose.EVALUATE, k))
            low += int((x.mean(1) < 0.5).sum())
            done += len(x)
            yield log_w

    found = integrate(blocks(), max(1, n // BLOCK) * BLOCK)
    return Measured(found, low / done, (time.process_time() - begun) / done)


def of(sampler: FlowSampler) -> Draw:
    def draw(n: int, rng: np.random.Generator):
        draws, _ = sampler.draw(None, n, rng)
        return draws.x, draws.log_w

    return draw


def by_flow(target: Hypercube, flow, n: int) -> Measured:
    return measure(of(FlowSampler(target, flow, 4096)), n)


def fit(spec: FlowSpec, target: Hypercube, steps: int, seed: int = 1, **settings) -> tuple[CubeFlow, float]:
    """The flow after so many steps, and CPU seconds, the grid's included."""
    common = {"evaluate_every": 10**9, "evaluate_draws": 1024, **SETTINGS}
    begun = time.process_time()
    flow = spec.build_for(target, seed)
    train(flow, target, TrainSettings(steps=steps, **common | settings), seed=seed)
    return flow.eval(), time.process_time() - begun


def fit_for(spec: FlowSpec, target: Hypercube, seconds: float) -> tuple[CubeFlow, float]:
    """Trained for about so many CPU seconds: the steps are what two short trainings promise."""
    start, more = fit(spec, target, 32)[1], fit(spec, target, 288)[1]
    return fit(spec, target, max(256, int(256 * (seconds - start) / (more - start))))


def points_a_second(samples: dict[str, Callable[[int], object]], repeats: int = 3) -> dict[str, float]:
    """CPU time's, of each at its best batch; in turn, so that a noisy machine hits all alike; medians."""
    spent: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for batch in BATCHES:
            for name, sample in samples.items():
                sample(batch)
                begun = time.process_time()
                for _ in range(BATCHES[-1] // batch):
                    sample(batch)
                spent.setdefault((name, batch), []).append(time.process_time() - begun)
    return {
        name: BATCHES[-1] / min(float(np.median(spent[name, batch])) for batch in BATCHES) for name in samples
    }


class Benchmark:
    def __init__(self, seconds: float, draws: int, steps: int):
        self.seconds, self.draws, self.steps = seconds, draws, steps
        self.bars = Bars()
        self.trained: dict[str, tuple[CubeFlow, float]] = {}

    @cached_property
    def missing(self) -> list[str]:
        found = missing()
        if found:
            print(f"left out, not installed: {', '.join(found)}. To compare with them: {HOW}", flush=True)
        else:
            print(f"MadNIS: {MADNIS}", flush=True)
        return found

    @property
    def parts(self) -> dict[str, Callable[[], None]]:
        cases = {name: lambda name=name: self.case(name) for name in CASES}
        others = (self.defensive, self.choices, self.peaks, self.cross_sections)
        return cases | {part.__name__: part for part in others}

    def flow(self, name: str) -> tuple[CubeFlow, float]:
        """Trained once, whichever parts use it."""
        if name not in self.trained:
            case = CASES[name]
            self.trained[name] = fit_for(AutoregressiveSpline(**SPEC), case.target, self.seconds)
        return self.trained[name]

    def row(self, name: str, found: Measured, target: Hypercube, note: str = "") -> None:
        line = f"  {name:12} {found}{note}"
        if isinstance(target, Camel):
            line += (
                f", pull {found.pull(target.integral):+.2f}, {found.low:.3f} of the draws at the lower peak"
            )
        print(line, flush=True)

    def case(self, name: str) -> None:
        case = CASES[name]
        target, n, absent = case.target, self.draws, self.missing
        print(f"{name}: {case.title}; {n:,} draws each", flush=True)
        self.row("flat", measure(of(FlatSpec().build(target)), n), target)
        begun = time.process_time()
        grid = VegasSpec().build(target)
        spent = time.process_time() - begun
        self.row("VEGAS grid", measure(of(grid), n), target, f", adapted in {spent:.1f} s")
        if "vegas" not in absent:
            draw, spent = vegas_map(target)
            self.row("vegas", measure(draw, n), target, f", adapted in {spent:.1f} s")
        flow, spent = self.flow(name)
        found = by_flow(target, flow, n)
        self.row("flow", found, target, f", {flow.parameter_count():,} parameters, trained in {spent:.0f} s")
        rival = None if absent else Madnis(target, spent)
        if rival is not None:
            other = measure(rival.draw, n)
            trained = f", {rival.parameters:,} parameters, {rival.steps} steps in {rival.seconds:.0f} s"
            self.row("MadNIS", other, target, trained)
        self.bars.at_most(f"{name}: CPU seconds of training", spent, LIMIT)
        if case.deviation is not None and case.efficiency is not None:
            self.bars.at_most(f"{name}: standard deviation", found.deviation, case.deviation)
            self.bars.at_least(f"{name}: unweighting", found.efficiency, case.efficiency)
        if isinstance(target, Camel):
            self.bars.at_most(f"{name}: |integral - exact| / sigma", abs(found.pull(target.integral)), 2)
            self.bars.at_least(f"{name}: draws at the rarer peak", min(found.low, 1 - found.low), 0.4)
        if rival is not None:
            self.throughput(name, flow, rival, other)

    def throughput(self, name: str, flow: CubeFlow, rival: Madnis, other: Measured) -> None:
        """Beside an equally good flow, which is smaller than the best one."""
        case, rng = CASES[name], stream(3, Purpose.DRAW, 0)
        target = case.target
        small, spent = fit_for(AutoregressiveSpline(**SMALL), target, self.seconds / 4)
        found = by_flow(target, small, self.draws)
        note = f", {small.parameter_count():,} parameters, trained in {spent:.0f} s"
        self.row("small flow", found, target, note)
        with torch.no_grad():
            rates = points_a_second(
                {
                    "flow": lambda n: flow.sample(n, rng),
                    "small flow": lambda n: small.sample(n, rng),
                    "MadNIS": rival.points,
                }
            )
        shown = ", ".join(f"{who} {rate:,.0f}" for who, rate in rates.items())
        print(
            f"  points with density a CPU second: {shown}; flow over MadNIS {rates['flow'] / rates['MadNIS']:.2f}"
        )
        self.bars.at_least(
            f"{name}: points a second, small flow over MadNIS", rates["small flow"] / rates["MadNIS"], 3
        )
        if isinstance(target, Camel) and abs(other.pull(target.integral)) > 5:
            print(
                "  MadNIS has lost a peak: the deviation of its weights is that of the other one, and no bar"
            )
            return
        self.bars.at_most(f"{name}: standard deviation of the small flow", found.deviation, other.deviation)

    def defensive(self) -> None:
        for name in ("jets_rambo", "ggg_rambo"):
            case, n = CASES[name], self.draws
            print(f"defensive, {case.title}: q = (1 - eps) q_flow + eps q_grid; {n:,} draws each", flush=True)
            flow, _ = self.flow(name)
            rows = {}
            for eps in (0.0, 0.003, 0.01, 0.03, 0.1):
                rows[eps] = by_flow(case.target, flow.defended(eps) if eps else flow, n)
                self.row(f"eps = {eps:g}", rows[eps], case.target)
            least = min(rows, key=lambda eps: rows[eps].deviation)
            most = max(rows, key=lambda eps: rows[eps].efficiency)
            print(f"  best eps: {least:g} by the standard deviation, {most:g} by unweighting", flush=True)

    def choices(self) -> None:
        target, n = CASES["jets_rambo"].target, self.draws // 4
        flow, spent = self.flow("jets_rambo")
        print(f"choices, 3 jets on RAMBO on diet; {n:,} draws each; the same CPU seconds:", flush=True)
        self.row("one by one", by_flow(target, flow, n), target, f", trained in {spent:.0f} s")
        flow, spent = fit_for(Spline(**SPEC), target, spent)
        self.row("couplings", by_flow(target, flow, n), target, f", trained in {spent:.0f} s")
        print(f"  {self.steps} steps:", flush=True)
        default = TrainSettings(steps=1)
        tables = [{"order": 1.0}, {"order": 2.0}, {"order": default.order}]
        tables += [{"reuse": 1.0}, {"reuse": 4.0}]
        for settings in tables:
            flow, spent = fit(AutoregressiveSpline(**SPEC), target, self.steps, **settings)
            own = {"order": default.order, "reuse": default.reuse, **settings}
            order = "1 to 4" if own["order"] == default.order else f"{own['order']:g}"
            evaluated = SETTINGS["batch"] * self.steps / own["reuse"]
            note = f", trained in {spent:.0f} s on {evaluated:,.0f} points"
            self.row(f"order {order}, reuse {own['reuse']:g}", by_flow(target, flow, n), target, note)

    def peaks(self) -> None:
        target, steps = CASES["camel_16"].target, 2 * self.steps // 3
        for explore in (TrainSettings(steps=1).explore, 0.0):
            print(f"peaks, camel in 16 dimensions, {steps} steps, explore = {explore:g}:", flush=True)
            rarer = []
            for seed in range(11, 21):
                flow, _ = fit(AutoregressiveSpline(**SPEC), target, steps, seed, explore=explore)
                found = by_flow(target, flow, self.draws // 4)
                self.row(f"seed {seed}", found, target)
                rarer.append(min(found.low, 1 - found.low))
            if explore:
                self.bars.at_least(f"peaks, {len(rarer)} seeds: draws at the rarer peak", min(rarer), 0.4)

    def cross_sections(self) -> None:
        for n, known in VOLUMES.items():
            map_ = phase_spaces.parse({"kind": "rambo"}).build((0.0,) * n)
            u = torch.from_numpy(stream(4, Purpose.EVALUATE, n).random((1000, map_.dim)))
            off = (map_.forward(u, torch.full_like(u[:, 0], 91.2))[1].exp() - known).abs().max()
            print(f"cross_sections: massless volume, n = {n}: {known} GeV^{2 * n - 4}", flush=True)
            self.bars.at_most(f"volume, n = {n}: largest of 1000 |Jacobian - exact|", float(off), 1e-10)
        photon, z = leptons(False), leptons(True)
        jets, two = three_jets(ANTENNA), gluons("gg_gg", "rambo")
        for name, target, unit, what, known in (
            ("e+e- -> gamma* -> mu+mu-", photon, 1.0, "pb", 10.442453),
            ("e+e- -> gamma*, Z -> mu+mu-", z, 1000.0, "nb", 1.7513433),
            ("3-jet fraction, y > 0.02", jets, jets.process.sigma_0(91.2), "", 0.4585858813),
            ("gg -> gg", two, 1.0, "pb", 84581.70),
        ):
            found = measure(of(VegasSpec().build(target)), self.draws).integral.weights
            value, error = found.z / unit, found.z_error / unit
            print(f"cross_sections: {name}: {bracket(value, error)} {what}, exact {known}", flush=True)
            self.bars.at_most(f"{name}: |pull|", abs(value - known) / error, 3)
            self.bars.at_most(f"{name}: relative error", error / value, 2e-3)
        value, error = asymmetry(z, 8 * self.draws)
        print(
            f"cross_sections: forward-backward asymmetry: {bracket(value, error)}, exact {A_FB}", flush=True
        )
        self.bars.at_most("forward-backward asymmetry: |pull|", abs(value - A_FB) / error, 3)


VOLUMES = {2: 0.0397887358, 3: 1.0478523537, 4: 9.1985376757, 5: 40.3745313304}  # at 91.2 GeV
A_FB = 0.0172941


def leptons(z: bool) -> MatrixElement:
    process = {"kind": "ee_ff", "fermion": "mu", "z": z}
    return MatrixElement(process=process, energy=91.2, phase_space="rambo")


def asymmetry(target: MatrixElement, n: int) -> tuple[float, float]:
    """`<w sign(cos theta)> / <w>` of flat points and its error."""
    sampler = FlatSpec().build(target)
    sums = np.zeros(5)
    for k in range(n // BLOCK):
        draws, _ = sampler.draw(None, BLOCK, stream(6, Purpose.EVALUATE, k))
        w = np.exp(draws.log_w)
        s = torch.sign(target.momenta(draws.x)[:, 0, 3]).numpy()
        sums += [w.sum(), (w * s).sum(), (w * w).sum(), (w * w * s).sum(), (w * w * s * s).sum()]
    a = sums[1] / sums[0]
    return float(a), float(math.sqrt(sums[4] - 2 * a * sums[3] + a * a * sums[2]) / sums[0])


def main() -> None:
    args = parser.parse_args()
    one_thread()
    benchmark = Benchmark(args.seconds, args.draws, args.steps)
    parts = benchmark.parts
    unknown = [name for name in args.names if not any(part.startswith(name) for part in parts)]
    if unknown:
        parser.error(f"no part begins with {', '.join(unknown)}: {', '.join(parts)}")
    for name, part in parts.items():
        if not args.names or name.startswith(tuple(args.names)):
            part()
    benchmark.bars.end()


if __name__ == "__main__":
    main()
