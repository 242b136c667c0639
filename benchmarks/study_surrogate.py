"""Two layers of a tracker and its field, by gradient descent through a learned stand-in for the simulator.

    python -m benchmarks.study_surrogate [--scale 1] [--seeds 3] [--folder runs/studies/surrogate]

Truth: muons of e- e+ -> mu- mu+ at 10.58 GeV, |cos theta| < 0.8. A layer at 3 cm measures to 20 um; psi = (r_p, r_s, B): a
pixel layer at radius r_p to 80 um, a strip layer at r_s to 150 um, in a field B in T. All layers scatter. The simulator
scatters and measures both muons, puts a parabola through the three hits of each, and returns y = ln(m / E), m the mass of
the pair as measured. The objective is resolution and price of area and field,

    O(psi) = < (y / 0.005)^2 > + 20 (r_p^2 + r_s^2) / m^2 + 4 B^2 / T^2.

Where both layers are at one radius nothing is measured: that ridge parts two minima, pixels inside and strips outside, or
the other way round, which is worse. Curvatures are linear in Gaussian numbers, so that O is known by quadrature: `expected`.
"""

import argparse
import dataclasses
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latticeflow import FlatSpec, MatrixElement, Purpose, bracket, stream, unweight
from latticeflow.studies.surrogate import (
    Problem,
    Settings,
    finite_differences,
    judge,
    optimise,
    plot,
    random_search,
)

from .common import Bars, one_thread

ENERGY, COS = 10.58, 0.8  # GeV
INNER = 0.03  # m
HIT = (20e-6, 80e-6, 150e-6)  # m, of the inner layer, pixels, strips
THICK = (0.003, 0.003, 0.002)  # radiation lengths
LOW, HIGH = (0.1, 0.1, 0.5), (1.0, 1.0, 4.0)  # m, m, T
UNIT = 0.005  # of ln m in the objective
AREA, MAGNET = 20.0, 4.0
MULTIPLE = 0.0136  # GeV: the angle of multiple scattering in a plane is this over p, times sqrt(x / X_0)
BEND = 0.3  # curvature in 1/m: this times field in T over p_T in GeV


def muons(n: int) -> Tensor:
    """|cos theta| of n muons, `[n, 1]`, float64: the library's events, unweighted."""
    process = {"kind": "ee_ff", "fermion": "mu", "z": True}
    target = MatrixElement(process=process, energy=ENERGY, phase_space="rambo", cuts={"cos_theta_max": COS})
    draws, _ = FlatSpec().build(target).draw(None, 4 * n, stream(71, Purpose.DRAW))
    kept = unweight(draws.log_w, stream(71, Purpose.UNWEIGHT)).index
    p = target.momenta(draws.x[kept])[:, 0]
    return (p[:, 3] / p[:, 0]).abs()[:n, None]


def simulate(x: Tensor, psi: Tensor, rng: np.random.Generator) -> Tensor:
    """One event for each row: x `[n, 1]` and psi `[n, 3]` to y `[n, 1]`."""
    n, sin = len(x), (1 - x[:, 0].square()).sqrt()
    pt = ENERGY / 2 * sin
    r = torch.cat([torch.full_like(psi[:, :1], INNER), psi[:, :2]], 1)
    arm = (r[:, :, None] - r[:, None, :]).clamp_min(
        0
    )  # of the deflection in layer k where layer i is hit, [n, i, k]
    angle = MULTIPLE / pt[:, None] * (psi.new_tensor(THICK) / sin[:, None]).sqrt()
    curvature = BEND * psi[:, 2] / pt

    def measured() -> Tensor:
        deflections, noise = (torch.from_numpy(rng.standard_normal((n, 3))).to(x) for _ in range(2))
        scattered = (arm @ (angle * deflections)[..., None])[..., 0]
        hits = curvature[:, None] * r.square() / 2 + scattered + psi.new_tensor(HIT) * noise
        first = (hits[:, 1:] - hits[:, :1]) / (
            r[:, 1:] - r[:, :1]
        )  # divided differences: hits = a + b r + c r^2 / 2
        return 2 * (first[:, 1] - first[:, 0]) / (r[:, 2] - r[:, 1])

    minus, plus = measured(), measured()
    return -0.5 * ((minus / curvature).abs().log() + (plus / curvature).abs().log())[:, None]


