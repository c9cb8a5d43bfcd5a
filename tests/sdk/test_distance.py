"""gaitsdk.distance against loops in float64 and against OpenGait's numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaitsdk.distance import METRICS, paired, pairwise
from gaitsdk.errors import InputError, OptionError


def brute(probe, gallery, metric):
    result = np.zeros((len(probe), len(gallery)))
    for i, x in enumerate(probe.astype(np.float64)):
        for j, y in enumerate(gallery.astype(np.float64)):
            strips = []
            for a, b in zip(x, y, strict=True):
                if metric == "euclidean":
                    strips.append(np.sqrt(((a - b) ** 2).sum()))
                else:
                    strips.append(1 - (a / max(np.linalg.norm(a), 1e-12)) @ (b / max(np.linalg.norm(b), 1e-12)))
            result[i, j] = np.mean(strips)
    return result


@pytest.mark.parametrize("metric", METRICS)
@given(n=st.integers(0, 6), m=st.integers(0, 7), s=st.integers(1, 5), d=st.integers(1, 40), seed=st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_equals_the_loop(metric, n, m, s, d, seed):
    rng = np.random.default_rng(seed)
    probe = rng.standard_normal((n, s, d)).astype(np.float32) + np.float32(seed % 5)
    gallery = rng.standard_normal((m, s, d)).astype(np.float32) + np.float32(seed % 5)
    expected = brute(probe, gallery, metric)
    found = pairwise(probe, gallery, metric)
    assert found.dtype == np.float32 and found.shape == (n, m)
    np.testing.assert_allclose(found, expected, rtol=3e-5, atol=1e-6)
    few = min(n, m)
    close = paired(probe[:few], gallery[:few], metric)
    assert close.dtype == np.float32
    np.testing.assert_allclose(close, np.diagonal(expected)[:few], rtol=1e-6, atol=1e-12 + 1e-7 * (metric == "cosine"))


@pytest.mark.parametrize("metric", METRICS)
def test_blocks_join_without_seams(metric):
    rng = np.random.default_rng(1)
    probe, gallery = rng.standard_normal((600, 2, 5)), rng.standard_normal((2100, 2, 5))
    probe, gallery = probe.astype(np.float32), gallery.astype(np.float32)
    whole = pairwise(probe, gallery, metric)
    for i, j in ((0, 0), (511, 1023), (512, 1024), (599, 2099), (5, 2050), (590, 3)):
        assert whole[i, j] == pytest.approx(float(paired(probe[i : i + 1], gallery[j : j + 1], metric)[0]), abs=2e-6)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_map_to_itself_is_exactly_zero(metric, scale):
    maps = (np.random.default_rng(2).standard_normal((9, 16, 128)) * scale + 100 * scale).astype(np.float32)
    assert (paired(maps, maps, metric) == 0).all()


def test_near_duplicates_do_not_cancel():
    rng = np.random.default_rng(3)
    maps = (rng.standard_normal((20, 16, 64)) + 50).astype(np.float32)
    near = maps + np.float32(1e-3) * rng.standard_normal(maps.shape).astype(np.float32)
    np.testing.assert_allclose(np.diagonal(pairwise(maps, near)), paired(maps, near), rtol=1e-3)
    assert np.diagonal(pairwise(maps, maps)).max() < 1e-4  # plain float32 products give about 0.1 here


def test_long_and_short_maps_in_one_block_do_not_cancel():
    """The sums of squares of a block's longest maps say nothing of its short ones, and the other way round."""
    rng = np.random.default_rng(5)
    maps = (rng.standard_normal((30, 4, 32)) + 20).astype(np.float32) * np.logspace(-4, 4, 30, dtype=np.float32)[
        :, None, None
    ]
    near = maps * np.float32(1 + 1e-5)
    found = pairwise(maps, near)
    np.testing.assert_allclose(np.diagonal(found), paired(maps, near), rtol=1e-2)
    np.testing.assert_allclose(found, brute(maps, near, "euclidean"), rtol=1e-2)


def test_mean_over_strips_is_not_the_norm_of_the_concatenation():
    zero = np.zeros((1, 2, 2), np.float32)
    other = np.array([[[3, 4], [0, 0]]], np.float32)
    assert pairwise(zero, other)[0, 0] == 2.5 and paired(zero, other)[0] == 2.5


def test_a_strip_without_direction_has_cosine_distance_one():
    zero = np.zeros((1, 1, 3), np.float32)
    other = np.ones((1, 1, 3), np.float32)
    assert pairwise(zero, other, "cosine")[0, 0] == 1 == paired(zero, other, "cosine")[0]


@pytest.mark.parametrize("case", ["a", "b", "c"])
@pytest.mark.parametrize(("metric", "name"), [("euclidean", "euc"), ("cosine", "cos")])
def test_parity_with_opengait(parity_dir: Path, case, metric, name):
    with np.load(parity_dir / "eval_distance.npz") as numbers:
        # The fixture's maps are [n, dims, strips].
        probe, gallery = (np.moveaxis(numbers[f"{side}_{case}"], -1, 1) for side in "xy")
        expected = numbers[f"{name}_{case}"]
    # Case c compares maps with themselves: there the reference is off by the square root of float32's cancellation.
    coincide = brute(probe, gallery, metric) < 1e-3
    tolerance = np.where(coincide, 4e-3, 1e-5)
    assert (np.abs(pairwise(probe, gallery, metric) - expected) <= tolerance).all()
    for j in range(min(len(probe), len(gallery))):
        direct = paired(probe[j : j + 1], gallery[j : j + 1], metric)[0]
        assert abs(direct - expected[j, j]) <= tolerance[j, j]


@pytest.mark.parametrize("function", [pairwise, paired])
@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((2, 3), np.float32),
        np.zeros((2, 2, 3, 4), np.float32),
        np.zeros((2, 3, 5), np.float32),
        np.zeros((2, 3, 0), np.float32),
        np.full((2, 3, 4), np.nan, np.float32),
        np.full((2, 3, 4), np.inf, np.float32),
        np.full((2, 3, 4), -1e30, np.float64),
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((2, 3, 4), object),
        np.zeros((2, 3, 4), complex),
        None,
        [],
    ],
)
def test_bad_input_is_refused(function, bad):
    good = np.zeros((2, 3, 4), np.float32)
    with pytest.raises(InputError) as refusal:
        function(good, bad)
    assert "gallery" in str(refusal.value) or str(refusal.value).startswith("b:")


def test_memory_layouts_are_equal():
    maps = np.random.default_rng(4).standard_normal((6, 4, 8)).astype(np.float32)
    expected = pairwise(maps, maps[::-1].copy())
    for same in (np.asfortranarray(maps), maps.astype(">f4"), maps.astype(np.float64)):
        np.testing.assert_array_equal(pairwise(same, maps[::-1]), expected)


def test_unknown_metric_is_refused():
    with pytest.raises(OptionError, match="euclidean or cosine"):
        pairwise(np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32), "manhattan")
