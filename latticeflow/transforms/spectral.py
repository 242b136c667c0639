"""Maps of SU(2) and SU(3) that change eigenvalues and keep eigenvectors (Boyda et al., 2008.05456, sec. III B).

`P = V e^{i theta} V^dagger -> P' = V e^{i theta'} V^dagger`, theta' a function of theta: P' of `g P g^dagger` is
`g P' g^dagger`. Angles are those of the Weyl alcove, one point for each conjugacy class,

`theta_1 >= ... >= theta_N`, `sum_i theta_i = 0`, `theta_1 - theta_N <= 2 pi`.

In left derivatives the map is block diagonal in the basis of V: `|d theta' / d theta|` on the diagonal and
`(1 - e^{i D'}) / (1 - e^{i D})`, `D = theta_i - theta_j`, off it (the Daleckii-Krein formula), so that with respect to
Haar's measure

`log |det| = log |d theta' / d theta| + sum_{i < j} log [ sin^2(D'_ij / 2) / sin^2(D_ij / 2) ]`.
"""

import math

import torch
from torch import Tensor

from ..groups import eigen_angles


def alcove(u: Tensor) -> tuple[Tensor, Tensor]:
    """Angles `[..., N]` in the alcove and the eigenvectors `[..., N, N]` (columns) in their order; no gradient."""
    angles, v = eigen_angles(u.detach())
    turns = torch.round(angles.sum(-1, keepdim=True) / (2 * math.pi))
    place = (angles * turns.sign()).argmax(-1, keepdim=True)
    angles = angles.scatter_add(-1, place, -2 * math.pi * turns)
    angles, order = angles.sort(-1, descending=True)
    return angles, v.gather(-1, order.unsqueeze(-2).expand_as(v))


class _Angles(torch.autograd.Function):
    """`d theta_i = (V^dagger H V)_ii` along `dP = i H P`."""

    @staticmethod
    def forward(ctx, p: Tensor, angles: Tensor, v: Tensor) -> Tensor:
        ctx.save_for_backward(p, v)
        return angles.clone()

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None, None]:
        p, v = ctx.saved_tensors
        return 1j * (v @ (grads[0].to(v)[..., None] * v.mH)) @ p, None, None


class _Rebuild(torch.autograd.Function):
    """`V e^{i theta'} V^dagger`; along `dP = i H P` it moves by `i H' P'`, `h'_ii = d theta'_i`, `h'_ij = r_ij h_ij`."""

    @staticmethod
    def forward(ctx, p: Tensor, new: Tensor, angles: Tensor, v: Tensor) -> Tensor:
        moved = v @ (torch.polar(torch.ones_like(new), new)[..., None] * v.mH)
        ctx.save_for_backward(p, moved, new, angles, v)
        return moved

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        p, moved, new, angles, v = ctx.saved_tensors
        k = 1j * (v.mH @ moved @ grads[0].mH @ v)
        k = (k + k.mH) / 2
        old, now = (one[..., :, None] - one[..., None, :] for one in (angles, new))
        same = torch.eye(old.shape[-1], dtype=torch.bool, device=old.device)
        sine = torch.where(same, 1.0, (old / 2).sin())
        # the weight of k_ji is r_ij, and that of k_ij its conjugate
        ratio = torch.polar(torch.ones_like(now), (old - now) / 2) * ((now / 2).sin() / sine)
        grad = 1j * (v @ (ratio * k) @ v.mH) @ p
        return grad, k.diagonal(dim1=-2, dim2=-1).real, None, None


def spectral(p: Tensor, move, share: float | None = None) -> tuple[Tensor, Tensor]:
    """`(P', log |det|)` of P `[..., N, N]`; `move(theta) -> (theta', theta, log |d theta' / d theta|)`.

    The theta that `move` returns is that of which theta' is the image: it may hold angles apart that meet. With a `share` s
    `V e^{i s (theta' - theta)} V^dagger` takes the place of P': it commutes with P, and `P' = P` times its 1/s-th power.
    """
    angles, v = alcove(p)
    new, used, log_slope = move(_Angles.apply(p, angles, v))
    i, j = torch.triu_indices(new.shape[-1], new.shape[-1], 1, device=new.device)
    log_sines = [((one[..., i] - one[..., j]) / 2).sin().abs().log() for one in (new, used)]
    made = new if share is None else share * (new - used)
    moved = _Rebuild.apply(p, made, used.detach(), v)
    return moved, log_slope + 2 * (log_sines[0] - log_sines[1]).sum(-1)
