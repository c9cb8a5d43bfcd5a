"""From masks to normalised silhouettes: the person cut out, scaled to S rows and centred in `[S, S]`.

    raw = gaitsdk.silhouettes.normalise(masks)      # masks of any size, from a segmenter
    raw.silhouettes, raw.report.summary()           # uint8 [T', 64, 64], "28 of 30 frames kept (...)"

The method is the one by which the field's data sets were prepared, so that models trained on those fit: cut between the
first and last non-empty row, resize to S rows with bicubic interpolation, and take the S columns around the middle of
the foreground's mass. A frame is dropped where its values sum to 10000 or less (about 40 white pixels).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import (
    NoFramesError,
    OptionError,
    PolarityError,
    SilhouetteShapeError,
    SilhouetteValueError,
    StaticSequenceError,
    TooFewFramesError,
)
from gaitsdk.frames import Frames, RawFrame, check_count, open_frames
from gaitsdk.quality import EMPTY, MIXED_RANGE, NO_CENTRE, TOO_SMALL, FrameQuality, QualityReport, noise_found
from gaitsdk.resize import scale_and_centre

Silhouettes = NDArray[np.uint8]

#: Fewer usable frames than this are not taken for a walk.
MIN_FRAMES = 5
#: More frames than this (80 s at 25 per second) are not one walk past a camera.
MAX_FRAMES = 2000
#: A frame whose 0..255 values sum to this or less is dropped.
MIN_MASS = 10000
_SCALED = "0/1 masks scaled to 0/255"


@dataclass(frozen=True)
class Normalised:
    """Normalised silhouettes with the report on how they came about.

    Attributes:
        silhouettes: uint8 0..255 `[T', S, S]`, C-contiguous, T' the frames kept.
        report: what became of every frame.
    """

    silhouettes: Silhouettes
    report: QualityReport


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
    _check_options(size, min_frames, max_frames)
    return _normalise(
        open_frames(masks, max_frames),
        size,
        min_frames,
        polarity=check_polarity,
        static=check_static,
        noise=check_noise,
    )


def prepare(sequence: Any, size: int = 64, *, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES) -> Normalised:
    """What a model of input size S needs, from raw masks or from silhouettes that are normalised already.

    Silhouettes count as normalised where all frames are `[S, S]`, or `[S, S - 2 * (S // 64) * 10]` (the cut form in
    which some data sets are kept; the cut columns are put back as zeros), and most of them touch the first and the last
    row. Their pixels are never changed; only frames without any foreground are dropped. Everything else is normalised.

    Args, returns and raises: see `normalise`.
    """
    _check_options(size, min_frames, max_frames)
    frames = open_frames(sequence, max_frames)
    if any(shape not in ((size, size), (size, cut_width(size))) for shape in frames.shapes()):
        return _normalise(frames, size, min_frames)
    stack, names, scaled = _stack(frames)
    full = (stack[:, 0] > 0).any(axis=1) & (stack[:, -1] > 0).any(axis=1)
    filled = stack.any(axis=(1, 2))
    if not filled.any() or full.sum() * 2 <= filled.sum():
        return _normalise(frames, size, min_frames)
    _refuse_inverted(_border(stack)[filled])
    report = _report_as_is(stack, names, size, scaled)
    kept = stack if filled.all() else stack[filled]
    if stack.shape[2] != size:
        side = (size - stack.shape[2]) // 2
        kept = np.pad(kept, ((0, 0), (0, 0), (side, side)))
    kept = np.ascontiguousarray(kept)
    _refuse_unusable(kept, report, min_frames, True)
    _refuse_noise(kept)
    return Normalised(kept, report)


def load_sequence(source: Any) -> Silhouettes:
    """Any source that `normalise` takes, as one array, not normalised.

    Returns:
        uint8 0..255 `[T, H, W]`; 0/1 masks come scaled to 0/255.

    Raises:
        SilhouetteError: as for `normalise`, and SilhouetteShapeError where frames differ in size.
    """
    frames = open_frames(source)
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


def check_silhouettes(
    silhouettes: Any, size: int = 64, *, min_frames: int = MIN_FRAMES, max_frames: int = MAX_FRAMES
) -> Silhouettes:
    """The strict check at a server's border: normalised silhouettes and nothing else; nothing is converted.

    Args:
        silhouettes: uint8 `[T, size, size]`.

    Returns:
        The same silhouettes, C-contiguous.

    Raises:
        SilhouetteError: as SilhouetteShapeError, SilhouetteValueError, NoFramesError (none with foreground),
            TooFewFramesError, TooManyFramesError, PolarityError, StaticSequenceError.
    """
    _check_options(size, min_frames, max_frames)
    array = np.asarray(silhouettes)
    if array.dtype != np.uint8:
        raise SilhouetteValueError("wrong dtype", where="silhouettes", got=array.dtype, expected="uint8 in 0..255")
    if array.ndim != 3 or array.shape[1:] != (size, size):
        raise SilhouetteShapeError(
            "wrong shape", where="silhouettes", got=list(array.shape), expected=f"[T, {size}, {size}]"
        )
    check_count(len(array), max_frames, array)
    if array.max() == 1:
        raise SilhouetteValueError(
            "0/1 values", where="silhouettes", got="values 0 and 1", expected="0..255", fix="multiply by 255"
        )
    filled = array.any(axis=(1, 2))
    if filled.any():
        _refuse_inverted(_border(array)[filled])
    _refuse_unusable(array[filled], None, min_frames, True)
    return np.ascontiguousarray(array)


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
) -> Normalised:
    found = [_find(frame) for frame in frames]
    if polarity:
        _refuse_inverted(np.array([each.border for each in found if each.crop is not None]))
    factor = _range_factor([each.crop.max() for each in found if each.counted and each.crop is not None])
    silhouettes, rows = [], []
    for index, each in enumerate(found):
        silhouette, quality = _one(index, each, factor, size)
        rows.append(quality)
        if silhouette is not None:
            silhouettes.append(silhouette)
    report = QualityReport(tuple(rows), size, False, (_SCALED,) if factor > 1 else ())
    stack = np.stack(silhouettes) if silhouettes else np.zeros((0, size, size), np.uint8)
    _refuse_unusable(stack, report, min_frames, static)
    if noise:
        _refuse_noise(stack)
    return Normalised(stack, report)


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
    border = float(_border(pixels[None])[0]) if (right - left) * 2 > width else 0.0
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


def _border(stack: Silhouettes) -> NDArray[np.float64]:
    """Share of the border's pixels that are foreground (brighter than half of the brightest), per frame."""
    cut = stack.max(axis=(1, 2), keepdims=True)[:, :, 0] // 2
    lines = [stack[:, 0], stack[:, -1], stack[:, 1:-1, 0], stack[:, 1:-1, -1]]
    share: NDArray[np.float64] = np.concatenate([line > cut for line in lines], axis=1).mean(axis=1)
    return share


