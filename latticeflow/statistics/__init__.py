"""Estimates with honest errors: from chains (autocorrelation, jackknife) and from log-weights."""

from .autocorrelation import Estimate, TauInt, autocorrelation, mean, tau_int
from .jackknife import Bins, jackknife
from .notation import bracket
from .weights import ForwardSummary, WeightSummary, WeightSums, forward_weights, summarise_weights

__all__ = [
    "Bins",
    "Estimate",
    "ForwardSummary",
    "TauInt",
    "WeightSummary",
    "WeightSums",
    "autocorrelation",
    "bracket",
    "forward_weights",
    "jackknife",
    "mean",
    "summarise_weights",
    "tau_int",
]
