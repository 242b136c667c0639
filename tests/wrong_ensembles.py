"""Ensembles that are wrong in known ways, stored as a model's draws, and the exact chains that they are held against."""

import torch
from known_samplers import TARGET, draw
from tables import rng

from latticeflow.config import Deck
from latticeflow.run import Run
from latticeflow.samplers.base import Draws, SamplerSpec, samplers
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField, targets
from latticeflow.training.data import Configurations

BLOCK = 1024
TRAIN = {"data": "ensembles/test_chain", "thin": "auto", "test_share": 0.25, "augment": False}


def give(run, kind, x, exact=False):
    """Store x `[n, *event_shape]` as independent draws without weights of a sampler called `kind`."""
    if kind not in samplers.classes:

        class Given(SamplerSpec):
            block: int = BLOCK

        Given.exact = exact
        samplers.add(kind)(Given)
    settings = {"block": BLOCK, "precision": "float64", "threads": 1, "keep_fields": 1}
    target = run.deck.target
    ensemble = Ensemble.create(
        run.ensemble(kind),
        sampler=kind,
        settings=settings,
        target=targets.table(target),
        seed=1,
        weights=None if exact else "0",
        chains=0,
        interacting=False,
        weighted=False,
    )
    for b, part in enumerate(x.split(BLOCK)):
        ensemble.write(b, 0, Draws(part, target.log_prob(part).numpy()), None, seconds=0.1)
    return ensemble


def a_run(folder, target, **train):
    """A run folder of that target; with `train` as if a model had been trained so."""
    deck = {"name": folder.name, "seed": 5, "target": targets.table(target)}
    if train:
        deck |= {"model": {"kind": "pca", "latent": 4}, "train": train}
    return Run.create(Deck.parse(deck), folder)


def few(k, n):
    """The same k configurations again and again."""
    return TARGET.sample(k, rng(20))[torch.from_numpy(rng(21).integers(k, size=n))]


def one_well(n):
    """Never m > 0, and else right."""
    x = TARGET.sample(n, rng(22))
    return -x * x.flatten(1).mean(1).sign()[:, None, None]


def shuffled(n):
    """The right distribution of every site, and no correlations: the sites of each configuration exchanged."""
    x = TARGET.sample(n, rng(23)).flatten(1).numpy()
    return torch.from_numpy(rng(24).permuted(x, axis=1)).view(n, *TARGET.shape)


def memorised(run, n, noise=0.02):
    """Configurations of the training data, each with a little noise."""
    data = Configurations(run.ensemble("test_chain"), TARGET, 5, "auto", False, TRAIN["test_share"])
    x = torch.cat(list(data.walk()))
    x = x[torch.from_numpy(rng(25).integers(len(x), size=n))]
    return x + noise * torch.from_numpy(rng(26).normal(size=x.shape))


def store_all(run, n):
    """Exact chains, exact draws with weights, an honest generator, and the wrong ones."""
    draw(run, "test_chain", 65536)
    draw(run, "test_proposal", 16384)
    give(run, "test_honest", TARGET.sample(n, rng(27)))
    give(run, "test_few", few(32, n))
    give(run, "test_one_well", one_well(n))
    give(run, "test_shuffled", shuffled(n))
    give(run, "test_memorised", memorised(run, n))
    give(run, "test_heavy", FreeField(shape=TARGET.shape, m2=0.7).sample(n, rng(28)))
