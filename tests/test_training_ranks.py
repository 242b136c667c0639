"""Training on several ranks against one: the same to rounding, with wrong gradients that must fail the same test.

Ranks are threads here; tests/test_training_jobs.py starts mpirun and torchrun.
"""

import pytest
import torch
from tables import scramble
from thread_ranks import Thread, on_ranks

from latticeflow.errors import NumericalError, Stopped, TrainingDiverged
from latticeflow.flows import Split
from latticeflow.lattice import Lattice
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, evaluate, loop, train
from latticeflow.training import checkpoint as ckpt
from latticeflow.training.loss import log_variance
from latticeflow.training.parallel import Group, noise, sum_gradients

PHI4 = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
SPEC = Split(layers=2, sines=2, site_sines=2)
SETTINGS = TrainSettings(
    steps=12,
    batch=((0.0, 67), (0.5, 130)),
    warmup=3,
    evaluate_every=6,
    evaluate_draws=2500,
    checkpoint_every=4,
    precision="float64",
)


def new_flow():
    """Away from the identity, where gradients vanish by symmetry and Adam makes a step of their rounding."""
    return scramble(SPEC.build(Lattice((4, 4)), 1), 4, scale=0.05)


def trained(group=None, settings=SETTINGS, **options):
    """Weights and records of a training; `[weights..., losses, ESS, log Z]` in one row."""
    flow, records = new_flow(), []
    train(
        flow, PHI4, settings, seed=3, report=records.append, **options, **({"group": group} if group else {})
    )
    numbers = [record[key] for record in records for key in ("loss", "grad_norm", "ess", "log_z")]
    return torch.cat([*(p.detach().flatten().double() for p in flow.parameters()), torch.tensor(numbers)])


def agree(found, wanted, precision) -> bool:
    rtol, atol = (1e-9, 1e-12) if precision == "float64" else (2e-4, 2e-5)
    return all(torch.allclose(row, wanted, rtol=rtol, atol=atol) for row in found)


def with_precision(precision):
    return SETTINGS.model_copy(update={"precision": precision})


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_change_rounding_only(size, precision):
    settings = with_precision(precision)
    found = on_ranks(size, lambda group: trained(group, settings))
    assert all(torch.equal(row, found[0]) for row in found)  # among themselves: bit for bit
    assert agree(found, trained(settings=settings), precision)


def keyed_by_rank(monkeypatch):
    monkeypatch.setattr(
        loop, "noise", lambda flow, seed, step, batch, part: noise(flow, seed + part.start, step, batch, part)
    )


def mean_of_means(monkeypatch):
    """Shares of 33 and 34 weighed alike, as DistributedDataParallel does."""

    def wrong(parameters, numbers, group):
        own = list(parameters)
        batch = 67 if group.size > 1 and loop.noise.batch == 67 else 130
        for p in own:
            if group.size > 1:
                p.grad *= batch / group.size / len(group.share(batch))
        return sum_gradients(own, numbers, group)

    def remembered(flow, seed, step, batch, part):
        remembered.batch = batch
        return noise(flow, seed, step, batch, part)

    monkeypatch.setattr(loop, "noise", remembered)
    monkeypatch.setattr(loop, "sum_gradients", wrong)


@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("fault", [keyed_by_rank, mean_of_means])
def test_wrong_gradients_are_found(monkeypatch, fault, precision):
    settings = with_precision(precision)
    wanted = trained(settings=settings)
    fault(monkeypatch)
    found = on_ranks(2, lambda group: trained(group, settings))
    assert torch.equal(found[0], found[1]) and not agree(found, wanted, precision)


@pytest.mark.parametrize("estimator", ["path", "log_variance"])
def test_more_ranks_than_configurations(estimator):
    settings = SETTINGS.model_copy(update={"batch": 2, "estimator": estimator})
    found = on_ranks(3, lambda group: trained(group, settings))
    assert agree(found, trained(settings=settings), "float64")


def test_log_variance_takes_the_mean_over_all_ranks(monkeypatch):
    settings = SETTINGS.model_copy(update={"estimator": "log_variance"})
    wanted = trained(settings=settings)
    assert agree(on_ranks(3, lambda group: trained(group, settings)), wanted, "float64")
    own_mean = {"log_variance": lambda *given: log_variance(*given[:4], total=lambda x: x * 3)}
    monkeypatch.setattr(loop, "ESTIMATORS", own_mean)  # each rank's own mean: must fail
    assert not agree(on_ranks(3, lambda group: trained(group, settings)), wanted, "float64")


