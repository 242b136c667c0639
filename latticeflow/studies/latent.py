"""Paths between configurations through a model's latent space, and the action along them.

    z(t) = mix(E(a), E(b), t),    x(t) = D(z(t)),    S(t) = S(x(t)) = -log_prob(x(t)),    0 <= t <= 1

E and D are those of an autoencoder, whose ends are only near a and b, or of a flow, where they are each other's inverse.
Beside it the same in field space, E = D = 1. How z is mixed:

    straight     z(t) = (1 - t) a + t b
    spherical    z(t) = [ sin((1 - t) w) a + sin(t w) b ] / sin w,   cos w = a.b / |a||b|        (Shoemake, SIGGRAPH 1985)
    circular     z(t) = cos(pi t / 2) a + sin(pi t / 2) b

Of many numbers that are independent and normal |z| hardly fluctuates, and the middle of a straight path has a |z| shorter by
sqrt 2, where the model has seen nothing; spherical paths keep the length (White, 1609.04468). The circular path is the
spherical one of orthogonal ends; of independent ends of any Gaussian of mean 0 each of its points is of that Gaussian, so
that along the path of an exact flow every observable has its mean in the ensemble.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import Flow, Target
from ..errors import InputError

# of ends [pairs, ...] at t, a number or [pairs, 1, ...]
Mix = Callable[[Tensor, Tensor, Tensor | float], Tensor]
BAND = (0.16, 0.5, 0.84)  # quantiles over pairs


def straight(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """`(1 - t) a + t b`."""
    t = torch.as_tensor(t, dtype=torch.float64, device=a.device)
    return (1 - t).to(a) * a + t.to(a) * b


def circular(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """`cos(pi t / 2) a + sin(pi t / 2) b`; its ends are a and b to rounding."""
    angle = 0.5 * math.pi * torch.as_tensor(t, dtype=torch.float64, device=a.device)
    return angle.cos().to(a) * a + angle.sin().to(a) * b


def spherical(a: Tensor, b: Tensor, t: Tensor | float) -> Tensor:
    """`[ sin((1 - t) w) a + sin(t w) b ] / sin w`, w the angle of each pair `[pairs, ...]`; straight where w is 0.

    Raises `InputError` where b = -c a, c > 0: there is no shortest way.
    """
    t = torch.as_tensor(t, dtype=torch.float64, device=a.device)
    over = tuple(range(1, a.dim()))

    def length(z: Tensor) -> Tensor:
        return z.double().square().sum(over, keepdim=True).sqrt()

    one, two = (z.double() / length(z).clamp_min(1e-300) for z in (a, b))
    # by both diagonals of the rhombus: accurate near 0 and pi, where the arc cosine is not
    w = 2 * torch.atan2(length(one - two), length(one + two))
    if (w > math.pi - 1e-6).any():
        raise InputError(
            "spherical path between opposite ends: every great circle is as short; take straight or circular"
        )
    near = w < 1e-6
    sine = torch.where(near, 1.0, w.sin())
    p = torch.where(near, 1 - t, ((1 - t) * w).sin() / sine)
    q = torch.where(near, t, (t * w).sin() / sine)
    return p.to(a) * a + q.to(a) * b


MIXES: dict[str, Mix] = {"straight": straight, "spherical": spherical, "circular": circular}


@dataclass(frozen=True)
class Space:
    """`encode`: configurations `[pairs, *event_shape]` to latent numbers `[pairs, ...]`; `decode`: back."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]

    @classmethod
    def fields(cls) -> "Space":
        """Field space itself."""
        return cls(lambda x: x, lambda z: z)

    @classmethod
    def of(cls, model) -> "Space":
        """Of a `Model` that encodes and decodes (PCA, autoencoders, a VAE by the mean m(y)), or of a `Flow`.

        A flow's z is the white noise of its base; D is its base and layers, also of a symmetrised flow, whose random sign
        is no part of the path. Raises `InputError` for other models, for flows whose noise is not normal (gauge fields,
        events) and for those that have no inverse.
        """
        if isinstance(model, Flow):
            return _of_flow(model)
        if not (hasattr(model, "encode") and hasattr(model, "decode")):
            raise InputError(
                f"{type(model).__name__} does not encode and decode; expected an autoencoder, PCA or a flow"
            )
        return cls(model.encode, model.decode)


def _of_flow(flow) -> Space:
    base = flow.base
    middle = base.log_white(base.like.new_zeros(1, *flow.event_shape))
    if (
        not flow.any_density
        or abs(float(middle) + 0.5 * math.prod(flow.event_shape) * math.log(2 * math.pi)) > 1e-6
    ):
        raise InputError(
            f"{type(flow).__name__} on {type(base).__name__}: a path needs a flow with an inverse, from white noise"
        )

    def decode(noise: Tensor) -> Tensor:
        x, _ = base.push(noise)
        for layer in flow.layers:
            x, _ = layer(x)
        return x

    return Space(lambda x: base.whiten(flow.inverse(x.to(base.like))[0]), decode)


