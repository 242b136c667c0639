"""Models that learn from configurations beside exact flows and HMC: which physics each gets wrong.

    python -m benchmarks.baselines                      # all parts, about half an hour on one core
    python -m benchmarks.baselines small --scale 0.2    # shorter trainings, and then some bars may be missed
    python -m benchmarks.baselines large --seeds 4      # goes on from what is there, with two more trainings of each

Runs go to --folder (runs/baselines), with tables, plots and pages of `latticeflow diagnose`; a second call goes on there.

small   8x8, m2 = -4, lam = 8: PCA, autoencoder with a Gaussian, VAE, GAN, WGAN, the split flow in reverse KL and by
        likelihood on the same HMC data. Reference: HMC of another seed, four times as long, since its fluctuations are
        common to all rows. Bars, of a third HMC and of both flows corrected by Metropolis: S, phi2, phi4, chi2, the
        histogram of S, the classifier's AUC within 3 sigma.
large   32x32, kappa = 0.21, lam = 0.022 (hopping form), 10,240 HMC configurations, a fifth of the chains held out: chi2 of
        VAE, GAN and WGAN beside the truth, trained with --seeds seeds each; once a GAN whose generator is not fitted to
        the data's spectrum. Bars: 20 CPU minutes a training; chi2 of the best GAN within 3 %, in the mean over its seeds.
        No seed is chosen; of the two kinds of GAN, `gan` and `wgan`, the one with the better mean is.
pca     PCA and the linear autoencoder of the same data, cut at a gap of the spectrum. Bar: angle below 1e-3.
bound   a linear VAE's bound against its log p in closed form, and a VAE's of the free field against the exact log density.
"""

import argparse
import itertools
import math
import time
from pathlib import Path

import numpy as np
import torch

from latticeflow.analysis.diagnose import Diagnoses, diagnose_run
from latticeflow.baselines.autoencoders import LinearAutoencoder
from latticeflow.baselines.base import models
from latticeflow.baselines.pca import Pca
from latticeflow.baselines.vae import Vae
from latticeflow.config import Deck
from latticeflow.files import make_folder, write_text
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.random import Purpose, stream
from latticeflow.run import Run
from latticeflow.statistics import bracket
from latticeflow.targets import FreeField, Phi4, Target, targets
from latticeflow.training import Configurations

from .common import SOAP, Bars, run_parts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("parts", nargs="*", default=["small", "large", "pca", "bound"], metavar="PART")
parser.add_argument("--folder", type=Path, default=Path("runs/baselines"))
parser.add_argument("--scale", type=float, default=1.0, help="factor of all training steps")
parser.add_argument("--seeds", type=int, default=2, help="of each model at 32x32")
parser.add_argument("--draws", type=int, default=65_536, help="of each ensemble that is compared")

HMC = {"sampler": {"hmc": {"chains": 128, "streams": 2, "block": 1280, "thin": 5, "thermalisation": 100}}}
GAMES = {"betas": [0.5, 0.9], "rates": {"critic": 1.5}, "warmup": 200}
# [model] and [train] of each
SMALL: dict[str, tuple[dict, dict]] = {
    "pca": ({"kind": "pca", "latent": 16, "residual": True}, {}),
    "autoencoder": ({"kind": "gaussian_autoencoder", "latent": 16}, {"steps": 4000, "lr": 2e-3}),
    "vae_white": ({"kind": "vae", "latent": 32}, {"steps": 4000, "lr": 2e-3, "warmup": 100}),
    "vae": (
        {"kind": "vae", "latent": 32, "noise": "spectrum"},
        {"steps": 4000, "lr": 2e-3, "warmup": 100},
    ),
    # slower critics than at 32x32: with critic = 1.5 the GAN's won, and the WGAN's penalty went beyond 10,000
    "gan": (
        {"kind": "gan", "critic_steps": 1},
        {"steps": 6000, "lr": 1e-3} | GAMES | {"rates": {"critic": 0.5}},
    ),
    "wgan": ({"kind": "wgan"}, {"steps": 6000, "lr": 2e-3} | GAMES | {"rates": {"critic": 0.5}}),
}
LARGE: dict[str, tuple[dict, dict]] = {
    "vae": (
        {"kind": "vae", "latent": 64, "noise": "spectrum"},
        {"steps": 4000, "lr": 2e-3, "warmup": 100},
    ),
    "gan": ({"kind": "gan", "average": 0.99}, {"steps": 3000, "lr": 5e-4} | GAMES),
    "wgan": ({"kind": "wgan", "average": 0.99}, {"steps": 3600, "lr": 2e-3} | GAMES),
    "unfiltered": ({"kind": "gan", "average": 0.99, "filtered": False}, {"steps": 3000, "lr": 5e-4} | GAMES),
}
ONCE = ("unfiltered",)  # trained with the first seed only
FLOWS: dict[str, dict] = {
    "reverse": {"objective": "reverse"},
    "likelihood": {"objective": "forward", "test_share": 0.2},
}
FLOW_STEPS = 1400
EXACT = ("hmc", *FLOWS)
BARRED = ("action", "phi2", "phi4", "chi2", "action_histogram", "auc")
KAPPA, LAM = 0.21, 0.022
PUBLISHED = (2.55 * KAPPA, 0.04 * KAPPA)  # 1811.03533's HMC; phi = sqrt(kappa) f


