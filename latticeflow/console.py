"""Where lines and tables are printed."""

import sys

from rich.console import Console


def console(quiet: bool = False) -> Console:
    """Standard output, text as it is: no markup in `a[b]`, no broken lines; tables 110 columns wide in a file.

    What the encoding does not have (τ in ASCII) prints as "?": a finished run must not fail at its last line.
    """
    reconfigure = getattr(sys.stdout, "reconfigure", None)  # notebooks have none, and need none
    if reconfigure is not None:
        reconfigure(errors="replace")
    plain = Console(markup=False, highlight=False, emoji=False, soft_wrap=True, quiet=quiet)
    if not plain.is_terminal:
        plain.width = 110
    return plain
