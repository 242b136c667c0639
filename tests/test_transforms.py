"""Every layer and transform: round trip, and log-det against the full autograd Jacobian, in float64."""

import numpy as np
import pytest
import torch
from tables import field, harmonic_map, harmonic_map_inverse, layers, rng

from latticeflow.errors import InputError, LatticeflowError
from latticeflow.flows import Layer
from latticeflow.flows.networks import CircularConv
from latticeflow.flows.split import _Environment
from latticeflow.lattice import Lattice
from latticeflow.transforms import harmonic as harmonic_module
from latticeflow.transforms.affine import affine, affine_inverse
from latticeflow.transforms.fourier import fourier_scale
from latticeflow.transforms.harmonic import HarmonicMap, harmonic_inverse, harmonics, sines

# a, A, B, w: sum_f f w (|A_f| + |B_f|) = 1.16 < e^a = 1.22
HARMONIC = tuple(
    torch.tensor(p).double() for p in (0.2, [[[0.3], [-0.25], [0.1]]], [[[0.1], [-0.05], [0.05]]], 0.8)
)


def smooth_even_spectrum(shape):
    return torch.from_numpy(0.3 * np.cos(Lattice(shape).khat2))


def transforms():
    """(name, forward, inverse, shape)."""
    s, t = field((3, 2), 11, n=1), field((3, 2), 12, n=1)
    yield (
        "affine",
        lambda x: affine(x, t.expand_as(x), s.expand_as(x)),
        lambda y: affine_inverse(y, t.expand_as(y), s.expand_as(y)),
        (3, 2),
    )
    yield "harmonic", lambda x: harmonic_map(x, *HARMONIC), lambda y: harmonic_map_inverse(y, *HARMONIC), (5,)
    for shape in [(5,), (4, 6), (2, 3, 4)]:
        a = smooth_even_spectrum(shape)
        dim = len(shape)
        yield (
            f"fourier-{shape}",
            lambda x, a=a, dim=dim: fourier_scale(x, a, dim),
            lambda y, a=a, dim=dim: fourier_scale(y, -a, dim),
            shape,
        )
    for name, layer, shape in layers():
        yield name, layer, layer.inverse, shape


CASES = [pytest.param(*case[1:], id=case[0]) for case in transforms()]


def jacobian_log_det(f, x):
    size = x[0].numel()
    jacobian = torch.autograd.functional.jacobian(
        lambda v: f(v.view(1, *x.shape[1:]))[0].flatten(), x[0].flatten()
    )
    return torch.linalg.slogdet(jacobian.view(size, size))[1]


@pytest.mark.parametrize("forward, inverse, shape", CASES)
def test_round_trip_and_log_det(forward, inverse, shape):
    x = field(shape, 13)
    y, log_det = forward(x)
    back, log_det_inverse = inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(log_det_inverse, -log_det, rtol=1e-10, atol=1e-10)
    for i in range(len(x)):
        torch.testing.assert_close(
            log_det[i].detach(), jacobian_log_det(forward, x[i : i + 1]), rtol=1e-10, atol=1e-10
        )
        torch.testing.assert_close(
            log_det_inverse[i].detach(),
            jacobian_log_det(inverse, y[i : i + 1].detach()),
            rtol=1e-9,
            atol=1e-9,
        )


def test_a_wrong_log_det_fails_the_check():
    """Negative control: the harmonic map without its log-det is caught."""
    x = field((5,), 14)
    assert abs(jacobian_log_det(lambda v: harmonic_map(v, *HARMONIC), x[:1])) > 1e-3


@pytest.mark.parametrize("name, layer, shape", [pytest.param(*case, id=case[0]) for case in layers()])
def test_score_is_that_of_the_pushed_density(name, layer, shape):
    """The score carried forward, against autograd of log q(y) = log r(T^{-1} y) + log_det_inverse, r Gaussian."""
    x = field(shape, 15)
    y, log_det, score = layer.forward_with_score(x, -x)
    end = y.detach().requires_grad_(True)
    start, log_det_inverse = layer.inverse(end)
    log_q = -0.5 * start.square().flatten(1).sum(1) + log_det_inverse
    (expected,) = torch.autograd.grad(log_q.sum(), end)
    torch.testing.assert_close(score, expected, rtol=1e-9, atol=1e-9)
    plain, plain_log_det = layer(x)
    torch.testing.assert_close((y, log_det), (plain, plain_log_det))
    if type(layer).forward_with_score is not Layer.forward_with_score:  # closed form against the generic one
        torch.testing.assert_close(Layer.forward_with_score(layer, x, -x)[2], score, rtol=1e-9, atol=1e-9)


def test_site_map_is_odd_in_both_fields_and_rising_at_any_strength():
    layer = next(layer for name, layer, _ in layers() if name.startswith("split-(4, 4)"))
    with torch.no_grad():
        layer.strength[..., 0] = torch.tensor([[50.0, 30.0, -70.0], [-80.0, -20.0, 90.0]])
    _, update = layer.updates()[1]
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64).expand(4, -1)
    psi = torch.linspace(-2, 2, 4, dtype=torch.float64)[:, None].expand(x.shape)

    def parameters(update, psi):
        return update.log_slope, *_Environment(update, psi).coefficients(), update.v

    with torch.no_grad():
        g, mirrored = (
            HarmonicMap(
                sign * x, update.log_slope, *_Environment(update, sign * psi).coefficients(), update.v
            )
            for sign in (1, -1)
        )
        assert bool((g.value().diff(dim=1) > 0).all()) and bool((g.first() > 0).all())
        torch.testing.assert_close(mirrored.value(), -g.value())
        assert float((g.value()[0] - g.value()[1]).abs().max()) > 0.01  # it does depend on psi
        back = harmonic_inverse(g.value(), *parameters(update, psi))
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)


