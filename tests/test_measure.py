"""Measuring on several ranks, and ensembles in which not every field is kept: the same numbers in every way."""

import shutil

import numpy as np
import pytest
from jobs import contents
from known_samplers import ProposalSpec

from latticeflow.analysis import measured as measured_module
from latticeflow.analysis.compare import compare_run
from latticeflow.analysis.estimates import estimates
from latticeflow.analysis.measure import measure_run
from latticeflow.analysis.series import Series
from latticeflow.config import Deck
from latticeflow.production.sample import sample_run
from latticeflow.run import Run
from latticeflow.samplers import samplers
from latticeflow.store import Ensemble
from latticeflow.store.block import block_path
from latticeflow.store.hdf5 import open_h5, read_whole, write_h5
from latticeflow.targets import FreeField

DECK = {
    "name": "measured",
    "seed": 3,
    "target": {"kind": "free", "shape": [4, 4], "m2": 0.6},
    "sampler": {
        "exact": {"block": 512},
        "hmc": {"chains": 8, "streams": 2, "block": 512, "thermalisation": 100, "step": 0.2, "length": 1.0},
    },
}
DRAWS = {"exact": 8192, "hmc": 8192}


class HeavierSpec(ProposalSpec):
    kind = "heavier"
    block: int = 512
    m2: float = 0.75
    zeros: float = 0.3


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setitem(samplers.classes, "heavier", HeavierSpec)
    return Run.create(Deck.parse(DECK), tmp_path / "run")


@pytest.mark.mpi
def test_ranks_measure_what_one_process_measures(tmp_path, mpirun):
    run = Run.create(Deck.parse(DECK), tmp_path / "run")
    sample_run(run, sampler="hmc", draws=DRAWS["hmc"])
    other = shutil.copytree(run.path, tmp_path / "other")
    measure_run(run.path, "hmc")
    job = mpirun(2, "-m", "latticeflow", "measure", str(other), "--sampler", "hmc", cwd=tmp_path)
    assert job.returncode == 0, job.stderr
    assert job.stdout.count("virial identity") == 1  # one rank prints
    found, expected = contents(other), contents(run.path)
    assert sum("/measured/" in name for name in expected) == DRAWS["hmc"] // 512
    assert found == expected
    broken = block_path(other / "ensembles" / "hmc", 1, 5)
    shutil.rmtree(other / "ensembles" / "hmc" / "measured")
    broken.write_bytes(broken.read_bytes()[:5000])
    job = mpirun(2, "-m", "latticeflow", "measure", str(other), "--sampler", "hmc", cwd=tmp_path)
    assert job.returncode == 1 and broken.name in job.stderr


@pytest.mark.parametrize("sampler", ["exact", "hmc"])
@pytest.mark.parametrize("keep", [0, 4])
def test_observables_only_give_the_same_estimates(run, tmp_path, sampler, keep, monkeypatch):
    sample_run(run, sampler=sampler, draws=DRAWS[sampler])
    expected = estimates(Series.open(run, sampler))
    thin = Run.create(Deck.parse(DECK), tmp_path / "thin")
    sample_run(
        thin, sampler=sampler, draws=DRAWS[sampler], overrides=[f"sampler.{sampler}.keep_fields={keep}"]
    )
    monkeypatch.setattr(measured_module, "measure", None)  # nothing is to be measured again
    rows = estimates(Series.open(thin, sampler))
    assert rows.keys() == expected.keys() and rows["pole_mass"].tau
    for name, row in rows.items():
        assert (row.value, row.error, row.tau) == (
            expected[name].value,
            expected[name].error,
            expected[name].tau,
        )
    assert not (thin.ensemble(sampler) / "measured").exists()


def rewrite(ensemble: Ensemble, change) -> None:
    for key in ensemble.present:
        path = block_path(ensemble.path, *key)
        with open_h5(path) as file:
            arrays, attributes = read_whole(path, file)
        attributes.pop("digest")
        change(arrays, attributes)
        path.unlink()
        write_h5(path, arrays, attributes)


def test_what_was_not_stored_is_named(run, capsys):
    """A new observable, on an ensemble without fields; and values of another version."""
    ensemble = sample_run(run, sampler="hmc", draws=8192, overrides=["sampler.hmc.keep_fields=0"])

    def older(arrays, attributes):
        del arrays["measured/chi2"]
        attributes["observables"] = "another version"

    rewrite(ensemble, older)
    rows = measure_run(run.path, "hmc")
    assert {name for name, row in rows.items() if row.problem} == {"chi2", "binder", "xi"}
    assert rows["chi2"].text == rows["xi"].tau_text == "not stored" and rows["phi2"].tau
    out = capsys.readouterr().out
    assert "not stored: χ₂, U, ξ (not measured when the ensemble was drawn" in out
    assert "measured by another version" in out
    sample_run(run, sampler="exact", draws=8192)
    result = compare_run(run.path, ["hmc", "exact"])
    assert any("hmc: observables were measured by another" in line for line in result.tables()[0].notes)
    assert not (run.path / "compare" / "autocorrelation.png").exists()  # that of chi2 and the action