class Study:
    """The runs of one part, in a folder: `data`, `truth` of HMC, and one for each model."""

    def __init__(self, folder: Path, target: Target, scale: float):
        self.folder, self.target, self.scale = folder, target, scale

    def run(self, name: str, seed: int, tables: dict, train: bool) -> Run:
        deck = Deck.parse({"name": name, "seed": seed, "target": targets.table(self.target)} | tables)
        make_folder(self.folder)
        path = self.folder / f"{name}.toml"
        write_text(path, deck.toml())
        if train:
            return train_run(path, folder=self.folder / name, resume=True)
        if not (self.folder / name).is_dir():
            return Run.create(deck, self.folder / name)
        run = Run.open(self.folder / name)
        run.require_same(deck)
        return run

    def hmc(self, name: str, seed: int, draws: int) -> Path:
        run = self.run(name, seed, HMC, train=False)
        sample_run(run, sampler="hmc", draws=draws)
        return run.path

    def learned(self, name: str, tables: dict, draws: int, seed: int = 1) -> tuple[Path, float]:
        """Train, unless in reverse KL on the chains in `data`, and draw; the run, and the CPU seconds of its training.

        Those of all calls, from the file NAME.seconds: the log has seconds of a clock, of a machine that others may use.
        """
        train = tables["train"]
        if train.get("objective") != "reverse":
            train = train | {"data": "../data/ensembles/hmc"}
        if "steps" in train:
            train = train | {"steps": max(1, round(self.scale * train["steps"]))}
        record, clock = self.folder / f"{name}.seconds", time.process_time()
        run = self.run(name, seed, tables | {"train": train}, train=True)
        spent = time.process_time() - clock + (float(record.read_text()) if record.is_file() else 0.0)
        write_text(record, f"{spent:.2f}\n")
        sample_run(run, sampler="flow" if "flow" in tables else "model", draws=draws)
        print(f"{name}: trained for {spent:.0f} CPU seconds", flush=True)
        return run.path, spent


