"""What a sequence must be before any network sees it: the strict check at a server's border, and its parts.

A frame is `[S, S]`, or `[C, S, S]` for a model that reads C > 1 maps, of which the last is the silhouette.
"""

from __future__ import annotations

from typing import Any

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
from gaitsdk.frames import check_count
from gaitsdk.quality import QualityReport, noise_found

Silhouettes = NDArray[np.uint8]

#: Fewer usable frames than this are not taken for a walk.
MIN_FRAMES = 5
#: More frames than this (80 s at 25 per second) are not one walk past a camera.
MAX_FRAMES = 2000
#: The median grey level of people is 255, that of skeleton maps about 60.
_GREYEST = 96
#: How to come by the maps of SkeletonGait++.
HOW_TO_STACK = "join the maps: gaitsdk.silhouettes.stack_maps(limbs=..., joints=..., silhouettes=...)"


def frame_shape(size: int, channels: int = 1) -> tuple[int, ...]:
    """What one frame of a model's input is: `(S, S)`, or `(C, S, S)` where C > 1 maps enter."""
    return (size, size) if channels == 1 else (channels, size, size)


def check_frames(shape: tuple[int, ...], size: int, channels: int, *, axes: str = "T") -> None:
    """Refuses an input of another shape than the model's.

    Args:
        shape: of the array.
        size, channels: S and C of the model.
        axes: what stands before a frame: "T", or "BT" for a batch of sequences.

    Raises:
        SilhouetteShapeError: it says how to come by the right shape.
    """
    frame = frame_shape(size, channels)
    if len(shape) == len(axes) + len(frame) and tuple(shape[len(axes) :]) == frame:
        return
    expected = f"[{', '.join([*axes, *map(str, frame)])}]"
    raise SilhouetteShapeError(
        "wrong shape",
        where="silhouettes",
        got=list(shape),
        expected=expected,
        fix=_fix(shape, size, channels, axes),
    )


def check_silhouettes(
    silhouettes: Any,
    size: int = 64,
    *,
    channels: int = 1,
    min_frames: int = MIN_FRAMES,
    max_frames: int = MAX_FRAMES,
) -> Silhouettes:
    """The strict check at a server's border: normalised silhouettes and nothing else; nothing is converted.

    Args:
        silhouettes: uint8 `[T, size, size]`, or `[T, C, size, size]` for a model of C > 1 maps, the silhouette last.
        channels: C.

    Returns:
        The same silhouettes, C-contiguous.

    Raises:
        SilhouetteError: as SilhouetteShapeError, SilhouetteValueError, NoFramesError (none with foreground),
            TooFewFramesError, TooManyFramesError, PolarityError, StaticSequenceError.
    """
    check_options(size, min_frames, max_frames)
    array = np.asarray(silhouettes)
    if array.dtype != np.uint8:
        raise SilhouetteValueError("wrong dtype", where="silhouettes", got=array.dtype, expected="uint8 in 0..255")
    check_frames(array.shape, size, channels)
    check_count(len(array), max_frames, array)
    people = people_of(array)
    peaks = brightest(people)
    if peaks.max() == 1:
        raise SilhouetteValueError(
            "0/1 values", where="silhouettes", got="values 0 and 1", expected="0..255", fix="multiply by 255"
        )
    filled = peaks > 0
    kept = people if filled.all() else people[filled]
    if len(kept):
        refuse_inverted(bright_border(kept))
    refuse_unusable(kept, None, min_frames, True)
    return np.ascontiguousarray(array)


def check_normalised(silhouettes: Silhouettes) -> None:
    """Refuses what stands in the place of normalised silhouettes `[T, S, S]` among other maps, and is none.

    Raises:
        SilhouetteValueError: most frames with foreground do not fill their rows, or it is as grey as a skeleton map.
    """
    expected, fix = "people who fill the rows of their frame", "gaitsdk.silhouettes.prepare them, then stack_maps"
    if not fill_their_rows(silhouettes):
        got = "frames whose first or last row is empty"
        raise SilhouetteValueError("not normalised", where="silhouettes", got=got, expected=expected, fix=fix)
    middle = float(np.median(silhouettes[silhouettes > 0]))
    if middle < _GREYEST:
        raise SilhouetteValueError(
            "no silhouettes: have maps been exchanged?",
            where="silhouettes",
            got=f"a median grey level of {middle:.0f} where not zero",
            expected="mostly 255",
            fix="stack_maps joins maps by their names",
        )


