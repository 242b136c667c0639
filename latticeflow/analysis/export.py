"""`latticeflow export`: an ensemble as one file for other tools."""

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np

from ..correction import reweight
from ..errors import InputError
from ..files import write_atomic
from ..run import Run
from ..store import Ensemble


def export_run(
    run: Run | Path | str, out: Path | str, sampler: str = "flow", proposals: bool = False
) -> dict[str, np.ndarray]:
    """Write an ensemble to `out` (.npz, or .h5 / .hdf5 without chunks or checksums) and return its arrays.

    `x` `[n, *event_shape]`, `log_prob` `[n]` and, as text, `deck` and `ensemble`, the ensemble's record in JSON.
    For an independent sampler the exact selection by Metropolis, one chain in order: configurations repeat as it
    does, and `index` `[n]` says which proposal each is. With `proposals` the raw draws instead, `log_w` `[n]`, and
    `weight` `[n]`, log_w as weights of mean 1. Of chains all draws, with int64 `chain` and `step` `[n]`: entry i is
    step `step[i]` of chain `chain[i]`, counted over all streams (stream `chain[i] // C`, C the record's `chains`).
    Raises `InputError` for another suffix, a file that exists, or an ensemble that is empty or missing.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    writers: dict[str, Callable] = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
    if out.suffix not in writers:
        raise InputError(f"export to {out}: suffix '{out.suffix}'; expected .npz, .h5 or .hdf5")
    if out.exists():
        raise InputError(
            f"export to {out}: it exists; nothing was changed. Choose another name or move it away"
        )
    if not out.parent.is_dir():
        raise InputError(f"export to {out}: there is no folder {out.parent}")
    ensemble = Ensemble.open(run.ensemble(sampler))
    arrays = _arrays(ensemble, proposals)
    about = {"deck": run.deck.toml(), "ensemble": json.dumps(ensemble.record)}
    write_atomic(out, lambda temporary: writers[out.suffix](temporary, arrays, about))
    return arrays


def _arrays(ensemble: Ensemble, proposals: bool) -> dict[str, np.ndarray]:
    if not ensemble.blocks:
        raise InputError(f"{ensemble.path} holds no draws yet; nothing to export")
    names = ("x", "log_prob", "log_w") if ensemble.weighted else ("x", "log_prob")
    blocks = list(ensemble.iterate(*names))
    arrays = {name: np.concatenate([data[name] for data in blocks]) for name in names}
    if ensemble.chains:
        return arrays | _places(ensemble)
    if not ensemble.weighted:
        return arrays
    if proposals:
        return {**arrays, "weight": reweight(arrays["log_w"]).weight}
    index = ensemble.chain().index
    return {"x": arrays["x"][index], "log_prob": arrays["log_prob"][index], "index": index}


def _places(ensemble: Ensemble) -> dict[str, np.ndarray]:
    """Draw i of a block is step i // C of chain i % C of its stream."""
    size, C = ensemble.settings["block"], ensemble.chains
    i = np.arange(size)
    return {
        "chain": np.concatenate([stream * C + i % C for stream, _ in ensemble.blocks]),
        "step": np.concatenate([block * (size // C) + i // C for _, block in ensemble.blocks]),
    }


def _npz(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str]) -> None:
    with open(path, "xb") as file:
        np.savez(file, **arrays, **about)  # type: ignore[arg-type]


def _hdf5(path: Path, arrays: dict[str, np.ndarray], about: dict[str, str]) -> None:
    with h5py.File(path, "x", locking=False) as file:
        file.attrs.update(about)
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
