"""gaitsdk.metrics against plain loops over the list without its excluded entries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk import metrics
from gaitsdk.errors import InputError, OptionError


def lists(matches, excluded):
    return [
        [bool(hit) for hit, out in zip(*row, strict=True) if not out] for row in zip(matches, excluded, strict=True)
    ]


def loop_average_precision(kept):
    precisions = [sum(kept[: i + 1]) / (i + 1) for i, hit in enumerate(kept) if hit]
    return sum(precisions) / len(precisions) if precisions else math.nan


def loop_inp(kept):
    ranks = [i + 1 for i, hit in enumerate(kept) if hit]
    return len(ranks) / ranks[-1] if ranks else math.nan


@given(n=st.integers(0, 5), m=st.integers(0, 12), density=st.floats(0, 1), seed=st.integers(0, 10_000))
@settings(max_examples=200, deadline=None)
def test_equal_to_loops(n, m, density, seed):
    rng = np.random.default_rng(seed)
    matches, excluded = rng.random((n, m)) < density, rng.random((n, m)) < 0.3
    kept = lists(matches, excluded)
    first = [row.index(True) + 1 if True in row else 0 for row in kept]
    assert metrics.first_match(matches, excluded).tolist() == first
    for k in (1, 2, 5, 20):
        assert metrics.rank_k(matches, k, excluded).tolist() == [any(row[:k]) for row in kept]
    expected = [loop_average_precision(row) for row in kept]
    np.testing.assert_allclose(metrics.average_precision(matches, excluded), expected, rtol=1e-12)
    np.testing.assert_allclose(
        metrics.inverse_negative_penalty(matches, excluded), [loop_inp(row) for row in kept], rtol=1e-12
    )
    if n:
        curve = metrics.cmc(matches, 20, excluded)
        assert curve.tolist() == [metrics.rank_k(matches, k, excluded).mean() for k in range(1, 21)]
    nothing = np.zeros((n, m), bool)
    np.testing.assert_array_equal(metrics.average_precision(matches), metrics.average_precision(matches, nothing))
    np.testing.assert_array_equal(metrics.first_match(matches), metrics.first_match(matches, nothing))


def test_worked_example():
    matches = np.array([[False, True, True, False, True]])
    assert metrics.average_precision(matches)[0] == pytest.approx((1 / 2 + 2 / 3 + 3 / 5) / 3)
    assert metrics.inverse_negative_penalty(matches)[0] == pytest.approx(3 / 5)
    assert metrics.cmc(matches, 3).tolist() == [0, 1, 1]
    # Without the first entry everything moves up one rank.
    excluded = np.array([[True, False, False, False, False]])
    assert metrics.rank_k(matches, 1, excluded).tolist() == [True]
    assert metrics.inverse_negative_penalty(matches, excluded)[0] == pytest.approx(3 / 4)


def test_ties_keep_the_gallerys_order():
    distances = np.array([[1.0, 0.5, 1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0, 0.0]])
    assert metrics.rank(distances).tolist() == [[1, 3, 4, 0, 2], [0, 1, 2, 3, 4]]


def test_from_distances_to_rank_one():
    distances = np.array([[0.2, 0.1, 0.9], [0.3, 0.8, 0.1]], np.float32)
    matches = metrics.match(metrics.rank(distances), ["a", "b"], ["a", "b", "b"])
    assert matches.tolist() == [[False, True, False], [True, False, True]]
    assert metrics.rank_k(matches, 1).mean() == 0.5


def test_a_probe_without_a_mate_is_a_miss_and_has_no_precision():
    matches = np.array([[False, False], [True, False]])
    assert metrics.rank_k(matches, 2).tolist() == [False, True]
    assert np.isnan(metrics.average_precision(matches)[0]) and np.isnan(metrics.inverse_negative_penalty(matches)[0])


@pytest.mark.parametrize("k", [0, -1, True, 1.0, "1", None])
def test_bad_k_is_refused(k):
    with pytest.raises(OptionError):
        metrics.rank_k(np.ones((1, 1), bool), k)


def test_bad_arrays_are_refused():
    with pytest.raises(InputError):
        metrics.rank(np.array([[np.nan, 1.0]]))
    with pytest.raises(InputError):
        metrics.rank(np.zeros(3))
    with pytest.raises(InputError):
        metrics.first_match(np.zeros((2, 2)))
    with pytest.raises(InputError):
        metrics.first_match(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(InputError):
        metrics.match([[0, 5]], ["a"], ["a", "b"])
    with pytest.raises(InputError):
        metrics.match([[0, 1]], ["a", "b"], ["a", "b"])
    with pytest.raises(InputError):
        metrics.cmc(np.zeros((0, 3), bool), 5)
