"""What a caller passes to a Recognizer: one sequence or several, in any form, as silhouettes that a model reads."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from gaitsdk import thumbnails
from gaitsdk.errors import InputError, SilhouetteError
from gaitsdk.frames import holds_maps
from gaitsdk.silhouettes import Silhouettes, Unchecked, prepare_unchecked

if TYPE_CHECKING:
    from gaitsdk.engine import Description

T = TypeVar("T")


@dataclass
class Walks:
    """Sequences on their way to an engine. Their pixels are looked at when `check` is called, which must be before
    anybody is told an answer.

    Attributes:
        unchecked: one per sequence.
        single: a sequence was passed, not a list of them.
    """

    unchecked: list[Unchecked]
    single: bool

    @cached_property
    def sequences(self) -> list[Silhouettes]:
        """`[T, S, S]` uint8 each, `[T, C, S, S]` for a model of C > 1 maps."""
        return [each.silhouettes for each in self.unchecked]

    @cached_property
    def reports(self) -> list[dict[str, Any]]:
        """The quality report of each. SilhouetteError where one shows no walk."""
        checks = enumerate(each.check for each in self.unchecked)
        return [_of_sequence(index, check, self.single).to_dict() for index, check in checks]

    @cached_property
    def pictures(self) -> list[Silhouettes]:
        """One frame of each, for results that are drawn."""
        return [thumbnails.frame(each) for each in self.sequences]

    def check(self) -> Walks:
        """Itself, once it is certain that each shows a walk.

        Raises:
            SilhouetteError: one does not; the message says which.
        """
        _ = self.reports
        return self

    def look(self) -> None:
        """`check`, and all that a result tells about them is ready."""
        _ = self.reports, self.pictures

    def refusal(self) -> SilhouetteError | None:
        """The error of `check`, or None."""
        try:
            self.check()
        except SilhouetteError as error:
            return error
        return None


def read_walks(value: Any, about: Description) -> Walks:
    """One sequence, or a list of them, not checked yet.

    Raises:
        SilhouetteError: something in it cannot be made into silhouettes of this model. InputError: an empty list.
    """
    many = is_list_of_sequences(value, about.channels)

    def read(sequence: Any) -> Callable[[], Unchecked]:
        return lambda: prepare_unchecked(sequence, about.size, channels=about.channels)

    found = [_of_sequence(index, read(each), not many) for index, each in enumerate(value if many else [value])]
    if not found:
        raise InputError(
            "there is no sequence", where="silhouettes", got="an empty list", fix="pass at least one sequence"
        )
    return Walks(found, not many)


def _of_sequence(index: int, work: Callable[[], T], single: bool) -> T:
    """What `work` gives; an error of one of several sequences says of which."""
    try:
        return work()
    except SilhouetteError as error:
        if not single:
            error.args = (f"sequence {index}: {error}",)
        raise


def is_list_of_sequences(value: Any, channels: int) -> bool:
    """Whether several sequences came: a batch `[n, T, H, W]`, or a list whose items are sequences (arrays of rank 3,
    folders, array files, lists of frames) and not frames (arrays of rank 2, image files). All ranks are one higher for
    a model of several maps per frame; silhouettes alone among such are sequences, too, which prepare refuses."""
    rank = 3 if channels == 1 else 4  # of a sequence
    shape = getattr(value, "shape", None)
    if shape is not None:
        # A last axis of 1, 3 or 4 is colour channels of one sequence, and one of maps is none of silhouettes: prepare
        # says so.
        return len(shape) == rank + 1 and shape[-1] not in (1, 3, 4) and not holds_maps(shape)
    if not isinstance(value, (list, tuple)) or not value:
        return isinstance(value, (list, tuple))
    first = value[0]
    if isinstance(first, (str, os.PathLike)):
        return Path(first).is_dir() or Path(first).suffix.lower() in (".pkl", ".npy")
    if isinstance(first, (list, tuple)):
        return not first or np.ndim(first[0]) >= rank - 1 or isinstance(first[0], (str, os.PathLike))
    given: tuple[int, ...] = tuple(getattr(first, "shape", ()))
    return len(given) >= rank or (len(given) == 3 and given[0] != channels)