@pytest.mark.parametrize("batch", [1, 64, 65, 300])
def test_shares_make_up_the_batch(batch):
    flow = new_flow()
    whole = noise(flow, 3, 5, batch, range(batch))
    for size in (2, 3, 7):
        shares = [Thread(rank, size, None, None).share(batch) for rank in range(size)]
        assert [i for share in shares for i in share] == list(range(batch))
        assert torch.equal(torch.cat([noise(flow, 3, 5, batch, s) for s in shares if s]), whole)
    assert len(torch.unique(whole[:, 0, 0])) == batch  # no piece twice
    assert not torch.equal(noise(flow, 3, 6, batch, range(batch)), whole)


def test_evaluation_is_the_same_on_any_number_of_ranks():
    flow = scramble(new_flow(), 5, scale=0.05)
    alone = evaluate(flow, PHI4, 2500, seed=7)
    for size in (2, 4):
        found = on_ranks(size, lambda group: evaluate(flow, PHI4, 2500, seed=7, group=group))
        assert found == [alone] * size


def test_weights_are_those_of_rank_0_from_the_start():
    def work(group):
        flow = scramble(new_flow(), group.rank, scale=0.05)
        train(flow, PHI4, SETTINGS, seed=3, group=group)
        return torch.cat([p.detach().flatten() for p in flow.parameters()])

    def alone(group):
        return work(Group())

    found = on_ranks(2, work)
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], on_ranks(1, alone)[0], rtol=1e-9)


def test_weights_that_come_apart_are_found():
    def work(group):
        flow = new_flow()

        def disturb(done):
            if group.rank == 1 and done == 2:
                with torch.no_grad():
                    next(flow.parameters()).view(-1)[0] += 1e-7

        train(flow, PHI4, SETTINGS, seed=3, group=group, tick=disturb)

    for error in on_ranks(3, work):
        assert isinstance(error, NumericalError)
        assert "after step 6 the weights on rank(s) 1 differ from those on rank 0" in str(error)


def test_a_divergence_on_one_rank_is_one_on_all():
    def work(group):
        class NanFromStep5:
            calls = 0

            def __getattr__(self, name):
                return getattr(PHI4, name)

            def force(self, x):
                self.calls += group.rank
                return PHI4.force(x) * (float("nan") if self.calls > 5 else 1)

        train(new_flow(), NanFromStep5(), SETTINGS, seed=3, group=group)

    errors = on_ranks(2, work)
    assert all(isinstance(error, TrainingDiverged) for error in errors)
    assert str(errors[0]) == str(errors[1]) and "at step 5:" in str(errors[0])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("after", [3, 4, 6])
def test_a_stop_on_one_rank_stops_all_and_costs_nothing(tmp_path, size, after):
    """Between checkpoints, at one, after an evaluation; then the files are those of a training in one go."""

    def asked(group, polls):
        return "signal SIGUSR1" if group.rank == size - 1 and polls > after else None

    def stopped(group):
        polls = iter(range(1, 100))
        trained(group, weights=tmp_path / "halves", stop=lambda: asked(group, next(polls)))

    found = on_ranks(size, stopped)
    for error in found:
        assert isinstance(error, Stopped) and error.together
        assert ("SIGUSR1; " in str(error)) == (error is found[-1])
        assert f"{after} of 12 training steps are done in {tmp_path}/halves/step_{after:08d}" in str(error)
    on_ranks(size, lambda group: trained(group, weights=tmp_path / "halves", resume=True))
    on_ranks(size, lambda group: trained(group, weights=tmp_path / "whole"))
    for name in ("flow.safetensors", "optimizer.safetensors"):
        one, two = (tmp_path / run / "step_00000012" / name for run in ("whole", "halves"))
        assert one.read_bytes() == two.read_bytes()
    assert [p.name for p in ckpt.checkpoints(tmp_path / "whole")] == [f"step_{k:08d}" for k in (4, 8, 12)]


def test_a_stop_before_the_first_step_leaves_no_checkpoint(tmp_path):
    with pytest.raises(Stopped, match=r"soon; 0 of 12 training steps are done$"):
        train(new_flow(), PHI4, SETTINGS, seed=3, weights=tmp_path, stop=lambda: "soon")
    assert ckpt.checkpoints(tmp_path) == []
