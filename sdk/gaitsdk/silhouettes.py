"""From masks to normalised silhouettes: the person cut out, scaled to S rows and centred in `[S, S]`.

    raw = gaitsdk.silhouettes.normalise(masks)      # masks of any size, from a segmenter
    raw.silhouettes, raw.report.summary()           # uint8 [T', 64, 64], "28 of 30 frames kept (...)"

The method is the one by which the field's data sets were prepared, so that models trained on those fit: cut between the
first and last non-empty row, resize to S rows with bicubic interpolation, and take the S columns around the middle of
the foreground's mass. A frame is dropped where its values sum to 10000 or less (about 40 white pixels).

For models that read skeleton maps beside the silhouette see `skeleton_maps`, `stack_maps` and `skeleton_input`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaitsdk.checks import (
    MAX_FRAMES,
    MIN_FRAMES,
    bright_border,
    check_normalised,
    check_options,
    check_silhouettes,
    fill_their_rows,
    people_of,
    refuse_inverted,
    refuse_noise,
    refuse_unusable,
)
from gaitsdk.errors import SilhouetteError, SilhouetteShapeError, SilhouetteValueError
from gaitsdk.frames import Frames, RawFrame, holds_maps, open_frames, open_path
from gaitsdk.maps import folder_of_maps, open_maps, read_maps, skeleton_input, stack_maps
from gaitsdk.quality import EMPTY, MIXED_RANGE, NO_CENTRE, TOO_SMALL, FrameQuality, QualityReport
from gaitsdk.resize import scale_and_centre
from gaitsdk.skeletons import skeleton_maps

__all__ = [
    "MAX_FRAMES",
    "MIN_FRAMES",
    "MIN_MASS",
    "Normalised",
    "Silhouettes",
    "Unchecked",
    "check_silhouettes",
    "cut_and_scale",
    "cut_width",
    "load_sequence",
    "normalise",
    "prepare",
    "prepare_unchecked",
    "skeleton_input",
    "skeleton_maps",
    "stack_maps",
]

Silhouettes = NDArray[np.uint8]

#: A frame whose 0..255 values sum to this or less is dropped.
MIN_MASS = 10000
_SCALED = "0/1 masks scaled to 0/255"


@dataclass(frozen=True)
class Normalised:
    """Normalised silhouettes with the report on how they came about.

    Attributes:
        silhouettes: uint8 0..255 `[T', S, S]`, C-contiguous, T' the frames kept; `[T', C, S, S]` for a model of C maps.
        report: what became of every frame.
    """

    silhouettes: Silhouettes
    report: QualityReport


class Unchecked(NamedTuple):
    """Silhouettes in the form that a model reads, before anybody has looked whether they show a walk.

    Attributes:
        silhouettes: as in `Normalised`; at least the frames that a walk needs.
        check: gives the report, or raises the SilhouetteError by which `prepare` refuses them.
    """

    silhouettes: Silhouettes
    check: Callable[[], QualityReport]

    def checked(self) -> Normalised:
        """The same with the report; SilhouetteError where they are refused."""
        return Normalised(self.silhouettes, self.check())


class _Found(NamedTuple):
    """What is in a frame: the part that is not zero, and where it was."""

    name: str | None
    counted: bool
    height: int
    width: int
    border: float  # share of the border's pixels that are foreground
    crop: NDArray[np.uint8] | None
    box: tuple[int, int, int, int] | None


def normalise(
    masks: Any,
    size: int = 64,
    *,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
    check_polarity: bool = True,
    check_static: bool = True,
    check_noise: bool = True,
) -> Normalised:
    """Cuts out, scales and centres the person of every frame; frames without a usable person are dropped and reported.

    Args:
        masks: one walk of one person, foreground bright: an array `[T, H, W]`, a list of `[H, W]` arrays of any sizes
            or of image files, a folder of image files (sorted naturally), or a .npy or .pkl file of an array. Values
            are bool, 0/1 or 0..255 of any integer dtype, or floats in 0..1.
        size: S, rows and columns of the result; even, 16 to 512.
        min_frames: frames that must remain.
        max_frames: longer sequences are refused before any work.
        check_polarity: refuse masks with a bright background.
        check_static: refuse sequences whose silhouettes are all the same.
        check_noise: refuse masks whose foreground is scattered (see `gaitsdk.quality.noise_found`).

    Returns:
        uint8 `[T', size, size]` and the report. A walk gives the same silhouettes wherever the person stands in the
        frame, and whichever of the forms above it comes in.

    Raises:
        SilhouetteError: as NoFramesError, TooFewFramesError, TooManyFramesError, PolarityError, StaticSequenceError,
            SilhouetteShapeError or SilhouetteValueError. DatasetError: a .npy or .pkl file cannot be used.
    """
    check_options(size, min_frames, max_frames)
    unchecked = _normalise(
        open_frames(masks, max_frames),
        size,
        min_frames,
        polarity=check_polarity,
        static=check_static,
        noise=check_noise,
    )
    return unchecked.checked()


def prepare(
    sequence: Any, size: int = 64, *, channels: int = 1, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES
) -> Normalised:
    """What a model of input size S needs, from raw masks or from silhouettes that are normalised already.

    Silhouettes count as normalised where all frames are `[S, S]`, or `[S, S - 2 * (S // 64) * 10]` (the cut form in
    which some data sets are kept; the cut columns are put back as zeros), and most of them touch the first and the last
    row. Their pixels are never changed; only frames without any foreground are dropped. Everything else is normalised.

    Where the model reads C > 1 maps per frame, the sequence must be stacked and normalised already (`skeleton_input`,
    `stack_maps`): `[T, C, S, S]` uint8, the silhouette last, as an array, a list of frames, or a .npy or .pkl file. A
    folder with a file for each map is joined (`gaitsdk.maps.read_maps`).

    Args:
        channels: C of the model.

    Other arguments, returns and raises: see `normalise`. Where the source is a file or folder, errors name it.
    """
    return prepare_unchecked(sequence, size, channels=channels, min_frames=min_frames, max_frames=max_frames).checked()


def prepare_unchecked(
    sequence: Any, size: int = 64, *, channels: int = 1, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES
) -> Unchecked:
    """The first part of `prepare`, which takes a quarter of the time where silhouettes are normalised already: a client
    sends them while it looks at every pixel of them.

    Arguments: see `prepare`.

    Raises:
        SilhouetteError, DatasetError: they cannot be sent at all; whatever else `prepare` raises, `check` does.
    """
    check_options(size, min_frames, max_frames)
    with _named(sequence):
        found = _prepare(sequence, size, channels, min_frames, max_frames)

    def check() -> QualityReport:
        with _named(sequence):
            return found.check()

    if len(found.silhouettes) < min_frames:
        check()  # which says so
    return Unchecked(found.silhouettes, check)


@contextmanager
def _named(source: Any) -> Iterator[None]:
    """Errors name the file or folder that the silhouettes are from."""
    try:
        yield
    except SilhouetteError as error:
        if isinstance(source, (str, os.PathLike)) and os.fspath(source) not in str(error):
            error.amend(where=f"{os.fspath(source)}: {error.where}" if error.where else os.fspath(source))
        raise


def _prepare(sequence: Any, size: int, channels: int, min_frames: int, max_frames: int) -> Unchecked:
    if channels > 1:
        folder = folder_of_maps(sequence) if channels == 3 else None
        if folder is not None:
            read = read_maps(folder, size, min_frames=min_frames, max_frames=max_frames)
            return Unchecked(read.silhouettes, lambda: read.report)
        maps = open_maps(sequence, size, channels, max_frames)
        if maps[:, -1].any():
            check_normalised(maps[:, -1])
        return _as_they_are(maps, [None] * len(maps), size, False, min_frames)
    frames = open_frames(sequence, max_frames)
    if any(shape not in ((size, size), (size, cut_width(size))) for shape in frames.shapes()):
        return _normalise(frames, size, min_frames)
    stack, names, scaled = _stack(frames)
    if not fill_their_rows(stack):
        return _normalise(frames, size, min_frames)
    return _as_they_are(stack, names, size, scaled, min_frames)


def load_sequence(source: Any) -> Silhouettes:
    """Any source that `normalise` takes, as one array, not normalised; or a sequence of maps, as it is.

    Returns:
        uint8 0..255 `[T, H, W]`; 0/1 masks come scaled to 0/255. `[T, 3, S, S]` where the source is such an array or a
        .npy or .pkl file of one.

    Raises:
        SilhouetteError: as for `normalise`, and SilhouetteShapeError where frames differ in size.
    """
    opened = open_path(source) if isinstance(source, (str, os.PathLike)) else source
    shape: tuple[int, ...] = tuple(getattr(opened, "shape", ()))
    if holds_maps(shape):
        return open_maps(opened, shape[-1], shape[1])
    frames = open_frames(opened)
    shapes = sorted(set(frames.shapes()))
    if len(shapes) > 1:
        raise SilhouetteShapeError(
            "the frames differ in size",
            where="silhouettes",
            got=", ".join(map(str, shapes[:5])),
            expected="one size",
            fix="use gaitsdk.silhouettes.normalise, which takes frames of any sizes",
        )
    return _stack(frames)[0]


def cut_width(size: int) -> int:
    """Columns that remain of `size` after cutting: 44 of 64, 88 of 128."""
    return size - 2 * (size // 64) * 10


def cut_and_scale(silhouettes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What a network reads: `(W // 64) * 10` columns less on either side, divided by 255.

    Args:
        silhouettes: uint8 `[..., H, W]`.

    Returns:
        float32 in 0..1, `[..., H, W - 2 * (W // 64) * 10]`: 64 -> 44, 128 -> 88; 44 stays 44.

    Raises:
        SilhouetteValueError: not uint8; SilhouetteShapeError: rank below 2.
    """
    array = np.asarray(silhouettes)
    if array.dtype != np.uint8:
        raise SilhouetteValueError("wrong dtype", where="silhouettes", got=array.dtype, expected="uint8 in 0..255")
    if array.ndim < 2:
        raise SilhouetteShapeError("wrong rank", where="silhouettes", got=list(array.shape), expected="[..., H, W]")
    width = array.shape[-1]
    side = (width // 64) * 10
    scaled: NDArray[np.float32] = array[..., side : width - side] / np.float32(255)
    return scaled


def _normalise(
    frames: Frames, size: int, min_frames: int, *, polarity: bool = True, static: bool = True, noise: bool = True
) -> Unchecked:
    found = [_find(frame) for frame in frames]
    if polarity:
        refuse_inverted(np.array([each.border for each in found if each.crop is not None]))
    factor = _range_factor([each.crop.max() for each in found if each.counted and each.crop is not None])
    silhouettes, rows = [], []
    for index, each in enumerate(found):
        silhouette, quality = _one(index, each, factor, size)
        rows.append(quality)
        if silhouette is not None:
            silhouettes.append(silhouette)
    report = QualityReport(tuple(rows), size, False, (_SCALED,) if factor > 1 else ())
    stack = np.stack(silhouettes) if silhouettes else np.zeros((0, size, size), np.uint8)

    def check() -> QualityReport:
        refuse_unusable(stack, report, min_frames, static)
        if noise:
            refuse_noise(stack)
        return report

    return Unchecked(stack, check)


def _as_they_are(stack: Silhouettes, names: list[str | None], size: int, scaled: bool, min_frames: int) -> Unchecked:
    """`[T, S, W]` or, of several maps, `[T, C, S, S]`: frames without foreground dropped, cut columns put back."""
    people = people_of(stack)
    filled = people.any(axis=(1, 2))
    kept = stack if filled.all() else stack[filled]
    if stack.shape[-1] != size:
        side = (size - stack.shape[-1]) // 2
        kept = np.pad(kept, ((0, 0), (0, 0), (side, side)))
    kept = np.ascontiguousarray(kept)

    def check() -> QualityReport:
        refuse_inverted(bright_border(people)[filled])
        report = _report_as_is(people, names, size, scaled)
        refuse_unusable(kept, report, min_frames, True)
        refuse_noise(people_of(kept))
        return report

    return Unchecked(kept, check)


def _find(frame: RawFrame) -> _Found:
    pixels = frame.pixels
    height, width = pixels.shape
    rows = np.flatnonzero(pixels.max(axis=1))
    if not len(rows):
        return _Found(frame.name, frame.counted, height, width, 0.0, None, None)
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(pixels[top:bottom].max(axis=0))
    left, right = int(columns[0]), int(columns[-1]) + 1
    crop = pixels[top:bottom, left:right].copy()  # a copy, so that the frame itself can be freed
    border = float(bright_border(pixels[None])[0]) if (right - left) * 2 > width else 0.0
    return _Found(frame.name, frame.counted, height, width, border, crop, (top, left, bottom, right))


def _one(index: int, found: _Found, factor: int, size: int) -> tuple[Silhouettes | None, FrameQuality]:
    """The silhouette `[S, S]` of a frame, or None with the reason."""
    if found.crop is None or found.box is None:
        return None, FrameQuality(index, found.name, False, EMPTY, "", 0, None)
    crop = found.crop * np.uint8(factor) if found.counted and factor > 1 else found.crop
    mass = int(crop.sum(dtype=np.int64))
    silhouette, reason, detail = None, None, ""
    if mass <= MIN_MASS:
        reason, detail = TOO_SMALL, f"{mass // 255} foreground pixels < {MIN_MASS // 255 + 1}"
        if crop.max() == 1:
            reason, detail = MIXED_RANGE, "multiply this frame by 255"
    else:
        silhouette = scale_and_centre(crop, found.box[1], found.width, size)
        if silhouette is None:
            reason = NO_CENTRE
    quality = FrameQuality(index, found.name, silhouette is not None, reason, detail, mass // 255, found.box)
    return silhouette, quality


def _stack(frames: Frames) -> tuple[Silhouettes, list[str | None], bool]:
    """Frames of one size as `[T, H, W]`, their names, and whether 0/1 was scaled."""
    read = list(frames)
    factor = _range_factor([each.pixels.max() for each in read if each.counted])
    pixels = [each.pixels * np.uint8(factor) if each.counted and factor > 1 else each.pixels for each in read]
    return np.stack(pixels), [each.name for each in read], factor > 1


def _range_factor(brightest: Sequence[np.uint8]) -> int:
    """255 where the integer masks of a sequence are of 0 and 1, else 1. Label maps are refused."""
    top = int(max(brightest, default=0))
    if 1 < top < 128:
        raise SilhouetteValueError(
            "the values are neither 0/1 nor 0..255",
            where="silhouettes",
            got=f"a largest value of {top}",
            expected="0/1, or 0..255 with foreground near 255",
            fix="for label maps pass the bool mask, for example labels == person",
        )
    return 255 if top == 1 else 1


def _report_as_is(stack: Silhouettes, names: list[str | None], size: int, scaled: bool) -> QualityReport:
    mass = stack.sum(axis=(1, 2), dtype=np.int64)
    rows, columns = stack.any(axis=2), stack.any(axis=1)
    height, width = stack.shape[1:]
    edges = np.stack(
        [rows.argmax(1), columns.argmax(1), height - rows[:, ::-1].argmax(1), width - columns[:, ::-1].argmax(1)],
        axis=1,
    )
    qualities = []
    for index, (name, area, box) in enumerate(zip(names, (mass // 255).tolist(), edges.tolist(), strict=True)):
        full = bool(mass[index])
        reason = None if full else EMPTY
        qualities.append(FrameQuality(index, name, full, reason, "", area, tuple(box) if full else None))
    notes = ("already normalised: taken as they are",)
    return QualityReport(tuple(qualities), size, True, (*notes, _SCALED) if scaled else notes)
