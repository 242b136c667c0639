"""A conditional density p(y | c), learned by likelihood: a small flow from normal numbers, smooth in its condition.

Number by number, each of y given c and those before it,

    y_k = m_k + s_k sinh( (asinh(z_k) + e_k) / d_k ),    z_k ~ N(0, 1),    (m_k, log s_k, e_k, log d_k) = network_k(c, y_<k)

with place m, scale s > 0, skewness e and tails d > 0, heavier than normal for d < 1 (Jones and Pewsey, Biometrika 96 (2009)
761). At e = 0, d = 1 it is Gaussian. Draws are differentiable in c at fixed z, as gradient descent through a surrogate
needs; the density is exact, as an adversary needs.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from .. import dense_net
from ..errors import InputError, NumericalError

BEND = 1.0  # |log d| at most
LEAN = 2.0  # |e| at most
FAR = 30.0  # |argument of sinh| at most: from there on nothing but rounding tells densities from 0


def normal(rng: np.random.Generator, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Standard normal numbers of `shape`, of the dtype and on the device of `like`."""
    return torch.from_numpy(rng.standard_normal(shape)).to(like)


class Shape(nn.Module):
    """`[n, inputs] -> [n, 4]`: a polynomial of second degree, which says most where c varies little, and a network."""

    def __init__(self, inputs: int, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        self.i, self.j = torch.triu_indices(inputs, inputs).tolist()
        terms = inputs + len(self.i)
        self.network = nn.Sequential(*dense_net([inputs, *hidden, 4], rng))
        self.polynomial = nn.Parameter(torch.zeros(4, terms))

    def forward(self, c: Tensor) -> Tensor:
        terms = torch.cat([c, c[:, self.i] * c[:, self.j]], 1)
        return self.network(c) + nn.functional.linear(terms, self.polynomial)


class ConditionalDensity(nn.Module):
    """The density of y `[n, numbers]` given c `[n, given]` of the module's docstring; `hidden` widths of its networks.

    y and c are shifted and scaled by mean and deviation of the data that `begin` is shown.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, given: int, numbers: int, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        self.given, self.numbers = given, numbers
        self.networks = nn.ModuleList(Shape(given + k, hidden, rng) for k in range(numbers))
        self.register_buffer("centre", torch.zeros(given + numbers))
        self.register_buffer("scale", torch.ones(given + numbers))

    @torch.no_grad()
    def begin(self, c: Tensor, y: Tensor) -> None:
        """Set the shift and scale; raises `InputError` for shapes other than `[n, given]` and `[n, numbers]`, n >= 2."""
        self._check(c, y)
        if len(c) < 2:
            raise InputError(f"{len(c)} pairs of c and y to begin with; expected two at least")
        both = torch.cat([c, y], 1).to(self.centre)
        spread = both.std(0)
        self.centre.copy_(both.mean(0))
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))

    def log_prob(self, y: Tensor, c: Tensor) -> Tensor:
        """`log p(y | c)`, `[n]`, y in its own units."""
        self._check(c, y)
        seen = self._inward(c, y)
        total = seen.new_zeros(len(seen))
        for k in range(self.numbers):
            at = self.given + k
            m, log_s, e, log_d = self._shape(k, seen[:, :at])
            w = (seen[:, at] - m) * (-log_s).exp()
            a = (log_d.exp() * w.asinh() - e).clamp(-FAR, FAR)
            # z = sinh(a), dz/dy = cosh(a) d / (s sqrt(1 + w^2))
            slope = a.cosh().log() + log_d - log_s - 0.5 * (1 + w * w).log()
            total = total - 0.5 * (a.sinh().square() + math.log(2 * math.pi)) + slope
        return total - self.scale[self.given :].log().sum()

    def draw(self, c: Tensor, z: Tensor) -> Tensor:
        """y `[n, numbers]` of standard normal z `[n, numbers]`, differentiable in c."""
        self._check(c, z)
        seen = (c - self.centre[: self.given]) / self.scale[: self.given]
        for k in range(self.numbers):
            m, log_s, e, log_d = self._shape(k, seen)
            a = ((z[:, k].asinh() + e) * (-log_d).exp()).clamp(-FAR, FAR)
            seen = torch.cat([seen, (m + log_s.exp() * a.sinh())[:, None]], 1)
        return (seen * self.scale + self.centre)[:, self.given :]

    def fit(self, c: Tensor, y: Tensor, steps: int, batch: int, lr: float, rng: np.random.Generator) -> float:
        """Maximum likelihood: Adam, its rate falling to 0 with half a cosine, on batches drawn at random.

        Returns the mean of `- log p(y | c)` over the last tenth of the steps. Raises `InputError` for no step or batch,
        `NumericalError` where the loss is not finite."""
        if steps < 1 or batch < 1:
            raise InputError(f"{steps} steps with batches of {batch}; expected one at least")
        optimizer = torch.optim.Adam(self.parameters(), lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        losses = []
        for _ in range(steps):
            some = torch.from_numpy(rng.integers(len(c), size=batch)).to(c.device)
            loss = -self.log_prob(y[some], c[some]).mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if not math.isfinite(losses[-1]):
                raise NumericalError(f"the mean of -log p(y | c) is {losses[-1]} in step {len(losses)}")
        last = losses[-max(1, steps // 10) :]
        return sum(last) / len(last)

    def _inward(self, c: Tensor, y: Tensor) -> Tensor:
        return (torch.cat([c, y], 1) - self.centre) / self.scale

    def _shape(self, k: int, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        m, log_s, e, log_d = self.networks[k](seen).unbind(1)
        return m, log_s, LEAN * (e / LEAN).tanh(), BEND * (log_d / BEND).tanh()

    def _check(self, c: Tensor, y: Tensor) -> None:
        if c.shape[1:] != (self.given,) or y.shape[1:] != (self.numbers,) or len(c) != len(y):
            raise InputError(
                f"condition {list(c.shape)} and numbers {list(y.shape)}; expected [n, {self.given}] and [n, {self.numbers}]"
            )
