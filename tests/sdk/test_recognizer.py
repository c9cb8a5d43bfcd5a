"""The user's verbs in-process, with good and with bad input."""

from __future__ import annotations

import copy
import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, errors, synthetic
from gaitsdk.recognizer import default_gallery

WALKS = {
    name: synthetic.sequence(person, "nm-01", "090") for person, name in enumerate(("ann", "bob", "cem", "dia"), 1)
}
PROBE = synthetic.sequence(2, "nm-02", "090", frames=25)


@pytest.fixture(scope="module")
def recognizer(tiny_bundle: Path) -> Any:
    with Recognizer.load(tiny_bundle, gallery=":memory:") as loaded:
        for name, walk in WALKS.items():
            loaded.enroll(name, walk)
        yield loaded


def test_identify(recognizer: Recognizer) -> None:
    result = recognizer.identify(WALKS["cem"], top_k=3)
    assert result.identity == "cem" and len(result.candidates) == 3
    assert result.candidates[0].shortlist_distance == 0.0
    assert [each.rank for each in result.candidates] == [1, 2, 3]
    assert result.decision == "uncalibrated" and not result.known and result.threshold is None
    assert (result.runtime, result.device, result.reranker, result.k) == ("onnx", "cpu", "cargait", 10)
    assert result.gallery_size == 4 and set(result.timings_ms) == {"embed", "shortlist", "rerank"}


def test_threshold_decides(recognizer: Recognizer) -> None:
    distance = recognizer.identify(PROBE).candidates[0].distance
    assert recognizer.identify(PROBE, threshold=distance).known
    assert recognizer.identify(PROBE, threshold=distance * 0.99).decision == "unknown"


def test_many_is_one_by_one(recognizer: Recognizer) -> None:
    sequences = [
        synthetic.sequence(p, "bg-01", "054", frames=t) for p, t in ((1, 15), (3, 40), (2, 31), (4, 16), (9, 15))
    ]
    together = recognizer.identify_many(sequences)
    for sequence, result in zip(sequences, together, strict=True):
        alone = recognizer.identify(sequence)
        assert [c.entry_id for c in result.candidates] == [c.entry_id for c in alone.candidates]
        np.testing.assert_allclose(
            [c.distance for c in result.candidates], [c.distance for c in alone.candidates], rtol=1e-5
        )


def test_embed_search_rerank_are_the_parts_of_identify(recognizer: Recognizer) -> None:
    features = recognizer.embed(PROBE)
    about = recognizer.description
    assert features.shape == (about.strips, about.dims) and features.dtype == np.float32
    assert recognizer.embed([PROBE, WALKS["ann"]]).shape == (2, about.strips, about.dims)
    entries, distances = recognizer.search(features, 4)
    assert entries.shape == distances.shape == (1, 4)
    maps = recognizer.embed([WALKS[name] for name in WALKS])
    again = recognizer.rerank(features, maps)
    result = recognizer.identify(PROBE)
    by_entry = {each.entry_id: each.distance for each in result.candidates}
    np.testing.assert_allclose(sorted(by_entry.values()), sorted(again), rtol=1e-5)


def test_verify(recognizer: Recognizer) -> None:
    same = recognizer.verify(PROBE, PROBE, threshold=0.5)
    assert same.same and same.distance == pytest.approx(0.0, abs=1e-5)
    other = recognizer.verify(PROBE, WALKS["dia"])
    assert other.decision == "uncalibrated" and other.distance > same.distance
    assert json.loads(json.dumps(other.to_dict()))["decision"] == "uncalibrated"
    swapped = recognizer.verify(WALKS["dia"], PROBE)
    assert swapped.distance == pytest.approx(other.distance, rel=1e-5)


def test_delete_and_identities(tiny_bundle: Path) -> None:
    with Recognizer.load(tiny_bundle, gallery=":memory:") as mine:
        assert mine.enroll("ann", [WALKS["ann"], PROBE]) == [1, 2] and mine.count == 2
        mine.enroll("bob", WALKS["bob"])
        assert mine.identities() == ["ann", "bob"]
        assert mine.delete("ann") == 2 and mine.identities() == ["bob"]
        with pytest.raises(errors.UnknownIdentityError, match="ann"):
            mine.delete("ann")


def test_results_leave_as_dict_table_and_picture(recognizer: Recognizer, tmp_path: Path) -> None:
    result = recognizer.identify(PROBE)
    data = json.loads(json.dumps(result.to_dict()))
    assert data["identity"] == result.identity and len(data["candidates"]) == 4
    assert data["quality"]["kept"] == 25
    assert list(result.to_pandas().identity) == [each.identity for each in result.candidates]
    picture = result.plot(truth="bob")
    colours = {colour for _, colour in picture.getcolors(maxcolors=100000)}
    assert (0x2E, 0x9E, 0x44) in colours and (0xD0, 0x34, 0x2C) in colours, "green for right, red for wrong"
    unlabelled = {colour for _, colour in result.plot().getcolors(maxcolors=100000)}
    assert (0x2E, 0x9E, 0x44) not in unlabelled
    assert result.save(tmp_path / "a.png").stat().st_size > 1000
    assert json.loads(result.save(tmp_path / "a.json").read_text()) == data
    for name in ("a.bmp", "nowhere/a.png"):
        with pytest.raises(errors.OptionError):
            result.save(tmp_path / name)
    again = pickle.loads(pickle.dumps(result))
    assert again.to_dict() == data and copy.deepcopy(result).to_dict() == data
    assert len({result, again}) == 2
    assert all(each is not None for each in result.thumbnails())


