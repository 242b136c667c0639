"""Configurations of stored ensembles as training data: exact ones, keyed, augmented; forward and mixed objectives."""

import json
import shutil

import numpy as np
import pytest
import torch
from fake_ensembles import ABOUT, CHAINS, RECORD
from tables import rng
from thread_ranks import on_ranks

from latticeflow.errors import InputError, Stopped
from latticeflow.flows import Flow, Spectrum
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.samplers.base import Draws
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField, Phi4, targets
from latticeflow.training import Configurations, TrainSettings, data, evaluate, train
from latticeflow.training import checkpoint as ckpt

torch.set_num_threads(1)
FREE = FreeField(shape=(4, 4), m2=0.5)
BLOCK = 512


def stored(path, target=FREE, blocks=4, drawn_from=None, **record):
    """An ensemble of exact draws: chains, or, with log_w, proposals from another free field."""
    base = CHAINS if drawn_from is None else RECORD
    settings = {**base["settings"], "block": BLOCK, "precision": "float64", **record.pop("settings", {})}
    whole = {**base, "target": targets.table(target), "settings": settings, **record}
    ensemble = Ensemble.create(path, **whole)
    source = target if drawn_from is None else drawn_from
    for b in range(blocks):
        x = source.sample(BLOCK, rng(71, b))
        log_prob = target.log_prob(x)
        log_w = None if drawn_from is None else (log_prob - drawn_from.log_prob(x)).numpy()
        place = (b, 0) if drawn_from is not None else (b % 2, b // 2)
        ensemble.write(*place, Draws(x, log_prob.numpy(), log_w), None, 0.5, **ABOUT)
    return ensemble


def spectrum_pull(x: torch.Tensor, target=FREE) -> float:
    """Largest pull of `<|phi_k|^2>` of independent draws from the free field's."""
    found = torch.fft.fft2(x).abs().square() / target.lattice.volume
    error = found.std(0) / np.sqrt(len(x))
    return float(((found.mean(0) - torch.from_numpy(target.spectrum)) / error).abs().max())


def batch(found, step=0, n=4096):
    return found.draw(step, n, range(n))


def distinct(x):
    """One of each set of equal rows: a batch is drawn with replacement."""
    return torch.unique(x.flatten(1), dim=0).view(-1, *x.shape[1:])


@pytest.mark.parametrize("augment", [False, True])
def test_chains_are_read_as_they_are(tmp_path, augment):
    stored(tmp_path / "e")
    found = batch(Configurations(tmp_path / "e", FREE, 3, augment=augment))
    assert found.shape == (4096, 4, 4) and found.dtype == torch.float64
    assert spectrum_pull(distinct(found) if not augment else found[:1024]) < 5
    if augment:
        assert len(distinct(found)) > 1.9 * 4 * BLOCK  # of 4 * BLOCK stored ones, each in 256 images
    else:
        assert len(distinct(found)) < 4 * BLOCK


def test_weighted_draws_are_read_through_their_metropolis_chain(tmp_path):
    """Proposals from another mass; the chain's entries have the target's spectrum, the raw proposals must not."""
    other = FreeField(shape=(4, 4), m2=0.35)
    ensemble = stored(tmp_path / "run/ensembles/flow", blocks=12, drawn_from=other)
    found = Configurations(ensemble.path, FREE, 3, thin=8, augment=False)
    _ = found.draw(0, 1, range(1))
    assert len(found._x) == 12 * BLOCK // 8
    assert spectrum_pull(found._x) < 5
    raw = torch.cat([torch.from_numpy(block["x"]) for block in ensemble.iterate("x")])
    assert spectrum_pull(raw) > 8
    every = Configurations(ensemble.path, FREE, 3, augment=False)
    _ = every.draw(0, 1, range(1))
    index = ensemble.chain().index()
    chain = raw[torch.from_numpy(np.sort(index))]
    assert torch.equal(every._x, chain)  # repeated as often as the chain repeats them


def test_thinning_takes_every_kth_step_of_each_chain(tmp_path):
    ensemble = stored(tmp_path / "e")
    found = Configurations(tmp_path / "e", FREE, 3, thin=5, augment=False)
    _ = found.draw(0, 1, range(1))
    expected = []
    for stream in (0, 1):
        x = torch.cat([torch.from_numpy(ensemble.read(stream, b, "x")["x"]) for b in (0, 1)])
        expected.append(x.view(-1, 8, 4, 4)[::5].flatten(0, 1))
    assert torch.equal(found._x, torch.cat(expected))


def test_kept_fields_of_chains_are_those_steps(tmp_path):
    ensemble = stored(tmp_path / "e", settings={"keep_fields": 2})
    found = Configurations(tmp_path / "e", FREE, 3, thin=4, augment=False)
    _ = found.draw(0, 1, range(1))
    parts = [torch.from_numpy(ensemble.read(*key, "x")["x"]) for key in ensemble.blocks]
    assert torch.equal(found._x, torch.cat([x.view(-1, 8, 4, 4)[::2].flatten(0, 1) for x in parts]))


def test_batches_are_keyed_by_step_and_cut_for_ranks(tmp_path):
    stored(tmp_path / "e")
    one, two = (Configurations(tmp_path / "e", FREE, 3) for _ in range(2))
    whole = batch(one, 5, 150)
    assert torch.equal(torch.cat([two.draw(5, 150, part) for part in (range(70), range(70, 150))]), whole)
    assert not torch.equal(batch(one, 6, 150), whole)
    assert not torch.equal(batch(Configurations(tmp_path / "e", FREE, 4), 5, 150), whole)


def test_an_ensemble_larger_than_memory_is_seen_in_parts(tmp_path, monkeypatch):
    ensemble = stored(tmp_path / "e", blocks=6)
    monkeypatch.setattr(data, "MEMORY", 2 * BLOCK * 16 * 8)
    found, seen = Configurations(tmp_path / "e", FREE, 3, augment=False), set()
    for window in range(12):
        x = batch(found, window * data.WINDOW, 64)
        assert len(found._x) == 2 * BLOCK
        seen |= {row.numpy().tobytes() for row in x}
        again = Configurations(tmp_path / "e", FREE, 3, augment=False)
        assert torch.equal(batch(again, window * data.WINDOW, 64), x)  # as after a resume
    blocks = [{row.tobytes() for row in block["x"]} for block in ensemble.iterate("x")]
    assert all(seen & block for block in blocks) and seen <= set.union(*blocks)


@pytest.mark.parametrize("shape", [(4, 4), (4, 6), (2, 4, 4)])
def test_augmentation_moves_within_the_group_of_symmetries(tmp_path, shape):
    """Numbered sites: what comes out is +- an image under a point-group element and a translation, and each occurs."""
    target = Phi4(shape=shape, m2=-4.0, lam=8.0)
    lattice = target.lattice
    ensemble = Ensemble.create(
        tmp_path / "e",
        **{**CHAINS, "target": targets.table(target), "settings": {**CHAINS["settings"], "block": 8}},
    )
    one = torch.from_numpy(rng(72).normal(size=shape))
    x = one.expand(8, *shape).clone()
    ensemble.write(0, 0, Draws(x, target.log_prob(x).numpy(), None), None, 0.5, **ABOUT)
    images = set()
    for element in lattice.point_group():
        y = lattice.transform(one[None], *element)
        for site in lattice.coordinates:
            z = y
            for mu, steps in enumerate(site):
                z = lattice.shift(z, mu, int(steps))
            images |= {z.numpy().tobytes(), (-z).numpy().tobytes()}
    found = {
        row.numpy().tobytes() for row in batch(Configurations(tmp_path / "e", target, 3), n=16 * len(images))
    }
    assert found == images


class Tilted(Phi4):
    """No symmetry under phi -> -phi."""

    def action(self, x):
        return super().action(x) + 0.1 * x.flatten(1).sum(1)


def test_what_cannot_be_learned_from_is_refused(tmp_path):
    ensemble = stored(tmp_path / "e")
    for other in (FreeField(shape=(4, 4), m2=0.6), FreeField(shape=(4, 6), m2=0.5)):
        with pytest.raises(
            InputError, match=r"another target than is trained on: (m2: 0\.5, now 0\.6|shape)"
        ):
            Configurations(tmp_path / "e", other, 3)
    with pytest.raises(InputError, match="no ensemble in"):
        Configurations(tmp_path / "none", FREE, 3)
    with pytest.raises(InputError, match="needs those of all"):
        stored(tmp_path / "w", drawn_from=FREE, settings={"keep_fields": 2})
        Configurations(tmp_path / "w", FREE, 3)
    bare = Ensemble.create(
        tmp_path / "bare", **{**ensemble.record, "settings": {"block": BLOCK, "keep_fields": 0}}
    )
    with pytest.raises(InputError, match="no fields to learn from"):
        Configurations(bare.path, FREE, 3)
    Ensemble.create(tmp_path / "empty", **ensemble.record)
    with pytest.raises(InputError, match="no configuration to learn from"):
        Configurations(tmp_path / "empty", FREE, 3)
    phi4 = dict(shape=(4, 4), m2=0.5, lam=0.0)
    tilted = Tilted(**phi4)
    tilted_ensemble = Ensemble.create(
        tmp_path / "t", **{**ensemble.record, "target": {"kind": "phi4", **phi4}}
    )
    x = FREE.sample(BLOCK, rng(73))
    tilted_ensemble.write(0, 0, Draws(x, tilted.log_prob(x).numpy(), None), None, 0.5, **ABOUT)
    with pytest.raises(InputError, match=r"train\.augment: the action of 'phi4' changes"):
        Configurations(tmp_path / "t", tilted, 3)
    Configurations(tmp_path / "t", tilted, 3, augment=False)


def free_flow():
    return Flow(Spectrum(FREE.lattice, 4.0), [])


SETTINGS = TrainSettings(
    steps=150,
    batch=64,
    lr=3e-2,
    warmup=1,
    evaluate_every=150,
    evaluate_draws=4096,
    checkpoint_every=50,
    data="e",
)


@pytest.mark.parametrize("objective", ["forward", "mixed"])
def test_training_on_stored_draws_finds_the_spectrum(tmp_path, objective):
    """Known answer, the spectrum of the free field; data of another mass must lead elsewhere."""
    stored(tmp_path / "e", blocks=8)
    settings = SETTINGS.model_copy(update={"objective": objective})
    flow = free_flow()
    after = train(flow, FREE, settings, seed=5, weights=tmp_path / "weights")
    assert after.ess > 0.98 and evaluate(free_flow(), FREE, 4096, seed=46).ess < 0.7
    found = (2 * flow.base.log_amplitude.detach()).exp().numpy()
    np.testing.assert_allclose(found, FREE.spectrum, rtol=0.15)
    other = FreeField(shape=(4, 4), m2=1.5)  # negative control
    stored(tmp_path / "other" / "e", other)
    wrong = free_flow()
    train(wrong, other, settings, seed=5, weights=tmp_path / "other" / "weights")
    assert not np.allclose((2 * wrong.base.log_amplitude.detach()).exp().numpy(), FREE.spectrum, rtol=0.15)


SHORT = SETTINGS.model_copy(
    update={"steps": 12, "objective": "mixed", "checkpoint_every": 5, "precision": "float64"}
)


def test_a_resume_goes_on_with_the_same_data_and_refuses_others(tmp_path):
    ensemble = stored(tmp_path / "e")
    whole = free_flow()
    train(whole, FREE, SHORT, seed=5, weights=tmp_path / "whole")
    polls = iter(range(100))
    with pytest.raises(Stopped):
        train(
            free_flow(),
            FREE,
            SHORT,
            seed=5,
            weights=tmp_path / "halves",
            stop=lambda: "soon" if next(polls) == 7 else None,
        )
    recorded = json.loads((ckpt.latest(tmp_path / "halves") / "state.json").read_text())["data"]
    assert recorded == Configurations(tmp_path / "e", FREE, 5).checksum
    shutil.copytree(tmp_path / "halves", tmp_path / "more")
    found = free_flow()
    train(found, FREE, SHORT, seed=5, weights=tmp_path / "halves", resume=True)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), whole.parameters()))
    x = FREE.sample(BLOCK, rng(74))
    ensemble.write(2, 0, Draws(x, FREE.log_prob(x).numpy(), None), None, 0.5, **ABOUT)
    with pytest.raises(InputError, match=r"e has changed since the checkpoint.*recorded is " + recorded[:16]):
        train(free_flow(), FREE, SHORT, seed=5, weights=tmp_path / "more", resume=True)


