"""Event files, read back by pylhe and pyhepmc: momenta, weights, beams, colours and the cross section are what was drawn."""

import gzip
import math
from contextlib import contextmanager

import numpy as np
import pyhepmc
import pylhe
import pytest
import torch
from cube_samplers import draw
from test_colour_flow import singlet

from latticeflow.analysis import export_events
from latticeflow.analysis.events import Events
from latticeflow.analysis.export import export_run
from latticeflow.analysis.series import open_ensemble
from latticeflow.config import Deck
from latticeflow.errors import InputError, WriteFailed
from latticeflow.run import Run

ENERGY = 91.2


def make_run(tmp_path, process, energy=ENERGY, **target):
    deck = {
        "name": "events",
        "seed": 1,
        "target": {
            "kind": "matrix_element",
            "process": process,
            "energy": energy,
            "phase_space": "rambo",
            **target,
        },
    }
    return Run.create(Deck.parse(deck), tmp_path / "run")


@pytest.fixture
def run(tmp_path):
    found = make_run(tmp_path, "test_flat_three")
    draw(found, "test_power", 3, block=512)
    return found


def momenta(event):
    return np.array([[q.e, q.px, q.py, q.pz] for q in event.particles])


@pytest.mark.parametrize("suffix", [".lhe", ".lhe.gz"])
@pytest.mark.parametrize("mode", ["unweighted", "weighted", "metropolis"])
def test_les_houches(run, tmp_path, suffix, mode):
    out = tmp_path / f"events{suffix}"
    quantile = 0.8 if mode == "unweighted" else None
    export_run(run, out, "test_power", events=mode, quantile=quantile)
    assert (out.read_bytes()[:2] == b"\x1f\x8b") == suffix.endswith("gz")
    file = pylhe.LHEFile.fromfile(out)
    found = list(file.events)
    target = run.deck.target
    events = Events(open_ensemble(run, "test_power"), target, mode, quantile)
    x = np.concatenate([piece for _, piece, _ in events.pieces()])
    weight = np.concatenate([w for _, _, w in events.pieces()])
    assert len(found) == events.n == len(x)
    init = file.init.initInfo
    assert (init.beamA, init.beamB, init.energyA, init.energyB) == (11, -11, ENERGY / 2, ENERGY / 2)
    (process,) = file.init.procInfo
    assert (process.xSection, process.error) == (events.z, events.z_error)
    # the volume of phase space of three massless particles at 91.2 GeV, times the flux
    exact = 1.0478523537 * 389379372.1 / (2 * ENERGY**2)
    assert process.xSection == pytest.approx(exact, abs=4 * process.error)
    assert 0 < process.error < 0.05 * exact
    weights = np.array([event.eventinfo.weight for event in found])
    if mode == "metropolis":
        assert init.weightingStrategy == 3 and process.unitWeight == 1 and (weights == 1).all()
    else:
        assert init.weightingStrategy == 4 and process.unitWeight == weights.max() == events.largest
        np.testing.assert_array_equal(weights, weight)
        assert weights.mean() == pytest.approx(process.xSection, rel=1e-12)
        assert weights.max() > weights.min()
    p = np.array([momenta(event) for event in found])
    np.testing.assert_allclose(p, target.event(torch.from_numpy(x))[0].numpy(), rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(p[:, :2].sum(1), p[:, 2:].sum(1), atol=1e-11)
    for event in found:
        assert [q.id for q in event.particles] == [11, -11, 1, -1, 21]
        assert [q.status for q in event.particles] == [-1, -1, 1, 1, 1]
        assert [(q.mother1, q.mother2) for q in event.particles] == [(0, 0)] * 2 + [(1, 2)] * 3
        assert [(q.color1, q.color2) for q in event.particles] == [
            (0, 0),
            (0, 0),
            (501, 0),
            (0, 502),
            (502, 501),
        ]
        assert event.eventinfo.scale == pytest.approx(ENERGY) and event.eventinfo.pid == 1
        assert all(q.spin == 9 and q.m == 0 for q in event.particles)
    assert file.header.extra_elements[0].text.strip() == run.deck.toml().strip()
    with pyhepmc.open(out) as again:  # HepMC3's own reader of Les Houches files
        others = list(again)
    assert [one.weights[0] for one in others] == pytest.approx(weights.tolist(), rel=1e-12)
    q = np.array([[[one.momentum.e, *list(one.momentum)[:3]] for one in other.particles] for other in others])
    np.testing.assert_allclose(q, p, rtol=1e-14, atol=1e-14)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".hepmc", ".hepmc.gz"])
