"""Skeleton maps: the limbs and joints of a body, drawn from the keypoints of a pose estimator.

    maps = gaitsdk.silhouettes.skeleton_maps(keypoints)  # [T, 17, 3] -> limbs and joints [T, 2, 64, 64]

A map is drawn as the published skeleton maps are, so that models trained on those fit: the body, centred between the
hips and scaled to 85 rows of a canvas of 128, drawn with a Gaussian brush; then cut to the rows that show anything and
averaged down to S rows. Limbs and joints are cut each by itself, so the two maps are not aligned pixel by pixel.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.checks import MAX_FRAMES
from gaitsdk.errors import (
    NoFramesError,
    OptionError,
    SilhouetteShapeError,
    SilhouetteValueError,
    TooManyFramesError,
)

#: The joints of COCO, in the order of its keypoints.
JOINTS = (
    "nose", "left eye", "right eye", "left ear", "right ear", "left shoulder", "right shoulder", "left elbow",
    "right elbow", "left wrist", "right wrist", "left hip", "right hip", "left knee", "right knee", "left ankle",
    "right ankle",
)  # fmt: skip
_HIPS = [11, 12]
#: What is drawn as limbs: the face, the trunk and its four limbs, as pairs of joints.
LIMBS = (
    (0, 1), (0, 2), (1, 3), (2, 4), (0, 5), (0, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12), (11, 12),
    (11, 13), (13, 15), (12, 14), (14, 16),
)  # fmt: skip
_CANVAS = 128
_BODY = 85.0  # rows of the canvas from the highest to the lowest joint
_NEIGHBOURS = 4  # frames from which a missing coordinate is filled
_FAINTEST = 1e-3  # scores below are not drawn
#: Grey levels of the drawing; cutting to whole numbers loses one at some of them, and the models have learnt it so.
_GREY = (np.linspace(0.0, 1.0, 256) * 255).astype(np.uint8)
_LARGEST = 1e6  # pixels
_EXPECTED = "[T, 17, 3]: x and y in pixels and a score in 0..1, joints in COCO's order"
_DROP = "leave these frames out, of the silhouettes too"

Points = NDArray[np.float64]
Maps = NDArray[np.uint8]


def skeleton_maps(keypoints: Any, *, size: int = 64, sigma: float = 8.0) -> Maps:
    """Draws the limbs and the joints of every frame.

    A coordinate of exactly 0 counts as missing, as pose estimators write it: it is filled from the four frames most
    like this one (`fill_missing`), but a joint is drawn as strongly as its score says, so a missing one, whose score is
    0, is not. A joint that no frame has is left out altogether.

    Args:
        keypoints: `[T, 17, 3]` numbers, one walk of one person: x (to the right) and y (down) in pixels, and the
            score in 0..1, joints in COCO's order (see `JOINTS`).
        size: S, rows and columns of the maps, 16 to 512.
        sigma: width of the brush in pixels of the canvas of 128 (on which a body has 85 rows), 0.5 to 32.

    Returns:
        uint8 0..255 `[T, 2, S, S]`: limbs, joints.

    Raises:
        SilhouetteShapeError: another shape. SilhouetteValueError: no numbers, NaN or infinite, scores outside 0..1,
            coordinates that are no pixels (all within 2), or frames, named, where nobody can be drawn: all zero,
            without height, or without a limb or joint of a score. NoFramesError, TooManyFramesError: T is 0 or above
            2000. OptionError: an impossible `size` or `sigma`.
    """
    _check_options(size, sigma)
    points = _check_values(as_keypoints(keypoints))
    bodies, scores = _placed(points), points[..., 2].copy()
    scores[:, ~_seen(points)] = 0.0
    maps = np.zeros((len(points), 2, size, size), np.uint8)
    for index, (joints, strength) in enumerate(zip(bodies, scores, strict=True)):
        limbs = [(joints[a], joints[b], min(strength[a], strength[b])) for a, b in LIMBS]
        dots = [(joint, joint, score) for joint, score in zip(joints, strength, strict=True)]
        for channel, strokes in enumerate((limbs, dots)):
            maps[index, channel] = _aligned(_drawn(strokes, sigma), size)
    for channel, what in enumerate(("limb", "joint")):
        _refuse_frames(
            ~maps[:, channel].any(axis=(1, 2)), f"no {what} can be drawn", "a body around its hips, scores above 0.001"
        )
    return maps


def fill_missing(points: Points) -> Points:
    """Fills the zeros of `[T, n]` column by column with the distance-weighted mean of the four nearest rows that have
    a value there (Troyanskaya et al. 2001, KNNimpute).

    The distance of two rows is Euclidean over the columns that both have, scaled up by n / (their number). Where no
    row has a column in common the column's mean stands in; a column without any value stays zero.
    """
    known = points != 0
    fillable = ~known & known.any(axis=0)
    filled = points.copy()
    for row in np.flatnonzero(fillable.any(axis=1)):
        both = known & known[row]
        shared = both.sum(axis=1)
        squares = (np.where(both, points - points[row], 0.0) ** 2).sum(axis=1)
        distances = np.where(shared > 0, np.sqrt(squares * points.shape[1] / np.maximum(shared, 1)), np.inf)
        for column in np.flatnonzero(fillable[row]):
            donors = known[:, column]
            filled[row, column] = _weighted_mean(points[donors, column], distances[donors])
    return filled


def _weighted_mean(values: Points, distances: Points) -> float:
    nearest = np.argsort(distances, kind="stable")[:_NEIGHBOURS]
    near = distances[nearest]
    if np.isinf(near[0]):
        return float(values.mean())
    weights = (near == 0).astype(np.float64) if near[0] == 0 else 1 / near
    return float(np.average(values[nearest], weights=weights))


def _seen(points: Points) -> NDArray[np.bool_]:
    """Which of the 17 joints have both coordinates in at least one frame each."""
    seen: NDArray[np.bool_] = (points[..., :2] != 0).any(axis=0).all(axis=1)
    return seen


def _placed(points: Points) -> Points:
    """The joints `[T, 17, 2]` on the canvas: mid-hip in its middle, every body as high as the others."""
    seen = _seen(points)
    unseen_hips = [JOINTS[joint] for joint in _HIPS if not seen[joint]]
    if unseen_hips:
        raise SilhouetteValueError(
            "no frame has a hip, and the body cannot be centred",
            where="keypoints",
            got=f"no coordinates of the {' and the '.join(unseen_hips)}",
            expected=_EXPECTED,
        )
    places = fill_missing(points[..., :2].reshape(len(points), -1)).reshape(len(points), -1, 2)
    heights = np.ptp(places[:, seen, 1], axis=1)
    _refuse_frames(heights < 1, "a body without height", "a highest and a lowest joint at least a pixel apart")
    centred = places - places[:, _HIPS].mean(axis=1, keepdims=True)
    placed: Points = centred * (_BODY / heights)[:, None, None] + _CANVAS / 2
    return placed


def _drawn(strokes: Sequence[tuple[Points, Points, float]], sigma: float) -> NDArray[np.float64]:
    """The canvas with strokes from point to point, each fading with the distance from it; where they cross, the
    stronger counts. Beyond 3 sigma around its ends a stroke draws nothing."""
    canvas = np.zeros((_CANVAS, _CANVAS))
    for start, end, strength in strokes:
        if strength < _FAINTEST:
            continue
        low = np.maximum((np.minimum(start, end) - 3 * sigma).astype(int), 0)
        high = np.clip((np.maximum(start, end) + 3 * sigma).astype(int) + 1, 0, _CANVAS)
        across = np.arange(low[0], high[0]) - start[0]
        down = (np.arange(low[1], high[1]) - start[1])[:, None]
        way_x, way_y = end - start
        length = way_x * way_x + way_y * way_y
        if length < 1:  # shorter than a pixel: a point
            squares = across * across + down * down
        else:
            along = np.clip((across * way_x + down * way_y) / length, 0, 1)
            squares = (across - along * way_x) ** 2 + (down - along * way_y) ** 2
        window = canvas[low[1] : high[1], low[0] : high[0]]
        np.maximum(window, strength * np.exp(squares / (-2 * sigma * sigma)), out=window)
    return canvas


def _aligned(canvas: NDArray[np.float64], size: int) -> Maps:
    """The rows that show anything, as many columns around the canvas' middle, averaged to `[size, size]` grey levels;
    all zero where nothing is drawn."""
    grey = _GREY[np.minimum((canvas * 256).astype(int), 255)]
    rows = np.flatnonzero(grey.any(axis=1))
    if not len(rows):
        return np.zeros((size, size), np.uint8)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    height = bottom - top
    left = _CANVAS // 2 - height // 2
    square = grey[top:bottom, left : left + height] / 255
    if height % size == 0:  # whole pixels are averaged: summed in the order in which image libraries do it
        step = height // size
        blocks = square.reshape(size, step, size, step)
        shrunk = sum(blocks[:, row, :, column] for row in range(step) for column in range(step)) / step**2
    else:
        weights = _overlaps(height, size)
        shrunk = weights @ square @ weights.T
    grey_levels: Maps = (shrunk * 255).astype(np.uint8)
    return grey_levels


@functools.lru_cache(maxsize=256)
def _overlaps(old: int, new: int) -> NDArray[np.float64]:
    """`[new, old]`: which share of each new pixel comes from each old one, where `old` pixels become `new` ones."""
    edges = np.arange(new + 1)[:, None] * (old / new)
    pixels = np.arange(old)
    shares: NDArray[np.float64] = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    return shares.clip(0) * (new / old)


def as_keypoints(keypoints: Any) -> NDArray[Any]:
    """As an array of numbers `[T, 17, 3]`, 1 <= T <= 2000; errors as for `skeleton_maps`."""
    try:
        array = np.asarray(keypoints)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or that need gradients
        got = f"{type(keypoints).__name__} ({error})"
        raise SilhouetteValueError("not an array", where="keypoints", got=got, expected=_EXPECTED) from error
    if array.dtype.kind not in "iuf":
        got = f"{array.dtype}, shape {list(array.shape)}"
        raise SilhouetteValueError("not numbers", where="keypoints", got=got, expected=_EXPECTED)
    if array.ndim != 3 or array.shape[1:] != (17, 3):
        raise SilhouetteShapeError(
            "wrong shape", where="keypoints", got=list(array.shape), expected=_EXPECTED, fix=_shape_fix(array.shape)
        )
    if not len(array):
        raise NoFramesError("there is no frame", where="keypoints", got=list(array.shape), expected=_EXPECTED)
    if len(array) > MAX_FRAMES:
        raise TooManyFramesError(
            "too many frames for one walk",
            where="keypoints",
            got=f"{len(array)} frames",
            expected=f"at most {MAX_FRAMES}",
            fix="cut the recording into walks of one person",
        )
    return array


def _check_values(array: NDArray[Any]) -> Points:
    """As float64, once every value is plausible."""
    points = array.astype(np.float64)
    _refuse_frames(~np.isfinite(points).all(axis=(1, 2)), "NaN or infinite values", "0, 0, 0 for a missing joint")
    _refuse_frames(~points[..., :2].any(axis=(1, 2)), "all joints are missing (0)", "a body in every frame")
    scores, extent = points[..., 2], float(np.abs(points[..., :2]).max())
    if scores.min() < 0 or scores.max() > 1:
        raise SilhouetteValueError(
            "scores out of range",
            where="keypoints",
            got=f"{scores.min():g} to {scores.max():g}",
            expected="0..1",
            fix="divide by the largest possible score; where that is slightly exceeded: numpy.clip(scores, 0, 1)",
        )
    if not 2 < extent <= _LARGEST:
        raise SilhouetteValueError(
            "these coordinates are no pixels",
            where="keypoints",
            got=f"none is beyond {extent:g}" if extent <= 2 else f"up to {extent:g}",
            expected="x and y in pixels",
            fix="multiply x by the image's width and y by its height" if extent <= 2 else None,
        )
    return points


def _shape_fix(shape: tuple[int, ...]) -> str | None:
    if shape == (17, 3):
        return "one frame is not a walk: stack the frames of a walk"
    if shape[1:] == (17, 2):
        return "append the scores; where the estimator gives none, 1: numpy.insert(keypoints, 2, 1, axis=2)"
    if shape[1:] == (51,):
        return "keypoints.reshape(-1, 17, 3)"
    if len(shape) == 3 and shape[1] != 17:
        return f"choose COCO's 17 joints out of these {shape[1]}, in its order"
    if len(shape) == 4:
        return "several sequences: draw each by itself"
    return None


def _refuse_frames(bad: NDArray[np.bool_], what: str, expected: str) -> None:
    if not bad.any():
        return
    frames = np.flatnonzero(bad)
    more = f" and {len(frames) - 10} more" if len(frames) > 10 else ""
    raise SilhouetteValueError(
        what,
        where="keypoints",
        got=f"frame {', '.join(map(str, frames[:10]))}{more} of {len(bad)}",
        expected=expected,
        fix=_DROP,
    )


def _check_options(size: int, sigma: float) -> None:
    for name, value, low, high, kind in (("size", size, 16, 512, "an integer"), ("sigma", sigma, 0.5, 32, "a number")):
        whole = isinstance(value, (int, np.integer))
        usable = whole or (name == "sigma" and isinstance(value, (float, np.floating)))
        if not usable or isinstance(value, bool) or not low <= value <= high:
            raise OptionError("impossible value", where=name, got=repr(value), expected=f"{kind}, {low} to {high}")
