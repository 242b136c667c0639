"""Anomaly detection: the other phase of phi^4, and another process than e- e+ -> q qbar g, by what a model misses.

    python -m benchmarks.study_anomaly                    # about 4 minutes of CPU
    python -m benchmarks.study_anomaly lattice --scale 0.3

Runs go to --folder (runs/studies/anomaly), with a figure of ROC curves for each part; a second call goes on there.

lattice  16x16, m2 = -4, lam = 8 (disordered) and 3 (ordered), by clusters and HMC; models learn from 9,200 configurations
         with random symmetries, signs included, and are tested on other runs. In both directions: reconstruction error of
         PCA, autoencoders, a VAE; the worse of x and -x, since by chance one of the two wells may be reconstructed; the same
         of the distance from the training data's median error ("two-sided"); scores that learn nothing; the likelihood
         ratio, which nothing can beat. Bars: trained on the disordered phase, AUC >= 0.95 for the ordered one, of the error
         of the autoencoder of two latent numbers, worse sign (four seeds), and two-sided of autoencoders of any; AUC of
         another run of the same phase 1/2 within 3 sigma.
events   e- e+ -> q qbar g by a photon at 91.2 GeV, y > 0.02 and p_T > 5 GeV, on the map RAMBO, points of the unit cube in 5
         dimensions; others are g g -> g g g and flat phase space with the same cuts. Models learn from the Metropolis chain
         over VEGAS draws; tested on unweighted draws of other runs. Bars: no score above the likelihood ratio by more than 3
         sigma; AUC of the same process 1/2 within 3 sigma.
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from latticeflow import (
    Deck,
    Ensemble,
    FitSettings,
    MatrixElement,
    Model,
    Phi4,
    Run,
    Target,
    fit,
    models,
    process,
    sample_run,
)
from latticeflow.files import make_folder
from latticeflow.statistics import bracket
from latticeflow.studies.anomaly import (
    Roc,
    Score,
    detect,
    likelihood_ratio,
    plot,
    samples,
    two_sided,
    worst,
)
from latticeflow.targets import targets
from latticeflow.training import Configurations

from .common import Bars, run_parts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("parts", nargs="*", default=["lattice", "events"], metavar="PART")
parser.add_argument("--folder", type=Path, default=Path("runs/studies/anomaly"))
parser.add_argument("--scale", type=float, default=1.0, help="factor of all training steps")

WORST, BOTH = ", worse sign", ", two-sided"  # what is added to a score's name
SIGNS = (lambda x: x, lambda x: -x)  # a symmetry of both phases, so that a score should not depend on it
SHARE = 0.1  # of the chains (of events of the blocks) that are held out of training: for the losses that are printed
PARTS_OF_DATA = ("train", "test", "again")


@dataclass(frozen=True)
class Kind:
    """One kind of configurations: its target, what is drawn, and how many of it to train on and to test with."""

    target: Target
    sampler: dict  # the table [sampler]
    train: int
    test: int


CLUSTER = {"cluster": {"chains": 128, "streams": 2, "block": 1280, "thin": 4, "thermalisation": 200}}
VEGAS = {"vegas": {"block": 16_384}}


def phase(lam: float) -> Kind:
    return Kind(Phi4(shape=(16, 16), m2=-4.0, lam=lam), CLUSTER, 10_240, 5_120)


@process("flat_3", incoming=(11, -11), outgoing=(2, -2, 21))
def _flat(p: Tensor) -> Tensor:
    return torch.ones_like(p[:, 0, 0])


def events(kind: dict, train: int, test: int) -> Kind:
    cuts = {"y_min": 0.02, "pt_min": 5.0}
    target = MatrixElement(process=kind, energy=91.2, phase_space={"kind": "rambo"}, cuts=cuts)
    return Kind(target, VEGAS, train, test)


class Study:
    """Ensembles `train`, `test` and `again` of every kind, each a run of its own seed in `folder`."""

    def __init__(self, folder: Path, kinds: dict[str, Kind], scale: float):
        self.folder, self.kinds, self.scale = folder, kinds, scale
        self.ensembles: dict[tuple[str, str], Ensemble] = {}
        self.test = {name: samples(self.drawn(name, "test")) for name in kinds}

    def drawn(self, name: str, part: str) -> Ensemble:
        if (name, part) in self.ensembles:
            return self.ensembles[name, part]
        kind, sampler = self.kinds[name], next(iter(self.kinds[name].sampler))
        seed = 1 + 10 * list(self.kinds).index(name) + PARTS_OF_DATA.index(part)
        table = {
            "name": f"{name}_{part}",
            "seed": seed,
            "target": targets.table(kind.target),
            "sampler": kind.sampler,
        }
        make_folder(self.folder)
        deck, path = Deck.parse(table), self.folder / f"{name}_{part}"
        run = Run.open(path) if path.is_dir() else Run.create(deck, path)
        run.require_same(deck)
        draws = kind.train if part == "train" else kind.test
        self.ensembles[name, part] = sample_run(run, sampler=sampler, draws=draws)
        return self.ensembles[name, part]

    def trained(self, name: str, table: dict, seed: int, settings: dict) -> Model:
        """A model trained on the kind `name`."""
        target, data = self.kinds[name].target, self.drawn(name, "train").path
        if table["kind"] == "pca":
            settings = {key: value for key, value in settings.items() if key in ("augment", "thin")}
        else:
            settings = settings | {"steps": max(1, round(self.scale * settings["steps"]))}
        model = models.parse(table).build(target, seed)
        record = fit(model, target, FitSettings(data=str(data), test_share=SHARE, **settings), seed=seed)
        if record:
            print(
                f"    {name}: {table}: held-out loss {record['held_out']:.4f}, {record['seconds']:.0f} s",
                flush=True,
            )
        return model.eval()

    def seen(self, name: str, settings: dict) -> Tensor:
        """2,048 configurations of those that were trained on."""
        path, thin = self.drawn(name, "train").path, settings.get("thin", "auto")
        return Configurations(path, self.kinds[name].target, 1, thin, False, SHARE).draw(0, 2048, range(2048))

    def scores(
        self, name: str, plain: dict[str, Score], tables: dict[str, tuple], settings: dict, moves: tuple = ()
    ) -> dict[str, Score]:
        """Reconstruction errors of all models, trained on the kind `name`, and `plain` scores; their distances from the
        median of training data; with `moves` the worst of both over these."""
        found = {key: self.trained(name, *table, settings).error for key, table in tables.items()} | plain
        seen = self.seen(name, settings)
        both = {key + BOTH: two_sided(score, seen) for key, score in found.items()}
        if not moves:
            return found | both
        both = {key: worst(score, moves) for key, score in both.items()}
        return found | {key + WORST: worst(score, moves) for key, score in found.items()} | both

    def compare(self, scores: dict[str, Score], normal: str, other: str) -> dict[str, Roc]:
        ratio = likelihood_ratio(self.kinds[normal].target, self.kinds[other].target)
        return detect(scores | {"log p'/p": ratio}, self.test[normal], self.test[other])

    def control(self, scores: dict[str, Score], name: str) -> dict[str, Roc]:
        """The same kind, of another run, as if it were anomalous."""
        again = samples(self.drawn(name, "again"))
        return detect(scores, self.test[name], again)


def table(title: str, found: dict[str, Roc], control: dict[str, Roc]) -> None:
    extra = [WORST] if any(name.endswith(WORST) for name in found) else []
    columns = [(found, end) for end in ("", *extra, BOTH)] + [
        (control, end) for end in (*(extra or [""]), BOTH)
    ]
    heads = ["AUC", *(end.strip(", ") for end in (*extra, BOTH)), "same kind", "two-sided"]
    print(f"\n{title}\n{'':34}" + "".join(f"{head:>14}" for head in heads))
    for name in found:
        if not name.endswith((WORST, BOTH)):
            cells = [of.get(name + end) for of, end in columns]
            print(
                f"{name:34}" + "".join(f"{bracket(one.auc, one.error) if one else '-':>14}" for one in cells)
            )
    print(flush=True)


def field_scores(target: Phi4) -> dict[str, Score]:
    """What a physicist looks at first."""
    return {
        "mean of phi^2": lambda x: x.square().flatten(1).mean(1),
        "|mean of phi|": lambda x: x.flatten(1).mean(1).abs(),
        "S of the training phase": target.action,
    }


# [model] and seed of each; the number is that of latent numbers
FIELDS = {
    **{f"PCA, {n}": ({"kind": "pca", "latent": n}, 1) for n in (2, 16)},
    **{f"autoencoder, {n}": ({"kind": "autoencoder", "latent": n}, 1) for n in (1, 2, 4, 16)},
    "denoising autoencoder, 2": ({"kind": "denoising_autoencoder", "latent": 2}, 1),
    "VAE, 2": ({"kind": "vae", "latent": 2}, 1),
}
AGAIN = {f"autoencoder, 2, seed {i}": ({"kind": "autoencoder", "latent": 2}, i) for i in (2, 3, 4)}
FIELD_TRAINING = {"steps": 800, "lr": 2e-3, "evaluate_every": 10**6}


def lattice(bars: Bars, args: argparse.Namespace) -> None:
    """Disordered and ordered."""
    study = Study(args.folder / "lattice", {"disordered": phase(8.0), "ordered": phase(3.0)}, args.scale)
    curves = {}
    for normal, other in (("disordered", "ordered"), ("ordered", "disordered")):
        plain = field_scores(study.kinds[normal].target)  # type: ignore[arg-type]
        learned = FIELDS | AGAIN if normal == "disordered" else FIELDS
        scores = study.scores(normal, plain, learned, FIELD_TRAINING, SIGNS)
        found, control = study.compare(scores, normal, other), study.control(scores, normal)
        title = f"trained on {normal}, tested on {other}"
        table(title, found, control)
        shown = (
            "PCA, 2",
            "autoencoder, 2",
            "autoencoder, 2" + WORST,
            "autoencoder, 16",
            "autoencoder, 16" + BOTH,
        )
        curves[title] = {name: found[name] for name in shown}
        small = [name for name in learned if name.startswith("autoencoder, 2")]
        if normal == "disordered":
            least = min(found[name + WORST].auc for name in small)
            bars.at_least(
                "disordered to ordered, autoencoder, 2, worse sign: least AUC of four seeds", least, 0.95
            )
            least = min(
                one.auc
                for name, one in found.items()
                if name.startswith("autoencoder") and name.endswith(BOTH)
            )
            bars.at_least("disordered to ordered, autoencoders, two-sided: least AUC", least, 0.95)
        of = [control[name + end] for name in small for end in (WORST, BOTH)]
        bars.at_most(
            f"{normal} again, autoencoder, 2: |AUC - 1/2| / sigma", max(abs(one.sigma) for one in of), 3
        )
    (args.folder / "lattice.png").write_bytes(plot(curves))


WIDE = {"hidden": (64, 64)}
EVENTS = {
    **{f"PCA, {n}": ({"kind": "pca", "latent": n}, 1) for n in (2, 3, 4)},
    **{f"autoencoder, {n}": ({"kind": "autoencoder", "latent": n} | WIDE, 1) for n in (2, 3, 4)},
    "autoencoder, 3, seed 2": ({"kind": "autoencoder", "latent": 3} | WIDE, 2),
    "denoising autoencoder, 3": ({"kind": "denoising_autoencoder", "latent": 3} | WIDE, 1),
    "VAE, 3": ({"kind": "vae", "latent": 3} | WIDE, 1),
}
EVENT_TRAINING = {
    "steps": 1500,
    "batch": 256,
    "lr": 2e-3,
    "augment": False,
    "thin": 1,
    "evaluate_every": 10**6,
}
KINDS = {
    "qqg": events({"kind": "ee_qqg", "quark": "u"}, 131_072, 131_072),
    "ggg": events({"kind": "gg_ggg", "alpha_s": 0.118}, 524_288, 1_048_576),
    "flat": events({"kind": "flat_3"}, 32_768, 16_384),
}
NAMES = {"qqg": "e- e+ -> q qbar g", "ggg": "g g -> g g g", "flat": "flat phase space"}


def event_scores(target: MatrixElement) -> dict[str, Score]:
    """What is known of the process, and the least transverse momentum."""
    return {
        "-log f of the training process": lambda u: -target.log_prob(u),
        "-least p_T": lambda u: -target.generate(u).p[:, 2:, 1:3].square().sum(2).amin(1),
    }


def jets(bars: Bars, args: argparse.Namespace) -> None:
    """Three partons."""
    study = Study(args.folder / "events", KINDS, args.scale)
    print({NAMES[name]: f"{len(x):,} unweighted events" for name, x in study.test.items()})
    curves, most = {}, -math.inf
    for normal, others in (("qqg", ("ggg", "flat")), ("ggg", ("qqg",)), ("flat", ("qqg",))):
        plain = event_scores(KINDS[normal].target)  # type: ignore[arg-type]
        scores = study.scores(normal, plain, EVENTS, EVENT_TRAINING)
        control = study.control(scores, normal)
        for other in others:
            found = study.compare(scores, normal, other)
            title = f"trained on {NAMES[normal]}, tested on {NAMES[other]}"
            table(title, found, control)
            best = found["log p'/p"]
            rest = [one for one in found.values() if one is not best]
            most = max(most, *((one.auc - best.auc) / max(one.error, best.error) for one in rest))
            if other in ("ggg", "qqg") and normal != "flat":
                curves[title] = {
                    k: found[k]
                    for k in ("PCA, 3", "autoencoder, 3", "-log f of the training process", "log p'/p")
                }
        of = [control[f"autoencoder, {n}"] for n in (2, 3)]
        bars.at_most(
            f"{NAMES[normal]} again, autoencoders: |AUC - 1/2| / sigma", max(abs(one.sigma) for one in of), 3
        )
    bars.at_most("events: largest (AUC - that of the likelihood ratio) / sigma", most, 3)
    (args.folder / "events.png").write_bytes(plot(curves))


PARTS = {"lattice": lattice, "events": jets}


def main() -> None:
    run_parts(parser, parser.parse_args(), PARTS)


if __name__ == "__main__":
    main()
