"""The VEGAS map: in every coordinate of the unit cube a piecewise linear map, and the refinement that adapts it.

With edges `0 = e_0 < e_1 < ... < e_N = 1` of a coordinate, `x(y) = e_i + (e_{i+1} - e_i) (N y - i)`, `i = floor(N y)`, so
that `dx/dy = N (e_{i+1} - e_i)` (Lepage, J. Comput. Phys. 27 (1978) 192; vegas+, 2009.05112, sec. 2). Edges are `[d, N +
1]`, points `[batch, d]`; log-determinants float64 `[batch]`.
"""

import math

import torch
from torch import Tensor

EVEN = 1e-4  # the share of an even grid in every refined one


def forward(edges: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y to `(x, log |dx/dy|)`.

    The slope is that of the bin in which x lies once it is rounded: at an edge that need not be y's, and a density that
    belongs to other numbers than those that are stored could not be checked.
    """
    bins = edges.shape[1] - 1
    scaled = y * bins
    i = scaled.floor().clamp(0, bins - 1)
    low, width = _bin(edges, i.T.long())
    x = torch.addcmul(low.T, width.T, (scaled - i).to(edges.dtype)).to(y.dtype).clamp(0, 1)
    return x, _log_slope(edges, _find(edges, x))


def _find(edges: Tensor, x: Tensor) -> Tensor:
    """The bin of every coordinate, `[d, batch]`."""
    own = x.T.contiguous().to(edges.dtype)
    return (torch.searchsorted(edges, own, right=True) - 1).clamp(0, edges.shape[1] - 2)


def _bin(edges: Tensor, i: Tensor) -> tuple[Tensor, Tensor]:
    low = edges.gather(1, i)
    return low, edges.gather(1, i + 1) - low


def _log_slope(edges: Tensor, i: Tensor) -> Tensor:
    return (_bin(edges, i)[1] * (edges.shape[1] - 1)).double().log().sum(0)


def inverse(edges: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """x to `(y, log |dy/dx|)`."""
    i = _find(edges, x)
    low, width = _bin(edges, i)
    y = ((i + (x.T.to(edges.dtype) - low) / width) / (edges.shape[1] - 1)).T.to(x.dtype)
    return y.clamp(0, 1), -_log_slope(edges, i)


def refine(edges: Tensor, x: Tensor, weight: Tensor, alpha: float = 0.5) -> Tensor:
    """New edges from points x drawn through the map with weights `f/q >= 0`, `[batch]`.

    With `d_i ~ sum w^2` over the points of bin i, smoothed over neighbours and normalised, every new bin holds the same
    share of `[ (1 - d_i) / ln(1/d_i) ]^alpha` (vegas+, eqs. 17 to 22): the optimum for the variance, approached with
    damping `alpha`. Edges stay as they are where no point has weight.
    """
    count, bins = edges.shape[0], edges.shape[1] - 1
    weight = weight.double()
    square = weight.clamp(max=float(weight.mean()) * math.sqrt(len(weight))).square()
    if not square.sum() > 0:
        return edges
    y = inverse(edges, x)[0]
    i = (y.double() * bins).long().clamp(0, bins - 1)
    d = torch.zeros(count, bins, dtype=torch.float64, device=edges.device)
    d.scatter_add_(1, i.T, square.expand(count, -1).contiguous())
    padded = torch.cat([d[:, :1], d, d[:, -1:]], 1)
    d = (padded[:, :-2] + 6 * padded[:, 1:-1] + padded[:, 2:]) / 8
    d = (d / d.sum(1, keepdim=True)).clamp(min=1e-300, max=1 - 1e-12)
    share = ((1 - d) / -d.log()).pow(alpha)
    level = torch.cat([share.new_zeros(count, 1), share.cumsum(1)], 1)
    level = level / level[:, -1:]
    wanted = (
        torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=edges.device)
        .expand(count, -1)
        .contiguous()
    )
    j = (torch.searchsorted(level.contiguous(), wanted, right=True) - 1).clamp(0, bins - 1)
    low, high = level.gather(1, j), level.gather(1, j + 1)
    t = (wanted - low) / (high - low).clamp_min(math.ulp(1.0))
    old = edges.double()
    new = torch.lerp(old.gather(1, j), old.gather(1, j + 1), t.clamp(0, 1))
    new = torch.lerp(new, wanted, EVEN)
    new[:, 0], new[:, -1] = 0.0, 1.0
    return new.to(edges.dtype)
