"""Every flow: exact density, symmetry where promised, gradients everywhere, save and load."""

import pytest
import torch
from tables import FLOWS, field, harmonic_map, harmonic_map_inverse, rng, scramble
from torch import nn

from latticeflow.errors import InputError
from latticeflow.flows import Flow, Spectrum, Split, Tutorial, WhiteNoise, flows
from latticeflow.flows.flow import Layer
from latticeflow.lattice import Lattice
from latticeflow.statistics.weights import summarise_weights
from latticeflow.targets import FreeField

ALL = [
    pytest.param(spec, shape, z2, id=f"{kind}-{shape}-{i}")
    for kind, rows in FLOWS.items()
    for i, (spec, shape, z2) in enumerate(rows)
]


def build(spec, shape, scale=0.15) -> Flow:
    return scramble(spec.build(Lattice(shape), 1), 21, scale=scale)


def test_every_registered_flow_has_a_row():
    # no density at given x, by which rows are tested (test_stochastic, test_conditional), or no scalars,
    # or no lattice (test_cube_flows)
    others = {
        "plaquettes",
        "loops",
        "trivializing",
        "gauge_coupling",
        "stochastic",
        "stochastic_gauge",
        "conditional",
        "spline",
        "spline_autoregressive",
    }
    assert set(flows.classes) == set(FLOWS) | others


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_push_and_log_prob_agree(spec, shape, z2):
    flow = build(spec, shape)
    x, log_q = flow.sample(8, rng(22))
    assert x.shape == (8, *shape) and log_q.dtype == torch.float64
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_score_is_the_gradient_of_log_prob(spec, shape, z2):
    flow = build(spec, shape)
    noise = flow.noise(3, rng(23))
    x, log_q, score = flow.push_with_score(noise)
    torch.testing.assert_close((x, log_q), flow.push(noise))
    end = x.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(flow.log_prob(end).sum(), end)
    # a solver in steps carries the score to its own order, not to rounding
    tolerance = 1e-4 if flow.approximate else 1e-8
    torch.testing.assert_close(score, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_z2_is_exact_where_promised(spec, shape, z2):
    flow = build(spec, shape).float()
    noise = flow.noise(4, rng(24))
    x, log_q = flow.push(noise)
    mirrored, mirrored_log_q = flow.push(-noise)
    if z2:
        assert torch.equal(mirrored, -x) and torch.equal(mirrored_log_q, log_q)
    else:  # negative control: these flows do break it
        assert not torch.allclose(mirrored, -x, atol=1e-3)


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_translations_of_the_partition_commute(spec, shape, z2):
    """Shifting by two sites along any axis maps every mask to itself; one site would not."""
    flow = build(spec, shape)
    noise = flow.noise(2, rng(25))
    x, log_q = flow.push(noise)
    for axis in range(1, 1 + len(shape)):
        y, y_log_q = flow.push(torch.roll(noise, 2, axis))
        torch.testing.assert_close(y, torch.roll(x, 2, axis), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(y_log_q, log_q, rtol=1e-10, atol=1e-10)


def test_split_flow_has_the_reflections_of_the_lattice():
    """Every sublattice is its own mirror image; an exchange of axes exchanges two of them, which are updated in turn."""
    for shape in [(4, 4), (4, 6)]:
        lattice = Lattice(shape)
        flow = build(Split(layers=3), shape)
        noise = flow.noise(2, rng(26))
        x, _ = flow.push(noise)
        for order, flips in lattice.point_group():
            y, _ = flow.push(lattice.transform(noise, order, flips))
            same = torch.allclose(y, lattice.transform(x, order, flips), rtol=1e-10, atol=1e-10)
            assert same == (order == (0, 1))


def test_split_flow_has_as_many_parameters_for_any_number_of_layers():
    one, nine = (Split(layers=n).build(Lattice((4, 4)), 1) for n in (1, 9))
    assert one.parameter_count() == nine.parameter_count()
    nine.adopt(scramble(one))
    assert all(
        torch.equal(a.double(), b)
        for a, b in zip(nine.float().parameters(), one.float().double().parameters())
    )


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_every_parameter_has_a_gradient(spec, shape, z2):
    flow = build(spec, shape)
    x, log_q = flow.push(flow.noise(4, rng(27)))
    (log_q + x.pow(4).flatten(1).sum(1)).mean().backward()
    for name, parameter in flow.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().max() > 0), name


@pytest.mark.parametrize("spec, shape, z2", ALL)
def test_weights_are_those_of_the_seed(spec, shape, z2):
    a, b, c = (spec.build(Lattice(shape), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert any(not torch.equal(a[k], c[k]) for k in a)


class SiteMap(Layer):
    """Only the site-wise part of the split layer: works on a lattice of one site."""

    parameters_of_map = tuple(
        torch.tensor(p).double() for p in (0.3, [[[0.4], [-0.2]]], [[[0.1], [0.05]]], 1.0)
    )

    def forward(self, x):
        return harmonic_map(x, *self.parameters_of_map)

    def inverse(self, y):
        return harmonic_map_inverse(y, *self.parameters_of_map)


class WithoutLogDet(SiteMap):
    def inverse(self, y):
        x, log_det = super().inverse(y)
        return x, torch.zeros_like(log_det)


def integral(flow, sites: int, points: int = 901) -> float:
    """`integral exp(log q)` by the trapezoid rule, exponentially accurate for smooth decaying functions."""
    grid = torch.linspace(-9, 9, points, dtype=torch.float64)
    sites_grid = torch.cartesian_prod(*[grid] * sites).reshape(-1, sites)
    with torch.no_grad():
        return float(flow.log_prob(sites_grid).exp().sum() * (grid[1] - grid[0]) ** sites)


@pytest.mark.parametrize("base", [WhiteNoise, Spectrum])
def test_density_is_normalised_on_one_site(base):
    lattice = Lattice((1,))
    assert integral(scramble(Flow(base(lattice), [SiteMap()])), 1) == pytest.approx(1, abs=1e-8)
    # negative control: the omitted log-det
    assert abs(integral(scramble(Flow(base(lattice), [WithoutLogDet()])), 1) - 1) > 0.01


# points to an axis and the integral's error; where a network's density has kinks it falls as their number squared
GRID = {"split": (121, 1e-10), "continuous": (121, 1e-5)}


@pytest.mark.parametrize("kind", FLOWS)
def test_density_is_normalised_on_two_sites(kind):
    spec = FLOWS[kind][0][0]
    flow = build(spec.model_copy(update={"layers": 2}) if "layers" in type(spec).model_fields else spec, (2,))
    points, allowed = GRID.get(kind, (181, 5e-5))
    assert integral(flow, 2, points) == pytest.approx(1, abs=allowed)


def test_tutorial_flow_is_that_of_2101_08176():
    """16 layers, 12,960 parameters; and the notebook's own formula, written here with torch.nn.Conv2d."""
    assert Tutorial().build(Lattice((8, 8)), 1).parameter_count() == 12_960
    flow = Tutorial().build(Lattice((8, 8)), 1)
    assert len(flow.layers) == 16
    z = flow.noise(4, rng(28))
    x, log_q = flow.push(z)

    y = z.clone()
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(z.double()).flatten(1).sum(1)
    for i, layer in enumerate(flow.layers):
        net = []
        ours = [m for m in layer.net if hasattr(m, "weight")]
        for j, conv in enumerate(ours):
            theirs = nn.Conv2d(*conv.weight.shape[1::-1], 3, padding=1, padding_mode="circular")
            theirs.weight.data, theirs.bias.data = conv.weight.data, conv.bias.data
            net += [theirs, nn.LeakyReLU() if j < len(ours) - 1 else nn.Tanh()]
        parity = i % 2
        mask = torch.ones(8, 8) - parity
        mask[::2, ::2] = parity
        mask[1::2, 1::2] = parity
        s, t = nn.Sequential(*net)((mask * y).unsqueeze(1)).unbind(1)
        y = (1 - mask) * t + (1 - mask) * y * s.exp() + mask * y
        expected = expected - ((1 - mask) * s).sum((1, 2))
    torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_q, expected.double(), rtol=1e-5, atol=1e-4)


def test_spectrum_set_analytically_is_the_free_field():
    """ESS = 1 to 1e-10 and log Z to 1e-8, in float64; a wrong m2 must not pass."""
    free = FreeField(shape=(8, 8), m2=1.0)
    flow = Flow(Spectrum(free.lattice, 3.0), []).double()
    for m2, exact in [(3.0, False), (1.0, True)]:
        flow.base.set_free_field(m2)
        with torch.no_grad():
            x, log_q = flow.sample(16384, rng(29))
        summary = summarise_weights((free.log_prob(x) - log_q).numpy())
        assert (abs(summary.ess - 1) < 1e-10) == exact
        assert (abs(summary.log_z - -11.6228852573) < 1e-8) == exact


def test_float32_log_q_is_close_to_float64():
    flow = build(FLOWS["split"][0][0], (4, 4))
    noise = flow.noise(64, rng(30))
    _, log_q = flow.push(noise)
    _, log_q_32 = flow.float().push(noise.float())
    assert float((log_q - log_q_32).detach().abs().max()) < 2e-5


@pytest.mark.parametrize(
    "spec, shape, message",
    [
        (Split(), (5, 5), "even sides"),
        (Tutorial(), (4, 3), "even sides"),
    ],
)
def test_flows_that_do_not_fit_the_lattice(spec, shape, message):
    with pytest.raises(InputError, match=message):
        spec.build(Lattice(shape), 1)


def test_bad_settings():
    with pytest.raises(InputError, match="did you mean 'layers'"):
        Split(layer=3)
    with pytest.raises(InputError, match="layers"):
        Split(layers=0)
    with pytest.raises(InputError, match=r"m2 = -1\.0: expected m2 > 0"):
        Split(base_m2=-1.0).build(Lattice((4, 4)), 1)


def test_gaussian_base_density():
    """`log r` of the spectrum base against a multivariate normal with the explicit covariance."""
    lattice = Lattice((3, 4))
    base = scramble(Spectrum(lattice, 0.5), 31)
    z = field((3, 4), 32)
    amplitude = base.log_amplitude.detach().exp()
    columns = torch.eye(12, dtype=torch.float64).reshape(12, 3, 4)
    root = torch.fft.ifftn(torch.fft.fftn(columns, dim=(1, 2)) * amplitude, dim=(1, 2)).real.reshape(12, 12)
    normal = torch.distributions.MultivariateNormal(torch.zeros(12, dtype=torch.float64), root @ root.T)
    torch.testing.assert_close(base.log_prob(z).detach(), normal.log_prob(z.flatten(1)))
