"""The split flow: the drift of the continuous flow, followed by updates of one sublattice at a time. Exact, however few.

The continuous flow's `d phi(s) / dt = sum_{s'} sum_f K_f(s - s'; t) f_f(phi(s'))`, with features `f_0 = phi` and
`f_f = sin(f w phi)`, f = 1 to F, kernels by orbits of displacements and cosines in time, is split into maps whose
Jacobians are triangular. A layer, at its time t and with `h = 1 / layers`, updates each of the 2^D sublattices c in
turn, from the present values on all others; layers take them forwards and backwards by turns:

    psi   = sum_{c' != c} G phi_c'                                                    what the others predict for c
    phi_c <- e^{h K_0} phi_c + h sum_{c' != c} sum_f K_f f_f(phi_c') + h sum_{f > 0} K_f f_f(psi)
    phi_c <- g(phi_c; psi) = e^a phi_c + sum_f [ A_f(psi) sin(f v phi_c) + B_f(psi) cos(f v phi_c) ]

psi stands for phi_c where an update may not depend on it, so that all displacements couple. The exponential is that of the
linear kernel within the sublattice (all d_mu even), `log det = sum_n h lambda_0(n)`; g is monotone and site-wise,
`log det = sum_s log g'`, with A even and B odd in psi, sums of cosines and sines of its own harmonics: the distribution
of a field given its neighbours changes its width with them, not only its mean.

Odd in phi, so Z2 is exact; symmetries that map every sublattice to itself are exact, others up to the order of the updates.
Everything between sublattices happens in their real Fourier bases (`transforms.sublattices`).
"""

import math
from typing import NamedTuple, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from ..compiling import compiled
from ..errors import InputError
from ..lattice import Lattice
from ..random import Purpose, stream, uniform
from ..transforms.harmonic import HarmonicMap, frequencies, harmonic_inverse, harmonics, sines
from ..transforms.sublattices import bases, eigenvalues, site_order, to_momentum, to_position
from .base import BaseName, make_base
from .flow import Flow, Layer
from .spec import FlowSpec, flows
from .travel import travel_kernel

T = TypeVar("T")
_Pair = tuple[Tensor, Tensor]  # derivatives by `linear` and `sines` of a block


class _Block(NamedTuple):
    """Fields x of a sublattice, `[n, batch]`, and in momentum space x and its sines `[n, F, batch]`."""

    x: Tensor
    linear: Tensor
    sines: Tensor

    @classmethod
    def of(cls, x: Tensor, w: Tensor, order: int, basis: list[Tensor]) -> "_Block":
        return cls(x, to_momentum(basis, x), to_momentum(basis, sines(x, w, order)))


