"""The parity gate: what passes, what must not, and that a NaN never slips through."""

from __future__ import annotations

import numpy as np
import pytest

from gaitsdk.errors import ExportError
from gaitsdk_export.cases import embedder_cases, reranker_cases
from gaitsdk_export.parity import (
    TOLERANCES,
    Case,
    ParityError,
    Tolerance,
    Verdict,
    check,
    min_cosine,
    rank_agreement,
    relative_error,
)


def features(x):
    """A reference network `[B, T, S, S]` -> `[B, 4, 3]`."""
    frame = x.astype(np.float32).max(1)
    strips = frame.reshape(len(frame), 4, -1)
    return [np.stack([strips.mean(-1), strips.max(-1), strips.std(-1)], -1).astype(np.float32)]


def ranking(probe, candidates):
    """A reference re-ranker."""
    distances = np.linalg.norm(probe[:, None] - candidates, axis=-1).mean(-1).astype(np.float32)
    return [distances, np.argsort(distances, axis=1, kind="stable").astype(np.int64)]


EMBED = list(embedder_cases(64, lengths=(4, 6), batches=(1, 2, 3)))
RERANK = list(reranker_cases(4, 8))


def test_same_network_passes_with_zero_error():
    report = check(features, features, EMBED)
    assert report.verdict is Verdict.OK
    assert report.max_abs == 0.0
    assert report.cosine == pytest.approx(1.0)
    assert len(report.cases) == len(EMBED) == 9
    report.raise_for_verdict()


def test_cases_cover_the_gates_and_differ_within_a_batch():
    cases = list(embedder_cases(64))
    shapes = {case.inputs[0].shape[:2] for case in cases}
    assert {batch for batch, _ in shapes} == {1, 2, 3, 8, 4}
    assert {15, 30, 47, 31} == {frames for _, frames in shapes}
    for case in cases:
        batch = case.inputs[0]
        assert batch.dtype == np.uint8
        assert len({item.tobytes() for item in batch}) == len(batch)
    assert {case.inputs[1].shape[:2] for case in RERANK} >= {(b, k) for b in (1, 2, 3, 8) for k in (1, 5, 10)}


def test_cases_of_other_inputs_have_their_shape():
    assert all(case.inputs[0].shape[2:] == (128, 128) for case in embedder_cases(128, lengths=(3,), batches=(2,)))
    assert all(case.inputs[0].shape[2:] == (3, 64, 64) for case in embedder_cases(64, 3, lengths=(3,), batches=(2,)))


@pytest.mark.parametrize("error", [2e-4, -1.0, np.nan, np.inf, -np.inf])
def test_one_wrong_value_fails(error):
    def exported(x):
        out = features(x)[0]
        out[-1, 2, 1] += error
        return [out]

    report = check(features, exported, EMBED)
    assert report.verdict is Verdict.FAIL
    with pytest.raises(ParityError, match="does not give the same answers") as caught:
        report.raise_for_verdict("x.onnx")
    assert isinstance(caught.value, ExportError)
    assert caught.value.report is report


@pytest.mark.parametrize("both", [False, True])
def test_a_nan_in_the_reference_fails_even_where_the_export_agrees(both):
    def broken(x):
        return [features(x)[0] * np.float32("nan")]

    report = check(broken, broken if both else features, EMBED)
    assert report.verdict is Verdict.FAIL
    assert "NaN" in report.reasons[0]


def test_small_features_are_judged_by_direction():
    """All differences are below 1e-4 here, and still the answers are other ones."""

    def tiny(x):
        return [features(x)[0] * np.float32(1e-7) + np.float32(1e-5)]

    def turned(x):
        return [tiny(x)[0] * np.array([1, -1, 1], np.float32)]

    report = check(tiny, turned, EMBED)
    assert report.max_abs < 1e-4
    assert report.verdict is Verdict.FAIL
    assert "cosine" in report.reasons[0]


def test_zero_vectors_are_compared_absolutely():
    zero = np.zeros((2, 4, 3), np.float32)
    assert min_cosine(zero, zero + 1e-8) is None
    one = Case("zero", (np.zeros((2, 1, 64, 64), np.uint8),))
    assert check(lambda x: [zero], lambda x: [zero], [one]).verdict is Verdict.OK
    assert check(lambda x: [zero], lambda x: [zero + np.float32(1e-3)], [one]).verdict is Verdict.FAIL
    vanished = np.ones((2, 4, 3), np.float32)
    vanished[1, 3] = 0
    assert min_cosine(np.ones((2, 4, 3), np.float32), vanished) == 0.0


def test_nan_in_cosine_is_not_masked():
    a = np.ones((2, 3), np.float32)
    a[0, 0] = np.nan
    assert np.isnan(min_cosine(a, np.ones_like(a)))
    assert np.isnan(min_cosine(np.ones_like(a), a))


@pytest.mark.parametrize(
    "exported",
    [
        lambda x: [features(x)[0][:1]],
        lambda x: [features(x)[0].astype(np.float64)],
        lambda x: [features(x)[0]] * 2,
        lambda x: [],
    ],
    ids=["batch frozen", "dtype", "more outputs", "no output"],
)
def test_other_structure_fails(exported):
    assert check(features, exported, EMBED).verdict is Verdict.FAIL


