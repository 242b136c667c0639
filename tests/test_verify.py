"""`verify`: a sound run passes, and every way to damage one is found and named."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.verify import verify_run
from latticeflow.config import Deck
from latticeflow.errors import InputError, LatticeflowError, StoreError
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.store import Ensemble
from latticeflow.store.block import block_path, list_blocks
from latticeflow.store.hdf5 import digest, get, names, plain
from latticeflow.training import TrainSettings, train
from latticeflow.training.checkpoint import checkpoints

DECK = {
    "name": "phi4",
    "seed": 11,
    "target": {"kind": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 8.0},
    "flow": {"kind": "split", "layers": 2, "sines": 2, "site_sines": 2},
    "sampler": {
        "flow": {"block": 96, "batch": 40},
        "hmc": {"chains": 4, "streams": 2, "block": 40, "thermalisation": 100, "step": 0.2, "length": 1.0},
    },
}


def trained(folder: Path, seed: int, precision: str = "float32") -> Run:
    run = Run.create(Deck.parse({**DECK, "seed": seed}), folder)
    target = run.deck.target
    settings = TrainSettings(
        steps=4, lr=0.02, warmup=0, evaluate_draws=1024, checkpoint_every=2, precision=precision
    )
    train(run.deck.flow.build(target.lattice, seed), target, settings, seed=seed, weights=run.weights)
    return run


def make(folder: Path, seed: int) -> Path:
    run = trained(folder, seed)
    sample_run(run, sampler="flow", draws=400)
    sample_run(run, sampler="hmc", draws=160)
    return run.path


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("verify") / "run", 11)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("other") / "run", 12)


@pytest.fixture
def run(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "run")


def problems(run: Path, capsys, **options) -> str:
    """What `verify` prints of a damaged run; fails where it finds nothing."""
    capsys.readouterr()
    with pytest.raises(LatticeflowError) as error:
        verify_run(run, **options)
    return capsys.readouterr().out + str(error.value)


def block(run: Path, sampler: str = "flow", stream: int = 2, number: int = 0) -> Path:
    return block_path(run / "ensembles" / sampler, stream, number)


def edit(path: Path, change, attributes=()) -> None:
    """What a careful forger does: change arrays, keep checksums, means and the digest right."""
    with h5py.File(path, "r+") as file:
        arrays = {name: get(file, name) for name in names(file)}
        change(arrays)
        for name, array in arrays.items():
            file[name][...] = array.reshape(file[name].shape)
        for name in ("log_prob", "log_w"):
            if name in arrays:
                file.attrs[f"mean_{name}"] = arrays[name].mean()
        file.attrs.update(attributes)
        about = {key: value for key, value in plain(file.attrs).items() if key != "digest"}
        file.attrs["digest"] = digest(arrays, about)


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 4
    path.write_bytes(data)


def flip_in(path: Path, name: str) -> None:
    """One bit of a data set's stored bytes."""
    with h5py.File(path, "r") as file:
        offset = file[name].id.get_chunk_info(0).byte_offset
    data = bytearray(path.read_bytes())
    data[offset + 37] ^= 16
    path.write_bytes(data)


def swap(one: Path, two: Path) -> None:
    a, b = one.read_bytes(), two.read_bytes()
    one.write_bytes(b)
    two.write_bytes(a)


