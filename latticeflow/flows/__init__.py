"""Flows by name. A new architecture is one file here whose settings carry `@flows.add(name)`."""

from ..spec import import_all
from .affine import Affine, AffineCoupling, Tutorial
from .base import Spectrum, WhiteNoise
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .split import Split, SplitLayer

import_all(__name__, __path__)

__all__ = [
    "Affine",
    "AffineCoupling",
    "Flow",
    "FlowSpec",
    "Layer",
    "Spectrum",
    "Split",
    "SplitLayer",
    "Tutorial",
    "WhiteNoise",
    "flows",
]
