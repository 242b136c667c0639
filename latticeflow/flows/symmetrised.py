"""A flow made symmetric under phi -> -phi by a random sign: no well is missed, whatever well the flow was trained into."""

import math
from typing import Any

import torch
from pydantic import field_serializer, field_validator
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice
from ..targets import LatticeTarget
from .flow import Flow
from .spec import FlowSpec, flows


def sign_and_noise(noise: Tensor) -> tuple[Tensor, Tensor]:
    """A random sign and white noise independent of it, from white noise `[batch, *shape]`, nothing else being drawn.

    `n = V^{-1/2} sum_s noise(s)` is standard normal, hence its sign sigma is a fair coin, independent of |n|, and
    `n' = Phi^{-1}(P(|n''| < |n|)) = Phi^{-1}(erf(|n| / sqrt 2))` is standard normal again. Returns sigma `[batch]` and
    `sigma noise + V^{-1/2} (n' - |n|)`; under noise -> -noise the sign changes and the other stays, bit for bit.
    """
    v = math.sqrt(noise[0].numel())
    n = noise.flatten(1).sum(1, dtype=torch.float64) / v
    sign = torch.where(n < 0, -1.0, 1.0).to(n)
    t = n.abs() / math.sqrt(2)
    # whichever tail is the smaller keeps its digits; |n| = 0 would be minus infinity
    lower, upper = torch.erf(t).clamp_min(torch.finfo(t.dtype).tiny), torch.erfc(t)
    normal = torch.where(lower < upper, torch.special.ndtri(lower), -torch.special.ndtri(upper))

    def per_site(a: Tensor) -> Tensor:
        return a.to(noise.dtype).view(-1, *[1] * (noise.dim() - 1))

    return sign, per_site(sign) * noise + per_site((normal - n.abs()) / v)


class SymmetrisedFlow(Flow):
    """`q_sym(x) = [ q(x) + q(-x) ] / 2`, q the flow of this base and these layers: `x = sigma T(z)`, sigma = +-1 at random.

    A mixture as in 2107.00734, over the group Z2. Parameters have the names they have in a plain `Flow`, so that one
    trained in a single well loads into it and becomes a flow in both. sigma comes from the noise (`sign_and_noise`), so that
    noise has the lattice's shape as for every flow, and noise -> -noise turns x into -x. A draw costs one inverse of the
    layers more than the plain flow's, for q(-x). `inverse` stays that of the layers: x itself comes from two z.
    """

    @classmethod
    def of(cls, flow: Flow) -> "SymmetrisedFlow":
        """The symmetrised flow that shares base and layers with `flow`.

        Raises `InputError` for a flow that is more than its base and layers, and has no density at given x.
        """
        if not flow.any_density:
            raise InputError(
                f"symmetrised: {type(flow).__name__} has no density at given x, and q(-x) is needed. Symmetrise a flow of "
                "another kind: a stochastic flow's layers are equivariant anyway, and of a symmetrised flow a conditional "
                "one can be made"
            )
        return cls(flow.base, flow.layers)

    def push(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        sign, white = sign_and_noise(noise)
        x, log_q = super().push(white)
        log_q_sym = torch.logaddexp(log_q, super().log_prob(-x)) - math.log(2)
        return _times(sign, x), log_q_sym

    def push_with_score(self, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The score of the mixture, `[q(x) s(x) - q(-x) s(-x)] / 2 q_sym(x)` with s that of q."""
        sign, white = sign_and_noise(noise)
        x, log_q, score = super().push_with_score(white)
        with torch.enable_grad():
            mirrored = (-x).detach().requires_grad_(True)
            (score_mirrored,) = torch.autograd.grad(super().log_prob(mirrored).sum(), mirrored)
        log_q_mirrored = super().log_prob(-x)
        share = torch.sigmoid((log_q - log_q_mirrored).detach())
        score = _times(share, score) - _times(1 - share, score_mirrored)
        log_q_sym = torch.logaddexp(log_q, log_q_mirrored) - math.log(2)
        return _times(sign, x), log_q_sym, _times(sign, score)

    def density_error(self, x: Tensor, log_q: Tensor) -> Tensor:
        """The larger of the plain flow's at x and at -x, which bounds that of the mixture."""
        errors = [super(SymmetrisedFlow, self).density_error(y, Flow.log_prob(self, y)) for y in (x, -x)]
        return torch.maximum(*errors)

    def log_prob(self, x: Tensor) -> Tensor:
        return torch.logaddexp(super().log_prob(x), super().log_prob(-x)) - math.log(2)


def _times(a: Tensor, x: Tensor) -> Tensor:
    """x `[batch, *shape]` times a `[batch]`, in the dtype of x."""
    return a.to(x.dtype).view(-1, *[1] * (x.dim() - 1)) * x


@flows.add("symmetrised")
class Symmetrised(FlowSpec):
    """`SymmetrisedFlow` of the flow in the table `[flow.flow]`, for those that are not equivariant by themselves."""

    flow: FlowSpec

    @field_validator("flow", mode="before")
    @classmethod
    def _flow(cls, value: Any) -> Any:
        return flows.parse(value) if isinstance(value, dict) else value

    @field_serializer("flow")
    def _table(self, value: FlowSpec) -> dict[str, Any]:
        return flows.table(value)

    def build(self, lattice: Lattice, seed: int) -> SymmetrisedFlow:
        return SymmetrisedFlow.of(self.flow.build(lattice, seed))

    def build_for(self, target: LatticeTarget, seed: int) -> SymmetrisedFlow:
        return SymmetrisedFlow.of(self.flow.build_for(target, seed))
