"""Gradient estimators, schedules, checkpoints, bit-for-bit resume, and what stops a training."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tables import rng, scramble

from latticeflow.errors import InputError, NumericalError, StoreError, TrainingDiverged
from latticeflow.flows import Affine, Flow, Spectrum, Split
from latticeflow.lattice import Lattice
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import FreeField, Phi4
from latticeflow.training import TrainSettings, evaluate, log, train
from latticeflow.training import checkpoint as ckpt
from latticeflow.training.loss import ESTIMATORS, path, reparametrised

PHI4 = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
SPEC = Split(layers=2, sines=2, site_sines=2)
SETTINGS = TrainSettings(
    steps=12,
    batch=((0.0, 16), (0.5, 32)),
    warmup=3,
    evaluate_every=6,
    evaluate_draws=1024,
    checkpoint_every=4,
)


def gradients(estimator, flow, target, batches: int, key: int) -> torch.Tensor:
    """Gradient of each of `batches` batches of 64, `[batches, parameters]`."""
    rows = []
    for b in range(batches):
        flow.zero_grad()
        surrogate, _ = estimator(flow, target, flow.noise(64, rng(key, b)))
        surrogate.backward()
        rows.append(torch.cat([p.grad.flatten() for p in flow.parameters()]))
    return torch.stack(rows)


@pytest.mark.parametrize("spec", [SPEC, Affine(layers=2, hidden=(2,))], ids=["split", "affine"])
def test_both_estimators_have_the_same_mean(spec):
    """5 sigma for each of the parameters (independent noise), away from the optimum; half the path gradient must fail."""
    flow = scramble(spec.build(Lattice((4, 4)), 1), 41, scale=0.05)
    a, b = gradients(reparametrised, flow, PHI4, 150, 42), gradients(path, flow, PHI4, 150, 43)
    error = torch.sqrt(a.var(0) / len(a) + b.var(0) / len(b))
    used = error > 0  # the split flow's G within a sublattice is never used
    assert used.sum() > 0.8 * len(used) and not a[:, ~used].any() and not b[:, ~used].any()
    assert float(((a.mean(0) - b.mean(0)).abs() / error)[used].max()) < 5
    assert float(((a.mean(0) - 0.5 * b.mean(0)).abs() / error)[used].max()) > 10


@pytest.mark.parametrize("optimizer", ["adam", "soap"])
def test_weight_decay_shrinks_before_the_step(optimizer):
    """After one step the parameters differ by `lr d` times what they were, and by nothing else."""
    start = [p.detach().clone() for p in scramble(SPEC.build(Lattice((4, 4)), 1), 44).parameters()]
    found = []
    for decay in (0.0, 3.0):
        flow = scramble(SPEC.build(Lattice((4, 4)), 1), 44)
        settings = TrainSettings(steps=1, optimizer=optimizer, lr=0.01, warmup=0, evaluate_draws=1024,
                                 precision="float64", weight_decay=decay)  # fmt: skip
        train(flow.double(), PHI4, settings, seed=1)
        found.append([p.detach() for p in flow.parameters()])
    for before, plain, shrunk in zip(start, *found):
        torch.testing.assert_close(plain - shrunk, 0.03 * before.double(), rtol=1e-10, atol=1e-12)


def test_path_gradient_vanishes_at_the_optimum_draw_by_draw():
    free = FreeField(shape=(4, 4), m2=0.8)
    flow = Flow(Spectrum(free.lattice), []).double()
    flow.base.set_free_field(0.8)
    exact, noisy = gradients(path, flow, free, 3, 44), gradients(reparametrised, flow, free, 3, 44)
    assert float(exact.abs().max()) < 1e-12
    assert float(noisy.abs().max()) > 1e-2  # negative control: the other estimator only averages to zero


def test_loss_value_is_that_of_the_formula():
    flow = SPEC.build(Lattice((4, 4)), 1)
    noise = flow.noise(32, rng(45))
    x, log_q = flow.push(noise)
    expected = (log_q + PHI4.action(x)).mean().item()
    for estimator in ESTIMATORS.values():
        assert float(estimator(flow, PHI4, noise)[1]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_training_a_free_field_finds_its_spectrum(estimator):
    """Known answer: log Z of the free field, and ESS near 1 from a base that starts elsewhere."""
    free = FreeField(shape=(4, 4), m2=0.5)
    flow = Flow(Spectrum(free.lattice, 4.0), [])
    before = evaluate(flow, free, 4096, seed=46)
    settings = TrainSettings(
        steps=300, batch=64, lr=3e-2, warmup=1, estimator=estimator, evaluate_every=300, evaluate_draws=4096
    )
    after = train(flow, free, settings, seed=5)
    assert before.ess < 0.7 and after.ess > 0.99
    assert abs(after.log_z - free.log_z) < 4 * after.log_z_error
    spectrum = (2 * flow.base.log_amplitude.detach()).exp().numpy()
    np.testing.assert_allclose(spectrum, free.spectrum, rtol=0.1)


def weights_of(flow):
    return {k: v.clone() for k, v in flow.state_dict().items()}


@pytest.mark.parametrize("stop", [2, 5, 9, 11])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, stop):
    whole = SPEC.build(Lattice((4, 4)), 1)
    records, late = [], []
    summary = train(whole, PHI4, SETTINGS, seed=3, weights=tmp_path / "whole", report=records.append)

    class Killed(Exception):
        pass

    target = KillAt(PHI4, stop, Killed)
    first = SPEC.build(Lattice((4, 4)), 1)
    with pytest.raises(Killed):
        train(first, target, SETTINGS, seed=3, weights=tmp_path / "halves")
    second = SPEC.build(Lattice((4, 4)), 1)
    resumed = train(
        second, PHI4, SETTINGS, seed=3, weights=tmp_path / "halves", resume=True, report=late.append
    )
    assert [without_seconds(r) for r in late] == [without_seconds(r) for r in records if r["step"] > stop]
    a, b = weights_of(whole), weights_of(second)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert resumed == summary
    for name in ("flow.safetensors", "optimizer.safetensors"):
        one, two = (tmp_path / run / "step_00000012" / name for run in ("whole", "halves"))
        assert one.read_bytes() == two.read_bytes()
    other = SPEC.build(Lattice((4, 4)), 1)
    train(other, PHI4, SETTINGS, seed=4)
    assert any(not torch.equal(a[k], v) for k, v in other.state_dict().items())


def without_seconds(record):
    return {key: value for key, value in record.items() if key != "seconds"}


class KillAt:
    """PHI4 whose force raises after the step counted from 1."""

    def __init__(self, target, step, error):
        self.target, self.left, self.error = target, step + 1, error

    def __getattr__(self, name):
        return getattr(self.target, name)

    def force(self, x):
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.target.force(x)


def test_only_the_last_checkpoints_stay_in_numeric_order(tmp_path):
    settings = SETTINGS.model_copy(update={"steps": 12, "checkpoint_every": 1, "keep": 2})
    train(SPEC.build(Lattice((4, 4)), 1), PHI4, settings, seed=3, weights=tmp_path)
    assert [p.name for p in ckpt.checkpoints(tmp_path)] == ["step_00000011", "step_00000012"]
    (tmp_path / "step_100000000").mkdir()
    assert ckpt.latest(tmp_path).name == "step_100000000"


class NanAt(KillAt):
    def force(self, x):
        self.left -= 1
        return self.target.force(x) * (float("nan") if self.left <= 0 else 1)


def test_nan_stops_and_names_the_last_good_checkpoint(tmp_path):
    flow = SPEC.build(Lattice((4, 4)), 1)
    with pytest.raises(TrainingDiverged, match=r"step 9: .*gradient norm nan.*step_00000008"):
        train(flow, NanAt(PHI4, 9, None), SETTINGS, seed=3, weights=tmp_path)
    assert ckpt.latest(tmp_path).name == "step_00000008"
    assert all(bool(torch.isfinite(p).all()) for p in flow.parameters())


EXPLODING = dict(steps=500, lr=3.0, warmup=0, clip=1e9, evaluate_draws=1024, estimator="reparametrised")


def test_exploding_loss_stops_and_no_checkpoint_holds_the_exploded_weights(tmp_path):
    flow = Affine(layers=4, hidden=(4,)).build(Lattice((4, 4)), 1)
    with pytest.raises(TrainingDiverged, match="none yet"):
        train(flow, PHI4, TrainSettings(checkpoint_every=1, **EXPLODING), seed=3, weights=tmp_path)
    assert ckpt.checkpoints(tmp_path) == []


def test_explosion_seen_first_by_an_evaluation_is_a_divergence():
    settings = TrainSettings(evaluate_every=1, **{**EXPLODING, "lr": 1e3})
    with pytest.raises(TrainingDiverged, match="evaluation failed"):
        train(SPEC.build(Lattice((4, 4)), 1), PHI4, settings, seed=3)


def test_a_second_training_does_not_overwrite_the_first(tmp_path):
    train(SPEC.build(Lattice((4, 4)), 1), PHI4, SETTINGS, seed=3, weights=tmp_path)
    with pytest.raises(InputError, match="holds checkpoints of an earlier training"):
        train(SPEC.build(Lattice((4, 4)), 1), PHI4, SETTINGS, seed=3, weights=tmp_path)
    with pytest.raises(InputError, match="seed: 3, now 4"):
        train(SPEC.build(Lattice((4, 4)), 1), PHI4, SETTINGS, seed=4, weights=tmp_path, resume=True)
    other = SETTINGS.model_copy(update={"lr": 1.0})
    with pytest.raises(InputError, match=r"train\.lr: 0\.002, now 1\.0"):
        train(SPEC.build(Lattice((4, 4)), 1), PHI4, other, seed=3, weights=tmp_path, resume=True)


def test_schedules():
    settings = TrainSettings(steps=1000, batch=((0.0, 64), (0.5, 256)), lr=1e-2, warmup=100)
    assert [settings.batch_at(s) for s in (0, 499, 500, 999)] == [64, 64, 256, 256]
    assert settings.lr_at(0) == pytest.approx(1e-4)
    assert settings.lr_at(99) == settings.lr_at(100) == pytest.approx(1e-2)
    assert settings.lr_at(550) == pytest.approx(0.5e-2)
    assert settings.lr_at(999) < 1e-7
    assert TrainSettings(steps=1000, lr=1e-2, decay="constant").lr_at(999) == 1e-2


@pytest.mark.parametrize(
    "values",
    [
        dict(steps=0),
        dict(steps=5, lr=-1.0),
        dict(steps=5, batch=0),
        dict(steps=5, batch=((0.5, 3),)),
        dict(step=5),
    ],
)
def test_bad_settings(values):
    with pytest.raises(InputError):
        TrainSettings(**values)


def test_weights_that_do_not_fit(tmp_path):
    train(SPEC.build(Lattice((4, 4)), 1), PHI4, SETTINGS, seed=3, weights=tmp_path)
    others = {
        "weights of 2 layers, expected 3": Split(layers=3, sines=2, site_sines=2),
        r"'layers\.": Split(layers=2, sines=4, site_sines=2),
    }
    for words, other in others.items():
        with pytest.raises(InputError, match=rf"(?s)do not fit the deck's flow: .*{words}"):
            ckpt.load_weights(other.build(Lattice((4, 4)), 1), ckpt.latest(tmp_path))


def test_damaged_checkpoint(tmp_path):
    flow = SPEC.build(Lattice((4, 4)), 1)
    train(flow, PHI4, SETTINGS, seed=3, weights=tmp_path)
    path_ = ckpt.latest(tmp_path)
    weights = path_ / "flow.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(StoreError, match="damaged"):
        ckpt.load_weights(flow, path_)
    for version, words in ((99, "newer version of latticeflow"), (1, "older version")):
        (path_ / "state.json").write_text(json.dumps({"format": version}))
        with pytest.raises(StoreError, match=f"format {version}, .*{words}"):
            ckpt.load_state(path_, 3, SETTINGS)
        with pytest.raises(StoreError, match=f"format {version}, .*{words}"):
            ckpt.load_weights(flow, path_)
    (path_ / "state.json").write_text("[]")
    with pytest.raises(StoreError, match=r"state\.json cannot be read"):
        ckpt.load_weights(flow, path_)


def edited(path_):
    """One weight moved by a little: a valid file of the right shapes."""
    tensors = load_file(path_ / "flow.safetensors")
    tensors[min(tensors)].view(-1)[0] += 1e-3
    save_file(tensors, path_ / "flow.safetensors")
    return "flow.safetensors"


def swapped(path_):
    """The optimiser's moments of another checkpoint of the same training."""
    shutil.copy(path_.parent / "step_00000004/optimizer.safetensors", path_)
    return "optimizer.safetensors"


