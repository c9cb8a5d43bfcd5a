"""Reads whatever a user calls a sequence of masks, frame by frame, and refuses what would give wrong silhouettes."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import (
    DatasetError,
    MissingDependencyError,
    NoFramesError,
    SilhouetteError,
    SilhouetteShapeError,
    SilhouetteValueError,
    TooManyFramesError,
)
from gaitsdk.safe_pickle import load_array

if TYPE_CHECKING:
    from PIL import Image

#: Pixels of one frame (8K video has 33 million) and of one sequence; more is refused before any work.
MAX_FRAME_PIXELS = 2**26
MAX_PIXELS = 2**32
#: What an image file may be called, PNG first; the formats are those that are opened, whatever a file is called.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".pbm", ".pgm", ".ppm")
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "PPM")
#: Image modes that become grey without a choice of ours.
_GREY_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
_COLOUR = "segment the person first; if these are masks saved as colour, pass {}[..., 0]"
_EXPECTED = "[T, H, W] masks: bool, 0/1, 0..255 or float 0..1"


@dataclass(frozen=True)
class RawFrame:
    """One frame as uint8 `[H, W]`.

    Attributes:
        pixels: 0..255; still 0..1 where an integer mask is of 0 and 1, which only the whole sequence can tell.
        name: the file's name, or None.
        counted: whether its values decide about the sequence's range (integer masks; not bool, not float).
    """

    pixels: NDArray[np.uint8]
    name: str | None
    counted: bool


class Frames:
    """A sequence that was looked at, but not yet read: its number of frames is known and bounded."""

    def __init__(self, items: Sequence[Any], *, files: bool) -> None:
        self._items, self._files = items, files

    def __len__(self) -> int:
        return len(self._items)

    def shapes(self) -> Iterator[tuple[int, ...]]:
        """Each frame's (H, W), read from the headers of image files; wrong ones are refused when frames are read."""
        if isinstance(self._items, np.ndarray):
            return iter([self._items.shape[1:]])
        return (self._shape(index, item) for index, item in enumerate(self._items))

    def _shape(self, index: int, item: Any) -> tuple[int, ...]:
        if not self._files:
            return as_array(item, f"frame {index}").shape
        with _opened_image(Path(item)) as image:
            return (image.height, image.width)

    def __iter__(self) -> Iterator[RawFrame]:
        pixels = 0
        for index, item in enumerate(self._items):
            name = Path(item).name if self._files else None
            where = f"frame {index}" if name is None else f"frame {index} ({name})"
            array = read_image(Path(item)) if self._files else as_array(item, where)
            _check_frame(array, where)
            pixels += array.size
            if pixels > MAX_PIXELS:
                raise _too_many_pixels(f"more than {pixels} pixels")
            yield RawFrame(_to_uint8(array, where), name, array.dtype.kind in "iu")


def open_frames(source: Any, max_frames: int | None = None) -> Frames:
    """The frames of an array `[T, H, W]`, a list of `[H, W]` arrays or of image files, a folder of image files, or a
    .npy or .pkl file that holds an array. Of a folder with PNG files only those are read: what lies beside them in
    other formats is previews. Elsewhere every file with one of `IMAGE_SUFFIXES` is a frame.

    Args:
        source: as above.
        max_frames: more are refused before any of them is read.

    Raises:
        SilhouetteError: one of its subclasses, or DatasetError for a .npy or .pkl file that cannot be used.
    """
    if source is None:
        raise SilhouetteValueError("there is no sequence", where="silhouettes", got="None", expected=_EXPECTED)
    if isinstance(source, (str, os.PathLike)):
        source = open_path(source)
    if isinstance(source, (list, tuple)):
        check_count(len(source), max_frames, source)
        files = [isinstance(item, (str, os.PathLike)) for item in source]
        if any(files) and not all(files):
            index = files.index(not files[0])
            raise SilhouetteValueError(
                "files and arrays are mixed", where=f"frame {index}", expected="one or the other"
            )
        return Frames(source, files=files[0])
    array = as_array(source, "silhouettes")
    if array.ndim != 3:
        raise _wrong_rank(array)
    check_count(len(array), max_frames, array)
    _check_frame(array[0], "silhouettes")
    check_pixels(array)
    return Frames(array, files=False)  # type: ignore[arg-type]


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image file as grey uint8 `[H, W]`.

    Raises:
        SilhouetteError: missing, unreadable, no image, too large, or of a mode that is no mask.
        MissingDependencyError: Pillow is not installed.
    """
    with _opened_image(path) as image:
        if image.mode not in _GREY_MODES:
            raise SilhouetteValueError(
                "not a mask",
                where=str(path),
                got=f"image mode {image.mode}",
                expected="8-bit grey, colour or palette",
                fix="save the masks as 8-bit grey PNG with 0 and 255",
            )
        return np.asarray(image.convert("L"))


@contextlib.contextmanager
def _opened_image(path: Path) -> Iterator[Image.Image]:
    """An image with its header read and its size checked; what goes wrong inside becomes a typed error."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingDependencyError("image files need Pillow", fix="pip install pillow") from error
    if not path.is_file():
        raise _missing(path)
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_size((image.height, image.width), str(path))  # from the header: nothing is decoded yet
            yield image
    except (SilhouetteError, MissingDependencyError):
        raise
    except UnidentifiedImageError:
        raise SilhouetteError("not an image", where=str(path), expected="PNG", fix="check the file") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise SilhouetteError(
            "the image cannot be read", where=str(path), got=f"{type(error).__name__}: {error}", fix="write it again"
        ) from error


