"""Plans: what decks may say, and that a plan stopped or killed anywhere ends in the same bytes."""

import json

import pytest
import torch
from tables import scramble
from thread_ranks import on_ranks

from latticeflow.analysis.info import print_info
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError, Stopped
from latticeflow.flows import Split
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, log, loop, plan, train
from latticeflow.training import checkpoint as ckpt

torch.set_num_threads(1)
SPEC = Split(layers=2, sines=2, site_sines=2)
TARGET = Phi4(shape=(4, 6), m2=-4.0, lam=7.0)
LADDER = (
    dict(target=dict(shape=(4, 4), lam=8.0), steps=4, evaluate_every=3),
    dict(target=dict(shape=(4, 4)), steps=3, batch=[[0.0, 8], [0.5, 24]], lr=1e-3),
    dict(estimator="reparametrised"),
)
SETTINGS = TrainSettings(
    steps=5,
    batch=16,
    warmup=2,
    evaluate_every=4,
    evaluate_draws=1024,
    checkpoint_every=2,
    stage=LADDER,
    keep=20,
)
ENDS = (4, 7, 12)


def build(target):
    return SPEC.build_for(target, 1)


def walk(settings=SETTINGS, **given):
    flow = build(TARGET)
    return flow, train(flow, TARGET, settings, seed=3, build=build, **given)


def same(one, two):
    return all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_the_plan_of_a_deck():
    stages = plan(SETTINGS, TARGET)
    assert [(s.start, s.end) for s in stages] == [(0, 4), (4, 7), (7, 12)]
    assert [(s.target.shape, s.target.lam) for s in stages] == [((4, 4), 8.0), ((4, 4), 7.0), ((4, 6), 7.0)]
    assert stages[2].target is TARGET
    assert [s.settings.lr for s in stages] == [2e-3, 1e-3, 2e-3]
    assert [s.settings.batch_at(1) for s in stages] == [16, 8, 16] and stages[1].settings.batch_at(2) == 24
    assert stages[1].settings.lr_at(0) == pytest.approx(5e-4)  # its own warm-up
    (alone,) = plan(SETTINGS.model_copy(update={"stage": ()}), TARGET)
    assert (alone.start, alone.end, alone.count, alone.target) == (0, 5, 1, TARGET)


def test_steps_of_every_stage_are_enough():
    own = {"batch": 16, "stage": tuple({**table, "steps": k} for k, table in zip((4, 3, 6), LADDER))}
    found = TrainSettings(**own)
    assert [(s.start, s.end) for s in plan(found, TARGET)] == [(0, 4), (4, 7), (7, 13)]
    assert TrainSettings(**found.model_dump()) == found == TrainSettings(steps=6, **own)
    with pytest.raises(InputError, match=r"train\.stage 3: 'steps' is missing, here and in \[train\]"):
        TrainSettings(stage=LADDER)
    with pytest.raises(InputError, match=r"steps: missing; it has no default"):
        TrainSettings(batch=16)
    with pytest.raises(InputError, match=r"stage 1: .*steps"):
        TrainSettings(stage=({"steps": 0}, {"steps": 1}))


TEXT = """
name = "ladder"
seed = 3
[target]
kind = "phi4"
shape = [4, 6]
m2 = -4.0
lam = 7.0
[flow]
kind = "split"
layers = 2
sines = 2
[train]
steps = 5
evaluate_draws = 1024
[[train.stage]]
steps = 4
target = { shape = [4, 4], lam = 8.0 }
[[train.stage]]
lr = 1e-3
"""


def deck(old="", new=""):
    assert old in TEXT
    return TEXT.replace(old, new) if old else TEXT