@pytest.mark.parametrize("change", [edited, swapped])
def test_changed_checkpoints_are_found_and_named(tmp_path, change):
    settings = SETTINGS.model_copy(update={"steps": 9})
    train(SPEC.build(Lattice((4, 4)), 1), PHI4, settings, seed=3, weights=tmp_path)
    path_ = ckpt.latest(tmp_path)
    name = change(path_)
    with pytest.raises(StoreError, match=rf"step_00000009/{name} is damaged or was edited"):
        train(SPEC.build(Lattice((4, 4)), 1), PHI4, settings, seed=3, weights=tmp_path, resume=True)


@pytest.mark.parametrize("call", ["save_file", "os.replace", "sync_folder"])
def test_a_full_disk_leaves_the_last_checkpoint_and_nothing_half(tmp_path, monkeypatch, call):
    settings = SETTINGS.model_copy(update={"steps": 6})
    train(SPEC.build(Lattice((4, 4)), 1), PHI4, settings, seed=3, weights=tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(*_):
        raise (
            SafetensorError("I/O error: No space left")
            if call == "save_file"
            else OSError(28, "No space left")
        )

    flow = SPEC.build(Lattice((4, 4)), 1)
    with monkeypatch.context() as patch:
        patch.setattr(f"latticeflow.training.checkpoint.{call}", full)
        with pytest.raises(StoreError, match=r"step_00000007 cannot be .*No space left.*step_00000006"):
            ckpt.save_checkpoint(tmp_path, 7, flow, torch.optim.Adam(flow.parameters()), 3, settings, {})
    assert sorted(tmp_path.rglob("*")) == before


def test_no_weights_yet(tmp_path):
    with pytest.raises(InputError, match="train the flow first"):
        ckpt.latest(tmp_path)


def test_flow_and_target_of_different_shape():
    with pytest.raises(InputError, match="shapes must agree"):
        train(SPEC.build(Lattice((4, 6)), 1), PHI4, SETTINGS, seed=3)


def test_log_survives_a_torn_line_and_a_resume(tmp_path):
    path_ = tmp_path / "train.jsonl"
    log.append(path_, {"step": 1, "loss": 3.0})
    log.append(path_, {"step": 2, "loss": 2.0})
    with open(path_, "a") as handle:
        handle.write('{"step": 3, "lo')
    log.append(path_, {"step": 2, "loss": 1.5})
    assert log.read(path_) == [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 1.5}]


