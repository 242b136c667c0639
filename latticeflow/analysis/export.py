"""`latticeflow export`: an ensemble for other tools, as one file or, in NERSC's format, one file a configuration."""

import gzip
import json
import zipfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import write_atomic
from ..observables import Primary, observables
from ..run import Run
from ..store import Ensemble
from ..store.hdf5 import create_h5
from .events import Events, check_maximum
from .export_events import SUFFIXES, EventColumns, event_suffix, write_events
from .export_nersc import NERSC, require_su3, write_folder
from .export_rows import Columns, Rows
from .series import Series, open_ensemble

About = Mapping[str, str | float]  # beside the columns; attributes of HDF5


def export_run(
    run: Run | Path | str,
    out: Path | str,
    sampler: str = "flow",
    proposals: bool = False,
    observables: bool = False,
    events: str | None = None,
    quantile: float | None = None,
    maximum: float | None = None,
) -> None:
    """Write an ensemble to `out`: .npz, .h5 or .hdf5 (no compression, no checksums), .json.gz for pyerrors, .nersc, events.

    In .npz and HDF5, one row an entry of the chains: `x` `[n, *event_shape]`, `log_prob` `[n]`, and int64 `chain`
    and `step` `[n]`. Of a flow that is the exact selection by Metropolis: configurations repeat as it does, and
    `index` `[n]` says which proposal each row is. With `proposals` the raw draws instead, without `chain` and
    `step`: `index`, `log_w` `[n]`, and `weight` `[n]`, log_w as weights of mean 1. Of chain samplers all draws; chain c
    belongs to stream `c // C`, C the record's `chains`.

    With `observables` the primaries, `observables/NAME` `[n]` or `[n, k]`, take the place of `x`; so they do where no
    field is kept. Where every k-th field is kept (`keep_fields`), `x` has the rows that have one: `step` is a
    multiple of k; of a flow, `index` is, and means over the rows stay exact, since which proposals are kept does not
    depend on what they are.

    As text (HDF5: attributes): `deck`, and `ensemble`, the ensemble's record and origin in JSON. Constant memory.

    .json.gz: pyerrors' own format, one `Obs` for each scalar primary (tag: its name), chains as replica `NAME|r000000`,
    ...; `pyerrors.input.json.load_json` reads it. Here all is in memory, as pyerrors has it.

    .nersc: a folder of NERSC's gauge archive, one file a row (`export_nersc.write_folder`), SU(3) in four dimensions alone.

    .lhe and .hepmc, compressed with .gz behind: events of a matrix element (`export_events.write_events`), `events` being
    unweighted (the default), with the `quantile` of the weights (0.999) or `maximum` as w_max, weighted, or metropolis
    (`analysis.events.Events`). With `events` .npz and HDF5 hold events, too, instead of points of the cube: momenta, codes,
    colours, weights (`export_events.EventColumns`).

    Raises `InputError` for another suffix, a file that exists, an ensemble that is empty or missing, proposals as
    pyerrors' Obs, draws of a model unless as `proposals`, no pyerrors, `events`, `quantile` or `maximum` where they have no
    meaning, other fields in NERSC's format, and what `write_events` raises; `WriteFailed` where the disk refuses, and
    nothing is left.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    out = Path(out)
    _check(out, proposals, observables, events)
    if event_suffix(out):
        events = events or "unweighted"
    check_maximum(events, quantile, maximum)
    if out.suffix == NERSC:
        require_su3(out, run)
    ensemble = open_ensemble(run, sampler)
    record = {**ensemble.record, "origin": ensemble.origin}
    if events and event_suffix(out):
        write_events(out, run, ensemble, events, quantile, maximum)
        return
    if events:
        columns = EventColumns(out, run, Events(ensemble, run.deck.target, events, quantile, maximum))
        write_arrays(out, columns, columns.about | {"ensemble": json.dumps(record)})
        return
    if out.name.endswith(_PYERRORS):
        text = _obs(run, ensemble, {"deck": run.deck.toml(), "ensemble": record})
        write_atomic(out, lambda temporary: temporary.write_bytes(gzip.compress(text.encode())))
        return
    rows = Rows(ensemble, run.deck.target, proposals, observables)
    if out.suffix == NERSC:
        write_folder(out, run, rows)
        return
    about: About = {"deck": run.deck.toml(), "ensemble": json.dumps(record)}
    write_arrays(out, rows, about)


def write_arrays(out: Path, rows: Columns, about: About) -> None:
    """All rows' columns, and the texts and numbers `about`, to .npz or HDF5."""
    write_atomic(out, lambda temporary: _WRITERS[out.suffix](temporary, rows, about))