@pytest.fixture
def write(tmp_path):
    def write(text):
        (tmp_path / "deck.toml").write_text(text)
        return tmp_path / "deck.toml"

    return write


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("lr = 1e-3", "lrr = 1e-3", r"train\.stage 2: .*unknown key; did you mean 'lr'"),
        ("lr = 1e-3", "lr = -1.0", r"train\.stage 2: .*lr.*found -1\.0"),
        ("lr = 1e-3", "precision = 'float64'", r"train\.stage 2: 'precision' is the same for all stages"),
        (
            "lr = 1e-3",
            "target = { lam = 6.0 }",
            r"stage 2 is the last, and not on the deck's target: lam: 7\.0, now 6\.0",
        ),
        ("lr = 1e-3", "stage = []", r"train\.stage 2: 'stage' is the same"),
        ("lr = 1e-3", "objective = 'forward'", r"train\.stage 2: .*say where they are"),
        ("lam = 8.0 }", "lamb = 8.0 }", r"train\.stage 1: target: .*did you mean 'lam'"),
        ("lam = 8.0 }", "lam = -8.0 }", r"train\.stage 1: target: .*expected lam > 0"),
        ("{ shape = [4, 4], lam = 8.0 }", "'phi4'", r"train\.stage 1: target = 'phi4'; expected a table"),
        ("steps = 4\n", "steps = 0\n", r"train\.stage 1: .*steps"),
    ],
)
def test_bad_plans_name_stage_and_key(write, old, new, message):
    with pytest.raises(InputError, match=message):
        Deck.read(write(deck(old, new)))


def test_a_resolved_deck_reads_back(write):
    found = Deck.read(write(deck()))
    assert Deck.read(write(found.toml())) == found and found.train.stage[0]["target"]["lam"] == 8.0


def test_steps_are_counted_and_noise_keyed_through_the_plan(monkeypatch):
    keys, records = [], []
    real = loop.noise
    monkeypatch.setattr(
        loop, "noise", lambda flow, seed, step, *rest: keys.append(step) or real(flow, seed, step, *rest)
    )
    _, summary = walk(report=records.append)
    assert keys == list(range(12))  # no step twice, so that no two stages share noise
    assert [(r["stage"], r["step"]) for r in records] == [(1, 3), (1, 4), (2, 7), (3, 11), (3, 12)]
    assert summary.ess == records[-1]["ess"]


def test_one_stage_is_a_training_without_stages():
    settings = SETTINGS.model_copy(update={"stage": ()})
    one, two = (walk(settings.model_copy(update={"stage": stage}))[0] for stage in ((), ({},)))
    assert same(one, two) and not same(one, walk()[0])


def test_weights_travel_from_stage_to_stage():
    """At a rate of almost zero the flow after the plan is the first one, adopted; from scratch it would not be."""
    start = scramble(SPEC.build(Phi4(shape=(4, 4), m2=0, lam=1).lattice, 1), 61, scale=0.05)
    tiny = SETTINGS.model_copy(
        update={"lr": 1e-12, "precision": "float64", "stage": ({"target": {"shape": (4, 4)}}, {})}
    )
    found = build(TARGET)
    train(found, TARGET, tiny, seed=3, build=lambda target: start)
    wanted, fresh = build(TARGET).double(), build(TARGET).double()
    wanted.adopt(start)
    pairs = list(zip(found.parameters(), wanted.parameters(), fresh.parameters()))
    assert all(torch.allclose(a, b, atol=1e-9) for a, b, _ in pairs)
    assert not any(torch.allclose(a, c, atol=1e-3) for a, _, c in pairs)


def timeless(record):
    return {key: value for key, value in record.items() if key != "seconds"}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    records, folder = [], tmp_path_factory.mktemp("whole")
    flow, summary = walk(weights=folder / "weights", report=records.append)
    return flow, summary, records, folder / "weights"


def finished(weights, whole):
    """Resume in `weights`; the end must be that of the plan in one go."""
    flow, summary, records, folder = whole
    late = []
    found, again = walk(weights=weights, resume=True, report=late.append)
    assert same(found, flow) and again == summary
    assert late and [timeless(r) for r in late] == [timeless(r) for r in records[-len(late) :]]
    for name in ("flow.safetensors", "optimizer.safetensors"):
        assert (weights / "step_00000012" / name).read_bytes() == (
            folder / "step_00000012" / name
        ).read_bytes()


