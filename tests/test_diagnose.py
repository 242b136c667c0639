"""Which diagnostic sees which failure: ensembles that are wrong in known ways, and exact ones, which none may accuse."""

import json
import re

import numpy as np
import pytest
import torch
from known_samplers import TARGET, draw
from tables import rng
from typer.testing import CliRunner
from wrong_ensembles import TRAIN, a_run, give, store_all

from latticeflow.analysis.diagnose import diagnose_run, diagnose_runs
from latticeflow.analysis.diagnose_classifier import features
from latticeflow.analysis.diagnose_draws import draws, history, open_series
from latticeflow.analysis.diagnose_modes import kind_of, shares
from latticeflow.analysis.estimates import estimates
from latticeflow.cli import app
from latticeflow.config import Deck
from latticeflow.errors import InputError
from latticeflow.observables import measure
from latticeflow.production.train import train_run
from latticeflow.run import Run
from latticeflow.samplers import samplers
from latticeflow.samplers.base import Draws
from latticeflow.targets import Camel, Wilson
from latticeflow.targets.base import targets
from latticeflow.targets.hypercube import Hypercube

torch.set_num_threads(1)
N = 6144
KINDS = ("honest", "proposal", "few", "one_well", "shuffled", "memorised", "heavy")
# What each failure must be seen by, and what cannot see it. The rest may: a wrong distribution is wrong in many ways.
SEEN = {
    "few": {"action_histogram", "two_point_chi2", "correlator_chi2", "auc", "repeated"},
    "one_well": {"m", "modes", "modes_missing", "auc"},
    "shuffled": {
        "action",
        "ising_energy",
        "phi_k1",
        "xi",
        "action_histogram",
        "two_point_chi2",
        "correlator_chi2",
        "auc",
    },
    "memorised": {"nearest", "copies"},
    "heavy": {"phi2", "action", "chi2", "action_histogram", "two_point_chi2", "correlator_chi2"},
}
BLIND = {
    "few": {"copies", "modes_missing"},
    "one_well": {"phi2", "chi2", "action", "action_histogram", "two_point_chi2", "repeated", "copies"},
    "shuffled": {"phi2", "phi4", "chi2", "m", "modes", "modes_missing", "repeated", "copies"},
    "memorised": {"phi2", "chi2", "two_point_chi2", "correlator_chi2", "modes", "modes_missing", "repeated"},
    "heavy": {"m", "modes", "modes_missing", "repeated", "copies"},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run = a_run(tmp_path_factory.mktemp("runs") / "free", TARGET, **TRAIN)
    store_all(run, N)
    return run


@pytest.fixture(scope="module")
def found(run):
    result = diagnose_runs([run], [f"test_{kind}" for kind in KINDS], "test_chain", draws=800)
    return {one.member.label.removeprefix("test_"): one.findings for one in [*result.found, result.reference]}


def wrong(findings):
    return {key for key, one in findings.items() if one.wrong}


@pytest.mark.parametrize("kind", SEEN)
def test_which_diagnostic_sees_which_failure(found, kind):
    assert set(found[kind]) >= SEEN[kind] | BLIND[kind]
    assert wrong(found[kind]) >= SEEN[kind], {key: found[kind][key].sigma for key in SEEN[kind]}
    assert not wrong(found[kind]) & BLIND[kind], {key: found[kind][key].sigma for key in BLIND[kind]}


@pytest.mark.parametrize("kind", ["honest", "proposal"])
def test_exact_ensembles_are_not_accused(found, kind):
    """Draws of the target, and draws of another one corrected by Metropolis: nothing beyond 3 sigma, AUC 1/2."""
    assert wrong(found[kind]) == set()
    auc = found[kind]["auc"]
    assert abs(auc.value - 0.5) < 3 * auc.error < 0.1
    said = {key for key, one in found[kind].items() if one.sigma is not None}
    assert said >= {"phi2", "action_histogram", "two_point_chi2", "modes", "auc", "nearest", "copies"}


def test_numbers_that_are_known(found):
    assert found["few"]["repeated"].value == pytest.approx(1 - 32 / N, abs=1e-12)
    assert found["honest"]["repeated"].value == 0
    assert found["one_well"]["modes"].value == 0 and found["one_well"]["modes_missing"].text == "m > 0"
    assert found["one_well"]["modes_missing"].value == pytest.approx(0.5, abs=0.03)
    # the best classifier knows nothing but the sign: of the reference's draws it gives half away for sure
    assert found["one_well"]["auc"].value == pytest.approx(0.75, abs=0.05)
    assert found["memorised"]["copies"].value == pytest.approx(1 - 0.75, abs=0.01)  # all, not three quarters
    distance = 0.02 * (64 - 2 / 3) ** 0.5  # median of |noise|, that of a chi distribution
    ratio = found["memorised"]["nearest"].value
    assert ratio == pytest.approx(distance / _median_distance(), rel=0.03)
    assert found["proposal"]["repeated"].sigma is None  # Metropolis chains may repeat


def _median_distance():
    """Of fresh draws to the nearest of as many others as there are training configurations, by the definition."""
    x, y = (TARGET.sample(n, rng(k)).flatten(1) for n, k in ((300, 30), (5000, 31)))
    return float(torch.stack([(one - y).square().sum(1).min() for one in x]).sqrt().median())


def test_pulls_are_those_of_the_estimates(run, found):
    one, two = (estimates(open_series(run, f"test_{kind}")) for kind in ("heavy", "chain"))
    for name in ("phi2", "xi", "action"):
        expected = (one[name].value - two[name].value) / np.hypot(one[name].error, two[name].error)
        assert found["heavy"][name].sigma == pytest.approx(expected)
        assert found["chain"][name].value == two[name].value


def test_draws_are_exact_and_distinct(run):
    """A Metropolis chain is thinned until next to nothing repeats; without that, dropping repeats would bias."""
    series = open_series(run, "test_proposal")
    rows = estimates(series)
    some = draws(series, rows, 100_000)
    assert len(torch.unique(some.x.flatten(1), dim=0)) == len(some.x) > 2000
    assert some.thin > 1 and 0 <= some.dropped <= 0.01
    virial = -(some.x * TARGET.force(some.x)).flatten(1).sum(1)
    assert abs(virial.mean() - 64) < 4 * virial.std() / len(virial) ** 0.5
    first, second = some.halves()
    assert len(first) + len(second) == len(some.x) and abs(len(first) / len(second) - 1) < 0.2
    chain = draws(open_series(run, "test_chain"), estimates(open_series(run, "test_chain")), 1000)
    assert len(chain.x) == 1000 and chain.thin >= 9 and set(chain.units) == set(range(64))
    owners = [set(chain.units[np.isin(chain.units, np.unique(chain.units)[k::2])]) for k in (0, 1)]
    assert not owners[0] & owners[1]


def test_wells_count_independent_draws(run):
    """rho of the sign of an AR(1) is (2/pi) asin(a^t); chains that never change their well are one draw each."""
    series = open_series(run, "test_chain")
    own = shares(series, kind_of(series.target, series.names))
    tau = 0.5 + sum(2 / np.pi * np.arcsin(0.8**t) for t in range(1, 100))
    assert own.size == pytest.approx(65536 / (2 * tau), rel=0.1)
    assert abs(own.pull(0.5)) < 4
    np.testing.assert_array_equal(history(series, "phi2"), series["phi2"])
    np.testing.assert_array_equal(history(series, "phi2", most=6400), series["phi2"][:, :100])


def test_frozen_chains_are_one_draw_each(tmp_path):
    frozen = a_run(tmp_path / "frozen", TARGET)
    draw(frozen, "test_frozen", 16384)
    series = open_series(frozen, "test_frozen")
    own = shares(series, kind_of(series.target, series.names))
    assert own.size == 64 and abs(own.pull(0.5)) < 4


def test_sectors_of_a_gauge_field(tmp_path):
    """A generator without |Q| > 1, and its exact counterpart; what the classifier sees is gauge-invariant."""
    target = Wilson(shape=(6, 6), group="u1", beta=1.5)
    run = a_run(tmp_path / "u1", target)
    exact = samplers.find("exact")().build(target)
    x, y, z = (exact.draw(None, 4096, rng(40, k))[0].x for k in range(3))
    charge = measure(target, z, "charge")["charge"]
    give(run, "test_u1_exact", x, exact=True)
    give(run, "test_u1_honest", y)
    give(run, "test_u1_narrow", z[torch.from_numpy(np.abs(charge) <= 1)][:2048])
    result = diagnose_runs([run], ["test_u1_honest", "test_u1_narrow"], "test_u1_exact", draws=512)
    honest, narrow = (one.findings for one in result.found)
    assert wrong(honest) == set() and {"wilson_loops_chi2", "modes", "auc", "gauge_action"} <= set(honest)
    assert {"charge2", "modes", "modes_missing"} <= wrong(narrow)
    absent = {int(q) for q in narrow["modes_missing"].text.split(",")}
    share = {q: (measure(target, x, "charge")["charge"] == q).mean() for q in range(-5, 6)}
    assert absent == {q for q, p in share.items() if abs(q) > 1 and p >= 1e-3} and {-2, 2} <= absent
    angle = torch.from_numpy(rng(41).uniform(-3, 3, (5, 6, 6)))
    turned = x[:5].clone()
    for mu in range(2):
        turned[:, mu] += angle - torch.roll(angle, -1, 1 + mu)
    torch.testing.assert_close(features(target, turned), features(target, x[:5]), rtol=0, atol=1e-12)


@targets.add("test_half")
class Half(Hypercube):
    """f = 1 where u_0 < 1/2, else 0: a cut."""

    @property
    def dim(self):
        return 3

    def log_integrand(self, u):
        return torch.where(u[:, 0] < 0.5, 0.0, -torch.inf).to(u.dtype)


def test_events(tmp_path):
    """Two peaks, of which a generator has one; and draws outside cuts, which are no events."""
    run, generator = a_run(tmp_path / "camel", Camel(dimensions=2, sigma=0.1)), rng(50)

    def camel(n, upper):
        centre = np.where(generator.random(n) < upper, 2 / 3, 1 / 3)[:, None]
        return torch.from_numpy((centre + 0.1 / 2**0.5 * generator.normal(size=(n, 2))).clip(0, 1))

    give(run, "test_camel_exact", camel(4096, 0.5), exact=True)
    give(run, "test_camel_honest", camel(4096, 0.5))
    give(run, "test_camel_half", camel(4096, 0.8))
    result = diagnose_runs([run], ["test_camel_honest", "test_camel_half"], "test_camel_exact", draws=1024)
    honest, half = (one.findings for one in result.found)
    assert wrong(honest) == set() and {"action_histogram", "auc", "modes"} <= set(honest)
    assert {"modes", "auc", "upper_peak"} <= wrong(half) and "action_histogram" not in wrong(half)
    assert half["modes"].value == pytest.approx(0.8, abs=0.03)

    cut = a_run(tmp_path / "half", Half())
    give(cut, "test_outside", torch.from_numpy(generator.random((4096, 3))))
    give(cut, "test_nowhere", torch.from_numpy(0.5 + 0.5 * generator.random((1024, 3))))
    with pytest.raises(InputError, match="zero at all 1,024 draws"):
        open_series(cut, "test_nowhere")
    series = open_series(cut, "test_outside")
    u = np.concatenate([data["x"] for data in series.ensemble.iterate("x")])
    assert history(series).shape == (1, (u[:, 0] < 0.5).sum()) and np.isfinite(history(series)).all()
    some = draws(series, {}, 1000)
    assert len(some.x) > 400 and bool((some.x[:, 0] < 0.5).all())


def test_page_table_and_numbers_of_several_runs(run, tmp_path):
    other = a_run(tmp_path / "other", TARGET)
    give(other, "test_honest", TARGET.sample(2048, rng(60)))
    command = ["diagnose", str(run.path), str(other.path), "--samplers", "test_honest,test_few"]
    out = CliRunner().invoke(app, [*command, "--reference", "test_chain", "--draws", "128"])
    assert out.exit_code == 0, out.output
    assert "free/test_few: the reference is what it was trained on" in out.output
    assert "other/test_honest: the reference" not in out.output  # of a run without a training
    assert "free/test_few: wrong in" in out.output and "not trained on stored configurations" in out.output
    folder = run.path / "diagnose"
    html = (folder / "diagnose.html").read_text()
    assert len(re.findall('src="data:image/png;base64,', html)) == html.count("<img") >= 6
    assert "http" not in html
    whole = json.loads((folder / "diagnose.json").read_text())
    assert list(whole["ensembles"]) == [
        "free/test_chain",
        "free/test_honest",
        "other/test_honest",
        "free/test_few",
    ]
    assert whole["ensembles"]["free/test_few"]["repeated"]["wrong"] is True
    assert whole["ensembles"]["other/test_honest"]["copies"]["value"] is None
    again = diagnose_runs([run], ["test_few"], "test_chain", draws=128).as_json()["ensembles"]["test_few"]
    assert again == whole["ensembles"]["free/test_few"]  # the same numbers each time


def test_data_that_have_changed_since_the_training(tmp_path):
    """Which chains were held out is told by the ensemble; one that has more blocks by now does not tell it."""
    home = a_run(tmp_path / "home", TARGET)
    ensemble = give(home, "test_exact_data", TARGET.sample(8192, rng(70)), exact=True)
    deck = Deck(
        name="pca",
        seed=6,
        target=TARGET,
        model={"kind": "pca", "latent": 4},
        train={**TRAIN, "data": str(ensemble.path)},
    )
    (tmp_path / "pca.toml").write_text(deck.toml())
    train_run(tmp_path / "pca.toml", folder=tmp_path / "pca", device="cpu")
    trained = Run.open(tmp_path / "pca")
    give(trained, "test_honest", TARGET.sample(2048, rng(71)))

    def copies():
        found = diagnose_runs([trained, home], ["test_honest"], "test_exact_data", draws=128)
        return found.found[0].findings["copies"]

    assert abs(copies().sigma) < 3 and copies().error < 0.1
    x = TARGET.sample(1024, rng(72))
    ensemble.write(8, 0, Draws(x, TARGET.log_prob(x).numpy()), None, seconds=0.1)
    assert copies().sigma is None and "has changed since the training" in copies().reason


def test_what_cannot_be_compared(run, tmp_path):
    other = a_run(tmp_path / "other", TARGET.at(m2=0.5))
    give(other, "test_honest", TARGET.sample(1024, rng(61)))
    with pytest.raises(InputError, match=r"different targets.*m2: 0.6, now 0.5"):
        diagnose_run([run.path, other.path], ["test_honest"], "test_chain")
    with pytest.raises(InputError, match="'test_few': draws of a model"):
        diagnose_run(run.path, ["test_honest"], "test_few")
    with pytest.raises(InputError, match="no ensemble of sampler 'hmc'"):
        diagnose_run(run.path, ["test_honest"], "hmc")
    with pytest.raises(InputError, match="no ensemble of sampler 'flow'"):
        diagnose_run(run.path, ["flow"], "test_chain")
    with pytest.raises(InputError, match="one beside the reference"):
        diagnose_run(run.path, ["test_chain"], "test_chain")
    with pytest.raises(InputError, match="draws = 10"):
        diagnose_run(run.path, ["test_honest"], "test_chain", draws=10)
