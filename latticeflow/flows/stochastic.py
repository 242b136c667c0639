"""The stochastic flow of scalars: a flow of paths (`paths.py`) from a free field, with HMC between blocks of layers.

`S_l = (1 - b_l) S_0 + b_l S` on the path of `bridge.py`.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice
from ..random import Purpose, normal, stream, uniform
from ..targets import LatticeTarget, Target
from .base import make_base
from .bridge import Bridge, pilot
from .flow import Flow, Layer
from .paths import PathFlow
from .spec import flows
from .split import Split


class StochasticFlow(PathFlow):
    """The flow of the module's docstring for one `target`; `parts` are the layers of each block.

    b_l and the updates' angles are found at the start by a pilot run (equal thermodynamic lengths, `acceptance`) and are
    saved with the weights; training leaves them alone. The weights are right for any target that `push`ed draws are
    weighted with, since the path need not end where it was meant to.
    """

    angle: Tensor

    def __init__(
        self,
        base,
        parts: list[list[Layer]],
        target: LatticeTarget,
        path_m2: float | None = None,
        updates: int = 1,
        kicks: int = 4,
        acceptance: float = 0.8,
    ):
        found = pilot(Bridge(target, path_m2), kicks, acceptance, stream(0, Purpose.START))
        b = found.schedule(len(parts))
        super().__init__(base, parts, b)
        self.target, self.path_m2 = target, path_m2
        self.updates, self.kicks = updates, kicks
        self.register_buffer("angle", torch.from_numpy(found.angles(b)))
        self._bridges: dict[tuple[torch.dtype, torch.device], Bridge] = {}

    @property
    def bridge(self) -> Bridge:
        """The path, in the flow's dtype and on its device."""
        key = (self.dtype, self.base.like.device)
        if key not in self._bridges:
            self._bridges[key] = Bridge(self.target, self.path_m2, *key)
        return self._bridges[key]

    @property
    def update_count(self) -> int:
        return self.updates * (len(self.ends) - 1)

    def noise(self, n: int, rng: np.random.Generator) -> Tensor:
        """All noise of n paths, standard normal `[n, 1 + U + ceil(U / V), *event_shape]`, U updates on V sites.

        In the second axis: the base's, the momenta of each update, and numbers g with `log u = log Phi(g)` to accept by.
        """
        fields = 1 + self.update_count + -(-self.update_count // self.base.lattice.volume)
        shape = (n, fields, *self.event_shape)
        return normal(rng, shape, dtype=self.dtype, device=self.base.like.device)

    def action(self, x: Tensor, b: float) -> Tensor:
        return self.bridge.action(x, b)

    def start(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.push(noise[:, 0])

    def update_noise(self, noise: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Momenta and log u of the updates after each block, `[n, updates, ...]`."""
        momenta, last = noise[:, 1:].split([self.update_count, noise.shape[1] - 1 - self.update_count], 1)
        log_u = torch.special.log_ndtr(last.flatten(1).double())
        for l in range(len(self.ends)):
            own = slice(l * self.updates, (l + 1) * self.updates)
            yield momenta[:, own], log_u[:, own]

    def path_terms(self, noise: Tensor, target: Target) -> tuple[Tensor, Tensor]:
        """Path gradients of the blocks: `(surrogate, log q - log p)`, `[n]` each, the second without gradient.

        As in `training.loss.path`, `sum_l (score_l + dS_l/dy) . y_l` with score_l that of block l's image; what enters block
        l > 1 is taken to be distributed as `exp(-S_{l-1})`, which its updates leave invariant. At blocks that do their part
        exactly the gradient is zero draw by draw.
        """
        x, log_q = self.start(noise)
        with torch.no_grad():
            score = self.base.score(x)
        surrogate = log_q.new_zeros(len(noise))
        for l, (layers, b, momenta, log_u) in enumerate(self.blocks(noise)):
            for layer in layers:
                x, log_det, score = layer.forward_with_score(x, score)
                log_q = log_q - log_det
            last, fixed = l == len(self.ends) - 1, x.detach()
            force = target.force(fixed) if last else self.bridge.force(fixed, b)
            surrogate = surrogate + ((score - force) * x).flatten(1).sum(1)
            if not last:
                x = self.update(fixed, l, momenta, log_u)
                score = self.bridge.force(x, b)
                log_q = log_q + self.bridge.action(fixed, b) - self.bridge.action(x, b)
        return surrogate, log_q.detach() - target.log_prob(x.detach())

    @torch.no_grad()
    def update(self, x: Tensor, l: int, momenta: Tensor, log_u: Tensor) -> Tensor:
        """x `[n, *event_shape]` after the updates that follow block l; momenta `[n, updates, *event_shape]`."""
        bridge, flat = self.bridge, x.flatten(1)
        now = bridge.at(bridge.whiten(flat), flat)
        for i in range(self.updates):
            p = momenta[:, i].flatten(1)
            now, _ = bridge.update(now, float(self.b[l]), float(self.angle[l]), self.kicks, p, log_u[:, i])
        return now.x.view_as(x)


@flows.add("stochastic")
class Stochastic(Split):
    """The split flow's layers in `blocks` of about equal length, `updates` trajectories of `kicks` steps between blocks.

    `acceptance`: what the trajectories' angle is tuned to. `path_m2`: m0^2 of the free field that the path of actions starts
    from; None: that of the gap equation. All else as for "split".
    """

    blocks: int = Field(2, ge=1)
    updates: int = Field(1, ge=1)
    kicks: int = Field(4, ge=1)
    acceptance: float = Field(0.8, gt=0.1, lt=0.999)
    path_m2: float | None = Field(None, gt=0)

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if self.blocks > self.layers:
            raise InputError(
                f"stochastic: {self.layers} layers in {self.blocks} blocks; expected a layer a block at least"
            )

    def build(self, lattice: Lattice, seed: int) -> Flow:
        raise InputError(
            "stochastic: this flow's Monte Carlo steps need one target: in Python use build_for(target, seed); a "
            "conditional flow, of many targets, cannot be made of it"
        )

    def build_for(self, target: Target, seed: int) -> StochasticFlow:
        """The untrained flow. Raises `InputError` for a target that is not on a lattice with the flat measure."""
        if not isinstance(target, LatticeTarget):
            raise InputError(f"stochastic: target '{target.kind}' is not on a lattice")
        lattice = target.lattice
        jitter = uniform(stream(seed, Purpose.INIT), (self.blocks, 2), dtype=torch.float64)
        cuts = [math.ceil(i * self.layers / self.blocks) for i in range(self.blocks + 1)]
        parts: list[list[Layer]] = [
            [self.layer(lattice, j - i, u)] for (i, j), u in zip(pairwise(cuts), jitter)
        ]
        base = make_base(self.base, lattice, self.base_m2)
        return StochasticFlow(base, parts, target, self.path_m2, self.updates, self.kicks, self.acceptance)
