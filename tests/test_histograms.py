"""Spectra, means by importance and the page of a comparison of samplers of events, against closed forms."""

import csv
import json
import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from cube_samplers import draw
from torch import from_numpy
from typer.testing import CliRunner

from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.estimates import estimates
from latticeflow.analysis.histograms import Histogram, Spectrum, _edges_of, of_sums, spectra
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.quality import quality
from latticeflow.analysis.series import Series
from latticeflow.analysis.verify import verify_run
from latticeflow.cli import app
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.observables import observables
from latticeflow.production.summary import summary_lines
from latticeflow.run import Run
from latticeflow.samplers.base import Draws
from latticeflow.statistics import chi2_probability

SIGMA = 0.2


def camel(folder, dimensions=2, seed=1):
    deck = {
        "name": "camel",
        "seed": seed,
        "target": {"kind": "camel", "dimensions": dimensions, "sigma": SIGMA},
    }
    return Run.create(Deck.parse(deck), folder)


@pytest.fixture
def run(tmp_path):
    return camel(tmp_path / "camel")


def exact_bins(edges, dimensions=2):
    """The camel's integral over strips of u_0, `[K]`."""

    def part(a, b, c):
        return 0.5 * (math.erf((b - c) / SIGMA) - math.erf((a - c) / SIGMA))

    return np.array(
        [
            sum(0.5 * part(a, b, c) * part(0, 1, c) ** (dimensions - 1) for c in (1 / 3, 2 / 3))
            for a, b in pairwise(edges)
        ]
    )


def both(run, *names):
    all_series = {name: Series.open(run, name) for name in names}
    return all_series, {name: estimates(series) for name, series in all_series.items()}


def test_spectra_are_the_integrand(run):
    draw(run, "test_flat", 20)
    draw(run, "test_power", 20)
    draw(run, "test_walk", 4)
    all_series, rows = both(run, "test_power", "test_flat", "test_walk")
    spectrum = spectra(all_series, rows)["test_u0"]
    assert spectrum.reference == "test_flat" and len(spectrum.edges) == 41
    exact = exact_bins(spectrum.edges)
    for sampler in spectrum.by:
        value, error = spectrum.density(sampler)
        pulls = (value - exact / np.diff(spectrum.edges)) / error
        assert np.abs(pulls).max() < 4.5 and 0.4 < np.square(pulls).mean() < 1.9, (sampler, pulls)
        # all bins, with those outside, are Z
        z = all_series[spectrum.reference if sampler == "test_walk" else sampler].integration.weights.z
        assert spectrum.by[sampler].value.sum() == pytest.approx(z, rel=1e-12)
        assert spectrum.agreement(sampler, "test_flat")[2] > 1e-3
    # negative control: the bins of another observable of the same edges
    wrong = spectrum.by["test_flat"]
    shifted = replace(wrong, value=np.roll(wrong.value, 1))
    other = type(spectrum)(
        spectrum.observable, spectrum.edges, spectrum.by | {"test_flat": shifted}, "test_flat"
    )
    assert other.agreement("test_power", "test_flat")[2] < 1e-6


def test_the_probability_of_agreement_is_uniform(tmp_path):
    """p of two samplers over many runs: mean 1/2, as few below 0.1 as there should be."""
    ps = []
    for seed in range(20):
        run = camel(tmp_path / str(seed), seed=seed)
        for kind in ("test_flat", "test_power"):
            draw(run, kind, 4, block=1024)
        ps.append(
            spectra(*both(run, "test_flat", "test_power"))["test_u0"].agreement("test_power", "test_flat")[2]
        )
    assert abs(np.mean(ps) - 0.5) < 4 * math.sqrt(1 / 12 / len(ps)), ps
    assert np.mean(np.array(ps) < 0.1) < 0.3


BINS, DRAWS = 42, 50_000


def log_normal(rng, std, uneven=False, tilt=0.0, draws=DRAWS):
    """Weights of mean 1 and a standard deviation, of draws flat in [0, 1]: their sums of powers in bins."""
    x = rng.random(draws)
    s = math.sqrt(math.log(1 + std**2)) * (0.2 + 0.8 * x if uneven else np.ones(draws))
    w = np.exp(s * rng.normal(size=draws) - s**2 / 2) * (1 + tilt * (x - 0.5))
    at = (x * BINS).astype(int)
    return np.array([np.bincount(at, w**k, BINS) for k in (1, 2, 3, 4)])