def price(psi: Tensor) -> Tensor:
    return AREA * psi[..., :2].square().sum(-1) + MAGNET * psi[..., 2].square()


def loss(y: Tensor, x: Tensor, psi: Tensor) -> Tensor:
    return (y[:, 0] / UNIT).square() + price(psi)


def expected(psi: np.ndarray, angles: int = 12, points: int = 24) -> np.ndarray:
    """O of psi `[m, 3]`, without a random number: variance of the curvature's Lagrange form, Gauss-Legendre in cos theta

    with density 1 + cos^2, Gauss-Hermite in the relative errors e of both, `ln m = -(ln|1 + e| + ln|1 + e'|) / 2`.
    """
    node, weight = np.polynomial.legendre.leggauss(angles)
    cos = COS * node
    weight = weight * (1 + cos**2)
    e, chance = np.polynomial.hermite_e.hermegauss(points)
    sin = np.sqrt(1 - cos**2)
    pt = ENERGY / 2 * sin
    r = np.concatenate([np.full((len(psi), 1), INNER), psi[:, :2]], 1)
    others = [(1, 2), (0, 2), (0, 1)]
    with np.errstate(divide="ignore"):
        w = np.stack([2 / ((r[:, i] - r[:, j]) * (r[:, i] - r[:, k])) for i, (j, k) in enumerate(others)], 1)
    hits = (w**2 @ np.square(HIT))[:, None]
    lever = np.einsum("mi,mik->mk", w, np.maximum(r[:, :, None] - r[:, None, :], 0))
    kicks = (lever**2 @ np.array(THICK))[:, None] * MULTIPLE**2 / pt**2 / sin
    relative = np.sqrt(hits + kicks) * pt / (BEND * psi[:, 2:])  # [m, angles]
    logs = np.log(np.abs(1 + relative[..., None] * e))
    one, two = (logs @ chance / chance.sum(), logs**2 @ chance / chance.sum())
    resolution = (two + one**2) / 2 @ weight / weight.sum()
    return resolution / UNIT**2 + price(torch.from_numpy(psi)).numpy()