def untrained(study: Study, model: dict, draws: int) -> str:
    """chi2 of a generator before its first step: set from the data's two-point function, it need not learn this."""
    data = Configurations(study.folder / "data/ensembles/hmc", study.target, 1, test_share=0.2)
    game = models.parse(model).build(study.target, 1)
    game.begin(list(data.walk()))
    pieces = range(-(-draws // 1024))
    x = torch.cat([game.sample(1024, stream(51, Purpose.DRAW, i)).flatten(1).double() for i in pieces])
    chi2 = (x.sum(1).square() / x.shape[1]).numpy()
    return bracket(chi2.mean(), chi2.std() / math.sqrt(len(chi2)))


def summary(found: Diagnoses) -> None:
    """One line an ensemble, out of the whole table."""
    chi2 = found.reference.findings["chi2"]
    print(f"\nreference {found.reference.member.label}: chi2 {chi2.text}")
    print(f"{'':24}{'chi2':>14}{'pull':>7}{'S pull':>8}{'KS of S':>13}{'p in sigma':>11}{'AUC':>16}  wrong")
    for one in found.found:
        f = one.findings
        numbers = [f["chi2"].text, *(_number(f[key].sigma) for key in ("chi2", "action"))]
        numbers += [f["action_histogram"].text, _number(f["action_histogram"].sigma), f["auc"].text]
        cells = "".join(f"{cell:>{width}}" for cell, width in zip(numbers, (14, 7, 8, 13, 11, 16)))
        print(f"{one.member.label:24}{cells}  {len(one.wrong)} of {len(f)}")
    print(flush=True)


def _number(sigma: float | None) -> str:
    return "-" if sigma is None else f"{sigma:+.1f}"


def small(bars: Bars, args: argparse.Namespace) -> None:
    """All models at 8x8 with the flows and HMC in one table."""
    study = Study(args.folder / "8x8", Phi4(shape=(8, 8), m2=-4.0, lam=8.0), args.scale)
    study.hmc("data", 11, 10_240)
    runs = [study.hmc("truth", 12, 4 * args.draws), study.hmc("hmc", 13, args.draws)]
    for name, (model, train) in SMALL.items():
        runs.append(study.learned(name, {"model": model, "train": train}, args.draws)[0])
    for name, objective in FLOWS.items():
        learning: dict = SOAP | {"steps": FLOW_STEPS} | objective
        flow = {"flow": {"kind": "split"}, "train": learning}
        runs.append(study.learned(name, flow, args.draws)[0])
    found = diagnose_run(runs, ("hmc", "model", "flow"), "hmc")
    summary(found)
    for one in found.found:
        name = one.member.run.path.name
        for key in BARRED if name in EXACT else ():
            sigma = one.findings[key].sigma
            bars.at_most(
                f"8x8 {name}: |{one.findings[key].label}| / sigma",
                math.nan if sigma is None else abs(sigma),
                3,
            )


def large(bars: Bars, args: argparse.Namespace) -> None:
    """VAE, GAN and WGAN at the point of 1811.03533, each with several seeds."""
    target, _ = Phi4.from_hopping((32, 32), KAPPA, LAM)
    study = Study(args.folder / "32x32", target, args.scale)
    data = study.hmc("data", 21, 10_240)
    runs, spent = [study.hmc("truth", 22, args.draws), data], dict.fromkeys(LARGE, 0.0)
    for seed in range(1, args.seeds + 1):
        for name in LARGE if seed == 1 else [name for name in LARGE if name not in ONCE]:
            model, train = LARGE[name]
            path, used = study.learned(f"{name}-{seed}", {"model": model, "train": train}, args.draws, seed)
            runs.append(path)
            spent[name] = max(spent[name], used)
    found = diagnose_run(runs, ("hmc", "model"), "hmc")
    summary(found)
    truth = found.reference.findings["chi2"]
    print(f"chi2 of HMC {truth.text}; of HMC in 1811.03533, in this field's units, {bracket(*PUBLISHED)}")
    print(f"WGAN before its first step: chi2 {untrained(study, LARGE['wgan'][0], args.draws)}")
    off = deviations(found)
    for name, used in spent.items():
        bars.at_most(f"32x32 {name}: CPU seconds of the longest training", used, 1200)
    gans = {name: abs(float(np.mean(off[name]))) for name in ("gan", "wgan")}
    best = min(gans, key=gans.__getitem__)
    bars.at_most(f"32x32, best GAN ({best}): relative error of chi2, mean over seeds", gans[best], 0.03)


def deviations(found: Diagnoses) -> dict[str, list[float]]:
    """`chi2 / truth - 1` of each seed of each model, printed with pulls, and mean and spread (sd) over seeds."""
    truth = found.reference.findings["chi2"].value or math.nan
    off: dict[str, list[float]] = {}
    said: dict[str, list[str]] = {}
    for one in found.found:
        name, chi2 = one.member.run.path.name.split("-")[0], one.findings["chi2"]
        value = (math.nan if chi2.value is None else chi2.value) / truth - 1
        off.setdefault(name, []).append(value)
        said.setdefault(name, []).append(f"{value:+.2%} ({_number(chi2.sigma)})")
    print("chi2 off by, in brackets its pull; errors of the truth and of the training data are common to all")
    for name, values in off.items():
        spread = f", sd {np.std(values, ddof=1):.2%}" if len(values) > 1 else ""
        print(f"    {name}: {', '.join(said[name])}; mean {np.mean(values):+.2%}{spread}")
    return off


def play(model, x: torch.Tensor, steps: int, lr: float, batch: int | None = None) -> None:
    """Adam with a cosine, on x as it is or on random batches of it."""
    model.begin([x])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rng = stream(5, Purpose.TRAIN, step)
        part = x if batch is None else x[torch.from_numpy(rng.integers(len(x), size=batch))]
        optimizer.zero_grad()
        model.loss("model", part, rng).backward()
        optimizer.step()
        schedule.step()


def pca(bars: Bars, args: argparse.Namespace) -> None:
    """The linear autoencoder finds PCA's space; cut after k = 0 and the four momenta of the next orbit."""
    target, cut = FreeField(shape=(8, 8), m2=0.5), 5
    x = target.sample(8192, stream(31, Purpose.DRAW)).double()
    exact = Pca(target, cut).double()
    exact.begin([x])
    for steps in (20, max(1, round(2000 * args.scale))):
        linear = LinearAutoencoder(target, cut, stream(32, Purpose.INIT)).double()
        play(linear, x, steps, 0.02)
        basis = exact.basis
        angle = float(torch.linalg.matrix_norm(linear.basis - basis @ (basis.T @ linear.basis), 2))
        print(f"linear autoencoder: largest angle with PCA after {steps} steps {angle:.2g}")
    bars.at_most("PCA and linear autoencoder: largest angle", angle, 1e-3)


def log_p(model: Vae, x: torch.Tensor) -> np.ndarray:
    """Closed form of a linear VAE: `y = W z + b + s n` is Gaussian (probabilistic PCA)."""
    w, b = (p.detach() for p in model.decoder[0].parameters())
    covariance = w @ w.T + torch.eye(len(w), dtype=w.dtype) * model.log_variance.detach().exp().squeeze()
    gauss = torch.distributions.MultivariateNormal(b, covariance)
    return (gauss.log_prob(model.inward(x).flatten(1)) + model.log_det(x)).numpy()


@torch.no_grad()
def bound(bars: Bars, args: argparse.Namespace) -> None:
    """L_K of a linear VAE for growing K; and on the free field <L_K> below <log p>."""
    target = FreeField(shape=(4, 4), m2=0.5)
    x = target.sample(4096, stream(41, Purpose.DRAW)).double()
    held = target.sample(1024, stream(42, Purpose.DRAW)).double()
    linear = Vae(target, 5, (), 1.0, stream(43, Purpose.INIT)).double()
    with torch.enable_grad():
        play(linear, x, 100, 0.02, 256)
    exact, gaps = log_p(linear, held), []
    log_w = linear.log_weights(held, stream(44, Purpose.EVALUATE), 4096)
    print(f"linear VAE: <log p> {exact.mean():.4f} in closed form")
    for k in (1, 4, 16, 64, 256, 1024):
        bounds = (log_w.view(-1, k, len(held)).logsumexp(1) - math.log(k)).mean(0).numpy()
        gaps.append(float((exact - bounds).mean()))
        print(f"    <log p> - L_{k}: {gaps[-1]:.3g}")
    rise = min(a - b for a, b in itertools.pairwise(gaps))
    bars.at_least("linear VAE: smallest rise of L_K with K", rise, 0)
    # what is left has the noise of 4 groups of 1,024 samples, and the bias of half the variance of a weight's mean
    bars.at_most("linear VAE: |<log p> - L_1024|", abs(gaps[-1]), 0.02)

    vae = Vae(target, 8, (8,), 1.0, stream(45, Purpose.INIT)).double()
    with torch.enable_grad():
        play(vae, x, max(1, round(1500 * args.scale)), 0.01, 128)
    truth = (target.log_prob(held) - target.log_z).numpy()
    log_q, _ = vae.log_q(held, stream(46, Purpose.EVALUATE), 64)
    gap = truth - log_q.numpy()
    error = gap.std() / math.sqrt(len(gap))
    print(f"free field: <log p> {truth.mean():.4f}, <log p> - <L_64> {bracket(gap.mean(), error)}")
    bars.at_least("free field: (<log p> - <L_64>) / sigma", gap.mean() / error, 3)


PARTS = {"small": small, "large": large, "pca": pca, "bound": bound}


def main() -> None:
    args = parser.parse_args()
    if args.seeds < 1:
        parser.error(f"--seeds {args.seeds}; expected at least 1")
    run_parts(parser, args, PARTS)


if __name__ == "__main__":
    main()
