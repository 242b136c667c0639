"""Gradient estimators against gradients in closed form, with wrong ones that must fail the same test."""

import numpy as np
import pytest
import torch
from tables import rng, scramble

from latticeflow.flows import Affine, Continuous, Flow, Spectrum, Split, Symmetrised
from latticeflow.flows.gauge_coupling import GaugeCoupling
from latticeflow.lattice import Lattice
from latticeflow.targets import FreeField, Phi4, Wilson
from latticeflow.training.loss import ESTIMATORS, forward, forward_path, forward_score, log_variance, path

torch.set_num_threads(1)
FORWARD = (forward_path, forward_score)
BATCH = 2  # small, so that a wrong normalisation by the batch is seen
N = 1000  # batches


def gaussian(shape, m2: float) -> Flow:
    """The free field of m2 as a flow: its parameters are log A(k)."""
    flow = Flow(Spectrum(Lattice(shape), m2), []).double()
    flow.base.set_free_field(m2)
    return flow


def gradients(estimate, flow: Flow, batches: int) -> torch.Tensor:
    """Gradient that `estimate(b)` has in each of `batches` batches, `[batches, parameters]`."""
    rows = []
    for b in range(batches):
        found = torch.autograd.grad(estimate(b)[0], list(flow.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def both_score_functions(flow: Flow, target, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient of log_variance, and the same with `s` by autograd through `log_prob` at fixed x."""

    def by_inverse(_):
        x, log_q = (t.detach() for t in flow.push(noise))
        f = log_q - target.log_prob(x)
        return ((f - f.mean()) * flow.log_prob(x)).sum() / (len(f) - 1), None

    return gradients(lambda _: log_variance(flow, target, noise), flow, 1), gradients(by_inverse, flow, 1)


def pulls(rows: torch.Tensor, exact) -> torch.Tensor:
    """Largest pull of the mean over the parameters."""
    error = rows.std(0) / np.sqrt(len(rows))
    return float(((rows.mean(0) - torch.as_tensor(exact)) / error).abs().max())


def one_site(flow: Flow):
    """Phi4 on one site, S = m2 phi^2 + lam phi^4, and q = N(0, A^2): d KL / d log A = -1 + 2 m2 A^2 + 12 lam A^4."""
    a2 = float((2 * flow.base.log_amplitude.detach()).exp())
    return Phi4(shape=(1,), m2=-1.0, lam=0.7), [-1 + 2 * -1.0 * a2 + 12 * 0.7 * a2**2]


def two_sites(flow: Flow):
    """A free field of spectrum sigma^2: KL = sum_k (A^2/sigma^2 - 1 - log ...) / 2, d KL / d log A = A^2/sigma^2 - 1."""
    target = FreeField(shape=(2,), m2=0.6)
    a2 = (2 * flow.base.log_amplitude.detach()).exp()
    return target, a2 / torch.from_numpy(target.spectrum) - 1


def without_baseline(flow, target, noise):
    """REINFORCE whose f is not centred but whose draws are normalised as if it were."""
    return log_variance(flow, target, noise, total=lambda mean: mean * 0)


def biased(flow, target, noise):
    """The variance divided by the batch and not by batch - 1."""
    surrogate, loss = log_variance(flow, target, noise)
    return surrogate * (len(noise) - 1) / len(noise), loss


def wrong_force(flow, target, noise):
    """The path gradient less its force, times 1.1."""
    x, _, score = flow.push_with_score(noise)
    return ((score - 1.1 * target.force(x.detach())) * x).sum() / len(noise), None


@pytest.mark.parametrize("case", [one_site, two_sites])
@pytest.mark.parametrize("estimator", list(ESTIMATORS))
def test_the_mean_is_the_gradient_in_closed_form(case, estimator):
    """4 sigma, away from the optimum."""
    flow = gaussian((1,) if case is one_site else (2,), 4.0)
    target, exact = case(flow)
    rows = gradients(lambda b: ESTIMATORS[estimator](flow, target, flow.noise(BATCH, rng(51, b))), flow, N)
    assert pulls(rows, exact) < 4


@pytest.mark.parametrize("wrong", [without_baseline, biased, wrong_force])
def test_wrong_estimators_are_found(wrong):
    flow = gaussian((2,), 4.0)
    target, exact = two_sites(flow)
    rows = gradients(lambda b: wrong(flow, target, flow.noise(BATCH, rng(51, b))), flow, N)
    assert pulls(rows, exact) > 5


@pytest.mark.parametrize("forward", [forward_path, forward_score])
def test_the_forward_gradient_in_closed_form(forward):
    """d KL(p || q) / d log A = 1 - sigma^2/A^2, over exact draws; those of another field must fail."""
    flow = gaussian((2,), 4.0)
    target, _ = two_sites(flow)
    a2 = (2 * flow.base.log_amplitude.detach()).exp()
    exact = 1 - torch.from_numpy(target.spectrum) / a2

    def over(field):
        return gradients(lambda b: forward(flow, target, field.sample(BATCH, rng(52, b))), flow, N)

    assert pulls(over(target), exact) < 4
    assert pulls(over(FreeField(shape=(2,), m2=0.8)), exact) > 5


def test_what_vanishes_at_the_optimum_draw_by_draw():
    free = FreeField(shape=(4, 4), m2=0.8)
    flow = gaussian((4, 4), 0.8)
    largest = {
        name: float(gradients(lambda b, e=e: e(flow, free, flow.noise(64, rng(53, b))), flow, 3).abs().max())
        for name, e in ESTIMATORS.items()
    }
    assert largest["path"] < 1e-12 and largest["log_variance"] < 1e-12
    assert largest["reparametrised"] > 1e-2  # negative control: it only averages to zero
    ahead = {
        e: gradients(lambda b, e=e: e(flow, free, free.sample(64, rng(54, b))), flow, 3).abs().max()
        for e in FORWARD
    }
    assert float(ahead[forward_path]) < 1e-12 and float(ahead[forward_score]) > 1e-2
    for e in FORWARD:
        assert float(e(flow, free, free.sample(16, rng(54)))[1]) == pytest.approx(free.log_z, rel=1e-12)


@pytest.mark.parametrize(
    "spec, precision",
    [
        (Split(layers=2, sines=2), 1e-7),
        (Affine(layers=2, hidden=(2,)), 1e-7),
        (Symmetrised(flow=Split(layers=2, sines=2)), 1e-7),
        (
            Continuous(sines=2, modes=2, steps=20, solver="rk6"),
            1e-5,
        ),  # its score is that of the solver's order
    ],
    ids=["split", "affine", "symmetrised", "continuous"],
)
def test_layers_give_the_score_function_without_an_inverse(spec, precision):
    """log_variance of a flow with layers, against `s` by autograd through `log_prob` at fixed x."""
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    flow = scramble(spec.build(Lattice((4, 4)), 1), 55, scale=0.05)
    noise = flow.noise(16, rng(56))

    found, wanted = both_score_functions(flow, target, noise)
    torch.testing.assert_close(found, wanted, rtol=precision, atol=1e-2 * precision)
    other = gradients(lambda _: path(flow, target, noise), flow, 1)
    assert not torch.allclose(other, wanted, rtol=0.1)


def test_the_score_function_of_matrices():
    """log_variance of SU(2): derivatives along the group, against `s` by autograd at fixed x."""
    target = Wilson(shape=(2, 2), group="su2", beta=2.0)
    flow = scramble(
        GaugeCoupling(sweeps=1, hidden=(4,), bins=3).build_for(target, 1), 57, scale=0.05
    ).double()
    noise = flow.noise(8, rng(58))

    found, wanted = both_score_functions(flow, target, noise)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("base", ["white", "spectrum", "mean_field"])
def test_both_forward_gradients_have_the_same_mean(base):
    """5 sigma for each parameter of a flow with layers, on the same configurations; half of one must fail."""
    target = FreeField(shape=(4, 4), m2=0.8)
    flow = scramble(Split(layers=2, sines=2, modes=3, base=base).build(Lattice((4, 4)), 1), 57, scale=0.1)

    def rows(e):
        return gradients(lambda b: e(flow, target, target.sample(64, rng(58, b))), flow, 60)

    a, b = rows(forward_path), rows(forward_score)
    for factor, failing in ((1.0, False), (0.5, True)):
        difference = a - factor * b
        pull = difference.mean(0).abs() / (difference.std(0) / np.sqrt(len(a))).clamp_min(1e-12)
        assert (float(pull.max()) > 8) == failing and (failing or float(pull.max()) < 5)


def test_a_mixture_over_a_sign_has_no_path_to_go_back():
    flow = scramble(Symmetrised(flow=Split(layers=2)).build(Lattice((4, 4)), 1), 59, scale=0.05)
    target = Phi4(shape=(4, 4), m2=-4.0, lam=8.0)
    x = flow.push(flow.noise(8, rng(60)))[0].detach()
    one, two = (gradients(lambda _, e=e: e(flow, target, x), flow, 1) for e in (forward, forward_score))
    assert torch.equal(one, two)
