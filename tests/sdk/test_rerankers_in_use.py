"""Every re-ranker in a Recognizer, and bundles that hold the binary classifier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk import Bundle, Recognizer, errors, rerankers, synthetic
from gaitsdk.models import create
from gaitsdk.models.cargait import CarGait
from gaitsdk.models.pair_classifier import PairClassifier
from gaitsdk.runtimes import open_runtime
from gaitsdk_export.bundles import export_bundle

PARAMETER_FREE = ("k-reciprocal", "lbr", "gcr", "query-expansion")
PEOPLE = [(f"p{i}", synthetic.sequence(i, "nm-01", "090", frames=16)) for i in range(14)]
PROBES = [synthetic.sequence(i, "nm-05", "072", frames=15 + i) for i in (3, 8)]


@pytest.fixture(scope="module")
def classifier_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny.gait with a PairClassifier of random weights, and its compiled networks."""
    torch.manual_seed(0)
    options = {"channels": (8, 8, 16, 16), "stem_stride": 2, "strides": (1, 2, 1, 1), "dims": 32, "strips": 16}
    path = tmp_path_factory.mktemp("classifier") / "tiny.gait"
    Bundle.create(path, backbone=create("gaitbase", **options).eval(), reranker=PairClassifier(32, 16, 24), k=7)
    for result in export_bundle(path):
        result.raise_for_verdict()
    return path


def people(bundle: Path, reranker: Any, **options: Any) -> Recognizer:
    recognizer = Recognizer.load(bundle, gallery=":memory:", reranker=reranker, **options)
    for name, walk in PEOPLE:
        recognizer.enroll(name, walk)
    return recognizer


@pytest.fixture(scope="module")
def plain(tiny_bundle: Path) -> Iterator[Recognizer]:
    with people(tiny_bundle, "none") as recognizer:
        yield recognizer


