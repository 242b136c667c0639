"""Estimators of the gradients of both Kullback-Leibler divergences between a flow q and the target's density p / Z.

Reverse, `KL(q || p/Z) = < log q(x) - log p(x) >_q + log Z`, x = T(z) with z noise; no data are needed. With
`f = log q(x) - log p(x)` and, at fixed x, the score `d log q / dx` and the force `d log p / dx`, one configuration gives

    P = (score - force) . dx/dtheta        the path term
    s = d log q(x; theta) / dtheta         the score function, at fixed x;  < s >_q = 0

and each estimator is a mean of a combination of the two: reparametrised `P + s`; path `P`, which is reparametrised
with the control variate s; log-variance `(f - < f >) s`. Forward, `KL(p/Z || q) = < log p(x) - log q(x) >_p - log Z`, needs
configurations x of the target: `- s` there, or P again.

A mean over a batch is a sum divided by `batch`, the configurations of all ranks; `noise` holds this rank's. Default:
they are all there are. Every estimator returns (surrogate, loss): one has the gradient that is meant, the other the value.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..flows import Flow
from ..flows.paths import PathFlow
from ..targets import Target

Sum = Callable[[Tensor], Tensor]  # over the ranks


def _alone(x: Tensor) -> Tensor:
    return x


def reparametrised(
    flow: Flow, target: Target, noise: Tensor, batch: int | None = None, total: Sum = _alone
) -> tuple[Tensor, Tensor]:
    """Total derivative of `mean f` through x = T(z)."""
    x, log_q = flow.push(noise)
    loss = (log_q - target.log_prob(x)).sum() / (batch or len(noise))
    return loss, loss.detach()


def path(
    flow: Flow, target: Target, noise: Tensor, batch: int | None = None, total: Sum = _alone
) -> tuple[Tensor, Tensor]:
    """The path gradient `mean P` ("sticking the landing", 1703.09194; for flows 2207.08219).

    The total derivative less the score function, whose mean is zero but whose variance is not. At q = p the
    estimate is zero draw by draw.
    """
    if isinstance(flow, PathFlow):  # a path term for each of its blocks
        surrogate, f = flow.path_terms(noise, target)
        return surrogate.sum() / (batch or len(noise)), f.sum() / (batch or len(noise))
    x, log_q, score = flow.push_with_score(noise)
    fixed, batch = x.detach(), batch or len(noise)
    surrogate = target.pair(score - target.force(fixed), x).sum() / batch
    return surrogate, (log_q.detach() - target.log_prob(fixed)).sum() / batch


def log_variance(
    flow: Flow, target: Target, noise: Tensor, batch: int | None = None, total: Sum = _alone
) -> tuple[Tensor, Tensor]:
    """`sum (f - mean f) s / (batch - 1)`: half the gradient of `var f` at fixed draws (VarGrad, 2010.10436, eq. 6).

    The same numbers are REINFORCE with the mean of the other draws as baseline (2202.01314): unbiased, without
    the force, zero at q = p draw by draw. s comes without an inverse: `log q(T(z)) - score . T(z)` has the gradient s, for
    the total derivative of log q is s plus that by way of x. The mean is that of the global batch, by `total`.
    """
    with torch.no_grad():  # the log_q beside the score may carry no gradient (continuous flows)
        score = flow.push_with_score(noise)[2]
    x, log_q = flow.push(noise)
    batch = batch or len(noise)
    f = log_q.detach() - target.log_prob(x.detach())
    loss = f.sum() / batch
    mean = total(loss.clone())
    surrogate = ((f - mean) * (log_q - target.pair(score, x))).sum() / max(1, batch - 1)
    return surrogate, loss


def forward(flow: Flow, target: Target, x: Tensor, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Gradient of `-mean log q(x)` over configurations x of the target; the loss is `mean(log p - log q)`.

    That loss has the same gradient, and is constant, log Z, where q = p. Of a flow that is one map T of the noise it
    is the path gradient; of others, such as a mixture over a sign, and on the unit cube, where there is no force, that of
    `forward_score`.
    """
    one_map = type(flow).push is Flow.push and target.measure != "hypercube"
    return (forward_path if one_map else forward_score)(flow, target, x, batch)


def forward_score(flow: Flow, target: Target, x: Tensor, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """`- mean s`, by way of `log_prob`: it only averages to zero where q = p."""
    batch = batch or len(x)
    log_q = flow.log_prob(x)
    return -log_q.sum() / batch, (target.log_prob(x) - log_q.detach()).sum() / batch


def forward_path(flow: Flow, target: Target, x: Tensor, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """`mean P` at the noise z of the configurations, T(z) = x (2403.15881): zero at q = p draw by draw.

    In the space of z the forward divergence is the reverse one of T^{-1}, whose path term is
    `d/dz log(p_z / r) . d T^{-1}(x) / dtheta`, p_z the target pulled back, r white; with
    `d/dz log(p_z / r) = (dT/dz)^T (force - score)` and `dT^{-1}/dtheta = -(dT/dz)^{-1} dT/dtheta` that is P.
    """
    with torch.no_grad():
        white = flow.base.whiten(flow.inverse(x)[0])
    surrogate, loss = path(flow, target, white, batch)
    return surrogate, -loss


ESTIMATORS = {"reparametrised": reparametrised, "path": path, "log_variance": log_variance}
NEED_MEAN = {"log_variance"}  # call `total` once with one number, as ranks without a configuration must too
