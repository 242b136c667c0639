"""Analysis on ensembles of the free field, whose means, ESS, log Z and tau_int are closed forms."""

import base64
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from known_samplers import DRAWS, M2, TARGET, draw

from latticeflow import targets
from latticeflow.analysis import measured as measured_module
from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.estimates import estimate, estimates, gradient, profile
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.plots import autocorrelation_error
from latticeflow.analysis.report import Table, page
from latticeflow.analysis.series import Series, Stretch, whole
from latticeflow.config import Deck
from latticeflow.errors import InputError, StoreError
from latticeflow.run import Run
from latticeflow.statistics import autocorrelation, bracket
from latticeflow.statistics.jackknife import jackknife
from latticeflow.store import provenance
from latticeflow.store.block import block_path

torch.set_num_threads(1)
CLOSED_FORMS = {
    "phi2": TARGET.spectrum.mean(),
    "phi4": 3 * TARGET.spectrum.mean() ** 2,
    "chi2": 1 / (2 * M2),
    "abs_m": np.sqrt(1 / (2 * M2) * 2 / np.pi / 64),
    "m": 0.0,
    "action": 32.0,
    "virial": 64.0,
    "phi_k1": TARGET.spectrum[0, 1],
    "binder": 0.0,
    "xi": M2**-0.5,
    "pole_mass": np.arccosh(1 + M2 / 2),
    "pole_mass_L": 8 * np.arccosh(1 + M2 / 2),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    deck = Deck(name="free", seed=5, target=TARGET)
    made = Run.create(deck, tmp_path_factory.mktemp("runs") / "free")
    for name, draws in DRAWS.items():
        draw(made, name, draws)
    lines = [
        {"step": i, "loss": 8 + 20 / (i + 1), "seconds": 0.1 * i}
        | ({"ess": 1 - 0.9 / (i + 1), "ess_error": 0.01, "ess_draws": 16384} if i % 20 == 0 else {})
        for i in range(200)
    ]
    made.log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 200, "lo')
    return made


@pytest.fixture(scope="module")
def rows(run):
    return {name: estimates(Series.open(run, name)) for name in DRAWS}


@pytest.mark.parametrize("sampler", ["test_proposal", "test_chain", "test_walkers"])
def test_estimates_are_the_closed_forms(rows, sampler):
    """Twelve numbers an ensemble, each within 4 sigma."""
    for name, exact in CLOSED_FORMS.items():
        row = rows[sampler][name]
        assert row.problem is None, (name, row.reason)
        assert abs(row.value - exact) < 4 * row.error, (name, row.text, exact)
        assert row.error < 0.05 * max(1, abs(exact))
        if sampler == "test_proposal":
            value, error = row.reweighted
            assert abs(value - exact) < 4 * error, (name, value, error, exact)
            assert error < row.error * 1.05


def test_a_biased_ensemble_fails_the_same_check(rows):
    pulls = {name: (rows["test_biased"][name].value - CLOSED_FORMS[name]) / rows["test_biased"][name].error
             for name in ("phi2", "chi2", "virial", "xi", "pole_mass")}  # fmt: skip
    assert min(map(abs, pulls.values())) > 5, pulls
    assert abs(rows["test_proposal"]["chi2"].pull(rows["test_biased"]["chi2"])) > 5


def test_uncorrected_proposals_are_biased(run):
    series = Series.open(run, "test_proposal")
    raw = whole(series.proposals("virial"), "virial")
    assert abs(raw.mean() - 64) > 5 * raw.std() / np.sqrt(raw.size)


def test_tau_of_the_chain_is_known(rows):
    """m: (1 + a)/(1 - a)/2; quadratic observables: the same of a^2; derived ones inherit it. 4 sigma."""
    linear, quadratic = (1 + 0.8) / (1 - 0.8) / 2, (1 + 0.64) / (1 - 0.64) / 2
    expected = {"m": linear, "phi2": quadratic, "chi2": quadratic, "xi": quadratic, "pole_mass": quadratic}
    for name, tau in expected.items():
        found = rows["test_chain"][name].tau
        assert abs(found.value - tau) < 4 * found.error, (name, found, tau)


def test_walkers_are_averaged_first(run, rows):
    series = Series.open(run, "test_walkers")
    assert series["phi2"].shape == (4, 1024) and series.walkers("phi2").shape == (64, 1024)
    np.testing.assert_allclose(
        series["phi2"], series.walkers("phi2").reshape(4, 16, 1024).mean(1), rtol=1e-13
    )
    # these walkers happen not to interact, so the average loses nothing
    ratio = rows["test_walkers"]["chi2"].error / rows["test_chain"]["chi2"].error
    assert 0.8 < ratio < 1.25


def test_series_follow_draws(run):
    """Draw i of a block is step i // C of chain i % C; the Metropolis chain repeats on rejection."""
    series = Series.open(run, "test_chain")
    x = np.concatenate([series.ensemble.read(0, block, "x")["x"] for block in range(4)])
    phi2 = np.square(x).mean((1, 2))
    np.testing.assert_allclose(series["phi2"][3], phi2[3::16], rtol=1e-12)
    independent = Series.open(run, "test_proposal")
    raw, index = whole(independent.proposals("phi2"), "phi2")[0], independent.chain.index()
    np.testing.assert_array_equal(independent["phi2"][0], raw[index])
    assert (np.diff(index) >= 0).all() and (np.diff(index) == 0).any()


def test_streams_are_cut_to_the_shortest(run, tmp_path):
    """As a stopped sampling leaves them: whole blocks, fewer in one stream."""
    copy = Run.create(run.deck, tmp_path / "copy")
    shutil.copytree(run.ensemble("test_chain"), copy.ensemble("test_chain"))
    block_path(copy.ensemble("test_chain"), 2, 3).unlink()
    series, whole = Series.open(copy, "test_chain"), Series.open(run, "test_chain")
    assert (series.left_out, whole.left_out) == (3 * 4096, 0)
    np.testing.assert_array_equal(series["phi2"], whole["phi2"][:, :768])
    assert series.ensemble.info("acceptance").shape == (4, 768)
    assert series.ensemble.info("no such thing") is None


def test_frozen_and_too_short_are_words_not_numbers(rows, run, capsys):
    for row in rows["test_frozen"].values():
        assert row.problem == "frozen" and row.text == "frozen" and row.tau_text == "frozen"
        assert np.isnan(row.value)
    for row in rows["test_short"].values():  # 64 steps of tau = 50 to 100; no mass can be had from them
        assert row.problem in ("too few", "undefined") and row.text == row.problem and np.isnan(row.value)
        assert row.reason
    assert rows["test_short"]["m"].problem == "too few" and "expected" in rows["test_short"]["m"].reason
    measure_run(run.path, sampler="test_frozen")
    out = capsys.readouterr().out
    assert "frozen" in out and "constant series" in out and "virial identity: frozen" in out


def test_a_mass_that_noise_destroys_is_undefined(run):
    series = Series.open(run, "test_chain")
    noise = np.random.default_rng(3).normal(size=(1, 4096, 8))
    noisy = Stretch(0, 0, {"correlator": noise + np.array([1.0, 0.9, 0.7, 0.9, 0.7, 0.9, 0.7, 0.9])})
    series.__class__ = type("Noisy", (Series,), {"walk": lambda self, *names: iter([noisy])})
    row = estimate(series, "pole_mass")
    assert row.problem == "undefined" and "arcosh" in row.reason and "draw more" in row.reason


def test_gradient_of_a_product():
    """f = <a><b> has df/d<a> = <b>, df/d<b> = <a>; a component that does not fluctuate has none."""
    mean, std = (
        {"a": np.array(2.0), "b": np.array([3.0, -1.0])},
        {"a": np.array(1.0), "b": np.array([0.0, 2.0])},
    )
    found = gradient(lambda m: m["a"] * m["b"].sum(), mean, std)
    np.testing.assert_allclose(found["a"], 2.0, rtol=1e-10)
    np.testing.assert_allclose(found["b"], [0.0, 2.0], rtol=1e-10)


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.744612, 0.00052, "0.74461(52)"),
        (64.123, 1.24, "64.1(1.2)"),
        (1234.0, 142.0, "1230(140)"),
        (0.5, 0.0996, "0.50(10)"),
        (-0.0003, 0.00126, "-0.0003(13)"),
        (12.3, 10.4, "12(10)"),
        (1e-13, 3e-14, "1e-13(3.0e-14)"),
        (1.0, 0.0, "1(0)"),
    ],
)
def test_bracket_notation(value, error, text):
    assert bracket(value, error) == text


