"""torch.compile of the part of a flow that is repeated, and a plain word where that fails."""

from collections.abc import Callable
from typing import Any

import torch

from .errors import InputError

SHAPES = 64  # of lattices and batches that one process may compile a function for


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, a pure one of tensors and plain numbers, as one fused program for each shape of its arguments.

    Compiled at its first call, in 10 to 60 s; torch keeps the result on disk. That call raises `InputError` where there is
    no compiler.
    """
    import torch._dynamo.config as dynamo  # slow to import, all three
    import torch._inductor.config as inductor
    from torch._dynamo.exc import TorchDynamoException

    dynamo.cache_size_limit = SHAPES
    inductor.compile_threads = 1  # no pool of processes beside the ranks
    program = torch.compile(function, fullgraph=True, dynamic=False)

    def call(*args: Any) -> Any:
        try:
            return program(*args)
        except TorchDynamoException as error:
            lines = str(error).strip().splitlines()
            raise InputError(
                f"compile = true: torch.compile failed on this machine ({lines[0] if lines else error!r}); it needs a C++ "
                "compiler on CPUs and triton on GPUs. Leave it out to go on without"
            ) from None

    return call