def test_hepmc(run, tmp_path, suffix):
    out = tmp_path / f"events{suffix}"
    export_run(run, out, "test_power", quantile=0.8)
    with pyhepmc.open(out) as file:
        found = list(file)
    target = run.deck.target
    events = Events(open_ensemble(run, "test_power"), target, "unweighted", 0.8)
    x = np.concatenate([piece for _, piece, _ in events.pieces()])
    weight = np.concatenate([w for _, _, w in events.pieces()])
    assert len(found) == events.n
    p = target.event(torch.from_numpy(x))[0].numpy()
    for number, event in enumerate(found):
        beams = sorted(event.beams, key=lambda one: -one.momentum.pz)
        assert [one.pid for one in beams] == [11, -11] and all(one.status == 4 for one in beams)
        assert [one.momentum.e for one in beams] == [ENERGY / 2] * 2
        final = [one for one in event.particles if one.status == 1]
        assert [one.pid for one in final] == [1, -1, 21] and len(event.vertices) == 1
        q = np.array([[one.momentum.e, one.momentum.px, one.momentum.py, one.momentum.pz] for one in final])
        np.testing.assert_allclose(q, p[number, 2:], rtol=1e-13, atol=1e-13)
        assert event.weights == pytest.approx([weight[number]], rel=1e-14)
        assert event.run_info.weight_names == ["Weight"]
        cross = event.cross_section
        assert cross.xsec() == pytest.approx(events.z, rel=1e-7)  # HepMC writes as many digits
        assert cross.xsec_err() == pytest.approx(events.z_error, rel=1e-7)
        assert event.momentum_unit == pyhepmc.Units.GEV and event.event_number == number
    assert np.mean([event.weights[0] for event in found]) == pytest.approx(events.z, rel=1e-12)
    assert found[0].run_info.tools[0].name == "latticeflow"
    text = gzip.decompress(out.read_bytes()) if suffix.endswith("gz") else out.read_bytes()
    lines = text.decode().split("\nE ")[1].splitlines()
    # q, qbar, g are the particles 3, 4, 5
    flows = {tuple(line.split()[1:3]): int(line.split()[3]) for line in lines if " flow" in line}
    assert flows == {
        ("3", "flow1"): 501, ("3", "flow2"): 0,
        ("4", "flow1"): 0, ("4", "flow2"): 502,
        ("5", "flow1"): 502, ("5", "flow2"): 501,
    }  # fmt: skip
    scale = next(float(line.split()[-1]) for line in lines if line.startswith("A 0 event_scale"))
    assert scale == pytest.approx(ENERGY, rel=1e-5)


