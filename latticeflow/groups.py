"""The gauge groups U(1), SU(2), SU(3): products, exponential and logarithm, Haar's measure, projection.

A link of U(1) is its angle theta, float, in (-pi, pi] wherever this package makes one; a link of SU(N) is its matrix,
complex `[..., N, N]`. Elements of the algebra are real coefficients c, `[...]` for U(1) and `[..., N^2 - 1]` for SU(N):

`exp(c) = exp(i theta)` with theta = c for U(1), and `exp(i sum_a c_a T_a)` for SU(N), with hermitian, traceless T_a,
`tr T_a T_b = delta_ab / 2`: half the Pauli and half the Gell-Mann matrices. The left derivative of a function of a link is

`d_a f(U) = d/ds f(exp(i s T_a) U)` at s = 0 (`d/dtheta` for U(1)).
"""

import math

import numpy as np
import torch
from torch import Tensor

from .errors import InputError
from .random import normal, uniform

_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


class Group:
    """What targets, samplers and flows need of a group. `n`: rows of its matrices; `tail`: shape of a link,
    `algebra_tail`: of its coefficients; `generators`: how many there are.
    """

    name: str
    n: int
    tail: tuple[int, ...]
    algebra_tail: tuple[int, ...]
    generators: int

    def dtype(self, real: torch.dtype) -> torch.dtype:
        """Of the links, where numbers have the precision `real` (float32 or float64)."""
        raise NotImplementedError

    def identity(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Links `[*shape, *tail]`, all 1, of the dtype and device of `like`."""
        raise NotImplementedError

    def mul(self, u: Tensor, v: Tensor) -> Tensor:
        """`U V`."""
        raise NotImplementedError

    def dagger(self, u: Tensor) -> Tensor:
        """`U^dagger`, the inverse."""
        raise NotImplementedError

    def trace(self, u: Tensor) -> Tensor:
        """`Re tr U / N`, `[...]`; `cos theta` for U(1)."""
        raise NotImplementedError

    def gradient(self, u: Tensor) -> Tensor:
        """`d_a Re tr U = -Im tr(T_a U)`, `[..., *algebra_tail]`; `-sin theta` for U(1). Of any matrices."""
        raise NotImplementedError

    def exp(self, c: Tensor) -> Tensor:
        """The link of coefficients c."""
        raise NotImplementedError

    def log(self, u: Tensor) -> Tensor:
        """The shortest c with `exp(c) = U`."""
        raise NotImplementedError

    def haar(
        self, shape: tuple[int, ...], rng: np.random.Generator, dtype: torch.dtype, device="cpu"
    ) -> Tensor:
        """Independent links `[*shape, *tail]`, uniform on the group; dtype float32 or float64."""
        raise NotImplementedError

    def project(self, u: Tensor) -> Tensor:
        """The group's element next to U. Raises `InputError` where U is far from all of them."""
        raise NotImplementedError

    def settled(self, u: Tensor) -> Tensor:
        """The group's element next to U, which is off it by rounding; derivatives along the group are those of U.

        For products of many elements: with daggers for inverses they would be off by as many times as much.
        """
        raise NotImplementedError

    def violation(self, u: Tensor) -> Tensor:
        """How far U is from the group: the largest of `|U^dagger U - 1|` and `|det U - 1|`, `[...]`."""
        raise NotImplementedError

    def pair(self, covector: Tensor, u: Tensor) -> Tensor:
        """A number of each configuration of links, `[batch]`, whose derivative along a motion of u with coefficients p
        is `covector . p`; covector without gradient.
        """
        raise NotImplementedError

    def left_derivative(self, u: Tensor, slope: Tensor) -> Tensor:
        """`d_a f(U)`, `[..., *algebra_tail]`, from the `slope` that autograd gives for links u."""
        raise NotImplementedError


class U1(Group):
    name, n, tail, algebra_tail, generators = "U(1)", 1, (), (), 1

    def dtype(self, real: torch.dtype) -> torch.dtype:
        return real

    def identity(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.zeros(shape, dtype=like.dtype, device=like.device)

    def mul(self, u: Tensor, v: Tensor) -> Tensor:
        return u + v

    def dagger(self, u: Tensor) -> Tensor:
        return -u

    def trace(self, u: Tensor) -> Tensor:
        return u.cos()

    def gradient(self, u: Tensor) -> Tensor:
        return -u.sin()

    def exp(self, c: Tensor) -> Tensor:
        return wrap(c)

    def log(self, u: Tensor) -> Tensor:
        return wrap(u)

    def haar(
        self, shape: tuple[int, ...], rng: np.random.Generator, dtype: torch.dtype, device="cpu"
    ) -> Tensor:
        return math.pi * (1 - 2 * uniform(rng, shape, dtype=dtype, device=device))

    def project(self, u: Tensor) -> Tensor:
        return wrap(u)

    def settled(self, u: Tensor) -> Tensor:
        return wrap(u)

    def violation(self, u: Tensor) -> Tensor:
        """Zero: every finite angle is on the group."""
        return torch.where(u.isfinite(), 0.0, math.inf)

    def pair(self, covector: Tensor, u: Tensor) -> Tensor:
        return (covector * u).flatten(1).sum(1)

    def left_derivative(self, u: Tensor, slope: Tensor) -> Tensor:
        return slope


def wrap(angle: Tensor) -> Tensor:
    """The angle in (-pi, pi] that differs by a multiple of 2 pi."""
    return angle - 2 * math.pi * torch.ceil(angle / (2 * math.pi) - 0.5)


_i = 1j
_PAULI = np.array([[[0, 1], [1, 0]], [[0, -_i], [_i, 0]], [[1, 0], [0, -1]]])
_GELL_MANN = np.array(
    [
        [[0, 1, 0], [1, 0, 0], [0, 0, 0]],
        [[0, -_i, 0], [_i, 0, 0], [0, 0, 0]],
        [[1, 0, 0], [0, -1, 0], [0, 0, 0]],
        [[0, 0, 1], [0, 0, 0], [1, 0, 0]],
        [[0, 0, -_i], [0, 0, 0], [_i, 0, 0]],
        [[0, 0, 0], [0, 0, 1], [0, 1, 0]],
        [[0, 0, 0], [0, 0, -_i], [0, _i, 0]],
        np.diag([1, 1, -2]) / math.sqrt(3),
    ]
)
TERMS = 18  # of the exponential's series at |Q| <= 1: the first left out is 1/18! = 1.6e-16
FAR = 0.5  # from the group, beyond which `project` refuses
NEWTON = 8  # iterations of `project`, at most
SMALL = 16  # units of rounding: no further iteration


class SU(Group):
    """SU(N), N = 2 or 3."""

    def __init__(self, n: int):
        self.name, self.n, self.tail = f"SU({n})", n, (n, n)
        self.generators = n * n - 1
        self.algebra_tail = (self.generators,)
        # T_a, complex128 [N^2 - 1, N, N]
        self.basis = torch.from_numpy((_PAULI if n == 2 else _GELL_MANN) / 2)

    def dtype(self, real: torch.dtype) -> torch.dtype:
        return _COMPLEX[real]

    def identity(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.eye(self.n, dtype=like.dtype, device=like.device).expand(*shape, *self.tail)

    def mul(self, u: Tensor, v: Tensor) -> Tensor:
        return u @ v

    def dagger(self, u: Tensor) -> Tensor:
        return u.mH

    def trace(self, u: Tensor) -> Tensor:
        return u.diagonal(dim1=-2, dim2=-1).real.sum(-1) / self.n

    def gradient(self, u: Tensor) -> Tensor:
        # -Im tr(T U) = -sum_ij [ Re T_ji Im U_ij + Im T_ji Re U_ij ]: one product of real matrices
        t = self.basis.mT
        weights = -torch.stack([t.imag, t.real], -1).flatten(1)
        numbers = torch.view_as_real(u.resolve_conj()).flatten(-3)
        return numbers @ weights.to(numbers).T

    def hermitian(self, c: Tensor) -> Tensor:
        """`Q = sum_a c_a T_a`, complex `[..., N, N]`."""
        numbers = c @ torch.view_as_real(self.basis).flatten(1).to(c)
        return torch.view_as_complex(numbers.unflatten(-1, (self.n, self.n, 2)))

    def exp(self, c: Tensor) -> Tensor:
        """By its series, reduced by the Cayley-Hamilton theorem and so smooth everywhere; squared where c is large."""
        largest = float(c.detach().abs().max()) * math.sqrt(self.generators / 2) if c.numel() else 0.0
        squarings = max(0, math.ceil(math.log2(largest))) if 0 < largest < math.inf else 0
        u = self._series(self.hermitian(c * 0.5**squarings))
        for _ in range(squarings):
            u = u @ u
        return u

    def _series(self, q: Tensor) -> Tensor:
        """`exp(iQ)`, |Q| of order 1: Horner's rule for `sum_k (iQ)^k / k!` modulo the characteristic polynomial,

        `Q^2 = q1` (N = 2), `Q^3 = q1 Q + q0` (N = 3), `q1 = tr Q^2 / 2`, `q0 = tr Q^3 / 3`.
        """
        q2 = q @ q
        q1 = q2.diagonal(dim1=-2, dim2=-1).real.sum(-1) / 2
        q0 = (q * q2.mT).sum((-2, -1)).real / 3 if self.n == 3 else torch.zeros_like(q1)
        zero = torch.zeros_like(q1)
        powers = [(zero, zero)] * self.n  # real and imaginary parts of the coefficients of 1, Q, Q^2
        for k in reversed(range(TERMS)):
            value = 1j**k / math.factorial(k)
            last = powers[-1]
            shifted = [(q0 * last[0], q0 * last[1]) if self.n == 3 else (q1 * last[0], q1 * last[1])]
            shifted += powers[:-1]
            if self.n == 3:
                shifted[1] = (shifted[1][0] + q1 * last[0], shifted[1][1] + q1 * last[1])
            shifted[0] = (shifted[0][0] + value.real, shifted[0][1] + value.imag)
            powers = shifted
        f = [torch.complex(*pair)[..., None, None] for pair in powers]
        u = f[1] * q + f[0] * torch.eye(self.n, dtype=q.dtype, device=q.device)
        return u + f[2] * q2 if self.n == 3 else u

    def log(self, u: Tensor) -> Tensor:
        """The derivative is stable where eigenvalues meet, and singular, as it must be, where -1 (N = 2) or two ways
        are equally short.
        """
        return _Log.apply(u, self)

    def coefficients(self, q: Tensor) -> Tensor:
        """`c_a = 2 Re tr(T_a Q)` of hermitian Q, the inverse of `hermitian`."""
        t = self.basis.mT
        weights = 2 * torch.stack([t.real, -t.imag], -1).flatten(1)
        numbers = torch.view_as_real(q.resolve_conj()).flatten(-3)
        return numbers @ weights.to(numbers).T

    def haar(
        self, shape: tuple[int, ...], rng: np.random.Generator, dtype: torch.dtype, device="cpu"
    ) -> Tensor:
        """White complex noise made orthonormal column by column; the last column follows from det U = 1."""
        numbers = normal(rng, (*shape, self.n, self.n - 1, 2), dtype=dtype, device=device)
        noise = torch.view_as_complex(numbers)
        columns: list[Tensor] = []
        for column in noise.unbind(-1):
            for other in columns:
                column = column - (other.conj() * column).sum(-1, keepdim=True) * other
            columns.append(column / torch.linalg.vector_norm(column, dim=-1, keepdim=True))
        return torch.stack([*columns, _last_column(columns)], -1)

    def project(self, u: Tensor) -> Tensor:
        """The unitary matrix of the polar decomposition, divided by the N-th root of its determinant next to 1."""
        one = torch.eye(self.n, dtype=u.dtype, device=u.device)
        for step in range(NEWTON):  # Newton's iteration, quadratic: 0.5 becomes 1e-17 in seven
            square = u.mH @ u
            off = float((square.detach() - one).abs().max()) if u.numel() else 0.0
            if step == 0 and not off <= FAR:  # NaN is far, too
                raise InputError(
                    f"links off {self.name}: the largest |U^dagger U - 1| is {off:.3g}, allowed {FAR}; expected "
                    f"matrices of {self.name} to rounding"
                )
            if step and off < SMALL * torch.finfo(u.dtype).eps:
                break
            u = 1.5 * u - 0.5 * u @ square
        phase = torch.linalg.det(u).angle() / self.n
        return u * torch.polar(torch.ones_like(phase), -phase)[..., None, None]

    def settled(self, u: Tensor) -> Tensor:
        return settled(u)

    def violation(self, u: Tensor) -> Tensor:
        off = (u.mH @ u - torch.eye(self.n, dtype=u.dtype, device=u.device)).abs().amax((-2, -1))
        return torch.maximum(off, (torch.linalg.det(u) - 1).abs())

    def pair(self, covector: Tensor, u: Tensor) -> Tensor:
        """`2 Im tr [ c_a T_a U U_0^dagger ]`, U_0 = U without its gradient."""
        turned = self.hermitian(covector) @ u
        return 2 * (turned * u.detach().conj()).imag.flatten(1).sum(1)

    def left_derivative(self, u: Tensor, slope: Tensor) -> Tensor:
        return self.gradient(u @ slope.mH)


def _last_column(columns: list[Tensor]) -> Tensor:
    if len(columns) == 1:
        a, b = columns[0].unbind(-1)
        return torch.stack([-b.conj(), a.conj()], -1)
    return torch.linalg.cross(columns[0], columns[1], dim=-1).conj()


class _Log(torch.autograd.Function):
    """Coefficients of `Q = -i log U`; its derivative by divided differences of the angles (Daleckii and Krein 1965)."""

    @staticmethod
    def forward(ctx, u: Tensor, group: SU) -> Tensor:
        angles, v = eigen_angles(u)
        turns = torch.round(angles.sum(-1) / (2 * math.pi))  # the angles of a traceless Q add up to zero
        place = (angles * turns.sign()[..., None]).argmax(-1, keepdim=True)
        angles = angles.scatter_add(-1, place, -2 * math.pi * turns[..., None])
        ctx.save_for_backward(angles, v)
        ctx.group = group
        return group.coefficients(v @ (angles.to(v)[..., None] * v.mH))

    @staticmethod
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, None]:
        angles, v = ctx.saved_tensors
        # f(lambda) = angle at lambda = e^{i angle}: [f(a) - f(b)] / [e^{ia} - e^{ib}], and -i e^{-ia} where they meet
        half = (angles[..., :, None] - angles[..., None, :]) / 2
        middle = (angles[..., :, None] + angles[..., None, :]) / 2
        divided = -1j * torch.polar(1 / torch.sinc(half / math.pi), -middle)
        # dQ = V (divided * V^dagger dU V) V^dagger and c = 2 Re tr(T dQ)
        outer = v.mH @ ctx.group.hermitian(grads[0]) @ v
        return 2 * v @ (divided.conj() * outer) @ v.mH, None


def eigen_angles(u: Tensor) -> tuple[Tensor, Tensor]:
    """Angles `[..., N]` in (-pi, pi] and orthonormal eigenvectors `[..., N, N]` (columns) of matrices of SU(N)."""
    if u.shape[-1] == 2:
        return _eigen_angles_of_su2(u)
    v = torch.linalg.qr(torch.linalg.eig(u).eigenvectors).Q  # of equal eigenvalues, too, orthonormal
    return (v.mH @ u @ v).diagonal(dim1=-2, dim2=-1).angle(), v


def settled(u: Tensor) -> Tensor:
    """`SU.settled` of matrices `[..., N, N]`, N = 2 or 3."""
    with torch.no_grad():
        near = 1.5 * u - 0.5 * u @ (u.mH @ u)  # Newton's step to the unitary matrices
        phase = _determinant(near).angle() / u.shape[-1]
        shift = near * torch.polar(torch.ones_like(phase), -phase)[..., None, None] - u
    return u + shift


def _determinant(u: Tensor) -> Tensor:
    if u.shape[-1] == 2:
        return u[..., 0, 0] * u[..., 1, 1] - u[..., 0, 1] * u[..., 1, 0]
    first, second, third = u.unbind(-2)
    return (first * torch.linalg.cross(second, third, dim=-1)).sum(-1)


def _eigen_angles_of_su2(u: Tensor) -> tuple[Tensor, Tensor]:
    """`U = cos theta + i sin theta n . sigma`: angles +-theta, and of n the spinor of its nearer pole."""
    a, b = (u[..., 0, 0] + u[..., 1, 1].conj()) / 2, (u[..., 0, 1] - u[..., 1, 0].conj()) / 2
    z, side = a.imag, b * -1j  # sin theta times n_z and n_x - i n_y
    sine = torch.hypot(z, side.abs())
    theta = torch.atan2(sine, a.real)
    north = z >= 0
    top = torch.where(north, (sine + z.abs()).to(side), side)
    bottom = torch.where(north, side.conj(), (sine + z.abs()).to(side))
    top = torch.where(sine == 0, torch.ones_like(top), top)
    norm = torch.hypot(top.abs(), bottom.abs())
    top, bottom = top / norm, bottom / norm
    v = torch.stack([torch.stack([top, -bottom.conj()], -1), torch.stack([bottom, top.conj()], -1)], -2)
    return torch.stack([theta, torch.where(sine == 0, theta, -theta)], -1), v


GROUPS: dict[str, Group] = {"u1": U1(), "su2": SU(2), "su3": SU(3)}
