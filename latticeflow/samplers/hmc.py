"""Hybrid (Hamiltonian) Monte Carlo: many chains in one batch (Duane, Kennedy, Pendleton, Roweth 1987)."""

import copy
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from ..errors import InputError, StatisticsError
from ..precision import DTYPES, double
from ..random import normal
from ..targets import LatticeTarget, Target
from .base import Draws, Sampler, SamplerSpec, State, samplers
from .fourier import FourierMass
from .integrators import check_reversibility, hamiltonian, rounding_bound, trajectory
from .tuning import Tuning


@samplers.add("hmc")
class HMCSpec(SamplerSpec):
    """Settings of HMC. A step is one stored configuration of every chain.

    `chains`: chains of one stream, moved in one batch. `streams`: independent streams. `block`:
    configurations per block, a multiple of `chains`. `thin`: trajectories per step. `thermalisation`:
    trajectories before the first draw, at least; tuning takes some more. `acceptance`: what the step size
    is tuned to. `step` and `length`: a fixed step size and trajectory length, both or neither, and then
    nothing is tuned. `jitter`: the step size of a trajectory is uniform in `step (1 +- jitter)`, so that no
    mode of a nearly free field comes back to where it was. `check_reversibility`: once per stream, when it is
    tuned, every chain goes a trajectory and back, and the distance to its start must be rounding.

    `acceleration = "fourier"`: momenta with the mass matrix `khat^2 + fourier_mass^2` (`FourierMass`), so that
    long wavelengths move faster; `fourier_mass` is tuned unless it is given, and is needed with a fixed step.
    """

    chains: int = Field(128, ge=1)
    streams: int = Field(8, ge=1)
    block: int = Field(8192, ge=1)
    thin: int = Field(1, ge=1)
    integrator: Literal["omelyan", "leapfrog"] = "omelyan"
    thermalisation: int = Field(500, ge=100)
    acceptance: float = Field(0.85, gt=0.1, lt=0.999)
    step: float | None = Field(None, gt=0)
    length: float | None = Field(None, gt=0)
    jitter: float = Field(0.1, ge=0, lt=1)
    check_reversibility: bool = False
    acceleration: Literal["fourier"] | None = None
    fourier_mass: float | None = Field(None, gt=0)
    precision: Literal["float64", "float32"] = "float64"

    def model_post_init(self, context) -> None:
        if self.block % self.chains:
            raise InputError(
                f"{self.kind}: block = {self.block} is not a multiple of chains = {self.chains}; every chain makes "
                f"as many steps, so expected e.g. block = {max(1, self.block // self.chains) * self.chains}"
            )
        if (self.step is None) != (self.length is None):
            raise InputError(
                f"{self.kind}: one of step and length is given; expected both (fixed) or neither (tuned)"
            )
        if self.fourier_mass is not None and self.acceleration is None:
            raise InputError(
                f"{self.kind}: fourier_mass = {self.fourier_mass} without acceleration; expected "
                "acceleration = 'fourier' with it"
            )
        if self.acceleration and self.step is not None and self.fourier_mass is None:
            raise InputError(
                f"{self.kind}: step and length are given and fourier_mass is not; expected all three (fixed), or "
                "neither step nor length (tuned)"
            )

    def build(self, target: Target, flow: Any = None, device: str = "cpu") -> "HMC":
        """The sampler. Raises `InputError` for a target on a space with bounds."""
        self.require_unbounded(target)
        return HMC(target, self, device)

    def require_unbounded(self, target: Target) -> None:
        if target.measure not in ("lebesgue", "haar"):
            raise InputError(
                f"{self.kind}: target '{target.kind}' has the measure '{target.measure}'; HMC moves on flat, "
                "unbounded space ('lebesgue') or on a group ('haar')"
            )
        if self.acceleration and not (
            isinstance(target, LatticeTarget) and target.event_shape == target.shape
        ):
            raise InputError(
                f"{self.kind}: target '{target.kind}' is no scalar field on a lattice; Fourier acceleration needs one. "
                "Leave acceleration out"
            )