@pytest.mark.parametrize("mode", ["unweighted", "weighted", "metropolis"])
@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_arrays(run, tmp_path, suffix, mode):
    """Momenta, codes, colours and weights are those of the event file; without `events` a file holds points of the cube."""
    h5py = pytest.importorskip("h5py")
    out = tmp_path / f"events{suffix}"
    export_run(run, out, "test_power", events=mode)
    if suffix == ".npz":
        with np.load(out) as file:
            found = {name: file[name] for name in file}
    else:
        with h5py.File(out) as file:
            found = {name: file[name][:] for name in file} | dict(file.attrs)
    export_run(run, tmp_path / "same.lhe", "test_power", events=mode)
    file = pylhe.LHEFile.fromfile(tmp_path / "same.lhe")
    events = list(file.events)
    n = len(events)
    assert found["p"].shape == (n, 5, 4) and found["p"].dtype == np.float64
    np.testing.assert_array_equal(found["p"], [momenta(event) for event in events])
    np.testing.assert_array_equal(found["ids"], [[q.id for q in event.particles] for event in events])
    tags = [[(q.color1, q.color2) for q in event.particles] for event in events]
    np.testing.assert_array_equal(found["colours"], tags)
    np.testing.assert_allclose(found["scale"], [event.eventinfo.scale for event in events], rtol=1e-14)
    if mode != "metropolis":
        np.testing.assert_array_equal(found["weight"], [event.eventinfo.weight for event in events])
    assert found["z"] == file.init.procInfo[0].xSection and found["z_error"] == file.init.procInfo[0].error
    assert found["weight"].mean() == pytest.approx(float(found["z"]), rel=1e-12)
    assert str(found["unit"]) == "pb" and str(found["mode"]) == mode
    assert str(found["deck"]) == run.deck.toml() and "origin" in str(found["ensemble"])
    assert "x" not in found and not list(tmp_path.glob(".*"))
    export_run(run, tmp_path / f"points{suffix}", "test_power")
    if suffix == ".npz":
        with np.load(tmp_path / "points.npz") as file:
            assert file["x"].shape[1:] == (run.deck.target.dim,) and "p" not in file


def test_unit_weights_and_bytes(run, tmp_path):
    """At the maximum itself weights are 1; the same events are the same bytes, other blocks are more of them."""
    names = [tmp_path / f"{i}.lhe.gz" for i in range(3)]
    export_run(run, names[0], "test_power", quantile=1.0)
    file = pylhe.LHEFile.fromfile(names[0])
    assert file.init.initInfo.weightingStrategy == 3
    assert {event.eventinfo.weight for event in file.events} == {1.0}
    export_run(run, names[1], "test_power", quantile=1.0)
    assert names[0].read_bytes() == names[1].read_bytes()
    export_run(run, names[2], "test_power", maximum=file.init.procInfo[0].xSection)
    assert gzip.decompress(names[2].read_bytes()).count(b"<event>") > len(
        list(pylhe.LHEFile.fromfile(names[0]).events)
    )


def test_a_decay(tmp_path):
    run = make_run(tmp_path, "test_decay", energy=0.1056583745)
    draw(run, "test_flat", 2, block=512)
    export_run(run, tmp_path / "decay.lhe", "test_flat")
    export_run(run, tmp_path / "decay.hepmc", "test_flat")
    file = pylhe.LHEFile.fromfile(tmp_path / "decay.lhe")
    init = file.init.initInfo
    assert (init.beamA, init.beamB, init.energyA, init.energyB) == (13, 0, 0.1056583745, 0)
    first = next(iter(file.events))
    assert [(q.id, q.status, q.mother1) for q in first.particles] == [
        (13, -1, 0),
        (11, 1, 1),
        (-12, 1, 1),
        (14, 1, 1),
    ]
    assert [q.m for q in first.particles] == [0.1056583745, 0.000511, 0, 0]
    assert all(q.color1 == q.color2 == 0 for q in first.particles)
    with pyhepmc.open(tmp_path / "decay.hepmc") as events:
        event = next(iter(events))
        assert [one.pid for one in event.beams] == [13] and event.cross_section is None


def test_gluons_both_ways_round(tmp_path):
    run = make_run(tmp_path, "test_gluons", energy=1000.0)
    draw(run, "test_flat", 1, block=1024)
    export_run(run, tmp_path / "g.lhe", "test_flat", events="weighted")
    seen = set()
    for event in pylhe.LHEFile.fromfile(tmp_path / "g.lhe").events:
        tags = np.array([(q.color1, q.color2) for q in event.particles])
        singlet([21] * 5, 2, tags)
        seen.add(tags.tobytes())
    assert len(seen) == 24  # (5 - 1)! orders on a ring