def test_errors_of_rho_are_the_scatter_over_repeats():
    """AR(1), a = 0.7, 300 chains of 2,000: predicted errors within 20 % of the scatter for t = 1 ... 9."""
    rng, a = np.random.default_rng(2), 0.7
    x = np.empty((300, 2000))
    x[:, 0] = rng.normal(size=300)
    for t in range(1, 2000):
        x[:, t] = a * x[:, t - 1] + np.sqrt(1 - a * a) * rng.normal(size=300)
    rho = np.array([autocorrelation(chain[None]) for chain in x])
    predicted = np.mean([autocorrelation_error(r, 2000, 30)[1:10] for r in rho[:40]], axis=0)
    np.testing.assert_allclose(predicted, rho.std(0)[1:10], rtol=0.2)


@pytest.mark.parametrize("sampler", ["test_proposal", "test_chain"])
def test_profile_is_the_free_propagator(run, rows, sampler):
    value, error = profile(Series.open(run, sampler), "correlator", rows[sampler])
    k = 2 * np.pi * np.arange(8) / 8
    exact = [(np.cos(k * t) * TARGET.spectrum[0]).sum() / 8 for t in range(5)]
    assert (np.abs(value - exact) < 4 * error).all() and (error < 0.1 * value).all()
    assert np.isnan(profile(Series.open(run, "test_frozen"), "correlator", rows["test_frozen"])).all()


