"""Thresholds: how galleries are drawn, what is promised and kept on other people, and the verb `gaitsdk calibrate`."""

from __future__ import annotations

import inspect
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from gaitsdk import Recognizer, synthetic
from gaitsdk.bundle import Bundle
from gaitsdk.errors import BundleError, CalibrationError, DatasetError, GaitError, InputError, OptionError
from gaitsdk.manifest import Calibration
from gaitsdk_training.calibrate_cli import calibrate as verb
from gaitsdk_training.evaluation.calibrate import Calibrated, Goal, calibrate_bundle
from gaitsdk_training.evaluation.calibrate import calibrate as set_thresholds
from gaitsdk_training.evaluation.galleries import Plan, Pool, default_size, draws, list_reranker, search, strangers
from gaitsdk_training.evaluation.open_set import fnir, fpir
from gaitsdk_training.evaluation.pairs import _drawn, pairs

TYPES = ("nm-01", "nm-05", "bg-01")
VIEWS = ("036", "090", "144")
Crowd = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def crowd(people: int = 60, seed: int = 0, noise: float = 1.0, kinds: tuple[str, ...] = TYPES) -> Crowd:
    """Features near one centre per person."""
    rng = np.random.default_rng(seed)
    rows = [(f"{seed}-{i:04d}", kind, view) for i in range(people) for kind in kinds for view in VIEWS]
    labels, types, views = (np.array([row[c] for row in rows]) for c in range(3))
    centres = rng.normal(size=(people, 4, 6)).repeat(len(kinds) * len(VIEWS), axis=0)
    return (centres + noise * rng.normal(size=centres.shape)).astype(np.float32), labels, types, views


def calibrate(*data: np.ndarray, reranker: Any = None, name: str = "none", **goal: Any) -> list[Calibrated]:
    return set_thresholds(*data, goal=Goal(**goal), reranker=reranker, name=name)


class Halved:
    """A re-ranker that needs no other candidate: half the shortlist's distance, plus a little of its own."""

    name, scope = "halved", "list"

    def rescore(self, probe: np.ndarray, candidates: np.ndarray) -> np.ndarray:
        apart = np.linalg.norm(probe[:, None] - candidates, axis=-1).mean(-1)
        return (apart / 2 + 0.05 * np.abs(candidates).mean((2, 3))).astype(np.float32)


def test_draws_are_what_they_say() -> None:
    data = crowd(20)
    pool, plan = Pool.check(*data), Plan(per_person=2, galleries=4, probes=3)
    drawn = draws(pool, 16, plan)
    assert len(drawn) == 4 and strangers(pool, drawn) > 12
    for each in drawn:
        enrolled = pool.labels[each.gallery]
        assert len(set(each.gallery.tolist())) == 16 and (np.unique(enrolled, return_counts=True)[1] == 2).all()
        assert (data[2][each.gallery] == "nm-01").all() and (data[2][each.probes] != "nm-01").all()
        who = pool.labels[each.probes]
        assert set(who[each.mated]) <= set(enrolled) and not set(who[~each.mated]) & set(enrolled)
        assert set(who[~each.mated]) == set(pool.people) - set(enrolled)
        assert np.unique(who, return_counts=True)[1].max() <= 3
        for row in each.probes[each.mated]:  # enrolled in other views
            assert pool.views[row] not in pool.views[each.gallery[enrolled == pool.labels[row]]]
    again = draws(pool, 16, plan)
    assert all(
        (a.gallery == b.gallery).all() and (a.probes == b.probes).all() for a, b in zip(drawn, again, strict=True)
    )
    assert (drawn[0].gallery != drawn[1].gallery).any()
    assert default_size(pool, plan) == 20


def test_pairs_are_what_they_say() -> None:
    features, labels, types, views = crowd(15, noise=0.6)
    lone = labels == labels[0]  # somebody with a probe and nothing to enrol
    kept = ~(lone & (types == "nm-01"))
    data = tuple(each[kept] for each in (features, labels, types, views))
    pool, plan = Pool.check(*data), Plan(galleries=3, probes=4)
    first, second = (np.concatenate(side) for side in zip(*_drawn(pool, plan), strict=True))
    genuine = pool.labels[first] == pool.labels[second]
    assert pool.asking[first].all() and pool.enrollable[second].all()
    assert (pool.views[first] != pool.views[second])[genuine].all()
    assert (~genuine).sum() == 15 * 4 * 3 and genuine.sum() == 14 * 4 * 3
    assert set(pool.labels[second[~genuine]]) == set(pool.labels[pool.enrollable]), "every other person is drawn"
    for reranker in (None, Halved()):
        found = pairs(pool, plan, list_reranker(reranker))
        for row in (0, 50, len(first) - 1):
            a, b = pool.features[[first[row]]], pool.features[[second[row]]]
            apart = np.linalg.norm(a - b, axis=-1).mean() if reranker is None else reranker.rescore(a, b[None])[0, 0]
            assert found.distances[row] == pytest.approx(apart, rel=1e-5)
        assert (found.genuine == genuine).all() and found.people == 15
        assert found.distances[genuine].mean() < found.distances[~genuine].mean()
        assert found.curve().eer is None, "15 people show no rate below 20 %"


