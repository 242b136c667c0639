"""What `benchmarks/events.py` compares with: the map of the `vegas` package, and MadNIS, both of the extra `bench`."""

import importlib.util
import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latticeflow.targets import Hypercube

# n points and their log-weights: Tensor [n, dim] and float64 array [n]
Draw = Callable[[int, np.random.Generator], tuple[Tensor, np.ndarray]]

HOW = "python -m pip install 'latticeflow[bench]'"
MADNIS = (
    "VEGAS pre-training (64 bins, damping 0.8) and networks of 4 layers of 64, as its documentation has them for functions "
    "that are not simple, Adam at 1e-3 in batches of 1024 with the KL divergence (its defaults), annealed by a cosine"
)


def missing() -> list[str]:
    """Those of the two that are not installed."""
    return [name for name in ("vegas", "madnis") if importlib.util.find_spec(name) is None]


@torch.no_grad()
def log_weights(target: Hypercube, x: Tensor, log_q: Tensor) -> np.ndarray:
    return (target.log_prob(x.double()) - log_q.double()).numpy()


def vegas_map(target: Hypercube, iterations: int = 10, evaluations: int = 20_000) -> tuple[Draw, float]:
    """Points by the map that `vegas.Integrator` has found with its own settings, without its strata; CPU seconds."""
    import vegas

    begun, rng = time.process_time(), np.random.default_rng(1)

    @vegas.lbatchintegrand
    def integrand(x: np.ndarray) -> np.ndarray:
        return target.log_prob(torch.from_numpy(np.array(x))).exp().numpy()

    found = vegas.Integrator([[0.0, 1.0]] * target.dim, ran_array_generator=rng.random)
    found(integrand, nitn=iterations, neval=evaluations)
    edges = vegas.AdaptiveMap(found.map)

    def draw(n: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        y, x, jac = rng.random((n, target.dim)), np.empty((n, target.dim)), np.empty(n)
        edges.map(y, x, jac)
        points = torch.from_numpy(x).clamp(0, 1)  # the last edge is 1 to rounding
        return points, log_weights(target, points, -torch.from_numpy(np.log(jac)))

    return draw, time.process_time() - begun


class Madnis:
    """MadNIS trained on `target` for `seconds` of CPU time; settings: `MADNIS`."""

    def __init__(self, target: Hypercube, seconds: float, seed: int = 1, **flow: Any):
        from madnis.integrator import Integrator, VegasPreTraining

        torch.manual_seed(seed)
        begun = time.process_time()
        self.target = target

        def left(_: int) -> float:
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (time.process_time() - begun) / seconds)))

        self.integrator = Integrator(
            lambda x: target.log_prob(x.double()).exp().to(x.dtype),
            dims=target.dim,
            flow_kwargs=flow or {"layers": 4, "units": 64},
            scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, left),
        )
        start = VegasPreTraining(self.integrator, bins=64, damping=0.8)
        start.rng = np.random.default_rng(seed)
        start.train([20_000] * 10)
        start.initialize_integrator()
        self.steps = 0
        while time.process_time() - begun < seconds:
            self.integrator.train_step()
            self.steps += 1
        self.seconds = time.process_time() - begun
        self.parameters = sum(p.numel() for p in self.integrator.flow.parameters())

    @torch.no_grad()
    def points(self, n: int) -> tuple[Tensor, Tensor]:
        """n points in float32 with their log-density."""
        return self.integrator.flow.sample(n, return_log_prob=True)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
        """By torch's own generator, which `rng` seeds: MadNIS has no other."""
        torch.manual_seed(int(rng.integers(1 << 62)))
        x, log_q = self.points(n)
        x = x.clamp(0, 1)
        return x, log_weights(self.target, x, log_q)
