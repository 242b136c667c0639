"""Models off the CPU without a GPU: on torch's `meta` device, which computes shapes alone and refuses other tensors."""

import pytest
import torch
from tables import rng

from latticeflow.baselines import models
from latticeflow.targets import Camel, Phi4, Wilson

torch.set_num_threads(1)
TARGETS = [
    Phi4(shape=(4, 4), m2=-1.0, lam=1.0),
    Wilson(shape=(4, 4), group="u1", beta=2.0),
    Camel(dimensions=3),
]
KINDS = [
    {"kind": "wgan", "noise": 4},
    {"kind": "gan", "noise": 4},
    {"kind": "gan", "noise": 4, "loss": "minimax"},
    *(
        {"kind": kind, "latent": 3}
        for kind in ("vae", "autoencoder", "denoising_autoencoder", "linear_autoencoder")
    ),
]


def everything(model, target) -> None:
    x = torch.empty(6, *target.event_shape, dtype=torch.float64, device="meta")
    for player, own in model.players().items():
        loss = model.loss_at(target, player, x, rng(1))
        assert loss.is_meta and loss.shape == ()
        torch.autograd.grad(loss, own, allow_unused=True)
    if model.generates:
        draws = model.sample(4, rng(2))
        assert draws.is_meta and draws.shape == (4, *target.event_shape)
    if model.density == "bound":
        value, error = model.log_q(x, rng(3), 20)
        assert value.is_meta and value.shape == error.shape == (6,)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.kind)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind["kind"] + kind.get("loss", ""))
def test_no_tensor_is_left_on_the_cpu(kind, target):
    model = models.parse(kind).build(target, 1).to("meta")
    everything(model, target)
    if target.kind == "phi4":
        family = {"kind": "conditional", "model": kind, "range": {"m2": (-2.0, 1.0)}, "degree": 1}
        model = models.parse(family).build(target, 1).to("meta")
        everything(model.at(target), target)
        for player in model.players():
            assert model.loss_at(target, player, torch.empty(6, 4, 4, device="meta"), rng(1)).is_meta


def test_a_tensor_on_the_cpu_is_found():
    """Negative control: noise made on the CPU."""
    model = models.parse(KINDS[0]).build(TARGETS[0], 1).to("meta")
    model.noise = lambda shape, rng: torch.zeros(shape)
    with pytest.raises(RuntimeError, match="device"):
        everything(model, TARGETS[0])
