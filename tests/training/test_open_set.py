"""Open-set rates, curves and thresholds against plain loops over the definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk.errors import CalibrationError, InputError, OptionError
from gaitsdk_training.evaluation.curves import cmc, det, verification
from gaitsdk_training.evaluation.open_set import (
    Searches,
    check_supported,
    fnir,
    fpir,
    measure,
    people_needed,
    smallest_rate,
    threshold_at,
)

Case = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def case(seed: int, n: int = 12, m: int = 7) -> Case:
    """Distances on a coarse grid (so that ties abound), entries beyond a list, failures, people without a mate."""
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(2, n)), int(rng.integers(1, m))
    gallery = rng.integers(0, 6, m)  # some people twice, some not at all
    subject = rng.integers(0, 8, n)
    distances = rng.integers(0, 6, (n, m)) / 4.0
    distances[rng.random((n, m)) < 0.15] = np.inf  # beyond the re-ranked list
    distances[rng.random(n) < 0.1] = np.inf  # could not be embedded
    return distances, gallery, subject, np.isin(subject, gallery)


def lists(found: Case) -> Searches:
    distances, gallery, subject, mated = found
    order = np.argsort(distances, axis=1, kind="stable")
    matches = gallery[order] == subject[:, None]
    return Searches.from_lists(np.take_along_axis(distances, order, 1), matches, mated, subject)


def brute_fpir(found: Case, threshold: float) -> float:
    distances, _, _, mated = found
    rows = [row for row, has in zip(distances, mated, strict=True) if not has]
    wrong = [any(d <= threshold and d != math.inf for d in row) for row in rows]
    return sum(wrong) / len(wrong) if wrong else math.nan


def brute_fnir(found: Case, threshold: float, rank: int) -> float:
    distances, gallery, subject, mated = found
    missed = []
    for row, who, has in zip(distances.tolist(), subject, mated, strict=True):
        if not has:
            continue
        # Python's sort is stable: equal distances keep the gallery's order.
        first = sorted(range(len(row)), key=lambda i: row[i])[:rank]
        missed.append(not any(gallery[i] == who and row[i] <= threshold for i in first))
    return sum(missed) / len(missed) if missed else math.nan


def equal(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-12


THRESHOLDS = (-1.0, 0.0, 0.1, 0.25, 0.75, 1.0, 1.25, 9.0, math.inf)


@given(seed=st.integers(0, 10_000_000))
@settings(max_examples=200, deadline=None)
def test_rates_and_curves_equal_loops(seed: int) -> None:
    found = case(seed)
    searches = lists(found)
    for threshold in THRESHOLDS:
        assert equal(fpir(searches, threshold), brute_fpir(found, threshold))
        for rank in (1, 2, 5, 50):
            assert equal(fnir(searches, threshold, rank), brute_fnir(found, threshold, rank))
    mated = found[3]
    if mated.any():
        curve = cmc(searches, 8, resamples=5)
        np.testing.assert_allclose(
            curve.accuracy, [1 - brute_fnir(found, math.inf, r) for r in range(1, 9)], atol=1e-12
        )
    if mated.any() and not mated.all():
        for rank in (1, 3):
            points = det(searches, rank)
            np.testing.assert_allclose(points.fpir, [brute_fpir(found, t) for t in points.thresholds], atol=1e-12)
            np.testing.assert_allclose(points.fnir, [brute_fnir(found, t, rank) for t in points.thresholds], atol=1e-12)
            assert (np.diff(points.fpir) >= 0).all() and (np.diff(points.fnir) <= 0).all()


@given(seed=st.integers(0, 10_000_000), rate=st.sampled_from([0.01, 0.1, 0.25, 0.3, 0.5, 0.9]))
@settings(max_examples=200, deadline=None)
def test_thresholds_equal_loops(seed: int, rate: float) -> None:
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 9, rng.integers(1, 40)) / 8.0
    distances[rng.random(len(distances)) < 0.1] = np.inf
    distances[0] = 0.5
    finite = sorted(set(distances[np.isfinite(distances)].tolist()))
    fitting = [v for v in finite if sum(d <= v for d in distances) <= rate * len(distances) + 1e-9]
    found = threshold_at(distances, rate)
    assert found == fitting[-1] if fitting else finite[0] - 1e-9 < found < finite[0]
    assert (distances <= found).mean() <= rate + 1e-9


@given(seed=st.integers(0, 10_000_000))
@settings(max_examples=200, deadline=None)
def test_verification_equals_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genuine = rng.integers(0, 8, rng.integers(1, 20)) / 8.0
    impostor = rng.integers(2, 12, rng.integers(1, 20)) / 8.0
    curve = verification(genuine, impostor, people=10_000)
    best, gap = math.nan, math.inf
    for threshold, fmr, fnmr in zip(curve.thresholds, curve.fmr, curve.fnmr, strict=True):
        accepted = sum(d <= threshold for d in impostor.tolist()) / len(impostor)
        refused = sum(d > threshold for d in genuine.tolist()) / len(genuine)
        assert equal(fmr, accepted) and equal(fnmr, refused)
        if abs(accepted - refused) < gap - 1e-12:
            best, gap = (accepted + refused) / 2, abs(accepted - refused)
    assert curve.fmr[0] == 0 and curve.fnmr[0] == 1 and curve.fmr[-1] == 1 and curve.fnmr[-1] == 0
    if best >= smallest_rate(10_000):
        assert curve.eer == pytest.approx(best, abs=1e-12)
    else:
        assert curve.eer is None


def test_a_hand_made_example() -> None:
    # Gallery: ann, bob, cid. Probes: ann (right), bob (mate second), eve and fay (strangers).
    distances = np.array([[0.2, 0.5, 0.9], [0.3, 0.4, 0.8], [0.4, 0.6, 0.7], [0.8, 0.9, 1.0]])
    matches = np.zeros((4, 3), bool)
    matches[0, 0] = matches[1, 1] = True
    searches = Searches.from_lists(distances, matches, [True, True, False, False], ["ann", "bob", "eve", "fay"])
    assert fpir(searches, 0.4) == 0.5 and fpir(searches, 0.39) == 0.0 and fpir(searches, 0.8) == 1.0
    assert fnir(searches, 1.0) == 0.5 and fnir(searches, 1.0, rank=2) == 0.0 and fnir(searches, 0.39, rank=2) == 0.5
    assert searches.mate_rank.tolist() == [1, 2, 0, 0]
    assert fnir(searches, math.inf) == 0.5
    # A stranger who is added far away changes nothing; one who is nearest makes a miss at rank 1.
    far = Searches.from_lists(
        np.c_[distances, np.full(4, 5.0)], np.c_[matches, np.zeros(4, bool)], searches.mated, searches.subject
    )
    assert fnir(far, 0.4) == fnir(searches, 0.4) and fpir(far, 0.4) == fpir(searches, 0.4)


def test_an_empty_gallery_and_failures() -> None:
    empty = Searches.from_lists(np.zeros((2, 0)), np.zeros((2, 0), bool), [False, False], ["a", "b"])
    assert fpir(empty, math.inf) == 0.0 and math.isnan(fnir(empty, 1.0))
    failed = Searches.from_lists([[np.inf]] * 2, [[True], [False]], [True, False], ["a", "b"])
    assert fnir(failed, 9.0) == 1.0 and fpir(failed, math.inf) == 0.0
    with pytest.raises(InputError, match="both kinds"):
        det(empty)
    with pytest.raises(InputError, match="no mated"):
        cmc(empty)


def test_unordered_or_unfitting_lists_are_refused() -> None:
    for bad in ([[2.0, 1.0]], [[np.nan, 1.0]], [[np.nan]]):
        with pytest.raises(InputError, match="order"):
            Searches.from_lists(bad, np.zeros(np.shape(bad), bool), [True], ["a"])
    with pytest.raises(InputError, match="fit"):
        Searches.from_lists([[1.0]], [[True]], [True, False], ["a"])


def test_no_rate_is_given_that_the_sample_cannot_show() -> None:
    people = np.arange(300).repeat(4)
    events = np.zeros(1200, bool)
    none = measure(events, people)
    assert none.value is None and none.low is None and none.high is None and none.events == 0
    assert str(none) == "not supported: n=300 people show no rate below 1 %"
    events[:11] = True  # 0.92 % of the trials: still below 3/300, however many trials there are
    assert measure(events, people).value is None
    assert measure(events, people, rule_of_three=False).value == pytest.approx(11 / 1200)
    events[:12] = True
    shown = measure(events, people)
    assert shown.value == pytest.approx(0.01) and shown.people == 300 and not shown.reason
    assert shown.low is not None and shown.high is not None and shown.low < 0.01 < shown.high
    assert str(shown).startswith("1.00 % (") and shown.to_dict()["trials"] == 1200
    assert measure([], []).reason == "not supported: n=0"


def test_intervals_resample_people_not_trials() -> None:
    rng = np.random.default_rng(0)
    people = np.arange(40).repeat(50)
    spread = measure(rng.random(2000) < 0.25, people)
    lumped = measure(people < 10, people)  # the same rate, and all of it hangs on ten people
    assert spread.value == pytest.approx(0.25, abs=0.03) and lumped.value == 0.25
    assert spread.low is not None and spread.high is not None and lumped.low is not None and lumped.high is not None
    assert lumped.high - lumped.low > 4 * (spread.high - spread.low)
    assert measure(people < 10, people) == lumped  # the same seed, the same interval


@pytest.mark.parametrize(("rate", "people"), [(0.01, 300), (0.003, 1000), (0.001, 3000), (0.3, 10), (0.07, 43)])
def test_how_many_people_a_rate_takes(rate: float, people: int) -> None:
    assert people_needed(rate) == people and smallest_rate(people) <= rate + 1e-12 < smallest_rate(people - 1)
    check_supported(rate, people, "here")
    with pytest.raises(CalibrationError, match=f"at least {people} .*{people + 5} will do"):
        check_supported(rate, people - 1, "here", enrolled=5)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, True, "1", math.nan])
def test_what_is_no_rate(rate: Any) -> None:
    with pytest.raises(OptionError, match="rate"):
        people_needed(rate)


def test_unusable_distances() -> None:
    for bad in ([], [np.inf, np.inf], [1.0, np.nan]):
        with pytest.raises(InputError, match="distance"):
            threshold_at(bad, 0.1)
    with pytest.raises(InputError, match="pairs"):
        verification([], [1.0], 3)
    with pytest.raises(InputError, match="pairs"):
        verification([1.0], [np.inf], 3)
    with pytest.raises(OptionError, match="length"):
        cmc(lists(case(1)), 0)


def test_curves_tell_only_what_is_supported() -> None:
    rng = np.random.default_rng(0)
    n = 400
    mated = np.arange(n) < n // 2
    distances = np.sort(np.where(mated, rng.normal(1.0, 0.3, n), rng.normal(2.0, 0.3, n)))[:, None]
    distances = np.where(mated, rng.normal(1.0, 0.4, n), rng.normal(2.0, 0.4, n))[:, None].clip(0)
    searches = Searches.from_lists(distances, mated[:, None], mated, np.arange(n))
    curve = det(searches)
    assert curve.fpir_floor == curve.fnir_floor == pytest.approx(3 / 200)
    told = curve.to_dict()
    assert 0 < len(told["fpir"]) < len(curve.fpir)
    assert min(told["fpir"]) >= 0.015 - 1e-9 and min(told["fnir"]) >= 0.015 - 1e-9
    line = cmc(searches, 3)
    assert (line.low <= line.accuracy).all() and (line.accuracy <= line.high).all() and line.probes == 200
    few = verification(distances[mated], distances[~mated], people=20)
    assert few.eer is None and few.to_dict()["eer"] is None
    assert verification(distances[mated], distances[~mated], people=200).eer is not None


def test_long_curves_are_thinned_out_and_keep_their_ends() -> None:
    rng = np.random.default_rng(0)
    distances = np.r_[rng.normal(1.0, 0.4, 4000), rng.normal(2.0, 0.4, 4000)].clip(0)[:, None]
    mated = np.arange(8000) < 4000
    curve = det(Searches.from_lists(distances, mated[:, None], mated, np.arange(8000)))
    told, kept = curve.to_dict(), np.flatnonzero(curve.supported)
    assert len(told["fpir"]) == len(told["fnir"]) == len(told["thresholds"]) == 500 < len(kept)
    assert told["fpir"][0] == curve.fpir[kept[0]] and told["fpir"][-1] == curve.fpir[kept[-1]]
    assert told["thresholds"] == sorted(told["thresholds"])