def check_arrays(out: Path) -> None:
    """Raise `InputError` unless `out` is a new .npz or HDF5 file in a folder that is there."""
    if out.suffix not in _WRITERS:
        raise InputError(f"export to {out}: suffix '{out.suffix}'; expected .npz, .h5 or .hdf5")
    _require_new(out)


def _require_new(out: Path) -> None:
    if out.exists():
        raise InputError(
            f"export to {out}: it exists; nothing was changed. Choose another name or move it away"
        )
    if not out.parent.is_dir():
        raise InputError(f"export to {out}: there is no folder {out.parent}")


def _check(out: Path, proposals: bool, observables: bool, events: str | None) -> None:
    own = event_suffix(out)
    if out.suffix not in (*_WRITERS, NERSC) and not out.name.endswith(_PYERRORS) and not own:
        raise InputError(
            f"export to {out}: suffix '{out.suffix}'; expected .npz, .h5 or .hdf5, .json.gz for pyerrors, .nersc, or of "
            f"events {', '.join(SUFFIXES)}"
        )
    _require_new(out)
    if events and not own and out.suffix not in _WRITERS:
        raise InputError(
            f"export to {out}: events = '{events}'; events go to {', '.join(SUFFIXES)}, .npz, .h5 or .hdf5"
        )
    if (events or own) and (proposals or observables):
        raise InputError(
            f"export to {out}: events are neither raw proposals nor observables; choose with --events, or export to "
            ".npz or .h5"
        )
    if not out.name.endswith(_PYERRORS):
        return
    if proposals:
        raise InputError(f"export to {out}: pyerrors' Obs are of chains; export proposals to .npz or .h5")
    if not find_spec("pyerrors"):
        raise InputError(
            f"export to {out}: pyerrors is not installed; pip install 'latticeflow[analysis]', or export to "
            ".npz or .h5"
        )


def _hdf5(path: Path, rows: Columns, about: About) -> None:
    with create_h5(path) as file:
        file.attrs.update(about)
        for name, (dtype, shape) in rows.columns.items():
            file.create_dataset(name, shape=(rows.n, *shape), dtype=dtype)
        at = 0
        for piece in rows.pieces(*rows.columns):
            n = len(next(iter(piece.values())))
            for name, values in piece.items():
                file[name][at : at + n] = values
            at += n


def _npz(path: Path, rows: Columns, about: About) -> None:
    """A zip of .npy members, which are written one after another: the blocks are read once for each."""
    with ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(stack.enter_context(open(path, "xb")), "w"))
        for name, (dtype, shape) in rows.columns.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": (rows.n, *shape)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for piece in rows.pieces(name):
                    member.write(np.ascontiguousarray(piece[name]).tobytes())
        for name, text in about.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(text))


_PYERRORS = ".json.gz"
_WRITERS: dict[str, Callable[[Path, Columns, About], None]] = {
    ".npz": _npz,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
}


def _obs(run: Run, ensemble: Ensemble, description: dict) -> str:
    """pyerrors' JSON of one list of Obs."""
    ensemble.require_exact("pyerrors' Obs (compare prints the estimates, marked as approximate)")
    import pyerrors
    from pyerrors.input.json import create_json_string

    series = Series(ensemble, run.deck.target)
    found = []
    for name in series.names:
        one = observables.find(name)
        if isinstance(one, Primary) and one.vector:
            continue
        chains = list(series[name])
        names = [f"{run.deck.name}|r{number:06d}" for number in range(len(chains))]
        found.append(pyerrors.Obs(chains, names))
        found[-1].tag = name
    return create_json_string([found], description=description, indent=0)
