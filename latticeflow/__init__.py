"""latticeflow: exact flow sampling for field theories and collider events.

    target (log_prob) -> flow (trained by reverse KL) -> draws with log_w -> Metropolis -> estimates with errors

The names in `__all__` are the library's public interface; decks and the command line use the same classes. They
are loaded on first use, so that `latticeflow --help` need not wait for torch.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("latticeflow")

_HOME = {
    "lattice": ["Lattice"],
    "random": ["Purpose", "stream"],
    "errors": ["LatticeflowError"],
    "statistics": ["bracket", "forward_weights", "jackknife", "mean", "summarise_weights", "tau_int"],
    "statistics.two_sample": ["auc"],
    "targets": ["Camel", "FreeField", "Hypercube", "Phi4", "Schwinger", "Target", "Wilson"],
    "collider": ["Cuts", "MatrixElement", "PhaseSpace", "Process", "process"],
    "observables": ["measure", "observables"],
    "flows": ["Affine", "Continuous", "Flow", "Split", "Symmetrised", "SymmetrisedFlow", "Tutorial"],
    "flows.conditional": ["Conditional", "ConditionalFlow"],
    "flows.gauge_coupling": ["GaugeCoupling"],
    "flows.loops": ["Loops"],
    "flows.plaquettes": ["Plaquettes"],
    "flows.spline": ["AutoregressiveSpline", "Spline"],
    "flows.stochastic": ["Stochastic"],
    "flows.stochastic_gauge": ["StochasticGauge"],
    "flows.trivializing": ["Trivializing"],
    "samplers": [
        "AnnealedSpec",
        "ClusterSpec",
        "Draws",
        "EmceeSpec",
        "ExactSpec",
        "FlowSampler",
        "HMCSpec",
        "HeatBathSpec",
        "HybridSpec",
        "ModelSampler",
        "ModelSamplerSpec",
        "PseudofermionsSpec",
        "Sampler",
    ],
    "baselines": ["Model", "ModelSpec", "models"],
    "baselines.autoencoders": ["Autoencoder"],
    "baselines.conditional": ["ConditionalModel"],
    "baselines.networks": ["dense_net"],
    "baselines.pca": ["Pca"],
    "baselines.vae": ["Vae"],
    "samplers.vegas": ["FlatSpec", "VegasSpec"],
    "correction": ["metropolis", "reweight", "unweight"],
    "store": ["Ensemble"],
    "store.nersc": ["read_nersc", "write_nersc"],
    "training": ["Configurations", "FitSettings", "TrainSettings", "evaluate", "fit", "train"],
    "config": ["Deck"],
    "run": ["Run"],
    "pretrained": ["load"],
    "production.train": ["train_run"],
    "production.sample": ["sample_run"],
    "analysis.measure": ["measure_run"],
    "analysis.plots": ["COLOURS", "DASHES", "styled"],
    "production.at": ["at_run"],
    "analysis.approximate": ["approximate_metropolis"],
    "analysis.compare": ["compare_run"],
    "analysis.curve": ["curve", "draw_nodes"],
    "analysis.curve_run": ["curve_run"],
    "analysis.diagnose": ["diagnose_run"],
    "analysis.forward": ["forward_estimate", "forward_run"],
    "analysis.verify": ["verify_run"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"module 'latticeflow' has no attribute '{name}'")
    value = getattr(import_module(f".{_MODULE[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