@pytest.mark.parametrize("runtime", ["torch", "torchscript", "onnx"])
def test_runtimes_agree(tiny_bundle: Path, recognizer: Recognizer, runtime: str) -> None:
    with Recognizer.load(tiny_bundle, runtime=runtime, gallery=":memory:") as other:
        assert other.description.runtime == runtime
        for name, walk in WALKS.items():
            other.enroll(name, walk)
        for probe in (PROBE, synthetic.sequence(7, "cl-01", "036")):
            mine, theirs = recognizer.identify(probe), other.identify(probe)
            assert [c.identity for c in mine.candidates] == [c.identity for c in theirs.candidates]
            np.testing.assert_allclose(
                [c.distance for c in mine.candidates], [c.distance for c in theirs.candidates], atol=1e-4
            )


def test_reranker_none(tiny_bundle: Path) -> None:
    with Recognizer.load(tiny_bundle, reranker="none", gallery=":memory:") as plain:
        for name, walk in WALKS.items():
            plain.enroll(name, walk)
        result = plain.identify(PROBE)
        assert result.reranker == "none" and result.k == 0
        assert not any(each.reranked for each in result.candidates)
        assert [each.distance for each in result.candidates] == [each.shortlist_distance for each in result.candidates]


def test_threads_share_a_recognizer(recognizer: Recognizer) -> None:
    probes = [synthetic.sequence(p, "nm-03", "072", frames=15 + p) for p in range(1, 13)]
    expected = [recognizer.identify(each).to_dict()["candidates"] for each in probes]
    with ThreadPoolExecutor(6) as pool:
        found = [each.to_dict()["candidates"] for each in pool.map(recognizer.identify, probes)]
    assert found == expected


def test_the_gallery_file_is_durable_and_belongs_to_its_model(tiny_bundle: Path, tmp_path: Path) -> None:
    from gaitsdk import Bundle
    from gaitsdk.models import create

    path = tmp_path / "people.db"
    with Recognizer.load(tiny_bundle, gallery=path) as first:
        first.enroll("ann", WALKS["ann"])
    with Recognizer.load(tiny_bundle, gallery=path) as second:
        assert second.identify(PROBE).identity == "ann"
    other = create("gaitbase", channels=(8, 8, 8, 8), stem_stride=2, strides=(1, 2, 1, 1), dims=32)
    bundle = Bundle.create(tmp_path / "other.gait", backbone=other)
    with pytest.raises(errors.ModelMismatchError, match="model"):
        Recognizer.load(bundle, gallery=path, runtime="torch", reranker="none")


