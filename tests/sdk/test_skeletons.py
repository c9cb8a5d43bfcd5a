"""Skeleton maps: against the reference numbers, by their definition, and with bad input."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import errors, synthetic
from gaitsdk.silhouettes import prepare, skeleton_input, skeleton_maps, stack_maps
from gaitsdk.skeletons import JOINTS, LIMBS, fill_missing

WALK = synthetic.sequence(3, frames=12)
#: A person of 400 pixels, arms and legs apart, joints in COCO's order.
BODY = np.array(
    [
        (300, 100), (306, 94), (294, 94), (314, 98), (286, 98), (340, 160), (260, 160), (360, 230), (240, 230),
        (370, 290), (230, 290), (325, 300), (275, 300), (335, 400), (265, 400), (340, 500), (260, 500),
    ],
    np.float64,
)  # fmt: skip


def keypoints(frames: int = 12, seed: int = 0) -> np.ndarray:
    """`[frames, 17, 3]`: the body with joints that move, all seen well."""
    random = np.random.default_rng(seed)
    moving = BODY + random.normal(0, 4, (frames, 17, 2))
    return np.concatenate([moving, random.uniform(0.6, 1, (frames, 17, 1))], axis=2)


def test_parity(parity_dir: Path) -> None:
    with np.load(parity_dir / "heatmap.npz") as file:
        reference = dict(file)
    assert json.loads((parity_dir / "heatmap.json").read_text())["cfg"]["heatmap_generator_args"]["sigma"] == 8.0
    maps = skeleton_maps(reference["pose"])
    assert maps.dtype == np.uint8 and maps.shape == reference["heatmap"].shape
    difference = np.abs(maps.astype(int) - reference["heatmap"])
    assert difference.max() <= 1, f"{difference.max()} grey levels off"
    assert (difference > 0).mean() < 0.01
    missing = reference["pose"][..., :2] == 0
    assert missing.any(), "the reference must show how a missing joint is filled"
    filled = fill_missing(reference["pose"][..., :2].reshape(len(missing), -1)).reshape(missing.shape)
    np.testing.assert_allclose(filled, reference["padded"][..., :2], rtol=1e-12)


def test_thirty_frames_take_no_time() -> None:
    points = keypoints(30)
    skeleton_maps(points)
    started = time.perf_counter()
    skeleton_maps(points)
    assert time.perf_counter() - started < 0.9


def test_the_body_is_where_it_must_be() -> None:
    """A joint draws a dot as bright as its score at its place on the canvas: mid-hip in the middle, 85 rows high."""
    points = np.tile(np.dstack([BODY[None], np.ones((1, 17, 1))]), (2, 1, 1))
    points[:, :, 2] = 0.0
    points[:, [11, 12, 5], 2] = (1.0, 1.0, 0.8)
    joints = skeleton_maps(points, sigma=1.0)[:, 1]
    # The rows from the shoulder, 29.4 above the hips, to three sigma beyond on either side become 64 rows.
    shoulder = 64 + (BODY[5] - (300, 300)) * 85 / np.ptp(BODY[:, 1])
    top, height = int(shoulder[1] - 3), 67 - int(shoulder[1] - 3) + 1
    row, column = np.unravel_index(joints[0, :32].argmax(), (32, 64))
    assert abs(row - (shoulder[1] - top + 0.5) * 64 / height) < 3
    assert abs(column - (shoulder[0] - (64 - height // 2) + 0.5) * 64 / height) < 3
    assert 150 < joints[0, :32].max() <= 0.8 * 255 < joints[0, 32:].max()
    np.testing.assert_array_equal(joints[0], joints[1])


def test_place_and_size_in_the_picture_do_not_matter() -> None:
    points = keypoints(6)
    moved = points.copy()
    moved[..., :2] = moved[..., :2] * 2 + (31, 77)
    difference = np.abs(skeleton_maps(points).astype(int) - skeleton_maps(moved))
    assert difference.max() <= 1
    np.testing.assert_array_equal(skeleton_maps(points.astype(np.float32)).shape, (6, 2, 64, 64))


def test_each_frame_is_drawn_alone_and_scores_count() -> None:
    points = keypoints(6)
    maps = skeleton_maps(points)
    np.testing.assert_array_equal(maps[2:4], skeleton_maps(points[2:4]))
    fainter = points * (1, 1, 0.5)
    assert skeleton_maps(fainter).max() < maps.max() * 0.52
    assert skeleton_maps(points, size=128).shape == (6, 2, 128, 128)
    assert (skeleton_maps(points, sigma=4.0) > 0).sum() < (maps > 0).sum()


def test_seventeen_joints_and_limbs() -> None:
    assert len(JOINTS) == len(LIMBS) == len({frozenset(pair) for pair in LIMBS}) == 17
    assert {joint for pair in LIMBS for joint in pair} == set(range(17))


def test_a_missing_joint_is_filled_but_not_drawn() -> None:
    points = keypoints(20)
    hidden = points.copy()
    hidden[4, 10] = 0  # a wrist: neither the highest nor the lowest
    maps, whole = skeleton_maps(hidden), skeleton_maps(points)
    others = np.arange(20) != 4
    np.testing.assert_array_equal(maps[others], whole[others])
    assert maps[4].astype(int).sum() < whole[4].astype(int).sum()
    lost, doubted = points.copy(), points.copy()
    lost[4, 15:] = 0  # both ankles: without filling, the body would end at the knees and be drawn too large
    doubted[4, 15:, 2] = 0
    difference = np.abs(skeleton_maps(lost)[4].astype(int) - skeleton_maps(doubted)[4])
    assert 0 < difference.max() < 30


def test_a_joint_that_no_frame_has_is_left_out() -> None:
    points = keypoints(6)
    points[:, 9] = 0
    assert skeleton_maps(points).shape == (6, 2, 64, 64)
    points[:, 11] = 0
    with pytest.raises(errors.SilhouetteValueError, match="left hip"):
        skeleton_maps(points)


def test_filling_takes_the_four_nearest() -> None:
    rows = np.array([[1, 10, 0.0], [1, 11, 5], [2, 10, 6], [4, 10, 7], [5, 10, 8], [99, 99, 1000]])
    distances = np.array([1.0, 1.0, 3.0, 4.0])  # over the two columns that are there, scaled alike
    expected = np.average([5, 6, 7, 8], weights=1 / distances)
    filled = fill_missing(rows)
    assert filled[0, 2] == pytest.approx(expected)
    np.testing.assert_array_equal(filled[1:], rows[1:])


def test_filling_equals_twins_and_means() -> None:
    twin = np.array([[3, 4, 0.0], [3, 4, 7], [3, 5, 100]])
    assert fill_missing(twin)[0, 2] == 7
    strangers = np.array([[3, 0.0], [0, 4], [0, 8]])
    assert fill_missing(strangers)[0, 1] == 6, "no column in common: the column's mean"
    assert (fill_missing(np.array([[3, 0.0], [4, 0.0]]))[:, 1] == 0).all(), "no value at all"
    scaled = np.array([[1, 1, 0.0], [0, 3, 10], [2, 2, 20]])  # one column in common counts twice
    far, near = np.sqrt(2 * 3 / 2), np.sqrt(3)
    assert fill_missing(np.array([[1, 1, 0.0], [2, 2, 20], [0, 2, 10]]))[0, 2] == pytest.approx(
        np.average([20, 10], weights=[1 / np.sqrt(2 * 1.5), 1 / np.sqrt(1 * 3)])
    )
    assert far == near and fill_missing(scaled)[0, 2] == pytest.approx(
        np.average([10, 20], weights=[1 / np.sqrt(12), 1 / far])
    )


def changed(**values: Any) -> np.ndarray:
    points = keypoints()
    points[values["at"]] = values["to"]
    return points


@pytest.mark.parametrize(
    ("bad", "kind", "words"),
    [
        (np.zeros((12, 17, 2)), errors.SilhouetteShapeError, "append the scores"),
        (np.zeros((12, 18, 3)), errors.SilhouetteShapeError, "COCO's 17"),
        (np.zeros((17, 3)), errors.SilhouetteShapeError, "stack the frames"),
        (np.zeros((12, 51)), errors.SilhouetteShapeError, "reshape"),
        (np.zeros((2, 12, 17, 3)), errors.SilhouetteShapeError, "several sequences"),
        (np.zeros((0, 17, 3)), errors.NoFramesError, "no frame"),
        (np.ones((2001, 17, 3)), errors.TooManyFramesError, "at most 2000"),
        (None, errors.SilhouetteValueError, "not numbers"),
        ("poses.json", errors.SilhouetteValueError, "not numbers"),
        ([[1, 2], [3]], errors.SilhouetteValueError, "not"),
        (keypoints().astype(complex), errors.SilhouetteValueError, "not numbers"),
        (changed(at=(3, 5, 0), to=np.nan), errors.SilhouetteValueError, "NaN or infinite values; got frame 3 of 12"),
        (changed(at=(7, 5, 2), to=np.inf), errors.SilhouetteValueError, "frame 7 of 12"),
        (changed(at=slice(2, 4), to=0), errors.SilhouetteValueError, "all joints are missing .* frame 2, 3 of 12"),
        (changed(at=(4, slice(None), slice(2)), to=50), errors.SilhouetteValueError, "without height; got frame 4 of"),
        (changed(at=(5, slice(None), 2), to=0), errors.SilhouetteValueError, "no limb can be drawn; got frame 5 of"),
        (changed(at=(5, 3, 2), to=1.5), errors.SilhouetteValueError, "scores out of range"),
        (changed(at=(5, 3, 2), to=-0.1), errors.SilhouetteValueError, "scores out of range"),
        (keypoints() / (640, 640, 1), errors.SilhouetteValueError, "no pixels.*multiply x"),
        (keypoints() * (1e8, 1e8, 1), errors.SilhouetteValueError, "no pixels"),
    ],
)
def test_bad_keypoints(bad: Any, kind: type[errors.GaitError], words: str) -> None:
    with pytest.raises(kind, match=words) as refusal:
        skeleton_maps(bad)
    assert refusal.value.where == "keypoints" and refusal.value.expected


def test_many_bad_frames_are_counted() -> None:
    points = keypoints(40)
    points[10:35, 3, 1] = np.nan
    with pytest.raises(errors.SilhouetteValueError, match=r"10, 11, .* 19 and 15 more of 40"):
        skeleton_maps(points)


@pytest.mark.parametrize("options", [{"size": 8}, {"size": 64.0}, {"size": True}, {"sigma": 0}, {"sigma": "8"}])
def test_bad_options(options: dict[str, Any]) -> None:
    with pytest.raises(errors.OptionError, match="impossible value"):
        skeleton_maps(keypoints(), **options)


def test_one_frame_and_joints_outside_the_canvas() -> None:
    assert skeleton_maps(keypoints(1)).shape == (1, 2, 64, 64)
    points = keypoints(3)
    points[:, 9, 0], points[:, 10, 0] = 1e5, -1e5
    assert skeleton_maps(points).any(axis=(2, 3)).all()


def test_stacking_joins_by_name() -> None:
    maps = skeleton_maps(keypoints())
    stacked = stack_maps(silhouettes=WALK, joints=maps[:, 1], limbs=maps[:, 0])
    assert stacked.shape == (12, 3, 64, 64) and stacked.dtype == np.uint8 and stacked.flags["C_CONTIGUOUS"]
    for channel, expected in enumerate((maps[:, 0], maps[:, 1], WALK)):
        np.testing.assert_array_equal(stacked[:, channel], expected)
    with pytest.raises(TypeError):
        stack_maps(maps[:, 0], maps[:, 1], WALK)  # type: ignore[misc]
    assert stack_maps(limbs=maps[:1, 0], joints=maps[:1, 1], silhouettes=WALK[:1]).shape == (1, 3, 64, 64)


def test_stacking_refuses_what_does_not_belong_together() -> None:
    maps = skeleton_maps(keypoints())
    good = {"limbs": maps[:, 0], "joints": maps[:, 1], "silhouettes": WALK}
    shape, value = errors.SilhouetteShapeError, errors.SilhouetteValueError
    for change, kind, words in [
        ({"limbs": maps[:5, 0]}, shape, "number of frames"),
        ({"silhouettes": WALK[:0]}, shape, "number of frames"),
        ({"silhouettes": np.pad(WALK, ((0, 0), (32, 32), (32, 32)))}, shape, "differ in size.*size=128"),
        ({"silhouettes": WALK[..., 10:-10]}, shape, "square"),
        ({"limbs": maps}, shape, r"\[:, 0\]"),
        ({"joints": maps[:, 1] / 255}, value, "wrong dtype"),
        ({"silhouettes": WALK > 127}, value, "wrong dtype"),
        ({"silhouettes": (WALK > 127).astype(np.uint8)}, value, "multiply by 255"),
        ({"silhouettes": 255 - WALK}, errors.PolarityError, "swapped"),
        ({"silhouettes": np.pad(WALK, ((0, 0), (4, 4), (4, 4)))[:, ::-1][:, 5:69, 4:68]}, value, "not normalised"),
        ({"silhouettes": maps[:, 0], "limbs": WALK}, value, "exchanged"),
        ({"silhouettes": np.repeat(WALK[:1], 12, axis=0)}, errors.StaticSequenceError, "picture"),
        ({"silhouettes": np.zeros_like(WALK)}, errors.NoFramesError, "nobody|anybody"),
        ({name: good[name][:0] for name in good}, errors.NoFramesError, "no frame"),
        ({"joints": "joints.npy"}, value, "not an array"),
    ]:
        with pytest.raises(kind, match=words):
            stack_maps(**{**good, **change})


def test_input_from_raw_masks() -> None:
    points = keypoints(14)
    masks = synthetic.masks(3, frames=14)
    masks[5] = 0
    points[5] = 0  # nobody was there
    found = skeleton_input(points, masks)
    kept = np.arange(14) != 5
    assert found.silhouettes.shape == (13, 3, 64, 64) and found.report.dropped == 1
    np.testing.assert_array_equal(found.silhouettes[:, :2], skeleton_maps(points[kept]))
    np.testing.assert_array_equal(found.silhouettes[:, 2], prepare(masks).silhouettes)
    with pytest.raises(errors.SilhouetteShapeError, match="13 frames of keypoints, 14 of silhouettes"):
        skeleton_input(points[:13], masks)
    points[7] = 0
    with pytest.raises(errors.SilhouetteValueError, match="all joints are missing"):
        skeleton_input(points, masks)
