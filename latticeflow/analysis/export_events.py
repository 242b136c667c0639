"""Events for other programs: Les Houches event files, HepMC3's ASCII and plain arrays, block by block."""

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from .. import __version__
from ..collider import MatrixElement
from ..collider.colour_flow import colour_flow
from ..errors import InputError
from ..files import write_atomic
from ..precision import double
from ..random import Purpose
from ..run import Run
from ..store import Ensemble
from .events import Events

PROTON = 2212
REMNANT = 82  # of a hadron, by the numbers that PDG leaves to generators
SUFFIXES = {".lhe": "pylhe", ".lhe.gz": "pylhe", ".hepmc": "pyhepmc", ".hepmc.gz": "pyhepmc"}
_PER_CALL = 1 << 14  # events whose momenta are computed at a time


def event_suffix(out: Path) -> str | None:
    """The suffix of `out` if it is one of an event file, else None."""
    return next(
        (suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if out.name.endswith(suffix)), None
    )


@dataclass(frozen=True)
class Batch:
    """Some events: momenta `p` `[n, k, 4]` as (E, px, py, pz) in GeV, incoming first; PDG codes `ids` `[n, k]`; `colours`
    `[n, k, 2]`; `weight` `[n]` in the unit of Z; `scale` `[n]`, GeV (`Process.scale`); of partons in hadrons their fractions
    `x` and the mass of the pair `pair_mass` `[n]`."""

    p: np.ndarray
    ids: np.ndarray
    colours: np.ndarray
    weight: np.ndarray
    scale: np.ndarray
    x: np.ndarray | None
    pair_mass: np.ndarray


def write_events(
    out: Path,
    run: Run,
    ensemble: Ensemble,
    mode: str = "unweighted",
    quantile: float | None = None,
    maximum: float | None = None,
) -> int:
    """Write the `Events` of an ensemble to `out`, .lhe or .hepmc, with .gz compressed; return their number.

    Les Houches (hep-ph/0109068; hep-ph/0609017): <init> has beams with their energies, the cross section and its error in
    pb, of a decay (one beam, the second 0) the width in GeV. IDWTUP is 3 with XWGTUP = 1 where all weights are equal; else,
    as where unweighted events lie above w_max, it is 4: the mean of XWGTUP over the file is the cross section, and XMAXUP
    the largest. Colour flows are `collider.colour_flow`'s; SPINUP 9 (unknown); SCALUP `Process.scale`; AQEDUP and
    AQCDUP the process's `alpha` and `alpha_s`, -1 where it has none. Partons of hadrons collide along z in the hadrons'
    frame; which ones is chosen by their share in the matrix element. <header> holds the deck and the ensemble's identity.
    Showers of the kind of Pythia can read processes ee_* and drell_yan. gg_* has beams of gluons (IDBMUP 21 21) and a decay
    one beam and a width in GeV: these are for other uses.

    HepMC3: beams of status 4, one vertex, outgoing particles of status 1. Of hadrons a vertex each, to the parton (status
    21, as Pythia marks incoming ones of the hard process) and a remnant (82, status 1), so that particles of status 1
    balance the beams; GenPdfInfo has the partons, x and the mass of the pair as scale, but no densities (0). Coloured
    particles have the attributes flow1 and flow2, events signal_process_id, event_scale, alphaQED and alphaQCD. One weight,
    "Weight", whose mean is the cross section, which is in GenCrossSection with its error in pb (none for a decay).

    Raises `InputError` for another target than a matrix element, a missing package, and what `Events` raises;
    `WriteFailed` where the disk refuses, and nothing is left.
    """
    suffix = event_suffix(out)
    if suffix is None:
        raise InputError(f"export to {out}: expected a name that ends with {', '.join(SUFFIXES)}")
    target = _matrix_element(out, run)
    if not find_spec(SUFFIXES[suffix]):
        raise InputError(
            f"export to {out}: {SUFFIXES[suffix]} is not installed; pip install 'latticeflow[events]', or export to "
            ".npz or .h5"
        )
    events = Events(ensemble, target, mode, quantile, maximum)
    write = _lhe if SUFFIXES[suffix] == "pylhe" else _hepmc

    def save(temporary: Path) -> None:
        with _opened(temporary, suffix.endswith(".gz")) as file:
            write(file, run, target, events)

    write_atomic(out, save)
    return events.n


def _matrix_element(out: Path, run: Run) -> MatrixElement:
    if not isinstance(run.deck.target, MatrixElement):
        raise InputError(
            f"export to {out}: target '{run.deck.target.kind}' has no events; those are of a matrix_element. Export to .npz "
            "or .h5 without --events"
        )
    return run.deck.target


