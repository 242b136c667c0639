"""Checkpoints: weights, optimiser, step. Safetensors and JSON only, so that opening a run executes nothing.

`weights/step_00000500/` holds `flow.safetensors`, `optimizer.safetensors` and `state.json`. The
generator's state is `(seed, step)`: every training step has its own keyed stream.
"""

import json
import os
import secrets
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import InputError, StoreError
from ..files import file_hash, sync_folder
from ..flows import Flow
from ..spec import differences
from ..targets import LatticeTarget
from .settings import TrainSettings

FORMAT = 1


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len("step_") :])


def checkpoints(weights: Path) -> list[Path]:
    """Complete checkpoints in `weights`, oldest first, ordered by their step as a number."""
    found = [p for p in Path(weights).glob("step_*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found, key=step_of)


def save_checkpoint(
    weights: Path,
    step: int,
    flow: Flow,
    optimizer: torch.optim.Optimizer,
    seed: int,
    settings: TrainSettings,
    state: dict,
) -> Path:
    """Write one checkpoint under its final name only when it is whole; then drop all but the last `settings.keep`.

    `state`: what else the training needs to go on, plain values.
    """
    final = weights / f"step_{step:08d}"
    temporary = weights / f".{final.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    moments = {
        f"{index}.{name}": value
        for index, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }
    for name, tensors in (("flow", flow.state_dict()), ("optimizer", moments)):
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(plain, temporary / f"{name}.safetensors")
    whole = {
        "format": FORMAT,
        "step": step,
        "seed": seed,
        "settings": settings.model_dump(mode="json"),
        **state,
    }
    (temporary / "state.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    for path in temporary.iterdir():
        with open(path, "rb+") as handle:
            os.fsync(handle.fileno())
    os.replace(temporary, final)
    sync_folder(weights)
    for old in checkpoints(weights)[: -settings.keep]:
        shutil.rmtree(old)
    for stale in weights.glob(".step_*.tmp"):  # left by a killed job: one training runs at a time
        shutil.rmtree(stale)
    return final


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise StoreError(
            f"{path} cannot be read ({error}); it is damaged. Remove that checkpoint folder to fall back on "
            "the one before it"
        ) from None


def load_weights(flow: Flow, checkpoint: Path) -> str:
    """Load a checkpoint's weights into `flow`; returns the SHA-256 of the weights file.

    Raises `InputError` naming the first tensor that does not fit, `StoreError` for a damaged file.
    """
    path = Path(checkpoint) / "flow.safetensors"
    found, wanted = _tensors(path), flow.state_dict()
    for name in sorted({*found, *wanted}):
        have = tuple(found[name].shape) if name in found else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            raise InputError(
                f"the weights in {path} do not fit the deck's flow: '{name}' has {have}, expected {want}. "
                "Use the deck they were trained with"
            )
    flow.load_state_dict(found)
    return file_hash(path)


def load_state(checkpoint: Path, seed: int, settings: TrainSettings) -> dict:
    """`state.json` of a checkpoint.

    Raises `StoreError` if it is damaged or of a newer format, `InputError` naming what differs if it was made
    with another seed or other settings.
    """
    path = Path(checkpoint) / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove that checkpoint folder") from None
    if state.get("format") != FORMAT:
        raise StoreError(f"{path} has format {state.get('format')}; this version reads {FORMAT}")
    changed = differences(
        {"seed": state["seed"], "train": state["settings"]},
        {"seed": seed, "train": settings.model_dump(mode="json")},
    )
    if changed:
        raise InputError(f"{checkpoint} was made with other settings: {'; '.join(changed)}")
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Restore the optimiser's moments; settings such as the rate stay those of the schedule."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _tensors(Path(checkpoint) / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def latest(weights: Path) -> Path:
    """The newest checkpoint. Raises `InputError` where there is none."""
    found = checkpoints(weights)
    if not found:
        raise InputError(f"no weights in {weights}: train the flow first (latticeflow train DECK)")
    return found[-1]


def build_flow(deck) -> Flow:
    """The deck's untrained flow. Raises `InputError` for a deck without [flow], or a target without a lattice."""
    if deck.flow is None:
        raise InputError("the deck has no [flow]")
    if not isinstance(deck.target, LatticeTarget):
        raise InputError(
            f"[flow] kind = '{deck.flow.kind}' lives on a lattice; target '{deck.target.kind}' has none"
        )
    return deck.flow.build(deck.target.lattice, deck.seed)


def load_flow(weights: Path, deck) -> tuple[Flow, str]:
    """The deck's flow with the newest weights, float32 or float64 as trained, and the weights' SHA-256."""
    flow, checkpoint = build_flow(deck), latest(weights)
    flow.to(next(iter(_tensors(checkpoint / "flow.safetensors").values())).dtype)
    return flow, load_weights(flow, checkpoint)
