"""`latticeflow verify`: does a run hold what it says it holds? Everything is read, recomputed and compared.

What is wrong is named, file by file, and nothing is changed. Constant memory: one block at a time. Under mpirun the
ranks share the blocks.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import Deck
from ..console import console
from ..errors import InputError, LatticeflowError, StoreError
from ..flows.conditional import member
from ..observables import measure
from ..precision import double
from ..production.device import bind_device
from ..production.ranks import Ranks
from ..run import Run
from ..samplers import Sampler
from ..samplers.density import log_w_error, tolerance
from ..spec import differences
from ..store import Ensemble
from ..store.block import Key, block_path, strangers
from ..store.hdf5 import REDRAW, open_h5, read_whole
from ..store.provenance import measured_by
from ..targets import targets
from ..threads import threads
from ..training.checkpoint import (
    build_flow,
    build_model,
    check_checkpoint,
    checkpoints,
    load_model_at,
    load_trained,
)

# S and observables are recomputed in float64 from the same stored numbers: only the order of summation may differ.
ROUNDING = 1e-9
REMEASURE = "delete that file; it is measured again when it is needed"


@dataclass
class Findings:
    """`problems`: one line each, with the file in front. The rest: how much was looked at, and how well it agreed.

    `blocks`: that were read; `whole`: of them, checked whole; `log_w_error`, `s_error`: largest |stored - recomputed| of
    log w and S, None where none could be recomputed; `of_paths`: log w belong to paths, of which only the ends are stored;
    `seen`: hash of a block's log_prob to its path, to find copies.
    """

    problems: list[str] = field(default_factory=list)
    blocks: int = 0
    whole: int = 0
    log_w_error: float | None = None
    s_error: float | None = None
    of_paths: bool = False
    seen: dict[bytes, Path] = field(default_factory=dict)

    def add(self, other: "Findings") -> None:
        self.problems += other.problems
        self.blocks += other.blocks
        self.whole += other.whole
        self.log_w_error = _larger(self.log_w_error, other.log_w_error)
        self.s_error = _larger(self.s_error, other.s_error)
        self.of_paths |= other.of_paths
        for mark, path in other.seen.items():
            self.note(mark, path)

    def note(self, mark: bytes, path: Path) -> None:
        """Remember a block's numbers; two blocks with the same ones are a problem."""
        there = self.seen.setdefault(mark, path)
        if there != path:
            self.problems.append(f"{path} holds the same draws as {there}: one is a copy; {REDRAW}")


def _larger(a: float | None, b: float | None) -> float | None:
    return max((one for one in (a, b) if one is not None), default=None)


def verify_run(run: Run | Path | str, sample: float = 1.0, device: str = "cpu") -> dict[str, Findings]:
    """Check a run and print what was checked: findings by ensemble, those of the weights under "weights".

    Checkpoints: files against the SHA-256 that they record. An ensemble: its record against its identity, the deck
    and the weights. Every block: format, name, ensemble, checksums of the scalars, their means; no block twice, none
    missing inside a chain or from the chain index, no foreign file. On a share `sample` of the blocks, in (0, 1], chosen
    at random: the digest of all they hold, S of the stored fields, log w by the flow run backwards in float64 within
    the tolerance recorded beside the precision (not that of paths, as the line then says), a chain's state against its
    last fields, observables stored with the draws or beside the block (where this version's definitions made them); of draws
    without a field, S against the measured action. The Metropolis chain is scanned again and compared entry by entry.

    Raises `StoreError` that counts the problems, which have been printed; `InputError` where `run` is no run folder, or
    `sample` is no share.
    """
    if not 0 < sample <= 1:
        raise InputError(f"--sample {sample}: expected a share of the blocks, more than 0 and at most 1")
    ranks = Ranks.world()
    with ranks.root_first():
        run = run if isinstance(run, Run) else Run.open(run)
    out = console(quiet=not ranks.root)
    where = bind_device(device, ranks)
    found = {"weights": _weights(run)}
    kept = len(checkpoints(run.weights))
    out.print(f"{run.path}: {kept} checkpoints" + ("" if found["weights"].problems else " as recorded"))
    folder = run.path / "ensembles"
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        found[path.name] = one = _together(ranks, _ensemble(run, path, sample, ranks, where))
        out.print(_line(path.name, one))
    problems = [line for one in found.values() for line in one.problems]
    for line in problems:
        out.print(f"- {line}", highlight=False, soft_wrap=True)
    ranks.barrier()
    if problems:
        raise StoreError(f"{run.path}: {len(problems)} problems, named above")
    out.print(f"{run.path} is verified")
    return found


