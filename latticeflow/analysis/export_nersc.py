"""An ensemble as files of NERSC's gauge archive."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from ..errors import InputError
from ..files import writing
from ..run import Run
from ..store.nersc import write_nersc
from ..targets import Wilson
from .export_rows import Rows

NERSC = ".nersc"


def require_su3(out: Path, run: Run) -> None:
    """Raise `InputError` unless the run's fields are links of SU(3) in four dimensions."""
    target = run.deck.target
    if not isinstance(target, Wilson) or target.group != "su3" or len(target.shape) != 4:
        what = f"{target.group} on {target.shape}" if isinstance(target, Wilson) else f"'{target.kind}'"
        raise InputError(
            f"export to {out}: NERSC's format holds links of SU(3) in four dimensions; found {what}. Export to .npz or .h5"
        )


def write_folder(out: Path, run: Run, rows: Rows) -> None:
    """One file a row, in a folder that appears whole or not at all: `c0002_000017.nersc` is step 17 of chain 2, and
    `000017.nersc` draw 17 of what has no chains.

    In the header: ENSEMBLE_ID, the deck's name; SEQUENCE_NUMBER, step or draw; CHAIN; BETA; LOG_PROB, and of
    proposals LOG_WEIGHT.
    """
    if "x" not in rows.columns:
        raise InputError(f"export to {out}: no field is kept, or --observables was asked for; expected links")
    target = run.deck.target
    precision = "float32" if rows.columns["x"][0] == np.complex64 else "float64"
    with writing(out), TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as place:
        folder = Path(place) / "configurations"
        folder.mkdir()
        for piece in rows.pieces(*rows.columns):
            for i, x in enumerate(piece["x"]):
                number = int(piece["step" if "step" in piece else "index"][i])
                chain = f"c{int(piece['chain'][i]):04}_" if "chain" in piece else ""
                header = {
                    "ENSEMBLE_ID": run.deck.name,
                    "SEQUENCE_NUMBER": str(number),
                    "BETA": f"{target.beta!r}",  # type: ignore[attr-defined]
                    "LOG_PROB": f"{piece['log_prob'][i]:.17g}",
                }
                if chain:
                    header["CHAIN"] = str(int(piece["chain"][i]))
                if "log_w" in piece:
                    header["LOG_WEIGHT"] = f"{piece['log_w'][i]:.17g}"
                write_nersc(folder / f"{chain}{number:06}{NERSC}", torch.from_numpy(x), precision, **header)
        os.replace(folder, out)
