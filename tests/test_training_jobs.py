"""Training as real jobs: mpirun and torchrun, stopped, killed, resumed on another number of ranks; devices of a group."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from jobs import kill_9, processes_under

from latticeflow.errors import InputError
from latticeflow.production import group as group_module
from latticeflow.production.device import bind_device
from latticeflow.production.group import TorchRanks, process_group, training_ranks
from latticeflow.production.ranks import Ranks
from latticeflow.production.train import _places, train_run
from latticeflow.run import Run
from latticeflow.training import TrainSettings, log
from latticeflow.training import checkpoint as ckpt
from latticeflow.training.parallel import ALONE

STEPS = 150
DECK = f"""
name = "tiny"
seed = 7
[target]
kind = "phi4"
shape = [4, 4]
m2 = -4.0
lam = 8.0
[flow]
kind = "split"
layers = 2
sines = 2
[train]
steps = {STEPS}
warmup = 5
batch = 67
evaluate_every = 10
evaluate_draws = 2048
checkpoint_every = 10
precision = "float64"
"""
TRAIN = ("-m", "latticeflow", "train")


@pytest.fixture(scope="module")
def deck(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks") / "deck.toml"
    path.write_text(DECK)
    return path


@pytest.fixture(scope="module")
def alone(deck):
    return train_run(deck, folder=deck.parent / "alone").path


@pytest.fixture(scope="module")
def together(deck, mpirun):
    """The run of two ranks."""
    job = mpirun(2, *TRAIN, "deck.toml", "--run", "together", cwd=deck.parent)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("on 2 ranks, cpu") == 1
    return deck.parent / "together"


def result(run: Path) -> list[np.ndarray]:
    flow, _ = ckpt.load_flow(run / "weights", Run.open(run).deck)
    losses = [record["loss"] for record in log.read(run / "train.jsonl")]
    return [*(p.detach().numpy() for p in flow.parameters()), np.array(losses)]


def same_to_rounding(one: Path, two: Path) -> None:
    for a, b in zip(result(one), result(two), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-10)


def rank_in_training(job: subprocess.Popen, run: Path) -> int:
    """Process id of the last rank of `job`, once the first evaluation is in the log."""
    deadline = time.monotonic() + 60
    while not (run / "train.jsonl").exists():
        assert time.monotonic() < deadline and job.poll() is None
        time.sleep(0.01)
    return [pid for pid in processes_under(job.pid) if "deck.toml" in command(pid) and pid != job.pid][-1]


def command(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
    except OSError:
        return ""
    return " ".join(words) if "python" in words[0] else ""


@pytest.mark.mpi
def test_mpirun_gives_the_training_of_one_rank(alone, together):
    same_to_rounding(alone, together)


@pytest.mark.mpi
@pytest.mark.long
def test_open_mpi_gives_the_training_of_one_rank(deck, alone, openmpi):
    job = openmpi(2, *TRAIN, "deck.toml", "--run", "openmpi", cwd=deck.parent, timeout=300)
    assert job.returncode == 0, job.stderr
    same_to_rounding(alone, deck.parent / "openmpi")


@pytest.mark.mpi
def test_a_stopped_job_goes_on_bit_for_bit(together, mpirun):
    folder = together.parent
    job = mpirun.start(2, *TRAIN, "deck.toml", "--run", "stopped", cwd=folder)
    os.kill(rank_in_training(job, folder / "stopped"), signal.SIGUSR1)
    _, err = job.communicate(timeout=60)
    assert job.returncode == 75, err
    assert err.count("latticeflow train stopped --resume") == 1 and "SIGUSR1" in err
    assert ckpt.step_of(ckpt.latest(folder / "stopped/weights")) < STEPS
    job = mpirun(2, *TRAIN, "stopped", "--resume", cwd=folder)
    assert job.returncode == 0, job.stderr
    for name in ("flow.safetensors", "optimizer.safetensors"):
        one, two = (ckpt.latest(folder / run / "weights") / name for run in ("together", "stopped"))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.mpi
def test_a_killed_rank_ends_the_job_and_another_number_of_ranks_goes_on(deck, alone, mpirun):
    folder = deck.parent
    job = mpirun.start(2, *TRAIN, "deck.toml", "--run", "killed", cwd=folder)
    os.kill(rank_in_training(job, folder / "killed"), signal.SIGKILL)
    try:
        job.communicate(timeout=30)
    except subprocess.TimeoutExpired:
        kill_9(job)
        pytest.fail("the job went on without one of its ranks")
    assert job.returncode != 0
    train_run(folder / "killed", resume=True)
    same_to_rounding(alone, folder / "killed")


def test_torchrun(deck, alone):
    environment = {key: value for key, value in os.environ.items() if "MPI" not in key and "PMI" not in key}
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "--",
        "latticeflow",
    ]
    job = subprocess.run(
        [*launch, "train", "deck.toml", "--run", "torchrun"],
        cwd=deck.parent,
        env={**environment, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("on 2 ranks, cpu") == 1
    same_to_rounding(alone, deck.parent / "torchrun")


AFTER = """
import glob, time, torch
from latticeflow.production.group import process_group
from latticeflow.production.ranks import Ranks

