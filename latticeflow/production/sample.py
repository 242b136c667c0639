"""`latticeflow sample`: draw an ensemble block by block, on any number of ranks, with the same result.

Rank 0 finds the missing blocks from the files and every rank takes its share of them; nothing is communicated until
all are done. The random numbers of a block are named by (seed, sampler, stream, block), so it does not matter
who draws it, or when.
"""

import os
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..config import Deck, override
from ..console import console
from ..errors import InputError, Stopped
from ..run import Run
from ..samplers import Sampler, SamplerSpec, samplers
from ..store import Ensemble
from ..store.block import leftovers
from ..store.ensemble import NAME as RECORD
from ..targets import targets
from ..threads import threads
from ..training.checkpoint import load_flow, load_model
from .device import bind_device
from .lock import run_lock
from .ranks import Ranks, launcher_of_this, refuse_torchrun
from .stop import GRACE, StopRequests, duration, leave_together, stop_requests
from .summary import summary_lines
from .worker import Key, Worker, conditions, missing_blocks, require_space, share_out


def sample_run(
    run: Run | Path | str,
    *,
    sampler: str = "flow",
    draws: int,
    overrides: Sequence[str] = (),
    device: str = "auto",
    share_gpus: bool = False,
    time_limit: str | float | None = None,
    since: float | None = None,
    chain: bool = True,
) -> Ensemble:
    """Draw until the ensemble holds at least `draws` configurations of `sampler`; whole blocks.

    `run`: a run, its folder, or a deck (.toml) whose run folder `runs/NAME` is made if need be. `overrides`:
    `sampler.KIND.key=value`, recorded with the ensemble. `time_limit`: seconds, or text as of `duration`, counted from
    `since` on the clock of `time.monotonic`; default: from this call. `chain`: end with the serial scan into the
    Metropolis chain; without it the first reader scans, and a large job need not hold its ranks meanwhile.
    Blocks that are there already stay, so the same call resumes and extends. Under mpirun every rank calls this,
    started by `python -m latticeflow` or `python -m mpi4py`, which end the whole job when one rank fails.

    Raises `InputError` for draws < 1 or more than the disk has room for, settings other than those that the ensemble was
    begun with, missing weights or GPUs, and a run that another job writes to; `StoreError` for damaged files and where the
    system refuses to write; `NumericalError` naming the block where a draw overflows; `Stopped` (status 75) where it was
    asked to stop, see `production.stop`, and something is left to draw.
    """
    ranks = Ranks.world()
    since = time.monotonic() if since is None else since
    with ranks.root_first():
        refuse_torchrun(ranks.size, dict(os.environ))
        if draws < 1:
            raise InputError(f"--draws {draws}: expected at least 1")
        samplers.find(sampler)
        limit = duration(time_limit) if isinstance(time_limit, str) else time_limit
        job = None
        if ranks.root:
            opened = _open(run)
            job = opened, _settings(opened.deck, sampler, overrides)
    opened, spec = ranks.broadcast(job)
    again = _command(opened.path, sampler, draws, overrides, device, share_gpus, time_limit, chain)
    with threads(spec.threads), stop_requests(opened.path, limit, ranks, since) as stop:
        try:
            return _sample(opened, spec, draws, device, share_gpus, ranks, stop, again, chain)
        except KeyboardInterrupt:
            raise Stopped(
                f"at once, by a second signal or {GRACE} s after SIGTERM, without the blocks in flight. Whole blocks are "
                f"stored; go on with\n{again}"
            ) from None


def _command(
    path: Path, sampler: str, draws: int, overrides, device: str, share_gpus: bool, limit, chain: bool
) -> str:
    """The line that goes on, under any launcher."""
    words = ["latticeflow", "sample", path, "--sampler", sampler, "--draws", draws]
    words += [word for item in overrides for word in ("--set", item)]
    words += ["--device", device] if device != "auto" else []
    words += ["--share-gpus"] if share_gpus else []
    words += ["--time-limit", limit] if limit is not None else []
    words += ["--no-chain"] if not chain else []
    return shlex.join(map(str, words))


def _sample(
    run: Run,
    spec: SamplerSpec,
    draws: int,
    device: str,
    share_gpus: bool,
    ranks: Ranks,
    stop: StopRequests,
    again: str,
    chain: bool,
) -> Ensemble:
    begun = time.perf_counter()
    where = bind_device(device, ranks, share_gpus)
    with ranks.root_first():
        settled = None
        if ranks.root:
            settled = _settled(run, spec, where)
            require_space(run.ensemble(spec.kind), settled, run.deck.target.event_shape, draws)
    spec = ranks.broadcast(settled)
    with ranks.root_first():
        built, weights = _build(run, spec, where)
        if ranks.root:
            if not (spec.needs_flow or (run.ensemble(spec.kind) / RECORD).is_file()):
                run.deck.target.require_support()
            if not (run.path / "deck.toml").is_file():  # late: a failure leaves no folder
                Run.create(run.deck, run.path)
    with run_lock(run.path, ranks):
        with ranks.root_first():
            origin = {"deck": run.deck.toml(), **conditions(built, spec, where)}
            ensemble = Ensemble.create(
                run.ensemble(spec.kind), origin=origin, **_record(run, spec, built, weights)
            )
        # one list for all: another node may see the folder a moment late
        missing = ranks.broadcast(missing_blocks(ensemble, spec, draws) if ranks.root else None)
        work = share_out(missing, ranks, built.chains > 0)
        worker = Worker(built, ensemble, spec, where)
        out = console(quiet=not ranks.root)
        out.print(_announce(run, ensemble, missing, draws, ranks, where))
        drawn = _draw(worker, work, stop, out)
        ranks.barrier()
        left = ranks.total(len(work) - drawn)
        if ranks.root:
            _remove_leftovers(ensemble)
        if left:
            leave_together(
                ranks,
                f"{stop.reason(look=True)}. {len(missing) - left} blocks drawn, {left} missing; go on with\n{again}",
            )
        if ranks.root:
            if chain or not ensemble.weighted:
                _sum_up(ensemble, out)
            seconds = time.perf_counter() - begun
            out.print(f"{len(missing)} blocks drawn in {seconds:.1f} s on {ranks.size} rank(s)")
        ranks.barrier()
        return ensemble


