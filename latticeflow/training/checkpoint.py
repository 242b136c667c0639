"""Checkpoints: weights, optimiser, step. Safetensors and JSON only, so that opening a run executes nothing.

`weights/step_00000500/` holds `flow.safetensors`, `optimizer.safetensors` and `state.json`; `pool.safetensors` where
training by importance sampling has points left to use. The generator's state is `(seed, step)`: every training step has its
own keyed streams. `state.json` records the SHA-256 of the other two, so that files changed or swapped since are found when
they are read.
"""

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import nn

from ..baselines import Model
from ..errors import InputError, StoreError, WriteFailed
from ..files import file_hash, sync_folder
from ..flows import Flow
from ..flows.conditional import member
from ..precision import DTYPES
from ..spec import differences
from ..targets import Hypercube, Target
from .fit_settings import FitSettings
from .settings import TrainSettings
from .stages import describe

FORMAT = 2  # 1 had other random streams of training and recorded no hashes


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name[len("step_") :])


def place(weights: Path, step: int) -> Path:
    """The folder of the checkpoint of `step` steps."""
    return Path(weights) / f"step_{step:08d}"


def checkpoints(weights: Path) -> list[Path]:
    """Complete checkpoints in `weights`, oldest first, ordered by their step as a number."""
    found = [p for p in Path(weights).glob("step_*") if p.name[5:].isdigit() and p.is_dir()]
    return sorted(found, key=step_of)


def save_checkpoint(
    weights: Path,
    step: int,
    flow: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    seed: int,
    settings: TrainSettings | FitSettings,
    state: dict,
    pool: dict[str, torch.Tensor] | None = None,
) -> Path:
    """Write one checkpoint under its final name only when it is whole; then drop all but the last `settings.keep`.

    `flow`: a flow or a model. `state`: what else the training needs to go on, plain values; `pool`: points that are still
    to be used. Raises `WriteFailed` where it cannot be written; nothing of it is left then, and what was there before stays.
    """
    final = place(weights, step)
    temporary = weights / f".{final.name}.{secrets.token_hex(4)}.tmp"
    record = {"step": step, "seed": seed, "settings": settings.model_dump(mode="json"), **state}
    try:
        temporary.mkdir(parents=True)
        _write(temporary, flow, optimizer, record, pool)
        os.replace(temporary, final)
        sync_folder(weights)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        found = checkpoints(weights)
        raise WriteFailed(
            f"checkpoint {final} cannot be written: {error}. Last good checkpoint: "
            f"{found[-1] if found else 'none yet'}. Make room, or see to permissions, and go on with --resume"
        ) from None
    _clean(weights, settings.keep)
    return final


