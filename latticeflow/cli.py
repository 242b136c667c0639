"""The command line: train, sample, at, curve, measure, compare, diagnose, verify, info, export, nersc.

Each command is a thin call of a library function. Heavy imports happen inside the commands, so that
`--help` is quick and MPI starts only where it is used.
"""

import fcntl
import os
import stat
import sys
import termios
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Optional

import typer

from .errors import LatticeflowError, Stopped

app = typer.Typer(
    name="latticeflow",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Exact flow sampling for field theories: train a flow on an action, sample it under mpirun, "
    "correct it by Metropolis, compare it with HMC.",
)

RunFolder = Annotated[Path, typer.Argument(help="A run folder, as made by train (runs/NAME).")]
RunOrDeck = Annotated[
    Path, typer.Argument(help="A run folder, or a deck (.toml) whose run folder is made if need be.")
]
Overrides = Annotated[
    Optional[list[str]],  # noqa: UP045 (typer reads this annotation at run time)
    typer.Option(
        "--set",
        help="Override a deck key: --set train.steps=500; of the first stage: train.stage.0.steps=500. May be repeated.",
    ),
]
RunOption = Annotated[
    Optional[Path],  # noqa: UP045
    typer.Option("--run", help="The run folder to write; default runs/NAME with the deck's name."),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, or auto (cuda where there is one).")]
TimeLimit = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Stop in time: seconds, MM:SS, HH:MM:SS or D-HH:MM:SS since the start."),
]
SamplerName = Annotated[
    str,
    typer.Option(
        help="flow, hmc, cluster, heatbath, annealed, hybrid, emcee, exact, model; of events vegas, flat."
    ),
]


@app.command()
def train(
    deck: Annotated[Path, typer.Argument(help="The deck (.toml), or with --resume the run folder.")],
    set_: Overrides = None,
    run: RunOption = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last checkpoint, if the run exists.")] = False,
    device: Device = "auto",
    time_limit: TimeLimit = None,
) -> None:
    """Train the deck's flow against its target, by reverse KL or on an ensemble, or its [model] on an ensemble (train.data).

    The same command with or without mpirun or torchrun; every rank computes its part of each batch. Writes runs/NAME
    with deck.toml, weights/ and train.jsonl. SIGTERM, SIGINT, SIGUSR1, the file RUN/STOP and the time limit end the
    job after a step with status 75 and the line that goes on; --resume gives the same weights, bit for bit.
    """
    from .production.stop import process_began
    from .production.train import train_run

    train_run(
        deck,
        overrides=set_ or [],
        folder=run,
        resume=resume,
        device=device,
        time_limit=time_limit,
        since=process_began(),
    )


@app.command()
def sample(
    run: RunOrDeck,
    sampler: SamplerName = "flow",
    draws: Annotated[
        int, typer.Option(help="Configurations in total, over all ranks and earlier calls.")
    ] = 0,
    set_: Overrides = None,
    device: Device = "auto",
    share_gpus: Annotated[bool, typer.Option(help="Allow more ranks than GPUs on a node.")] = False,
    time_limit: TimeLimit = None,
    chain: Annotated[
        bool,
        typer.Option(
            help="End with the serial scan into the Metropolis chain, or leave it to the first reader who may write."
        ),
    ] = True,
) -> None:
    """Draw configurations; the same command with or without mpirun, and to resume or to extend.

    Writes immutable blocks under RUN/ensembles/SAMPLER. The result does not depend on the number of ranks.
    Whole blocks are drawn, so the total is rounded up. SIGTERM, SIGINT, SIGUSR1, the file RUN/STOP and the time
    limit end the job between two blocks with status 75 and the line that goes on.
    """
    from .production.sample import sample_run
    from .production.stop import process_began

    sample_run(
        run,
        sampler=sampler,
        draws=draws,
        overrides=set_ or [],
        device=device,
        share_gpus=share_gpus,
        time_limit=time_limit,
        since=process_began(),
        chain=chain,
    )


