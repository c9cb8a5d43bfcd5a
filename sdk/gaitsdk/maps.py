"""Sequences of several maps per frame, as SkeletonGait++ reads them: limbs, joints and silhouette, `[T, 3, S, S]`.

    maps = skeleton_maps(keypoints)
    x = stack_maps(limbs=maps[:, 0], joints=maps[:, 1], silhouettes=silhouettes)
    x = skeleton_input(keypoints, masks).silhouettes  # both in one, from raw masks
    x = read_maps(folder).silhouettes  # of 0_heatmap.pkl and 1_sil.pkl, for example

The last map of a frame is the silhouette, for every model. What makes maps of arrays is found in
`gaitsdk.silhouettes`, too; its `prepare` takes a folder of their files.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.archives import read_archive, read_arrays
from gaitsdk.checks import (
    HOW_TO_STACK,
    MAX_FRAMES,
    MIN_FRAMES,
    check_frames,
    check_normalised,
    check_silhouettes,
)
from gaitsdk.errors import DatasetError, SilhouetteError, SilhouetteShapeError, SilhouetteValueError
from gaitsdk.frames import as_array, check_count, check_pixels, image_names, open_path, read_array_file
from gaitsdk.skeletons import as_keypoints, skeleton_maps

if TYPE_CHECKING:
    from gaitsdk.silhouettes import Normalised

Maps = NDArray[np.uint8]

#: Which map a file, or an array of a .npz archive, holds: the first of these that its name contains says it.
_PARTS = (
    ("keypoint", "keypoints"),
    ("heatmap", "heatmap"),
    ("limb", "limbs"),
    ("joint", "joints"),
    ("sil", "silhouettes"),
    ("pose", "keypoints"),
)
#: What the skeleton of a walk may come from. Maps that are drawn win over keypoints, which they were drawn from.
_SKELETONS = (("heatmap",), ("limbs", "joints"), ("keypoints",))
#: Files of arrays.
ARRAYS = (".npy", ".npz", ".pkl")
_FILES = "silhouettes ('sil' in the name) and a skeleton: 'heatmap', or 'limb' and 'joint', or 'keypoint'"


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
    return join_maps({"keypoints": as_keypoints(keypoints), "silhouettes": silhouettes}, size)


def join_maps(
    named: Mapping[str, Any], size: int = 64, *, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES
) -> Normalised:
    """Limbs, joints and silhouette of every frame, from whatever of a walk there is; by name, as in `stack_maps`.

    Args:
        named: "silhouettes", in any form that `gaitsdk.silhouettes.prepare` takes, and of the same frames either
            "heatmap" (uint8 `[T, 2, S, S]`: limbs, joints), or "limbs" and "joints" (uint8 `[T, S, S]` each), or
            "keypoints" (`[T, 17, 3]`). Drawn maps may have lost the columns that `prepare` puts back, too.
        size: S.
        min_frames, max_frames: as for `prepare`.

    Returns:
        uint8 `[T', 3, S, S]` and the report on the silhouettes. Frames without a usable silhouette are left out, and
        the skeletons of these frames with them.

    Raises:
        SilhouetteError: see `prepare`, `skeleton_maps` and `stack_maps`; SilhouetteShapeError where the numbers of
            frames differ. DatasetError: a map is missing.
    """
    from gaitsdk.silhouettes import Normalised, prepare

    parts = next((each for each in _SKELETONS if set(each) <= named.keys()), None)
    if parts is None or "silhouettes" not in named:
        raise DatasetError("a map is missing", got=", ".join(sorted(named)) or "none", expected=_FILES)
    skeleton = {name: as_array(named[name], name, "uint8, or [T, 17, 3] keypoints") for name in parts}
    prepared = prepare(named["silhouettes"], size, min_frames=min_frames, max_frames=max_frames)
    for name, array in skeleton.items():
        if array.shape[:1] != (prepared.report.total,):
            raise SilhouetteShapeError(
                f"{name} and silhouettes are not of the same frames",
                where=name,
                got=f"{len(array) if array.ndim else 0} frames of {name}, {prepared.report.total} of silhouettes",
                expected=f"as many {name} as silhouettes",
            )
    kept = np.array([frame.kept for frame in prepared.report.frames], bool)
    limbs, joints = _drawn({name: array[kept] for name, array in skeleton.items()}, size)
    return Normalised(stack_maps(limbs=limbs, joints=joints, silhouettes=prepared.silhouettes), prepared.report)


def read_maps(
    folder: str | os.PathLike[str], size: int = 64, *, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES
) -> Normalised:
    """The maps of a walk from the files in its folder, joined by what the files are called, never by their order.

    Args:
        folder: .npy, .pkl or .npz files. One: `[T, 3, S, S]`, or a .npz archive of several arrays. Several (or several
            arrays): each name says what it holds (see `join_maps`) by containing "sil", "heatmap", "limb", "joint" or
            "keypoint" ("pose"); of several silhouettes the one with "aligned" counts. Other names are ignored. The
            silhouettes may be image files, too.
        size, min_frames, max_frames: as for `join_maps`.

    Raises:
        DatasetError: a map is missing, what holds it is not clear, or a file is damaged; SilhouetteError: as for
            `join_maps`. All of them name the folder or the file.
    """
    from gaitsdk.silhouettes import prepare

    path = Path(folder)
    options: dict[str, Any] = {"min_frames": min_frames, "max_frames": max_frames}
    with located(path):
        sources, images = _sources(path), bool(image_names(os.listdir(path)))
        if len(sources) == 1 and not images:
            name, array = next((name, _opened(source)) for name, source in sources.items())
            if array.ndim == 4:
                return prepare(array, size, channels=3, **options)
            got, expected = f"{name} alone, {list(array.shape)}", f"[T, 3, S, S], or files of {_FILES}"
            raise DatasetError("three maps per frame are read, and some are missing", got=got, expected=expected)
        named = {role: _opened(sources[name]) for role, name in name_maps(sources).items()}
        if images:
            named.setdefault("silhouettes", path)
        return join_maps(named, size, **options)


def name_maps(names: Iterable[str]) -> dict[str, str]:
    """Which of these files or arrays holds which map, as far as their names tell: {"silhouettes": "1_sil.pkl", ...}.

    Raises:
        DatasetError: several of one map, and not one of them alone is called aligned.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        role = map_of(name)
        if role is not None:
            found.setdefault(role, []).append(name)
    for role, candidates in found.items():
        aligned = [name for name in candidates if "aligned" in name.lower()]
        if len(candidates) > 1 and len(aligned) != 1:
            raise DatasetError(
                f"which file holds the {role} is not clear",
                got=", ".join(candidates),
                expected=_FILES,
                fix="rename the others, or move them away",
            )
        found[role] = aligned if len(candidates) > 1 else candidates
    return {role: name for role, (name,) in found.items()}