def test_measurements_are_kept_and_reused(run, monkeypatch):
    first = Series.open(run, "test_chain")["correlator"]
    before = {path: path.stat().st_mtime_ns for path in first_files(run)}

    def never(*args):
        raise AssertionError("measured twice")

    monkeypatch.setattr(measured_module, "measure", never)
    np.testing.assert_array_equal(Series.open(run, "test_chain")["correlator"], first)
    assert {path: path.stat().st_mtime_ns for path in first_files(run)} == before
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "observables_version", lambda: "another")
        with pytest.raises(AssertionError, match="measured twice"):
            Series.open(run, "test_chain")


def test_a_changed_target_is_measured_again(run, monkeypatch, tmp_path):
    Series.open(run, "test_chain")
    folder = Path(targets.__file__).parent
    changed = shutil.copytree(folder, tmp_path / "targets")
    with open(changed / "scalar.py", "a") as file:
        file.write("# another action\n")
    monkeypatch.setattr(provenance.targets, "__file__", str(changed / "__init__.py"))
    before = first_files(run)[0].stat().st_mtime_ns
    Series.open(run, "test_chain")
    assert first_files(run)[0].stat().st_mtime_ns != before


@pytest.mark.parametrize("where", ["mkdir", "write"])
def test_a_folder_one_may_not_write_to(run, tmp_path, monkeypatch, capsys, where):
    copy = Run.create(run.deck, tmp_path / "copy")
    shutil.copytree(run.ensemble("test_chain"), copy.ensemble("test_chain"), ignore=lambda *_: ["measured"])

    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    if where == "mkdir":  # root, as in containers, may write anywhere: refuse by hand
        monkeypatch.setattr(type(tmp_path), "mkdir", refuse)
    else:
        monkeypatch.setattr("latticeflow.files.os.replace", refuse)
    series = Series.open(copy, "test_chain")
    assert capsys.readouterr().out.count("measurements are not kept") == 1
    np.testing.assert_array_equal(series["phi2"], Series.open(run, "test_chain")["phi2"])
    assert not list((copy.ensemble("test_chain") / "measured").glob("*/*"))


def first_files(run):
    return sorted((run.ensemble("test_chain") / "measured").glob("*/*.h5"))


def test_a_damaged_measurement_is_made_again(run):
    expected = Series.open(run, "test_chain")["phi2"]
    path = first_files(run)[0]
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(Series.open(run, "test_chain")["phi2"], expected)
    whole = path.read_bytes()
    series = Series.open(run, "test_chain")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="delete that file; it is measured again"):
        series["phi2"]
    path.write_bytes(whole)


def test_quality_has_the_known_ess_log_z_and_cost(run):
    """For Gaussians ESS = prod_k sqrt(b (2a - b)) / a, a = khat^2 + m2, b that of the proposal."""
    result = compare_run(run.path, ["test_proposal", "test_chain"])
    flow, chain = result.quality["test_proposal"], result.quality["test_chain"]
    a = TARGET.lattice.khat2 + M2
    b = a + 0.06
    exact = np.prod(np.sqrt(b * (2 * a - b)) / a)
    assert abs(flow["ess"].value - exact) < 4 * flow["ess"].error
    assert abs(flow["log_z"].value - TARGET.log_z) < 4 * flow["log_z"].error
    assert 0 < flow["largest_share"].value < 1e-3 and flow["longest_rejection_run"].value >= 1
    tau = result.rows["test_chain"]["chi2"].tau.value
    expected = chain["seconds"].value * 2 * tau / 65536
    assert chain["cost"].value == pytest.approx(expected, rel=0.01)
    assert chain["smallest_acceptance"].value == pytest.approx(0.7)
    assert abs(chain["exp_minus_dh"].value - 1) < 4 * chain["exp_minus_dh"].error
    assert chain["cost_with_start"].value > chain["cost"].value


