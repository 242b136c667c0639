"""Flows by name. A new architecture is one file here whose settings carry `@flows.add(name)`."""

from ..spec import import_all
from .affine import Affine, AffineCoupling, Tutorial
from .base import MeanField, Spectrum, WhiteNoise
from .continuous import Continuous, ContinuousLayer
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .split import Split, SplitLayer
from .symmetrised import Symmetrised, SymmetrisedFlow

import_all(__name__, __path__)

__all__ = [
    "Affine",
    "AffineCoupling",
    "Continuous",
    "ContinuousLayer",
    "Flow",
    "FlowSpec",
    "Layer",
    "MeanField",
    "Spectrum",
    "Split",
    "SplitLayer",
    "Symmetrised",
    "SymmetrisedFlow",
    "Tutorial",
    "WhiteNoise",
    "flows",
]