def _write(
    folder: Path,
    flow: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    record: dict,
    pool: dict[str, torch.Tensor] | None,
) -> None:
    """Fill the folder of a checkpoint and make it durable."""
    moments = {
        f"{index}.{name}": value
        for index, values in (optimizer.state_dict()["state"].items() if optimizer else ())
        for name, value in values.items()
    }
    hashes = {}
    parts = {"flow": flow.state_dict(), "optimizer": moments} | ({"pool": pool} if pool else {})
    for name, tensors in parts.items():
        plain = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        path = folder / f"{name}.safetensors"
        save_file(plain, path)
        hashes[path.name] = file_hash(path)
    whole = {"format": FORMAT, "sha256": hashes, **record}
    (folder / "state.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    for path in folder.iterdir():
        with open(path, "rb+") as handle:
            os.fsync(handle.fileno())
    sync_folder(folder)


def _clean(weights: Path, keep: int) -> None:
    """Drop all but the last `keep` checkpoints, and what killed jobs left: one training runs at a time."""
    for old in [*checkpoints(weights)[:-keep], *weights.glob(".step_*.tmp")]:
        shutil.rmtree(old, ignore_errors=True)


def _state(checkpoint: Path) -> dict:
    """`state.json`. Raises `StoreError` if it is damaged or of another format."""
    path = Path(checkpoint) / "state.json"
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        found = int(state["format"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(
            f"{path} cannot be read ({error!r}); it is damaged. Remove that checkpoint folder"
        ) from None
    if found > FORMAT:
        raise StoreError(
            f"{path} has format {found}, written by a newer version of latticeflow; this version reads {FORMAT}"
        )
    if found < FORMAT:
        raise StoreError(
            f"{path} has format {found}, of an older version with other random streams; this version reads "
            f"{FORMAT}. Train again, in another run folder"
        )
    return state


def _tensors(path: Path) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors of a file of a checkpoint and its SHA-256. Raises `StoreError` if it is not what training wrote."""
    recorded = _state(path.parent).get("sha256", {}).get(path.name)
    way_out = "Remove that checkpoint folder to fall back on the one before it"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path} cannot be read ({error}). {way_out}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != recorded:
        raise StoreError(
            f"{path} is damaged or was edited: its SHA-256 is {digest[:16]}..., state.json beside it records "
            f"{str(recorded)[:16]}... {way_out}"
        )
    try:
        return load(data), digest
    except SafetensorError as error:
        raise StoreError(f"{path} cannot be read ({error}). {way_out}") from None


def load_weights(flow: nn.Module, checkpoint: Path) -> str:
    """Load a checkpoint's weights into `flow`, a flow or a model; returns the SHA-256 of the weights file.

    Raises `InputError` naming the first tensor that does not fit, `StoreError` for a file that is damaged or was edited.
    """
    path, what = Path(checkpoint) / "flow.safetensors", "model" if isinstance(flow, Model) else "flow"
    (found, digest), wanted = _tensors(path), flow.state_dict()
    for name in sorted({*found, *wanted}):
        have = tuple(found[name].shape) if name in found else "nothing"
        want = tuple(wanted[name].shape) if name in wanted else "nothing"
        if have != want:
            raise InputError(
                f"the weights in {path} do not fit the deck's {what}: '{name}' has {have}, expected {want}. "
                "Use the deck they were trained with"
            )
    try:
        flow.load_state_dict(found)
    except RuntimeError as error:  # shapes fit, and yet a layer says that it is another one
        raise InputError(f"the weights in {path} do not fit the deck's {what}: {error}") from None
    return digest


def load_state(checkpoint: Path, seed: int | None, settings: TrainSettings | FitSettings) -> dict:
    """`state.json` of a checkpoint, of a training with this seed (None: any; `latticeflow at` copies weights).

    Raises `StoreError` if it is damaged or of another format, `InputError` naming what differs if it was made
    with another seed or other settings.
    """
    state = _state(checkpoint)
    # keys that are newer than the checkpoint have their defaults
    then = type(settings)(**state["settings"]).model_dump(mode="json")
    changed = differences(
        {"seed": state["seed"], "train": then},
        {"seed": state["seed"] if seed is None else seed, "train": settings.model_dump(mode="json")},
    )
    if changed:
        raise InputError(f"{checkpoint} was made with other settings: {'; '.join(changed)}")
    return state


def load_optimizer(optimizer: torch.optim.Optimizer, checkpoint: Path) -> None:
    """Restore the optimiser's moments; settings such as the rate stay those of the schedule."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in _tensors(Path(checkpoint) / "optimizer.safetensors")[0].items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_pool(checkpoint: Path) -> dict[str, torch.Tensor] | None:
    """The points that a checkpoint was to go on with; None where it has none."""
    name = "pool.safetensors"
    return _tensors(Path(checkpoint) / name)[0] if name in _state(checkpoint).get("sha256", {}) else None


def latest(weights: Path, what: str = "flow") -> Path:
    """The newest checkpoint. Raises `InputError` where there is none."""
    found = checkpoints(weights)
    if not found:
        raise InputError(f"no weights in {weights}: train the {what} first (latticeflow train DECK)")
    return found[-1]


def build_flow(deck, target: Target | None = None) -> Flow:
    """The deck's untrained flow, for `target` if given: that of a stage.

    Raises `InputError` for a deck without [flow], and for a flow of another kind of target or of other fields than the
    target's.
    """
    target = deck.target if target is None else target
    if deck.flow is None:
        model = "" if deck.model is None else ": its [model] has the sampler 'model'"
        raise InputError(f"the deck has no [flow]{model}")
    if not isinstance(target, deck.flow.on):
        where = "the unit cube" if deck.flow.on is Hypercube else "a lattice"
        raise InputError(
            f"[flow] kind = '{deck.flow.kind}' lives on {where}; target '{target.kind}' does not"
        )
    flow = deck.flow.build_for(target, deck.seed)
    if flow.event_shape != target.event_shape:
        raise InputError(
            f"[flow] kind = '{deck.flow.kind}' makes fields of shape {flow.event_shape}; target '{target.kind}' has "
            f"{target.event_shape}"
        )
    return flow


def load_flow(weights: Path, deck) -> tuple[Flow, str]:
    """The deck's flow with the newest weights, float32 or float64 as trained, and the weights' SHA-256.

    Of a conditional flow the one at the deck's target; `load_family` has all of it.
    """
    flow, digest = load_family(weights, deck)
    return member(flow, deck.target), digest


def load_family(weights: Path, deck) -> tuple[Flow, str]:
    """As `load_flow`, a conditional flow as such."""
    flow, checkpoint = build_flow(deck), latest(weights)
    return flow, load_trained(flow, checkpoint)


def load_trained(flow: Flow, checkpoint: Path) -> str:
    """`load_weights` into `flow`, which is given the precision of the training first: float32 would cut float64 weights.

    Raises `InputError` for weights of a stage that is not the last of its plan: they were not trained on the deck's target.
    """
    state = _state(checkpoint)
    stage = state.get("stage")
    if stage and stage["number"] < stage["count"]:
        raise InputError(
            f"{checkpoint} holds the weights of {describe(stage)}, and not of the deck's target: the training is "
            "not at its last stage. Go on with latticeflow train RUN --resume"
        )
    flow.to(DTYPES[state["settings"]["precision"]])
    return load_weights(flow, checkpoint)


def build_model(deck) -> Model:
    """The deck's untrained model. Raises `InputError` for a deck without [model] and for a target that it does not suit."""
    if deck.model is None:
        flow = "" if deck.flow is None else ": its [flow] has the sampler 'flow'"
        raise InputError(f"the deck has no [model]{flow}")
    return deck.model.build(deck.target, deck.seed)


def load_model(weights: Path, deck) -> tuple[Model, str]:
    """The deck's model with the newest weights, in the precision of its training, and the weights' SHA-256; of a family
    the one at the deck's target.

    Raises `InputError` for a deck without [model] and where nothing is trained, `StoreError` for damaged files.
    """
    model, checkpoint = build_model(deck), latest(weights, "model")
    digest = load_model_at(model, checkpoint)
    return model.at(deck.target), digest


def load_model_at(model: Model, checkpoint: Path) -> str:
    """`load_weights` into `model`, in the precision of its training."""
    model.to(DTYPES[_state(checkpoint)["settings"]["precision"]])
    return load_weights(model, checkpoint)


def check_checkpoint(checkpoint: Path) -> None:
    """Read all of a checkpoint. Raises `StoreError` naming a file that is damaged or was edited."""
    for name in ("flow", "optimizer"):
        _tensors(Path(checkpoint) / f"{name}.safetensors")
    load_pool(checkpoint)
