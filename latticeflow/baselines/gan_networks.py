"""Generators and critics of adversarial games: on a lattice from a noise field, dense on events.

A generator on a lattice is a map of noise fields that commutes with translations, so that the distribution of what it
draws has this symmetry exactly, whatever its weights and whatever the critic sees.
"""

import math
from itertools import pairwise

import numpy as np
import torch
from numpy.polynomial.legendre import legvander
from torch import Tensor, nn

from ..errors import InputError
from ..flows.networks import CircularConv
from ..lattice import Lattice
from ..transforms.fourier import fourier_scale
from .base import Data, mean_over
from .coordinates import Coordinates
from .networks import Dense, Halve, dense_net, levels

GAIN = math.sqrt(6)
HEAD = 32  # width of a critic's dense head
DEGREE = 4  # of the polynomial in khat^2 that is trained
FIT = 2  # of that which is fitted to data


def convolutions(dim: int, widths: list[int], rng: np.random.Generator) -> list[nn.Module]:
    """From each width to the next a circular convolution and SiLU, with weights of He's size, `2 / fan_in` (1502.01852)."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = CircularConv(dim, inputs, outputs, 3, rng)
        with torch.no_grad():
            layer.weight.mul_(GAIN)  # from variance 1 / (3 fan_in)
        modules += [layer, nn.SiLU()]
    return modules


class Filter(nn.Module):
    """`h_c(k) = a_c(k) n_c(k)`: noise fields `[batch, channels, *sides]` with a spectrum each that is smooth in khat^2.

        log a_c(k) = log s_c(k) + sum_{j<=DEGREE} w_cj P_j(khat^2 / (2 D) - 1),    w trained, 0 at first

    P_j are Legendre's polynomials. It commutes with all symmetries of the lattice and reaches over all of it. s is set from
    data, 1 before: `s^-2` is the polynomial in khat^2 of degree `FIT` that is nearest to the inverse propagator
    `1 / <|y_k|^2>` in relative least squares: linear of the free field, and smooth. So it has smaller errors than the mean
    square of a mode, which n configurations tell to sqrt(2 / n); that at k = 0 is chi2. k = 0 is left out of the fit where
    it is above twice what the others say (two wells).
    """

    log_start: Tensor
    legendre: Tensor

    def __init__(self, sides: tuple[int, ...], channels: int):
        super().__init__()
        self.dim = len(sides)
        khat2 = Lattice(sides).khat2
        degree = min(DEGREE, len(np.unique(khat2.round(9))) - 1)
        P = np.moveaxis(legvander(khat2 / (2 * self.dim) - 1, degree), -1, 0)
        self.register_buffer("legendre", torch.from_numpy(P.copy()).float(), persistent=False)
        self.register_buffer("log_start", torch.zeros(channels, *sides))
        self.weight = nn.Parameter(torch.zeros(channels, len(P)))

    def forward(self, noise: Tensor) -> Tensor:
        moved = torch.tensordot(self.weight, self.legendre, 1)
        return fourier_scale(noise, self.log_start + moved, self.dim)[0]

    @torch.no_grad()
    def start_at(self, power: Tensor) -> Tensor:
        """Fit s to `<|y_k|^2>`, float64 `[channels, *sides]`; returns the excess of k = 0 over the fit, `[channels]`."""
        basis = self.legendre[: FIT + 1].double().flatten(1).T.cpu().numpy()
        excess = torch.zeros(len(power), dtype=torch.float64)
        for c, one in enumerate(power.flatten(1).cpu().numpy()):
            found = np.maximum(one, 1e-12)
            smooth = _smooth(basis, found, 1)
            if found[0] > 2 * smooth[0]:  # two wells
                excess[c] = found[0] - smooth[0]
            else:
                smooth = _smooth(basis, found, 0)
            self.log_start[c].copy_(torch.from_numpy(0.5 * np.log(smooth)).view_as(power[c]))
        return excess


def _smooth(basis: np.ndarray, found: np.ndarray, first: int) -> np.ndarray:
    """The fit to the modes from `first` on, at all; what was found itself where the fit is none or above twice of it.

    By numpy: the bits of torch's solution depend on where in memory its arguments lie.
    """
    rows = found[first:, None] * basis[first:]
    inverse = basis @ np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return np.where(inverse * found > 0.5, 1 / inverse, found)


class FieldGenerator(nn.Module):
    """`y = h + c(h, n')`: h noise filtered into the `channels` of y, n' white noise fields, `fields` of both together.

    c: convolutions (kernel 3, circular, SiLU between) to the `hidden` numbers of channels and to those of y. Its last layer
    starts at 0, so that the first draws are Gaussian fields with the data's two-point function. `filtered = False`: h is the
    white noise itself, and correlations reach as far as convolutions do.
    """

    def __init__(
        self, at: Coordinates, fields: int, hidden: tuple[int, ...], filtered: bool, rng: np.random.Generator
    ):
        super().__init__()
        channels, dim = at.shape[0], len(at.sides)
        if fields < channels:
            raise InputError(f"model.noise = {fields}: expected at least {channels}, the channels of a field")
        self.channels, self.noise_shape = channels, (fields, *at.sides)
        self.filter = Filter(at.sides, channels) if filtered else None
        self.last = CircularConv(dim, [fields, *hidden][-1], channels, 3, rng, bias=False)
        self.net = nn.Sequential(*convolutions(dim, [fields, *hidden], rng))
        self.bias = nn.Parameter(torch.zeros(channels, *[1] * dim))
        with torch.no_grad():
            self.last.weight.zero_()

    @torch.no_grad()
    def start(self, data: Data, inward, sign: bool) -> None:
        """Set the filter to the spectrum of `inward(x)`; walks once, sums in float64.

        What the power at k = 0 is above the fit (two wells), its excess, goes into the filter's value at k = 0; with
        `sign` into a constant in y, which in the end gets a random sign.
        """
        if self.filter is None:
            return
        axes = tuple(range(2, len(self.noise_shape) + 1))
        power = mean_over(
            data, lambda x: torch.fft.fftn(inward(x).double(), dim=axes, norm="ortho").abs().square()
        )
        excess = self.filter.start_at(power)
        if sign:
            self.bias.copy_((excess.to(self.bias) / math.prod(power.shape[1:])).sqrt().view_as(self.bias))
        else:
            at_zero = self.filter.log_start.flatten(1)[:, 0]
            at_zero.copy_(0.5 * ((2 * at_zero.double()).exp() + excess.to(at_zero.device)).log())

    def forward(self, noise: Tensor) -> Tensor:
        h = noise
        if self.filter is not None:
            filtered = self.filter(noise[:, : self.channels])
            h = torch.cat([filtered, noise[:, self.channels :]], 1)
        return h[:, : self.channels] + self.last(self.net(h)) + self.bias


class DenseGenerator(nn.Module):
    """`y = c(n)`, n of `latent` numbers, c dense with the `hidden` widths."""

    def __init__(self, at: Coordinates, latent: int, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        self.noise_shape = (latent,)
        self.net = nn.Sequential(*dense_net([latent, *hidden, at.volume], rng))

    def start(self, data: Data, inward, sign: bool) -> None:
        """Nothing."""

    def forward(self, noise: Tensor) -> Tensor:
        return self.net(noise)


class FieldCritic(nn.Module):
    """A number for each field, `[batch]`, from what it sees at all scales.

    Its first channels are y and y^2 - 1. For each of the `hidden` numbers of channels the sides are halved, as long as they
    can be, and one convolution (kernel 3, circular, SiLU) follows. Of every level's channels h, the first ones too, the
    sums `V^{-1/2} sum_s h(s)` and `V^{-1/2} sum_s h(s)^2` (V: sites of the level) go into two heads, a dense and a linear
    one. In this normalisation a local quantity's sum fluctuates by order one and a bias of its mean grows as sqrt(V):
    small biases of the action's density are seen. The head sees the square of the mean field.

    With y^2 a critic told phi^4 at 32x32 from a Gaussian field of its spectrum by 0.70 in 100 steps, without by 0.54 in 300.
    """

    def __init__(self, at: Coordinates, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        dim, channels, halved = len(at.sides), 2 * at.shape[0], levels(at.sides, len(hidden))
        stages, features = [], 2 * channels
        for i, width in enumerate(hidden):
            modules: list[nn.Module] = []
            if i < halved:
                modules.append(Halve())
                channels <<= dim
            stages.append(nn.Sequential(*modules, *convolutions(dim, [channels, width], rng)))
            channels = width
            features += 2 * width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Sequential(*dense_net([features, HEAD, 1], rng))
        self.linear = Dense(features, 1, rng)

    def forward(self, y: Tensor) -> Tensor:
        h = torch.cat([y, y.square() - 1], 1)
        seen = [h]
        for stage in self.stages:
            seen.append(h := stage(h))
        features = torch.cat([_sums(h) for level in seen for h in (level, level.square())], 1)
        return (self.head(features) + self.linear(features)).squeeze(1)


class DenseCritic(nn.Module):
    """A number for each event, `[batch]`: dense layers with the `hidden` widths."""

    def __init__(self, at: Coordinates, hidden: tuple[int, ...], rng: np.random.Generator):
        super().__init__()
        self.net = nn.Sequential(*dense_net([at.volume, *hidden, 1], rng))

    def forward(self, y: Tensor) -> Tensor:
        return self.net(y).squeeze(1)


def _sums(h: Tensor) -> Tensor:
    h = h.flatten(2)
    return h.sum(2) / math.sqrt(h.shape[2])
