"""Estimates with honest errors: from chains (autocorrelation, jackknife) and from log-weights."""

from .autocorrelation import Estimate, TauInt, autocorrelation, mean, tau_int
from .jackknife import Bins, jackknife
from .notation import bracket
from .unweighting import Integration, Unweighting, WeightTail, chi2_probability, integrate
from .weights import ForwardSummary, WeightSummary, WeightSums, forward_weights, summarise_weights

__all__ = [
    "Bins",
    "Estimate",
    "ForwardSummary",
    "Integration",
    "TauInt",
    "Unweighting",
    "WeightSummary",
    "WeightSums",
    "WeightTail",
    "autocorrelation",
    "bracket",
    "chi2_probability",
    "forward_weights",
    "integrate",
    "jackknife",
    "mean",
    "summarise_weights",
    "tau_int",
]