class _Update(NamedTuple):
    """One update of a sublattice c from the others: eigenvalues of its kernels, and amplitudes of its map g.

    `linear` `[n]` and `sines` `[n, 1, F]` of K_0 and K_f, f > 0, from each of the others, `predict` `[n]` of G; `scale`
    `[n]` of `e^{h K_0}` and `own` `[n, 1, F]` within c; `log_slope` = a, and A = `even[:, 0] + even[:, 1:] cos`, B = `odd
    sin` in the P harmonics of psi, `[S, 1 + P]` and `[S, P]`; frequencies w of the features and v of g.
    """

    basis: list[Tensor]
    linear: list[Tensor]
    sines: list[Tensor]
    predict: list[Tensor]
    scale: Tensor
    own: Tensor
    log_slope: Tensor
    even: Tensor
    odd: Tensor
    w: Tensor
    v: Tensor

    def block(self, x: Tensor) -> _Block:
        """Of sublattice c."""
        return _Block.of(x, self.w, self.own.shape[2], self.basis)

    def environment(self, others: list[_Block]) -> tuple["_Environment", Tensor]:
        """What the other sublattices are to c: psi, and in momentum space what is added to phi_c."""
        here = _Environment(self, to_position(self.basis, _sum(self.predict, [o.linear for o in others])))
        shift = _sum(self.linear, [o.linear for o in others])
        pairs = [*zip(self.sines, (o.sines for o in others)), (self.own, to_momentum(self.basis, here.sin))]
        for kernel, momenta in pairs:
            shift = shift + (kernel.mT * momenta).sum(1)
        return here, shift

    def forward(self, x: _Block, others: list[_Block]) -> tuple["_Environment", HarmonicMap]:
        here, shift = self.environment(others)
        moved = to_position(self.basis, shift.addcmul(self.scale[:, None], x.linear))
        return here, HarmonicMap(moved, self.log_slope, *here.coefficients(), self.v)

    def inverse(self, y: Tensor, others: list[_Block]) -> tuple[Tensor, Tensor]:
        """phi_c before, and log g' there."""
        here, shift = self.environment(others)
        coefficients = (self.log_slope, *here.coefficients(), self.v)
        moved = harmonic_inverse(y, *coefficients)
        x = to_position(self.basis, (to_momentum(self.basis, moved) - shift) / self.scale[:, None])
        return x, HarmonicMap(moved, *coefficients).first().log()

    def pull(self, x: _Block, linear: Tensor, by_sines: Tensor) -> Tensor:
        """The derivative by x of what has the derivatives `linear` and `by_sines` by its `linear` and `sines`."""
        order = self.own.shape[2]
        slope = frequencies(self.w, order) * harmonics(x.x, self.w, order)[1]
        return to_position(self.basis, linear) + (slope * to_position(self.basis, by_sines)).sum(1)

    def score(
        self, score: Tensor, here: "_Environment", g: HarmonicMap, back: list[_Pair]
    ) -> tuple[Tensor, list[_Pair]]:
        """The score on c after the update, `J^{-T} (score - d log_det / d phi)`.

        And `back` with what the update takes from the scores of the other sublattices.
        """
        momentum = to_momentum(self.basis, score) / self.scale[:, None]
        first = g.first()
        after = (to_position(self.basis, momentum) - g.second() / first) / first
        by_sine = to_position(self.basis, self.own.mT * momentum[:, None])
        by_psi = to_momentum(self.basis, here.pull(by_sine, after, g, first))
        taken = []
        for (by_linear, by_sines), K_0, K, predict in zip(back, self.linear, self.sines, self.predict):
            by_linear = by_linear.addcmul(K_0[:, None], momentum).addcmul(predict[:, None], by_psi)
            taken.append((by_linear, by_sines.addcmul(K.mT, momentum[:, None])))
        return after, taken


def _advance(update: _Update, x: _Block, others: list[_Block]) -> tuple[_Block, Tensor]:
    """The sublattice after its update, and float64 `[batch]` the sum of `log g'`."""
    _, g = update.forward(x, others)
    return update.block(g.value()), g.first().log().sum(0, dtype=torch.float64)


def _advance_with_score(
    update: _Update, x: _Block, others: list[_Block], score: Tensor, own: _Pair, back: list[_Pair]
) -> tuple[_Block, Tensor, Tensor, list[_Pair]]:
    """`_advance` with the score on c after the update.

    `own`, and for the other sublattices `back`: what updates so far took from their scores, as derivatives by their
    `linear` and `sines`; the latter also after this one. The score carries no gradient, nor does `log g'`, for which the
    path gradient has no use.
    """
    here, g = update.forward(x, others)
    with torch.no_grad():
        after, taken = update.score(score - update.pull(x, *own), here, g, back)
        by_site = g.first().log().sum(0, dtype=torch.float64)
    return update.block(g.value()), by_site, after, taken


def _others(each: list[T], c: int) -> list[T]:
    """All but that of sublattice c."""
    return each[:c] + each[c + 1 :]


def _sum(kernels: list[Tensor], momenta: list[Tensor]) -> Tensor:
    """`sum_c' kernel(n) x_c'(n)`, `[n, batch]`."""
    total = kernels[0][:, None] * momenta[0]
    for kernel, momentum in zip(kernels[1:], momenta[1:]):
        total = total.addcmul(kernel[:, None], momentum)
    return total


class _Environment:
    """psi `[n, batch]` of one update, and what depends on it."""

    def __init__(self, update: _Update, psi: Tensor):
        self.update, self.psi, self.P = update, psi, update.odd.shape[1]
        self.sin, self.cos = harmonics(psi, update.w, update.own.shape[2])

    def coefficients(self) -> tuple[Tensor, Tensor]:
        """A and B of g, `[n, S, batch]`."""
        even, odd = self.update.even, self.update.odd
        return even[:, :1] + even[:, 1:] @ self.cos[:, : self.P], odd @ self.sin[:, : self.P]

    def pull(self, by_sin: Tensor, score: Tensor, g: HarmonicMap, first: Tensor) -> Tensor:
        """The derivative by psi of: the shift, given that by its sines; `score . g`; `log g'`."""
        frequency = frequencies(self.update.w, self.sin.shape[1])
        even, odd, cos = self.update.even, self.update.odd, self.cos * frequency
        A = -even[:, 1:] @ (frequency * self.sin)[:, : self.P]
        B = odd @ cos[:, : self.P]
        value, slope = g.change(A, B)
        return (by_sin * cos).sum(1) + score * value + slope / first


