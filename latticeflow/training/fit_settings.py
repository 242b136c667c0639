"""What `[train]` says in a deck with a `[model]`: training on stored configurations."""

from typing import Literal

from pydantic import Field, PositiveInt

from ..errors import InputError
from ..spec import Spec
from ..threads import MAX_THREADS
from .settings import learning_rate


class FitSettings(Spec):
    """Settings of the training of a model (`latticeflow/baselines`) on the ensemble `data`.

    `data`: a path, as seen from the run folder or from here; `others`: of a conditional model, ensembles at other couplings.
    `thin`: of each of its chains every thin-th step is used; "auto": every (2 tau_int)-th, rounded, with the larger tau_int
    of S and of the target's slow mode. `test_share`: of the chains, chosen at random, held out: no configuration of them is
    trained on (`Configurations`). `augment`: every configuration is moved by a random symmetry of the lattice, and half of
    them by phi -> -phi (of links in U(1): by a translation, and half by theta -> -theta).

    `steps`: optimiser steps (Adam), of all players together; 0 for models that are computed and not trained (PCA).
    `batch`: configurations a step, or "all" of them, each once. `lr`: the rate at its peak, reached after `warmup` steps,
    then falling to 0 with half a cosine (`decay = "constant"`: staying); `rates`: factors of it by player, { critic = 2.0 }.
    `betas`: Adam's. `clip`: largest norm of the gradient of the player who moves. `evaluate_every`: steps between two
    lines of the log, which look at `evaluate_draws` held-out configurations; `checkpoint_every`, `keep`: as of flows.
    """

    data: str | None = None
    others: tuple[str, ...] = ()
    thin: PositiveInt | Literal["auto"] = "auto"
    test_share: float = Field(0.2, ge=0, lt=1)
    augment: bool = True
    steps: int = Field(0, ge=0)
    batch: PositiveInt | Literal["all"] = 64
    lr: float = Field(1e-3, gt=0)
    rates: dict[str, float] = Field(default_factory=dict)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: int = Field(0, ge=0)
    decay: Literal["cosine", "constant"] = "cosine"
    clip: float = Field(10.0, gt=0)
    precision: Literal["float32", "float64"] = "float32"
    evaluate_every: int = Field(500, gt=0)
    evaluate_draws: int = Field(1024, gt=0)
    checkpoint_every: int = Field(500, gt=0)
    keep: int = Field(3, ge=1)
    threads: int = Field(1, ge=1, le=MAX_THREADS)

    def model_post_init(self, context) -> None:
        if not self.data:
            raise InputError(
                "train.data is missing: a [model] learns from stored configurations. Say where they are, for example "
                "train.data = 'ensembles/hmc' (latticeflow sample RUN --sampler hmc --draws N)"
            )
        if len(set(self.ensembles)) < len(self.ensembles):
            raise InputError(f"train.others = {list(self.others)}: an ensemble is named twice")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"train.betas = {self.betas}: expected two numbers in [0, 1)")
        if not all(rate > 0 for rate in self.rates.values()):
            raise InputError(f"train.rates = {self.rates}: expected positive factors of train.lr")

    @property
    def ensembles(self) -> tuple[str, ...]:
        """`data` and `others`."""
        return (str(self.data), *self.others)

    def lr_at(self, step: int) -> float:
        """Learning rate of the step counted from 0: linear warm-up, then the decay."""
        return learning_rate(step, self.steps, self.lr, self.warmup, self.decay)