@dataclass(frozen=True)
class Path:
    """`t` `[T]`; `action` `[T, pairs]`, float64; `missed` `[2, pairs]`: rms over sites of x(0) - a and of x(1) - b."""

    t: np.ndarray
    action: np.ndarray
    missed: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over pairs, `[T]`."""
        return self.action.mean(1)

    @property
    def error(self) -> np.ndarray:
        """Of the mean, for independent pairs, `[T]`."""
        return self.action.std(1, ddof=1) / math.sqrt(self.action.shape[1])

    @property
    def band(self) -> np.ndarray:
        """The quantiles `BAND` over pairs, `[3, T]`."""
        return np.quantile(self.action, BAND, axis=1)

    @property
    def barrier(self) -> np.ndarray:
        """`max_t S(t) - max(S(0), S(1))` of each pair, `[pairs]`, not negative: what there is to climb on the way."""
        return self.action.max(0) - np.maximum(self.action[0], self.action[-1])


@torch.no_grad()
def path(target: Target, space: Space, mix: Mix, a: Tensor, b: Tensor, points: int = 33) -> Path:
    """The action along the path of each pair of a and b, `[pairs, *event_shape]`, at `points` equidistant t, ends included.

    Fields are decoded in the precision of `space`, the action is evaluated in float64. Raises `InputError` for fewer than
    two points or pairs, a and b of different shapes, or numbers that are not finite.
    """
    if points < 2 or a.shape != b.shape or len(a) < 2:
        raise InputError(
            f"{points} points between ends of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected two points or more, "
            "and two pairs or more of one shape"
        )
    if not bool(a.isfinite().all() and b.isfinite().all()):
        raise InputError("ends with NaN or infinite numbers; expected none")
    t = np.linspace(0, 1, points)
    ends = space.encode(a), space.encode(b)
    action, missed = [], []
    for i, at in enumerate(t):
        x = space.decode(mix(*ends, float(at))).double()
        action.append(-target.log_prob(x).cpu().numpy())
        if i in (0, points - 1):
            away = x - (b if i else a).to(x)
            missed.append(away.flatten(1).square().mean(1).sqrt().cpu().numpy())
    return Path(t, np.stack(action), np.stack(missed))


@dataclass(frozen=True)
class Crossing:
    """Where a path changes the sign of an order parameter o, `[pairs]` each: `t`, `action`, the larger of both sides of it.

    `order`: the larger |o| of both sides, near 0 where the path is resolved; where it is not, the action is a lower bound
    of the highest on the way.
    """

    t: np.ndarray
    action: np.ndarray
    order: np.ndarray


@torch.no_grad()
def crossing(
    target: Target,
    space: Space,
    mix: Mix,
    a: Tensor,
    b: Tensor,
    order: Callable[[Tensor], Tensor],
    steps: int = 60,
) -> Crossing:
    """Bisection in t for the zero of `order(x(t))`, `[pairs]`, which a grid of t may step over.

    A flow has next to no noise between two wells, and so next to no t. Of several zeros it finds one. Raises `InputError`
    for a and b of different shapes, and unless the decoded ends of every pair have opposite signs of o.
    """
    if a.shape != b.shape:
        raise InputError(f"ends of shapes {tuple(a.shape)} and {tuple(b.shape)}; expected pairs")
    ends = space.encode(a), space.encode(b)
    shape = (len(a), *[1] * (ends[0].dim() - 1))

    def at(t: Tensor) -> tuple[Tensor, Tensor]:
        x = space.decode(mix(*ends, t.view(shape))).double()
        return order(x), -target.log_prob(x)

    low = torch.zeros(len(a), dtype=torch.float64, device=ends[0].device)
    high = torch.ones_like(low)
    start, end = at(low)[0], at(high)[0]
    same = start.sign() * end.sign() >= 0
    if same.any():
        raise InputError(
            f"{int(same.sum())} of {len(a)} pairs do not change the sign of the order parameter; expected all to"
        )
    for _ in range(steps):
        middle = 0.5 * (low + high)
        before = at(middle)[0].sign() == start.sign()
        low, high = torch.where(before, middle, low), torch.where(before, high, middle)
    sides = [at(t) for t in (low, high)]
    o, action = (torch.stack(one) for one in zip(*sides))
    found = (low, action.amax(0), o.abs().amax(0))
    return Crossing(*(one.cpu().numpy() for one in found))


def plot(panels: Mapping[str, Mapping[str, Path]], typical: np.ndarray | None = None) -> bytes:
    """A PNG file's bytes: one panel for each kind of pairs, in it the mean of S(t) with its band; needs matplotlib.

    `typical`: actions of the ensemble, whose band `BAND` is drawn behind.
    """
    from matplotlib.figure import Figure

    from .. import COLOURS, DASHES, styled

    @styled
    def draw() -> Figure:
        figure = Figure(figsize=(4.8 * len(panels), 4.4), layout="constrained")
        for axes, (title, paths) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items()):
            if typical is not None:
                low, _, high = np.quantile(typical, BAND)
                axes.axhspan(low, high, color="black", alpha=0.12, linewidth=0, label="ensemble")
            for i, (name, one) in enumerate(paths.items()):
                colour = COLOURS[i % len(COLOURS)]
                axes.plot(one.t, one.mean, color=colour, linestyle=DASHES[i % len(DASHES)], label=name)
                axes.fill_between(one.t, one.band[0], one.band[2], color=colour, alpha=0.15, linewidth=0)
            axes.set(title=title, xlabel="$t$", ylabel="$S$ along the path", xlim=(0, 1))
        handles = figure.axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=3)
        return figure

    return draw()
