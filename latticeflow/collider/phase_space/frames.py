"""Frames, two-body decays and invariants, arranged so that nothing cancels where particles are soft or collinear.

Momenta are `[..., 4]`, components (E, px, py, pz).
"""

import math

import torch
from torch import Tensor


def boost(p: Tensor, frame: Tensor, mass: Tensor, back: bool = False) -> Tensor:
    """p `[..., 4]`, given in the rest frame of a system, as seen where that has momentum `frame` `[..., 4]` and its `mass`.

    `p' = p + Q (E / M + Q.p / (M (M + Q0)))`, the rotation-free boost. `back`: from there into the rest frame.
    """
    q = -frame[..., 1:] if back else frame[..., 1:]
    along = (q * p[..., 1:]).sum(-1)
    energy = (frame[..., 0] * p[..., 0] + along) / mass
    step = p[..., 0] / mass + along / (mass * (mass + frame[..., 0]))
    return torch.cat([energy[..., None], p[..., 1:] + step[..., None] * q], -1)


def on_shell(p: Tensor, masses: Tensor) -> Tensor:
    """p `[..., n, 4]` with energies `sqrt(p^2 + m^2)`, masses `[n]`: each particle on its mass shell to its own rounding."""
    k = p[..., 1:]
    return torch.cat([(k.square().sum(-1) + masses.square()).sqrt()[..., None], k], -1)


def direction(half: Tensor, turn: Tensor) -> Tensor:
    """The unit vector `[..., 3]` with `cos(theta) = 2 half - 1` and `phi = 2 pi turn`."""
    sine = 2 * (half * (1 - half)).sqrt()
    phi = 2 * math.pi * turn
    return torch.stack([sine * phi.cos(), sine * phi.sin(), 2 * half - 1], -1)


def direction_inverse(k: Tensor) -> tuple[Tensor, Tensor]:
    """`(half, turn)` of a vector `[..., 3]` of any length."""
    across = k[..., :2].square().sum(-1)
    length = (across + k[..., 2].square()).sqrt()
    small = across / (2 * length * (length + k[..., 2].abs()))  # (1 - |cos|) / 2
    half = torch.where(k[..., 2] > 0, 1 - small, small)
    turn = torch.atan2(k[..., 1], k[..., 0]) / (2 * math.pi)
    return half, torch.where(turn < 0, turn + 1, turn)


def decay(
    frame: Tensor, mass: Tensor, momentum: Tensor, m_a: float | Tensor, m_b: float | Tensor, unit: Tensor
) -> tuple[Tensor, Tensor]:
    """Momenta of the two that a system with momentum `frame` `[..., 4]` and `mass` `[...]` decays to.

    In its rest frame either has the momentum `momentum` `[...]`, a along `unit` `[..., 3]`.
    """
    k = momentum[..., None] * unit
    a = torch.cat([(momentum.square() + m_a**2).sqrt()[..., None], k], -1)
    b = torch.cat([(momentum.square() + m_b**2).sqrt()[..., None], -k], -1)
    return boost(a, frame, mass), boost(b, frame, mass)


def excess(p: Tensor, masses: Tensor) -> Tensor:
    """`p_i.p_j - m_i m_j` for all pairs, `[..., n, n]`: 0 where two particles move together, and positive.

        = (m_i |p_j| - m_j |p_i|)^2 / (E_i E_j + |p_i| |p_j| + m_i m_j) + |p_i| |p_j| |n_i - n_j|^2 / 2

    with n the unit vectors of the three-momenta; energies are those of the masses `[n]`.
    """
    k = p[..., 1:]
    length = k.square().sum(-1).sqrt()
    unit = k / length.clamp(min=torch.finfo(p.dtype).tiny)[..., None]
    energy = (length.square() + masses.square()).sqrt()
    lengths = length[..., :, None] * length[..., None, :]
    cross = masses[:, None] * length[..., None, :]
    apart = (unit[..., :, None, :] - unit[..., None, :, :]).square().sum(-1)
    scale = (energy[..., :, None] * energy[..., None, :] + lengths + masses[:, None] * masses[None, :]).clamp(
        min=torch.finfo(p.dtype).tiny
    )
    return (cross - cross.transpose(-1, -2)).square() / scale + lengths * apart / 2