def minima() -> list[tuple[np.ndarray, float]]:
    """The minima of `expected` in the box, the least first, by a grid and then finer grids around each. Where O is more than
    three times its least on the grid (on the ridge, where quadrature fails) none are looked for."""
    n = 41
    axes = [np.linspace(a, b, n) for a, b in zip(LOW, HIGH)]
    axes[1] = axes[1] + 1e-4  # beside the ridge
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    value = np.nan_to_num(expected(grid.reshape(-1, 3), 6, 12).reshape(n, n, n), nan=np.inf)
    padded = np.pad(value, 1, constant_values=np.inf)
    shifts = itertools.product(range(3), repeat=3)
    around = np.min([padded[i : i + n, j : j + n, k : k + n] for i, j, k in shifts], 0)
    found: list[tuple[np.ndarray, float]] = []
    for at in np.argwhere((value <= around) & (value < 3 * value.min())):
        best, half = grid[tuple(at)], (np.array(HIGH) - LOW) / (n - 1)
        while half[0] > 1e-5:
            steps = np.stack(np.meshgrid(*[np.linspace(-1, 1, 9)] * 3), -1).reshape(-1, 3)
            near = np.clip(best + half * steps, LOW, HIGH)
            chosen = near[np.argmin(expected(near))]
            if (np.abs(chosen - best) < 0.9 * half).all():  # else the minimum may be outside of this grid
                half = half / 3
            best = chosen
        if all(np.abs(best - other).max() > 1e-3 for other, _ in found):
            found.append((best, float(expected(best[None])[0])))
    return sorted(found, key=lambda one: one[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of calls of the simulator and steps")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/studies/surrogate"))
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    clock = time.perf_counter()
    pool = muons(100_000)

    def truth(n: int, rng: np.random.Generator) -> Tensor:
        return pool[torch.from_numpy(rng.integers(len(pool), size=n))]

    problem = Problem(truth, simulate, loss, LOW, HIGH)
    known = minima()
    exact, least = known[0]
    for psi, value in known:
        print(f"minimum, by quadrature: psi = {psi.round(4)}, O = {value:.4f} ({value / least - 1:+.1%})")
    bars.at_least("minima (one, if O were convex)", len(known), 2)
    value, error = judge(problem, exact, 200_000, stream(72, Purpose.EVALUATE))
    print(f"the simulator at the least: O = {bracket(value, error)}")
    bars.at_most("simulator and quadrature: |pull|", abs(value - least) / error, 4)
    print(f"prepared in {time.perf_counter() - clock:.0f} s", flush=True)

    base = Settings()
    settings = dataclasses.replace(
        base,
        calls=tuple(max(1000, round(args.scale * n)) for n in base.calls),
        steps=max(10, round(args.scale * base.steps)),
    )

    def report(what: str, psi: np.ndarray, calls: int, seconds: float) -> np.ndarray:
        """|psi - psi*| / |psi*|; the largest |psi_i - psi*_i| over psi*_i, and over the box; excess of O."""
        off = np.abs(psi - exact)
        excess = float(expected(psi[None])[0]) / least - 1
        figures = [
            np.linalg.norm(off) / np.linalg.norm(exact),
            (off / exact).max(),
            (off / width).max(),
            excess,
        ]
        value, error = judge(problem, psi, 100_000, stream(73, Purpose.EVALUATE))
        print(
            f"{what:26} {psi.round(4)}: off by {figures[0]:.2%}, worst parameter {figures[1]:.2%}, O {excess:+.2%} exactly, "
            f"{bracket(value, error)} simulated; {calls:,} calls, {seconds:.0f} s",
            flush=True,
        )
        return np.array(figures)

    width = np.array(HIGH) - LOW
    found, worst = [], np.zeros(4)
    for seed in range(1, 1 + args.seeds):
        clock = time.perf_counter()
        one = optimise(problem, settings, seed)
        found.append(one)
        worst = np.maximum(
            worst, report(f"surrogate, seed {seed}", one.psi, one.calls, time.perf_counter() - clock)
        )
        beyond = [bool((end[0] > end[1]) != (exact[0] > exact[1])) for end in one.ends]
        print(f"    {sum(beyond)} of its {len(beyond)} first descents end on the wrong side of the ridge")
    for seed in range(1, 1 + args.seeds):
        clock, rng, calls = time.perf_counter(), stream(seed, Purpose.ANALYSIS, 74), found[seed - 1].calls
        psi = random_search(problem, calls, 1000, rng)
        report(f"random search, seed {seed}", psi, calls, time.perf_counter() - clock)
        clock = time.perf_counter()
        start = random_search(problem, calls // 4, 1000, rng)
        psi = finite_differences(problem, start, calls - calls // 4, 1000, rng)
        report(f"finite differences, seed {seed}", psi, calls, time.perf_counter() - clock)

    def deaf(x: Tensor, psi: Tensor, rng: np.random.Generator) -> Tensor:
        return simulate(x, psi[torch.from_numpy(rng.permutation(len(psi)))], rng)

    clock = time.perf_counter()
    control = optimise(dataclasses.replace(problem, simulate=deaf), settings, 1)
    far = report("shuffled psi, seed 1", control.psi, control.calls, time.perf_counter() - clock)[0]

    for what, value, bar in zip(
        (
            "|psi - psi*| / |psi*|",
            "|psi_i - psi*_i| / psi*_i",
            "|psi_i - psi*_i| / width of the box",
            "excess of O",
        ),
        worst,
        (0.05, 0.05, 0.05, 0.01),
    ):
        bars.at_most(f"worst {what}", float(value), bar)
    bars.at_least("shuffled psi: |psi - psi*| / |psi*|", float(far), 0.05)
    args.folder.mkdir(parents=True, exist_ok=True)
    (args.folder / "surrogate.png").write_bytes(
        plot(found, ("$r_p$  [m]", "$r_s$  [m]", "$B$  [T]"), exact, least)
    )
    bars.end()


if __name__ == "__main__":
    main()