@pytest.mark.parametrize("reranker", [None, Halved()])
def test_a_search_equals_the_recognizers_steps(reranker: Any) -> None:
    features, labels, types, views = crowd(12, noise=1.6)
    pool = Pool.check(features, labels, types, views)
    draw = draws(pool, 6, Plan(galleries=1))[0]
    found = search(pool, draw, list_reranker(reranker), 3)
    for row, probe in enumerate(draw.probes):
        apart = [float(np.linalg.norm(features[probe] - features[g], axis=1).mean()) for g in draw.gallery]
        order = np.argsort(apart, kind="stable")
        names, scores = labels[draw.gallery[order]], np.array(apart)[order]
        listed = np.flatnonzero(names == labels[probe])
        assert found.shortlist_rank[row] == (listed[0] + 1 if len(listed) else 0)
        if reranker is not None:
            new = reranker.rescore(features[[probe]], features[draw.gallery[order[:3]]][None])[0]
            inner = np.argsort(new, kind="stable")
            names = np.r_[names[:3][inner], names[3:]]
            scores = np.r_[new[inner], np.full(3, np.inf)]
        mate = np.flatnonzero(names == labels[probe])
        assert found.first[row] == pytest.approx(scores[0], rel=1e-5)
        assert found.mate_rank[row] == (mate[0] + 1 if len(mate) else 0)
        if len(mate):
            assert found.mate_distance[row] == pytest.approx(scores[mate[0]], rel=1e-5)
        assert found.mated[row] == (labels[probe] in labels[draw.gallery])
    middle = float(np.median(found.first))
    assert 0 < fnir(found, middle) < 1 and 0 < fpir(found, middle) < 1


@pytest.mark.parametrize(("reranker", "name"), [(None, "none"), (Halved(), "cargait")])
def test_the_promise_is_kept_on_other_people(reranker: Any, name: str) -> None:
    rate, size, plan = 0.1, 40, Plan(galleries=10)
    identify, verify = calibrate(
        *crowd(200, seed=1), reranker=reranker, name=name, fpir=rate, fmr=0.02, sizes=(size,), plan=plan
    )
    assert identify.entry.task == "identify" and identify.entry.gallery_size == size and identify.entry.fpir == rate
    assert identify.entry.k == (0 if reranker is None else 10) and identify.entry.people == 200
    low, high = identify.entry.interval or (1.0, 0.0)
    assert low < identify.false_positives.value <= rate + 1e-9 and high > low  # type: ignore[operator]
    assert verify.entry.task == "verify" and verify.entry.fpir == 0.02
    pool = Pool.check(*crowd(400, seed=2))
    for galleries, expected in ((size, rate), (4 * size, None)):
        found = [search(pool, draw, list_reranker(reranker), 10) for draw in draws(pool, galleries, Plan(galleries=4))]
        attained = np.mean([fpir(each, identify.entry.threshold) for each in found])
        if expected is not None:
            assert attained == pytest.approx(expected, abs=0.04)
        else:  # a gallery four times as large makes more false positives
            assert 1.5 * rate < attained < 4.5 * rate


def test_several_sizes_and_a_higher_rate() -> None:
    data = crowd(150)
    found = calibrate(
        *data,
        fpir=0.05,
        sizes=(
            60,
            10,
            30,
            10,
        ),
        plan=Plan(galleries=5),
    )
    sizes = [each.entry.gallery_size for each in found if each.entry.task == "identify"]
    thresholds = [each.entry.threshold for each in found[:3]]
    assert sizes == [10, 30, 60] and thresholds == sorted(thresholds, reverse=True)
    looser = calibrate(*data, fpir=0.2, sizes=(30,), plan=Plan(galleries=5))[0]
    assert looser.entry.threshold > thresholds[1]
    assert looser.misses.events < found[1].misses.events
    assert json.loads(json.dumps(looser.to_dict()))["false_positives"]["people"] == 150


def test_a_reranker_of_lists_gets_no_threshold_for_pairs() -> None:
    found = calibrate(*crowd(60), reranker=Halved(), name="k-reciprocal", fpir=0.1, plan=Plan(galleries=2))
    assert [each.entry.task for each in found] == ["identify"]


