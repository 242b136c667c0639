"""Corrections against known distributions, with wrong scans that must fail the same checks."""

import math

import numpy as np
import pytest
import torch

from latticeflow.correction import MetropolisScan, metropolis, reweight, unweight
from latticeflow.errors import InputError, NumericalError, StatisticsError
from latticeflow.samplers import Draws
from latticeflow.statistics import summarise_weights

# A target p and a proposal q on five states; log w = log p - log q, up to a constant.
P = np.array([0.40, 0.05, 0.25, 0.20, 0.10])
Q = np.array([0.15, 0.25, 0.30, 0.10, 0.20])
PROPOSALS = 400_000
# The chain forgets as (1 - 1/max(p/q))^t = 0.625^t: 2e-5 after 23 steps, so every 23rd is independent.
THIN = 23
# 99.9937 % point (4 sigma) of chi^2 with 4 degrees of freedom, whose tail is (1 + x/2) exp(-x/2)
LIMIT = 24.5


def proposals(seed: int, n: int = PROPOSALS) -> tuple[np.ndarray, np.ndarray]:
    x = np.random.default_rng(seed).choice(len(P), size=n, p=Q)
    return x, np.log(P / Q)[x] + 3.7


def chi2(states: np.ndarray, expected: np.ndarray = P) -> float:
    counts = np.bincount(states, minlength=len(expected))
    mean = len(states) * expected
    return float(((counts - mean) ** 2 / mean).sum())


def naive(log_w: np.ndarray, rng: np.random.Generator, fault: str = "") -> tuple[list[int], int, int]:
    """Metropolis as in the textbook, one step at a time, with known faults."""
    noise = rng.standard_exponential(len(log_w))
    index, current, accepted, run, longest = [0], 0, 0, 0, 0
    for i in range(1, len(log_w)):
        ratio = log_w[i] - log_w[current]
        if -noise[i] < (-ratio if fault == "sign" else ratio):
            current, accepted, run = i, accepted + 1, 0
        else:
            run += 1
            longest = max(longest, run)
        index.append(i if fault == "index" else current)
    return index, accepted, longest


def test_limit_is_the_four_sigma_point():
    assert (1 + LIMIT / 2) * math.exp(-LIMIT / 2) == pytest.approx(6.3e-5, rel=0.05)


def test_stationary_distribution():
    x, log_w = proposals(1)
    chain = metropolis(log_w, np.random.default_rng(2))
    assert chi2(x[chain.index][::THIN]) < LIMIT
    assert (chain.weight == 1).all()


@pytest.mark.parametrize("fault", ["index", "sign"])
def test_wrong_scan_fails(fault):
    x, log_w = proposals(1)
    index, _, _ = naive(log_w, np.random.default_rng(2), fault)
    assert chi2(x[index][::THIN]) > 10 * LIMIT


def test_omitted_log_q_fails():
    x, _ = proposals(1)
    chain = metropolis(np.log(P)[x], np.random.default_rng(2))
    assert chi2(x[chain.index][::THIN]) > 10 * LIMIT


def test_scan_is_the_textbook():
    _, log_w = proposals(3, 200_000)  # more than one of the scan's pieces
    scan = MetropolisScan()
    found = scan.feed(log_w, np.random.default_rng(4))
    index, accepted, longest = naive(log_w, np.random.default_rng(4))
    np.testing.assert_array_equal(found, index)
    assert (scan.accepted, scan.longest, scan.proposals) == (accepted, longest, len(log_w))


def test_acceptance_is_the_stationary_one():
    _, log_w = proposals(5)
    scan = MetropolisScan()
    scan.feed(log_w, np.random.default_rng(6))
    w = P / Q
    exact = float((P[:, None] * Q[None] * np.minimum(1, w[None] / w[:, None])).sum())
    # acceptances are correlated over some 5 steps: 4 sigma with 2 tau = 6 (generous)
    assert abs(scan.acceptance - exact) < 4 * math.sqrt(6 * exact * (1 - exact) / PROPOSALS)


def test_given_example():
    chain = metropolis(np.array([0.0, -1000.0, 5.0, -1000.0]), np.random.default_rng(0))
    assert chain.index.tolist() == [0, 0, 2, 2] and chain.index.dtype == np.int64


def test_starts_at_the_first_finite_weight():
    inf = -np.inf
    scan = MetropolisScan()
    index = scan.feed(np.array([inf, inf, 0.0, inf, inf, inf, 50.0, inf]), np.random.default_rng(0))
    assert index.tolist() == [2, 2, 2, 2, 6, 6]
    assert (scan.start, scan.accepted, scan.longest, scan.run) == (2, 1, 3, 1)
    assert scan.acceptance == 1 / 5


