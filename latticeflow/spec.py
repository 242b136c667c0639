"""Settings that are the same in a deck and in Python, and registries that find them by name."""

import difflib
import pkgutil
from collections.abc import Iterable
from importlib import import_module
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import InputError


class Spec(BaseModel):
    """Frozen settings. Unknown keys are errors; physics parameters have no default, numerics have."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InputError(explain(error, type(self).__name__, type(self))) from None


def explain(error: ValidationError, where: str, model: type[BaseModel] | None = None) -> str:
    """A pydantic error as one readable line a problem; a misspelt key gets the nearest known one."""
    lines = []
    for item in error.errors():
        path = ".".join([where, *map(str, item["loc"])])
        if item["type"] == "missing":
            lines.append(f"{path}: missing; it has no default")
        elif item["type"] == "extra_forbidden":
            known = list(model.model_fields) if model else []
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
            lines.append(f"{path}: unknown key; {hint}")
        elif item["type"] == "value_error":
            lines.append(str(item["ctx"]["error"]))
        else:
            lines.append(f"{path}: {item['msg']}, found {item['input']!r}")
    return "; ".join(lines)


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """Keys in which two tables differ, as `key: one value, other value`."""
    found = []
    for key in sorted({*a, *b}):
        one, two = a.get(key), b.get(key)
        if isinstance(one, dict) and isinstance(two, dict):
            found += differences(one, two, f"{prefix}{key}.")
        elif one != two:
            found.append(f"{prefix}{key}: {one!r}, now {two!r}")
    return found


def import_all(package: str, path: Iterable[str]) -> None:
    """Import every module of a package, so that a new file there registers what it defines."""
    for module in pkgutil.iter_modules(path):
        import_module(f"{package}.{module.name}")


S = TypeVar("S", bound=Spec)


class Registry(Generic[S]):
    """Spec classes by their deck name. A new one is one file whose class carries `@registry.add(name)`.

    `elsewhere`: names that later packages add, and the package to import: what an unknown name is told.
    """

    def __init__(self, what: str, elsewhere: dict[str, str] | None = None):
        self.what, self.elsewhere = what, elsewhere or {}
        self.classes: dict[str, type[S]] = {}

    def add(self, kind: str):
        def decorate(cls: type[S]) -> type[S]:
            if kind in self.classes:
                raise InputError(f"{self.what} '{kind}' is registered twice")
            self.classes[kind] = cls
            cls.kind = kind  # type: ignore[attr-defined]
            return cls

        return decorate

    def find(self, kind: str) -> type[S]:
        """The class called `kind`; raises `InputError` that names the nearest known name."""
        if not isinstance(kind, str) or kind not in self.classes:
            near = difflib.get_close_matches(str(kind), list(self.classes), n=1)
            if isinstance(kind, str) and kind in self.elsewhere:
                hint = f"it is known after `import {self.elsewhere[kind]}`"
            else:
                hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(sorted(self.classes))}"
            raise InputError(f"unknown {self.what} '{kind}'; {hint}")
        return self.classes[kind]

    def parse(self, table: dict[str, Any]) -> S:
        """Build from a deck table with a `kind` key. Raises `InputError` naming table and key."""
        table = dict(table)
        if "kind" not in table:
            raise InputError(f"[{self.what}]: 'kind' is missing; known: {', '.join(sorted(self.classes))}")
        cls = self.find(table.pop("kind"))
        return cls(**table)

    def table(self, spec: S) -> dict[str, Any]:
        """The deck table that `parse` turns back into `spec`."""
        return {"kind": spec.kind, **spec.model_dump(mode="json", exclude_none=True)}  # type: ignore[attr-defined]
