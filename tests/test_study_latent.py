"""Latent paths against closed forms: quadratic actions of the free field, lengths on the sphere, exact Gaussian flows."""

import math

import numpy as np
import pytest
import torch
from tables import rng

from latticeflow.baselines.autoencoders import Autoencoder
from latticeflow.baselines.base import models
from latticeflow.baselines.pca import Pca
from latticeflow.errors import InputError
from latticeflow.flows import Flow, Split, Symmetrised
from latticeflow.flows.base import Spectrum
from latticeflow.flows.plaquettes import Plaquettes
from latticeflow.flows.spline import AutoregressiveSpline
from latticeflow.flows.stochastic import Stochastic
from latticeflow.studies.latent import MIXES, Space, circular, crossing, path, plot, spherical, straight
from latticeflow.targets import Camel, FreeField, Phi4, Wilson

torch.set_num_threads(1)
TARGET = FreeField(shape=(4, 4), m2=0.5)
PHI4 = Phi4(shape=(4, 4), m2=-4.0, lam=5.0)
V = 16


def kernel(m2: float) -> np.ndarray:
    """K of `S = phi.K.phi` on 4x4, written down site by site."""
    k = np.zeros((V, V))
    for i in range(4):
        for j in range(4):
            k[4 * i + j, 4 * i + j] += 4 + m2
            for other in ((i + 1) % 4 * 4 + j, (i - 1) % 4 * 4 + j, 4 * i + (j + 1) % 4, 4 * i + (j - 1) % 4):
                k[4 * i + j, other] -= 1
    return k


