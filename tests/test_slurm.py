"""The batch scripts of docs/slurm.md: bash reads them, every command and option exists, and 75 is what requeues."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import typer

from latticeflow.cli import app

SCRIPTS = re.findall(r"```bash\n(.*?)```", (Path(__file__).parents[1] / "docs/slurm.md").read_text(), re.S)


def commands(script: str) -> list[list[str]]:
    """What follows `latticeflow` on each line."""
    lines = [shlex.split(line) for line in script.splitlines() if not line.startswith("#")]
    return [words[words.index("latticeflow") + 1 :] for words in lines if "latticeflow" in words]


def test_there_are_scripts():
    assert len(SCRIPTS) == 2 and all(commands(script) for script in SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS, ids=["cpu", "gpu"])
def test_commands_and_options_exist(script):
    known = {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in typer.main.get_command(app).commands.items()
    }
    for name, *arguments in commands(script):
        assert name in known
        assert {word for word in arguments if word.startswith("--")} <= known[name]


@pytest.mark.parametrize("script", SCRIPTS, ids=["cpu", "gpu"])
@pytest.mark.parametrize(("status", "requeued"), [(0, False), (1, False), (2, False), (75, True)])
def test_75_requeues(tmp_path, script, status, requeued):
    """With stand-ins: srun fails from its second call on, scontrol and latticeflow note how they were called."""
    (tmp_path / "script").write_text(script)
    for name, body in {
        "srun": f'echo "$@" >> calls; if [ $(wc -l < calls) -ge 2 ]; then exit {status}; fi',
        "scontrol": 'echo "$@" > requeued',
        "latticeflow": 'echo "$@" > measured',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "17"}
    job = subprocess.run(["bash", "script"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert job.returncode == status and not job.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == (len([c for c in commands(script) if c[0] != "measure"]) if status == 0 else 2)
    assert (tmp_path / "requeued").exists() == requeued
    if requeued:
        assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    assert (tmp_path / "measured").exists() == (status == 0 and "measure" in script)