def test_default_gallery(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("GAITSDK_GALLERY", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_gallery() == tmp_path / "gaitsdk/gallery.db"
    monkeypatch.setenv("GAITSDK_GALLERY", "x.db")
    assert default_gallery() == Path("x.db")


def _bad_sequences() -> dict[str, tuple[Any, type[errors.GaitError]]]:
    good = PROBE
    with_nan = good.astype(np.float32) / 255
    with_nan[3, 2, 1] = np.nan
    return {
        "None": (None, errors.InputError),
        "empty list": ([], errors.InputError),
        "no frames": (good[:0], errors.NoFramesError),
        "one frame": (good[:1], errors.TooFewFramesError),
        "100,000 frames": (np.broadcast_to(good[:1], (100_000, 64, 64)), errors.TooManyFramesError),
        "rank 2": (good[0], errors.SilhouetteShapeError),
        "rank 5": (good[None, None], errors.SilhouetteError),
        "NaN": (with_nan, errors.SilhouetteValueError),
        "float in 0..255": (good.astype(np.float32), errors.SilhouetteValueError),
        "object dtype": (good.astype(object), errors.SilhouetteValueError),
        "complex": (good.astype(complex), errors.SilhouetteValueError),
        "all zero": (np.zeros_like(good), errors.NoFramesError),
        "static": (np.repeat(good[:1], 20, axis=0), errors.StaticSequenceError),
        "inverted": (255 - good, errors.PolarityError),
        "missing folder": (Path("no/such/folder"), errors.SilhouetteError),
    }


@pytest.mark.parametrize("name", _bad_sequences())
def test_bad_sequences_are_refused_and_the_next_is_right(recognizer: Recognizer, name: str) -> None:
    bad, expected = _bad_sequences()[name]
    before = recognizer.identify(PROBE).to_dict()["candidates"]
    for verb in (recognizer.identify, recognizer.embed, lambda x: recognizer.enroll("x", x)):
        with pytest.raises(expected) as caught:
            verb(bad)
        assert len(str(caught.value)) > 20
    assert recognizer.count == 4
    assert recognizer.identify(PROBE).to_dict()["candidates"] == before


def test_a_bad_sequence_in_a_list_is_named(recognizer: Recognizer) -> None:
    with pytest.raises(errors.TooFewFramesError, match="sequence 1"):
        recognizer.identify_many([PROBE, PROBE[:1]])
    with pytest.raises(errors.InputError, match="identify_many"):
        recognizer.identify([PROBE, PROBE])
    with pytest.raises(errors.InputError, match="list of sequences"):
        recognizer.identify_many(PROBE)
    with pytest.raises(errors.InputError, match="list"):
        recognizer.identify_many(each for each in (PROBE, PROBE))
    with pytest.raises(errors.InputError, match="second sequence"):
        recognizer.verify(PROBE, None)


@pytest.mark.parametrize("top_k", [0, -1, True, 2.5, "3"])
def test_bad_top_k(recognizer: Recognizer, top_k: Any) -> None:
    with pytest.raises(errors.OptionError, match="top_k"):
        recognizer.identify(PROBE, top_k=top_k)


def test_top_k_larger_than_the_gallery_gives_the_whole_gallery(recognizer: Recognizer) -> None:
    assert len(recognizer.identify(PROBE, top_k=1000).candidates) == 4


@pytest.mark.parametrize("identity", ["", "   ", "a\0b", None, 7, "x" * 100_000])
def test_bad_identities(recognizer: Recognizer, identity: Any) -> None:
    with pytest.raises(errors.InputError):
        recognizer.enroll(identity, PROBE)
    assert recognizer.count == 4


def test_empty_gallery(tiny_bundle: Path) -> None:
    with (
        Recognizer.load(tiny_bundle, gallery=":memory:") as empty,
        pytest.raises(errors.EmptyGalleryError, match="enroll"),
    ):
        empty.identify(PROBE)


def test_unknown_options(tiny_bundle: Path) -> None:
    with pytest.raises(errors.UnknownRuntimeError, match="onnx"):
        Recognizer.load(tiny_bundle, runtime="onx", gallery=":memory:")
    with pytest.raises(errors.OptionError, match=r"unknown re-ranker.*cargait, classifier, none"):
        Recognizer.load(tiny_bundle, reranker="kr", gallery=":memory:")
    with pytest.raises(errors.BundleError, match="no bundle there"):
        Recognizer.load("missing.gait")
    for nothing in ("", 5):
        with pytest.raises(errors.BundleError, match="path"):
            Recognizer.load(nothing)  # type: ignore[arg-type]
        with pytest.raises(errors.InputError, match="gallery"):
            Recognizer.load(tiny_bundle, gallery=nothing)  # type: ignore[arg-type]


def test_a_calibrated_bundle_still_opens_with_another_reranker(tiny_bundle: Path, tmp_path: Path) -> None:
    import shutil

    from gaitsdk import Bundle

    bundle = Bundle.load(shutil.copytree(tiny_bundle, tmp_path / "calibrated.gait"))
    common = {"reranker": "cargait", "k": 10, "gallery_size": 4, "fpir": 0.01}
    bundle.annotate(calibration=[{"task": task, "threshold": 100.0, **common} for task in ("identify", "verify")])
    for reranker, decision in (("cargait", "same"), ("none", None)):
        with Recognizer.load(bundle.path, reranker=reranker, gallery=":memory:") as mine:
            mine.enroll("ann", WALKS["ann"])
            if decision:
                assert mine.verify(PROBE, PROBE).decision == decision and mine.identify(PROBE).known
                continue
            for verb in (lambda: mine.verify(PROBE, PROBE), lambda: mine.identify(PROBE)):
                with pytest.raises(errors.CalibrationError, match="another re-ranker"):
                    verb()
            assert mine.identify(PROBE, threshold=1.0).decision in ("known", "unknown")
            assert mine.verify(PROBE, PROBE, threshold=1.0).same


def test_wrong_feature_maps(recognizer: Recognizer) -> None:
    features = recognizer.embed(PROBE)
    for bad in (features[:3], np.full_like(features, np.nan), "x", features[None, None, None]):
        with pytest.raises(errors.InputError):
            recognizer.search(bad)
    with pytest.raises(errors.InputError):
        recognizer.rerank(features, features)
    with pytest.raises(errors.InputError, match="NoneType"):
        recognizer.search(None)
    with pytest.raises(errors.OptionError, match="k"):
        recognizer.search(features, 0)
    with pytest.raises(errors.OptionError, match="1000"):
        recognizer.identify(PROBE, k=10**9)