def test_harmonic_map_has_the_derivatives_of_its_formula():
    parameters = [p.clone().requires_grad_(True) for p in HARMONIC]
    x = field((4,), 15, n=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x, *p: harmonic_map(x, *p), (x, *parameters))
    g = HarmonicMap(x.T, *parameters)
    (first,) = torch.autograd.grad(g.value().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close((g.first().T, g.second().T), (first, second))


def test_harmonic_inverse_has_the_implicit_derivatives():
    parameters = [p.clone().requires_grad_(True) for p in HARMONIC]
    y = field((4,), 16, n=2).requires_grad_(True)
    assert torch.autograd.gradcheck(lambda y, *p: harmonic_map_inverse(y, *p), (y, *parameters))


def test_harmonic_inverse_keeps_the_roots_it_has_found(monkeypatch):
    """20,000 numbers at once, in the few steps that Newton's iteration needs for the slowest of them."""
    monkeypatch.setattr(harmonic_module, "ITERATIONS", 16)
    for dtype in (torch.float64, torch.float32):
        x = torch.linspace(-4, 4, 20000, dtype=dtype)[None]
        parameters = [p.to(dtype) for p in HARMONIC]
        back, _ = harmonic_map_inverse(harmonic_map(x, *parameters)[0], *parameters)
        assert float((back - x).abs().max()) < 1000 * torch.finfo(dtype).eps


def test_harmonic_inverse_refuses_nonsense():
    with pytest.raises(LatticeflowError, match="not converged"):
        harmonic_map_inverse(torch.tensor([[float("nan")]], dtype=torch.float64), *HARMONIC)


@pytest.mark.parametrize("shape", [(5,), (4, 3), (2, 3, 4), (2, 3, 1, 4)])
def test_convolution_is_the_formula(shape):
    import itertools

    dim = len(shape)
    conv = CircularConv(dim, 2, 3, 3, rng(17)).double()
    x = field((2, *shape), 18, n=1)
    y = conv(x)
    for s in itertools.product(*(range(L) for L in shape)):
        expected = conv.bias.clone()
        for d in itertools.product((-1, 0, 1), repeat=dim):
            site = tuple((a + b) % L for a, b, L in zip(s, d, shape))
            weight = conv.weight[(slice(None), slice(None), *(c + 1 for c in d))]
            expected = expected + weight @ x[(0, slice(None), *site)]
        torch.testing.assert_close(y[(0, slice(None), *s)], expected)


def test_even_kernel_is_refused():
    with pytest.raises(InputError, match="odd size"):
        CircularConv(2, 1, 1, 2, rng(19))


def test_harmonic_map_is_its_formula():
    x, (a, A, B, w) = field((7,), 20), HARMONIC
    expected = a.exp() * x
    for f in (1, 2, 3):
        expected = expected + A[0, f - 1] * (f * w * x).sin() + B[0, f - 1] * (f * w * x).cos()
    torch.testing.assert_close(harmonic_map(x, *HARMONIC)[0], expected)


@pytest.mark.parametrize("order", [1, 2, 5, 12])
@pytest.mark.parametrize("grad", [True, False])  # each by itself, or by recurrence
def test_harmonics_are_sines_and_cosines(order, grad):
    x, w = field((7,), 20).T, torch.tensor(0.7).double()
    f = torch.arange(1, order + 1).double()[:, None]
    with torch.set_grad_enabled(grad):
        for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
            found = (*harmonics(x.to(dtype), w.to(dtype), order), sines(x.to(dtype), w.to(dtype), order))
            angle = f * w * x[:, None]
            for one, wanted in zip(found, (angle.sin(), angle.cos(), angle.sin())):
                torch.testing.assert_close(one.double(), wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("order", [1, 5, 12, 30])
def test_float32_keeps_its_digits_at_any_order(order):
    """A sum over powers of the cosine would lose (1 + sqrt 2)^order."""
    u = torch.from_numpy(rng(21).normal(size=(2, order, 1)))
    w = torch.tensor(0.7).double()
    c = u / (1 + u.abs().sum()) / (w * torch.arange(1, order + 1))[:, None]
    x = field((64,), 22).float()
    y, log_det = harmonic_map(x.double(), torch.tensor(0.1).double(), *c, w)
    y_32, log_det_32 = harmonic_map(x, torch.tensor(0.1), *c.float(), w.float())
    assert float((y_32 - y).abs().max()) < 2e-6
    assert float((log_det_32 - log_det).abs().max()) < 1e-4
    back, _ = harmonic_map_inverse(y_32, torch.tensor(0.1), *c.float(), w.float())
    assert float((back - x).abs().max()) < 1e-4