def read_array_file(path: Path) -> NDArray[Any]:
    """The array of a .npy or .pkl file; a .npy is mapped, not loaded.

    Raises:
        DatasetError: unreadable, damaged, or holding anything else than numbers.
    """
    if path.suffix.lower() == ".pkl":
        return load_array(path)
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, OverflowError, EOFError, SyntaxError, TypeError) as error:
        raise DatasetError(
            "the .npy file cannot be used",
            where=str(path),
            got=f"{type(error).__name__}: {str(error)[:200]}",
            expected="one array of numbers, written by numpy.save",
            fix="write the file again",
        ) from error
    if not isinstance(array, np.ndarray):  # numpy.load opens .npz archives whatever their name
        raise DatasetError(
            "the .npy file cannot be used", where=str(path), got="an archive of arrays", expected="one array of numbers"
        )
    return array


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Sorts frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def open_path(source: str | os.PathLike[str]) -> Any:
    """The image files of a folder, in order, or the array of a .npy or .pkl file; errors as for `open_frames`."""
    path = Path(source)
    # Path("") and Path(".") are the same object to Python: an unset variable would read whatever the program stands in.
    if path == Path() and not (isinstance(source, str) and source.strip()):
        raise SilhouetteError(
            "the path is empty",
            where="silhouettes",
            got=repr(source),
            expected="a folder or a file",
            fix='name it; for the current folder pass Path.cwd() or, on the command line, "$PWD"',
        )
    if path.is_dir():
        names = [each.name for each in path.iterdir()]
        images = [path / name for name in image_names(names)]
        if not images:
            found = sorted({Path(name).suffix or name for name in names})[:5]
            raise NoFramesError(
                "the folder has no image file",
                where=str(path),
                got=", ".join(found) or "an empty folder",
                expected="PNG files (or JPEG, BMP, TIFF, GIF, PGM)",
            )
        return sorted(images, key=natural_key)
    if not path.exists():
        raise _missing(path)
    if path.suffix.lower() in (".npy", ".pkl"):
        return read_array_file(path)
    raise SilhouetteError(
        "this file is not a sequence",
        where=str(path),
        got=path.suffix or "no suffix",
        expected="a folder of image files, a .npy or a .pkl file",
        fix="pass a list to use single images",
    )


def image_names(names: Iterable[str]) -> list[str]:
    """Which files of a folder are its frames: the PNG files or, where there is none, those of `IMAGE_SUFFIXES`.

    Hidden files (macOS writes ._name.png beside each file) are none.
    """
    images = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")]
    return [name for name in images if name.lower().endswith(".png")] or images


def as_array(value: Any, where: str, expected: str = _EXPECTED) -> NDArray[Any]:
    """Numbers as an array; SilhouetteValueError where they are none, or it is ambiguous which."""
    if isinstance(value, np.ma.MaskedArray):
        raise SilhouetteValueError("a masked array is ambiguous", where=where, fix="pass array.filled(0)")
    if isinstance(value, Iterator):
        raise SilhouetteValueError(
            "frames that can be read only once",
            where=where,
            got=type(value).__name__,
            expected=expected,
            fix="pass list(...) of it",
        )
    if isinstance(value, (str, bytes, dict, set)) or (np.isscalar(value) and not isinstance(value, np.generic)):
        raise SilhouetteValueError("not an array", where=where, got=type(value).__name__, expected=expected)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists; tensors on a GPU or that need gradients
        raise SilhouetteValueError(
            "not an array",
            where=where,
            got=f"{type(value).__name__} ({error})",
            expected=expected,
            fix="pass numpy arrays (tensors: .detach().cpu().numpy())",
        ) from error
    if array.dtype.kind not in "biuf":
        raise SilhouetteValueError(
            "wrong dtype",
            where=where,
            got=f"{array.dtype}, shape {list(array.shape)}",
            expected="bool, integers or floats",
            fix="for frames of different sizes pass a list of [H, W] arrays" if array.dtype.kind == "O" else None,
        )
    return array