def ends(n: int, key: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return TARGET.sample(n, rng(801, key)), TARGET.sample(n, rng(802, key))


def exact_flow(m2: float = 0.5) -> Flow:
    """Gaussian of the free field of mass m2: exact at 0.5."""
    flow = Flow(Spectrum(TARGET.lattice), []).double()
    flow.base.set_free_field(m2)  # after `double`: to all digits
    return flow


def perturbed(flow: Flow, size: float = 0.05) -> Flow:
    """In float64, with all parameters moved at random: a flow that is no identity."""
    generator = rng(803)
    with torch.no_grad():
        for p in flow.double().parameters():
            p += size * torch.from_numpy(generator.normal(size=tuple(p.shape)))
    return flow


def whole_pca(kept: int = V) -> Pca:
    model = Pca(TARGET, kept).double()
    model.begin([TARGET.sample(2000, rng(804))])
    return model


def test_straight_through_a_linear_map_is_the_line_in_field_space():
    """S(t) = (1-t)^2 a.K.a + t^2 b.K.b + 2 t (1-t) a.K.b by PCA of full rank; with components left out it is not."""
    a, b = ends(50)
    found = path(TARGET, Space.of(whole_pca()), straight, a, b, points=9)
    k, x, y = kernel(0.5), a.flatten(1).numpy(), b.flatten(1).numpy()
    t = found.t[:, None]
    aa, bb, ab = (np.einsum("ni,ij,nj->n", p, k, q) for p, q in ((x, x), (y, y), (x, y)))
    exact = (1 - t) ** 2 * aa + t**2 * bb + 2 * t * (1 - t) * ab
    assert np.allclose(found.action, exact, rtol=0, atol=1e-10)
    assert np.allclose(
        path(TARGET, Space.fields(), straight, a, b, points=9).action, exact, rtol=0, atol=1e-10
    )
    assert found.missed.max() < 1e-12
    assert np.allclose(found.barrier, exact.max(0) - np.maximum(aa, bb))
    less = path(TARGET, Space.of(whole_pca(8)), straight, a, b, points=9)
    assert np.abs(less.action - exact).max() > 0.1


def test_what_the_ends_miss_is_the_reconstruction():
    a, b = ends(20)
    for model in (whole_pca(8), Autoencoder(TARGET, 3, (4,), rng(805)).double()):
        found = path(TARGET, Space.of(model), spherical, a, b)
        for got, x in zip(found.missed, (a, b)):
            mse = model.error(x).detach() * model.scale.flatten()[0] ** 2
            assert np.allclose(got**2, mse.numpy()) and got.min() > 0.01


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(
    "spec",
    [
        Split(layers=2, sines=2, site_sines=2, psi_sines=2, modes=2),
        Split(layers=2, sines=2, site_sines=2, psi_sines=2, modes=2, base="mean_field"),
        Symmetrised(flow=Split(layers=2, sines=2, site_sines=2, psi_sines=2, modes=2)),
    ],
    ids=["split", "mean_field", "symmetrised"],
)
def test_a_flow_reproduces_the_ends(spec, mix):
    flow = perturbed(spec.build(TARGET.lattice, 1))
    a, b = ends(20)
    found = path(PHI4, Space.of(flow), MIXES[mix], a, b, points=5)
    assert found.missed.max() < 1e-9
    assert np.allclose(found.action[[0, -1]], -np.stack([PHI4.log_prob(x) for x in (a, b)]), atol=1e-7)
    middle = path(PHI4, Space.fields(), MIXES[mix], a, b, points=5)
    assert np.abs(found.action[2] - middle.action[2]).max() > 0.01  # the flow is no linear map


def test_white_noise_of_flows_is_white():
    """The latent numbers of a flow's draws are the noise that they were drawn from."""
    for spec in (Split(base="mean_field", layers=2), Split(layers=2)):
        flow = perturbed(spec.build(TARGET.lattice, 2))
        noise = flow.noise(50, rng(806))
        z = Space.of(flow).encode(flow.push(noise)[0])
        assert torch.allclose(z, noise, atol=1e-8)


def white_action(p, q, one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """|p z_a + q z_b|^2 / 2 by lengths and angle: the action of the exact Gaussian flow."""
    dot = (one * two).sum(1)
    return 0.5 * (p**2 * (one**2).sum(1) + q**2 * (two**2).sum(1) + 2 * p * q * dot)


def test_the_exact_flow():
    """S = |z|^2 / 2: by pairs for each mix, and constant on a sphere."""
    flow = exact_flow()
    a, b = ends(40)
    space = Space.of(flow)
    z = [space.encode(x).detach().flatten(1).numpy() for x in (a, b)]
    w = np.arccos((z[0] * z[1]).sum(1) / np.sqrt((z[0] ** 2).sum(1) * (z[1] ** 2).sum(1)))
    factors = {
        "straight": lambda t: (1 - t, t),
        "circular": lambda t: (math.cos(math.pi * t / 2), math.sin(math.pi * t / 2)),
        "spherical": lambda t: (np.sin((1 - t) * w) / np.sin(w), np.sin(t * w) / np.sin(w)),
    }
    for name, mix in MIXES.items():
        found = path(TARGET, space, mix, a, b, 6)
        exact = [white_action(*factors[name](t), *z) for t in found.t]
        assert np.allclose(found.action, exact, rtol=0, atol=1e-9), name
    # one length: from a on the sphere to b, the action stays
    same = space.decode(
        space.encode(b) * torch.from_numpy(np.sqrt((z[0] ** 2).sum(1) / (z[1] ** 2).sum(1)))[:, None, None]
    )
    flat = path(TARGET, space, spherical, a, same).action
    assert np.ptp(flat, axis=0).max() < 1e-9
    assert np.ptp(path(TARGET, space, straight, a, same).action, axis=0).min() > 0.1


def test_circular_paths_of_an_exact_flow_keep_the_mean_action():
    """<S(t)> = V / 2 at every t; straight ones have V/2 ((1-t)^2 + t^2), and a flow of another mass leaves V/2, too."""
    a, b = ends(4000)
    exact = Space.of(exact_flow())
    keeps = path(TARGET, exact, circular, a, b, 9)
    assert (np.abs(keeps.mean - V / 2) < 4 * keeps.error).all()
    leaves = path(TARGET, exact, straight, a, b, 9)
    assert (np.abs(leaves.mean - V / 2 * ((1 - leaves.t) ** 2 + leaves.t**2)) < 4 * leaves.error).all()
    assert abs(leaves.mean[4] - V / 2) > 20 * leaves.error[4]
    # independent ends that the wrong flow takes for its own: draws of it
    wrong = exact_flow(2.0)
    x, y = (wrong.sample(4000, rng(807, i))[0] for i in (1, 2))
    off = path(TARGET, Space.of(wrong), circular, x, y, 9)
    own = 0.5 * ((TARGET.lattice.khat2 + 0.5) / (TARGET.lattice.khat2 + 2.0)).sum()
    assert (np.abs(off.mean - own) < 4 * off.error).all() and (
        np.abs(off.mean - V / 2) > 20 * off.error
    ).all()


def test_crossing():
    """The line from a to -c a meets 0 at t = 1 / (1 + c), where S = 0; a grid steps over a narrow barrier, this does not."""
    a = TARGET.sample(20, rng(809)).abs() + 0.1
    c = torch.from_numpy(rng(810).uniform(0.5, 2, size=20))
    mean = lambda x: x.mean((1, 2))  # noqa: E731
    found = crossing(TARGET, Space.fields(), straight, a, -c[:, None, None] * a, mean)
    assert np.allclose(found.t, 1 / (1 + c.numpy()), atol=1e-12)
    assert found.action.max() < 1e-12 and found.order.max() < 1e-12

    # a latent space in which phi = 0 takes 1e-9 of the way: x = sign(z) |z|^(1/9) on every site
    narrow = Space(lambda x: x.sign() * x.abs() ** 9, lambda z: z.sign() * z.abs() ** (1 / 9))
    b = -TARGET.sample(20, rng(811)).abs() - 0.1
    ones = torch.ones_like(a)
    double_well = Phi4(shape=(4, 4), m2=-4.0, lam=2.0)  # S = 16 (-4 + 2) = -32 at +-1, 0 between
    coarse = path(double_well, narrow, straight, 0.9 * ones, -ones, 33)
    fine = crossing(double_well, narrow, straight, 0.9 * ones, -ones, mean)
    assert coarse.action.max() < -10 and np.abs(fine.action).max() < 0.1 and fine.order.max() < 0.05
    with pytest.raises(InputError, match="expected pairs"):
        crossing(TARGET, narrow, straight, a, b[:1], mean)
    with pytest.raises(InputError, match="20 of 20"):
        crossing(TARGET, narrow, straight, -a, b, mean)


def test_mixes_at_special_angles():
    a = torch.from_numpy(rng(808).normal(size=(3, 5)))
    for t in (0.0, 0.3, 1.0):
        assert torch.allclose(spherical(a, a, t), a, atol=1e-12)
        assert torch.allclose(spherical(a, 2 * a, t), straight(a, 2 * a, t), atol=1e-12)
    east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert torch.allclose(spherical(east, north, 1 / 3), torch.tensor([[math.cos(math.pi / 6), 0.5]]))
    assert torch.allclose(circular(east, north, 1 / 3), spherical(east, north, 1 / 3))
    with pytest.raises(InputError, match="opposite"):
        spherical(a, -2 * a, 0.5)


def test_bands():
    """Mean and quantiles over pairs are those of the action's own distribution at the ends, |z|^2 / 2 ~ Gamma(V/2)."""
    from scipy import stats

    found = path(TARGET, Space.fields(), straight, *ends(4000), points=3)
    for end in (0, 2):
        for got, share in zip(found.band[:, end], (0.16, 0.5, 0.84)):
            assert abs(stats.gamma.cdf(got, V / 2) - share) < 4 * math.sqrt(share * (1 - share) / 4000)
    assert found.error[0] == pytest.approx(math.sqrt(V / 2 / 4000), rel=0.1)
    assert (found.barrier >= 0).all()


def test_refusals():
    a, b = ends(4)
    for args, points in (((a, b[:3]), 5), ((a[:1], b[:1]), 5), ((a, b), 1)):
        with pytest.raises(InputError, match="two"):
            path(TARGET, Space.fields(), straight, *args, points=points)
    with pytest.raises(InputError, match="NaN"):
        path(TARGET, Space.fields(), straight, a, b * math.nan)
    gan = models.parse({"kind": "gan"}).build(TARGET, 1)
    with pytest.raises(InputError, match="encode"):
        Space.of(gan)
    for spec, target in (
        (Stochastic(layers=2), PHI4),
        (AutoregressiveSpline(), Camel(dimensions=2)),
        (Plaquettes(), Wilson(shape=(4, 4), group="u1", beta=1.0)),
    ):
        with pytest.raises(InputError, match="white noise"):
            Space.of(spec.build_for(target, 1))


def test_plot():
    pytest.importorskip("matplotlib")
    found = path(TARGET, Space.fields(), straight, *ends(10))
    assert plot({"pairs": {"line": found}}, np.arange(10.0)).startswith(b"\x89PNG")
    assert plot({"one": {"line": found}, "two": {"line": found, "again": found}}).startswith(b"\x89PNG")
