"""Training data: batches, frame sampling, augmentation, synthetic walkers."""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.errors import DatasetError, InputError, OptionError, TrainingError
from gaitsdk_training.data import (
    Augmentation,
    BatchLoader,
    PxKSampler,
    SequenceDataset,
    augment,
    frame_indices,
    from_synthetic,
    load_batch,
    load_sequences,
    to_input,
)
from gaitsdk_training.data.frames import SKIP


def small(lengths: tuple[int, ...] = (3, 5, 8, 4)) -> SequenceDataset:
    rng = np.random.default_rng(0)
    return SequenceDataset(
        [rng.integers(0, 256, (t, 64, 64), np.uint8) for t in lengths],
        ["b", "a", "b", "a"],
        ["nm-01", "nm-01", "bg-01", "bg-01"],
        ["000", "090", "090", "000"],
    )


def test_sampler_gives_p_identities_with_k_sequences_each() -> None:
    labels = np.repeat(np.arange(7), [3, 1, 5, 4, 9, 2, 6])
    sampler = PxKSampler(labels, p=4, k=4, seed=1)
    for index in range(50):
        batch = sampler.batch(index)
        groups = labels[batch].reshape(4, 4)
        assert (groups == groups[:, :1]).all()
        assert len(set(groups[:, 0])) == 4
        for row, identity in zip(batch.reshape(4, 4), groups[:, 0], strict=True):
            count = int((labels == identity).sum())
            # Nothing twice where there are enough.
            assert len(set(row.tolist())) == 4 if count >= 4 else len(set(row.tolist())) <= count


def test_sampler_depends_on_seed_and_index_only() -> None:
    labels = np.arange(40) % 8
    first, again, other = PxKSampler(labels, 4, 2, 5), PxKSampler(labels, 4, 2, 5), PxKSampler(labels, 4, 2, 6)
    stream = [batch for batch, _ in zip(first, range(5), strict=False)]
    assert all((batch == again.batch(i)).all() for i, batch in enumerate(stream))
    assert any((batch != other.batch(i)).any() for i, batch in enumerate(stream))
    assert set(np.concatenate([first.batch(i) for i in range(60)]).tolist()) == set(range(40))  # everything comes up


def test_sampler_refuses_too_few_identities() -> None:
    with pytest.raises(TrainingError, match="lower p"):
        PxKSampler([0, 0, 1], p=3, k=2)
    for p in (1, 8):  # one identity has no negatives, whatever p is
        with pytest.raises(TrainingError, match=r"got 1 identities.*train on more identities"):
            PxKSampler([0, 0, 0], p=p, k=2)
    with pytest.raises(TrainingError):
        PxKSampler([], p=1, k=1)
    with pytest.raises(OptionError):
        PxKSampler([0, 1], p=1, k=0)


def test_unordered_frames_repeat_only_where_there_are_too_few() -> None:
    rng = np.random.default_rng(0)
    assert sorted(frame_indices(rng, 10, 10, "fixed_unordered").tolist()) == list(range(10))
    few = frame_indices(rng, 3, 10, "fixed_unordered")
    assert len(few) == 10 and few.min() >= 0 and few.max() < 3
    assert any((np.diff(frame_indices(rng, 30, 10, "fixed_unordered")) < 0).any() for _ in range(5))