def map_of(name: str) -> str | None:
    """What a file or array of this name holds: "silhouettes", "heatmap", "limbs", "joints", "keypoints", or None."""
    return next((role for part, role in _PARTS if part in name.lower()), None)


def folder_of_maps(source: Any) -> Path | None:
    """The folder where this is the path of one that holds .npy, .pkl or .npz files, which `read_maps` reads."""
    if not isinstance(source, (str, os.PathLike)) or Path(source) == Path():  # an unset variable
        return None
    path = Path(source)
    return path if path.is_dir() and _array_files(path) else None


@contextlib.contextmanager
def located(path: Path) -> Iterator[None]:
    """Errors about a sequence name its file or folder, too; those that are about the file itself are DatasetErrors."""
    try:
        yield
    except (SilhouetteError, DatasetError) as error:
        # The subclasses of SilhouetteError are about what the frames show.
        kind = DatasetError if type(error) is SilhouetteError else type(error)
        known = error.where is not None and error.where.startswith(str(path))
        where = error.where if known else str(path) if error.where is None else f"{path}: {error.where}"
        raise kind(error.what, where=where, got=error.got, expected=error.expected, fix=error.fix) from error


def _sources(folder: Path) -> dict[str, Any]:
    """The array files of a folder by name or, where there is one archive, its arrays."""
    files = {name: folder / name for name in _array_files(folder)}
    only = next(iter(files.values()), folder)
    if len(files) != 1 or only.suffix.lower() != ".npz":
        return files
    return dict(read_arrays(only, lambda names: names if len(names) == 1 else sorted(name_maps(names).values())))


def _opened(source: Any) -> Any:
    if not isinstance(source, Path):
        return source
    return read_archive(source) if source.suffix.lower() == ".npz" else read_array_file(source)


def _array_files(folder: Path) -> list[str]:
    visible = (each.name for each in folder.iterdir() if not each.name.startswith("."))
    return sorted(name for name in visible if os.path.splitext(name)[1].lower() in ARRAYS)


def _drawn(skeleton: Mapping[str, NDArray[Any]], size: int) -> tuple[Any, Any]:
    """Limbs and joints `[T, S, S]` of the frames that are kept."""
    from gaitsdk.silhouettes import cut_width

    if "keypoints" in skeleton:
        maps = skeleton_maps(skeleton["keypoints"], size=size)
        return maps[:, 0], maps[:, 1]
    if "heatmap" in skeleton and (skeleton["heatmap"].ndim != 4 or skeleton["heatmap"].shape[1] != 2):
        got = list(skeleton["heatmap"].shape)
        raise SilhouetteShapeError("wrong shape", where="heatmap", got=got, expected="[T, 2, S, S]: limbs, joints")
    limbs, joints = (
        (skeleton["heatmap"][:, 0], skeleton["heatmap"][:, 1])
        if "heatmap" in skeleton
        else (skeleton["limbs"], skeleton["joints"])
    )
    cut = cut_width(size)
    side = (size - cut) // 2
    limbs, joints = (
        np.pad(each, ((0, 0), (0, 0), (side, side))) if each.shape[1:] == (size, cut) else each
        for each in (limbs, joints)
    )
    return limbs, joints


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