def test_weight_summary_known_answers():
    """Log-normal weights of variance s^2: ESS = exp(-s^2), log Z = s^2/2; -inf weighs nothing."""
    log_w = rng(47).normal(0, 0.5, size=200_000)
    s = summarise_weights(log_w)
    assert abs(s.ess - np.exp(-0.25)) < 4 * s.ess_error < 0.02
    assert abs(s.log_z - 0.125) < 4 * s.log_z_error < 0.01
    half = summarise_weights(np.array([0.0, -np.inf]))
    assert half.ess == 0.5 and half.log_z == pytest.approx(np.log(0.5)) and half.largest_share == 1.0
    shifted = summarise_weights(log_w + 5000)
    assert shifted.ess == pytest.approx(s.ess) and shifted.log_z == pytest.approx(s.log_z + 5000)
    with pytest.raises(NumericalError, match="NaN"):
        summarise_weights(np.array([0.0, np.nan]))


def test_errors_of_the_weight_summary_cover():
    """Pulls of ESS and log Z over 300 repeats have unit variance (within 5 sigma of its own error)."""
    pulls = []
    for i in range(300):
        s = summarise_weights(rng(48, i).normal(0, 0.4, size=4096))
        pulls.append([(s.ess - np.exp(-0.16)) / s.ess_error, (s.log_z - 0.08) / s.log_z_error])
    spread = np.std(pulls, axis=0)
    assert np.all(abs(spread - 1) < 5 / np.sqrt(2 * 300))


def test_evaluate_takes_its_own_streams():
    flow = SPEC.build(Lattice((4, 4)), 1)
    found = evaluate(flow, PHI4, 1500, seed=49)
    assert found == evaluate(flow, PHI4, 1500, seed=49) and found.n == 1500
    assert (
        found.ess
        != evaluate(flow, PHI4, 1500, seed=50).ess
        != evaluate(flow, PHI4, 1500, seed=50, step=1).ess
    )