class SplitLayer(Layer):
    """All layers of the module's docstring, whose kernels and maps are sums of `modes` cosines in time."""

    depth: Tensor
    order: Tensor
    restore: Tensor

    def __init__(
        self,
        lattice: Lattice,
        layers: int,
        sines: int,
        site_sines: int,
        psi_sines: int,
        modes: int,
        frequencies: list[float],
    ):
        super().__init__()
        self.lattice, self.layers, self.sines, self.modes = lattice, layers, sines, modes
        self.advance, self.advance_with_score = _advance, _advance_with_score
        self.register_buffer("depth", torch.tensor(layers))  # no parameter's shape tells
        order = torch.from_numpy(site_order(lattice))
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("restore", torch.argsort(order), persistent=False)
        self.sublattices = 2**lattice.dim
        orbits = int(lattice.displacement_orbits.max()) + 1
        self.kernel = nn.Parameter(torch.zeros(1 + sines, modes, orbits))
        self.predict = nn.Parameter(torch.zeros(orbits))  # G, at the start the mean of the nearest neighbours
        with torch.no_grad():
            for mu in range(lattice.dim):
                neighbour = tuple(int(nu == mu) for nu in range(lattice.dim))
                self.predict[int(lattice.displacement_orbits[neighbour])] = 0.5 / lattice.dim
        self.log_frequencies = nn.Parameter(torch.tensor(frequencies).log())  # w, v
        self.log_slope = nn.Parameter(torch.zeros(modes))
        self.strength = nn.Parameter(torch.zeros(site_sines, 1 + 2 * psi_sines, modes))

    def updates(self) -> list[tuple[int, _Update]]:
        """All updates in turn, with their sublattice.

        Amplitudes of g are `e^a u / (f v (1 + sum |u|))`, `u = 4 h strength(t)`: `sum_f f v (|A_f| + |B_f|) < e^a` always.
        """
        kernel, n, C = self.kernel, self.layers, self.sublattices
        even_first = sorted(range(C), key=lambda c: c.bit_count() % 2)
        turns = [c for i in range(n) for c in (even_first if i % 2 == 0 else even_first[::-1])]
        t = (torch.arange(n * C, dtype=torch.float64) + 0.5) / (n * C)
        cosine = torch.cos(math.pi * torch.arange(self.modes) * t[:, None]).to(kernel)
        table = eigenvalues(self.lattice, kernel.dtype, kernel.device)
        eigen = torch.einsum("tb,fbo,kon->tnkf", cosine / n, kernel, table)
        predict = (self.predict @ table).T  # [n, kind]
        a, u = cosine @ self.log_slope / n, 4 / n * torch.einsum("tb,spb->tsp", cosine, self.strength)
        w, v = self.log_frequencies.exp().unbind()
        f = torch.arange(1, u.shape[1] + 1, dtype=u.dtype, device=u.device)[:, None]
        u = a.exp()[:, None, None] * u / (f * v * (1 + u.abs().sum((1, 2), keepdim=True)))
        P = u.shape[2] // 2
        found, basis = [], bases(self.lattice, kernel.dtype, kernel.device)
        kinds = [(eigen[:, :, kind], predict[:, kind]) for kind in range(C)]
        for k, c in enumerate(turns):
            others, own = _others([*range(C)], c), kinds[0][0][k]
            linear = [kinds[c ^ other][0][k, :, 0] for other in others]
            sines = [kinds[c ^ other][0][k, :, None, 1:] for other in others]
            predict_c = [kinds[c ^ other][1] for other in others]
            kernels = (linear, sines, predict_c, own[:, 0].exp(), own[:, None, 1:])
            maps = (a[k], u[k, :, : 1 + P], u[k, :, 1 + P :], w, v)
            found.append((c, _Update(basis[c], *kernels, *maps)))
        return found

    def blocks(self, x: Tensor) -> list[Tensor]:
        """`[batch, *shape]` as fields `[n, batch]` of each sublattice."""
        return list(x.flatten(1).T.index_select(0, self.order).chunk(self.sublattices))

    def fields(self, blocks: list[Tensor], like: Tensor) -> Tensor:
        return torch.cat(blocks).index_select(0, self.restore).T.reshape(like.shape)

    def start(self, x: Tensor) -> tuple[list[tuple[int, _Update]], list[_Block], Tensor]:
        """All updates, the blocks of x, and a log_det of 0."""
        updates = self.updates()
        of = dict(updates)
        blocks = [of[c].block(one) for c, one in enumerate(self.blocks(x))]
        return updates, blocks, x.new_zeros(len(x), dtype=torch.float64)

    def log_det(self, updates: list[tuple[int, _Update]], by_site: Tensor) -> Tensor:
        """float64 `[batch]`: log g' of all sites so far, and the constant of the linear kernels."""
        return by_site + sum(update.scale.double().log().sum() for _, update in updates)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        updates, blocks, total = self.start(x)
        for c, update in updates:
            blocks[c], by_site = self.advance(update, blocks[c], _others(blocks, c))
            total = total + by_site
        return self.fields([b.x for b in blocks], x), self.log_det(updates, total)

    def forward_with_score(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        updates, blocks, total = self.start(x)
        with torch.no_grad():
            scores = self.blocks(score)
            nothing = torch.zeros_like(blocks[0].linear), torch.zeros_like(blocks[0].sines)
        back = [nothing] * len(blocks)
        for c, update in updates:
            blocks[c], by_site, scores[c], taken = self.advance_with_score(
                update, blocks[c], _others(blocks, c), scores[c], back[c], _others(back, c)
            )
            back = [*taken[:c], nothing, *taken[c:]]
            total = total + by_site
        with torch.no_grad():
            of = dict(updates)
            scores = [s - of[c].pull(blocks[c], *back[c]) for c, s in enumerate(scores)]
            log_det = self.log_det(updates, total)
        return self.fields([b.x for b in blocks], x), log_det, self.fields(scores, x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        updates, blocks, total = self.start(y)
        for c, update in reversed(updates):
            x, log_first = update.inverse(blocks[c].x, _others(blocks, c))
            blocks[c] = update.block(x)
            total = total + log_first.sum(0, dtype=torch.float64)
        return self.fields([b.x for b in blocks], y), -self.log_det(updates, total)

    def compile_parts(self) -> None:
        self.advance, self.advance_with_score = compiled(_advance), compiled(_advance_with_score)

    def adopt(self, previous: "SplitLayer") -> None:  # type: ignore[override]
        """Kernels as functions of displacement, everything else copied; any number of layers."""
        travelled = {
            name: travel_kernel(getattr(previous, name), previous.lattice, self.lattice)
            for name in ("kernel", "predict")
        }
        self.load_state_dict({**previous.state_dict(), **travelled, "depth": self.depth})

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        """torch's, which also refuses weights that were trained for another number of layers."""
        depth, errors = state_dict.get(prefix + "depth", self.depth), args[-1]
        if int(depth) != self.layers:
            errors.append(f"weights of {int(depth)} layers, expected {self.layers}")
        super()._load_from_state_dict(state_dict, prefix, *args)


@flows.add("split")
class Split(FlowSpec):
    """The split flow (an own design). `sines` = F harmonics of one frequency in the kernels, `site_sines` = S in the
    site-wise map and `psi_sines` = P <= F in its dependence on psi, `modes` cosines in time. Sides must be even. The
    number of parameters does not grow with `layers`; more of them raise the ESS, few are worth most per second.
    """

    layers: int = Field(4, gt=0)
    sines: int = Field(4, ge=1)
    site_sines: int = Field(4, ge=1)
    psi_sines: int = Field(2, ge=0)
    modes: int = Field(8, ge=1)
    base: BaseName = "spectrum"
    base_m2: float = 1.0

    def model_post_init(self, context) -> None:
        super().model_post_init(context)
        if self.psi_sines > self.sines:
            raise InputError(
                f"split: psi_sines = {self.psi_sines} of sines = {self.sines}: expected at most as many"
            )

    def layer(self, lattice: Lattice, layers: int, jitter: Tensor) -> SplitLayer:
        # periods of about 7 and 9, several times a typical field
        frequencies = [center * (0.95 + 0.1 * float(u)) for center, u in zip((0.95, 0.7), jitter)]
        orders = (self.sines, self.site_sines, self.psi_sines, self.modes)
        return SplitLayer(lattice, layers, *orders, frequencies)

    def build(self, lattice: Lattice, seed: int) -> Flow:
        jitter = uniform(stream(seed, Purpose.INIT), (2,), dtype=torch.float64)
        return Flow(make_base(self.base, lattice, self.base_m2), [self.layer(lattice, self.layers, jitter)])
