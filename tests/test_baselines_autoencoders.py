"""Autoencoders: what the optimum is where it is known, shapes on every kind of target, and starts from a seed alone."""

import copy

import numpy as np
import pytest
import torch
from baseline_data import FREE, TARGETS, train_on
from tables import field, rng

from latticeflow.baselines import models
from latticeflow.baselines.autoencoders import Autoencoder, DenoisingAutoencoder, GaussianAutoencoder
from latticeflow.baselines.coordinates import coordinates
from latticeflow.baselines.networks import Double, Halve, decoder_net, encoder_net
from latticeflow.errors import InputError, NumericalError
from latticeflow.targets import Camel, FreeField, Phi4, Wilson

torch.set_num_threads(1)


def configurations(target, n=40):
    if target.measure == "hypercube":
        return torch.from_numpy(rng(161).uniform(size=(n, target.dim)))
    return field(target.event_shape, 161, n=n)


def test_denoising_a_gaussian_is_the_wiener_filter():
    """`r(v) = C (C + s^2)^{-1} v`: of the free field momentum by momentum, `G(k) / (G(k) + s^2)`, G in units of the data's

    variance; an autoencoder without noise keeps all modes alike.
    """
    s, x = 0.7, FREE.sample(16384, rng(162))
    noisy = train_on(x, DenoisingAutoencoder(FREE, 16, (), s, rng(163)), 1500, 0.01, batch=1024)
    plain = train_on(x, Autoencoder(FREE, 16, (), rng(163)), 800, 0.02, batch=512)
    power = FREE.spectrum / float(noisy.scale[0, 0, 0]) ** 2
    wanted = power / (power + s**2)

    def response(model) -> np.ndarray:
        """<v_k* r(v)_k> / <|v_k|^2> of the network's linear map, from the images of unit fields."""
        with torch.no_grad():
            unit = torch.eye(16, dtype=torch.float64).view(16, 1, 4, 4)
            bias = model.decoder(model.encoder(torch.zeros_like(unit[:1])))
            matrix = (model.decoder(model.encoder(unit)) - bias).view(16, 16).T
        waves = torch.fft.ifft2(torch.eye(16, dtype=torch.complex128).view(16, 4, 4), norm="ortho").view(
            16, 16
        )
        return (waves.conj() @ matrix.to(torch.complex128) @ waves.T).diagonal().real.view(4, 4).numpy()

    found = response(noisy)
    assert np.abs(found - wanted).max() < 0.03, found - wanted
    assert np.ptp(wanted) > 0.3
    assert np.abs(response(plain) - 1).max() < 0.03


