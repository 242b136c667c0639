"""Training data for models: what is held out has never met what is trained on, and thinning is by tau_int."""

import numpy as np
import pytest
import torch
from baseline_data import FREE, store_chains
from test_training_data import stored

from latticeflow.errors import InputError
from latticeflow.store import Ensemble
from latticeflow.targets import FreeField, Wilson
from latticeflow.training import Configurations, FitSettings, TrainSettings, data
from latticeflow.training.data import find_data
from latticeflow.training.parallel import ALONE
from latticeflow.training.split import auto_thin, held_out, units

torch.set_num_threads(1)


def rows_of(found: Configurations) -> torch.Tensor:
    return torch.cat(list(found.walk())).flatten(1)


def index_in(x: torch.Tensor, whole: torch.Tensor) -> np.ndarray:
    """Where in `whole` each row of x is."""
    place = {row.numpy().tobytes(): i for i, row in enumerate(whole)}
    return np.array([place[row.numpy().tobytes()] for row in x])


def chains_of(ensemble: Ensemble) -> tuple[torch.Tensor, np.ndarray]:
    """All stored configurations in block order, and the chain of each, told by stream and position: not by the code."""
    parts, owner = [], []
    for stream, block in ensemble.blocks:
        x = torch.from_numpy(ensemble.read(stream, block, "x")["x"]).flatten(1)
        parts.append(x)
        owner += [(stream, i % ensemble.chains) for i in range(len(x))]
    return torch.cat(parts), np.array(owner)


def test_no_chain_is_in_both_parts(tmp_path):
    ensemble = store_chains(tmp_path / "e", a=0.95)
    found = Configurations(tmp_path / "e", FREE, 3, thin=4, augment=False, test_share=0.25)
    whole, owner = chains_of(ensemble)
    train, test = (index_in(rows_of(one), whole) for one in (found, found.held_out()))
    of_train, of_test = ({tuple(owner[i]) for i in part} for part in (train, test))
    assert not of_train & of_test and len(of_train) == 12 and len(of_test) == 4
    assert len(found) == len(train) == 12 * 32 and len(found.held_out()) == len(test) == 4 * 32
    # batches are of these parts alone
    drawn = {i for step in range(20) for i in index_in(found.draw(step, 64, range(64)).flatten(1), whole)}
    assert drawn <= set(train)
    drawn = {i for i in index_in(found.held_out().draw(0, 500, range(500)).flatten(1), whole)}
    assert drawn <= set(test)
    other = Configurations(tmp_path / "e", FREE, 4, thin=4, augment=False, test_share=0.25)
    assert {tuple(owner[i]) for i in index_in(rows_of(other.held_out()), whole)} != of_test


def test_a_split_by_configuration_would_leak(tmp_path):
    """Negative control: the distance to the nearest training configuration is that of strangers when chains are held out,

    and that of neighbours in Monte Carlo time when single configurations are.
    """
    ensemble = store_chains(tmp_path / "e", a=0.99)
    found = Configurations(tmp_path / "e", FREE, 3, augment=False, test_share=0.25)
    train, test = rows_of(found), rows_of(found.held_out())
    strangers = FREE.sample(256, np.random.default_rng(1)).flatten(1)
    nearest = {
        name: float(torch.cdist(x, train).amin(1).median())
        for name, x in (("held", test), ("new", strangers))
    }
    whole, _ = chains_of(ensemble)
    order = np.random.default_rng(2).permutation(len(whole))
    leaking = float(torch.cdist(whole[order[:256]], whole[order[256:]]).amin(1).median())
    assert 0.8 < nearest["held"] / nearest["new"] < 1.25
    assert leaking < 0.5 * nearest["new"]


def test_chains_that_interact_are_held_out_by_stream(tmp_path):
    ensemble = store_chains(tmp_path / "e", interacting=True, streams=3)
    found = Configurations(tmp_path / "e", FREE, 3, augment=False, test_share=0.3)
    whole, owner = chains_of(ensemble)
    streams = [{owner[i][0] for i in index_in(rows_of(one), whole)} for one in (found, found.held_out())]
    assert len(streams[0]) == 2 and len(streams[1]) == 1 and not streams[0] & streams[1]


def test_proposals_are_held_out_by_block_with_all_their_repeats(tmp_path):
    ensemble = stored(tmp_path / "run/ensembles/flow", blocks=6, drawn_from=FreeField(shape=(4, 4), m2=0.35))
    found = Configurations(ensemble.path, FREE, 3, augment=False, test_share=0.34)
    train, test = rows_of(found), rows_of(found.held_out())
    assert not {r.numpy().tobytes() for r in train} & {r.numpy().tobytes() for r in test}
    assert len(train) + len(test) == len(ensemble.chain().index())
    assert len(held_out(ensemble, 0.34, 3)) == 2


def test_one_chain_cannot_be_divided(tmp_path):
    store_chains(tmp_path / "e", chains=1, streams=1, steps=256)
    with pytest.raises(InputError, match="has one chain only"):
        Configurations(tmp_path / "e", FREE, 3, augment=False, test_share=0.2)
    found = Configurations(tmp_path / "e", FREE, 3, augment=False)
    with pytest.raises(InputError, match="holds out no configuration"):
        found.held_out()


