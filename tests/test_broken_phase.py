"""Two wells, against four-dimensional quadrature: flows that hold both, one that dropped a well, and who notices."""

import numpy as np
import pytest
import torch
from reference import two_by_two
from tables import rng

from latticeflow.analysis.forward import Forward, log_weights_at
from latticeflow.config import Deck
from latticeflow.flows import Affine, Split, Symmetrised, SymmetrisedFlow
from latticeflow.lattice import Lattice
from latticeflow.random import Purpose, stream
from latticeflow.samplers import FlowSampler, HMCSpec
from latticeflow.statistics import forward_weights, summarise_weights
from latticeflow.targets import Phi4
from latticeflow.training import TrainSettings, train

torch.set_num_threads(1)
M2, LAM = -4.0, 1.2  # 2x2: wells at +-1.29, barrier exp(-13)
TARGET = Phi4(shape=(2, 2), m2=M2, lam=LAM)
EXACT = two_by_two(M2, LAM, edge=2.6)
N = 16_384


def trained(spec, steps, start=lambda flow: None):
    flow = spec.build(TARGET.lattice, 1)
    start(flow)
    settings = TrainSettings(steps=steps, lr=5e-3, warmup=20, evaluate_every=10_000, evaluate_draws=1024)
    train(flow, TARGET, settings, seed=1)
    return flow


@pytest.fixture(scope="module")
def configurations():
    """`[128 chains, 64 steps, 2, 2]` of HMC from hot starts: chains in both wells."""
    hmc = HMCSpec(chains=128, block=128, thermalisation=100).build(TARGET)
    state = hmc.start(0, stream(3, Purpose.START, 0))
    x = hmc.draw(state, 128 * 64, stream(3, Purpose.DRAW, 0))[0].x.view(64, 128, 2, 2).transpose(0, 1)
    up = float((x[:, 0].flatten(1).sum(1) > 0).double().mean())
    assert 0.3 < up < 0.7
    return x


@pytest.fixture(scope="module")
def one_well():
    """An affine flow, not odd, that begins in one well and stays there."""

    def shift(flow):
        for layer in flow.layers[-2:]:
            layer.net[-2].bias.data[1] = 2.0  # t = tanh(2) on either parity

    flow = trained(Affine(layers=6), 120, shift)
    m = flow.sample(2048, rng(81))[0].flatten(1).mean(1)
    assert max(float((m > 0).double().mean()), float((m < 0).double().mean())) > 0.99
    return flow


def judge(flow, configurations) -> tuple[Forward, np.ndarray, np.ndarray]:
    sampler = FlowSampler(TARGET, flow)
    draws, _ = sampler.draw(None, N, stream(4, Purpose.DRAW))
    log_w = log_weights_at(sampler, configurations.flatten(0, 1)).reshape(configurations.shape[:2])
    found = Forward("flow", "hmc", summarise_weights(draws.log_w), forward_weights(log_w))
    return found, draws.x.double().flatten(1).mean(1).numpy(), draws.log_w


def require_exact(found: Forward, m, log_w):
    """log Z in both directions and <|m|> by reweighting within 4 sigma of quadrature, and the two ESS of each other."""
    for one in (found.reverse, found.forward):
        assert abs(one.log_z - EXACT["log_z"]) < 4 * one.log_z_error
        assert one.log_z_error < 0.02
    assert found.agree
    w = np.exp(log_w - found.reverse.log_z)
    abs_m = (w * abs(m)).mean() / w.mean()
    error = np.std(w * (abs(m) - abs_m)) / N**0.5
    assert abs(abs_m - EXACT["abs_m"]) < 4 * error and error < 0.005


def test_mean_field_base_holds_both_wells(configurations):
    """The split flow on the mean-field base; shares of the wells within 4 sigma of a half."""
    flow = trained(Split(layers=3, base="mean_field"), 150, lambda flow: flow.base.set_wells(1.29))
    found, m, log_w = judge(flow, configurations)
    require_exact(found, m, log_w)
    assert found.reverse.ess > 0.8
    assert abs((m > 0).mean() - 0.5) < 4 * 0.5 / N**0.5


def test_mean_field_base_learns_wells_faster():
    """After the same steps from a start in the wells, ESS is well above that of the spectrum base."""
    with_wells = trained(Split(layers=2, base="mean_field"), 60, lambda flow: flow.base.set_wells(1.29))
    without = trained(Split(layers=2), 60)
    ess = []
    for flow in (with_wells, without):
        draws, _ = FlowSampler(TARGET, flow).draw(None, N, stream(5, Purpose.DRAW))
        ess.append(summarise_weights(draws.log_w).ess)
    assert ess[0] > 0.6 and ess[0] > ess[1] + 0.2


def test_a_dropped_well_is_seen_forward(one_well, configurations):
    """Reverse, log Z is off by log 2 and nothing looks wrong; forward, ESS is small and log Z right."""
    found, _, _ = judge(one_well, configurations)
    assert found.reverse.ess > 0.3
    assert abs(found.reverse.log_z - EXACT["log_z"]) > 0.5
    assert found.forward.ess < 0.1 * found.reverse.ess
    assert abs(found.forward.log_z - EXACT["log_z"]) < 4 * found.forward.log_z_error
    assert not found.agree and "MODE DROPPED" in found.lines()[-1]


def test_symmetrised_it_holds_both(one_well, configurations):
    """The same weights with a random sign pass what they failed; in float64, log q is that of any x, and so is its score."""
    flow = SymmetrisedFlow.of(one_well)
    require_exact(*judge(flow, configurations))
    flow = flow.double()
    noise = flow.noise(64, rng(82))
    x, log_q, score = flow.push_with_score(noise)
    torch.testing.assert_close(flow.log_prob(x), log_q, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(flow.log_prob(-x), log_q, rtol=1e-10, atol=1e-10)
    end = x.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(flow.log_prob(end).sum(), end)
    torch.testing.assert_close(score, expected, rtol=1e-8, atol=1e-8)
    one_well.float()


def test_weights_of_a_plain_flow_load_into_a_symmetrised_one():
    inner = Affine(layers=2)
    plain, both = inner.build(Lattice((4, 4)), 3), Symmetrised(flow=inner).build(Lattice((4, 4)), 4)
    both.load_state_dict(plain.state_dict())
    x = torch.from_numpy(rng(83).normal(size=(5, 4, 4))).float()
    expected = torch.logaddexp(plain.log_prob(x), plain.log_prob(-x)) - np.log(2)
    torch.testing.assert_close(both.log_prob(x), expected)


def test_a_deck_can_ask_for_both(tmp_path):
    """`base = "mean_field"` and the nested table survive being written and read."""
    deck = Deck.parse(
        {
            "name": "broken",
            "seed": 1,
            "target": {"kind": "phi4", "shape": [4, 4], "m2": -4.0, "lam": 2.5},
            "flow": {"kind": "symmetrised", "flow": {"kind": "affine", "layers": 3, "base": "mean_field"}},
        }
    )
    path = tmp_path / "deck.toml"
    path.write_text(deck.toml())
    again = Deck.read(path)
    assert again == deck and again.flow.flow == Affine(layers=3, base="mean_field")
    assert type(again.flow.build(Lattice((4, 4)), 1)) is SymmetrisedFlow
