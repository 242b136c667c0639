"""Processes as decks and users give them: tables, what cannot be, and one of a script's own."""

import math
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from test_processes import ALL

from latticeflow.collider import MatrixElement, kinematics, process, processes
from latticeflow.collider.kinematics import HBARC2
from latticeflow.errors import InputError
from latticeflow.targets import targets

# what decks say, and what cannot be


@pytest.mark.parametrize("table, energy", ALL, ids=lambda one: one["kind"] if isinstance(one, dict) else "")
def test_tables_are_read_and_written(table, energy):
    whole = {"kind": "matrix_element", "process": table, "energy": energy * 100, "phase_space": "rambo"}
    target = targets.parse({**whole, "cuts": {"energy_min": 1.0, "particles": [0, 1]}})
    written = targets.table(target)
    assert targets.parse(written) == target and targets.table(targets.parse(written)) == written
    assert written["process"].items() >= table.items() and written["cuts"] == {
        "energy_min": 1.0,
        "particles": [0, 1],
    }


@pytest.mark.parametrize(
    "table, energy, message",
    [
        (
            {"kind": "muon_decay", "fermi": 1e-5, "electron_mass": 0.2},
            0.1,
            "energy = 0.1 GeV; muon_decay needs more than 0.2",
        ),
        (
            {"kind": "muon_decay", "fermi": 1e-5, "electron_mass": -0.2},
            0.1,
            "electron_mass.*greater than or equal to 0",
        ),
        (
            {"kind": "drell_yan", "mass_min": 50, "mass_max": 60},
            40,
            "masses of the pair of partons from 50.0 to 60.0 GeV",
        ),
        ({"kind": "drell_yan", "mass_min": 50, "mass_max": 40}, 90, "0 < lower bound < upper bound"),
        ({"kind": "ee_ff", "fermion": "e", "z": True}, 90, "fermion: Input should be 'mu'"),
        ({"kind": "ee_ff", "fermion": "mu"}, 90, "z: missing; it has no default"),
        ({"kind": "gg_gg"}, -90, "energy: Input should be greater than 0"),
        ({"kind": "gg_gg", "alphas": 0.1}, 90, "did you mean 'alpha_s'"),
        ({"kind": "gg_g"}, 90, "unknown process 'gg_g'; did you mean 'gg_gg'"),
    ],
)
def test_what_cannot_be(table, energy, message):
    with pytest.raises(InputError, match=message):
        MatrixElement(process=table, energy=energy, phase_space="rambo")


def test_processes_that_cannot_be():
    with pytest.raises(InputError, match="3 particles to 2; expected 1 or 2"):
        process("no", incoming=(1, 2, 3), outgoing=(1, 2))
    with pytest.raises(InputError, match="2 particles to 1"):
        process("no", incoming=(1, 2), outgoing=(1,))
    with pytest.raises(InputError, match=r"masses \(1.0, -1.0\); expected 2 numbers, none negative"):
        process("no", incoming=(1, 2), outgoing=(3, 4), masses=(1.0, -1.0))
    with pytest.raises(InputError, match="registered twice"):
        process("gg_gg", incoming=(1, 2), outgoing=(3, 4))(lambda p: p[:, 0, 0])
    assert "no" not in processes.classes


def test_a_process_with_masses():
    """`|M|^2 = 1` gives the volume of two-body phase space, `lambda^(1/2) / (8 pi s)`, over the flux."""
    try:
        process("massive", incoming=(11, -11), outgoing=(1, 2), masses=(3.0, 4.0))(
            lambda p: torch.ones_like(p[:, 0, 0])
        )
        target = MatrixElement(process="massive", energy=10.0, phase_space="rambo")
        volume = math.sqrt((100 - 49) * (100 - 1)) / (8 * math.pi * 100)
        found = target.log_prob(torch.tensor([[0.3, 0.6]], dtype=torch.float64)).exp()
        assert float(found) == pytest.approx(HBARC2 / 200 * volume, rel=1e-12)
        assert kinematics.mass(target.momenta(torch.tensor([[0.3, 0.6]])))[0].tolist() == pytest.approx(
            [3, 4]
        )
    finally:
        processes.classes.pop("massive", None)


# a user's own


def test_the_script_of_the_docstring_runs(tmp_path):
    """`sigma = pi alpha^2 / (3 s)`, a quarter of the muons', drawn by commands that the script starts."""
    lines = textwrap.dedent((process.__doc__ or "").partition("\n")[2]).splitlines()

    def between(first: str, last: str) -> str:
        start = next(i for i, line in enumerate(lines) if first in line)
        end = next(i for i, line in enumerate(lines) if i >= start and last in line)
        return textwrap.dedent("\n".join(lines[start : end + 1]))

    (tmp_path / "script.py").write_text(between("from latticeflow.cli import main", "    main()"))
    deck = between("[target]", "phase_space =")
    (tmp_path / "deck.toml").write_text(f'name = "own"\nseed = 1\n\n{deck}\n\n[sampler.flat]\n')

    def command(*words: str, script: bool = True) -> subprocess.CompletedProcess:
        start = [str(tmp_path / "script.py")] if script else ["-m", "latticeflow"]
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, *start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    done = command("sample", "deck.toml", "--sampler", "flat", "--draws", "16384", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    value, digits = re.search(r"sigma = ([0-9.]+)\(([0-9]+)\) pb", done.stdout).groups()
    error = int(digits) * 10.0 ** -len(value.partition(".")[2])
    assert abs(float(value) - 10.442453 / 4) < 3 * error and error < 0.02
    done = command("info", "runs/own")
    assert done.returncode == 0 and "ee_scalars" in done.stdout
    done = command("info", "runs/own", script=False)
    assert done.returncode != 0
    assert "unknown process 'ee_scalars'" in done.stderr and "its script starts" in done.stderr