def threads():
    found = 0
    for path in glob.glob("/proc/self/task/*/comm"):
        try:
            found += "gloo" in open(path).read()
        except OSError:
            pass  # it has just ended
    return found

with process_group(Ranks.world(), "cpu") as group:
    x = torch.nn.Parameter(torch.ones(2))
    torch.optim.Adam([x])
    assert float(group.sum(x.detach().clone())[0]) == 2
    inside = threads()
since = time.monotonic()
while threads() and time.monotonic() - since < 5:  # the kernel takes a moment to forget a thread that was joined
    time.sleep(0.01)
print(f"{inside > 0} {threads()}\\n", end="")
"""


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads by name are in Linux's /proc")
def test_no_thread_outlives_the_group(mpirun, tmp_path):
    """One that holds a tensor while Python ends would abort the rank, now and then."""
    job = mpirun(2, "-c", AFTER, cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout == "True 0\n" * 2


# without a launcher ---------------------------------------------------------------------------------------------

TORCHRUN = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
}


def test_ranks_of_torchrun():
    ranks = training_ranks({**TORCHRUN, "SLURM_STEP_NUM_TASKS": "2"})
    assert (ranks.rank, ranks.size, ranks.local_rank, ranks.local_size) == (5, 8, 1, 4)
    assert isinstance(ranks, TorchRanks) and not ranks.root
    with pytest.raises(InputError, match="RANK"):
        training_ranks({**TORCHRUN, "RANK": "x"})


def test_a_gpu_for_each_rank_of_torchrun(monkeypatch):
    """Ranks of one agent see the same GPUs: rank i takes the i-th, before any process group is there."""
    bound = []
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda i: type("P", (), {"uuid": f"gpu-{i}"}))
    monkeypatch.setattr("torch.cuda.set_device", bound.append)
    for local in range(4):
        bind_device("cuda", training_ranks({**TORCHRUN, "LOCAL_RANK": str(local)}))
    assert bound == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]


def test_one_rank_starts_no_process_group():
    with process_group(Ranks(), "cpu") as group:
        assert group is ALONE


def test_idle_ranks_are_announced():
    settings, ranks = TrainSettings(steps=4, batch=((0.0, 2), (0.5, 64))), TorchRanks(TORCHRUN)
    assert _places(settings, ranks, "cpu") == " on 8 ranks, cpu; at batch 2 only 2 ranks have work"
    assert "only" not in _places(settings.model_copy(update={"batch": 8}), ranks, "cpu")
    assert _places(settings, Ranks(), "cpu") == ""


def test_ranks_must_train_on_one_kind_of_device():
    class Store(dict):
        set = dict.__setitem__

        def get(self, key):
            return self[key].encode()

    store, ranks = Store(), Ranks()
    group_module._require_one_kind(store, ranks, "cuda")
    ranks.rank = 1
    group_module._require_one_kind(store, ranks, "cuda")
    with pytest.raises(InputError, match=r"rank 1 on .* would train on cpu, rank 0 on cuda.*--device cpu"):
        group_module._require_one_kind(store, ranks, "cpu")
