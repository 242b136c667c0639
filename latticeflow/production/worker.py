"""Which blocks are to be drawn, by which rank, and the drawing of one."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CoarseSolver, InputError, NumericalError
from ..observables import measure
from ..random import Purpose
from ..samplers import Sampler, SamplerSpec
from ..samplers.density import CHECKED, SOLVED, check_density, tolerance
from ..samplers.flow import FlowSampler
from ..store import Ensemble
from ..store.block import Key, list_blocks
from ..store.provenance import measured_by, now, provenance
from .ranks import Ranks


def missing_blocks(ensemble: Ensemble, spec: SamplerSpec, draws: int) -> list[Key]:
    """Blocks to draw for at least `draws` configurations, in order; every stream gets as many.

    All streams grow together, so that they are of one length, but for a block, whenever a job is stopped.
    """
    blocks = -(-draws // spec.block)
    streams = ensemble.settings.get("streams", 0)
    if streams:
        wanted = [(s, b) for b in range(-(-blocks // streams)) for s in range(streams)]
    else:
        wanted = [(s, 0) for s in range(blocks)]
    present = set(ensemble.present)
    return [key for key in wanted if key not in present]


def require_space(folder: Path, spec: SamplerSpec, event_shape: tuple[int, ...], draws: int) -> None:
    """Raise `InputError` where `draws` configurations, less those in `folder`, take more than its disk has left.

    A lower bound: the fields that are kept, which do not compress, and one number of 8 bytes a draw.
    """
    there = spec.block * len(list_blocks(folder))
    fields = np.dtype(spec.precision).itemsize * math.prod(event_shape) / (spec.keep_fields or math.inf)
    needed = (draws - there) * (8 + fields)
    disk = next(place for place in (folder, *folder.absolute().parents) if place.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise InputError(
            f"--draws {draws}: {needed / 1e9:,.3g} GB at least beside the {there:,} draws that are there, and "
            f"{free / 1e9:,.3g} GB are free at {disk}. Ask for fewer, or store fewer fields "
            f"(--set sampler.{spec.kind}.keep_fields=k)"
        )


def share_out(missing: list[Key], ranks: Ranks, chains: bool) -> list[Key]:
    """This rank's part, round robin: over blocks, or over streams where a block goes on from the one before."""
    if not chains:
        return missing[ranks.rank :: ranks.size]
    streams = set(sorted({s for s, _ in missing})[ranks.rank :: ranks.size])
    return [key for key in missing if key[0] in streams]


def conditions(sampler: Sampler, spec: SamplerSpec, device: str) -> dict[str, Any]:
    """What a rank's numbers depend on beside the ensemble's record, and where and by what they are made."""
    found = {
        "precision": spec.precision,
        "batch": getattr(sampler, "batch", sampler.chains or spec.block),
        "threads": spec.threads,
        **provenance(device),
    }
    if sampler.own_density and sampler.any_density:
        found["tolerance"] = tolerance(spec.precision, math.prod(sampler.target.event_shape))
    if isinstance(sampler, FlowSampler) and sampler.flow.approximate:
        found["density_tolerance"] = sampler.density_tolerance
    return found | (measured_by() if spec.keep_fields != 1 else {})


@dataclass
class Worker:
    """Draws blocks one after another and stores them with where and how they were made."""

    sampler: Sampler
    ensemble: Ensemble
    spec: SamplerSpec
    device: str

    def __post_init__(self):
        self.checked = False
        self.about = conditions(self.sampler, self.spec, self.device)

    def draw(self, stream: int, block: int) -> None:
        with self._named(stream, block):
            self._draw(stream, block)

    @contextmanager
    def _named(self, stream: int, block: int) -> Iterator[None]:
        """Say of numbers that went wrong where they did."""
        try:
            yield
        except NumericalError as error:
            advice = ""
            if self.spec.precision == "float32" and not isinstance(error, CoarseSolver):
                advice = f'. float32 overflows early: set precision = "float64" in [sampler.{self.spec.kind}]'
            raise type(error)(f"stream {stream}, block {block}: {error}{advice}") from None

    def _draw(self, stream: int, block: int) -> None:
        ensemble, about, state = self.ensemble, dict(self.about), None
        self.sampler.prepare()
        begun = time.perf_counter()
        if self.sampler.chains and block == 0:
            state = self.sampler.start(stream, ensemble.generator(Purpose.START, stream))
            about["start_seconds"] = time.perf_counter() - begun
            begun = time.perf_counter()
        elif self.sampler.chains:
            state = ensemble.state(stream, block - 1)
        rng = ensemble.generator(Purpose.DRAW, stream, block)
        draws, state = self.sampler.draw(state, self.spec.block, rng)
        seconds = time.perf_counter() - begun
        if isinstance(self.sampler, FlowSampler) and self.sampler.flow.approximate:
            about["density_error"] = self.sampler.check_solver(draws, CHECKED if self.checked else SOLVED)
        if not self.checked and "tolerance" in about:
            check_density(self.sampler, draws, about["tolerance"])
        self.checked = True
        measured = measure(self.sampler.target, draws.x) if self.spec.keep_fields != 1 else {}
        about["time"] = now()
        ensemble.write(stream, block, draws, state, seconds, measured, **about)
