"""Adversarial decorrelation: a toy whose answer is known, the phase of phi^4 against the volume, jets against a pair's mass.

    python -m benchmarks.study_decorrelation [parts: toy phase jets] [--scale 1] [--folder runs/studies/decorrelation]

Each part trains a classifier alone and then against an adversary at several strengths, prints AUC and dependence of the
score on the nuisance within the background, and draws the trade-off curve. The nuisances of other events are the negative
control.
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latticeflow import ClusterSpec, MatrixElement, Phi4, Purpose, VegasSpec, auc, bracket, stream, unweight
from latticeflow.studies.decorrelation import (
    Labelled,
    Point,
    Settings,
    classify,
    decorrelate,
    dependence,
    judge,
    plot,
    trade_off,
)

from .common import Bars, one_thread

STRENGTHS = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0)
SIDES = (6, 8, 12, 16)
LAM = {
    "ordered": 4.6,
    "disordered": 5.4,
}  # at m2 = -4; both near the transition, where lattices of these sides mix them up
CHAINS = 128
ENERGY = 1000.0


def toy(n: int, seed: int) -> Labelled:
    """`x_1 = y + noise, x_2 = 2 y + 1.5 v + noise`, y = +-1/2, v the nuisance, all noises and v N(0, 1)."""
    rng = stream(seed, Purpose.DRAW)
    y, v = rng.integers(0, 2, n), rng.standard_normal(n)
    x = np.stack([y - 0.5, 2 * (y - 0.5) + 1.5 * v], 1) + rng.standard_normal((n, 2))
    return Labelled(*(torch.from_numpy(np.asarray(one, dtype=np.float32)) for one in (x, y, v)))


def long_distance(x: Tensor) -> Tensor:
    """|m| and the amplitude of the lowest momenta, `sqrt(sum_mu |phi_k|^2 / 2) / V`, `[n, 2]` of fields `[n, L, L]`."""
    k = torch.fft.fft2(x).abs() / math.prod(x.shape[1:])
    return torch.stack([k[:, 0, 0], ((k[:, 0, 1].square() + k[:, 1, 0].square()) / 2).sqrt()], 1)


def phase(n: int) -> tuple[Labelled, Labelled]:
    """Ordered or disordered, of lattices of different sides, from clusters with HMC; half of the chains for the test."""
    steps = -(-n // (len(SIDES) * CHAINS))
    parts: list[tuple[Tensor, float, int]] = []
    for label, name in ((1.0, "ordered"), (0.0, "disordered")):
        for side in SIDES:
            target = Phi4(shape=(side, side), m2=-4.0, lam=LAM[name])
            sampler = ClusterSpec(block=CHAINS, chains=CHAINS, precision="float32", thin=3).build(target)
            key = int(label), side
            state = sampler.start(0, stream(61, Purpose.START, *key))
            draws, _ = sampler.draw(state, CHAINS * steps, stream(61, Purpose.DRAW, *key))
            parts.append((long_distance(draws.x).view(steps, CHAINS, -1), label, side))

    def share(chains: slice) -> Labelled:
        x = [found[:, chains].flatten(0, 1) for found, _, _ in parts]
        counts = torch.tensor([len(one) for one in x])
        label, side = (torch.tensor([float(part[k]) for part in parts]) for k in (1, 2))
        return Labelled(torch.cat(x), label.repeat_interleave(counts), side.repeat_interleave(counts))

    return share(slice(CHAINS // 2)), share(slice(CHAINS // 2, None))


def jets(n: int) -> tuple[Labelled, Labelled]:
    """`g g -> g g g` (signal) or `e- e+ -> q qbar g`, 1 TeV, p_T > 30 GeV, Delta R > 0.4, by a VEGAS grid, unweighted at the
    99.9 % quantile. Seen are x_1, x_2, |cos theta_1| of the hardest jets; the nuisance is the least mass of a pair, GeV."""
    found = []
    for label, process in (
        (1.0, {"kind": "gg_ggg", "alpha_s": 0.118}),
        (0.0, {"kind": "ee_qqg", "quark": "u", "alpha_s": 0.118}),
    ):
        target = MatrixElement(
            process=process,
            energy=ENERGY,
            phase_space={"kind": "pt_rapidity", "pt_min": 30.0},
            cuts={"pt_min": 30.0, "delta_r_min": 0.4},
        )
        sampler, kept, k = VegasSpec(iterations=5).build(target), [], 0
        while sum(map(len, kept)) < n:
            draws, _ = sampler.draw(None, 16384, stream(62, Purpose.DRAW, int(label), k))
            chosen = unweight(draws.log_w, stream(62, Purpose.UNWEIGHT, int(label), k), 0.999)
            kept.append(target.momenta(draws.x[chosen.index]))
            k += 1
        p = torch.cat(kept)[:n]
        p = p.gather(1, p[..., 0].argsort(1, descending=True)[..., None].expand_as(p))
        x = 2 * p[..., 0] / ENERGY
        cos = (p[:, 0, 3] / p[:, 0, 0]).abs()
        mass = ENERGY * (1 - x[:, 0]).clamp_min(0).sqrt()
        found.append((torch.stack([x[:, 0], x[:, 1], cos], 1), torch.full((n,), label), mass))

    def share(part: slice) -> Labelled:
        return Labelled(*(torch.cat([one[k][part] for one in found]).float() for k in range(3)))

    return share(slice(n // 2)), share(slice(n // 2, None))


def study(
    name: str, train: Labelled, test: Labelled, settings: Settings, nuisance: str, folder: Path
) -> tuple[list[Point], Point]:
    """The trade-off curve, printed and drawn, and the control at strength 1."""
    start = time.perf_counter()
    points = trade_off(train, test, STRENGTHS, settings, seed=1)
    other = train.shuffled_nuisance(stream(63, Purpose.ANALYSIS))
    control = judge(decorrelate(classify(train, settings, 1), other, 1.0, settings, 1), test, 1.0, 1)
    print(f"{name}: {len(train.x):,} events to train on, {len(test.x):,} to judge by")
    print(
        f"{'strength':>22}{'AUC':>13}{'dCor^2':>13}{'independent':>15}   background efficiency over the nuisance"
    )
    for label, point in [*((f"{p.strength:g}", p) for p in points), ("1, others' nuisance", control)]:
        d, (low, high) = point.dependence, (point.efficiency.min(), point.efficiency.max())
        cells = (bracket(point.auc, point.auc_error), bracket(d.value, d.error))
        null = bracket(d.independent, d.independent_error)
        print(f"{label:>22}{cells[0]:>13}{cells[1]:>13}{null:>15}   {low:.2f} to {high:.2f}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.png").write_bytes(plot(points, nuisance))
    print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)
    return points, control


def at_fixed_side(train: Labelled, test: Labelled, settings: Settings) -> float:
    """The price of not being told the side, by the plain classifier: its AUC at each side, which holds no knowledge of it,
    and that of its ranks among background of the same side, which no longer depend on it. Returns the latter."""
    plain = decorrelate(classify(train, settings, 1), train, 0.0, settings, 1)
    with torch.no_grad():
        s = plain(test.x).double().numpy()
    signal, v = test.label.numpy() == 1, test.nuisance.numpy()
    rank = np.empty(len(s))
    for side in SIDES:
        own, background = s[v == side], np.sort(s[(v == side) & ~signal])
        rank[v == side] = np.searchsorted(background, own) / len(background)
        one = auc(own[~signal[v == side]], own[signal[v == side]])
        print(f"plain classifier at side {side}: AUC {bracket(one.value, one.error)}")
    area = auc(rank[~signal], rank[signal])
    left = dependence(rank[~signal], v[~signal], stream(66, Purpose.ANALYSIS))
    text = f"AUC {bracket(area.value, area.error)}, dCor^2 {bracket(left.value, left.error)}"
    print(f"its ranks among background of the same side: {text}", flush=True)
    return area.value


def common_bars(bars: Bars, name: str, points: list[Point], control: Point) -> None:
    plain = points[0].dependence
    least = min(points, key=lambda p: p.dependence.value)
    bars.at_least(f"{name}: dependence of the plain classifier / sigma", plain.sigma, 5)
    bars.at_most(f"{name}: least dependence over the plain one's", least.dependence.value / plain.value, 0.1)
    bars.at_least(f"{name}: there (AUC - 1/2) / sigma", (least.auc - 0.5) / least.auc_error, 5)
    bars.at_least(
        f"{name}: dependence by others' nuisance over the plain one's",
        control.dependence.value / plain.value,
        0.7,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", help="toy, phase, jets; all without")
    parser.add_argument("--scale", type=float, default=1.0, help="of events and steps")
    parser.add_argument("--folder", type=Path, default=Path("runs/studies/decorrelation"))
    args = parser.parse_args()
    known = ("toy", "phase", "jets")
    if unknown := set(args.parts) - set(known):
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    one_thread()
    bars = Bars()
    n = max(4096, round(20_000 * args.scale))
    settings = Settings(steps=max(10, round(800 * args.scale)))
    parts = args.parts or known

    if "toy" in parts:
        points, control = study("toy", toy(n, 64), toy(n, 65), settings, "nuisance", args.folder)
        # log-odds without v: d'^2 = 1 + 4 / (1 + 1.5^2); pivot: x_1 alone, d' = 1; AUC = Phi(d' / sqrt 2)
        best, pivot = (0.5 * (1 + math.erf(math.sqrt(d2) / 2)) for d2 in (1 + 4 / 3.25, 1.0))
        print(f"in closed form: AUC {best:.4f} unconstrained, {pivot:.4f} of the best pivot")
        bars.at_most("toy: |AUC - best| without adversary", abs(points[0].auc - best), 0.01)
        bars.at_most("toy: |AUC - pivot's| at the last strength", abs(points[-1].auc - pivot), 0.015)
        common_bars(bars, "toy", points, control)
    if "phase" in parts:
        train, test = phase(n)
        points, control = study("phase", train, test, settings, "side L", args.folder)
        common_bars(bars, "phase", points, control)
        told = at_fixed_side(train, test, settings)
        bars.at_least(
            "phase: AUC of ranks at known side over that at the last strength", told / points[-1].auc, 1
        )
    if "jets" in parts:
        found = study("jets", *jets(n), settings, "least mass of a pair  [GeV]", args.folder)
        common_bars(bars, "jets", *found)
    bars.end()


if __name__ == "__main__":
    main()