def test_an_exception_of_the_exported_network_is_a_fail_with_its_message():
    def frozen(x):
        if x.shape[1] != 4:
            raise RuntimeError("Got invalid dimensions for input: index 1 Got: 6 Expected: 4")
        return features(x)

    report = check(features, frozen, EMBED)
    assert report.verdict is Verdict.FAIL
    assert any("Expected: 4" in reason for reason in report.reasons)
    assert report.max_abs == 0.0  # of the cases that ran


def test_mixed_up_batch_mates_fail():
    report = check(features, lambda x: [features(x)[0][::-1]], EMBED)
    assert report.verdict is Verdict.FAIL
    assert not any("batch 1," in reason for reason in report.reasons)


def test_nothing_compared_is_no_pass():
    assert check(features, features, []).verdict is Verdict.FAIL


def test_reranker_passes_and_reports_agreement():
    report = check(ranking, ranking, RERANK)
    assert report.verdict is Verdict.OK
    assert report.rank_agreement == 1.0


def test_wrong_order_fails_though_distances_agree():
    def reversed_order(p, c):
        distances, order = ranking(p, c)
        return [distances, order[:, ::-1].copy()]

    report = check(ranking, reversed_order, RERANK)
    assert report.verdict is Verdict.FAIL
    assert report.max_abs == 0.0
    assert report.rank_agreement < 1.0


def test_unstable_ties_fail():
    def last_first(p, c):
        distances, _ = ranking(p, c)
        k = distances.shape[1]
        order = (k - 1 - np.argsort(distances[:, ::-1], axis=1, kind="stable")).astype(np.int64)
        return [distances, order]

    report = check(ranking, last_first, RERANK)
    assert report.verdict is Verdict.FAIL
    assert all("stable ascending" in reason for reason in report.reasons)
    assert {reason.split(":")[0] for reason in report.reasons} == {"ties", "all zero"}


def test_rank_agreement_by_hand():
    distances = np.array([[1.0, 2.0, 3.0]])
    assert rank_agreement(distances, np.array([[0, 1, 2]]), 1e-4) == 1.0
    assert rank_agreement(distances, np.array([[2, 1, 0]]), 1e-4) == 0.0
    assert rank_agreement(distances, np.array([[1, 0, 2]]), 1e-4) == pytest.approx(2 / 3)
    assert rank_agreement(distances, np.array([[0, 0, 2]]), 1e-4) == 0.0  # no permutation
    near = np.array([[1.0, 1.00005, 3.0]])
    assert rank_agreement(near, np.array([[1, 0, 2]]), 1e-4) == 1.0  # closer than rounding


def test_tolerance_is_respected_and_kept():
    def shifted(x):
        return [features(x)[0] + np.float32(5e-4)]

    loose = Tolerance(max_abs=1e-3, cosine=0.9)
    cases = EMBED[:3]
    assert check(features, shifted, cases).verdict is Verdict.FAIL
    report = check(features, shifted, cases, loose)
    assert report.verdict is Verdict.OK
    document = report.to_dict()
    assert document["tolerance"] == {"max_abs": 1e-3, "cosine": 0.9, "relative": None}
    assert document["verdict"] == "OK"


def test_relative_error_with_a_reference_of_zero():
    """0/0 is no NaN that passes, and something instead of nothing is no small error."""
    zero, something = np.zeros((2, 3), np.float32), np.full((2, 3), 1e-30, np.float32)
    assert relative_error(zero, zero) == 0.0
    assert relative_error(zero, something) == np.inf
    assert np.isnan(relative_error(zero, zero * np.nan))
    assert relative_error(something, 2 * something) == pytest.approx(1.0)
    gates = Tolerance(max_abs=None, cosine=0.999, relative=0.02)
    one = [Case("zero", (np.zeros((2, 1, 64, 64), np.uint8),))]
    assert check(lambda x: [zero], lambda x: [zero], one, gates).verdict is Verdict.OK
    report = check(lambda x: [zero], lambda x: [something], one, gates)
    assert report.verdict is Verdict.FAIL and "relative error inf > 0.02" in report.reasons[0]
    assert check(lambda x: [zero], lambda x: [zero * np.nan], one, gates).verdict is Verdict.FAIL


def test_half_precision_is_judged_by_direction_and_by_scale():
    half = TOLERANCES["fp16"]

    def rounded(x):
        return [features(x)[0].astype(np.float16).astype(np.float32)]

    def doubled(x):
        return [2 * features(x)[0]]

    assert check(features, rounded, EMBED, half).verdict is Verdict.OK
    report = check(features, doubled, EMBED, half)
    assert report.cosine == pytest.approx(1.0)  # it does not see that
    assert report.verdict is Verdict.FAIL and "relative error 1" in report.reasons[0]


def test_half_precision_may_swap_what_nearly_ties_only():
    def swapped(difference):
        def network(p, c):
            distances = np.tile(np.float32([1.0, 1.0 - difference, 5.0]), (len(p), 1))
            return [distances, np.argsort(distances, axis=1, kind="stable")]

        return network

    case = [Case("three", (np.zeros((2, 4, 3), np.float32), np.zeros((2, 3, 4, 3), np.float32)))]
    half = TOLERANCES["fp16"]
    assert check(swapped(-0.01), swapped(0.01), case, half).verdict is Verdict.OK
    report = check(swapped(-1.0), swapped(1.0), case, half)
    assert report.rank_agreement < 1.0 and report.verdict is Verdict.FAIL
