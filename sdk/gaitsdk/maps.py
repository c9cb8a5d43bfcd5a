"""Sequences of several maps per frame, as SkeletonGait++ reads them: limbs, joints and silhouette, `[T, 3, S, S]`.

    maps = skeleton_maps(keypoints)
    x = stack_maps(limbs=maps[:, 0], joints=maps[:, 1], silhouettes=silhouettes)
    x = skeleton_input(keypoints, masks).silhouettes  # both in one, from raw masks

The last map of a frame is the silhouette, for every model. All of this is found in `gaitsdk.silhouettes`, too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.checks import HOW_TO_STACK, check_frames, check_normalised, check_silhouettes
from gaitsdk.errors import SilhouetteShapeError, SilhouetteValueError
from gaitsdk.frames import as_array, check_count, check_pixels, open_path
from gaitsdk.skeletons import as_keypoints, skeleton_maps

if TYPE_CHECKING:
    from gaitsdk.silhouettes import Normalised

Maps = NDArray[np.uint8]


def open_maps(source: Any, size: int, channels: int, max_frames: int | None = None) -> Maps:
    """A sequence of `channels` > 1 maps per frame as it is; nothing is converted.

    Args:
        source: uint8 `[T, C, S, S]`, a list of `[C, S, S]`, or a .npy or .pkl file that holds such an array.

    Raises:
        SilhouetteError: as SilhouetteShapeError, SilhouetteValueError, NoFramesError or TooManyFramesError.
        DatasetError: a .npy or .pkl file cannot be used.
    """
    expected = f"[T, {channels}, {size}, {size}] uint8"
    opened = open_path(source) if isinstance(source, (str, os.PathLike)) else source
    if isinstance(opened, (list, tuple)) and opened and isinstance(opened[0], (str, os.PathLike)):
        raise SilhouetteShapeError(
            "image files hold one map per frame, this model reads several",
            where="silhouettes" if opened is source else str(source),
            got=f"{len(opened)} image files",
            expected=expected,
            fix=f"{HOW_TO_STACK}, and save them with numpy.save" if channels == 3 else None,
        )
    array = as_array(opened, "silhouettes", expected)
    if not array.size:
        check_count(0, max_frames, array, expected)
    check_frames(array.shape, size, channels)
    if array.dtype != np.uint8:
        raise SilhouetteValueError(
            "wrong dtype",
            where="silhouettes",
            got=array.dtype,
            expected="uint8 in 0..255",
            fix="keep the maps as they are drawn and normalised, before any division by 255",
        )
    check_count(len(array), max_frames, array, expected)
    check_pixels(array)
    return np.ascontiguousarray(array)


def stack_maps(*, limbs: Any, joints: Any, silhouettes: Any) -> Maps:
    """Joins the three maps of every frame in the order in which SkeletonGait++ reads them.

    By name only: exchanged maps have the right shape, and would give wrong answers without any error.

    Args:
        limbs, joints: uint8 0..255 `[T, S, S]`, from `skeleton_maps`: its `[:, 0]` and `[:, 1]`.
        silhouettes: uint8 0..255 `[T, S, S]` of the same frames, normalised (`gaitsdk.silhouettes.normalise`), not cut.

    Returns:
        uint8 `[T, 3, S, S]`: limbs, joints, silhouette.

    Raises:
        SilhouetteError: as SilhouetteShapeError (another rank, frames that are not square, unequal T or S),
            SilhouetteValueError (another dtype, 0/1 values, silhouettes that are not normalised), NoFramesError,
            TooManyFramesError, PolarityError, StaticSequenceError.
    """
    named = {"limbs": limbs, "joints": joints, "silhouettes": silhouettes}
    arrays = {name: _check_map(name, value) for name, value in named.items()}
    listed = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    if len({len(array) for array in arrays.values()}) > 1:
        raise SilhouetteShapeError(
            "the maps differ in their number of frames",
            where="stack_maps",
            got=listed,
            expected="the same T for all three",
            fix="normalise leaves frames without a person out; skeleton_input does so for the joints too",
        )
    size = arrays["silhouettes"].shape[-1]
    if len({array.shape for array in arrays.values()}) > 1:
        raise SilhouetteShapeError(
            "the maps differ in size",
            where="stack_maps",
            got=listed,
            expected="the same S for all three",
            fix=f"draw the skeleton maps with size={size}, or normalise the silhouettes to the size of the maps",
        )
    stacked = check_silhouettes(np.stack(list(arrays.values()), axis=1), size, channels=3, min_frames=1)
    check_normalised(arrays["silhouettes"])
    return stacked


def skeleton_input(keypoints: Any, silhouettes: Any, size: int = 64) -> Normalised:
    """What SkeletonGait++ reads, from the keypoints and the masks of one walk.

    Args:
        keypoints: `[T, 17, 3]`, see `skeleton_maps`.
        silhouettes: T masks or normalised silhouettes of the same frames, in any form that `prepare` takes.
        size: S.

    Returns:
        uint8 `[T', 3, S, S]` and the report on the masks. Frames without a usable silhouette are left out first, and
        their keypoints with them.

    Raises:
        SilhouetteError: see `skeleton_maps` and `gaitsdk.silhouettes.prepare`; SilhouetteShapeError where the numbers
            of frames differ.
    """
    from gaitsdk.silhouettes import Normalised, prepare

    points, prepared = as_keypoints(keypoints), prepare(silhouettes, size)
    if prepared.report.total != len(points):
        raise SilhouetteShapeError(
            "keypoints and silhouettes are not of the same frames",
            where="keypoints",
            got=f"{len(points)} frames of keypoints, {prepared.report.total} of silhouettes",
            expected="as many keypoints as silhouettes",
        )
    maps = skeleton_maps(points[[frame.kept for frame in prepared.report.frames]], size=size)
    stacked = stack_maps(limbs=maps[:, 0], joints=maps[:, 1], silhouettes=prepared.silhouettes)
    return Normalised(stacked, prepared.report)


def _check_map(name: str, value: Any) -> Maps:
    array = as_array(value, name, "[T, S, S] uint8")
    if array.dtype != np.uint8:
        got = f"{array.dtype}, shape {list(array.shape)}"
        raise SilhouetteValueError("wrong dtype", where=name, got=got, expected="[T, S, S] uint8 in 0..255")
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        fix = "pass skeleton_maps(...)[:, 0] as limbs and its [:, 1] as joints" if array.ndim == 4 else None
        if name == "silhouettes" and array.ndim == 3:
            fix = "pass square ones, as normalise and prepare give them; both put cut columns back as zeros"
        raise SilhouetteShapeError("wrong shape", where=name, got=list(array.shape), expected="[T, S, S]", fix=fix)
    if array.size and array.max() == 1:
        raise SilhouetteValueError(
            "0/1 values", where=name, got="values 0 and 1", expected="0..255", fix="multiply by 255"
        )
    return array