def test_reconstruction_error_is_in_units_of_the_variance():
    """A decoder that knows nothing but the mean has error 1."""
    x = FREE.sample(500, rng(164))
    model = Autoencoder(FREE, 4, (8,), rng(165)).double()
    model.begin([x[:300], x[300:]])
    with torch.no_grad():
        for p in model.decoder.parameters():
            p.zero_()
        assert abs(float(model.error(x).mean()) - 1) < 1e-12
        assert torch.allclose(model.reconstruct(x), x.mean().expand_as(x))


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"{t.kind}{t.event_shape}")
@pytest.mark.parametrize(
    "kind",
    ["autoencoder", "denoising_autoencoder", "gaussian_autoencoder", "vae", "pca", "linear_autoencoder"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_model_on_every_kind_of_target(kind, target, dtype):
    """Shapes, precisions, gradients of all parameters, and draws in the space of fields; twice the same from one seed."""
    hidden = {} if kind in ("pca", "linear_autoencoder") else {"hidden": (4, 6)}
    spec = models.parse({"kind": kind, "latent": 3, **hidden})
    model, again = (spec.build(target, 7).to(dtype) for _ in range(2))
    x = configurations(target).to(dtype)
    model.begin([x[:10], x[10:]])
    again.begin([x[:10], x[10:]])
    for player, parameters in model.players().items():
        loss = model.loss(player, x, rng(166))
        assert loss.shape == () and torch.equal(loss, again.loss(player, x, rng(166)))
        gradients = torch.autograd.grad(loss, parameters)
        assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in gradients)
    with torch.no_grad():
        assert model.encode(x).shape == (40, 3) and model.error(x).shape == (40,)
        back = model.reconstruct(x)
    assert back.shape == x.shape and back.dtype == dtype
    assert all(np.isfinite(value) for value in model.report(x, rng(167)).values())
    if model.generates:
        model.finish([x])
        again.finish([x])
        draws = model.sample(5, rng(168))
        target.check_field(draws)
        assert draws.shape == (5, *target.event_shape) and torch.equal(draws, again.sample(5, rng(168)))


def test_parts_of_the_lattice_become_channels_and_come_back():
    for shape in ((4,), (4, 6), (2, 4, 6), (2, 2, 4, 6)):
        x = field((3, *shape), 169)
        halved = Halve()(x)
        assert halved.shape == (3, 3 << len(shape), *(side // 2 for side in shape))
        assert torch.equal(Double()(halved), x)
    y = Halve()(torch.arange(16.0).view(1, 1, 4, 4))
    assert y[0, :, 0, 0].tolist() == [0, 1, 4, 5]  # one block of 2 x 2 sites


def test_convolutions_are_circular():
    """A shift by a whole block commutes with the convolutional part of the encoder; padding with zeros would not."""
    at = coordinates(Phi4(shape=(8, 8), m2=-4.0, lam=8.0))
    net = encoder_net(at, 3, (4, 5), rng(170)).double()
    convolutions = net[:-2]
    x = field((1, 8, 8), 171)
    moved = convolutions(torch.roll(x, (4, -4), dims=(2, 3)))
    assert torch.allclose(moved, torch.roll(convolutions(x), (1, -1), dims=(2, 3)), atol=1e-12)
    assert decoder_net(at, 3, (4, 5), rng(170)).double()(net(x)).shape == x.shape


def test_coordinates_have_their_log_det():
    """Of the cube by autograd; of fields y is x."""
    target = Camel(dimensions=3)
    at, u = coordinates(target), torch.from_numpy(rng(172).uniform(size=(6, 3)))
    for i, one in enumerate(u):
        jacobian = torch.autograd.functional.jacobian(lambda v: at(v[None])[0], one)
        assert abs(float(jacobian.det().abs().log()) - float(at.log_det(u)[i])) < 1e-10
    edge = torch.tensor([[0.0, 1.0, 0.5]])
    assert torch.isfinite(at(edge)).all() and torch.allclose(at.inverse(at(edge)), edge, atol=1e-7)


def test_what_cannot_be_is_an_input_error():
    x = FREE.sample(50, rng(173))
    with pytest.raises(InputError, match="neither a scalar field, nor angles"):
        Autoencoder(Wilson(shape=(2, 2), group="su2", beta=2.0), 2, (4,), rng(1))
    plain = Autoencoder(FREE, 2, (4,), rng(1)).double()
    with pytest.raises(InputError, match="generates nothing"):
        plain.sample(3, rng(1))
    with pytest.raises(InputError, match="has no density"):
        plain.log_q(x, rng(1), 4)
    naive = GaussianAutoencoder(FREE, 2, (4,), rng(1)).double()
    with pytest.raises(InputError, match="fitted after the last step"):
        naive.sample(3, rng(1))
    dead = copy.deepcopy(naive)
    with torch.no_grad():
        for p in dead.encoder.parameters():
            p.zero_()
    with pytest.raises(NumericalError, match="do not vary"):
        dead.finish([x])
    with pytest.raises(InputError, match="did you mean 'vae'"):
        models.parse({"kind": "va", "latent": 3})
    with pytest.raises(InputError, match="expected 1 to 9"):
        models.parse({"kind": "vae", "latent": 10}).build(FreeField(shape=(3, 3), m2=1.0), 1)
