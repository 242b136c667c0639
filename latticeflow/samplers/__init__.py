"""Samplers by name. A new one is one file here whose settings carry `@samplers.add(name)`."""

from ..spec import import_all
from .annealed import Annealed, AnnealedSpec
from .base import Draws, Sampler, SamplerSpec, State, samplers
from .cluster import Cluster, ClusterSpec
from .emcee import EmceeSampler, EmceeSpec
from .exact import ExactSampler, ExactSpec
from .flow import FlowSampler, FlowSamplerSpec
from .heatbath import HeatBath, HeatBathSpec
from .hmc import HMC, HMCSpec
from .hybrid import Hybrid, HybridSpec
from .integrators import check_reversibility, trajectory
from .model import ModelSampler, ModelSamplerSpec
from .pseudofermions import Pseudofermions, PseudofermionsSpec

import_all(__name__, __path__)

__all__ = [
    "HMC",
    "Annealed",
    "AnnealedSpec",
    "Cluster",
    "ClusterSpec",
    "Draws",
    "EmceeSampler",
    "EmceeSpec",
    "ExactSampler",
    "ExactSpec",
    "FlowSampler",
    "FlowSamplerSpec",
    "HMCSpec",
    "HeatBath",
    "HeatBathSpec",
    "Hybrid",
    "HybridSpec",
    "ModelSampler",
    "ModelSamplerSpec",
    "Pseudofermions",
    "PseudofermionsSpec",
    "Sampler",
    "SamplerSpec",
    "State",
    "check_reversibility",
    "samplers",
    "trajectory",
]
