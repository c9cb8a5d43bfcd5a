"""Frames of a training batch: how many, from which window, and the same ones after a resume."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gaitsdk.errors import OptionError
from gaitsdk_training.data import BatchLoader, PxKSampler, SequenceDataset, frame_indices, load_batch


def small(lengths: tuple[int, ...] = (30, 40, 50, 60)) -> SequenceDataset:
    rng = np.random.default_rng(0)
    return SequenceDataset(
        [rng.integers(0, 256, (t, 64, 64), np.uint8) for t in lengths],
        ["b", "a", "b", "a"],
        ["nm-01", "nm-01", "bg-01", "bg-01"],
        ["000", "090", "090", "000"],
    )


def test_ordered_frames_skip_as_many_as_they_are_told() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert (np.diff(frame_indices(rng, 100, 10, "fixed_ordered", 0)) == 1).all()  # frames in a row
    spans = [np.ptp(frame_indices(rng, 100, 10, "fixed_ordered", 10)) for _ in range(200)]
    assert max(spans) == 19 and min(spans) >= 9
    short = frame_indices(rng, 7, 10, "fixed_ordered", 0)
    assert (np.diff(short) % 7 == 1).all()  # a short sequence is repeated from its start
    data = small()
    batch = load_batch(data, [1], 6, "fixed_ordered", np.random.default_rng(2), skip=0)
    first = int(np.flatnonzero((data[1] == batch[0, 0]).all(axis=(1, 2)))[0])
    np.testing.assert_array_equal(batch[0], data[1][first : first + 6])


def test_unfixed_batches_have_one_length_each_of_the_seed_and_the_step() -> None:
    data = small()
    sampler = PxKSampler(data.labels, 2, 2, seed=3)
    options: dict[str, Any] = {"frames": (3, 7), "sampling": "unfixed_ordered", "seed": 3}
    plain = BatchLoader(data, sampler, workers=0, **options)
    batches = [plain.load(index) for index in range(60)]
    lengths = [each.silhouettes.shape[1] for each in batches]
    assert set(lengths) == {3, 4, 5, 6, 7} and len({each.seed for each in batches}) == 60
    with BatchLoader(data, sampler, workers=2, start=20, **options) as loader:  # a run that goes on
        for expected, batch in zip(batches[20:], loader, strict=False):
            np.testing.assert_array_equal(batch.silhouettes, expected.silhouettes)
    for rank in range(2):  # processes that share a batch agree on its length
        part = BatchLoader(data, sampler, workers=0, share=(rank, 2), **options).load(5)
        np.testing.assert_array_equal(part.silhouettes, batches[5].silhouettes[rank::2])
    other = BatchLoader(data, sampler, workers=0, **{**options, "seed": 4})
    assert [other.load(index).silhouettes.shape[1] for index in range(60)] != lengths
    for frames in (5, (5, 3), (0, 2)):
        with pytest.raises(OptionError, match="impossible number"):
            BatchLoader(data, sampler, workers=0, **{**options, "frames": frames}).load(0)
    with pytest.raises(OptionError, match="impossible number"):
        BatchLoader(data, sampler, workers=0, frames=(3, 7), sampling="fixed_ordered").load(0)


def test_batches_of_one_length_are_those_that_they_always_were() -> None:
    """Whatever came later, the batches of published bundles draw their frames first."""
    data = small()
    sampler = PxKSampler(data.labels, 2, 2, seed=3)
    batch = BatchLoader(data, sampler, frames=5, sampling="fixed_unordered", seed=3, workers=0).load(7)
    rng = np.random.default_rng((3, 7, 1))
    expected = load_batch(data, sampler.batch(7), 5, "fixed_unordered", rng)
    np.testing.assert_array_equal(batch.silhouettes, expected)
    assert batch.seed == int(rng.integers(2**62))
