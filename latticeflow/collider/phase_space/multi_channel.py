"""Sums of phase-space maps, with weights that adapt to an integrand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_serializer, field_validator
from torch import Tensor

from ...errors import InputError, NumericalError
from ...random import uniform
from ...spec import Spec
from .base import PhaseSpace, PhaseSpaceMap, check_masses, phase_spaces


class Channel(Spec):
    """One map of a sum. `permutation`: its particle i is particle `permutation[i]` of the process."""

    phase_space: PhaseSpace
    permutation: tuple[int, ...] | None = None


@phase_spaces.add("multi_channel")
class MultiChannel(PhaseSpace):
    """`|du/dPhi_n| = sum_i alpha_i g_i(p)`, with `g_i = |du/dPhi_n|` of the channels and weights alpha_i that sum to 1.

    `channels`: tables of maps, `kind` with its settings, each with a `permutation` of the particles where it is not the
    identity: its particle i is then particle `permutation[i]` of the process. `weights`: not negative, of any sum, equal if
    left out; `optimise_weights` finds good ones. (Kleiss and Pittau, hep-ph/9405257.)

    u has 3 n - 3 coordinates: the first says by the interval of the cumulative weights that it is in which channel maps the
    others. So p does not determine u: `inverse` gives a u of the channel of the largest `alpha_i g_i`, in the middle of its
    interval.

    Raises `InputError` for no channels, another number of weights, weights that are negative or all 0, a permutation that
    is none, and for a channel that is itself a sum.
    """

    channels: tuple[Channel, ...] = Field(min_length=1)
    weights: tuple[float, ...] | None = None

    @field_validator("channels", mode="before")
    @classmethod
    def _channels(cls, value: Any) -> Any:
        return [_channel(item) for item in value] if isinstance(value, (list, tuple)) else value

    @field_serializer("channels")
    def _tables(self, value: tuple[Channel, ...]) -> list[dict[str, Any]]:
        tables = []
        for channel in value:
            own = {} if channel.permutation is None else {"permutation": list(channel.permutation)}
            tables.append({**phase_spaces.table(channel.phase_space), **own})
        return tables

    def model_post_init(self, context) -> None:
        weights = self.weights
        if weights is not None and (
            len(weights) != len(self.channels) or min(weights) < 0 or sum(weights) <= 0
        ):
            raise InputError(
                f"multi_channel: weights {list(weights)} of {len(self.channels)} channels; expected one of each, "
                "none negative and not all 0"
            )
        if any(isinstance(channel.phase_space, MultiChannel) for channel in self.channels):
            raise InputError(
                "multi_channel: a channel is itself multi_channel; expected its channels in this list"
            )

    def build(self, masses: tuple[float, ...]) -> "MultiChannelMap":
        masses = check_masses("multi_channel", masses)
        n = len(masses)
        maps, orders = [], []
        for channel in self.channels:
            order = list(range(n)) if channel.permutation is None else list(channel.permutation)
            if sorted(order) != list(range(n)):
                raise InputError(
                    f"multi_channel: permutation {order}; expected an order of the {n} particles 0 to {n - 1}"
                )
            maps.append(channel.phase_space.build(tuple(masses[k] for k in order)))
            orders.append(order)
        weights = self.weights or (1.0,) * len(maps)
        return MultiChannelMap(masses, maps, orders, [w / math.fsum(weights) for w in weights])


def _channel(value: Any) -> Any:
    if isinstance(value, str):
        value = {"kind": value}
    if isinstance(value, dict) and "kind" in value:
        table = dict(value)
        permutation = table.pop("permutation", None)
        return Channel(phase_space=phase_spaces.parse(table), permutation=permutation)
    return value


class MultiChannelMap(PhaseSpaceMap):
    def __init__(
        self,
        masses: tuple[float, ...],
        maps: list[PhaseSpaceMap],
        orders: list[list[int]],
        weights: list[float],
    ):
        self.masses = masses
        self.maps = maps
        self.orders = orders
        self.weights = weights
        shared = set.intersection(*(set(each.periodic) for each in maps))
        self.periodic = tuple(sorted(i + 1 for i in shared))

    @property
    def dim(self) -> int:
        return 3 * len(self.masses) - 3

    def momenta(self, u: Tensor, energy: Tensor) -> tuple[Tensor, Tensor]:
        ends = u.new_tensor(self.weights).cumsum(0)[:-1]
        which = torch.bucketize(u[:, 0].contiguous(), ends, right=True)
        p = u.new_zeros(len(u), len(self.masses), 4)
        own = torch.zeros_like(energy)
        for i, (each, order) in enumerate(zip(self.maps, self.orders, strict=True)):
            rows = (which == i).nonzero()[:, 0]
            part, own[rows] = each.momenta(u[rows, 1:], energy[rows])
            p[rows[:, None], torch.tensor(order, device=u.device)] = part
        # a channel's own density is the forward one: its inverse may round to a point outside
        logs = self.log_densities(p)
        logs = torch.where(
            which[:, None] == torch.arange(len(self.maps), device=u.device), -own[:, None], logs
        )
        return p, -self._total(logs).logsumexp(1)

    def coordinates(self, p: Tensor) -> tuple[Tensor, Tensor]:
        results = [each.inverse(p[:, order]) for each, order in zip(self.maps, self.orders, strict=True)]
        logs = self._total(torch.stack([log_jac for _, log_jac in results], 1))
        best = logs.argmax(1)
        rest = torch.stack([u for u, _ in results], 1)[torch.arange(len(p), device=p.device), best]
        weights = p.new_tensor(self.weights)
        middle = (weights.cumsum(0) - weights / 2)[best]
        return torch.cat([middle[:, None], rest], 1), logs.logsumexp(1)

    def log_densities(self, p: Tensor) -> Tensor:
        """`log g_i(p)`, `[batch, channels]`, -inf where a channel does not reach."""
        return torch.stack(
            [each.inverse(p[:, order])[1] for each, order in zip(self.maps, self.orders, strict=True)], 1
        )

    def _total(self, logs: Tensor) -> Tensor:
        return logs + logs.new_tensor(self.weights).log()


def optimise_weights(
    spec: MultiChannel,
    masses: tuple[float, ...],
    energy: float,
    integrand: Callable[[Tensor], Tensor],
    rng: np.random.Generator,
    draws: int = 10_000,
    iterations: int = 8,
    least: float = 1e-3,
) -> MultiChannel:
    """`spec` with weights for this integrand, by Kleiss and Pittau (hep-ph/9405257).

    `alpha_i <- alpha_i sqrt(W_i)`, normalised, with `W_i = < w^2 g_i / g >` and `w = f / g`, which are all equal where the
    variance of w is least; from `draws` points in each of `iterations` rounds. The result is the mean over the second half
    of the rounds. None falls below `least`, so that w never exceeds `1 / least` times its value on any one channel.

    `integrand(p)`: f >= 0 `[draws]` of the outgoing momenta `[draws, n, 4]`, in the frame of `forward`: |M|^2, 0 outside
    cuts. `rng`: a keyed stream, `latticeflow.random.stream`. Raises `InputError` where f vanishes at all points of a round
    and `NumericalError` where it is negative, NaN or infinite.
    """
    count = len(spec.channels)
    if not 0 <= least * count < 1 or draws < 1 or iterations < 1:
        raise InputError(
            f"optimise_weights: least = {least}, draws = {draws}, iterations = {iterations}; expected least < "
            f"1 / {count} channels, and at least one draw and iteration"
        )
    kept = []
    for _ in range(iterations):
        built = spec.build(masses)
        u = uniform(rng, (draws, built.dim), dtype=torch.float64)
        p, log_jac = built.forward(u, torch.full((draws,), float(energy), dtype=torch.float64))
        f = integrand(p).double()
        if not (torch.isfinite(f) & (f >= 0)).all():
            raise NumericalError(
                f"optimise_weights: the integrand is {float(f.min())} to {float(f.max())}; expected finite and >= 0"
            )
        if not (f > 0).any():
            raise InputError(
                f"optimise_weights: the integrand is 0 at all of {draws} points; expected cuts that leave some"
            )
        square = (f * log_jac.exp()).square()
        shares = (built.log_densities(p) + log_jac[:, None]).exp()
        alpha = torch.tensor(built.weights, dtype=torch.float64) * (square[:, None] * shares).mean(0).sqrt()
        alpha = least + (1 - count * least) * alpha / alpha.sum()
        kept.append(alpha)
        spec = spec.model_copy(update={"weights": tuple(alpha.tolist())})
    mean = torch.stack(kept[iterations // 2 :]).mean(0)
    return spec.model_copy(update={"weights": tuple(mean.tolist())})
