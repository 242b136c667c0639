"""The sampler interface: what every sampler is, and what a draw is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError, NumericalError
from ..spec import Registry, Spec
from ..targets import Target
from ..threads import MAX_THREADS


@dataclass(frozen=True)
class Draws:
    """n configurations of one target.

    `x`        Tensor `[n, *event_shape]`, on the CPU, in the precision that is stored;
    `log_prob` float64 `[n]`: the target's log_prob at the stored x (up to the target's constant);
    `log_w`    float64 `[n]` or None: log of target over proposal, up to a constant. None for a chain, whose
               draws are already distributed as the target. For a flow, log_prob - log q.
    `info`     what the physicist wants to see: float64 arrays `[steps]`, e.g. acceptance and exp(-dH) of HMC.

    For a chain sampler with C chains, draw i belongs to chain i % C and step i // C.
    Raises `NumericalError` naming the first draw with NaN in any of the three, or with +inf in log_prob or log_w,
    or an infinite field; `InputError` for other shapes or dtypes.
    """

    x: Tensor
    log_prob: np.ndarray
    log_w: np.ndarray | None = None
    info: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self):
        _refuse(~torch.isfinite(self.x.flatten(1)).all(1).numpy(), "a field that is not finite")
        for name in ("log_prob", "log_w"):
            values = getattr(self, name)
            if values is None:
                continue
            if values.dtype != np.float64 or values.shape != (len(self.x),):
                raise InputError(f"{name}: {values.dtype} {values.shape}; expected float64 ({len(self.x)},)")
            bad = np.isnan(values) | np.isposinf(values)
            _refuse(bad, f"{name} NaN or +inf; legal are finite numbers and -inf")

    def __len__(self) -> int:
        return len(self.x)


def _refuse(bad: np.ndarray, what: str) -> None:
    if bad.any():
        raise NumericalError(f"{bad.sum()} of {len(bad)} draws, the first draw {bad.argmax()}, have {what}")


# A chain's state: named float64/float32/int64 arrays, stored with each block; the next block goes on from it.
State = dict[str, np.ndarray]


class Sampler:
    """Something that draws x for one target.

    `start(stream, rng) -> state` thermalises and tunes one stream; tuning is frozen after. `draw(state, n,
    rng) -> (Draws, new state)` draws n configurations. Independent samplers have state None and `chains = 0`.
    Neither method touches a global generator, and neither changes the sampler: the same arguments give the
    same bytes. `batch` is the number of configurations in one call of the network or of the force; it is part
    of what the numbers depend on.

    Capabilities: `own_density`, log q at its own draws (Draws.log_w is given); `any_density`, `log_q(x)` at
    any x.
    """

    target: Target
    chains: int = 0  # chains in one stream; 0 for an independent sampler
    interacting: bool = False  # chains of one stream depend on one another (emcee's walkers)
    own_density: bool = False
    any_density: bool = False
    made_of: str | None = (
        None  # a hash of what was adapted before the first draw, part of what identifies an ensemble
    )

    def prepare(self) -> None:
        """What is done once before the first draw, and not counted as time of drawing."""

    def start(self, stream: int, rng: np.random.Generator) -> State | None:
        return None

    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State | None]:
        raise NotImplementedError

    def log_q(self, x: Tensor) -> Tensor:
        """Normalised log-density of the proposal at any x, `[batch]`; only where `any_density`."""
        raise InputError(f"{type(self).__name__} has no density at arbitrary x")


class SamplerSpec(Spec):
    """Settings of a sampler, as in `[sampler.NAME]` of a deck. `build(target, ...)` makes the sampler; `flow`: what was
    trained, a flow, or where `needs_model` is set a model.

    `block`: configurations in one block of the store (for chains: steps * chains).
    `streams`: streams of chains, the unit a rank owns; of an independent sampler, one Metropolis chain for each.
    `precision`: of the fields. `threads`: torch threads a rank; both are part of what the numbers depend on.
    `keep_fields`: k = 1 stores the fields of all draws; k > 1 those of every k-th step of all chains (every k-th
    draw of an independent sampler), 0 none. Unless it is 1, the primary observables of all draws are measured as they
    are drawn, and stored; S, log-weights and the sampler's records are stored of all draws always.
    """

    kind: ClassVar[str]
    needs_flow: ClassVar[bool] = False  # `build` needs a trained flow, whose weights identify the ensemble
    needs_model: ClassVar[bool] = False  # the same of a model that learned from data
    exact: ClassVar[bool] = (
        True  # draws, with their log_w where they have one, give the target's expectation values
    )
    checks: ClassVar[set[str]] = {"density_tolerance"}  # settings that draws do not depend on
    block: int = Field(gt=0)
    precision: Literal["float32", "float64"] = "float64"
    threads: int = Field(1, ge=1, le=MAX_THREADS)
    keep_fields: int = Field(1, ge=0)

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> Sampler:
        raise NotImplementedError

    def settled(self, recorded: dict[str, Any] | None, build: Callable[[], Any]) -> "SamplerSpec":
        """These settings, where one is left to a measurement with its value: as `recorded` with an ensemble, or measured
        now on the sampler that `build` makes."""
        return self


samplers: Registry[SamplerSpec] = Registry("sampler")