def _check_frame(array: NDArray[Any], where: str) -> None:
    if array.ndim != 2:
        fix = None
        if array.ndim == 3 and array.shape[-1] == 1:
            fix = "drop the last axis: frame[..., 0]"
        elif array.ndim == 3 and array.shape[-1] in (3, 4):
            fix = _COLOUR.format("frame")
        raise SilhouetteShapeError(
            "wrong rank", where=where, got=f"shape {list(array.shape)}", expected="[H, W], one channel", fix=fix
        )
    if min(array.shape) < 2:
        raise SilhouetteShapeError(
            "too small to show anybody", where=where, got=f"shape {list(array.shape)}", expected="H and W of 2 or more"
        )
    _check_size(array.shape, where)


def _to_uint8(frame: NDArray[Any], where: str) -> NDArray[np.uint8]:
    kind = frame.dtype.kind
    if kind == "b":
        return frame.astype(np.uint8) * np.uint8(255)
    if frame.dtype == np.uint8:
        return frame
    low, high = frame.min(), frame.max()
    if kind == "f":
        if not (np.isfinite(low) and np.isfinite(high)):
            raise SilhouetteValueError(
                "NaN or infinite values", where=where, got=f"{low} to {high}", expected="floats in 0..1"
            )
        if low < 0 or high > 1:
            raise SilhouetteValueError(
                "floats out of range",
                where=where,
                got=f"{low:g} to {high:g}",
                expected="floats in 0..1",
                fix="divide by the largest possible value, or pass 0..255 as .astype('uint8')",
            )
        grey: NDArray[np.uint8] = np.rint(frame.astype(np.float64) * 255).astype(np.uint8)
        return grey
    if low < 0 or high > 255:
        raise SilhouetteValueError(
            "integers out of range",
            where=where,
            got=f"{low} to {high}",
            expected="0/1 or 0..255",
            fix="pass a bool mask, for example labels == person",
        )
    return frame.astype(np.uint8)


def check_count(count: int, max_frames: int | None, source: Any, expected: str = _EXPECTED) -> None:
    """Refuses sequences of no frame and of more than `max_frames`."""
    if count == 0:
        got = f"shape {list(source.shape)}" if isinstance(source, np.ndarray) else f"an empty {type(source).__name__}"
        raise NoFramesError("there is no frame", where="silhouettes", got=got, expected=expected)
    if max_frames is not None and count > max_frames:
        raise TooManyFramesError(
            "too many frames for one walk",
            where="silhouettes",
            got=f"{count} frames",
            expected=f"at most {max_frames}",
            fix="cut the recording into walks of one person",
        )


def check_pixels(array: NDArray[Any]) -> None:
    """Refuses sequences of more than `MAX_PIXELS`."""
    if array.size > MAX_PIXELS:
        raise _too_many_pixels(f"shape {list(array.shape)}")


def holds_maps(shape: tuple[int, ...]) -> bool:
    """Whether an array looks like a sequence of limbs, joints and silhouettes, `[T, 3, S, S]`."""
    return len(shape) == 4 and shape[1] == 3 and shape[2] == shape[3] > 4


def _wrong_rank(array: NDArray[Any]) -> SilhouetteShapeError:
    what, fix = "wrong rank", None
    if array.ndim == 2:
        fix = "one frame is not a walk: stack the frames of a walk"
    elif array.ndim == 4 and array.shape[-1] == 1:
        fix = "drop the last axis: masks[..., 0]"
    elif array.ndim == 4 and array.shape[-1] in (3, 4):
        what, fix = "colour images, not masks", _COLOUR.format("masks")
    elif holds_maps(array.shape):
        fix = (
            "silhouettes alone are read here: pass maps[:, -1]; for all three maps load a bundle whose model reads them"
        )
    elif array.ndim == 4 and array.shape[1] == 1:
        fix = "drop the second axis: masks[:, 0]"
    elif array.ndim == 4:
        fix = "several sequences: pass each by itself"
    return SilhouetteShapeError(
        what, where="silhouettes", got=f"shape {list(array.shape)}", expected="[T, H, W]", fix=fix
    )


def _check_size(shape: tuple[int, ...], where: str) -> None:
    if shape[0] * shape[1] > MAX_FRAME_PIXELS:
        raise SilhouetteShapeError(
            "the frame is too large",
            where=where,
            got=f"shape {list(shape)}",
            expected=f"at most {MAX_FRAME_PIXELS} pixels",
            fix="cut the frame around the person",
        )


def _too_many_pixels(got: str) -> TooManyFramesError:
    return TooManyFramesError(
        "the sequence is too large",
        where="silhouettes",
        got=got,
        expected=f"at most {MAX_PIXELS} pixels",
        fix="cut the sequence into shorter walks, or the frames around the person",
    )


def _missing(path: Path) -> SilhouetteError:
    what = "is a folder, not a file" if path.is_dir() else "there is no such file or folder"
    return SilhouetteError(what, where=str(path), fix="check the path")
