"""torch's number of CPU threads, for the duration of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

MAX_THREADS = 1024  # more are a slip of the pen, which OpenMP would answer by ending the process


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Run with n threads, then with as many as before. Sums depend on n in the last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)