@pytest.mark.parametrize("streams", [0, 4])
def test_corrected_series_are_the_proposals_at_the_chains_entries(run, streams):
    """One chain over all, or one a stream, where proposals of zero weight also begin chains."""
    overrides = [f"sampler.heavier.streams={streams}"]
    ensemble = sample_run(run, sampler="heavier", draws=8192, overrides=overrides)
    phi2 = np.concatenate([np.square(data["x"]).mean((1, 2)) for data in ensemble.iterate("x")])
    chain = ensemble.chain()
    entries = dict(chain.walk())
    expected = [phi2[np.concatenate([entries[key] for key in keys])] for keys in chain.tracks]
    series = Series.open(run, "heavier")
    found = {}
    for stretch in series.walk("phi2", "correlator"):
        found.setdefault(stretch.chain, []).append(stretch.values["phi2"][0])
        assert stretch.values["correlator"].shape == (1, stretch.values["phi2"].shape[1], 4)
    assert len(found) == max(1, streams) == len(expected)
    for number, parts in found.items():
        np.testing.assert_allclose(np.concatenate(parts), expected[number], rtol=1e-12)
    assert any(start % 512 for start in chain.starts) or streams == 0
    shape = series.moments.all
    assert (shape.chains, shape.n, shape.steps) == (
        len(found),
        sum(map(len, expected)),
        min(map(len, expected)),
    )
    row = estimates(series, ["phi2"])["phi2"]
    target, other = (FreeField(shape=(4, 4), m2=m2) for m2 in (0.6, 0.75))
    exact = target.spectrum.mean()
    assert abs(row.value - exact) < 4 * row.error and abs(row.reweighted[0] - exact) < 4 * row.reweighted[1]
    assert abs(phi2.mean() - exact) > 6 * phi2.std() / np.sqrt(phi2.size)  # control: without correction
    assert abs(phi2.mean() - other.spectrum.mean()) < 4 * phi2.std() / np.sqrt(phi2.size)


def test_a_histogram_range_from_a_part_of_the_weights(monkeypatch):
    from latticeflow.analysis import plots
    from latticeflow.statistics import summarise_weights

    log_w = np.random.default_rng(2).normal(3, 0.5, 50_000)
    summary = summarise_weights(log_w)
    ranges = []
    for most in (10**6, 9_000):
        monkeypatch.setattr(plots, "RANGE_FROM", most)
        ranges.append(plots._log_weight_range(lambda: iter(np.array_split(log_w, 77)), summary))
    whole, part = ranges
    assert whole[0] == np.quantile(log_w, 5e-4, method="higher") - summary.log_z
    assert whole[1] == part[1] == pytest.approx(log_w.max() - summary.log_z, abs=1e-12)
    assert 0 < abs(part[0] - whole[0]) < 0.3


@pytest.mark.parametrize("sampler", ["heavier", "hmc"])
def test_a_job_may_draw_while_an_ensemble_is_read(run, sampler):
    """The numbers are those of the blocks that were there when it was opened."""
    sample_run(run, sampler=sampler, draws=8192)
    expected = estimates(Series.open(run, sampler), ["chi2", "xi"])
    series = Series.open(run, sampler)
    sample_run(run, sampler=sampler, draws=10_000)
    longer = Series.open(run, sampler).chain  # somebody else's reading builds it
    assert longer is None or longer.proposals > 8192
    assert estimates(series, ["chi2", "xi"]) == expected
    assert series.ensemble.draws == 8192 < Series.open(run, sampler).ensemble.draws


def test_a_training_of_one_evaluation_is_plotted(recwarn):
    from latticeflow.analysis import plots

    assert plots.training([{"step": 40, "loss": 0.5, "ess": 0.9, "ess_draws": 1024}]).startswith(b"\x89PNG")
    assert not [one for one in recwarn if "ylim" in str(one.message)]


def test_the_stages_of_a_plan_are_told_apart_in_the_plot():
    """Loss above each stage's own bound, and a line where a stage ends; one stage is the plain loss."""
    from latticeflow.analysis import plots

    def lines(step, stage, log_z):
        return {
            "step": step,
            "loss": 0.5 - log_z,
            "ess": 0.9,
            "ess_draws": 1024,
            "log_z": log_z,
            "stage": stage,
        }

    def curves(axes):
        return [line.get_ydata() for line in axes.lines if line.get_marker() == "."]

    log = [lines(10, 1, 3.0), lines(20, 1, 3.0), lines(30, 2, 80.0), lines(40, 2, 81.0)]
    for log_z, last in ((None, [1.5, 0.5]), (81.2, [1.7, 0.7])):
        above, below = plots.training.__wrapped__(log, log_z).axes
        for found, expected in zip(curves(above), ([0.5, 0.5], last), strict=True):
            np.testing.assert_allclose(found, expected)
        for axes in (above, below):
            ends = [line.get_xdata() for line in axes.lines if line.get_linestyle() == ":"]
            assert ends == [[20, 20]]
    above, _ = plots.training.__wrapped__(log[:2], 3.0).axes
    np.testing.assert_allclose(*curves(above), [-2.5, -2.5])
    many = [lines(10 * k, 1 + k // 160, 3.0) for k in range(202)]  # smoothed over 4 lines
    assert plots.training(many).startswith(b"\x89PNG")