def _line(name: str, one: Findings) -> str:
    line = f"{name}: {one.blocks:,} blocks read, {one.whole:,} of them checked whole"
    errors = (("S", one.s_error), ("log w", one.log_w_error))
    found = ", ".join(f"{what} within {error:.1e}" for what, error in errors if error is not None)
    line += "; recomputed from the fields: " + found if found else "; no fields to recompute from"
    return line + (
        "; log w not recomputed: they are those of paths, of which only the ends are stored" * one.of_paths
    )


def _together(ranks: Ranks, mine: Findings) -> Findings:
    """What all ranks found, on every rank."""
    whole = Findings()
    for part in ranks.comm.allgather(mine) if ranks.comm else [mine]:
        whole.add(part)
    return whole


def _weights(run: Run) -> Findings:
    found = Findings()
    for path in checkpoints(run.weights):
        with _reported(found):
            check_checkpoint(path)
    return found


@contextmanager
def _reported(found: Findings) -> Iterator[None]:
    """Errors of the package become problems; anything else goes up."""
    try:
        yield
    except LatticeflowError as error:
        found.problems.append(str(error))


def _ensemble(run: Run, path: Path, sample: float, ranks: Ranks, device: str) -> Findings:
    """This rank's share of the blocks; on rank 0 also all that is not of one block."""
    found = Findings()
    try:
        ensemble = Ensemble.open(path)
        _require_deck(run.deck, ensemble)
        sampler = sampler_of(run, ensemble, device)
    except LatticeflowError as error:  # the same on every rank
        if ranks.root:
            found.problems.append(str(error))
        return found
    if ranks.root:
        found.problems += [f"{stray} is no block of this ensemble" for stray in _foreign(path)]
    present, chosen = ranks.broadcast((ensemble.present, _choose(ensemble, sample)))
    check = _Check(ensemble, sampler, found)
    with threads(1):
        for key in present[ranks.rank :: ranks.size]:
            with _reported(found):
                check.block(key, whole=key in chosen)
        if ranks.root:
            with _reported(found):
                ensemble.blocks  # noqa: B018 (raises where a chain is broken)
                if ensemble.weighted:
                    ensemble.check_chain()
    return found


def _foreign(path: Path) -> Iterator[Path]:
    """Files among the blocks that are no blocks, but for those of a job that is writing."""
    return (stray for stray in strangers(path) if stray.suffix != ".tmp")


def _require_deck(deck: Deck, ensemble: Ensemble) -> None:
    """Raise `StoreError` where the ensemble's record is not that of the run's deck."""
    wanted = {"target": targets.table(deck.target), "seed": deck.seed}
    changed = differences({"target": ensemble.target, "seed": ensemble.seed}, wanted)
    if changed:
        raise StoreError(f"{ensemble.path} was not drawn with this run's deck.toml: {'; '.join(changed)}")


def _choose(ensemble: Ensemble, sample: float) -> set[Key]:
    """A random share of the blocks, one at least; other ones at each call."""
    present = ensemble.present
    count = min(len(present), int(np.ceil(sample * len(present))))
    order = np.random.default_rng().permutation(len(present))[:count]
    return {present[i] for i in order}


def sampler_of(run: Run, ensemble: Ensemble, device: str) -> Sampler:
    """The ensemble's sampler with the weights that drew it. Raises `StoreError` where they are not there."""
    spec = ensemble.spec
    if not (spec.needs_flow or spec.needs_model):
        return spec.build(run.deck.target, device=device)
    trained: Any = build_model(run.deck) if spec.needs_model else build_flow(run.deck)
    load = load_model_at if spec.needs_model else load_trained
    for path in reversed(checkpoints(run.weights)):
        try:
            same = load(trained, path) == ensemble.weights
        except LatticeflowError:  # reported with the checkpoints
            continue
        if same:
            at_target = trained.at(run.deck.target) if spec.needs_model else member(trained, run.deck.target)
            return spec.build(run.deck.target, flow=at_target, device=device)
    raise StoreError(
        f"{ensemble.path} was drawn by weights of SHA-256 {str(ensemble.weights)[:16]}..., which no sound checkpoint "
        f"in {run.weights} has: they were edited, replaced or removed. Put them back"
    )