@dataclass(frozen=True)
class Update:
    """What one trajectory of all chains did: accepted `[chains]` (bool), `dH` `[chains]` (float64)."""

    x: Tensor
    log_prob: Tensor
    accepted: Tensor
    dh: Tensor

    @property
    def weight(self) -> Tensor:
        """`exp(-dH)`, 0 where dH is NaN (such a trajectory left the numbers that floats can hold)."""
        return torch.exp(-self.dh).nan_to_num(nan=0.0)


def accept(dh: Tensor, u: Tensor) -> Tensor:
    """Accept with probability `min(1, exp(-dH))`, u uniform in [0, 1); a dH that is NaN is rejected."""
    return u < torch.exp(-dh)


class HMC(Sampler):
    """HMC for any target with `force`. Per trajectory: p ~ N(0, 1), integrate, accept with `min(1, exp(-dH))`.

    With Fourier acceleration p ~ N(0, M), M diagonal in momentum space (`FourierMass`).

    `dH = H(new) - H(old)`, H in float64 whatever the precision of x. `Draws.info`, per step: `acceptance`
    and `exp_minus_dh` (whose mean is 1, Creutz's equality), averaged over chains; `smallest_acceptance`, the
    smallest of any chain's since tuning: a mean of 0.9 can hide a chain that is stuck.

    State: `x`, `log_prob`, `step`, `n_steps` (frozen by tuning), `accepted` per chain and `trajectories`
    since tuning; with `check_reversibility` also `reversibility_dx` and `reversibility_dh`, the largest
    `|x - x_back|` and `|H - H_back|` of any chain; with Fourier acceleration `fourier_mass`. The tuning
    measures cost in force evaluations, not seconds: seconds depend on the machine's load, and the same
    arguments must give the same bytes.
    """

    overhead = 0.0  # what an update costs beside a trajectory, in force evaluations

    def __init__(self, target: Target, spec: HMCSpec, device: str = "cpu"):
        self.target, self.spec, self.device = target, spec, device
        self.chains = spec.chains
        self.dtype = DTYPES[spec.precision]
        self.field_dtype = target.field_dtype(self.dtype)
        self.thin = spec.thin

    def start(self, stream: int, rng: np.random.Generator) -> State:
        """A thermalised, tuned state. Raises `StatisticsError` where a chain stays stuck or does not come back."""
        spec = self.spec
        with torch.no_grad():
            x = self.target.start(self.noise(rng))
            chains = Tuning(self, x, rng)
            if spec.step is None or spec.length is None:
                step, n_steps = chains.tune()
            else:
                step, n_steps = spec.step, max(1, round(spec.length / spec.step))
                chains.thermalise(step, n_steps, spec.thermalisation)
            checked = self._reversibility(chains, step, n_steps, rng) if spec.check_reversibility else {}
            if chains.mass is not None:
                checked["fourier_mass"] = np.array(chains.mass.mass)
        return {
            "x": chains.x.cpu().numpy(),
            "log_prob": chains.log_prob.cpu().numpy(),
            "step": np.array(step),
            "n_steps": np.array(n_steps),
            "accepted": np.zeros(self.chains, dtype=np.int64),
            "trajectories": np.array(0),
            **checked,
        }

    def noise(self, rng: np.random.Generator) -> Tensor:
        """White noise for the momenta of all chains."""
        shape = (self.chains, *self.target.momentum_shape)
        return normal(rng, shape, dtype=self.dtype, device=self.device)

    def mass(self, fourier_mass: Any) -> FourierMass | None:
        """The mass matrix of one of the tuned masses or of the state's; None without acceleration."""
        if self.spec.acceleration is None:
            return None
        return FourierMass(cast(LatticeTarget, self.target).lattice, float(fourier_mass))

    def _reversibility(self, chains: Tuning, step: float, n_steps: int, rng: np.random.Generator) -> State:
        """There and back from every chain's x. Raises `StatisticsError` beyond `rounding_bound`."""
        x = chains.x
        # from a copy of the generator: nothing that is drawn later depends on the check
        copied = copy.deepcopy(rng)
        p = self.noise(copied)
        target, _ = self.followed(x, chains.log_prob, copied)
        dx, dh = check_reversibility(target, x, p, step, n_steps, self.spec.integrator, chains.mass)
        bound = rounding_bound(x, p, n_steps, self.spec.integrator)
        if not dx <= bound:  # NaN is no rounding either
            raise StatisticsError(
                f"{self.spec.kind}: there and back by {n_steps} {self.spec.integrator} steps of {step:.3g}, a chain ends "
                f"{dx:.3g} away from its start (H by {dh:.3g}); {self.spec.precision} rounding allows "
                f"{bound:.2g}. Either the force depends on more than x, or the trajectory is unstable: use a "
                "smaller step or a shorter length"
            )
        return {"reversibility_dx": np.array(dx), "reversibility_dh": np.array(dh)}

    def draw(self, state: State | None, n: int, rng: np.random.Generator) -> tuple[Draws, State]:
        """n configurations, n a multiple of `chains`: draw i is step i // chains of chain i % chains."""
        state = self.require_state(state, n)
        steps = n // self.chains
        xs = torch.empty((steps, *state["x"].shape), dtype=self.field_dtype)
        log_probs = np.empty((steps, self.chains))
        info = {name: np.zeros(steps) for name in ("acceptance", "exp_minus_dh", "smallest_acceptance")}
        accepted = state["accepted"].copy()
        trajectories = int(state["trajectories"])
        step, n_steps = float(state["step"]), int(state["n_steps"])
        mass = self.mass(state.get("fourier_mass"))
        with torch.no_grad():
            x = torch.from_numpy(state["x"]).to(self.device, self.field_dtype)
            log_prob = torch.from_numpy(state["log_prob"]).to(self.device)
            for i in range(steps):
                for _ in range(self.thin):
                    new = self.update(x, log_prob, rng, step, n_steps, mass)
                    x, log_prob = new.x, new.log_prob
                    ok = new.accepted.cpu().numpy()
                    accepted += ok
                    info["acceptance"][i] += ok.mean() / self.thin
                    info["exp_minus_dh"][i] += float(new.weight.mean()) / self.thin
                trajectories += self.thin
                info["smallest_acceptance"][i] = accepted.min() / trajectories
                xs[i], log_probs[i] = x, log_prob.cpu().numpy()
        draws = Draws(xs.flatten(0, 1), log_probs.reshape(-1), info=info)
        after = {"x": x.cpu().numpy(), "log_prob": log_prob.cpu().numpy(), "accepted": accepted}
        return draws, {**state, **after, "trajectories": np.array(trajectories)}

    def require_state(self, state: State | None, n: int) -> State:
        """The state, where n draws can go on from it; else `InputError`."""
        kind, expected = self.spec.kind, (self.chains, *self.target.event_shape)
        if n < 1 or n % self.chains:
            raise InputError(f"{kind}: {n} draws; expected a positive multiple of {self.chains} chains")
        if state is None or state["x"].shape != expected:
            found = "no state" if state is None else f"state with x of shape {state['x'].shape}"
            raise InputError(f"{kind}: {found}; expected what `start` gave, x of shape {expected}")
        return state

    def followed(self, x: Tensor, log_prob: Tensor, rng: np.random.Generator) -> tuple[Target, Tensor]:
        """The target whose trajectory begins at x, and its log_prob there: the sampler's own.

        Where S is an integral over auxiliary fields, the target at fixed ones, drawn here by their heat bath.
        """
        return self.target, log_prob

    def update(
        self,
        x: Tensor,
        log_prob: Tensor,
        rng: np.random.Generator,
        step: float,
        n_steps: int,
        mass: FourierMass | None = None,
    ) -> Update:
        """One trajectory of every chain and its accept/reject. `log_prob`: float64 `[chains]`, that of x."""
        step *= 1 + self.spec.jitter * (2 * rng.random() - 1)
        p = self.noise(rng)
        u = torch.from_numpy(rng.random(self.chains)).to(self.device)
        target, before = self.followed(x, log_prob, rng)
        v = p if mass is None else mass.velocity(p)
        y, q = trajectory(target, x, v, step, n_steps, self.spec.integrator, mass)
        q = q if mass is None else mass.white(q)
        new = target.log_prob(double(y))
        dh = hamiltonian(new, q) - hamiltonian(before, p)
        ok = accept(dh, u)
        return Update(
            x=torch.where(ok.view(-1, *[1] * (x.dim() - 1)), y, x),
            log_prob=torch.where(ok, new, log_prob),
            accepted=ok,
            dh=dh,
        )