class EventColumns:
    """`Events` as columns of .npz and HDF5, one row an event.

    `p` `[n, k, 4]`, (E, px, py, pz) in GeV, incoming first, in the laboratory; `ids`, `colours`, `weight`, `scale` as in
    `Batch`; of partons in hadrons `x` `[n, 2]`. `about`: `z`, `z_error`, `unit`, the `mode`, the deck. Raises what
    `write_events` does.
    """

    def __init__(self, out: Path, run: Run, events: Events):
        self.target, self.events, self.n = _matrix_element(out, run), events, events.n
        k = len(self.target.process.incoming) + len(self.target.process.outgoing)
        number, code = np.dtype(float), np.dtype(np.int64)
        self.columns: dict[str, tuple[np.dtype, tuple[int, ...]]] = {
            "p": (number, (k, 4)),
            "ids": (code, (k,)),
            "colours": (code, (k, 2)),
            "weight": (number, ()),
            "scale": (number, ()),
        }
        if self.target.process.hadronic:
            self.columns["x"] = number, (2,)
        self.about: dict[str, str | float] = {
            "z": events.z,
            "z_error": events.z_error,
            "unit": self.target.unit,
            "mode": events.mode,
            "deck": run.deck.toml(),
        }

    def pieces(self, *names: str) -> Iterator[dict[str, np.ndarray]]:
        for batch in batches(self.target, self.events):
            yield {name: getattr(batch, name) for name in names}


@contextmanager
def _opened(path: Path, compress: bool) -> Iterator[IO[bytes]]:
    """A new file; compressed without the time, so that the same events are the same bytes."""
    with open(path, "xb") as handle:
        if not compress:
            yield handle
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=handle, mtime=0) as zipped:
            yield zipped  # type: ignore[misc]


def batches(target: MatrixElement, events: Events) -> Iterator[Batch]:
    """All events with momenta, codes and colours; random numbers are those of the block."""
    process, incoming = target.process, len(target.process.incoming)
    codes = np.array([*process.incoming, *process.outgoing])
    for key, x, weight in events.pieces():
        rng = events.ensemble.generator(Purpose.UNWEIGHT, *key, 1)
        for at in range(0, len(x), _PER_CALL):
            u = double(torch.as_tensor(x[at : at + _PER_CALL]))
            with torch.no_grad():
                event = target.generate(u)
                scale = process.scale(event.p).cpu().numpy()
            p, fractions = event.laboratory.cpu().numpy(), None if event.x is None else event.x.cpu().numpy()
            ids = np.tile(codes, (len(p), 1))
            if process.hadronic:
                with torch.no_grad():
                    shares = target.channel_weights(u).cpu().numpy()
                ids[:, :2] = np.array(process.channels)[_pick(shares, rng.random(len(p)))]
            colours, dice = np.zeros((*ids.shape, 2), dtype=np.int64), rng.random(len(p))
            for own in np.unique(ids, axis=0):
                same = (ids == own).all(axis=1)
                colours[same] = colour_flow(tuple(own.tolist()), incoming, p[same], dice[same])
            pair_mass = event.energy.cpu().numpy()
            yield Batch(p, ids, colours, weight[at : at + _PER_CALL], scale, fractions, pair_mass)


def _pick(shares: np.ndarray, u: np.ndarray) -> np.ndarray:
    """For each row of `[n, K]` a column, with probability proportional to its entry."""
    cumulative = shares.cumsum(axis=1)
    return np.minimum((cumulative <= u[:, None] * cumulative[:, -1:]).sum(axis=1), shares.shape[1] - 1)


def _couplings(target: MatrixElement) -> tuple[float, float]:
    """alpha and alpha_s of the process, -1 where it has none."""
    alpha, alpha_s = (float(getattr(target.process, name, -1.0)) for name in ("alpha", "alpha_s"))
    return alpha, alpha_s


def _masses(target: MatrixElement) -> list[float]:
    incoming = [target.energy] if len(target.process.incoming) == 1 else [0.0, 0.0]
    return [*incoming, *target.process.masses]


def _lhe(file: IO[bytes], run: Run, target: MatrixElement, events: Events) -> None:
    import xml.etree.ElementTree as xml

    import pylhe

    process = target.process
    codes, half = (PROTON, PROTON) if process.hadronic else process.incoming, target.energy / 2
    one, two = codes if len(codes) == 2 else (codes[0], 0)
    energies = (half, half) if two else (target.energy, 0.0)
    strategy = 3 if events.unit_weights else 4
    about = xml.Element("latticeflow", {"identity": events.ensemble.identity, "events": events.mode})
    about.text = f"\n{run.deck.toml()}"
    number = "{%s: 23.16e}"
    layout = pylhe.LHEXMLFormat(
        weights=pylhe.LHEWeightFormat.NONE,
        eventinfo="{nparticles:3d} {pid:6d} "
        + " ".join(number % name for name in ("weight", "scale", "aqed", "aqcd")),
        particle="{id:8d} {status:3d} {mother1:3d} {mother2:3d} {color1:4d} {color2:4d} "
        + " ".join(number % name for name in ("px", "py", "pz", "e", "m"))
        + " {lifetime:g} {spin:g}",
        initinfo=pylhe.DEFAULT_FORMAT.initinfo.replace("14.7e", "23.16e"),
        procinfo=pylhe.DEFAULT_FORMAT.procinfo.replace("14.7e", "23.16e"),
    )
    text = io.TextIOWrapper(file, encoding="utf-8", write_through=True)
    pylhe.LHEFile(
        init=pylhe.LHEInit(
            pylhe.LHEInitInfo(one, two, *energies, 0, 0, 0, 0, strategy, 1),
            [pylhe.LHEProcInfo(events.z, events.z_error, 1.0 if strategy == 3 else events.largest, 1)],
            [pylhe.LHEGenerator("latticeflow", __version__, process.kind)],
        ),
        header=pylhe.LHEHeader(pylhe.LHEInitRWGT(), [about]),
        events=_lhe_events(target, events, strategy),
    ).write(text, layout)
    text.write("\n")
    text.detach()


