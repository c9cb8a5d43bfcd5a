"""Training data: batches, frame sampling, augmentation, sources."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from gaitsdk import synthetic
from gaitsdk.errors import DatasetError, InputError, OptionError, TrainingError
from gaitsdk_training.data import (
    Augmentation,
    PxKSampler,
    SequenceDataset,
    augment,
    frame_indices,
    from_synthetic,
    from_tree,
    load_batch,
    to_input,
)


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


@pytest.mark.parametrize("name", ["flip", "affine", "erode", "dilate", "erase", "drop_rows"])
def test_each_augmentation_does_what_it_says(name: str) -> None:
    batch = silhouettes()
    result = augment(batch, Augmentation(**{name: 1.0}), torch.Generator().manual_seed(3))
    area, before = result.sum(dim=(2, 3)), batch.sum(dim=(2, 3))
    if name == "flip":
        assert torch.equal(result, batch.flip(-1))
    elif name == "affine":
        # 8 degrees, 8 % shear and scale: it moves, but stays about as large.
        assert not torch.equal(result, batch) and ((area - before).abs() < 0.25 * before).all()
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


def test_a_tree_gives_the_same_sequences(tmp_path: Path) -> None:
    synthetic.write_casiab(tmp_path, [1, 2, 3], types=("nm-01", "bg-01"), views=("000", "090"), frames=8)
    data = from_tree(tmp_path, identities=["001", "003"], types=["bg-01"])
    assert data.identities.tolist() == ["001", "001", "003", "003"] and set(data.types.tolist()) == {"bg-01"}
    np.testing.assert_array_equal(data[1], synthetic.sequence(1, "bg-01", "090", frames=8))
    with pytest.raises(DatasetError, match="no usable sequence"):
        from_tree(tmp_path, identities=["077"])
    with pytest.raises(DatasetError, match="cl-07"):
        from_tree(tmp_path, types=["cl-07"])


def test_people_of_a_partition_who_are_not_there_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthetic.write_casiab(tmp_path, [1], types=("nm-01",), views=("000", "090"), frames=8)
    assert from_tree(tmp_path, identities=["001", "005"]).classes == ["001"]
    assert "1 of 2" in caplog.text and "005" in caplog.text


def test_a_tree_leaves_out_what_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    synthetic.write_casiab(tmp_path, [1], types=("nm-01",), views=("000", "090"), frames=8)
    with (tmp_path / "001" / "nm-01" / "000" / "000.pkl").open("wb") as file:
        pickle.dump(np.zeros((8, 64, 64), np.uint8), file, protocol=4)
    data = from_tree(tmp_path)
    assert data.views.tolist() == ["090"]
    assert "001/nm-01/000" in caplog.text
