"""An approximate Metropolis over the draws of a model whose density is only estimated: to study what that costs.

Nothing here is exact, and nothing here is written into a run: `Ensemble.chain` refuses such draws. (Of a VAE the pairs
(z, x) have an exact density, so that `p(x) q(z|x) / (p(z) p(x|z))` are exact weights of its draws, as those of the paths of
a stochastic flow are; they vary more than those of x alone would, and are not offered.)
"""

from dataclasses import dataclass

import numpy as np

from ..correction import Selection, metropolis
from ..errors import InputError
from ..random import Purpose
from ..statistics import WeightSummary, summarise_weights
from ..store import Ensemble


@dataclass(frozen=True)
class ApproximateChain:
    """`selection`: entries over the draws in block order, unit weights; `acceptance`; `weights`: what the estimated weights

    say, were they exact; `error`: the root mean square of the recorded errors of log w.
    """

    selection: Selection
    acceptance: float
    weights: WeightSummary
    error: float

    def __str__(self) -> str:
        return (
            f"APPROXIMATE Metropolis, for study only: acceptance {self.acceptance:.4f}, {self.weights}, by log-weights that "
            f"are estimates with errors of {self.error:.3g}: its chain is not distributed as the target"
        )


def approximate_metropolis(ensemble: Ensemble) -> ApproximateChain:
    """Independence Metropolis by `info/log_w_estimate = log p(x) - log_q(x)`, each draw's estimate made once and kept.

    log_q is the logarithm of an importance-sampling mean (1509.00519), whose mean lies below log q: draws that the encoder
    describes badly get too large weights and are kept too long. The bias goes away as `density_samples` grows and is not
    known otherwise. Raises `InputError` for an ensemble without such estimates, and what `metropolis` and
    `summarise_weights` raise.
    """
    found = {name: ensemble.infos(f"log_w_{name}").get(f"log_w_{name}") for name in ("estimate", "error")}
    log_w, error = found["estimate"], found["error"]
    if log_w is None or error is None:
        raise InputError(
            f"{ensemble.path} holds no estimates of log w: draw it from a model with a bound (vae), with "
            "--set sampler.model.density_samples=64"
        )
    selection = metropolis(log_w.ravel(), ensemble.generator(Purpose.METROPOLIS, 0, 0))
    moves = int((np.diff(selection.index) != 0).sum())
    return ApproximateChain(
        selection,
        moves / max(1, len(selection) - 1),
        summarise_weights(log_w.ravel()),
        float(np.sqrt(np.mean(error**2))),
    )