@pytest.mark.parametrize("after", [1, 4, 5, 6, 7, 10, 11])
def test_killed_anywhere_ends_in_the_same_bytes(tmp_path, whole, after):
    def kill(done):
        if done == after:
            raise Killed

    with pytest.raises(Killed):
        walk(weights=tmp_path, tick=kill)
    finished(tmp_path, whole)


@pytest.mark.parametrize("after", [0, 3, 4, 5, 7, 9])
def test_stopped_within_and_between_stages(tmp_path, whole, after):
    polls = iter(range(100))
    with pytest.raises(Stopped, match=f"{after} of 12 training steps are done"):
        walk(weights=tmp_path, stop=lambda: "soon" if next(polls) == after else None)
    if after:
        stage = json.loads((ckpt.latest(tmp_path) / "state.json").read_text())["stage"]
        assert stage["number"] == 1 + sum(after > end for end in ENDS)
    finished(tmp_path, whole)


def test_a_finished_plan_has_nothing_to_do(whole):
    flow, summary = walk(weights=whole[3], resume=True)
    assert summary is None and same(flow, whole[0])


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_walk_the_plan_alike(size):
    settings = SETTINGS.model_copy(update={"precision": "float64"})
    alone = walk(settings)[0]
    found = on_ranks(size, lambda group: walk(settings, group=group)[0])
    assert all(same(found[0], flow) for flow in found)
    for a, b in zip(found[0].parameters(), alone.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


def test_another_lattice_needs_a_builder():
    with pytest.raises(InputError, match=r"stage 1 of 3 \(phi4, .*build="):
        train(build(TARGET), TARGET, SETTINGS, seed=3)


def test_an_unfinished_plan_is_not_sampled(write, tmp_path):
    path, folder = write(deck()), tmp_path / "run"
    run = train_run(path, folder=folder)
    assert [(r["stage"], r["step"]) for r in log.read(run.log)] == [(1, 4), (2, 9)]
    sample_run(folder, sampler="flow", draws=100, overrides=["sampler.flow.block=128"])
    print_info(run)
    verify_run(folder)

    unfinished = Run.create(run.deck, tmp_path / "unfinished")
    unfinished.weights.mkdir()
    (run.weights / "step_00000004").rename(ckpt.place(unfinished.weights, 4))
    with pytest.raises(InputError, match=r"stage 1 of 2 \(phi4, shape \[4, 4\].*not at its last stage"):
        sample_run(unfinished.path, sampler="flow", draws=100)
    print_info(unfinished)
    train_run(unfinished.path, resume=True)
    assert ckpt.load_flow(unfinished.weights, run.deck)[1] == ckpt.load_flow(run.weights, run.deck)[1]


def test_a_plan_that_cannot_travel_leaves_nothing_behind(write, tmp_path):
    path = write(deck("shape = [4, 4], lam", "shape = [4, 4, 2], lam"))
    with pytest.raises(InputError):
        train_run(path, folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_that_failed_before_its_first_checkpoint_may_have_another_deck(write, tmp_path):
    run = Run.create(Deck.read(write(deck("steps = 4", "steps = 5"))), tmp_path / "run")
    assert [path.name for path in run.path.iterdir()] == ["deck.toml"]
    train_run(write(deck()), folder=run.path)
    assert Run.open(run.path).deck == Deck.read(write(deck()))
    with pytest.raises(InputError, match="nothing was changed"):  # now it holds weights
        train_run(write(deck("steps = 4", "steps = 5")), folder=run.path)


def test_an_older_checkpoint_without_the_new_keys_goes_on(tmp_path):
    """state.json of a version that knew no stages."""
    plain = SETTINGS.model_copy(update={"stage": ()})
    polls = iter(range(100))
    with pytest.raises(Stopped):
        walk(plain, weights=tmp_path, stop=lambda: "soon" if next(polls) == 3 else None)
    path = ckpt.latest(tmp_path) / "state.json"
    state = json.loads(path.read_text())
    assert "stage" not in state and "data" not in state
    for key in ("stage", "objective", "alpha", "data", "thin", "augment"):
        del state["settings"][key]
    path.write_text(json.dumps(state))
    assert same(walk(plain, weights=tmp_path, resume=True)[0], walk(plain)[0])