def test_too_few_people_are_refused_with_their_number() -> None:
    with pytest.raises(CalibrationError, match=r"at least 300 .*rule of three"):
        calibrate(*crowd(60))
    with pytest.raises(CalibrationError, match="at least 75"):
        calibrate(*crowd(60), fpir=0.1, fmr=0.04)
    # 60 people support 5 %, but not when 50 of them are enrolled and two galleries are drawn.
    with pytest.raises(CalibrationError, match=r"at least 60 .*besides the 50 who are enrolled: 110 will do"):
        calibrate(*crowd(60), fpir=0.05, sizes=(50,), plan=Plan(galleries=2))
    for size in (60, 1000):
        with pytest.raises(CalibrationError, match=f"at least {size + 1}"):
            calibrate(*crowd(60), fpir=0.05, sizes=(size,))


def test_unusable_options_are_refused() -> None:
    data = crowd(60)
    for rate in (0.0, 1.0, -1.0, "x"):
        with pytest.raises(OptionError, match="rate"):
            calibrate(*data, fpir=rate)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="multiple"):
        calibrate(*data, fpir=0.1, sizes=(31,), plan=Plan(per_person=2))
    with pytest.raises(OptionError, match="gallery_size"):
        calibrate(*data, fpir=0.1, sizes=(0,))
    with pytest.raises(OptionError, match="galleries"):
        Plan(galleries=0)
    with pytest.raises(InputError, match=r"nothing to enrol.*enroll-types"):
        calibrate(*data, fpir=0.1, enroll_types=("cl-01",))
    with pytest.raises(InputError, match="no probe"):
        calibrate(*data, fpir=0.1, enroll_types=TYPES)
    with pytest.raises(OptionError, match="scope"):
        calibrate(*data, fpir=0.1, reranker=_Full())
    with pytest.raises(InputError, match="re-ranker"):
        calibrate(*data, fpir=0.1, reranker=lambda p, c: np.full(c.shape[:2], np.nan))


class _Full:
    scope = "full"

    def rescore_all(self, probes: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        raise NotImplementedError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "mine.gait"))


def entry(**changes: Any) -> Calibration:
    fields = {"task": "identify", "reranker": "cargait", "k": 10, "gallery_size": 100, "threshold": 1.0, "fpir": 0.01}
    return Calibration(**{**fields, **changes})


def test_calibrations_are_added_one_by_one(bundle: Path) -> None:
    first, second = Bundle.load(bundle), Bundle.load(bundle)
    fingerprint = first.fingerprint
    first.add_calibrations([entry(), entry(task="verify", gallery_size=1)])
    # `second` was loaded before: what is there by now stays all the same.
    second.add_calibrations([entry(gallery_size=200), entry(reranker="none", k=0)])
    first.add_calibrations([entry(threshold=3.0), entry(task="verify", gallery_size=1, k=7, threshold=4.0)])
    stored = Bundle.load(bundle).manifest.calibration
    found = {(each.task, each.reranker, each.gallery_size): each.threshold for each in stored}
    assert found == {
        ("identify", "cargait", 100): 3.0,
        ("identify", "cargait", 200): 1.0,
        ("identify", "none", 100): 1.0,
        ("verify", "cargait", 1): 4.0,
    }
    assert Bundle.load(bundle).fingerprint == fingerprint and first.manifest.calibration == stored
    assert not [each.name for each in bundle.iterdir() if each.name.endswith(".tmp")]