def agree(one: Histogram, two: Histogram):
    return Spectrum(observables.find("pt_1"), np.arange(0.0), {"a": one, "b": two}, "b").agreement("a", "b")


def neyman(powers, n, other, m):
    """p of chi2 with each bin's own variance, independent of the code under test: what heavy tails break."""
    (v, t), (w, u) = powers[:2], other[:2]
    c = (np.diag(t / n) - np.outer(v, v) / n**2) / n + (np.diag(u / m) - np.outer(w, w) / m**2) / m
    d = v / n - w / m
    return chi2_probability(float(d @ np.linalg.solve(c, d)), BINS)


@pytest.mark.parametrize("std, uneven", [(0.5, False), (2.9, False), (2.9, True), (7.3, False)])
def test_heavy_weights_are_not_mistaken_for_a_difference(std, uneven):
    """Against a good sampler: as few p below 0.05 as there should be, where bins' own errors fail; tilts are still seen."""
    rng, repeats = np.random.default_rng(8), 100
    found, plain, seen = [], [], []
    for _ in range(repeats):
        heavy, good = log_normal(rng, std, uneven), log_normal(rng, 0.3)
        found.append(agree(of_sums(heavy, DRAWS), of_sums(good, DRAWS)))
        plain.append(neyman(heavy, DRAWS, good, DRAWS))
    ps = np.array([p for _, dof, p in found])
    assert min(dof for _, dof, _ in found) > 20
    # at most 10 %, within two errors of so many repeats
    assert (ps < 0.05).mean() < 0.1 + 2 * math.sqrt(0.1 * 0.9 / repeats) and (ps < 1e-3).sum() <= 2
    assert abs(ps.mean() - 0.5) < 0.15
    if std > 2 and not uneven:  # negative control
        assert np.mean(np.array(plain) < 0.05) > {2.9: 0.1, 7.3: 0.6}[std]
    for _ in range(20):
        heavy, good = log_normal(rng, std, uneven, tilt=0.7), log_normal(rng, 0.3)
        seen.append(agree(of_sums(heavy, DRAWS), of_sums(good, DRAWS))[2])
    assert (np.array(seen) < 0.05).mean() > 0.9


def test_too_few_draws_for_such_weights_are_not_compared():
    rng = np.random.default_rng(9)
    heavy, good = log_normal(rng, 50.0, draws=500), log_normal(rng, 0.3)
    assert agree(of_sums(heavy, 500), of_sums(good, DRAWS)) == (0.0, 0, 1.0)


def test_a_chain_is_compared_in_shares():
    """Two bins of a chain have one degree of freedom; Z is not its own, and its fluctuation is no difference."""
    rng, n, ps, wrong = np.random.default_rng(10), 4000, [], []
    share = np.array([0.3, 0.7])
    for _ in range(400):
        at = rng.random(n) < share[0]
        w = np.where(rng.random(n) < 0.1, 10.0, 0.0)  # of mean 1, Z known to 5 %
        one = of_sums(np.array([[(w[at] ** k).sum(), (w[~at] ** k).sum()] for k in (1, 2, 3, 4)]), n)
        z, counts = one.value.sum(), rng.multinomial(n, share) / n
        plain = (np.diag(counts) - np.outer(counts, counts)) / n
        chain = Histogram(z * counts, z**2 * plain, n, np.full(2, z), np.ones(2), chain=True)
        _, dof, p = agree(chain, one)
        assert dof == 1
        ps.append(p)
        wrong.append(agree(replace(chain, chain=False), one)[1:])
    assert abs(np.mean(ps) - 0.5) < 4 * math.sqrt(1 / 12 / 400)
    assert np.mean(np.array(ps) < 0.05) < 0.1
    # negative control: as if Z were the chain's own
    assert {dof for dof, _ in wrong} == {2} and np.mean([p for _, p in wrong]) > 0.6


