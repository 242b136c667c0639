"""Two estimators of the gradient of the reverse Kullback-Leibler divergence.

`KL(q || p) = < log q(x) - log p(x) >_q + log Z`, x = T(z) with z noise. No data are needed. The mean over a batch is a
sum divided by `batch`, the configurations of all ranks; `noise` holds this rank's. Default: they are all there are.
"""

from torch import Tensor

from ..flows import Flow
from ..targets import Target


def reparametrised(
    flow: Flow, target: Target, noise: Tensor, batch: int | None = None
) -> tuple[Tensor, Tensor]:
    """Total derivative of `mean(log q(x) - log p(x))` through x = T(z). Returns (surrogate, loss)."""
    x, log_q = flow.push(noise)
    loss = (log_q - target.log_prob(x)).sum() / (batch or len(noise))
    return loss, loss.detach()


def path(flow: Flow, target: Target, noise: Tensor, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """The path gradient ("sticking the landing", 1703.09194; for flows 2207.08219).

    `< (d log q / dx - d log p / dx) . dx / d theta >`: the total derivative less the score term
    `d log q(x; theta) / d theta` at fixed x, whose mean is zero but whose variance is not. At q = p the
    estimate is zero draw by draw. Returns (surrogate, loss): the surrogate has this gradient, not this value.
    """
    x, log_q, score = flow.push_with_score(noise)
    fixed, batch = x.detach(), batch or len(noise)
    surrogate = ((score - target.force(fixed)) * x).sum() / batch
    return surrogate, (log_q.detach() - target.log_prob(fixed)).sum() / batch


ESTIMATORS = {"reparametrised": reparametrised, "path": path}
