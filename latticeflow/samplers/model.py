"""Independent draws from a model that learned from data: approximate, and without a density to correct them by."""

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..baselines import Model
from ..errors import InputError
from ..precision import DTYPES, double
from ..targets import Target
from .base import Draws, Sampler, SamplerSpec, State, samplers

BATCH = 1024


class ModelSampler(Sampler):
    """Draws x from `model`, in calls of `batch` configurations. There is no log_w: nothing makes these draws exact.

    With `density_samples` = k >= 2, of models whose density is bounded (a VAE), `info` holds for each draw

        log_w_estimate = log p(x) - log_q,   log_q and log_w_error of `Model.log_q(x, rng, k)`,

    an estimate by importance weighting with its error, for study only: it is no log_w, and `log p` is the target's
    unnormalised log_prob. Raises `InputError` for a model that does not generate, and for k of one without a bound.
    """

    def __init__(self, target: Target, model: Model, batch: int = BATCH, density_samples: int = 0):
        name = type(model).__name__
        if model.event_shape != target.event_shape:
            raise InputError(
                f"model on {model.event_shape}, target on {target.event_shape}: shapes must agree"
            )
        if not model.generates:
            raise InputError(
                f"sampler 'model': {name} generates nothing; it encodes and reconstructs. Train for example a "
                "gaussian_autoencoder or a vae"
            )
        if density_samples and model.density == "none":
            raise InputError(
                f"sampler.model.density_samples = {density_samples}: {name} has no density, and no bound of it to "
                "estimate it by; leave it out"
            )
        if density_samples == 1:
            raise InputError(
                "sampler.model.density_samples = 1: one sample tells no error; expected 0, or 2 and more"
            )
        self.target, self.model, self.batch, self.density_samples = target, model, batch, density_samples

    @torch.no_grad()
    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, None]:
        xs: list[Tensor] = []
        log_prob: list[np.ndarray] = []
        estimate: list[np.ndarray] = []
        errors: list[np.ndarray] = []
        for start in range(0, n, self.batch):
            x = self.model.sample(min(self.batch, n - start), rng)
            xs.append(x.cpu())
            log_prob.append(self.target.log_prob(double(x)).cpu().numpy())
            if self.density_samples:
                log_q, error = self.model.log_q(x, rng, self.density_samples)
                estimate.append(log_prob[-1] - log_q.cpu().numpy())
                errors.append(error.cpu().numpy())
        info = {}
        if self.density_samples:
            info = {"log_w_estimate": np.concatenate(estimate), "log_w_error": np.concatenate(errors)}
        return Draws(torch.cat(xs), np.concatenate(log_prob), None, info), None


@samplers.add("model")
class ModelSamplerSpec(SamplerSpec):
    """`[sampler.model]`: `block`, draws in one block; `batch`, in one call of the network; `density_samples`, of a model

    with a bound (vae): importance samples from which log q of each draw is estimated, 0 for none.
    """

    needs_model: ClassVar[bool] = True
    exact: ClassVar[bool] = False
    block: int = Field(8192, gt=0)
    batch: int = Field(BATCH, gt=0)
    density_samples: int = Field(0, ge=0)
    precision: Literal["float32", "float64"] = "float32"

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> ModelSampler:
        """`flow`: the trained `Model`. Raises `InputError` without one, and what `ModelSampler` raises."""
        if not isinstance(flow, Model):
            raise InputError(
                "the sampler 'model' needs a trained model: train one first (latticeflow train DECK)"
            )
        model = flow.to(device=device, dtype=DTYPES[self.precision]).eval()
        return ModelSampler(target, model, self.batch, self.density_samples)