def test_units_count_chains_over_all_streams(tmp_path):
    ensemble = store_chains(tmp_path / "e", steps=3)
    assert units(ensemble, (1, 0)).tolist() == list(range(8, 16)) * 3


@pytest.mark.parametrize("a", [0.0, 0.9])
def test_auto_thins_by_tau_int(tmp_path, a):
    """`2 tau_int`, tau_int = (1 + a^2) / (2 (1 - a^2)) of quadratic observables: 1 and 9.5 steps."""
    ensemble = store_chains(tmp_path / "e", steps=1000, a=a)
    found, wanted = auto_thin(ensemble, FREE), (1 + a * a) / (1 - a * a)
    assert found == 1 if a == 0 else 0.8 * wanted < found < 1.3 * wanted
    read = Configurations(tmp_path / "e", FREE, 3, thin="auto", augment=False)
    assert read.thin == found and len(read) == 16 * -(-2000 // found)


def test_auto_says_where_chains_are_too_short(tmp_path):
    store_chains(tmp_path / "e", steps=4, blocks=1, a=0.99)
    with pytest.raises(InputError, match="does not tell its autocorrelation time"):
        Configurations(tmp_path / "e", FREE, 3, thin="auto", augment=False)


@pytest.mark.parametrize("thin", ["auto", 1])
def test_an_ensemble_without_a_block_is_named(tmp_path, thin):
    store_chains(tmp_path / "e", blocks=0)
    with pytest.raises(InputError, match="holds no configuration to learn from"):
        Configurations(tmp_path / "e", FREE, 3, thin=thin, test_share=0.2)


def test_walks_pass_every_configuration_once_and_augment_anew(tmp_path):
    ensemble = store_chains(tmp_path / "e", steps=8)
    whole, _ = chains_of(ensemble)
    plain = Configurations(tmp_path / "e", FREE, 3, augment=False)
    assert sorted(index_in(rows_of(plain), whole)) == list(range(len(whole)))
    moved = Configurations(tmp_path / "e", FREE, 3)
    one, again, other = (torch.cat(list(moved.walk(k))) for k in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.allclose(FREE.log_prob(one), FREE.log_prob(whole.view(-1, 4, 4)))


def test_links_of_u1_are_translated_and_conjugated(tmp_path):
    """Each configuration's plaquettes stay the same set, or all change their sign; other moves of links do not do that."""
    target = Wilson(shape=(3, 4), group="u1", beta=2.0)
    ensemble = store_chains(
        tmp_path / "e",
        target,
        steps=8,
        sample=lambda n, generator: torch.from_numpy(generator.uniform(-3, 3, size=(n, 2, 3, 4))),
    )
    whole = chains_of(ensemble)[0].view(-1, 2, 3, 4)
    moved = torch.cat(list(Configurations(tmp_path / "e", target, 3).walk(1)))

    def plaquettes(x):
        _, _, p = next(target.plaquettes(x))
        return torch.atan2(p.sin(), p.cos()).flatten(1)

    def off(x):
        """How far the sorted plaquettes of each configuration are from the stored ones, with either sign."""
        p, q = plaquettes(x).sort(1).values, plaquettes(whole)
        return torch.stack([(p - one.sort(1).values).abs().amax(1) for one in (q, -q)])

    found = off(moved)
    assert float(found.amin(0).max()) < 1e-12
    assert set(found.argmin(0).tolist()) == {0, 1} and not torch.equal(moved, whole)
    apart = torch.stack([whole[:, 0].roll(1, 1), whole[:, 1]], 1)
    assert float(off(apart).amin()) > 1e-3


def test_a_flow_learns_from_the_same_configurations(tmp_path):
    """`thin` and `test_share` of a flow's [train] mean what they mean for a model: the comparison is a fair one."""
    store_chains(tmp_path / "e", steps=128, a=0.5)
    keys = {"data": str(tmp_path / "e"), "thin": "auto", "test_share": 0.25, "augment": False, "steps": 1}
    settings = (TrainSettings(objective="forward", **keys), FitSettings(**keys))
    flow, model = (find_data(one, FREE, 3, None, None, ALONE) for one in settings)
    assert torch.equal(rows_of(flow), rows_of(model)) and len(flow) == 12 * 128
    assert torch.equal(flow.draw(5, 64, range(64)), model.draw(5, 64, range(64)))


def test_parts_of_a_large_ensemble_stay_apart(tmp_path, monkeypatch):
    """Blocks held in turn: what is drawn over many windows is of the training chains alone."""
    ensemble = store_chains(tmp_path / "e", blocks=4, steps=16)
    monkeypatch.setattr(data, "MEMORY", 2 * 128 * 16 * 8)
    found = Configurations(tmp_path / "e", FREE, 3, augment=False, test_share=0.25)
    whole, _ = chains_of(ensemble)
    train = set(index_in(rows_of(found), whole))
    steps = range(0, 20 * data.WINDOW, data.WINDOW)
    drawn = {i for step in steps for i in index_in(found.draw(step, 64, range(64)).flatten(1), whole)}
    assert drawn <= train and len(drawn) > 0.7 * len(train)
