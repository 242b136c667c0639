"""Flows of paths: blocks of layers with Monte Carlo updates between them (Wu, Koehler, Noe 2020; 2201.08862).

`x_0 ~ r`; for l = 1 ... L block l, `y_l = T_l(x_{l-1})`, and for l < L updates, from y_l to x_l, that leave `exp(-S_l)`
invariant, S_l on a path of actions that ends at the target's. The draw is y_L. With

    log q = log r(x_0) - sum_l log_det_l - sum_{l < L} [ S_l(x_l) - S_l(y_l) ],

`p(y_L) / q` is the ratio of the backward to the forward path's probability, so that `<p / q> = Z` exactly, whatever the
layers' weights (Jarzynski's equality; 2201.08862, sec. 3). This q is the path's and not a density of y_L: there is no
`log_prob(x)`.

Training: what an update makes of y_l is held fixed, so that the gradient of `<log q - log p>` is the sum over blocks of that
of

    < S_l(y_l) - log_det_l >,    x_{l-1} given (S_L = S; for l = 1 also + log r),

the reverse KL divergence of block l's image of what enters it from `exp(-S_l)`: every block learns its own stretch.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..targets import Target
from .flow import Flow, Layer


class PathFlow(Flow):
    """The flow of the module's docstring; `parts` are the layers of each block, `b` `[L]` where they end on the path.

    What the path of actions is, what noise there is and how it moves x between blocks is the subclass's.
    """

    b: Tensor
    any_density = False

    def __init__(self, base, parts: list[list[Layer]], b: np.ndarray):
        super().__init__(base, [layer for part in parts for layer in part])
        self.ends = tuple(np.cumsum([len(part) for part in parts]).tolist())
        self.register_buffer("b", torch.from_numpy(b))

    def action(self, x: Tensor, b: float) -> Tensor:
        """`S_b`, float64 `[n]`, of fields `[n, *event_shape]`; differentiable."""
        raise NotImplementedError

    def start(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """`(x_0, log r(x_0))`."""
        raise NotImplementedError

    def update(self, x: Tensor, l: int, *noise: Any) -> Tensor:
        """x after the updates that follow block l, which leave `exp(-S_l)` invariant."""
        raise NotImplementedError

    def update_noise(self, noise: Tensor) -> Iterator[tuple[Any, ...]]:
        """For each block, what `update` needs of the noise."""
        raise NotImplementedError

    def blocks(self, noise: Tensor) -> Iterator[tuple[Any, ...]]:
        """For each block its layers, b_l, and what the `update` after it needs of the noise."""
        for (start, end), b, own in zip(pairwise((0, *self.ends)), self.b.tolist(), self.update_noise(noise)):
            yield self.layers[start:end], b, *own

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Noise to `(x, log q of the path)`; differentiable in the parameters, updates held fixed."""
        return self.follow(noise, *self.start(noise))

    def follow(self, noise: Tensor, x: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
        """The path from x_0 = x, of `log r(x_0)` = log_q, on."""
        for l, (layers, b, *own) in enumerate(self.blocks(noise)):
            for layer in layers:
                x, log_det = layer(x)
                log_q = log_q - log_det
            if l < len(self.ends) - 1:
                before, x = x, self.update(x, l, *own)
                log_q = log_q + self.action(before, b) - self.action(x, b)
        return x, log_q

    def path_terms(self, noise: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """`(surrogate, log q - log p)`, `[n]` each, the second without gradient: the sum of the surrogate has that of the
        sum over draws of the blocks' objectives, or an estimate of it with the same mean."""
        raise NotImplementedError

    def push_with_score(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise InputError(
            "the draws of a stochastic flow have no score: its weights are those of paths. Set train.estimator = "
            "'path' or 'reparametrised'"
        )

    def inverse(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise InputError(
            "a stochastic flow has no density at given x: its weights are those of paths. Use it with sampler 'flow'"
        )
