"""Every error a user can cause, with the exit status that the command line gives it.

Exit status: 0 done; 2 bad deck or arguments; 75 stopped early and resumable; 1 anything else.
Messages say what was asked, what was found, what was expected, and what to do.
"""


class LatticeflowError(Exception):
    """Base of all errors raised on purpose by this package."""

    status = 1


class InputError(LatticeflowError, ValueError):
    """A bad argument, deck, shape or dtype."""

    status = 2


class NumericalError(LatticeflowError, ArithmeticError):
    """A number that was computed, not given, is NaN or infinite where it must not be."""


class CoarseSolver(NumericalError):
    """A flow whose density, integrated in steps, is off by more than is allowed."""


class StoreError(LatticeflowError):
    """A file that is missing, corrupted, truncated, of another run or of a newer format."""


class WriteFailed(StoreError):
    """A file that the system does not let be written: a full disk, a read-only folder, a quota, a limit."""


class TrainingDiverged(LatticeflowError):
    """The loss became NaN, infinite or exploded; the message names the last good checkpoint."""


class StatisticsError(LatticeflowError, ValueError):
    """An estimate that the data at hand do not allow."""


class FrozenSeries(StatisticsError):
    """A constant series: it has no autocorrelation time."""


class TooFewSamples(StatisticsError):
    """A series too short for its own autocorrelation time."""


class Stopped(LatticeflowError):
    """Stopped early; what is finished is stored and the same command goes on.

    `together`: all ranks of the job raise it and it has been said, so that each just leaves; else the rank that raises
    it ends the job.
    """

    status = 75

    def __init__(self, message: str, together: bool = False):
        super().__init__(message)
        self.together = together