def test_any_number_of_ranks_learns_the_same_from_data(tmp_path):
    stored(tmp_path / "e")

    def trained(group=None, **change):
        flow = free_flow()
        settings = SHORT.model_copy(update={"batch": 67, **change})
        train(flow, FREE, settings, seed=5, weights=None, **({"group": group} if group else {}))
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    path = str(tmp_path / "e")
    alone = trained(data=path)
    for size in (2, 3):
        found = on_ranks(size, lambda group: trained(group, data=path))
        assert all(torch.allclose(row, alone, rtol=1e-9) for row in found)
    for row in on_ranks(3, lambda group: trained(group, data=path, batch=2)):
        assert torch.allclose(row, trained(data=path, batch=2), rtol=1e-9)
    assert not torch.allclose(alone, trained(data=path, alpha=0.6), rtol=1e-9)


DECK = """
name = "learn"
seed = 3
[target]
kind = "free"
shape = [4, 4]
m2 = 0.5
[flow]
kind = "split"
layers = 1
[train]
steps = 20
evaluate_draws = 1024
objective = "mixed"
data = "ensembles/exact"
[sampler.exact]
block = 1024
"""


def test_a_run_learns_from_its_own_ensemble(tmp_path):
    """The deck's way: sample first, then train on what lies in the run folder; without it, a clear error."""
    deck = tmp_path / "deck.toml"
    deck.write_text(DECK)
    with pytest.raises(InputError, match=r"no ensemble in .*ensembles/exact; draw it with"):
        train_run(deck, folder=tmp_path / "early")
    sample_run(deck, sampler="exact", draws=2048, overrides=[])
    run = train_run(deck)
    assert ckpt.latest(run.weights).name == "step_00000020"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
