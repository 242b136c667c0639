"""Two colliding hadrons: the momentum fractions of their partons from two numbers of the unit square, and the boost."""

import torch
from torch import Tensor

from ..errors import InputError


class Beams:
    """`(u_1, u_2)` in the unit square to momentum fractions `x_1 = sqrt(tau) e^Y`, `x_2 = sqrt(tau) e^-Y`.

    `tau = M^2 / S`, M the mass of the pair of partons between `low` and `high` and `sqrt(S) = energy` (all GeV); Y is the
    rapidity of the pair. `1 / tau` is uniform in u_1 and Y in u_2, so that a density of `tau^-2` is flat:

        1 / tau = (1 - u_1) / tau_low + u_1 / tau_high,    Y = (u_2 - 1/2) log(1 / tau),

        dx_1 dx_2 = dtau dY = tau^2 (1 / tau_low - 1 / tau_high) log(1 / tau) du_1 du_2

    Raises `InputError` unless `0 < low < min(high, energy)`; `high` above `energy` counts as that.
    """

    def __init__(self, energy: float, low: float, high: float):
        if not 0 < low < min(high, energy):
            raise InputError(
                f"beams at {energy} GeV: masses of the pair of partons from {low} to {high} GeV; "
                "expected 0 < lower bound < upper bound and < energy"
            )
        self.energy = energy
        self.most, self.least = (energy / low) ** 2, (energy / min(high, energy)) ** 2  # of 1 / tau

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u `[batch, 2]` to `(x_1, x_2, log |dx_1 dx_2 / du|)`, each `[batch]`."""
        inverse = self.most + u[:, 0] * (self.least - self.most)
        span = inverse.log()
        root, rapidity = inverse.rsqrt(), (u[:, 1] - 0.5) * span
        log_jac = (self.most - self.least) / inverse.square() * span
        one, two = (
            (root * (sign * rapidity).exp()).clamp(max=1) for sign in (1, -1)
        )  # 1 exceeded by rounding
        return one, two, log_jac.log()

    def inverse(self, x1: Tensor, x2: Tensor) -> Tensor:
        """The u `[batch, 2]` of these momentum fractions."""
        inverse = 1 / (x1 * x2)
        rapidity = 0.5 * (x1 / x2).log()
        return torch.stack(
            [(inverse - self.most) / (self.least - self.most), rapidity / inverse.log() + 0.5], 1
        )


def along_beam(p: Tensor, rapidity: Tensor) -> Tensor:
    """Momenta p `[batch, n, 4]` seen from where their frame has this rapidity `[batch]` along z."""
    cosh, sinh = rapidity.cosh()[:, None], rapidity.sinh()[:, None]
    e, z = p[..., 0], p[..., 3]
    return torch.stack([cosh * e + sinh * z, p[..., 1], p[..., 2], sinh * e + cosh * z], -1)
