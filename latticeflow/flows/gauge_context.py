"""What a gauge coupling layer knows of its surroundings: frozen Wilson loops, and a convolutional network of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..groups import Group
from ..transforms.paths import Paths, Step, links_on, rectangles
from .gauge_masks import Mask, staple
from .networks import CircularConv, conv_net


class FrozenLoops(nn.Module):
    """`W = tr(...) / N` of loops without an active link, as fields, zero where a loop holds one:

    around each active link `S S_k^dagger`, S the staple of its active plaquette and S_k each of its other staples that are
    frozen (in two dimensions and U(1) the angle `P + P'` of the link's two plaquettes, all that a heat bath would ask for),
    and rectangles of the given sizes in every plane, where they are not among these. `forward(links, S)` returns Re W and
    Im W, real `[batch, loops, *shape]` each (of SU(2) Im W = 0 is left out).
    """

    positions: Tensor

    def __init__(self, group: Group, mask: Mask, sizes: Sequence[tuple[int, int]]):
        super().__init__()
        lattice, everywhere = mask.lattice, np.arange(mask.lattice.volume)
        self.group, self.shape = group, lattice.shape
        positions: list[np.ndarray] = []

        def add(paths: nn.ModuleList, start: np.ndarray, steps: Sequence[Step], sites: np.ndarray) -> None:
            positions.append(len(positions) * lattice.volume + sites)
            paths.append(Paths(lattice, start, steps))

        self.rectangles, self.staples = nn.ModuleList(), nn.ModuleList()
        known = set()
        active_staple = links_on(lattice, mask.ahead, mask.staple)
        for nu in range(lattice.dim):
            for sign in (1, -1):
                steps = staple(mask.mu, nu, sign)
                if nu != mask.mu and (nu, sign) != (mask.nu, 1) and mask.frozen(mask.ahead, steps).all():
                    loops = np.concatenate([active_staple, links_on(lattice, mask.ahead, steps)])
                    known |= {frozenset(loop) for loop in loops.T}
                    add(self.staples, mask.ahead, steps, mask.sites)
        for steps in rectangles(lattice.dim, sizes):
            new = [frozenset(loop) not in known for loop in links_on(lattice, everywhere, steps).T]
            sites = everywhere[mask.frozen(everywhere, steps) & new]
            if len(sites):
                add(self.rectangles, sites, steps, sites)
        self.loops = len(positions)
        self.odd = 0 if group.name == "SU(2)" else self.loops
        self.register_buffer("positions", torch.from_numpy(np.concatenate(positions)), persistent=False)

    def forward(self, flat: Tensor, active_staple: Tensor) -> tuple[Tensor, Tensor | None]:
        group = self.group
        loops = [group.mul(active_staple, group.dagger(path(group, flat))) for path in self.staples]
        loops += [path(group, flat) for path in self.rectangles]
        w = torch.cat(loops, 1)
        if group.n == 1:
            return self._fields(w.cos()), self._fields(w.sin())
        traces = w.diagonal(dim1=-2, dim2=-1).sum(-1) / group.n
        return self._fields(traces.real), self._fields(traces.imag) if self.odd else None

    def _fields(self, values: Tensor) -> Tensor:
        fields = values.new_zeros(len(values), self.loops * int(np.prod(self.shape)))
        return fields.index_copy(1, self.positions, values).view(len(values), self.loops, *self.shape)


class Context(nn.Module):
    """Parameters of the active plaquettes from frozen loops, `even` and `odd` under charge conjugation:

    `even = A z + b`, z a convolutional network of Re W and of the squares of `o_m = K_m * Im W`, convolutions without
    constants; `odd_j = sum_m (C_jm z + c_jm) o_m`. A, b, C and c start at zero, where layers are the identity.
    `forward(re, im)` returns `[batch, n, evens]` and `[batch, n, odds]`.
    """

    sites: Tensor

    def __init__(
        self,
        mask: Mask,
        loops: FrozenLoops,
        evens: int,
        odds: int,
        hidden: Sequence[int],
        kernel: int,
        rng: np.random.Generator,
    ):
        super().__init__()
        dim, width = mask.lattice.dim, hidden[-1]
        self.evens, self.odds = evens, odds
        self.channels = hidden[0] if loops.odd else 0
        self.odd_net = (
            CircularConv(dim, loops.odd, self.channels, kernel, rng, bias=False) if loops.odd else None
        )
        self.trunk = conv_net(dim, [loops.loops + self.channels, *hidden], kernel, rng, final_tanh=False)
        outputs = evens + odds * self.channels
        self.weight = nn.Parameter(torch.zeros(outputs, width))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("sites", torch.from_numpy(mask.sites), persistent=False)

    def forward(self, even: Tensor, odd: Tensor | None) -> tuple[Tensor, Tensor]:
        sines = None if self.odd_net is None else self.odd_net(odd)
        z = self.trunk(even if sines is None else torch.cat([even, sines.square()], 1))
        outputs = functional.linear(functional.leaky_relu(self._active(z)), self.weight, self.bias)
        first, coefficients = outputs[..., : self.evens], outputs[..., self.evens :]
        if sines is None:
            return first, coefficients
        coefficients = coefficients.unflatten(-1, (self.odds, self.channels))
        return first, (coefficients * self._active(sines).unsqueeze(-2)).sum(-1)

    def _active(self, fields: Tensor) -> Tensor:
        """`[batch, n, channels]`."""
        return fields.flatten(2).index_select(2, self.sites).transpose(1, 2)