def people_of(stack: Silhouettes) -> Silhouettes:
    """The silhouettes `[T, S, S]` of frames of one map or of several, of which they are the last."""
    return stack if stack.ndim == 3 else stack[:, -1]


def fill_their_rows(stack: Silhouettes) -> bool:
    """Whether most frames with foreground touch the first and the last row."""
    full = (stack[:, 0] > 0).any(axis=1) & (stack[:, -1] > 0).any(axis=1)
    filled = stack.any(axis=(1, 2))
    return bool(full.sum() * 2 > filled.sum())


def brightest(stack: Silhouettes) -> Silhouettes:
    """The largest value of each frame."""
    peaks: Silhouettes = stack.reshape(len(stack), stack.shape[1] * stack.shape[2]).max(axis=1)
    return peaks


def bright_border(stack: Silhouettes) -> NDArray[np.float64]:
    """Share of the border's pixels that are foreground (brighter than half of the brightest), per frame."""
    cut = brightest(stack)[:, None] // 2
    border = np.concatenate([stack[:, 0], stack[:, -1], stack[:, 1:-1, 0], stack[:, 1:-1, -1]], axis=1)
    share: NDArray[np.float64] = (border > cut).sum(axis=1) / border.shape[1]
    return share


def refuse_inverted(border: NDArray[np.float64]) -> None:
    """PolarityError where most frames have a bright border (from `bright_border`)."""
    inverted = int((border > 0.5).sum())
    if inverted * 2 > len(border):
        raise PolarityError(
            "background and foreground are swapped",
            where="silhouettes",
            got=f"a bright border in {inverted} of {len(border)} frames",
            expected="a bright person on a dark background",
            fix="pass 255 - masks, or ~masks for bool",
        )


def refuse_noise(kept: Silhouettes) -> None:
    """SilhouetteValueError where the foreground is scattered."""
    found = noise_found(kept)
    if found is not None:
        raise SilhouetteValueError(
            "these masks show noise, not a person",
            where="silhouettes",
            got=found,
            expected="one connected person per frame",
            fix="look at the masks: save a few as images, and check the segmenter and its threshold",
        )


def refuse_unusable(kept: Silhouettes, report: QualityReport | None, min_frames: int, check_static: bool) -> None:
    """NoFramesError, TooFewFramesError or StaticSequenceError, with what the report says about the dropped frames."""
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
    if check_static and len(kept) > 1 and all(np.array_equal(kept[0], other) for other in kept[1:]):
        raise StaticSequenceError(
            "all frames are the same: a picture, not a walk",
            where="silhouettes",
            got=got,
            expected="frames of a moving person",
        )


def check_options(size: int, min_frames: int, max_frames: int) -> None:
    """OptionError where one is impossible."""
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


def _fix(shape: tuple[int, ...], size: int, channels: int, axes: str) -> str | None:
    """How to come from an input of this shape to that of the model."""
    frame, given = frame_shape(size, channels), tuple(shape[len(axes) :])
    if len(given) == len(frame) == 3 and given[0] == channels:
        return f"draw and normalise with size={size}; columns are cut later, by the model itself"
    if len(given) == len(frame) == 2:
        return f"normalise to that size: gaitsdk.silhouettes.prepare(masks, {size}).silhouettes"
    if channels == 3:
        return f"this model reads three maps per frame; {HOW_TO_STACK}"
    if channels > 1:
        return f"this model reads {channels} maps per frame, of which the last is the silhouette"
    if len(given) == 3 and given[1:] == frame:
        index = ", ".join(":" for _ in axes)
        return f"this model reads silhouettes alone: pass maps[{index}, -1], or load a bundle whose model reads maps"
    return None
