"""Two estimators of the gradient of the reverse Kullback-Leibler divergence.

`KL(q || p) = < log q(x) - log p(x) >_q + log Z`, x = T(z) with z noise. No data are needed.
"""

from torch import Tensor

from ..flows import Flow
from ..targets import Target


def reparametrised(flow: Flow, target: Target, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Total derivative of `mean(log q(x) - log p(x))` through x = T(z). Returns (surrogate, loss)."""
    x, log_q = flow.push(noise)
    loss = (log_q - target.log_prob(x)).mean()
    return loss, loss.detach()


def path(flow: Flow, target: Target, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The path gradient ("sticking the landing", 1703.09194; for flows 2207.08219).

    `< (d log q / dx - d log p / dx) . dx / d theta >`: the total derivative less the score term
    `d log q(x; theta) / d theta` at fixed x, whose mean is zero but whose variance is not. At q = p the
    estimate is zero draw by draw. Returns (surrogate, loss): the surrogate has this gradient, not this value.
    """
    x, log_q, score = flow.push_with_score(noise)
    fixed = x.detach()
    surrogate = ((score - target.force(fixed)) * x).sum() / len(x)
    return surrogate, (log_q.detach() - target.log_prob(fixed)).mean()


ESTIMATORS = {"reparametrised": reparametrised, "path": path}
