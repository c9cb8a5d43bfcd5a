"""Explanations of one pair against plain loops, and the pictures of ranked lists."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import Bundle, Identification, Recognizer, errors, synthetic
from gaitsdk.explain import Explanation, explain
from gaitsdk.pictures import OUTER, RIGHT, WRONG, ranked_lists

torch = pytest.importorskip("torch")

PEOPLE = ("ann", "bob", "cem", "dia")
PROBE = synthetic.sequence(2, "nm-02", "090", frames=25)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return Bundle.load(tiny_bundle)


@pytest.fixture(scope="module")
def recognizer(tiny_bundle: Path) -> Iterator[Recognizer]:
    with Recognizer.load(tiny_bundle, gallery=":memory:") as loaded:
        for person, name in enumerate(PEOPLE, 1):
            loaded.enroll(name, synthetic.sequence(person, "nm-01", "090", frames=20))
        yield loaded


@pytest.fixture
def pair(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(2, bundle.strips, bundle.dims)).astype(np.float32)
    return first, second


@pytest.fixture(scope="module")
def result(recognizer: Recognizer, bundle: Bundle) -> Identification:
    """An answer with access to the maps that it rests on."""
    found = recognizer.identify(PROBE)
    walks = {
        each.entry_id: synthetic.sequence(PEOPLE.index(each.identity) + 1, "nm-01", "090", frames=20)
        for each in found.candidates
    }
    return replace(found, _evidence=lambda entry: (bundle, recognizer.embed(PROBE), recognizer.embed(walks[entry])))


def by_loops(bundle: Bundle, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Attention of a's strips to b's and E_a, head by head and strip by strip (section 3 of the paper), in float64."""
    network = bundle.build_reranker()
    weights = {name: value.detach().numpy().astype(np.float64) for name, value in network.state_dict().items()}
    heads = network.heads
    size = network.width // heads
    query = a @ weights["query.weight"].T + weights["query.bias"]
    key, value = b @ weights["key.weight"].T, b @ weights["value.weight"].T
    attention = np.zeros((heads, len(a), len(b)))
    taken = np.zeros_like(query)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(len(a)):
            scores = np.array([query[i, part] @ key[j, part] for j in range(len(b))]) / np.sqrt(size)
            attention[head, i] = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
            taken[i, part] = sum(attention[head, i, j] * value[j, part] for j in range(len(b)))
    return attention, a + taken @ weights["output.weight"].T


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_explanation_equals_loops(bundle: Bundle, pair: tuple[np.ndarray, np.ndarray]) -> None:
    probe, candidate = pair
    found = explain(bundle, probe, candidate)
    strips = range(bundle.strips)
    attention_p, e_p = by_loops(bundle, probe, candidate)
    attention_c, e_c = by_loops(bundle, candidate, probe)
    np.testing.assert_allclose(found.attention_probe, attention_p, atol=1e-5)
    np.testing.assert_allclose(found.attention_candidate, attention_c, atol=1e-5)
    np.testing.assert_allclose(found.attention_probe.sum(-1), 1.0, rtol=1e-5)
    np.testing.assert_allclose(found.attention_candidate_mean, attention_c.mean(0), atol=1e-5)
    before = [[cosine(probe[i], candidate[j]) for j in strips] for i in strips]
    after = [[cosine(e_p[i], e_c[j]) for j in strips] for i in strips]
    np.testing.assert_allclose(found.similarity_before, before, atol=1e-5)
    np.testing.assert_allclose(found.similarity_after, after, atol=1e-5)
    assert not np.allclose(found.similarity_before, found.similarity_after, atol=0.02), "the attention changes nothing"
    np.testing.assert_allclose(found.strip_distances_after, np.linalg.norm(e_p - e_c, axis=1), rtol=1e-4)
    assert all(each.dtype == np.float32 for each in vars(found).values() if isinstance(each, np.ndarray))


def test_roles_swap(bundle: Bundle, pair: tuple[np.ndarray, np.ndarray]) -> None:
    one, other = explain(bundle, *pair), explain(bundle, *pair[::-1])
    np.testing.assert_array_equal(one.attention_probe, other.attention_candidate)
    np.testing.assert_allclose(one.similarity_after, other.similarity_after.T, atol=1e-6)
    assert one.distance == pytest.approx(other.distance, rel=1e-6)
    same = explain(bundle, pair[0], pair[0])
    np.testing.assert_allclose(np.diag(same.similarity_after), 1.0, rtol=1e-5)
    assert same.distance == same.shortlist_distance == 0.0


