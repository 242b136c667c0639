"""The deck: one TOML file that says everything a run depends on."""

import tomllib
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator

from . import collider  # noqa: F401 (its targets register themselves)
from .baselines.base import ModelSpec, models
from .errors import InputError
from .flows.spec import FlowSpec, flows
from .samplers.base import SamplerSpec, samplers
from .spec import Spec, explain
from .targets import Target, targets
from .training.fit_settings import FitSettings
from .training.settings import TrainSettings
from .training.stages import plan


class Deck(Spec):
    """A run's settings: `name`, `seed`, `[target]`, `[flow]` or `[model]`, `[train]`, `[sampler.NAME]`.

    `[train]` is `TrainSettings` of a flow and `FitSettings` of a model that learns from data. The tables are the
    library's own classes: `[target] kind = "phi4"` is `Phi4(...)`. Samplers without a table have their defaults.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    seed: int = Field(ge=0)
    target: Target
    flow: FlowSpec | None = None
    model: ModelSpec | None = None
    train: TrainSettings | FitSettings | None = None
    sampler: dict[str, SamplerSpec] = Field(default_factory=dict)

    @field_validator("target", mode="before")
    @classmethod
    def _target(cls, value):
        return targets.parse(value) if isinstance(value, dict) else value

    @field_validator("flow", mode="before")
    @classmethod
    def _flow(cls, value):
        return flows.parse(value) if isinstance(value, dict) else value

    @field_validator("model", mode="before")
    @classmethod
    def _model(cls, value):
        return models.parse(value) if isinstance(value, dict) else value

    @field_validator("train", mode="before")
    @classmethod
    def _train(cls, value, info: ValidationInfo):
        if not isinstance(value, dict):
            return value
        if "model" not in info.data:  # [model] is wrong, and that is said already
            return None
        return TrainSettings(**value) if info.data["model"] is None else FitSettings(**value)

    @field_validator("sampler", mode="before")
    @classmethod
    def _sampler(cls, value):
        if not isinstance(value, dict):
            raise InputError(f"sampler = {value!r}: expected tables, for example [sampler.flow]")
        return {
            kind: samplers.find(kind)(**table) if isinstance(table, dict) else table
            for kind, table in value.items()
        }

    @model_validator(mode="after")
    def _whole(self):
        if self.flow is not None and self.model is not None:
            raise InputError(
                "the deck has both [flow] and [model]: a run trains one of them; make a run for each, and compare "
                "them with latticeflow diagnose"
            )
        if self.train is not None and self.flow is None and self.model is None:
            raise InputError("the deck has [train] but no [flow] or [model] to train")
        wanted = TrainSettings if self.model is None else FitSettings
        if self.train is not None and not isinstance(self.train, wanted):
            raise InputError(f"train: {type(self.train).__name__}; expected {wanted.__name__}")
        if isinstance(self.train, TrainSettings):
            plan(self.train, self.target)  # raises for a bad one
        return self

    def sampler_spec(self, kind: str) -> SamplerSpec:
        """Settings of the sampler called `kind`, defaults where the deck has no table for it."""
        return self.sampler.get(kind) or samplers.find(kind)()  # type: ignore[call-arg]

    @classmethod
    def parse(cls, table: dict[str, Any], where: str = "deck") -> "Deck":
        try:
            return cls.model_validate(table)
        except ValidationError as error:
            raise InputError(explain(error, where, cls)) from None

    @classmethod
    def read(cls, path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> "Deck":
        """Read a TOML deck; `overrides` are `key.path=value`, values in TOML syntax.

        Raises `InputError` for a missing file, bad TOML, unknown keys (naming the nearest) and bad values.
        """
        path = Path(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read deck {path}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise InputError(f"{path} is not valid TOML: {error}") from None
        for item in overrides:
            override(table, item)
        return cls.parse(table, str(path))

    def table(self) -> dict[str, Any]:
        """The resolved deck as plain tables, what `deck.toml` of a run holds."""
        table: dict[str, Any] = {"name": self.name, "seed": self.seed, "target": targets.table(self.target)}
        if self.flow is not None:
            table["flow"] = flows.table(self.flow)
        if self.model is not None:
            table["model"] = models.table(self.model)
        if self.train is not None:
            table["train"] = self.train.model_dump(mode="json", exclude_none=True)
        if self.sampler:
            table["sampler"] = {
                kind: spec.model_dump(mode="json", exclude_none=True) for kind, spec in self.sampler.items()
            }
        return table

    def toml(self) -> str:
        return tomli_w.dumps(self.table())


def override(table: dict[str, Any], item: str) -> None:
    """Apply one `key.path=value` to plain tables, in place. The value is TOML; a bare word is a string.

    Numbers in the path count the entries of a list from 0: `train.stage.0.steps=100`.
    """
    key, equals, text = item.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--set {item}: expected key=value, for example train.steps=500")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    names = key.strip().split(".")
    found: Any = table
    for i, name in enumerate(names):
        place = _place(found, ".".join(names[:i]), name, item)
        if i == len(names) - 1:
            found[place] = value
        else:
            found = found.setdefault(place, {}) if isinstance(found, dict) else found[place]


def _place(inside: Any, path: str, name: str, item: str) -> str | int:
    """`name` as a key of the table or a place in the list that is `inside`, called `path`. Raises `InputError`."""
    if isinstance(inside, list):
        if not name.isdecimal() or int(name) >= len(inside):
            raise InputError(
                f"--set {item}: no {path}.{name}: {path} has {len(inside)} entries, counted from 0; expected for example "
                f"{path}.{max(0, len(inside) - 1)}"
            )
        return int(name)
    if not isinstance(inside, dict):
        raise InputError(f"--set {item}: '{path}' is a value, not a table")
    if name.isdecimal():
        raise InputError(
            f"--set {item}: no {path}.{name}: '{path}' is no list in this deck (one entry is written [[{path}]])"
        )
    return name