@pytest.mark.parametrize("sizes", [[1], [7, 1, 1023], [0, 3, 70_001], [99_999]])
def test_pieces_do_not_matter(sizes):
    _, log_w = proposals(7, 150_000)
    log_w[:100] = -np.inf
    log_w[1000:1500] = -np.inf
    log_w = log_w[:3000] if sizes == [1] else log_w
    whole, rng = MetropolisScan(), np.random.default_rng(8)
    expected = whole.feed(log_w, np.random.default_rng(8))
    scan, pieces, at, turn = MetropolisScan(), [], 0, 0
    while at < len(log_w):
        size = sizes[turn % len(sizes)]
        pieces.append(scan.feed(log_w[at : at + size], rng))
        at, turn = at + size, turn + 1
    np.testing.assert_array_equal(np.concatenate(pieces), expected)
    assert scan == whole
    assert scan.longest >= 500


def test_reweighting():
    x, log_w = proposals(9)
    found = reweight(np.append(log_w, -np.inf))
    assert found.weight[-1] == 0 and found.weight.mean() == pytest.approx(1, abs=1e-12)
    share = np.bincount(x, weights=found.weight[:-1]) / found.weight.sum()
    # var of a ratio estimate: <w^2 (1_s - p_s)^2> / N, with w = p/q
    error = np.sqrt([(P**2 / Q * (np.eye(5)[s] - P[s]) ** 2).sum() / PROPOSALS for s in range(5)])
    assert (abs(share - P) < 4 * error).all()
    unweighted = np.bincount(x) / len(x)
    assert (abs(unweighted - P) > 4 * error).any()  # the check sees a missing weight


def test_unweighting_to_the_maximum():
    x, log_w = proposals(10)
    found = unweight(log_w, np.random.default_rng(11))
    assert (found.weight == 1).all()
    assert chi2(x[found.index]) < LIMIT
    kept = 1 / (P / Q).max()
    assert abs(len(found) / PROPOSALS - kept) < 4 * math.sqrt(kept * (1 - kept) / PROPOSALS)


def test_unweighting_to_a_quantile():
    x, log_w = proposals(12)
    found = unweight(log_w, np.random.default_rng(13), quantile=0.7)
    assert len(found) > 0.4 * PROPOSALS and found.weight.max() > 2
    share = np.bincount(x[found.index], weights=found.weight) / found.weight.sum()
    assert (abs(share - P) < 0.004).all()  # 4 sigma at N_eff >= 2.4e5
    dropped = np.bincount(x[found.index]) / len(found)
    assert (abs(dropped - P) > 0.004).any()  # without the overweights it is wrong


def test_summary():
    _, log_w = proposals(14)
    found = summarise_weights(log_w)
    exact = 1 / (P**2 / Q).sum()
    assert abs(found.ess - exact) < 4 * found.ess_error
    assert abs(found.log_z - 3.7) < 4 * found.log_z_error


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "correction", [metropolis, lambda w, rng: reweight(w), unweight, lambda w, rng: summarise_weights(w)]
)
def test_nan_and_plus_infinity_raise(correction, bad):
    with pytest.raises(
        NumericalError, match=r"1 of 3 log-weights are NaN or \+inf, the first .* at 1"
    ) as caught:
        correction(np.array([0.0, bad, 1.0]), np.random.default_rng(0))
    assert caught.value.status == 1  # not the user's arguments


@pytest.mark.parametrize(
    ("x", "log_prob", "log_w", "what"),
    [
        ([0, np.nan, 0], [0, 0, 0], None, "field that is not finite"),
        ([0, np.inf, 0], [0, 0, 0], None, "field that is not finite"),
        ([0, 0, 0], [0, np.inf, 0], None, "log_prob NaN"),
        ([0, 0, 0], [0, -np.inf, 0], [0, np.nan, 0], "log_w NaN"),
        ([0, 0, 0], [0, 0, 0], [0, np.inf, 0], "log_w NaN"),
    ],
)
def test_draws_that_are_not_numbers(x, log_prob, log_w, what):
    fields = torch.tensor(x, dtype=torch.float32)[:, None].expand(3, 4)
    with pytest.raises(NumericalError, match=f"1 of 3 draws, the first draw 1, have .*{what}") as caught:
        Draws(
            fields, np.array(log_prob, dtype=float), None if log_w is None else np.array(log_w, dtype=float)
        )
    assert caught.value.status == 1
    Draws(torch.zeros(3, 4), np.array([0, -np.inf, 0]), np.array([-np.inf, 0.0, 0.0]))  # legal
    with pytest.raises(InputError, match="expected float64"):
        Draws(torch.zeros(3, 4), np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize("correction", [metropolis, lambda w, rng: reweight(w), unweight])
def test_all_weights_zero_raise(correction):
    with pytest.raises(StatisticsError, match="every weight is zero"):
        correction(np.full(3, -np.inf), np.random.default_rng(0))


def test_other_bad_input():
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="one dimension"):
        metropolis(np.zeros((2, 2)), rng)
    for quantile in (0.0, 1.5):
        with pytest.raises(InputError, match="quantile"):
            unweight(np.zeros(3), rng, quantile)
    with pytest.raises(StatisticsError, match="nearer to 1"):
        unweight(np.array([-np.inf, -np.inf, -np.inf, 0.0]), rng, quantile=0.25)
    with pytest.raises(StatisticsError, match="no proposal after its start"):
        _ = MetropolisScan().acceptance