@app.command()
def at(
    run: RunFolder,
    new: Annotated[Path, typer.Option("--run", help="The run folder to write.")],
    set_: Overrides = None,
) -> None:
    """Make a run at other couplings from a conditional flow, e.g. --set target.lam=5.2: same weights, another target.

    --set seed=N gives it noise of its own; with the same seed, draws of both runs are correlated.
    """
    from .production.at import at_run

    at_run(run, set_ or [], new)


@app.command()
def curve(
    run: RunFolder,
    along: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="NAME=FROM:TO:POINTS, e.g. lam=4.5:7:26; default: the whole range of the flow."),
    ] = None,
    nodes: Annotated[int, typer.Option(help="Couplings, evenly spaced, at which is drawn.")] = 5,
    draws: Annotated[int, typer.Option(help="Draws at each node.")] = 4096,
    observables: Annotated[str, typer.Option(help="Comma-separated.")] = "phi2,chi2,abs_m,binder",
    device: Device = "cpu",
) -> None:
    """Observables, log Z and ESS as curves in a coupling, from a conditional flow: draws reweighted between nodes.

    Prints a table and writes RUN/curve/curve.csv and curve.png.
    """
    from .analysis.curve_run import curve_run

    curve_run(run, along=along, nodes=nodes, draws=draws, names=observables.split(","), device=device)


@app.command()
def measure(
    run: RunFolder,
    sampler: SamplerName = "flow",
    pyerrors: Annotated[
        bool, typer.Option("--pyerrors", help="Beside our estimates those of pyerrors (extra 'analysis').")
    ] = False,
    forward: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Estimate ESS and log Z also at this sampler's draws, e.g. hmc: sees dropped modes."
        ),
    ] = None,
) -> None:
    """Print every observable of an ensemble with its error and autocorrelation time; also under mpirun.

    Adds what is not measured yet beside the blocks, RUN/ensembles/SAMPLER/measured, and touches no field.
    """
    from .analysis.measure import measure_run

    measure_run(run, sampler=sampler, pyerrors=pyerrors, forward=forward)


@app.command()
def compare(
    run: RunFolder,
    samplers: Annotated[
        str, typer.Option(help="Samplers to compare, comma-separated; the first is the one in question.")
    ] = "flow,hmc",
) -> None:
    """Compare samplers of one target: observables with pulls, autocorrelation, ESS, cost; plots and a page.

    Writes RUN/compare/ with PNG plots and a self-contained compare.html.
    """
    from .analysis.compare import compare_run

    compare_run(run, samplers=samplers.split(","))


@app.command()
def diagnose(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, one or more of the same target.")],
    samplers: Annotated[
        str, typer.Option(help="Samplers in question, comma-separated; of each run those that it has.")
    ] = "model",
    reference: Annotated[str, typer.Option(help="The exact sampler to compare with.")] = "hmc",
    draws: Annotated[
        int, typer.Option(help="Configurations of each ensemble that a classifier sees.")
    ] = 4096,
) -> None:
    """Find out which ensemble gets which physics wrong: observables, action histogram, correlators, modes, a classifier,

    repeated draws, copies of training data. Prints one table; writes RUN/diagnose/ of the first run with a page.
    """
    from .analysis.diagnose import diagnose_run

    diagnose_run(runs, samplers=samplers.split(","), reference=reference, draws=draws)


@app.command()
def verify(
    run: RunFolder,
    sample: Annotated[
        float, typer.Option(help="Share of the blocks whose fields are recomputed; other ones at each call.")
    ] = 1.0,
    device: Device = "cpu",
) -> None:
    """Check all that a run holds: checksums, S and log q recomputed from the fields, weights, the chain.

    Names every problem it finds, changes nothing, and exits with 1 if there is one. Runs under mpirun, too.
    """
    from .analysis.verify import verify_run

    verify_run(run, sample=sample, device=device)