@pytest.mark.parametrize("length", [1, 3, 10, 14, 15, 100])
def test_ordered_frames_are_a_thinned_window(length: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        found = frame_indices(rng, length, 10, "fixed_ordered")
        assert len(found) == 10 and found.min() >= 0 and found.max() < length
        if length >= 14:
            assert (np.diff(found) > 0).all() and found[-1] - found[0] < 14
    with pytest.raises(OptionError):
        frame_indices(rng, length, 10, "random")


def test_batch_holds_frames_of_its_sequences() -> None:
    data = small()
    batch = load_batch(data, [2, 0], 6, "fixed_unordered", np.random.default_rng(0))
    assert batch.shape == (2, 6, 64, 64) and batch.dtype == np.uint8
    for row, source in zip(batch, (data[2], data[0]), strict=True):
        assert all(any((frame == each).all() for each in source) for frame in row)


def test_input_is_cut_and_scaled() -> None:
    frames = np.zeros((2, 64, 64), np.uint8)
    frames[:, :, 10] = 255
    frames[:, :, 53] = 51
    frames[:, :, 9] = frames[:, :, 54] = 200
    x = to_input(frames, (64, 44))
    assert x.shape == (2, 64, 44) and x.dtype == torch.float32
    assert x[0, 0, 0] == 1.0 and x[0, 0, -1] == pytest.approx(0.2) and x[:, :, 1:-1].sum() == 0
    with pytest.raises(OptionError, match="do not fit"):
        to_input(frames, (128, 88))


def test_dataset_labels_subsets_and_split() -> None:
    data = small()
    assert data.classes == ["a", "b"] and data.labels.tolist() == [1, 0, 1, 0] and data.size == 64
    assert data.of_identities(["b", "nobody"]).identities.tolist() == ["b", "b"]
    assert data.subset(data.types == "nm-01").views.tolist() == ["000", "090"]
    with pytest.raises(DatasetError, match="too few identities"):
        data.split()
    many = SequenceDataset(
        np.zeros((40, 2, 64, 64), np.uint8), np.repeat(np.arange(10, 30), 2), ["nm"] * 40, ["0"] * 40
    )
    training, held_out = many.split(0.2)
    assert held_out.classes == ["26", "27", "28", "29"] and len(training) == 32


def test_dataset_refuses_what_is_no_sequence() -> None:
    with pytest.raises(DatasetError, match="no sequence"):
        SequenceDataset([], [], [], [])
    with pytest.raises(InputError, match="views"):
        SequenceDataset(np.zeros((2, 3, 64, 64), np.uint8), ["a", "b"], ["x", "y"], ["0"])
    with pytest.raises(InputError, match="sequence 1"):
        SequenceDataset([np.zeros((3, 64, 64), np.uint8), np.zeros((3, 64, 44), np.uint8)], *[["a", "b"]] * 3)


ALL = Augmentation(flip=0.5, affine=0.5, erode=0.5, dilate=0.5, erase=0.5, drop_rows=0.5)


def silhouettes() -> torch.Tensor:
    batch = torch.zeros(16, 4, 64, 44)
    batch[:, :, 8:60, 12:30] = 1.0
    batch[:, 1::2, 40:60, 18:24] = 0.0  # frames differ
    return batch


def test_no_augmentation_changes_nothing() -> None:
    batch = silhouettes()
    assert torch.equal(augment(batch, Augmentation(), torch.Generator().manual_seed(0)), batch)


def test_augmentation_is_seeded_in_range_and_leaves_its_input() -> None:
    batch = silhouettes()
    before = batch.clone()
    first = augment(batch, ALL, torch.Generator().manual_seed(7))
    assert torch.equal(batch, before)
    assert torch.equal(first, augment(batch, ALL, torch.Generator().manual_seed(7)))
    assert not torch.equal(first, augment(batch, ALL, torch.Generator().manual_seed(8)))
    assert first.shape == batch.shape and first.min() >= 0 and first.max() <= 1


@pytest.mark.parametrize("name", ["flip", "affine", "rotate", "perspective", "erode", "dilate", "erase", "drop_rows"])
def test_each_augmentation_does_what_it_says(name: str) -> None:
    batch = silhouettes()
    result = augment(batch, Augmentation(**{name: 1.0}), torch.Generator().manual_seed(3))
    area, before = result.sum(dim=(2, 3)), batch.sum(dim=(2, 3))
    if name == "flip":
        assert torch.equal(result, batch.flip(-1))
    elif name in ("affine", "rotate", "perspective"):
        # 8 degrees, 8 % shear and scale, corners by 15 % of the half side: it moves, but stays about as large.
        limit = {"affine": 0.25, "rotate": 0.05, "perspective": 0.35}[name]
        assert not torch.equal(result, batch) and ((area - before).abs() < limit * before).all()
    elif name == "erode":
        assert (area < before).all() and (result <= batch).all()
    elif name == "dilate":
        assert (area > before).all() and (result >= batch).all()
    else:
        assert (result <= batch).all() and (area < before).any()
        hole = (batch - result).sum(dim=1) > 0
        assert (hole.sum(dim=(1, 2)) <= 0.2 * 64 * 44 + 64).all()
        if name == "drop_rows":
            rows = (result[:, 0, :, 12] == 0) & (batch[:, 0, :, 12] == 1)
            assert rows.any() and (result.sum(dim=(1, 3))[rows] == 0).all()


def test_all_frames_of_a_sequence_get_the_same_affine_map() -> None:
    batch = silhouettes()[:, :1].repeat(1, 4, 1, 1)
    result = augment(batch, Augmentation(affine=1.0, erase=1.0), torch.Generator().manual_seed(1))
    assert torch.equal(result, result[:, :1].expand_as(result))
    assert not torch.equal(result[0], result[1])


def test_a_rotation_keeps_right_angles() -> None:
    """A square stays a square on frames that are not square."""
    batch = torch.zeros(1, 1, 64, 44)
    batch[:, :, 22:42, 12:32] = 1.0
    result = augment(
        batch, Augmentation(affine=1.0, degrees=40.0, shear=0.0, scale=0.0), torch.Generator().manual_seed(2)
    )
    y, x = (result[0, 0] > 0.5).nonzero().double().T
    covariance = torch.cov(torch.stack([y, x]))
    assert covariance[0, 0] == pytest.approx(float(covariance[1, 1]), rel=0.05)
    assert abs(float(covariance[0, 1])) < 0.05 * float(covariance[0, 0])
    assert not torch.equal(result, batch)


def test_impossible_augmentations_are_refused() -> None:
    for wrong in ({"flip": 1.5}, {"erase": -0.1}, {"degrees": 180}, {"affine": True}):
        with pytest.raises(OptionError, match="Augmentation"):
            Augmentation(**wrong)


def test_synthetic_walkers_are_cached_and_memory_mapped(tmp_path: Path) -> None:
    arguments = {"types": ("nm-01", "cl-01"), "views": ("000", "090"), "frames": 6}
    calls: list[tuple[int, int]] = []
    first = from_synthetic([1, 2], **arguments, cache=tmp_path, progress=lambda *each: calls.append(each))  # type: ignore[arg-type]
    assert calls[-1] == (8, 8) and isinstance(first.sequences, np.memmap)
    calls.clear()
    again = from_synthetic([1, 2], **arguments, cache=tmp_path, progress=lambda *each: calls.append(each))  # type: ignore[arg-type]
    assert not calls  # nothing was rendered again
    plain = from_synthetic([1, 2], **arguments)  # type: ignore[arg-type]
    for data in (again, plain):
        np.testing.assert_array_equal(np.stack(list(data.sequences)), first.sequences)
        assert data.identities.tolist() == first.identities.tolist() == ["001"] * 4 + ["002"] * 4
    np.testing.assert_array_equal(first[3], synthetic.sequence(1, "cl-01", "090", frames=6))
    from_synthetic([1, 2], **{**arguments, "seed": 1}, cache=tmp_path)  # type: ignore[arg-type]
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_an_identity_with_one_sequence_is_counted_and_repeated(caplog: pytest.LogCaptureFixture) -> None:
    sampler = PxKSampler([0, 1, 1, 1], p=2, k=3, seed=0)
    assert "1 of 2 identities have a single sequence" in caplog.text
    assert (sampler.batch(0) == 0).sum() == 3
    data = small()
    frames = load_batch(data, [0, 0], 2, "fixed_unordered", np.random.default_rng(0))
    assert not np.array_equal(frames[0], frames[1])  # the same walk, but other frames of it


def unrolled(ids: list[int], length: int) -> list[int]:
    """Positions in the repeated sequence: every step back begins it anew."""
    found, turn = [ids[0]], 0
    for before, after in itertools.pairwise(ids):
        turn += length if after <= before else 0
        found.append(after + turn)
    return found


def test_sampling_can_give_what_the_references_samplers_gave(parity_dir: Path) -> None:
    """Lengths 17, 732 or more, and 23 (frames are numbered from 0, 1000 and 5000), 30 frames each."""
    reference = json.loads((parity_dir / "collate.json").read_text())
    rows = [(17, 0), (732, 1000), (23, 5000)]
    spans: list[int] = []
    for (length, first), ordered, unordered in zip(
        rows, reference["fixed_ordered"], reference["fixed_unordered"], strict=True
    ):
        positions = unrolled([each - first for each in ordered], length)
        assert len(positions) == 30 and positions[-1] - positions[0] < 30 + SKIP  # a window, thinned
        assert positions[-1] < length * -(-(30 + SKIP) // length)  # repeated only as often as the window needs
        spans.append(positions[-1] - positions[0])
        assert (len(set(unordered)) == 30) == (length >= 30)  # with replacement only where frames are too few
        rng = np.random.default_rng(0)
        ours = unrolled(frame_indices(rng, length, 30, "fixed_ordered").tolist(), length)
        assert len(ours) == 30 and ours[-1] - ours[0] < 30 + SKIP
    assert max(spans) >= 30 + SKIP - 2  # the reference's windows are no shorter than ours
    counts = reference["unfixed_unordered"]["seqL"][0]
    drawn = {len(frame_indices(rng, 17, (18, 48), "unfixed_unordered")) for _ in range(400)}
    assert set(counts) <= drawn == set(range(18, 49))
    whole = reference["all_ordered_limit720"]
    found = [frame_indices(rng, length, 720, "all_ordered") for length, _ in rows]
    assert [len(each) for each in found] == whole["seqL"][0]
    edges = [first + int(each[i]) for each, (_, first) in zip(found, rows, strict=True) for i in (0, -1)]
    assert edges == whole["first_frame_ids"]


def test_unfixed_frames_differ_in_number_and_keep_their_order() -> None:
    data, rng = small(), np.random.default_rng(0)
    seen = set()
    for _ in range(30):
        batch = load_sequences(data, [0, 1, 2, 3], (2, 6), "unfixed_ordered", rng)
        seen |= {len(each) for each in batch}
        assert all(each.shape[1:] == (64, 64) for each in batch)
    assert seen == {2, 3, 4, 5, 6}
    found = frame_indices(rng, 100, (8, 12), "unfixed_ordered")
    assert (np.diff(found) > 0).all() and found[-1] - found[0] < len(found) + 4
    whole = load_sequences(data, [2, 0], 5, "all_ordered", rng)
    np.testing.assert_array_equal(whole[0], data[2][:5])
    np.testing.assert_array_equal(whole[1], data[0])
    for count, sampling in ((5, "unfixed_ordered"), ((3, 2), "unfixed_unordered"), ((2, 3), "fixed_ordered")):
        with pytest.raises(OptionError, match="impossible number"):
            frame_indices(rng, 10, count, sampling)
    with pytest.raises(OptionError, match="load_sequences"):
        load_batch(data, [0], 5, "unfixed_ordered", rng)


def test_processes_that_share_a_batch_get_the_frames_of_one() -> None:
    data = small((30, 40, 50, 60))
    whole = load_batch(data, [3, 0, 2, 1, 0], 6, "fixed_ordered", np.random.default_rng(4))
    for rank in range(2):
        part = load_batch(data, [3, 0, 2, 1, 0], 6, "fixed_ordered", np.random.default_rng(4), (rank, 2))
        np.testing.assert_array_equal(part, whole[rank::2])
    with pytest.raises(OptionError, match="share"):
        load_batch(data, [0], 6, "fixed_ordered", np.random.default_rng(4), (2, 2))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_do_not_depend_on_workers_nor_on_the_start(workers: int) -> None:
    data = small((30, 40, 50, 60))
    sampler = PxKSampler(data.labels, 2, 2, seed=3)
    options: dict[str, Any] = {"frames": 5, "sampling": "fixed_unordered", "seed": 3}
    plain = BatchLoader(data, sampler, workers=0, **options)
    with BatchLoader(data, sampler, workers=workers, start=4, **options) as loader:
        for index, batch in zip(range(4, 12), loader, strict=False):
            expected = plain.load(index)
            assert batch.index == index and batch.seed == expected.seed
            np.testing.assert_array_equal(batch.silhouettes, expected.silhouettes)
            np.testing.assert_array_equal(batch.labels, data.labels[sampler.batch(index)])
        assert loader.served >= 8 and loader.waited >= 0.0


def test_a_loader_passes_errors_on_and_leaves_no_thread() -> None:
    data = small((30, 40, 50, 60))
    sampler = PxKSampler(data.labels, 2, 2)
    before = threading.active_count()
    with pytest.raises(OptionError, match="unknown frame sampling"):
        next(BatchLoader(data, sampler, frames=5, sampling="random", workers=2))
    with BatchLoader(data, sampler, frames=5, sampling="fixed_ordered", workers=2) as loader:
        next(loader)
    assert threading.active_count() == before and list(loader) == []  # closed: it gives nothing any more
    with pytest.raises(OptionError, match="workers"):
        BatchLoader(data, sampler, frames=5, sampling="fixed_ordered", workers=-1)


def test_perspective_moves_the_corners_and_keeps_lines_straight() -> None:
    batch = torch.zeros(1, 1, 64, 44)
    batch[..., 20:24] = 1.0  # a vertical bar stays a straight bar, whichever way it leans
    result = augment(batch, Augmentation(perspective=1.0, tilt=0.3), torch.Generator().manual_seed(5))[0, 0]
    assert not torch.equal(result, batch[0, 0])
    rows = torch.arange(64)[(result.sum(dim=1) > 2.0)]
    centres = (result[rows] * torch.arange(44.0)).sum(dim=1) / result[rows].sum(dim=1)
    inner = slice(4, -4)
    slope = np.polyfit(rows[inner].numpy(), centres[inner].numpy(), 1)
    error = np.abs(np.polyval(slope, rows[inner].numpy()) - centres[inner].numpy())
    assert len(rows) > 40 and error.max() < 0.35
    still = augment(batch, Augmentation(perspective=1.0, tilt=0.0), torch.Generator().manual_seed(5))
    torch.testing.assert_close(still, batch, atol=1e-5, rtol=0)


def test_dropped_frames_stand_still() -> None:
    batch = torch.arange(1.0, 21.0).view(1, 20, 1, 1).repeat(64, 1, 4, 4) / 20.0
    result = augment(batch, Augmentation(drop_frames=1.0, frames=0.9), torch.Generator().manual_seed(0))
    shown, real = (result[:, :, 0, 0] * 20).round().int(), (batch[:, :, 0, 0] * 20).round().int()
    lost = shown != real
    assert 0.2 < float(lost.float().mean()) < 0.7
    held = lost[:, 1:] & (real[:, 1:] > shown[:, :1])  # after the first that is left
    assert torch.equal(shown[:, 1:][held], shown[:, :-1][held])
    assert (shown.diff(dim=1) >= 0).all()
    one = batch[:, :1]
    assert torch.equal(augment(one, Augmentation(drop_frames=1.0, frames=1.0), torch.Generator().manual_seed(0)), one)


def test_younger_augmentations_leave_the_draws_of_older_recipes_alone() -> None:
    """The shipped bundle's batches: six draws, then those of the two boxes, and nothing of what was added since."""
    generator, by_hand = (torch.Generator().manual_seed(11) for _ in range(2))
    augment(silhouettes(), Augmentation(erase=1.0, drop_rows=1.0), generator)
    for shape in (*[(16,)] * 6, (4, 16), (2, 16)):
        torch.rand(*shape, generator=by_hand)
    assert torch.equal(generator.get_state(), by_hand.get_state())