def _sum_up(ensemble: Ensemble, out: Console) -> None:
    if ensemble.weighted:
        ensemble.build_chain()
    for line in summary_lines(ensemble):
        out.print(line)


def _draw(worker: Worker, work: list[Key], stop: StopRequests, console: Console, every: float = 60.0) -> int:
    """Draw `work` until it is done or a stop is asked for; how many blocks that were.

    A progress bar on a terminal, else a line a minute; under a launcher never a bar, since Open MPI's shows ranks a
    terminal even where it writes to a file.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    visible = console.is_terminal and launcher_of_this() is None
    said = time.monotonic()
    with Progress(*columns, console=console, disable=not visible, transient=True) as progress:
        task = progress.add_task("blocks of rank 0", total=len(work))
        for done, key in enumerate(work, start=1):
            if stop.reason():
                return done - 1
            worker.draw(*key)
            progress.update(task, completed=done)
            if not visible and time.monotonic() - said > every and done < len(work):
                said = time.monotonic()
                console.print(f"rank 0: {done} of its {len(work)} blocks")
    return len(work)


def _open(run: Run | Path | str) -> Run:
    """The run; from a deck, `runs/NAME`, which may not be there yet."""
    if isinstance(run, Run):
        return run
    path = Path(run)
    if path.is_dir():
        return Run.open(path)
    if path.suffix != ".toml":
        raise InputError(f"{path} is neither a run folder nor a deck (.toml)")
    deck = Deck.read(path)
    folder = Path("runs") / deck.name
    if not (folder / "deck.toml").is_file():
        return Run(folder, deck)
    found = Run.open(folder)
    found.require_same(deck)
    return found


def _settings(deck: Deck, sampler: str, overrides) -> SamplerSpec:
    """The sampler's settings: the deck's, with `overrides` of `sampler.*` keys."""
    table = deck.table()
    for item in overrides:
        if not item.strip().startswith("sampler."):
            raise InputError(
                f"--set {item}: sample takes sampler.* keys only, e.g. sampler.{sampler}.block=4096; the rest "
                "of the deck is fixed when the run is made"
            )
        override(table, item)
    return Deck.parse(table).sampler_spec(sampler)


def _settled(run: Run, spec: SamplerSpec, device: str) -> SamplerSpec:
    path = run.ensemble(spec.kind)
    recorded = Ensemble.open(path).settings if (path / RECORD).is_file() else None
    return spec.settled(recorded, lambda: _build(run, spec, device)[0])


def _build(run: Run, spec: SamplerSpec, device: str) -> tuple[Sampler, str | None]:
    trained: Any = None
    weights = None
    if spec.needs_flow:
        trained, weights = load_flow(run.weights, run.deck)
    elif spec.needs_model:
        trained, weights = load_model(run.weights, run.deck)
    sampler = spec.build(run.deck.target, flow=trained, device=device)
    if sampler.chains and spec.block % sampler.chains:
        raise InputError(
            f"sampler.{spec.kind}.block = {spec.block} is not a multiple of its {sampler.chains} chains"
        )
    return sampler, weights


def _record(run: Run, spec: SamplerSpec, sampler: Sampler, weights: str | None) -> dict:
    """What identifies the ensemble: every part that changes its numbers."""
    return {
        "sampler": spec.kind,
        "settings": spec.model_dump(mode="json", exclude_none=True, exclude=spec.checks),
        "target": targets.table(run.deck.target),
        "seed": run.deck.seed,
        "weights": weights,
        "chains": sampler.chains,
        "interacting": sampler.interacting,
        "weighted": sampler.own_density,
    } | ({"made_of": sampler.made_of} if sampler.made_of else {})


def _announce(run: Run, ensemble: Ensemble, missing: list[Key], draws: int, ranks: Ranks, device: str) -> str:
    there = ensemble.draws
    head = f"{run.path}, sampler {ensemble.sampler}: {there:,} draws are there"
    if not missing:
        return f"{head}, {draws:,} asked for; nothing to draw"
    shares = len({s for s, _ in missing})
    idle = f"; {ranks.size - shares} ranks have nothing to do" if ranks.size > shares else ""
    size = ensemble.settings["block"]
    return f"{head}; drawing {len(missing)} blocks of {size:,} on {ranks.size} rank(s), {device}{idle}"


def _remove_leftovers(ensemble: Ensemble, age: float = 3600.0) -> None:
    """Remove temporary files of killed jobs. A live one exists for seconds, so an hour is safe."""
    for path in leftovers(ensemble.path):
        with suppress(OSError):  # one that a reader has just finished, or of somebody else's
            if time.time() - path.stat().st_mtime > age:
                path.unlink()