@app.command()
def info(run: RunFolder) -> None:
    """Show what a run holds: deck, training, weights, ensembles and where they came from."""
    from .analysis.info import print_info

    print_info(run)


@app.command()
def export(
    run: RunFolder,
    out: Annotated[
        Path,
        typer.Argument(
            help="What to write: .npz, .h5, .json.gz for pyerrors, .nersc (a folder of files), or events, .lhe or .hepmc "
            "(with .gz compressed)."
        ),
    ],
    sampler: SamplerName = "flow",
    proposals: Annotated[
        bool, typer.Option(help="Raw draws with log_w instead of the corrected selection.")
    ] = False,
    observables: Annotated[
        bool, typer.Option(help="Measured observables of every draw instead of fields.")
    ] = False,
    events: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Events with momenta: unweighted (of .lhe and .hepmc the default), weighted or metropolis."
        ),
    ] = None,
    quantile: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Of all weights (0.999), at which events are unweighted; those above it keep a weight."
        ),
    ] = None,
    maximum: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Unweight at this weight instead, in the unit of the cross section."),
    ] = None,
) -> None:
    """Export an ensemble to .npz, plain HDF5 or NERSC's format, its events, or its observables to pyerrors."""
    from .analysis.export import export_run

    export_run(
        run,
        out,
        sampler=sampler,
        proposals=proposals,
        observables=observables,
        events=events,
        quantile=quantile,
        maximum=maximum,
    )


@app.command()
def nersc(
    files: Annotated[
        list[Path], typer.Argument(help="Files of NERSC's gauge archive, SU(3) on one lattice.")
    ],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Write the links to this .npz or .h5, x [n, 4, *shape, 3, 3], if all files are good."
        ),
    ] = None,
) -> None:
    """Verify configurations in NERSC's format, their checksum, plaquette and link trace; or import them as arrays.

    Names every bad file and what is wrong with it, and exits with 1 if there is one.
    """
    from .analysis.nersc import nersc_run

    nersc_run(files, out=out)


def main() -> None:
    """Entry point. Any failure on any rank, in any thread, ends the whole MPI job with the error's status."""
    threading.excepthook = _thread_failed
    try:
        app(standalone_mode=True)
    except SystemExit as stop:
        _leave(stop.code if isinstance(stop.code, int) else 1 if stop.code else 0)
    except LatticeflowError as error:
        if isinstance(error, Stopped) and error.together:
            sys.exit(error.status)
        try:
            kind = "stopped" if isinstance(error, Stopped) else "error"
            print(f"latticeflow: {kind}: {error}", file=sys.stderr)
        finally:  # whatever became of the terminal
            _leave(error.status)
    except BaseException:
        try:
            traceback.print_exc()
        finally:
            _leave(1)


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """A thread that dies would otherwise leave a job that waits for its work, or that ends with status 0."""
    try:
        threading.__excepthook__(failure)
    finally:
        _end_job(1)
        os._exit(1)


def _leave(status: int) -> None:
    if status:
        _end_job(status)
    sys.exit(status)


def _forwarded(descriptor: int) -> None:
    """Until mpirun has read what was printed into its pipe, 5 s at most: at an abort MPICH's drops what it has not."""
    deadline = time.monotonic() + 5
    while stat.S_ISFIFO(os.fstat(descriptor).st_mode) and time.monotonic() < deadline:
        if not int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), sys.byteorder):
            return
        time.sleep(0.01)


def _end_job(status: int) -> None:
    """Take the other ranks along: one that waits would hang the job.

    At once, not when the interpreter ends (mpi4py.run.set_abort_status): that first joins every thread.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a full disk or a closed pipe must not keep the job from ending
            stream.flush()
    MPI = sys.modules.get("mpi4py.MPI")
    if MPI is not None and MPI.Is_initialized() and not MPI.Is_finalized():
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                _forwarded(stream.fileno())
        MPI.COMM_WORLD.Abort(status)