@pytest.mark.parametrize("energy, process", [(1000.0, "gg_ggg"), (91.2, {"kind": "ee_qqg", "quark": "u"})])
def test_where_showers_begin(tmp_path, energy, process):
    """SCALUP, from the momenta of the file: least pT of gluons, sqrt of the least s_ij of e+e-; not sqrt(s)."""
    run = make_run(tmp_path, process, energy=energy, cuts={"y_min": 1e-3})
    draw(run, "test_flat", 1, block=256)
    export_run(run, tmp_path / "s.lhe", "test_flat", events="weighted")
    for event in pylhe.LHEFile.fromfile(tmp_path / "s.lhe").events:
        p = momenta(event)[2:]
        if process == "gg_ggg":
            expected = np.hypot(p[:, 1], p[:, 2]).min()
        else:
            sums = [p[0] + p[1], p[0] + p[2], p[1] + p[2]]
            expected = math.sqrt(min(q[0] ** 2 - q[1:] @ q[1:] for q in sums))
        assert event.eventinfo.scale == pytest.approx(expected, rel=1e-8) and expected < 0.7 * energy


def test_options_without_a_meaning(run, tmp_path):
    flat = {"sampler": "test_power"}
    for options, words in [
        ({"out": "a.h5", "quantile": 0.9}, "quantile = 0.9 without events"),
        ({"out": "a.npz", "maximum": 2.0}, "maximum = 2.0 without events"),
        ({"out": "a.lhe", "events": "weighted", "quantile": 0.9}, "quantile = 0.9 of weighted events"),
        ({"out": "a.h5", "events": "metropolis", "maximum": 1.0}, "maximum = 1.0 of metropolis events"),
        ({"out": "a.lhe", "quantile": 0.9, "maximum": 1.0}, "expected one of them"),
        ({"out": "a.h5", "events": "weighted", "proposals": True}, "neither raw proposals nor"),
        ({"out": "a.json.gz", "events": "weighted"}, r"events go to .*\.h5"),
        ({"out": "a.h5", "events": "every"}, "events = 'every'"),
    ]:
        options = dict(options)
        with pytest.raises(InputError, match=words):
            export_run(run, tmp_path / options.pop("out"), **flat, **options)
    assert not list(tmp_path.glob("*a.*"))


