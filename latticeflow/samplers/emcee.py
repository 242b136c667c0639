"""emcee's affine-invariant ensembles (1202.3665): a third opinion on lattices of a few sites, and on the unit cube."""

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field

from ..errors import InputError
from ..random import normal
from ..targets import Target
from .base import Draws, Sampler, SamplerSpec, State, samplers


@samplers.add("emcee")
class EmceeSpec(SamplerSpec):
    """Settings of emcee. A step is one stored position of every walker.

    `walkers`: walkers of one ensemble, at least 2 V + 2. `streams`: independent ensembles. `block`:
    configurations per block, a multiple of `walkers`. `thin`: moves of all walkers per step.
    `thermalisation`: moves before the first draw. `largest`: the most sites allowed; ensemble moves get slow
    in high dimensions, so raise it only to see that.
    """

    walkers: int = Field(64, ge=4)
    streams: int = Field(8, ge=1)
    block: int = Field(8192, ge=1)
    thin: int = Field(4, ge=1)
    thermalisation: int = Field(2000, ge=100)
    largest: int = Field(64, ge=1)
    precision: Literal["float64"] = "float64"

    def model_post_init(self, context) -> None:
        if self.block % self.walkers:
            raise InputError(
                f"emcee: block = {self.block} is not a multiple of walkers = {self.walkers}; expected e.g. "
                f"block = {max(1, self.block // self.walkers) * self.walkers}"
            )

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "EmceeSampler":
        """The sampler. Raises `InputError` for too many sites, too few walkers or a measure that is not flat."""
        dim = int(np.prod(target.event_shape))
        if target.measure == "haar":
            raise InputError(f"emcee: target '{target.kind}' has the measure 'haar'; expected a flat one")
        if dim > self.largest:
            raise InputError(
                f"emcee: {dim} dimensions; expected at most largest = {self.largest}, since ensemble moves do "
                "not get through more in useful time. Use hmc or flow"
            )
        if self.walkers < 2 * dim + 2:
            raise InputError(
                f"emcee: {self.walkers} walkers in {dim} dimensions; expected at least {2 * dim + 2}, "
                "else the ensemble never leaves the plane it starts in"
            )
        return EmceeSampler(target, self, device)


class EmceeSampler(Sampler):
    """One ensemble of walkers a stream. Walkers know of one another: average over them before any error.

    State: `x` `[walkers, *event]` and `log_prob` `[walkers]`. emcee's own random state is seeded anew at every
    call from the generator that is passed in. `Draws.info`, per step: `acceptance` of a move, averaged over
    the walkers.
    """

    interacting = True

    def __init__(self, target: Target, spec: EmceeSpec, device: str = "cpu"):
        self.target, self.spec, self.device = target, spec, device
        self.chains = spec.walkers

    def start(self, stream: int, rng: np.random.Generator) -> State:
        """Walkers from N(0, 1/4) at every site, on the cube uniform inside the cuts, after `thermalisation` moves.

        Raises `InputError` where a million points of the cube are all outside.
        """
        if self.target.measure == "hypercube":
            x = self._inside(rng)
        else:
            x = 0.5 * normal(rng, (self.chains, *self.target.event_shape), dtype=torch.float64).numpy()
        state: State = {"x": x, "log_prob": self._log_prob(x.reshape(self.chains, -1))}
        for x, log_prob in self._moves(state, self.spec.thermalisation, rng):
            state = {"x": x, "log_prob": log_prob}
        return state

    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State]:
        """n configurations, n a multiple of the walkers: draw i is step i // walkers of walker i % walkers."""
        if n < 1 or n % self.chains:
            raise InputError(f"emcee: {n} draws; expected a positive multiple of {self.chains} walkers")
        expected = (self.chains, *self.target.event_shape)
        if state is None or state["x"].shape != expected:
            found = "no state" if state is None else f"state with x of shape {state['x'].shape}"
            raise InputError(f"emcee: {found}; expected what `start` gave, x of shape {expected}")
        thin, steps = self.spec.thin, n // self.chains
        xs, log_probs = np.empty((steps, *expected)), np.empty((steps, self.chains))
        acceptance = np.zeros(steps)
        before = state["log_prob"]
        for i, (x, log_prob) in enumerate(self._moves(state, steps * thin, rng)):
            acceptance[i // thin] += (log_prob != before).mean() / thin
            before = log_prob
            if i % thin == thin - 1:
                xs[i // thin], log_probs[i // thin] = x, log_prob
        draws = Draws(
            torch.from_numpy(xs.reshape(n, *self.target.event_shape)),
            log_probs.reshape(n),
            info={"acceptance": acceptance},
        )
        return draws, {"x": xs[-1].copy(), "log_prob": log_probs[-1].copy()}

    def _inside(self, rng: np.random.Generator, tries: int = 100, size: int = 10_000) -> np.ndarray:
        """Uniform points of the cube whose log_prob is finite, `[walkers, dim]`."""
        found = np.empty((0, *self.target.event_shape))
        for _ in range(tries):
            x = rng.random((size, *self.target.event_shape))
            found = np.concatenate([found, x[np.isfinite(self._log_prob(x))]])
            if len(found) >= self.chains:
                return found[: self.chains]
        raise InputError(
            f"emcee: {len(found)} of {tries * size:,} uniform points have weight, {self.chains} walkers need one each: "
            "do the cuts leave anything?"
        )

    def _moves(
        self, state: State, moves: int, rng: np.random.Generator
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Positions `[walkers, *event]` and log_prob after each of `moves` moves of all walkers.

        Moves: along the difference of two other walkers, of the length that suits a Gaussian (0.6) or of the
        whole difference, which leads from one mode to another (0.1), and stretches (0.3).
        """
        import emcee  # here: it loads scipy.stats, which every rank of every sampler would wait for

        seed = np.random.SeedSequence(rng.integers(2**63, size=2).tolist())
        ensemble = emcee.EnsembleSampler(
            self.chains,
            int(np.prod(self.target.event_shape)),
            self._log_prob,
            moves=[
                (emcee.moves.DEMove(), 0.6),
                (emcee.moves.DEMove(gamma0=1.0), 0.1),
                (emcee.moves.StretchMove(), 0.3),
            ],
            vectorize=True,
        )
        first = emcee.State(
            state["x"].reshape(self.chains, -1),
            log_prob=state["log_prob"],
            random_state=np.random.RandomState(np.random.MT19937(seed)).get_state(),
        )
        # emcee tests the first state only because walkers that a user makes by hand may lie in a plane
        for new in ensemble.sample(first, iterations=moves, store=False, skip_initial_state_check=True):
            yield new.coords.reshape(state["x"].shape).copy(), new.log_prob.copy()

    @torch.no_grad()
    def _log_prob(self, coords: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(coords.reshape(len(coords), *self.target.event_shape)).to(self.device)
        return self.target.log_prob(x).cpu().numpy()
