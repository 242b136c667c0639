"""The continuous flow: drift against the formula, log-det against the Jacobian, order of the solver, other lattices."""

import math

import numpy as np
import pytest
import torch
from tables import field, rng, scramble

from latticeflow.errors import InputError
from latticeflow.flows import Affine, Continuous, Split
from latticeflow.flows.travel import representatives, travel_kernel, travel_spectrum
from latticeflow.lattice import Lattice
from latticeflow.transforms import runge_kutta
from latticeflow.transforms.convolution import bases, eigenvalues, to_momentum, to_position


def build(shape, key=1, scale=0.05, **settings):
    return scramble(Continuous(**settings).build(Lattice(shape), 1), key, scale=scale)


@pytest.mark.parametrize("shape", [(5,), (4, 6), (3, 3), (2, 3, 4), (2, 2, 3, 4)])
def test_symmetric_convolution_is_the_sum_over_displacements(shape):
    lattice = Lattice(shape)
    x = field(shape, 1).flatten(1).T
    weights = torch.from_numpy(rng(2).normal(size=int(lattice.displacement_orbits.max()) + 1))
    kernel = weights[torch.from_numpy(lattice.displacement_orbits)]
    expected = sum(
        kernel[tuple(d)] * torch.roll(x.T.reshape(-1, *shape), tuple(d), tuple(range(1, 1 + len(shape))))
        for d in lattice.coordinates
    )
    spectrum = weights @ eigenvalues(lattice, x.dtype, x.device)
    matrices = bases(lattice, x.dtype, x.device)
    y = to_position(matrices, spectrum[:, None] * to_momentum(matrices, x))
    torch.testing.assert_close(y.T.reshape(-1, *shape), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("solver, order", [("rk4", 4), ("rk6", 6)])
def test_order_of_the_solver(solver, order):
    """`dx/dt = x cos t` has the answer `x0 exp(sin t)`; halving the step gains `2^order`."""
    tableau = runge_kutta.TABLEAUS[solver]
    assert tableau.order == order

    def error(steps: int) -> float:
        state = (torch.tensor(1.0, dtype=torch.float64),)
        for k in range(steps):
            state = runge_kutta.step(
                lambda t, s: (s[0] * math.cos(t),), 2 * k / steps, 2 / steps, state, tableau
            )
        return abs(float(state[0]) - math.exp(math.sin(2)))

    assert math.log2(error(10) / error(20)) == pytest.approx(order, abs=0.5)


def test_drift_is_the_formula():
    """The drift against the sums of the docstring, written out, and the divergence against the full Jacobian."""
    lattice = Lattice((4, 6))
    flow = build((4, 6), sines=2, modes=2, steps=10_000)
    layer = flow.layers[0]
    x = field((4, 6), 3)
    rate = layer._rate(1)
    v, divergence = rate(0.0, (x.flatten(1).T, None))
    w, kernel = (
        float(layer.log_w.detach().exp()),
        layer.kernel.detach().sum(1)[:, torch.from_numpy(lattice.displacement_orbits)],
    )
    expected = torch.zeros_like(x)
    for f in range(3):
        feature = x if f == 0 else torch.sin(f * w * x)
        for d in lattice.coordinates:
            expected += kernel[(f, *d)] * torch.roll(feature, tuple(d), (1, 2))
    torch.testing.assert_close(v.T.reshape(x.shape), expected)
    jacobian = torch.autograd.functional.jacobian(
        lambda z: rate(0.0, (z.reshape(-1, 1), None))[0].flatten(), x[0].flatten()
    )
    assert float(divergence[0].detach()) == pytest.approx(float(torch.trace(jacobian)), abs=1e-10)


@pytest.mark.parametrize("shape", [(5,), (4, 4), (2, 3, 2)])
def test_log_det_is_that_of_the_full_jacobian(shape):
    """To the order of the solver: 1e-5 at 24 steps; a coarse flow misses it."""

    def miss(steps: int) -> float:
        layer = build(shape, steps=steps).layers[0]
        x = field(shape, 4, n=1)
        jacobian = torch.autograd.functional.jacobian(lambda z: layer(z[None])[0][0], x[0])
        exact = torch.linalg.slogdet(jacobian.reshape(x[0].numel(), -1))[1]
        return abs(float(layer(x)[1] - exact))

    assert miss(24) < 1e-5 and miss(24) < miss(12) / 8
    assert miss(1) > 1e-3


def test_gradients_are_those_of_finite_differences():
    """Of x and of log q, reparametrised, in every kind of parameter."""
    flow = build((4, 4), sines=2, modes=2, steps=3)
    noise = flow.noise(3, rng(5))

    def value() -> torch.Tensor:
        x, log_q = flow.push(noise)
        return (x.sin().sum() + log_q.square().sum()) / 100

    value().backward()
    for name, parameter in flow.named_parameters():
        flat = parameter.data.view(-1)
        for i in {0, len(flat) // 2, len(flat) - 1}:
            kept, values = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = kept + sign * 1e-5
                values.append(float(value().detach()))
            flat[i] = kept
            expected = (values[0] - values[1]) / 2e-5
            assert float(parameter.grad.view(-1)[i]) == pytest.approx(expected, rel=1e-5, abs=1e-7), name


def test_density_error_sees_a_coarse_flow_and_refinement_cures_it():
    flow = build((6, 6), steps=2)
    errors = []
    for _ in range(4):
        x, log_q = flow.sample(64, rng(6))
        errors.append(float(flow.density_error(x, log_q).max()))
        flow.refine(2)
    assert int(flow.layers[0].steps) == 32
    assert errors[0] > 0.01 and errors[3] < errors[0] / 500 and errors == sorted(errors, reverse=True)
    again = Continuous(steps=2).build(Lattice((6, 6)), 1)
    again.double().load_state_dict(flow.state_dict())
    assert int(again.layers[0].steps) == 32  # the resolution travels with the weights


def test_an_exact_flow_has_no_density_error():
    flow = Split(layers=2).build(Lattice((4, 4)), 1)
    x, log_q = flow.sample(8, rng(7))
    assert not flow.approximate and float(flow.density_error(x, log_q).max()) == 0


def test_the_whole_point_group_and_all_translations_commute():
    for shape in [(4, 4), (4, 6)]:
        lattice, flow = Lattice(shape), build(shape, steps=3)
        noise = flow.noise(2, rng(8))
        x, log_q = flow.push(noise)
        shifted, same = flow.push(torch.roll(noise, 1, 1))
        torch.testing.assert_close((shifted, same), (torch.roll(x, 1, 1), log_q))
        for order, flips in lattice.point_group():
            y, _ = flow.push(lattice.transform(noise, order, flips))
            torch.testing.assert_close(y, lattice.transform(x, order, flips))


def dense(kernel: torch.Tensor, lattice: Lattice) -> np.ndarray:
    return kernel.numpy()[lattice.displacement_orbits]


@pytest.mark.parametrize(
    "small, large", [((4,), (8,)), ((4, 4), (8, 8)), ((5, 5), (10, 10)), ((4, 6), (8, 12))]
)
def test_kernels_keep_their_values_and_their_sum(small, large):
    a, b = Lattice(small), Lattice(large)
    kernel = torch.from_numpy(rng(9).normal(size=len(representatives(a))))
    moved = travel_kernel(kernel, a, b)
    before, after = dense(kernel, a), dense(moved, b)
    for d in b.coordinates:
        folded = np.minimum(d, np.array(large) - d)
        if (folded < np.array(small) / 2).all():
            assert after[tuple(d)] == before[tuple(folded)]
        elif (folded > np.array(small) / 2).any():
            assert after[tuple(d)] == 0
    assert after.sum() == pytest.approx(before.sum())
    # and back: what the smaller lattice sees of its own kernel
    torch.testing.assert_close(travel_kernel(moved, b, a), kernel)


def test_spectrum_of_a_free_field_goes_on_to_a_larger_lattice():
    a, b = Lattice((8, 8)), Lattice((16, 16))
    log_amplitude = {L: -0.5 * np.log(2 * (L.khat2 + 1.0)) for L in (a, b)}
    values = {}
    for lattice, grid in log_amplitude.items():
        values[lattice] = torch.zeros(len(representatives(lattice)), dtype=torch.float64)
        values[lattice][lattice.displacement_orbits.ravel()] = torch.from_numpy(grid.ravel())
    moved = travel_spectrum(values[a], a, b)
    assert float((moved - values[b]).abs().max()) < 0.1  # linear interpolation of a smooth function
    at = b.displacement_orbits[::2, ::2].ravel()
    torch.testing.assert_close(moved[at], values[a][a.displacement_orbits.ravel()])


@pytest.mark.parametrize("spec", [Continuous(steps=3), Split(layers=2), Affine(layers=2, hidden=(3,))])
def test_a_flow_goes_on_on_a_larger_lattice(spec):
    """Same lattice: the same flow. Larger: the same kernels, and what it does to a constant field stays."""
    small = scramble(spec.build(Lattice((4, 4)), 1), 10, scale=0.05)
    same, large = (spec.build(Lattice(shape), 2).double() for shape in [(4, 4), (8, 8)])
    same.adopt(small)
    noise = small.noise(2, rng(11))
    assert all(torch.equal(p, q) for p, q in zip(small.push(noise), same.push(noise)))
    large.adopt(small)
    level = torch.full((1, 4, 4), 0.3, dtype=torch.float64)
    for one, other in zip(small.layers, large.layers):
        y, log_det = one(level)
        z, log_det_large = other(torch.full((1, 8, 8), 0.3, dtype=torch.float64))
        if isinstance(spec, Affine):
            torch.testing.assert_close(z[0, :4, :4], y[0])
        else:
            torch.testing.assert_close((z[0, :4, :4], log_det_large), (y[0], 4 * log_det))


def test_a_flow_of_another_kind_is_not_adopted():
    flow = Split(layers=2).build(Lattice((4, 4)), 1)
    with pytest.raises(InputError, match="expected the same kinds"):
        flow.adopt(Continuous().build(Lattice((4, 4)), 1))
    with pytest.raises(InputError, match="1 and 2 dimensions"):
        flow.adopt(Split(layers=2).build(Lattice((4,)), 1))
    with pytest.raises(InputError, match="do not fit"):
        flow.adopt(Split(layers=2, sines=3).build(Lattice((4, 4)), 1))
    with pytest.raises(InputError, match="do not fit"):  # one number would spread over many
        Continuous(sines=4, modes=5).build(Lattice((4, 4)), 1).adopt(
            Continuous(sines=0, modes=1).build(Lattice((4, 4)), 1)
        )