def test_what_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="neither raw proposals nor observables"):
        export_run(run, tmp_path / "a.lhe", "test_power", proposals=True)
    with pytest.raises(InputError, match="events = 'every'"):
        export_run(run, tmp_path / "a.lhe", "test_power", events="every")
    with pytest.raises(InputError, match="quantile = 2"):
        export_run(run, tmp_path / "a.lhe", "test_power", quantile=2.0)
    with pytest.raises(InputError, match=r"suffix '\.root'.*\.hepmc"):
        export_run(run, tmp_path / "a.root", "test_power")
    with pytest.raises(InputError, match="there is no folder"):
        export_run(run, tmp_path / "nowhere" / "a.lhe", "test_power")
    (tmp_path / "a.lhe").write_text("mine")
    with pytest.raises(InputError, match="it exists; nothing was changed"):
        export_run(run, tmp_path / "a.lhe", "test_power")
    monkeypatch.setattr(export_events, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pylhe is not installed; pip install 'latticeflow\[events\]'"):
        export_run(run, tmp_path / "b.lhe", "test_power")
    with pytest.raises(InputError, match="pyhepmc is not installed"):
        export_run(run, tmp_path / "b.hepmc", "test_power")
    camel = Run.create(
        Deck.parse({"name": "camel", "seed": 1, "target": {"kind": "camel", "dimensions": 2}}),
        tmp_path / "camel",
    )
    draw(camel, "test_flat", 1)
    with pytest.raises(InputError, match="target 'camel' has no events"):
        export_run(camel, tmp_path / "c.lhe", "test_flat")
    with pytest.raises(InputError, match="target 'camel' has no events"):
        export_run(camel, tmp_path / "c.h5", "test_flat", events="weighted")


@pytest.mark.parametrize("suffix", [".lhe", ".lhe.gz", ".hepmc", ".hepmc.gz"])
def test_a_disk_that_refuses(run, tmp_path, monkeypatch, suffix):
    """A full disk after some bytes, and a folder that may not be written: an error, and no file is left."""
    original = export_events._opened

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 20_000

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

    @contextmanager
    def full(path, compress):
        with original(path, compress) as file:
            yield Full(file)

    monkeypatch.setattr(export_events, "_opened", full)
    with pytest.raises(WriteFailed, match="No space left"):
        export_run(run, tmp_path / f"full{suffix}", "test_power", events="weighted")
    assert not list(tmp_path.glob("*full*")) and not list(tmp_path.glob(".*"))


def test_hadrons(tmp_path):
    """Beams are protons, partons what they may be and as often as their share says; remnants take the rest."""
    process = {"kind": "drell_yan", "mass_min": 60.0, "mass_max": 120.0}
    run = make_run(tmp_path, process, energy=14000.0)
    draw(run, "test_flat", 2)
    export_run(run, tmp_path / "dy.lhe", "test_flat", events="weighted")
    export_run(run, tmp_path / "dy.hepmc", "test_flat", events="weighted")
    file = pylhe.LHEFile.fromfile(tmp_path / "dy.lhe")
    init = file.init.initInfo
    assert (init.beamA, init.beamB, init.energyA, init.energyB) == (2212, 2212, 7000, 7000)
    found = list(file.events)
    target, events = run.deck.target, Events(open_ensemble(run, "test_flat"), run.deck.target, "weighted")
    u = torch.from_numpy(np.concatenate([x for _, x, _ in events.pieces()]))
    shares, pairs = target.channel_weights(u).numpy(), target.process.channels
    for number, pair in enumerate(pairs):
        seen = np.array([tuple(q.id for q in event.particles[:2]) == pair for event in found])
        expected = shares[:, number]
        error = math.sqrt((expected * (1 - expected)).sum())
        assert seen.sum() == pytest.approx(expected.sum(), abs=4 * error)
    for event in found:
        p = momenta(event)
        np.testing.assert_allclose(p[:2].sum(0), p[2:].sum(0), atol=1e-9)
        assert event.eventinfo.scale == pytest.approx(math.sqrt(4 * p[0, 0] * p[1, 0]), rel=1e-9)
        assert 60 <= event.eventinfo.scale <= 120 and event.eventinfo.aqed == target.process.alpha
        singlet([q.id for q in event.particles], 2, np.array([(q.color1, q.color2) for q in event.particles]))
    with pyhepmc.open(tmp_path / "dy.hepmc") as file:
        for number, event in enumerate(file):
            assert [one.pid for one in event.beams] == [2212, 2212]
            assert [one.momentum.e for one in event.beams] == [7000, 7000]
            partons = [one for one in event.particles if one.status == 21]
            assert [one.pid for one in partons] == [q.id for q in found[number].particles[:2]]
            for vertex in event.vertices:
                for name in ("e", "px", "py", "pz"):
                    into, out = (
                        sum(getattr(one.momentum, name) for one in side)
                        for side in (vertex.particles_in, vertex.particles_out)
                    )
                    assert into == pytest.approx(out, abs=1e-8)
            final = [one for one in event.particles if one.status == 1]
            assert sorted(one.pid for one in final) == [-13, 13, 82, 82]
            # what is final balances the beams
            total = np.sum([[one.momentum.e, *list(one.momentum)[:3]] for one in final], axis=0)
            np.testing.assert_allclose(total, [14000, 0, 0, 0], atol=1e-7)
            info, p = event.pdf_info, momenta(found[number])
            assert [info.parton_id1, info.parton_id2] == [one.pid for one in partons]
            assert [info.x1, info.x2] == pytest.approx([p[0, 0] / 7000, p[1, 0] / 7000], rel=1e-7)
            assert info.scale == pytest.approx(math.sqrt(4 * p[0, 0] * p[1, 0]), rel=1e-7)
