"""Samplers by name. A new one is one file here whose settings carry `@samplers.add(name)`."""

from .base import Draws, Sampler, SamplerSpec, State, samplers

__all__ = ["Draws", "Sampler", "SamplerSpec", "State", "samplers"]
