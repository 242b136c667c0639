"""Cuts: which events belong to the measurement."""

import torch
from torch import Tensor

from ..spec import Spec


class Cuts(Spec):
    """Bounds on the outgoing particles, all optional; an event passes if it fulfils every one that is set."""

    y_min: float | None = None

    def passes(self, p: Tensor, energy: Tensor) -> Tensor:
        """Bool `[batch]`; p `[batch, n, 4]` outgoing momenta, energy `[batch]`, of their centre of mass."""
        return torch.ones(len(p), dtype=torch.bool, device=p.device)