@pytest.mark.parametrize("name", PARAMETER_FREE)
def test_a_recognizer_re_orders_the_first_k_and_says_by_what(tiny_bundle: Path, plain: Recognizer, name: str) -> None:
    with people(tiny_bundle, name) as recognizer:
        assert recognizer.description.reranker == name and recognizer.description.k == 10
        found = recognizer.identify_many(PROBES, top_k=14)
        features = recognizer.embed(PROBES)
        for probe, result, before in zip(features, found, plain.identify_many(PROBES, top_k=14), strict=True):
            assert (result.reranker, result.k) == (name, 10)
            assert [each.reranked for each in result.candidates] == [True] * 10 + [False] * 4
            ranks = [each.shortlist_rank for each in result.candidates]
            assert sorted(ranks[:10]) == list(range(1, 11)) and ranks[10:] == [11, 12, 13, 14]
            tail, untouched = result.candidates[10:], before.candidates[10:]
            assert [(each.entry_id, each.distance) for each in tail] == [(e.entry_id, e.distance) for e in untouched]
            distances = [each.distance for each in result.candidates[:10]]
            assert distances == sorted(distances)
            # The list alone decides, as in CarGait's Table 4.
            walks = dict(PEOPLE)
            listed = recognizer.embed([walks[each.identity] for each in before.candidates[:10]])
            wanted = rerankers.create(name).rescore(probe[None], listed[None])[0]
            by_rank = {each.shortlist_rank: each.distance for each in result.candidates[:10]}
            np.testing.assert_allclose([by_rank[rank] for rank in range(1, 11)], wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", PARAMETER_FREE)
def test_neither_batch_mates_nor_a_small_gallery_matter(tiny_bundle: Path, name: str) -> None:
    with people(tiny_bundle, name) as recognizer:
        for probe, among in zip(PROBES, recognizer.identify_many(PROBES), strict=True):
            alone = recognizer.identify(probe)
            assert [each.entry_id for each in alone.candidates] == [each.entry_id for each in among.candidates]
        assert len(recognizer.identify(PROBES[0], top_k=3, k=50).candidates) == 3
    with Recognizer.load(tiny_bundle, gallery=":memory:", reranker=name) as recognizer:
        recognizer.enroll("ann", PEOPLE[0][1])
        assert recognizer.identify(PROBES[0]).identity == "ann"
        recognizer.enroll("bob", PEOPLE[8][1])
        assert len(recognizer.identify(PROBES[1]).candidates) == 2


@pytest.mark.parametrize("name", PARAMETER_FREE)
def test_verify_is_refused_where_a_pair_has_no_distance(tiny_bundle: Path, name: str) -> None:
    with people(tiny_bundle, name) as recognizer, pytest.raises(errors.OptionError, match="no distance for a pair"):
        recognizer.verify(*PROBES, threshold=1.0)


def test_a_re_ranker_with_options_is_named_with_them(tiny_bundle: Path) -> None:
    with people(tiny_bundle, rerankers.create("k-reciprocal", k1=3)) as recognizer:
        result = recognizer.identify(PROBES[0])
        assert result.reranker == recognizer.description.reranker == "k-reciprocal(k1=3)"
        with pytest.raises(errors.OptionError, match="no distance for a pair"):
            recognizer.verify(*PROBES)
    with people(tiny_bundle, rerankers.create("none")) as recognizer:
        assert recognizer.identify(PROBES[0]).k == 0


def test_thresholds_of_another_re_ranker_are_refused(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.create(tmp_path / "c.gait", backbone=Bundle.load(tiny_bundle).build_backbone())
    common = {"task": "identify", "k": 10, "gallery_size": 14, "fpir": 0.1}
    bundle.annotate(calibration=[{"reranker": "k-reciprocal", "threshold": 5.0, **common}])
    with people(bundle.path, "k-reciprocal", runtime="torch") as recognizer:
        assert recognizer.identify(PROBES[0]).decision == "known"
    for other in ("lbr", rerankers.create("k-reciprocal", k1=3)):
        with people(bundle.path, other, runtime="torch") as recognizer:
            with pytest.raises(errors.CalibrationError, match="another re-ranker"):
                recognizer.identify(PROBES[0])


def test_refusals(tiny_bundle: Path, classifier_bundle: Path) -> None:
    for wrong, says in (("k-reciprokal", "did you mean 'k-reciprocal'"), (3, "not a re-ranker"), (None, "not a re")):
        with pytest.raises(errors.OptionError, match=says):
            Recognizer.load(tiny_bundle, gallery=":memory:", reranker=wrong)  # type: ignore[arg-type]
    with pytest.raises(errors.OptionError, match=r"no classifier weights.*reranker=.cargait."):
        Recognizer.load(tiny_bundle, gallery=":memory:", reranker="classifier")
    with pytest.raises(errors.OptionError, match=r"no CarGait weights.*reranker=.classifier."):
        Recognizer.load(classifier_bundle, gallery=":memory:")
    bundle = Bundle.load(tiny_bundle)
    runtime = open_runtime(bundle)
    with pytest.raises(errors.OptionError, match="judges pairs"):
        rerankers.create_reranker("cargait", bundle, runtime, scope="full")
    with pytest.raises(errors.OptionError, match="judges pairs"):
        rerankers.create_reranker("cargait", bundle, runtime, heads=4)
    assert rerankers.create_reranker("none", bundle, runtime) is None
    full = rerankers.create_reranker("gcr", bundle, runtime, scope="full", layers=1)
    assert full is not None and (full.name, full.scope) == ("gcr(layers=1)", "full")
    assert [rerankers.list_length(name, bundle) for name in ("none", "cargait", "lbr")] == [0, 10, 10]
    runtime.close()


@pytest.mark.parametrize("runtime", ["torch", "torchscript", "onnx"])
def test_a_bundle_with_the_classifier(classifier_bundle: Path, runtime: str) -> None:
    bundle = Bundle.load(classifier_bundle)
    assert bundle.manifest.reranker is not None and bundle.manifest.reranker.name == "classifier"
    network: Any = bundle.build_reranker()
    assert isinstance(network, PairClassifier) and not network.training
    with people(classifier_bundle, "classifier", runtime=runtime) as recognizer:
        result = recognizer.identify(PROBES[0], top_k=14)
        assert (result.reranker, result.k, result.runtime) == ("classifier", 7, runtime)
        assert [each.reranked for each in result.candidates] == [True] * 7 + [False] * 7
        walks = dict(PEOPLE)
        probe = recognizer.embed(PROBES[0])
        listed = recognizer.embed([walks[each.identity] for each in result.candidates[:7]])
        with torch.inference_mode():
            logits = network.logits(torch.from_numpy(probe)[None], torch.from_numpy(listed)[None])[0].numpy()
        assert (np.diff(logits) <= 1e-5).all(), "descending scores"
        distances = [each.distance for each in result.candidates[:7]]
        np.testing.assert_allclose(distances, np.log1p(np.exp(-logits)), rtol=1e-4)  # -log P(one person)
        pair = recognizer.verify(PROBES[0], PROBES[1], threshold=0.1)
        assert pair.reranker == "classifier" and pair.decision in ("same", "different")


def test_a_re_ranker_for_other_maps_enters_no_bundle(tmp_path: Path) -> None:
    backbone = create("gaitbase", channels=(4, 4, 8, 8), stem_stride=2, strides=(1, 2, 1, 1), dims=8, strips=4)
    for wrong in (CarGait(16, 16, 4), PairClassifier(8, 5, 4), PairClassifier(9, 4, 4)):
        with pytest.raises(errors.OptionError, match=r"does not fit the backbone.*4 strips of 8"):
            Bundle.create(tmp_path / "x.gait", backbone=backbone, reranker=wrong)
    assert not list(tmp_path.iterdir())
    path = Bundle.create(tmp_path / "y.gait", backbone=backbone, reranker=PairClassifier(8, 4, 4)).path
    changed = Bundle.load(path)
    assert changed.manifest.reranker is not None
    later = changed.manifest.reranker.model_copy(update={"name": "transformer"})
    changed.manifest = changed.manifest.model_copy(update={"reranker": later})
    with pytest.raises(errors.BundleError, match=r"'transformer'.*cargait or classifier"):
        changed.build_reranker()