def _lhe_events(target: MatrixElement, events: Events, strategy: int) -> Iterator[Any]:
    import pylhe

    process, masses, k = target.process, _masses(target), len(target.process.incoming)
    alpha, alpha_s = _couplings(target)
    mothers = [(0, 0)] * k + [(1, k)] * len(process.outgoing)
    for batch in batches(target, events):
        scale = batch.scale.tolist()
        weight = [1.0] * len(scale) if strategy == 3 else batch.weight.tolist()
        for p, ids, colours, s, w in zip(
            batch.p.tolist(), batch.ids.tolist(), batch.colours.tolist(), scale, weight
        ):
            particles = [
                pylhe.LHEParticle(
                    i,
                    -1 if j < k else 1,
                    *mothers[j],
                    c[0],
                    c[1],
                    q[1],
                    q[2],
                    q[3],
                    q[0],
                    masses[j],
                    0.0,
                    9.0,
                )
                for j, (i, c, q) in enumerate(zip(ids, colours, p))
            ]
            yield pylhe.LHEEvent(pylhe.LHEEventInfo(len(particles), 1, w, s, alpha, alpha_s), particles)


def _hepmc(file: IO[bytes], run: Run, target: MatrixElement, events: Events) -> None:
    import pyhepmc

    about = pyhepmc.GenRunInfo()
    about.tools = [("latticeflow", __version__, target.process.kind)]
    about.weight_names = ["Weight"]
    about.attributes = {"identity": events.ensemble.identity, "deck": run.deck.toml()}
    # pyhepmc loses what a file's write raises, so it writes to memory
    buffer = io.BytesIO()
    with pyhepmc.open(buffer, "w", precision=16) as writer:
        number = 0
        for batch in batches(target, events):
            for i, weight in enumerate(batch.weight.tolist()):
                event = pyhepmc.GenEvent(about, pyhepmc.Units.GEV, pyhepmc.Units.MM)
                event.event_number, event.weights = number, [weight]
                _fill(event, target, batch, i)
                if target.unit == "pb":
                    found = pyhepmc.GenCrossSection()
                    event.cross_section = found
                    found.set_cross_section(events.z, events.z_error, events.n, events.ensemble.draws)
                writer.write(event)
                number += 1
            _move(buffer, file)
    _move(buffer, file)


def _move(buffer: io.BytesIO, file: IO[bytes]) -> None:
    file.write(buffer.getvalue())
    buffer.seek(0)
    buffer.truncate()


def _fill(event: Any, target: MatrixElement, batch: Batch, i: int) -> None:
    """Particles, vertices and attributes of event i of a batch."""
    import pyhepmc

    process, masses, k = target.process, _masses(target), len(target.process.incoming)
    ids, p = batch.ids[i].tolist(), [(q[1], q[2], q[3], q[0]) for q in batch.p[i].tolist()]
    hard, particles = pyhepmc.GenVertex(), []
    for j, (code, q) in enumerate(zip(ids, p)):
        particle = pyhepmc.GenParticle(q, code, 1 if j >= k else 21 if process.hadronic else 4)
        particle.generated_mass = masses[j]
        particles.append(particle)
        if j >= k:
            hard.add_particle_out(particle)
            continue
        hard.add_particle_in(particle)
        if process.hadronic:
            half = target.energy / 2
            beam = (0.0, 0.0, half if j == 0 else -half, half)
            split = pyhepmc.GenVertex()
            split.add_particle_in(pyhepmc.GenParticle(beam, PROTON, 4))
            split.add_particle_out(particle)
            rest = tuple(a - b for a, b in zip(beam, q))
            split.add_particle_out(pyhepmc.GenParticle(rest, REMNANT, 1))
            event.add_vertex(split)
    event.add_vertex(hard)
    for particle, (one, two) in zip(particles, batch.colours[i].tolist()):
        if one or two:
            particle.attributes = {"flow1": one, "flow2": two}
    alpha, alpha_s = _couplings(target)
    event.attributes = {
        "signal_process_id": 1,
        "event_scale": float(batch.scale[i]),
        "alphaQED": alpha,
        "alphaQCD": alpha_s,
    }
    if batch.x is not None:
        info = pyhepmc.GenPdfInfo()
        info.parton_id1, info.parton_id2 = ids[:2]
        info.x1, info.x2 = batch.x[i].tolist()
        info.scale = float(batch.pair_mass[i])
        event.pdf_info = info
