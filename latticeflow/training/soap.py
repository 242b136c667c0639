"""Adam in the eigenbasis of the gradient's second moment: for flows of a few thousand, strongly coupled parameters.

SOAP (Vyas et al., 2409.11321) runs Adam in the eigenbasis of Shampoo's preconditioner, which factorises over the two
sides of a weight matrix. The kernels of a physics flow are few numbers, so here the second moment is kept whole:

    C <- b2 C + (1 - b2) g g^T,   C = Q diag Q^T (every `every` steps),   r = Q^T g,
    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) r^2,   theta <- theta - lr Q [ Q^T m / (sqrt v + eps) ],

m and v with Adam's corrections for their start. All parameters of a group together where they are at most `largest`; else
one tensor at a time, and plain Adam (Q = 1) for a tensor larger than that. Everything but the weights in float64: the
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
        largest: int = 1536,
        eps: float = 1e-8,
    ):
        super().__init__(parameters, {"lr": lr, "betas": betas, "every": every, "eps": eps})
        self.blocks: list[list[nn.Parameter]] = []
        for group in self.param_groups:
            together = sum(p.numel() for p in group["params"]) <= largest
            self.blocks += [group["params"]] if together else [[p] for p in group["params"]]
        self.largest = largest

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for block in self.blocks:
            self._step(block, self.param_groups[0])

    def _step(self, block: list[nn.Parameter], settings: dict[str, Any]) -> None:
        g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in block]).double()
        state = self.state[block[0]]
        if not state:
            self._begin(state, g)
        b1, b2 = settings["betas"]
        state["step"] += 1
        t = int(state["step"])
        if "C" in state:
            state["C"].mul_(b2).addr_(g, g, alpha=1 - b2)
            if t % settings["every"] == 1 % settings["every"]:
                self._turn(state)
        state["m"].mul_(b1).add_(g, alpha=1 - b1)
        r, m = (state["Q"].T @ a if "Q" in state else a for a in (g, state["m"]))
        state["v"].mul_(b2).addcmul_(r, r, value=1 - b2)
        move = m / (1 - b1**t) / ((state["v"] / (1 - b2**t)).sqrt() + settings["eps"])
        if "Q" in state:
            move = state["Q"] @ move
        for p, part in zip(block, move.split([p.numel() for p in block])):
            p.sub_(part.view_as(p).to(p.dtype), alpha=settings["lr"])

    def _begin(self, state: dict[str, Tensor], g: Tensor) -> None:
        state["step"] = torch.zeros((), dtype=torch.float64)
        state["m"], state["v"] = torch.zeros_like(g), torch.zeros_like(g)
        if len(g) <= self.largest:
            state["C"] = torch.diag(torch.zeros_like(g))
            state["Q"] = torch.diag(torch.ones_like(g))

    def _turn(self, state: dict[str, Tensor]) -> None:
        """Go over to the eigenbasis of today; v goes along as the diagonal that it is."""
        basis = torch.linalg.eigh(state["C"])[1]
        state["v"] = (basis.T @ state["Q"]).square() @ state["v"]
        state["Q"] = basis

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the float64 state of float32 weights stays float64."""
        super().load_state_dict(state_dict)
        parameters = list(chain.from_iterable(group["params"] for group in self.param_groups))
        for index, values in state_dict["state"].items():
            p = parameters[int(index)]
            self.state[p] = {name: value.clone().to(p.device) for name, value in values.items()}