def test_thresholds_of_another_model_are_not_added(bundle: Path, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from gaitsdk.models.cargait import CarGait

    loaded = Bundle.load(bundle)
    torch.manual_seed(1)
    Bundle.create(bundle, backbone=loaded.build_backbone(), reranker=CarGait(dims=32), k=10, overwrite=True)
    with pytest.raises(BundleError, match="another model"):
        loaded.add_calibrations([entry()])
    assert Bundle.load(bundle).manifest.calibration == []


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("walkers")
    synthetic.write_casiab(root, range(1, 41), types=("nm-01", "nm-05"), views=("036", "090"), frames=6)
    return root


def run(*arguments: object) -> tuple[int, str, GaitError | None]:
    """Exit code, what was printed to standard output, and the typed error, if any (the application prints it)."""
    app = typer.Typer()
    app.command()(verb)
    done = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200"})
    error = done.exception
    if error is not None and not isinstance(error, (SystemExit, GaitError)):
        raise error
    return done.exit_code, done.stdout, error if isinstance(error, GaitError) else None


def test_calibrate_enrol_identify(tree: Path, bundle: Path, tmp_path: Path) -> None:
    partition = tmp_path / "partition.json"
    partition.write_text(json.dumps({"TRAIN_SET": [], "TEST_SET": [f"{i:03d}" for i in range(1, 26)]}))
    common = ["--data", tree, "--bundle", bundle, "--fpir", "0.2", "--features", tmp_path / "kept"]
    narrow = ["--partition", partition, "--gallery-size", 6, "--galleries", 8]
    code, out, _ = run(*common, *narrow, "--json")
    report = json.loads(out)
    assert code == 0 and report["people"] == 25 and report["sequences"] == 100 and report["reranker"] == "cargait"
    assert [(each["task"], each["gallery_size"]) for each in report["calibrations"]] == [("identify", 6), ("verify", 1)]
    stored = Bundle.load(bundle)
    assert stored.fingerprint == report["fingerprint"] and len(stored.manifest.calibration) == 2
    threshold = stored.manifest.calibration[0].threshold
    assert threshold == report["calibrations"][0]["threshold"]
    # Six of the other fifteen are enrolled, the rest are strangers.
    with Recognizer.load(bundle, gallery=":memory:") as recognizer:
        for person in range(26, 32):
            recognizer.enroll(f"{person:03d}", synthetic.sequence(person, "nm-01", "090", frames=6))
        probes = [
            synthetic.sequence(person, "nm-05", view, frames=6) for person in range(32, 41) for view in ("036", "090")
        ]
        answers = recognizer.identify_many(probes)
        assert {each.threshold for each in answers} == {threshold}
        wrong = [each.known for each in answers]
        assert [each.candidates[0].distance <= threshold for each in answers] == wrong
        assert np.mean(wrong) < 0.6, "about a fifth was promised, of nine strangers"
        enrolled = recognizer.identify(synthetic.sequence(27, "nm-01", "090", frames=6))
        assert enrolled.known and enrolled.decision == "known" and enrolled.identity == "027"
        assert recognizer.verify(probes[0], probes[0]).same
    # Another size and re-ranker are added, the same is replaced; other tasks stay.
    assert run(*common, *narrow, "--seed", 3)[0] == 0
    code, out, _ = run(*common, "--reranker", "none", "--gallery-size", 4, "--gallery-size", 8, "--galleries", 3)
    assert code == 0 and "re-ranker none" in out and "calibrated" in out and "(" in out
    kept = Bundle.load(bundle)
    assert [(each.task, each.reranker, each.k, each.gallery_size) for each in kept.manifest.calibration] == [
        ("identify", "cargait", 10, 6),
        ("identify", "none", 0, 4),
        ("identify", "none", 0, 8),
        ("verify", "cargait", 10, 1),
        ("verify", "none", 0, 1),
    ]
    assert kept.manifest.calibration[0].threshold != threshold and kept.fingerprint == stored.fingerprint


def test_bad_input_leaves_the_bundle_as_it_was(tree: Path, bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    common = ["--data", tree, "--bundle", bundle, "--no-keep"]
    others = tmp_path / "others.json"
    others.write_text('{"TRAIN_SET": [], "TEST_SET": ["901"]}')
    cases: list[tuple[list[object], type[GaitError], str]] = [
        (["--fpir", "0.01"], CalibrationError, "40 people: no rate below 7.5 %.*at least 300"),
        (["--fpir", "2"], OptionError, "fpir: not a rate; got 2.0; .*above 0 and below 1.*1 % is 0.01"),
        (["--fpir", "0.2", "--fmr", "0"], OptionError, "fmr: not a rate"),
        (["--fpir", "0.2", "--gallery-size", 40], CalibrationError, "at least 41"),
        (["--fpir", "0.2", "--reranker", "carnap"], OptionError, "unknown re-ranker"),
        (["--fpir", "0.2", "--enroll-types", "cl-01"], InputError, "nothing to enrol"),
        (["--fpir", "0.2", "--partition", tmp_path / "none.json"], GaitError, "partition"),
        (["--fpir", "0.2", "--partition", others], DatasetError, "no sequence of the wanted.*expected some of 901"),
        (["--fpir", "0.2", "--k", "0"], OptionError, "k"),
    ]
    for arguments, kind, message in cases:
        code, out, error = run(*common, *arguments)
        assert code == 1 and not out and isinstance(error, kind), (arguments, error)
        with pytest.raises(kind, match=message):
            raise error
    assert run("--data", tree)[0] == 2  # no bundle is written by accident, least of all the shipped one
    assert (bundle / "manifest.json").read_bytes() == before


def test_the_verb_has_the_librarys_defaults_and_loads_no_torch() -> None:
    parameters = {name: each.default for name, each in inspect.signature(verb).parameters.items()}
    goal, plan = Goal(), Plan()
    assert (parameters["fpir"], parameters["fmr"], parameters["enroll_types"]) == (0.01, None, None)
    assert (goal.fpir, goal.fmr, goal.enroll_types) == (0.01, None, None)
    for name in ("per_person", "galleries", "probes", "seed"):
        assert parameters[name] == getattr(plan, name), name
    library = inspect.signature(calibrate_bundle).parameters
    for name in ("reranker", "k", "runtime", "device"):
        assert parameters[name] == library[name].default, name
    check = "import sys, gaitsdk_training.calibrate_cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
