"""What an observable is, and the registry that finds it by name.

A primary observable is a number (or a vector of numbers) of one configuration; its mean is the physics. A
derived one is a function of such means, so its error needs a jackknife.
"""

import difflib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..precision import double
from ..targets import Target

# Sites measured in one piece: bounds the memory of float64 copies and shifts (some 100 MB).
_PIECE = 1 << 21


class OtherTheory(str):
    """The reason why an observable does not exist where it is one of another kind of theory, which goes without saying."""


@dataclass(frozen=True)
class Observable:
    """What both kinds have: `name`, `symbol` (for tables), `tex` (for plots), the formula, `missing(target)`.

    `missing(target)` is None where the observable exists on that target, else the reason why it does not.
    """

    name: str
    symbol: str
    tex: str
    formula: str
    missing: Callable[[Target], str | None]


@dataclass(frozen=True)
class Primary(Observable):
    """`of(target, x)`: x `[n, *event_shape]` in double precision -> float64 `[n]`, or `[n, k]` for a `vector`.

    `exact(target)`: its mean where that is known exactly whatever the couplings, which tests any sampler.
    """

    of: Callable[[Target, Tensor], Tensor]
    vector: bool = False
    exact: Callable[[Target], float] | None = None


@dataclass(frozen=True)
class Derived(Observable):
    """`of(target, means)`: means of the primaries named in `needs` -> a number.

    The result is NaN where the function of these (noisy) means does not exist; `undefined` says why.
    """

    needs: tuple[str, ...]
    undefined: str
    of: Callable[[Target, dict[str, np.ndarray]], float]


class Observables:
    """All observables by name. A new family is one file here that registers its functions."""

    def __init__(self):
        self.table: dict[str, Observable] = {}

    def primary(
        self,
        name: str,
        symbol: str,
        tex: str,
        missing: Callable[[Target], str | None],
        vector: bool = False,
        exact: Callable[[Target], float] | None = None,
    ):
        """Register a function `of(target, x)`; its docstring is the formula."""
        return lambda of: self._add(
            Primary(name, symbol, tex, of.__doc__ or "", missing, of, vector, exact), of
        )

    def derived(
        self,
        name: str,
        symbol: str,
        tex: str,
        missing: Callable[[Target], str | None],
        needs: tuple[str, ...],
        undefined: str = "",
    ):
        """Register a function `of(target, means)`; its docstring is the formula."""
        return lambda of: self._add(
            Derived(name, symbol, tex, of.__doc__ or "", missing, needs, undefined, of), of
        )

    def _add(self, observable: Observable, of):
        if observable.name in self.table:
            raise InputError(f"observable '{observable.name}' is registered twice")
        self.table[observable.name] = observable
        return of

    def find(self, name: str) -> Observable:
        """The observable called `name`; raises `InputError` that names the nearest known name."""
        if name not in self.table:
            near = difflib.get_close_matches(name, list(self.table), n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(self.table)}"
            raise InputError(f"unknown observable '{name}'; {hint}")
        return self.table[name]

    def of(self, target: Target) -> list[Observable]:
        """Every observable that exists on `target`, in order of registration."""
        return [one for one in self.table.values() if one.missing(target) is None]

    def left_out(self, target: Target) -> dict[str, str]:
        """Why each other observable of this kind of theory does not exist on `target`, by name."""
        reasons = {one.name: one.missing(target) for one in self.table.values()}
        return {
            name: reason
            for name, reason in reasons.items()
            if reason is not None and not isinstance(reason, OtherTheory)
        }


observables = Observables()


def measure(target: Target, x: Tensor | np.ndarray, *names: str) -> dict[str, np.ndarray]:
    """Primary observables of configurations x `[n, *event_shape]`: float64 `[n, ...]` by name.

    Default: all that exist on `target`. Computed in float64 whatever the precision of x. Raises `InputError`
    for an unknown or derived name, for one that does not exist on this target, and for a wrong shape of x.
    """
    chosen = [one for one in observables.of(target) if isinstance(one, Primary) and not names]
    for one in map(observables.find, names):
        if not isinstance(one, Primary):
            raise InputError(f"'{one.name}' is a function of means, not of a configuration; {one.formula}")
        if reason := one.missing(target):
            raise InputError(f"'{one.name}' does not exist here: {reason}")
        chosen.append(one)
    x = torch.as_tensor(x)
    if x.shape[1:] != target.event_shape:
        raise InputError(
            f"x of shape {tuple(x.shape)}; expected [n, {', '.join(map(str, target.event_shape))}]"
        )
    piece = max(1, _PIECE // max(1, int(np.prod(target.event_shape))))
    parts = [
        {one.name: one.of(target, double(part)).cpu().numpy() for one in chosen} for part in x.split(piece)
    ]
    return {one.name: np.concatenate([part[one.name] for part in parts]) for one in chosen}


@cache
def version() -> str:
    """Hash of the source of all observables: stored measurements of another version are measured again."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