def test_a_strip_without_direction(bundle: Bundle, pair: tuple[np.ndarray, np.ndarray]) -> None:
    blank = pair[0].copy()
    blank[3] = 0.0
    found = explain(bundle, blank, pair[1])
    assert not found.similarity_before[3].any() and np.isfinite(found.similarity_after).all()


def test_candidates_of_a_result(result: Identification) -> None:
    for each in result.candidates:
        found = result.explain(each.rank)
        assert found.distance == pytest.approx(each.distance, rel=1e-4)
        assert found.shortlist_distance == pytest.approx(each.shortlist_distance, rel=1e-4)
        assert each.identity in found.candidate_name and f"rank {each.rank}" in found.candidate_name
        assert found.probe_frame is not None and found.candidate_frame is not None
    chosen = result.candidates[2]
    np.testing.assert_array_equal(result.explain(chosen).attention_probe, result.explain(3).attention_probe)
    assert result.explain().candidate_name == result.explain(1).candidate_name


def test_what_cannot_be_explained(
    result: Identification, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, pair: Any
) -> None:
    stranger = replace(result.candidates[0], entry_id=999)
    for wrong in (0, 5, -1, True, "bob", None, 1.0, stranger):
        with pytest.raises(errors.OptionError, match="rank from 1 to 4"):
            result.explain(wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match=r"'none'.*reranker=\"cargait\""):
        replace(result, reranker="none").explain()
    with pytest.raises(errors.RuntimeUnavailableError, match=r"Triton.*gaitsdk\.explain\.explain"):
        pickle.loads(pickle.dumps(replace(result, _thumbnails=None, _evidence=None))).explain()
    copied = replace(result)
    assert copied.__getstate__()["_evidence"] is None and copied.explain().distance > 0
    assert "_evidence" not in result.to_dict()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(errors.MissingDependencyError, match=r"pip install 'gaitsdk\[torch\]'"):
        result.explain()


def test_recognizer_explains(tiny_bundle: Path, tmp_path: Path) -> None:
    walks = {name: synthetic.sequence(person, "nm-01", "090", frames=20) for person, name in enumerate(PEOPLE, 1)}
    probes = [PROBE, synthetic.sequence(3, "bg-01", "072", frames=31)]
    with Recognizer.load(tiny_bundle, gallery=tmp_path / "people.db") as mine:
        for name, walk in walks.items():
            mine.enroll(name, walk)
        for result in mine.identify_many(probes, k=2):
            assert [each.reranked for each in result.candidates] == [True, True, False, False]
            for each in result.candidates:
                found = result.explain(each)
                assert found.shortlist_distance == pytest.approx(each.shortlist_distance, rel=1e-4)
                if each.reranked:
                    assert found.distance == pytest.approx(each.distance, rel=1e-4)
        assert not np.allclose(found.attention_probe, mine.identify(PROBE).explain(each.rank).attention_probe)
        with pytest.raises(errors.RuntimeUnavailableError):
            pickle.loads(pickle.dumps(result)).explain()
        gone = result.candidates[1]
        mine.delete(gone.identity)
        mine.enroll(gone.identity, walks[gone.identity])
        with pytest.raises(errors.UnknownIdentityError, match="deleted"):
            result.explain(gone)
        assert result.explain(1).distance == pytest.approx(result.candidates[0].distance, rel=1e-4)
    with pytest.raises(errors.GalleryError, match="closed"):
        result.explain(1)
    with Recognizer.load(tiny_bundle, gallery=tmp_path / "people.db", reranker="none") as plain:
        with pytest.raises(errors.OptionError, match="only CarGait"):
            plain.identify(PROBE).explain()


def test_bad_maps_and_bundles(bundle: Bundle, pair: tuple[np.ndarray, np.ndarray], tmp_path: Path) -> None:
    probe, candidate = pair
    for wrong in (probe[:, :5], probe[None], probe.astype(int), np.full_like(probe, np.nan)):
        with pytest.raises(errors.InputError, match="candidate"):
            explain(bundle, probe, wrong)
    folder = tmp_path / "other.gait"
    shutil.copytree(bundle.path, folder)
    loaded = Bundle.load(folder)
    weights = folder / "reranker.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(errors.BundleError, match="changed"):
        explain(loaded, probe, candidate)
    bare = Bundle.create(tmp_path / "bare.gait", backbone=bundle.build_backbone())
    with pytest.raises(errors.OptionError, match="only CarGait"):
        explain(bare, probe, candidate)


