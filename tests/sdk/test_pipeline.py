"""The arithmetic between the networks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaitsdk import pipeline
from gaitsdk.errors import CalibrationError, OptionError
from gaitsdk.pipeline import Shortlist, batches, decide, embed_many, pad_cyclic


def test_padding_repeats_from_the_start() -> None:
    assert pad_cyclic(np.arange(3), 7).tolist() == [0, 1, 2, 0, 1, 2, 0]


@given(st.lists(st.integers(1, 300), max_size=40), st.integers(1, 9), st.sampled_from([1.0, 1.25, 2.0]))
def test_batches_hold_everything_once_within_limits(lengths: list[int], size: int, padding: float) -> None:
    groups = list(batches(lengths, size, padding))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        of = [lengths[i] for i in group]
        assert len(of) <= size and max(of) <= padding * min(of)


@pytest.mark.parametrize("handling", ["cyclic", "alone"])
def test_embedding_many_keeps_order_and_contents(handling: str) -> None:
    rng = np.random.default_rng(0)
    sequences = [rng.integers(0, 255, (t, 4, 4), np.uint8) for t in (5, 9, 5, 6, 30, 7)]

    def set_maximum(batch: np.ndarray) -> np.ndarray:
        if handling == "alone":
            assert any(len(each) == batch.shape[1] for each in sequences)
        return batch.max(axis=1).astype(np.float32)

    found = embed_many(set_maximum, sequences, 3, handling)
    assert np.array_equal(found, np.stack([each.max(axis=0) for each in sequences]).astype(np.float32))


def _shortlist() -> Shortlist:
    return Shortlist(
        entry_ids=np.array([[11, 12, 13, 14]], np.int64),
        identities=np.array([["a", "b", "c", "d"]], object),
        distances=np.array([[1, 2, 3, 4]], np.float32),
        features=np.zeros((1, 3, 1, 1), np.float32),
    )


def _decide(distances: list[float] | None, top_k: int = 4, threshold: float | None = None) -> pipeline.Answers:
    scores = None if distances is None else np.array([distances], np.float32)
    return decide(_shortlist(), scores, top_k=top_k, threshold=threshold, fingerprint="f", gallery_size=4)


def test_the_head_is_reordered_and_the_tail_stays() -> None:
    answers = _decide([9, 7, 8])
    assert answers.identities.tolist() == [["b", "c", "a", "d"]]
    assert answers.distances.tolist() == [[7, 8, 9, 4]], "the tail keeps the shortlist's distance"
    assert answers.shortlist_distances.tolist() == [[2, 3, 1, 4]]
    assert answers.shortlist_ranks.tolist() == [[2, 3, 1, 4]]
    assert answers.reranked == 3


def test_ties_keep_the_shortlists_order() -> None:
    assert _decide([5, 5, 5]).entry_ids.tolist() == [[11, 12, 13, 14]]


def test_without_reranker_nothing_moves() -> None:
    answers = _decide(None, top_k=2)
    assert answers.identities.tolist() == [["a", "b"]] and answers.reranked == 0


@pytest.mark.parametrize(
    ("threshold", "expected"), [(None, "uncalibrated"), (7.0, "known"), (6.9, "unknown"), (0.0, "unknown")]
)
def test_decision(threshold: float | None, expected: str) -> None:
    assert _decide([9, 7, 8], threshold=threshold).decisions == [expected]


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "3", None, float("nan")])
def test_counts_are_checked(value: object) -> None:
    with pytest.raises(OptionError, match="top_k"):
        pipeline.check_count(value, "top_k")


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), True, "x"])
def test_thresholds_are_checked(value: object) -> None:
    with pytest.raises(OptionError, match="threshold"):
        pipeline.check_threshold(value)


def test_a_calibration_holds_for_its_reranker_only() -> None:
    from gaitsdk.calibration import threshold_for
    from gaitsdk.manifest import Calibration

    def entry(size: int, threshold: float) -> Calibration:
        return Calibration(task="identify", reranker="cargait", k=10, gallery_size=size, threshold=threshold, fpir=0.01)

    stored = [entry(100, 1.0), entry(1000, 2.0)]
    assert threshold_for(stored, task="identify", reranker="cargait", k=10, gallery_size=800) == 2.0
    assert threshold_for(stored, task="verify", reranker="cargait", k=10, gallery_size=1) is None
    for reranker, k in (("none", 10), ("cargait", 5)):
        with pytest.raises(CalibrationError, match="another re-ranker"):
            threshold_for(stored, task="identify", reranker=reranker, k=k, gallery_size=100)
