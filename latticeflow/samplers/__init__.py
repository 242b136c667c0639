"""Samplers by name. A new one is one file here whose settings carry `@samplers.add(name)`."""

from .base import Draws, Sampler, SamplerSpec, State, samplers
from .flow import FlowSampler, FlowSamplerSpec
from .hmc import HMC, HMCSpec
from .integrators import check_reversibility, trajectory

__all__ = [
    "HMC",
    "Draws",
    "FlowSampler",
    "FlowSamplerSpec",
    "HMCSpec",
    "Sampler",
    "SamplerSpec",
    "State",
    "check_reversibility",
    "samplers",
    "trajectory",
]
