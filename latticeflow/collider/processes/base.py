"""What a process is, and how a user's own becomes one: a function of momenta with a decorator."""

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor

from ...spec import Registry, Spec


class Process(Spec):
    """A squared matrix element `|M|^2` with the particles that it belongs to.

    `incoming`: PDG codes, two of a collision or one of a decay; `outgoing`: PDG codes; `masses`: of the outgoing particles, GeV,
    all zero by default. `unit` of the result: "pb" (cross section), "GeV" (width), or "" where `normalised`.

    `squared(p)`: p `[batch, incoming + outgoing, 4]`, (E, px, py, pz) in GeV, incoming first, as they move (not all outgoing);
    `|M|^2` `[batch]`, averaged over spins and colours of the incoming, summed over those of the outgoing particles, with the
    factor 1/n! of n identical outgoing ones. It may be 0 and may not be negative or NaN.

    `hadronic`: the incoming particles are partons of two colliding hadrons; `squared` is `[batch, K]`, for each
    of the K pairs of partons in `channels`, and `densities(x1, x2, q2)` gives the products of their densities, `[batch, K]`.
    """

    kind: ClassVar[str]
    incoming: ClassVar[tuple[int, ...]]
    outgoing: ClassVar[tuple[int, ...]]
    hadronic: ClassVar[bool] = False
    channels: ClassVar[tuple[tuple[int, int], ...]] = ()

    @property
    def masses(self) -> tuple[float, ...]:
        return (0.0,) * len(self.outgoing)

    @property
    def unit(self) -> str:
        return "pb" if len(self.incoming) == 2 else "GeV"

    def squared(self, p: Tensor) -> Tensor:
        raise NotImplementedError

    def densities(self, x1: Tensor, x2: Tensor, q2: Tensor) -> Tensor:
        raise NotImplementedError


processes: Registry[Process] = Registry("process")


def process(
    kind: str, incoming: tuple[int, ...], outgoing: tuple[int, ...], masses: tuple[float, ...] | None = None
) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    """Make a function `|M|^2(p)` the process called `kind`, which decks then know.

        @process("my_process", incoming=(11, -11), outgoing=(13, -13))
        def squared(p): ...        # p [batch, 4, 4] -> [batch]; see `Process.squared`

    The function stays what it is. A deck is data and runs no code, so the script that holds the function starts the commands:
    it ends with `latticeflow.cli.main()`, and `python script.py sample RUN` is then `latticeflow sample RUN`.
    """

    def register(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        own = masses if masses is not None else (0.0,) * len(outgoing)
        body = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__annotations__": {},
            "squared": lambda self, p: function(p),
            "masses": property(lambda self: own),
            "incoming": incoming,
            "outgoing": outgoing,
        }
        body["__annotations__"] = {
            "incoming": ClassVar[tuple[int, ...]],
            "outgoing": ClassVar[tuple[int, ...]],
        }
        processes.add(kind)(type(Process)(f"Process_{kind}", (Process,), body))
        return function

    return register
