"""The target: an unnormalised log-density on an event space."""

from functools import lru_cache
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..errors import InputError
from ..lattice import Lattice
from ..spec import Registry, Spec


class Target(Spec):
    """An unnormalised log-density `log_prob(x)` with respect to `measure`.

    A subclass declares its event shape and measure and gives `log_prob`. `-inf` is legal (outside cuts);
    NaN is not, and whoever stores draws raises on it. x has shape `[batch, *event_shape]`, float32 or
    float64; the result has shape `[batch]` and the dtype of x.
    """

    kind: ClassVar[str]
    measure: ClassVar[str]  # "lebesgue", "haar" or "hypercube"

    @property
    def event_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def at(self, **couplings: float) -> Self:
        """The same target at other couplings. Raises `InputError` for one that it does not have."""
        return type(self)(**(self.model_dump() | couplings)) if couplings else self

    def force(self, x: Tensor) -> Tensor:
        """`d log_prob / dx`, shape of x; by autograd unless a target knows better."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self.log_prob(x).sum(), x)[0]

    def check(self, x: Tensor) -> Tensor:
        """x itself; raises `InputError` for a wrong event shape or a dtype that is not floating point."""
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"{self.kind}: x of shape {tuple(x.shape)}; expected [batch, "
                f"{', '.join(map(str, self.event_shape))}]"
            )
        if not x.is_floating_point():
            raise InputError(f"{self.kind}: x of dtype {x.dtype}; expected float32 or float64")
        return x


# one object per shape, which keeps what it has computed: `force` asks for it each time
_lattice = lru_cache(Lattice)


class LatticeTarget(Target):
    """A target on a periodic lattice, `log_prob = -action` up to a constant."""

    shape: tuple[int, ...]

    @property
    def lattice(self) -> Lattice:
        return _lattice(self.shape)

    def model_post_init(self, context) -> None:
        Lattice(self.shape)  # raises for an impossible shape

    def action(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        return -self.action(x)


targets: Registry[Target] = Registry("target")