@dataclass
class _Check:
    """Checks blocks of one ensemble one after another."""

    ensemble: Ensemble
    sampler: Sampler
    found: Findings

    def block(self, key: Key, whole: bool) -> None:
        ensemble, found = self.ensemble, self.found
        path = block_path(ensemble.path, *key)
        found.blocks += 1
        if not whole:
            names = ["log_prob", *(["log_w"] if ensemble.weighted else [])]
            data = ensemble.read(*key, *names)
        else:
            data, about = ensemble.check_block(*key)
        found.note(hashlib.sha256(data["log_prob"].tobytes()).digest(), path)
        if whole:
            found.whole += 1
            for what in (
                self._action(data),
                self._weights(data, about),
                self._state(data),
                self._measured(data, about),
            ):
                if what:
                    found.problems.append(f"{path}: {what}: it was altered, or its weights were; {REDRAW}")
            self._beside(key, data)

    def _action(self, data: dict[str, np.ndarray]) -> str | None:
        """S of the stored fields, or the action as it was measured, against log_prob = -S."""
        if "measured/action" in data:
            s = data["measured/action"]
            error = _distance(-s, data["log_prob"])
            if what := _worst(
                "S", data["log_prob"], error, ROUNDING * (1 + np.abs(s)), "the measured action"
            ):
                return what
        if "x" not in data:
            return None
        stored = data["log_prob"][self.ensemble.kept_rows]
        with torch.no_grad():
            x = double(torch.from_numpy(data["x"]))
            try:
                self.sampler.target.check_field(x)
            except InputError as off:
                return str(off)
            s = self.sampler.target.log_prob(x).cpu().numpy()
        error = _distance(s, stored)
        self.found.s_error = _larger(self.found.s_error, float(error.max(initial=0.0)))
        return _worst("S", stored, error, ROUNDING * (1 + np.abs(stored)))

    def _weights(self, data: dict[str, np.ndarray], about: dict[str, Any]) -> str | None:
        """log w against that of the stored fields, which those of paths (annealed, stochastic) do not tell."""
        if "log_w" in data and not self.sampler.any_density:
            self.found.of_paths = True
        if "x" not in data or "log_w" not in data or not self.sampler.any_density:
            return None
        stored = data["log_w"][self.ensemble.kept_rows]
        error = log_w_error(self.sampler, data["x"], stored)
        self.found.log_w_error = _larger(self.found.log_w_error, float(error.max(initial=0.0)))
        allowed = tolerance(self.ensemble.settings["precision"], int(np.prod(data["x"].shape[1:])))
        if about["tolerance"] != allowed:
            return f"tolerance {about['tolerance']:.3g} is recorded, expected {allowed:.3g}"
        return _worst("log w", stored, error, np.full(len(stored), allowed))

    def _state(self, data: dict[str, np.ndarray]) -> str | None:
        """A chain's state against the last step of its block."""
        chains = self.ensemble.chains
        for name in ("x", "log_prob"):
            state, last = data.get(f"state/{name}"), data.get(name)
            if state is None or last is None or (name == "x" and self.ensemble.keep_fields != 1):
                continue
            if not np.array_equal(state, last[-chains:]):
                return f"the chain's state '{name}' is not that of its last step"
        return None

    def _measured(self, data: dict[str, np.ndarray], about: dict[str, Any]) -> str | None:
        """Observables stored with the draws against those of the fields that are kept."""
        rows, start = self.ensemble.kept_rows, "measured/"
        stored = {name.removeprefix(start): a[rows] for name, a in data.items() if name.startswith(start)}
        return self._observables(data, stored, about)

    def _beside(self, key: Key, data: dict[str, np.ndarray]) -> None:
        """What was measured later and lies beside the block. Raises `StoreError` where it is damaged or wrong."""
        path = block_path(self.ensemble.path, *key, part="measured")
        if not path.exists():
            return
        with open_h5(path, REMEASURE) as file:
            stored, about = read_whole(path, file, REMEASURE)
        if (about.get("identity"), about.get("stream"), about.get("block")) != (self.ensemble.identity, *key):
            raise StoreError(f"{path} holds what was measured of another block; {REMEASURE}")
        if what := self._observables(data, stored, about):
            raise StoreError(f"{path}: {what}; {REMEASURE}")

    def _observables(self, data, stored: dict[str, np.ndarray], about: dict[str, Any]) -> str | None:
        """Stored observables against those of the fields; other versions may have defined them otherwise."""
        if "x" not in data or not stored or any(about.get(name) != it for name, it in self._versions.items()):
            return None
        for name, again in measure(self.sampler.target, data["x"], *stored).items():
            if not np.allclose(stored[name], again, rtol=ROUNDING, atol=ROUNDING):
                return f"observable '{name}' is not that of the stored fields"
        return None

    @cached_property
    def _versions(self) -> dict[str, str]:
        return measured_by()


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|, 0 of equal infinities."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0.0, np.abs(a - b))


def _worst(
    what: str,
    stored: np.ndarray,
    error: np.ndarray,
    allowed: np.ndarray,
    of: str = "that of the stored fields",
) -> str | None:
    """The draw that is furthest off, if it is further than allowed; NaN is."""
    bad = np.flatnonzero(~(error <= allowed))
    if not len(bad):
        return None
    i = int(bad[np.argmax(np.nan_to_num(error[bad], nan=np.inf))])
    return (
        f"{what} of {len(bad)} of {len(error)} draws is not {of}, most of all draw {i}: stored "
        f"{stored[i]:.10g}, {error[i]:.3g} away, allowed {allowed[i]:.3g}"
    )