def _refuse_inverted(border: NDArray[np.float64]) -> None:
    inverted = int((border > 0.5).sum())
    if inverted * 2 > len(border):
        raise PolarityError(
            "background and foreground are swapped",
            where="silhouettes",
            got=f"a bright border in {inverted} of {len(border)} frames",
            expected="a bright person on a dark background",
            fix="pass 255 - masks, or ~masks for bool",
        )


def _refuse_noise(kept: Silhouettes) -> None:
    found = noise_found(kept)
    if found is not None:
        raise SilhouetteValueError(
            "these masks show noise, not a person",
            where="silhouettes",
            got=found,
            expected="one connected person per frame",
            fix="look at the masks: save a few as images, and check the segmenter and its threshold",
        )


def _refuse_unusable(kept: Silhouettes, report: QualityReport | None, min_frames: int, check_static: bool) -> None:
    got = f"{len(kept)} frames with foreground" if report is None else report.summary()
    if not len(kept):
        raise NoFramesError("no frame shows anybody", where="silhouettes", got=got, expected=f"{min_frames} or more")
    if len(kept) < min_frames:
        raise TooFewFramesError(
            "too few usable frames for a walk",
            where="silhouettes",
            got=got,
            expected=f"{min_frames} or more",
            fix="pass more of the walk: about 30 frames, one gait cycle, are good",
        )
    if check_static and len(kept) > 1 and bool((kept[1:] == kept[:1]).all()):
        raise StaticSequenceError(
            "all frames are the same: a picture, not a walk",
            where="silhouettes",
            got=got,
            expected="frames of a moving person",
        )


def _check_options(size: int, min_frames: int, max_frames: int) -> None:
    for name, value, low, high in (
        ("size", size, 16, 512),
        ("min_frames", min_frames, 1, 10**6),
        ("max_frames", max_frames, min_frames if isinstance(min_frames, int) else 1, 10**6),
    ):
        whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
        if not whole or not low <= value <= high or (name == "size" and value % 2):
            even = ", even" if name == "size" else ""
            raise OptionError(
                "impossible value", where=name, got=repr(value), expected=f"an integer, {low} to {high}{even}"
            )
