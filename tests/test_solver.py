"""The density of a flow that is solved in steps: raised in training, refused in production."""

import shutil

import numpy as np
import pytest
import torch
from tables import rng, scramble

from latticeflow.analysis.forward import forward_run
from latticeflow.config import Deck
from latticeflow.errors import CoarseSolver, NumericalError
from latticeflow.flows import Continuous
from latticeflow.lattice import Lattice
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers import FlowSampler
from latticeflow.samplers.density import check_solver
from latticeflow.store import Ensemble
from latticeflow.targets import Phi4
from latticeflow.training import evaluation, train
from latticeflow.training.evaluation import density_error, refine

TARGET = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)


def coarse(steps: int = 2, scale: float = 0.06):
    return scramble(Continuous(modes=3, steps=steps).build(Lattice(TARGET.shape), 1), 1, scale=scale).float()


def test_steps_rise_until_the_density_is_good(monkeypatch):
    monkeypatch.setattr(evaluation, "CHECKED", 1024)
    flow = coarse()
    before = density_error(flow, seed=1)
    assert before > 0.01
    assert refine(flow, 0.01, seed=1) <= 0.01
    assert int(flow.layers[0].steps) > 2
    monkeypatch.setattr(evaluation, "REFINEMENTS", 2)
    with pytest.raises(NumericalError, match="no number of steps cures it"):
        refine(coarse(), 1e-12, seed=1)  # float32 rounding is more than that


def test_a_sampler_refuses_a_coarse_flow():
    flow = coarse()
    sampler = FlowSampler(TARGET, flow, batch=256)
    draws, _ = sampler.draw(None, 512, rng(2))
    with pytest.raises(NumericalError, match=r"solved in too few steps.*allowed 0\.02"):
        sampler.check_solver(draws, 512)
    flow.refine(8)
    draws, _ = sampler.draw(None, 512, rng(2))
    assert 0 < sampler.check_solver(draws, 512) <= 0.01


def test_error_is_that_of_the_density():
    """Against a flow of many more steps at the same x: at twice the resolution nearly all of the error is seen."""
    flow = coarse(steps=4).double()
    x, log_q = flow.sample(64, rng(3))
    fine = coarse(steps=24).double()
    true = (fine.log_prob(x) - log_q).abs()
    found = flow.density_error(x, log_q)
    assert check_solver(flow, x, log_q, 10.0) == float(found.max())
    torch.testing.assert_close(found, true, rtol=0.1, atol=0.1 * float(true.max()))


DECK = Deck.parse(
    {
        "name": "solver",
        "seed": 1,
        "target": {"kind": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 8.0},
        "flow": {"kind": "continuous", "sines": 2, "modes": 2, "steps": 2},
        "train": {"steps": 40, "batch": 32, "lr": 0.02, "warmup": 5, "evaluate_draws": 1024},
        "sampler": {"flow": {"block": 512}},
    }
)


def test_production_records_the_error_and_refuses_beyond_the_tolerance(tmp_path, capsys):
    run, records = Run.create(DECK, tmp_path / "good"), []
    flow = DECK.flow.build(DECK.target.lattice, 1)
    train(flow, DECK.target, DECK.train, seed=1, weights=run.weights, report=records.append)
    assert records[-1]["density_error"] <= DECK.train.density_tolerance
    assert int(flow.layers[0].steps) >= 2
    strict = shutil.copytree(run.path, tmp_path / "strict")
    sample_run(run.path, draws=1024, device="cpu")
    ensemble = Ensemble.open(run.path / "ensembles" / "flow")
    for key in ensemble.present:
        about = ensemble.attributes(*key)
        assert 0 < about["density_error"] <= about["density_tolerance"] == 0.02
    assert 0 < ensemble.density_error <= 0.02
    printed = capsys.readouterr().out
    assert f"and up to {ensemble.density_error:.2g} of the solver in steps" in printed
    assert "log Z of both is uncertain by up to" in "".join(forward_lines(run))
    with pytest.raises(CoarseSolver, match="too few steps") as refused:
        sample_run(strict, draws=1024, device="cpu", overrides=["sampler.flow.density_tolerance=1e-9"])
    assert "overflow" not in str(refused.value)
    assert not list((strict / "ensembles").rglob("*.h5"))
    sample_run(strict, draws=1024, device="cpu")  # allowed more, as the message says: the same ensemble
    one, two = (Ensemble.open(path / "ensembles" / "flow") for path in (run.path, strict))
    assert one.identity == two.identity
    np.testing.assert_array_equal(one.log_w, two.log_w)


def forward_lines(run):
    sample_run(
        run.path, sampler="hmc", draws=4096, device="cpu", overrides=["sampler.hmc.thermalisation=100"]
    )
    return forward_run(run).lines()
