"""Which blocks are to be drawn, by which rank, and the drawing of one."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..errors import NumericalError
from ..random import Purpose
from ..samplers import Sampler, SamplerSpec
from ..store import Ensemble
from ..store.provenance import provenance
from .ranks import Ranks

Key = tuple[int, int]  # (stream, block)


def missing_blocks(ensemble: Ensemble, spec: SamplerSpec, draws: int) -> list[Key]:
    """Blocks to draw for at least `draws` configurations, sorted; every stream of chains gets as many."""
    blocks = -(-draws // spec.block)
    if ensemble.chains:
        streams = ensemble.settings["streams"]
        wanted = [(s, b) for s in range(streams) for b in range(-(-blocks // streams))]
    else:
        wanted = [(s, 0) for s in range(blocks)]
    present = set(ensemble.present)
    return [key for key in wanted if key not in present]


def share_out(missing: list[Key], ranks: Ranks, chains: bool) -> list[Key]:
    """This rank's part, round robin: over blocks, or over streams where a block goes on from the one before."""
    if not chains:
        return missing[ranks.rank :: ranks.size]
    streams = sorted({s for s, _ in missing})[ranks.rank :: ranks.size]
    return [key for key in missing if key[0] in streams]


@dataclass
class Worker:
    """Draws blocks one after another; keeps the state of the chain it is in."""

    sampler: Sampler
    ensemble: Ensemble
    spec: SamplerSpec
    device: str

    def __post_init__(self):
        self.last: Key | None = None
        self.state = None
        self.about = {
            "precision": self.spec.precision,
            "batch": getattr(self.sampler, "batch", self.sampler.chains or self.spec.block),
            "threads": self.spec.threads,
            **provenance(self.device),
        }

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
            if self.spec.precision == "float32":
                advice = f'. float32 overflows early: set precision = "float64" in [sampler.{self.spec.kind}]'
            raise NumericalError(f"stream {stream}, block {block}: {error}{advice}") from None

    def _draw(self, stream: int, block: int) -> None:
        ensemble, about = self.ensemble, dict(self.about)
        begun = time.perf_counter()
        if self.sampler.chains:
            if block == 0:
                self.state = self.sampler.start(stream, ensemble.generator(Purpose.START, stream))
                about["start_seconds"] = time.perf_counter() - begun
                begun = time.perf_counter()
            elif self.last != (stream, block - 1):
                self.state = ensemble.state(stream, block - 1)
        rng = ensemble.generator(Purpose.DRAW, stream, block)
        draws, self.state = self.sampler.draw(self.state, self.spec.block, rng)
        ensemble.write(stream, block, draws, self.state, time.perf_counter() - begun, **about)
        self.last = (stream, block)