def test_compare_writes_a_self_contained_page(run, capsys):
    compare_run(run.path, ["test_proposal", "test_biased", "test_frozen", "test_short"])
    out = capsys.readouterr().out
    assert "frozen" in out and "too few" in out and "VIOLATED" in out
    folder = run.path / "compare"
    html = (folder / "compare.html").read_text()
    assert not re.search(r"https?:|<script|<link|src=\"(?!data:)", html)
    pngs = sorted(folder.glob("*.png"))
    assert {path.stem for path in pngs} == {
        "training", "log_weights", "pulls", "correlators", "autocorrelation", "histories"
    }  # fmt: skip
    embedded = {base64.b64decode(data) for data in re.findall(r"data:image/png;base64,([^\"]+)", html)}
    assert embedded == {path.read_bytes() for path in pngs}
    assert all(data.startswith(b"\x89PNG") for data in embedded)
    numbers = json.loads((folder / "compare.json").read_text())
    assert abs(numbers["pulls"]["test_biased"]["chi2"]) > 5
    assert numbers["pulls"]["test_frozen"]["chi2"] is None
    frozen = numbers["samplers"]["test_frozen"]["observables"]["chi2"]
    assert frozen["value"] is None and frozen["problem"] == "frozen" and "constant" in frozen["reason"]
    assert not list(folder.glob(".*"))


def test_text_is_escaped():
    table = Table("a < b", ["", "x"], [["<script>", "1 & 2"]], ["<b>"])
    text = page("<t>", "s & s", [table], {}, "[x] # <deck>")
    assert "<script>" not in text and "&lt;script&gt;" in text and "1 &amp; 2" in text
    assert "&lt;deck&gt;" in text and "<title>&lt;t&gt;</title>" in text


def test_bad_input(run, tmp_path):
    with pytest.raises(InputError, match=r"latticeflow sample .* --sampler hmc --draws"):
        compare_run(run.path, ["test_chain", "hmc"])
    with pytest.raises(InputError, match="did you mean 'hmc'"):
        measure_run(run.path, sampler="hcm")
    with pytest.raises(InputError, match="at least two"):
        compare_run(run.path, ["test_chain"])
    with pytest.raises(InputError, match="two different"):
        compare_run(run.path, ["test_chain", "test_chain"])
    with pytest.raises(InputError, match="not a run folder"):
        measure_run(tmp_path)


def test_measure_prints_pyerrors_beside_ours(run, rows, capsys):
    pytest.importorskip("pyerrors")
    found = measure_run(run.path, "test_chain", pyerrors=True)
    line = next(line for line in capsys.readouterr().out.splitlines() if "χ₂" in line)
    *_, theirs, _ = line.split("│")
    value = float(theirs.split("(")[0])
    assert value == pytest.approx(found["chi2"].value, abs=0.1 * found["chi2"].error)


def test_errors_agree_with_pyerrors(run, rows):
    """The Gamma method of another code: errors within 15 % (both carry noise of about 5 %)."""
    pe = pytest.importorskip("pyerrors")
    series = Series.open(run, "test_chain")
    for name in ("chi2", "phi2"):
        one = pe.Obs(list(series[name]), [f"c|r{i}" for i in range(len(series[name]))])
        one.gamma_method(S=2.0)
        assert one.value == pytest.approx(rows["test_chain"][name].value, rel=1e-10)
        assert one.dvalue == pytest.approx(rows["test_chain"][name].error, rel=0.15)
    C = [pe.Obs(list(series["correlator"][:, :, t]), [f"c|r{i}" for i in range(64)]) for t in range(8)]
    mass = sum(np.arccosh((C[t - 1] + C[t + 1]) / (2 * C[t])) for t in (1, 2, 3)) / 3
    mass.gamma_method(S=2.0)
    row = rows["test_chain"]["pole_mass"]
    assert mass.value == pytest.approx(row.value, rel=1e-6)
    assert mass.dvalue == pytest.approx(row.error, rel=0.2)
    assert jackknife(lambda m: m["chi2"], {"chi2": series["chi2"]})[1] == pytest.approx(
        rows["test_chain"]["chi2"].error, rel=0.2
    )