def test_edges():
    rng = np.random.default_rng(1)
    assert _edges_of(np.full(9, 2.0), np.ones(9)) is None
    np.testing.assert_array_equal(
        _edges_of(rng.integers(0, 4, 999).astype(float), np.ones(999)), np.arange(5) - 0.5
    )
    x = rng.normal(size=100_000)
    edges = _edges_of(x, np.where(x > 0, 1.0, 0.0))
    assert edges[0] == pytest.approx(np.quantile(x[x > 0], 0.001), abs=1e-3)
    assert edges[-1] == pytest.approx(np.quantile(x[x > 0], 0.999), abs=1e-2)
    assert _edges_of(np.array([np.nan, np.inf, 1.0]), np.ones(3)) is None


def test_means_are_by_importance(run):
    """<u_0> = 1/2 by symmetry, also of a flat sampler, whose chain would hardly move; unweighted means are another's."""
    draw(run, "test_power", 16, power=2.5)
    series = Series.open(run, "test_power")
    assert series.importance
    row = estimates(series)["test_u0"]
    assert row.value == pytest.approx(0.5, abs=4 * row.error) and row.reweighted == (row.value, row.error)
    x = np.concatenate([data["x"][:, 0] for data in series.ensemble.iterate("x")])
    w = np.exp(series.ensemble.log_w)
    assert row.value == pytest.approx((w * x).sum() / w.sum(), rel=1e-12)
    plain = math.sqrt((w**2 * (x - row.value) ** 2).sum()) / w.sum()
    assert row.error == pytest.approx(plain, rel=0.25)
    assert abs(x.mean() - 0.5) > 20 * row.error
    assert row.tau.value == 0.5


def test_observables_that_exist_inside_cuts_alone(run):
    """NaN where the weight is zero does no harm; what is constant has no error and is said to be so."""
    name = "test_inside"
    observables.primary(name, "s", "s", lambda target: None if target.measure == "hypercube" else "a test's")(
        lambda target, x: (x[:, 0] - 0.3).sqrt()
    )
    observables.primary(
        "test_one", "1", "1", lambda target: None if target.measure == "hypercube" else "a test's"
    )(lambda target, x: 0 * x[:, 0] + 7)
    try:
        ensemble = draw(run, "test_flat", 1)
        data = ensemble.read(0, 0)
        data["log_w"][data["x"][:, 0] < 0.3] = -np.inf
        for stream in (1, 2):
            ensemble.write(
                stream, 0, Draws(from_numpy(data["x"]), data["log_prob"], data["log_w"]), None, seconds=0.1
            )
        (ensemble.path / "blocks" / "s000000_b000000" / "s000000_b000000.h5").unlink()
        rows = estimates(Series.open(run, "test_flat"))
        w = np.exp(data["log_w"])
        some = w > 0
        s = np.sqrt(data["x"][some, 0] - 0.3)
        assert rows[name].value == pytest.approx((w[some] * s).sum() / w.sum(), rel=1e-12)
        assert rows["test_one"].problem == "constant" and "7 in every event" in rows["test_one"].reason
    finally:
        del observables.table[name], observables.table["test_one"]


def test_figures_of_events(run):
    ensemble = draw(run, "test_flat", 12)
    series = Series.open(run, "test_flat")
    rows = estimates(series)
    found = quality(series, rows, 3.0)
    w, n = np.exp(ensemble.log_w), ensemble.draws
    w_q = np.quantile(w, 0.999, method="higher")
    efficiency = np.minimum(w, w_q).mean() / w_q
    assert found["z"].value == pytest.approx(w.mean(), rel=1e-12) and found["z"].label == "Z"
    assert found["z"].value == pytest.approx(run.deck.target.integral, abs=4 * found["z"].error)
    assert found["deviation"].value == pytest.approx(w.std() / w.mean(), rel=1e-9)
    assert found["efficiency"].value == pytest.approx(efficiency, rel=1e-9)
    assert found["survival"].value == 1
    effective = w.sum() ** 2 / np.square(w).sum()
    assert found["cost"].value == pytest.approx(ensemble.seconds / effective, rel=1e-9)
    assert found["cost_unweighted"].value == pytest.approx(ensemble.seconds / (n * efficiency), rel=1e-9)
    assert found["cost_with_start"].value == pytest.approx((ensemble.seconds + 3) / effective, rel=1e-9)
    lines = list(summary_lines(ensemble))
    assert any(line.startswith("Z = ") for line in lines)
    assert any("unweighting efficiency" in line and "99.9 % quantile" in line for line in lines)
    assert not any("survival" in line for line in lines)  # there are no cuts


