"""Paths between configurations of the broken phase, through latent spaces and through field space, with the action.

    python -m benchmarks.study_latent                     # about 2 minutes of CPU
    python -m benchmarks.study_latent --scale 0.2         # shorter trainings, and then some bars may be missed

8x8, m2 = -4, lam = 2.5, where HMC never changes wells. Ends are configurations of two independent sets of cluster chains
that no model has seen: in opposite wells, so that the path goes over the barrier; in one well; and any two. Through field
space (straight), PCA, an autoencoder and a VAE of 16 latent numbers (straight, spherical), and the split flow on the
mean-field base, whose latent space is exact (straight, circular). Printed: how far decoded ends are from the ends (rms by
site), the mean action at t = 0, 1/4 and 1/2, what the path climbs, max_t S(t) - max(S(0), S(1)) over 33 points, and the
share of all points of paths whose action is in the central 99 % of the ensemble's. Between opposite wells also S where
the mean field changes its sign, found by bisection: a flow's way over the barrier is so short in t that a grid misses it.

Bars: ends of the flow reproduced to 1e-9; along circular paths between any two of the flow's own draws <S(t)> is <S> of its
draws at every t, within 3.5 sigma (33 correlated points), and straight ones miss that by more than 10.
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latticeflow import ClusterSpec, Flow, Model, Phi4, Purpose, Split, TrainSettings, models, stream, train
from latticeflow.statistics import bracket
from latticeflow.studies.latent import Path as LatentPath
from latticeflow.studies.latent import Space, circular, crossing, path, plot, spherical, straight

from .baselines import play
from .common import SOAP, Bars, one_thread, quality

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--folder", type=Path, default=Path("runs/studies/latent"))
parser.add_argument("--scale", type=float, default=1.0, help="factor of all trainings")
parser.add_argument("--pairs", type=int, default=1000)

TARGET = Phi4(shape=(8, 8), m2=-4.0, lam=2.5)
CHAINS, LATENT = 256, 16


def chains(seed: int, steps: int) -> Tensor:
    """`[steps * CHAINS, 8, 8]`, float64, step by step, in both wells alike."""
    sampler = ClusterSpec(chains=CHAINS, block=CHAINS, thin=10).build(TARGET)
    state = sampler.start(0, stream(seed, Purpose.START, 0))
    return sampler.draw(state, CHAINS * steps, stream(seed, Purpose.DRAW, 0))[0].x.double()


def well(x: Tensor) -> Tensor:
    """The sign of the mean field, `[n, 1, 1]`."""
    return torch.where(x.mean((1, 2), keepdim=True) < 0, -1.0, 1.0).to(x)


def autoencoder(kind: str, x: Tensor, scale: float) -> Model:
    """Trained on x and -x."""
    model = models.parse({"kind": kind, "latent": LATENT}).build(TARGET, 1).double()
    both = torch.cat([x, -x])
    if kind == "pca":
        model.begin([both])
    else:
        play(model, both, max(1, round(2000 * scale)), 2e-3, 64)
    return model.eval()


def split_flow(scale: float) -> Flow:
    flow, records = Split(base="mean_field").build_for(TARGET, 1), []
    settings = TrainSettings(
        steps=max(1, round(1200 * scale)), evaluate_every=10**6, evaluate_draws=1024, **SOAP
    )
    train(flow, TARGET, settings, seed=1, report=records.append)
    print(
        f"flow: {settings.steps} steps in {records[-1]['seconds']:.0f} s, ESS {bracket(*ess(flow))}",
        flush=True,
    )
    return flow.double().eval()


def ess(flow: Flow) -> tuple[float, float]:
    found = quality(flow, TARGET, 16_384)
    return found.ess, found.ess_error


def table(title: str, paths: dict[str, LatentPath], typical: np.ndarray) -> None:
    low, high = np.quantile(typical, (0.005, 0.995))
    heads = ("S(0)", "S(1/4)", "S(1/2)", "climbs")
    print(f"\n{title}\n{'':26}{'ends missed':>12}" + "".join(f"{h:>14}" for h in heads) + f"{'typical':>10}")
    for name, one in paths.items():
        cells = [bracket(one.mean[k], one.error[k]) for k in (0, len(one.t) // 4, len(one.t) // 2)]
        cells.append(text(one.barrier))
        inside = ((one.action > low) & (one.action < high)).mean()
        missed = math.sqrt(np.square(one.missed).mean())
        print(f"{name:26}{missed:12.2g}" + "".join(f"{c:>14}" for c in cells) + f"{inside:10.1%}")
    print(flush=True)


def text(x: np.ndarray) -> str:
    """The mean of independent numbers with its error."""
    return bracket(x.mean(), x.std(ddof=1) / math.sqrt(len(x)))


def top(spaces: dict[str, tuple], a: Tensor, b: Tensor) -> None:
    """The action where m changes its sign, and what is left of |m| there."""
    print(f"{'where m changes its sign':26}{'S':>14}{'|m|':>14}{'S(0) to there':>16}")
    for name, (space, mixes) in spaces.items():
        for mix in mixes:
            at = crossing(TARGET, space, mix, a, b, lambda x: x.mean((1, 2)))
            with torch.no_grad():
                start = -TARGET.log_prob(space.decode(space.encode(a)).double()).numpy()
            label = f"{name}, {mix.__name__}"
            print(
                f"{label:26}{text(at.action):>14}{at.order.max():14.2g}{text(at.action - start):>16}",
                flush=True,
            )


def main() -> None:
    args = parser.parse_args()
    one_thread()
    bars = Bars()
    seen = chains(1, 32)
    a, b = (chains(seed, -(-args.pairs // CHAINS))[: args.pairs] for seed in (2, 3))
    typical = TARGET.action(seen).numpy()
    error = typical.reshape(-1, CHAINS).mean(0).std() / math.sqrt(CHAINS)
    up = float((well(seen) > 0).double().mean())
    print(f"ensemble: <S> {bracket(typical.mean(), error)}, share of the upper well {up:.3f}", flush=True)
    flow = split_flow(args.scale)
    spaces = {"field": (Space.fields(), (straight,))}
    for name, kind in (("PCA", "pca"), ("autoencoder", "autoencoder"), ("VAE", "vae")):
        spaces[name] = Space.of(autoencoder(kind, seen, args.scale)), (straight, spherical)
    spaces["flow"] = Space.of(flow), (straight, circular)
    kinds = {
        "opposite wells": (a * well(a), -b * well(b)),
        "one well": (a * well(a), b * well(b)),
        "any two": (a, b),
    }
    found = {}
    for title, ends in kinds.items():
        found[title] = {
            f"{name}, {mix.__name__}": path(TARGET, space, mix, *ends)
            for name, (space, mixes) in spaces.items()
            for mix in mixes
        }
        table(title, found[title], typical)
    top(spaces, *kinds["opposite wells"])
    with torch.no_grad():
        own = [flow.sample(4 * args.pairs, stream(3, Purpose.DRAW, i))[0] for i in (0, 1, 2)]
    # of draws that are no end of a path: those at t = 0 are what the path starts from
    exact = TARGET.action(own[2]).numpy()
    pulls = {}
    for mix in (straight, circular):
        one = path(TARGET, spaces["flow"][0], mix, *own[:2])
        error = np.hypot(one.error, exact.std() / math.sqrt(len(exact)))
        pulls[mix] = float(np.abs((one.mean - exact.mean()) / error).max())
    missed = max(one["flow, circular"].missed.max() for one in found.values())
    bars.at_most("flow: ends missed", float(missed), 1e-9)
    bars.at_most("flow's own draws, circular: max_t |<S(t)> - <S>| / sigma", pulls[circular], 3.5)
    bars.at_least("flow's own draws, straight: the same", pulls[straight], 10)
    args.folder.mkdir(parents=True, exist_ok=True)
    shown = ("field, straight", "autoencoder, straight", "VAE, spherical", "flow, straight", "flow, circular")
    panels = {title: {name: found[title][name] for name in shown} for title in ("opposite wells", "one well")}
    (args.folder / "latent.png").write_bytes(plot(panels, typical))
    bars.end()


if __name__ == "__main__":
    main()