def test_explanations_leave_as_data_and_picture(
    result: Identification, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = result.explain(2)
    data = json.loads(found.save(tmp_path / "a.json").read_text())
    assert data == json.loads(json.dumps(found.to_dict()))
    assert np.shape(data["attention_probe"]) == found.attention_probe.shape and "probe_frame" not in data
    assert data["distance"] == pytest.approx(np.mean(data["strip_distances_after"]), rel=1e-6)
    for name in ("a.bmp", "nowhere/a.png"):
        with pytest.raises(errors.OptionError):
            found.save(tmp_path / name)
    with pytest.raises(errors.InputError, match="cannot be written"):
        found.save(tmp_path / "nowhere/a.json")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(errors.MissingDependencyError, match=r"gaitsdk\[plots\]"):
        found.plot()


def test_the_picture_of_an_explanation(result: Identification, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found: Explanation = result.explain(1)
    images = [image for axes in found.plot(heads=False).axes for image in axes.get_images()]
    drawn = [np.asarray(each.get_array()) for each in images]
    for values in (found.similarity_before, found.similarity_after, found.attention_probe_mean):
        assert any(each.shape == values.shape and np.array_equal(each, values) for each in drawn)
    scales = {image.get_clim() for image in images if image.get_cmap().name == "viridis"}
    assert len(scales) == 1, "before and after share one scale"
    odd = replace(found, candidate_name="a$b$c").plot(heads=False)
    odd.draw_without_rendering()  # a formula would be parsed here
    assert "a$b$c" in odd.get_suptitle()
    with_heads = [image for part in found.plot().subfigs for axes in part.axes for image in axes.get_images()]
    assert len(with_heads) == 6 + 2 * len(found.attention_probe)
    assert found.save(tmp_path / "a.png", heads=False).stat().st_size > 10_000
    assert found.save(tmp_path / "a.svg", heads=False).read_text().startswith("<?xml")


def _pixels(result: Identification, truth: str | None) -> np.ndarray:
    return np.asarray(ranked_lists([result], [truth]))


def _count(pixels: np.ndarray, colour: str) -> int:
    return int((pixels == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=-1).sum())


def test_frames_differ_in_more_than_colour(recognizer: Recognizer) -> None:
    result = recognizer.identify(PROBE, top_k=1)
    right, wrong = _pixels(result, result.identity), _pixels(result, "nobody")
    solid, dashed = _count(right, RIGHT), _count(wrong, WRONG)
    assert solid > 2 * 4 * 5 * (OUTER - 10) and 0.4 * solid < dashed < 0.75 * solid, "half of a wrong frame is gaps"
    assert _count(right, WRONG) < _count(wrong, WRONG) / 4, "the legend alone"
    unlabelled = _pixels(result, None)
    assert not _count(unlabelled, RIGHT) and not _count(unlabelled, WRONG)


def test_ranked_lists_layout(recognizer: Recognizer, tiny_bundle: Path) -> None:
    result = recognizer.identify(PROBE)
    one, two = ranked_lists([result], [None]), ranked_lists([result, result], [None, None])
    assert two.height > 1.8 * one.height and two.width == one.width
    assert ranked_lists([result], [None], "4 people").height > one.height
    plain = replace(result, reranker="none")
    assert ranked_lists([plain], [None]).height < 0.65 * one.height, "one row without re-ranker"
    with pytest.raises(errors.InputError, match="at least one"):
        ranked_lists([], [])
    with pytest.raises(errors.InputError, match="1 results, 2 truths"):
        ranked_lists([result], ["bob", "ann"])


def test_names_beyond_ascii() -> None:
    from gaitsdk.pictures import _font, _missing, _open_font

    if _open_font("DejaVuSans.ttf", 12) is None:
        pytest.skip("neither the system nor matplotlib has DejaVu Sans")
    for name in ("José", "Жанна", "Łukasz", "Ωμέγα"):
        assert not _missing(_font(12, name), name)
    assert _missing(_font(12, "\U0010fffe"), "\U0010fffe") == 1, "nobody has this letter; it is drawn as a box"