@pytest.fixture
def gluons(tmp_path):
    deck = {
        "name": "gluons",
        "seed": 1,
        "target": {
            "kind": "matrix_element",
            "process": "test_gluons",
            "energy": 1000.0,
            "phase_space": "rambo",
            "cuts": {"pt_min": 30.0},
        },
    }
    run = Run.create(Deck.parse(deck), tmp_path / "gluons")
    for kind in ("test_flat", "test_power"):
        draw(run, kind, 6)
    draw(run, "test_walk", 2)
    return run


def test_compare_has_it_all(gluons, capsys):
    result = compare_run(gluons.path, ["test_power", "test_flat", "test_walk"])
    text = capsys.readouterr().out
    for words in (
        "σ  [pb]",
        "unweighting efficiency",
        "Convergence of σ",
        "Spectra against",
        "τ_int",
        "survival of the cuts",
    ):
        assert words in text, words
    folder = gluons.path / "compare"
    page = (folder / "compare.html").read_text()
    names = [name for name in result.spectra if not name.startswith("test_")]
    assert {"pt_1", "delta_r_min", "x1"} <= set(names) and "thrust" not in names
    for name in (*names, "convergence", "log_weights", "pulls"):
        file = name if name not in names else f"spectrum_{name}"
        assert (folder / f"{file}.png").read_bytes()[:4] == b"\x89PNG" and f'alt="{file}"' in page
    assert "http" not in re.sub(r'src="data:[^"]*"', "", page).replace("<!DOCTYPE", "")
    found = json.loads((folder / "compare.json").read_text())
    power, flat = (found["integral"][name] for name in ("test_power", "test_flat"))
    assert power["unit"] == "pb" and "test_walk" not in found["integral"]
    pull = (power["value"] - flat["value"]) / math.hypot(power["error"], flat["error"])
    assert found["integral_pulls"]["test_flat"] == pytest.approx(pull, rel=1e-9) and abs(pull) < 4
    assert found["integral_pulls"]["test_walk"] is None
    for pulls in found["pulls"].values():
        assert all(abs(pull) < 4.5 for pull in pulls.values() if pull is not None), pulls
    with open(folder / "spectra.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    one = [row for row in rows if row["observable"] == "pt_1" and row["sampler"] == "test_flat"]
    spectrum = found["spectra"]["pt_1"]
    np.testing.assert_allclose(
        [float(row["value"]) for row in one], spectrum["samplers"]["test_flat"]["value"], rtol=1e-8
    )
    assert float(one[0]["low"]) == pytest.approx(spectrum["edges"][0]) and len(one) == 40
    for name, spectrum in found["spectra"].items():
        for other in spectrum["samplers"].values():
            assert other.get("p", 1) > 1e-4, name


def test_measure_verify_and_export(gluons, tmp_path, capsys):
    rows = measure_run(gluons.path, "test_flat")
    text = capsys.readouterr().out
    assert "σ  [pb] = " in text and "convergence: 2,048:" in text and "reweighted" not in text
    assert (
        "of draws have a weight" in text
        and text.count("survival of the cuts pt_min = 30: ") == 1
        and rows["pt_1"].error > 0
    )
    measure_run(gluons.path, "test_walk")
    assert "τ_int" in capsys.readouterr().out
    for name in ("a.lhe.gz", "a.hepmc"):
        command = [
            "export",
            str(gluons.path),
            str(tmp_path / name),
            "--sampler",
            "test_flat",
            "--events",
            "metropolis",
        ]
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0 and (tmp_path / name).stat().st_size > 1000
    with pytest.raises(InputError, match="stores no log-weights, so it knows no cross section"):
        CliRunner().invoke(
            app,
            ["export", str(gluons.path), str(tmp_path / "b.lhe"), "--sampler", "test_walk"],
            catch_exceptions=False,
        )
    command = ["export", str(gluons.path), str(tmp_path / "b.npz"), "--sampler", "test_flat", "--proposals"]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    with np.load(tmp_path / "b.npz") as file:
        assert file["weight"].mean() == pytest.approx(1)
    verify_run(gluons.path)