def edit_json(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_weights(run: Path) -> None:
    path = checkpoints(run / "weights")[-1] / "flow.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] * 1.001}, path)


def edit_weights_and_hash(run: Path) -> None:
    """Also the hash beside them: only the ensemble knows which weights drew it."""
    edit_weights(run)
    last = checkpoints(run / "weights")[-1]
    from latticeflow.files import file_hash

    state = json.loads((last / "state.json").read_text())
    state["sha256"]["flow.safetensors"] = file_hash(last / "flow.safetensors")
    (last / "state.json").write_text(json.dumps(state))


def scale(name: str, factor: float, row: int = 5):
    def change(arrays):
        arrays[name][row] = arrays[name][row] * factor

    return change


def shift_weights(arrays):
    arrays["log_w"] += 0.01


def chain_edit(run: Path) -> None:
    with h5py.File(run / "ensembles/flow/chain.h5", "r+") as file:
        file["moves"][2, 3] ^= 1


def chain_cut(run: Path) -> None:
    with h5py.File(run / "ensembles/flow/chain.h5", "r+") as file:
        moves = file["moves"][:-1]
        del file["moves"]
        file.create_dataset("moves", data=moves, chunks=True)


def chain_attribute(run: Path) -> None:
    with h5py.File(run / "ensembles/flow/chain.h5", "r+") as file:
        file.attrs["acceptance"] = 0.999


def newer(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 99


def measured(run: Path, stream: int = 2) -> Path:
    """What was measured of a block, made if need be."""
    measure_run(run)
    return block_path(run / "ensembles/flow", stream, 0, part="measured")


FOREIGN = "other"  # takes the other run as well

# name of the case, what is done, what the message must name
CASES = {
    "bit flipped in the fields": (lambda run: flip_in(block(run), "x"), "s000002_b000000.h5 is damaged"),
    "bit flipped in the weights": (lambda run: flip_in(block(run), "log_w"), "s000002_b000000.h5 is damaged"),
    "bit flipped in the state": (
        lambda run: flip_in(block(run, "hmc", 1, 1), "state/x"),
        "s000001_b000001.h5",
    ),
    "bit flipped in the header": (lambda run: flip(block(run), 0.0), "s000002_b000000.h5 is damaged"),
    "truncated": (lambda run: block(run).write_bytes(block(run).read_bytes()[:-3000]), "s000002_b000000.h5"),
    "empty": (lambda run: block(run).write_bytes(b""), "s000002_b000000.h5 is damaged"),
    "random bytes": (lambda run: block(run).write_bytes(bytes(range(256)) * 40), "s000002_b000000.h5"),
    "another file": (lambda run: h5py.File(block(run), "w").close(), "s000002_b000000.h5 is not a file"),
    "swapped blocks": (lambda run: swap(block(run), block(run, stream=3)), "holds stream 3, block 0"),
    "swapped blocks of a chain": (
        lambda run: swap(block(run, "hmc", 0, 1), block(run, "hmc", 1, 1)),
        "holds stream 1, block 1",
    ),
    "copied block": (lambda run: shutil.copy(block(run), block(run, stream=3)), "renamed or copied"),
    "copied block, relabelled": (
        lambda run: (
            shutil.copy(block(run), block(run, stream=3)),
            edit(block(run, stream=3), dict, {"stream": 3}),
        ),
        "holds the same draws as",
    ),
    "extra block under a strange name": (
        lambda run: shutil.copy(block(run), block(run).with_name("copy of block.h5")),
        "copy of block.h5 is no block",
    ),
    "block of another run": (FOREIGN, "belongs to another ensemble"),
    "block lost": (lambda run: block(run).unlink(), "s000002_b000000.h5 is missing"),
    "block of a chain lost": (lambda run: block(run, "hmc", 1, 0).unlink(), "s000001_b000000.h5 is missing"),
    "field edited": (lambda run: edit(block(run), scale("x", 1.01)), "S of 1 of 96 draws"),
    "fields of a chain edited": (
        lambda run: edit(block(run, "hmc", 1, 0), scale("x", 1.01)),
        "S of 1 of 40 draws",
    ),
    "S edited": (lambda run: edit(block(run), scale("log_prob", 1.0001)), "S of 1 of 96 draws"),
    "log-weights edited": (lambda run: edit(block(run), shift_weights), "log w of 96 of 96 draws"),
    "one log-weight edited": (lambda run: edit(block(run), scale("log_w", 1.001)), "log w of 1 of 96 draws"),
    "state edited": (lambda run: edit(block(run, "hmc", 1, 1), scale("state/x", 1.5, 0)), "state 'x'"),
    "info edited, digest left": (
        lambda run: h5py.File(block(run, "hmc", 1, 0), "r+")["info/acceptance"].__setitem__(0, 0.5),
        "was edited",
    ),
    "attribute edited": (lambda run: h5py.File(block(run), "r+").attrs.update(seconds=0.001), "was edited"),
    "bit flipped in what was measured": (
        lambda run: flip_in(measured(run), "chi2"),
        "measured/s000000_b000000/s000002_b000000.h5 is damaged",
    ),
    "measurements swapped": (
        lambda run: swap(measured(run), measured(run, 3)),
        "measured/s000000_b000000/s000002_b000000.h5 holds what was measured of another block",
    ),
    "measurements edited": (lambda run: edit(measured(run), scale("chi2", 1.001)), "observable 'chi2'"),
    "weights edited": (edit_weights, "flow.safetensors is damaged or was edited"),
    "weights edited with their hash": (edit_weights_and_hash, "no sound checkpoint"),
    "weights removed": (lambda run: shutil.rmtree(run / "weights"), "no sound checkpoint"),
    "optimiser truncated": (
        lambda run: flip(checkpoints(run / "weights")[0] / "optimizer.safetensors", 0.9),
        "optimizer.safetensors is damaged",
    ),
    "chain index edited": (
        chain_edit,
        "the chain in block s000002_b000000.h5 is not that of its log-weights",
    ),
    "chain index cut": (chain_cut, "chain.h5: moves (4, 12), expected (5, 12)"),
    "acceptance edited": (chain_attribute, "chain.h5: acceptance = 0.999"),
    "chain truncated": (
        lambda run: (run / "ensembles/flow/chain.h5").write_bytes(
            (run / "ensembles/flow/chain.h5").read_bytes()[:900]
        ),
        "chain.h5 is damaged",
    ),
    "ensemble's seed edited": (
        lambda run: edit_json(run / "ensembles/flow/ensemble.json", seed=12),
        "was edited",
    ),
    "ensemble's origin edited": (
        lambda run: edit_json(run / "ensembles/flow/ensemble.json", origin={"host": "elsewhere"}),
        "was edited",
    ),
    "ensemble.json truncated": (
        lambda run: (run / "ensembles/flow/ensemble.json").write_text("{"),
        "ensemble.json is damaged",
    ),
    "deck edited": (
        lambda run: (run / "deck.toml").write_text(
            (run / "deck.toml").read_text().replace("lam = 8.0", "lam = 8.1")
        ),
        "was not drawn with this run's deck.toml: target.lam",
    ),
    "newer format of a block": (lambda run: newer(block(run)), "newer version of latticeflow"),
    "newer format of the chain": (
        lambda run: newer(run / "ensembles/flow/chain.h5"),
        "newer version of latticeflow",
    ),
    "newer format of the ensemble": (
        lambda run: edit_json(run / "ensembles/flow/ensemble.json", format=99),
        "newer version of latticeflow",
    ),
    "newer format of a checkpoint": (
        lambda run: edit_json(checkpoints(run / "weights")[-1] / "state.json", format=99),
        "newer version of latticeflow",
    ),
}


def test_a_sound_run_passes(sound, capsys):
    found = verify_run(sound)
    assert not any(one.problems for one in found.values())
    assert (found["flow"].blocks, found["flow"].whole) == (5, 5)
    assert (found["hmc"].blocks, found["hmc"].whole) == (4, 4)
    assert 0 < found["flow"].log_w_error < 5e-4  # float32 rounding is seen, so something was compared
    assert not any(one.of_paths for one in found.values())
    assert "is verified" in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_weights_in_float64_are_used_as_such(tmp_path, precision):
    run = trained(tmp_path / "run", 13, "float64")
    sample_run(run, sampler="flow", draws=96, overrides=[f"sampler.flow.precision={precision}"])
    assert not verify_run(run)["flow"].problems


def test_observables_only(tmp_path, capsys):
    """Without fields S is compared with the action that was measured, and nothing is said to be recomputed."""
    run = Run.create(Deck.parse(DECK), tmp_path / "run")
    sample_run(run, sampler="hmc", draws=160, overrides=["sampler.hmc.keep_fields=0"])
    found = verify_run(run)["hmc"]
    assert (found.whole, found.s_error, found.problems) == (4, None, [])
    assert "no fields to recompute from" in capsys.readouterr().out
    edit(block(run.path, "hmc", 1, 0), scale("log_prob", 1.0001))
    assert "S of 1 of 40 draws is not the measured action" in problems(run.path, capsys)


@pytest.mark.parametrize("case", CASES)
def test_damage_is_found_and_named(run, other, case, capsys):
    damage, message = CASES[case]
    if damage is FOREIGN:
        shutil.copy(block(other), block(run))
    else:
        damage(run)
    assert message in problems(run, capsys)


def test_there_are_enough_cases():
    assert len(CASES) >= 12


def test_any_flipped_bit_is_found_or_harmless(run, capsys):
    """Every byte of a block is protected, but for unused space, which holds nothing."""
    path, rng = block(run), np.random.default_rng(3)
    ensemble = Ensemble.open(run / "ensembles" / "flow")
    good = path.read_bytes()
    arrays, about = ensemble.check_block(2, 0)
    found = 0
    for at in rng.integers(0, len(good), 150):
        data = bytearray(good)
        data[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            again, about_again = ensemble.check_block(2, 0)
        except StoreError:
            found += 1
            continue
        assert about_again == about
        assert all(again[name].tobytes() == arrays[name].tobytes() for name in arrays)
    assert found > 75


def test_a_share_of_the_blocks(run, capsys):
    found = verify_run(run, sample=0.3)
    assert (found["flow"].blocks, found["flow"].whole) == (5, 2)
    assert verify_run(run, sample=1e-6)["flow"].whole == 1
    for key in list_blocks(run / "ensembles" / "flow"):  # scalars of every block are read whatever the share
        flip_in(block_path(run / "ensembles" / "flow", *key), "log_prob")
    assert "s000004_b000000.h5 is damaged" in problems(run, capsys, sample=0.01)


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5, float("nan")])
def test_a_share_that_is_none(run, share):
    with pytest.raises(InputError, match="share of the blocks"):
        verify_run(run, sample=share)


def test_a_stopped_job_is_no_damage(run):
    """Blocks that were not drawn yet, and a chain that is older than the last ones or not there."""
    sample_run(run, sampler="flow", draws=600)
    block(run, stream=5).unlink()
    (run / "ensembles/flow/chain.h5").unlink()
    assert not verify_run(run)["flow"].problems
    Ensemble.open(run / "ensembles/flow").build_chain()
    sample_run(run, sampler="flow", draws=600)
    (run / "ensembles/flow/chain.h5").unlink()
    assert not verify_run(run)["flow"].problems


def test_verify_changes_nothing(run):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    verify_run(run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


@pytest.mark.mpi
def test_under_mpirun(mpirun, run):
    job = mpirun(2, "-m", "latticeflow", "verify", run, cwd=run.parent)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("flow: 5 blocks read, 5 of them checked whole") == 1
    edit(block(run, stream=3), shift_weights)
    edit(block(run, stream=2), shift_weights)
    job = mpirun(2, "-m", "latticeflow", "verify", run, cwd=run.parent)
    assert job.returncode == 1
    assert "s000002_b000000.h5: log w" in job.stdout and "s000003_b000000.h5: log w" in job.stdout
