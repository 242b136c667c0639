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
    NaN is not, and whoever stores draws raises on it. x has shape `[batch, *event_shape]`, in single or
    double precision (`field_dtype`); the result has shape `[batch]` and that precision.
    """

    kind: ClassVar[str]
    measure: ClassVar[str]  # "lebesgue", "haar" or "hypercube"

    @property
    def event_shape(self) -> tuple[int, ...]:
        raise NotImplementedError

    def log_prob(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    # The space that x lives in; here flat. `move` and `settle` are what Hamiltonian dynamics needs of it.

    def field_dtype(self, precision: torch.dtype) -> torch.dtype:
        """Of x, where numbers have `precision` (float32 or float64): complex where fields are."""
        return precision

    @property
    def momentum_shape(self) -> tuple[int, ...]:
        """Of one momentum, real."""
        return self.event_shape

    def move(self, x: Tensor, p: Tensor, time: float) -> Tensor:
        """x after a free motion with momentum p `[batch, *momentum_shape]`; x itself may be overwritten."""
        return x.add_(p, alpha=time)

    def settle(self, x: Tensor) -> Tensor:
        """x, put back where rounding has moved it off the space."""
        return x

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Between numbers of two configurations, not negative, shape of x."""
        return (x - y).abs()

    def pair(self, covector: Tensor, x: Tensor) -> Tensor:
        """A number of each configuration, `[batch]`, whose derivative along a motion of x with momentum p is `covector . p`;

        covector `[batch, *momentum_shape]`, without gradient.
        """
        return (covector * x).flatten(1).sum(1)

    def start(self, noise: Tensor) -> Tensor:
        """Where chains begin, from white noise `[batch, *momentum_shape]`."""
        # narrow on purpose: a hot start has forces far beyond equilibrium's, and single chains then stay stuck for
        # long while the mean acceptance looks well
        return 0.1 * noise

    def slow(self, x: Tensor) -> Tensor:
        """A number of each configuration that HMC is slow to change, `[batch]`: the squared mean field."""
        return x.flatten(1).mean(1).square()

    def require_support(self) -> None:
        """Raises `InputError` where the density vanishes everywhere (cuts), before anything is drawn or trained."""

    def at(self, **couplings: float) -> Self:
        """The same target at other couplings. Raises `InputError` for one that it does not have."""
        return type(self)(**(self.model_dump() | couplings)) if couplings else self

    def force(self, x: Tensor) -> Tensor:
        """`d log_prob / dx`, `[batch, *momentum_shape]`; by autograd unless a target knows better."""
        x = x.detach().requires_grad_(True)
        with torch.enable_grad():
            return torch.autograd.grad(self.log_prob(x).sum(), x)[0]

    def check(self, x: Tensor) -> Tensor:
        """x itself; raises `InputError` for a wrong event shape or dtype."""
        if x.shape[1:] != self.event_shape:
            raise InputError(
                f"{self.kind}: x of shape {tuple(x.shape)}; expected [batch, "
                f"{', '.join(map(str, self.event_shape))}]"
            )
        expected = [self.field_dtype(precision) for precision in (torch.float32, torch.float64)]
        if x.dtype not in expected:
            names = " or ".join(str(dtype).removeprefix("torch.") for dtype in expected)
            raise InputError(f"{self.kind}: x of dtype {x.dtype}; expected {names}")
        return x

    def check_field(self, x: Tensor) -> Tensor:
        """x itself; raises `InputError` where it does not lie in the space of fields, by more than rounding."""
        return self.check(x)


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


targets: Registry[Target] = Registry("target", {"matrix_element": "latticeflow.collider"})
