"""Adam in the eigenbasis of the gradient's second moment: for flows of a few thousand, strongly coupled parameters.

SOAP (Vyas et al., 2409.11321) runs Adam in the eigenbasis of Shampoo's preconditioner. The kernels of a physics flow are few
numbers, so here the second moment is kept whole where it can be:

    C <- b2 C + (1 - b2) g g^T,   C = Q diag Q^T (every `every` steps),   r = Q^T g,
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) r^2,   theta <- theta - lr Q [ Q^T m / (sqrt v + eps) ],

m and v with Adam's corrections for their start, for all tensors of a group together that have at most `largest` numbers, in
all. A tensor larger than that is a matrix, its last axis against all others, with one C and Q for each side as in the
paper: `C_0 of g g^T`, `C_1 of g^T g`, `r = Q_0^T g Q_1`. Kernels by orbits learn faster so, and C stays small.
A matrix with a side longer than `longest` has plain Adam (Q = 1). Everything but the weights in float64: the
eigenvectors decide the direction of the step, and several ranks must find the same ones.
"""

from collections.abc import Iterable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Soap(torch.optim.Optimizer):
    """The optimiser of the module's docstring. State of a block of tensors stands with the first of them."""

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.99),
        every: int = 10,
        largest: int = 300,
        longest: int = 1536,
        eps: float = 1e-8,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "every": every, "eps": eps})
        self.blocks: list[tuple[list[nn.Parameter], tuple[int, ...]]] = []  # and the shape of their gradient
        for group in self.param_groups:
            large = [p for p in group["params"] if p.numel() > largest]
            small = [p for p in group["params"] if p.numel() <= largest]
            if sum(p.numel() for p in small) <= largest:
                self.blocks += [(small, (sum(p.numel() for p in small),))] if small else []
            else:
                self.blocks += [([p], (p.numel(),)) for p in small]
            self.blocks += [([p], (p.numel() // p.shape[-1], p.shape[-1])) for p in large]
        self.longest = longest

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for block, shape in self.blocks:
            self._step(block, shape, self.param_groups[0])

    def _step(self, block: list[nn.Parameter], shape: tuple[int, ...], settings: dict[str, Any]) -> None:
        g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in block]).double()
        g = g.reshape(shape)
        state = self.state[block[0]]
        if not state:
            self._begin(state, g)
        b1, b2 = settings["betas"]
        state["step"] += 1
        t = int(state["step"])
        for side in _sides(state):
            rows = g.movedim(side, 0).flatten(1) if g.ndim > 1 else g[:, None]
            state[f"C{side}"].mul_(b2).addmm_(rows, rows.T, alpha=1 - b2)
        if t % settings["every"] == 1 % settings["every"]:
            self._turn(state)
        state["m"].mul_(b1).add_(g, alpha=1 - b1)
        bases = {side: state[f"Q{side}"] for side in _sides(state)}
        into = {side: basis.T for side, basis in bases.items()}
        r, m = _applied(into, g), _applied(into, state["m"])
        state["v"].mul_(b2).addcmul_(r, r, value=1 - b2)
        move = m / (1 - b1**t) / ((state["v"] / (1 - b2**t)).sqrt() + settings["eps"])
        move = _applied(bases, move).flatten()
        for p, part in zip(block, move.split([p.numel() for p in block])):
            p.sub_(part.view_as(p).to(p.dtype), alpha=settings["lr"])

    def _begin(self, state: dict[str, Tensor], g: Tensor) -> None:
        state["step"] = torch.zeros((), dtype=torch.float64)
        state["m"], state["v"] = torch.zeros_like(g), torch.zeros_like(g)
        if max(g.shape) <= self.longest:
            for side, n in enumerate(g.shape):
                state[f"C{side}"] = g.new_zeros(n, n)
                state[f"Q{side}"] = torch.eye(n, dtype=g.dtype, device=g.device)

    def _turn(self, state: dict[str, Tensor]) -> None:
        """Go over to the eigenbases of today; v goes along as the diagonal that it is."""
        for side in _sides(state):
            basis = torch.linalg.eigh(state[f"C{side}"])[1]
            state["v"] = _applied({side: (basis.T @ state[f"Q{side}"]).square()}, state["v"])
            state[f"Q{side}"] = basis

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the float64 state of float32 weights stays float64."""
        super().load_state_dict(state_dict)
        parameters = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for index, values in state_dict["state"].items():
            p = parameters[int(index)]
            self.state[p] = {name: value.clone().to(p.device) for name, value in values.items()}


def _sides(state: dict[str, Tensor]) -> list[int]:
    """Axes of the gradient that have an eigenbasis."""
    return [side for side in (0, 1) if f"Q{side}" in state]


def _applied(matrices: dict[int, Tensor], x: Tensor) -> Tensor:
    """Each matrix applied to its axis of x."""
    for side, matrix in matrices.items():
        x = torch.tensordot(matrix, x, ([1], [side])).movedim(0, side)
    return x
