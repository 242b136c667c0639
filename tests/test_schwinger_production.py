"""The Schwinger model by the commands: flow, HMC, pseudofermions drawn, measured, compared; what does not fit is refused."""

import numpy as np
import pytest
import torch
from test_schwinger import of

from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.production.sample import sample_run
from latticeflow.production.train import train_run

torch.set_num_threads(1)
CHAINS = {"chains": 32, "block": 640, "streams": 1, "thermalisation": 100, "step": 0.45, "length": 0.9}
DECK = Deck.parse(
    {
        "name": "schwinger",
        "seed": 5,
        "target": {"kind": "schwinger", "shape": [4, 4], "beta": 2.0, "kappa": 0.276},
        "flow": {"kind": "loops", "base_beta": 2.4, "suppression": 1.0, "sides": 1, "steps": 2, "modes": 2},
        "train": {
            "steps": 5,
            "optimizer": "soap",
            "lr": 3e-3,
            "warmup": 2,
            "batch": 32,
            "density_tolerance": 0.02,
            "evaluate_draws": 1024,
        },
        "sampler": {
            "hmc": CHAINS,
            "pseudofermions": {**CHAINS, "tolerance": 1e-6},
            "flow": {"block": 2048},
        },
    }
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("schwinger")
    path = folder / "deck.toml"
    path.write_text(DECK.toml())
    run = train_run(path, folder=folder / "run", device="cpu").path
    for sampler, draws in (("flow", 4096), ("hmc", 1280), ("pseudofermions", 1280)):
        sample_run(run, sampler=sampler, draws=draws, device="cpu")
    return run


def test_every_command(run, capsys):
    rows = {sampler: measure_run(run, sampler) for sampler in ("flow", "hmc", "pseudofermions")}
    printed = capsys.readouterr().out
    assert printed.count("schwinger_dyson identity") == 3 and "DOES NOT HOLD" not in printed.upper()
    for name in ("plaquette", "condensate", "charge2", "pion_mass"):
        one = rows["hmc"][name]
        for other in (rows["flow"][name], rows["pseudofermions"][name]):
            assert abs(one.value - other.value) < 4 * np.hypot(one.error, other.error), name
    verify_run(run)
    compare_run(run)
    assert (run / "compare/compare.html").stat().st_size > 1000


def test_a_target_of_other_fields_is_refused(tmp_path):
    table = DECK.table()
    table["target"] = {"kind": "phi4", "shape": [4, 4], "m2": 1.0, "lam": 1.0}
    path = tmp_path / "deck.toml"
    path.write_text(Deck.parse(table).toml())
    with pytest.raises(InputError, match="a flow of u1 in two dimensions; found phi4"):
        train_run(path, folder=tmp_path / "run", device="cpu")
    table["target"] = {"kind": "schwinger", "shape": [4, 5], "beta": 2.0, "kappa": 0.2}
    with pytest.raises(InputError, match="even sides"):
        Deck.parse(table)
    assert of((4, 4)) == DECK.target
