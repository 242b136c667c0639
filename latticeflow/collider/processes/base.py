"""What a process is, and how a user's own becomes one: a function of momenta with a decorator."""

import types
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ...errors import InputError
from ...spec import Registry, Spec
from ..kinematics import mass

ALPHA = 1 / 137.035999084  # of electromagnetism, at zero momentum
ALPHA_S = 0.118


class Process(Spec):
    """A squared matrix element `|M|^2` with the particles that it belongs to.

    `incoming`: PDG codes, two of a collision or one of a decay; `outgoing`: PDG codes; `masses`: of the outgoing particles,
    GeV, all zero by default. `unit` of the integral over phase space: "pb" (cross section) or "GeV" (width).

    `squared(p)`: p `[batch, incoming + outgoing, 4]`, (E, px, py, pz) in GeV and float64, incoming first, as they move (not
    all outgoing), in their centre-of-mass frame; `|M|^2` `[batch]`, averaged over spins and colours of the incoming, summed
    over those of the outgoing particles, with the factor 1/n! of n identical outgoing ones. It may be 0 and may not be
    negative or NaN.

    `hadronic`: the incoming particles are partons of two colliding hadrons; `squared` is `[batch, K]`, for each of the K
    pairs of partons in `channels`, and `densities(x1, x2, q2)` gives the products of their densities, `f(x1, q2) f(x2,
    q2)`, not times x, `[batch, K]`. `mass_range`: least and greatest mass of the pair of partons, GeV.

    `scale(p)`: hardness of the event, GeV, `[batch]`, p as above: from where a parton shower goes on, SCALUP of Les Houches;
    by default the mass of the system, sqrt(s)."""

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

    def scale(self, p: Tensor) -> Tensor:
        return mass(p[:, : len(self.incoming)].sum(1))

    def densities(self, x1: Tensor, x2: Tensor, q2: Tensor) -> Tensor:
        raise NotImplementedError

    @property
    def mass_range(self) -> tuple[float, float]:
        raise NotImplementedError

    def __reduce__(self):
        """Travels to other ranks as its deck table: the class of a user's function has no name to be found by."""
        return _restore, (processes.table(self),)


def _restore(table: dict[str, Any]) -> Process:
    return processes.parse(table)


processes: Registry[Process] = Registry("process")


def process(
    kind: str,
    incoming: tuple[int, ...],
    outgoing: tuple[int, ...],
    masses: tuple[float, ...] | None = None,
    scale: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Callable[[Tensor], Tensor]], Callable[[Tensor], Tensor]]:
    """Make a function `|M|^2(p)` the process called `kind`, which decks then know.

        from latticeflow.cli import main
        from latticeflow.collider import process

        @process("ee_scalars", incoming=(11, -11), outgoing=(1000013, -1000013))
        def squared(p):                                    # e+e- -> gamma* -> two massless scalars, (e^4 / 2) sin^2 theta
            cos = p[:, 2, 3] / p[:, 2, 0]                  # p [batch, 4, 4] -> [batch]; see `Process.squared`
            return 0.5 * (4 * 3.141592653589793 / 137.035999084) ** 2 * (1 - cos**2)

        main()

    The function stays what it is; `scale` is `Process.scale`, where another than the mass of the system is meant. A deck
    is data and runs no code, so the script that holds the function starts the commands: it ends with
    `latticeflow.cli.main()`, and `python script.py sample RUN` is then `latticeflow sample RUN`.
    The deck says

        [target]
        kind = "matrix_element"
        process = "ee_scalars"
        energy = 91.2
        phase_space = "rambo"

    Raises `InputError` for numbers of particles or masses that no process has, and for a kind that is taken.
    """
    own = masses if masses is not None else (0.0,) * len(outgoing)
    if len(incoming) not in (1, 2) or len(outgoing) < 2:
        raise InputError(
            f"process '{kind}': {len(incoming)} particles to {len(outgoing)}; expected 1 or 2 to at least 2"
        )
    if len(own) != len(outgoing) or not all(0 <= mass < float("inf") for mass in own):
        raise InputError(f"process '{kind}': masses {own}; expected {len(outgoing)} numbers, none negative")

    def register(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        body: dict[str, Any] = {
            "__doc__": function.__doc__,
            "__module__": function.__module__,
            "__annotations__": {name: ClassVar[tuple[int, ...]] for name in ("incoming", "outgoing")},
            "squared": lambda self, p: function(p),
            "masses": property(lambda self: own),
            "incoming": incoming,
            "outgoing": outgoing,
        }
        if scale is not None:
            body["scale"] = lambda self, p: scale(p)
        cls = types.new_class(f"Process_{kind}", (Process,), {}, lambda namespace: namespace.update(body))
        processes.add(kind)(cls)
        return function

    return register
