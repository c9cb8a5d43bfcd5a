"""Reading a tree one sequence after another, with an account of whatever had to be left out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gaitsdk.errors import DatasetError, SilhouetteError
from gaitsdk_training.data.dataset import Silhouettes

if TYPE_CHECKING:
    from gaitsdk.datasets import SequenceRef, SequenceTree

logger = logging.getLogger(__name__)

#: Called as progress(done, total).
Progress = Callable[[int, int], None]
_SHOWN = 3


@dataclass(frozen=True, order=True)
class Skipped:
    """A file or folder that was left out.

    Attributes:
        path: the file, or the folder of images.
        reason: why, in one sentence.
    """

    path: str
    reason: str


@dataclass(frozen=True)
class LoadReport:
    """What became of a data set's files.

    Attributes:
        source: the tree or the packed file.
        loaded: sequences that can be used.
        skipped: what was left out: broken and empty files, sequences without anybody in them, stray files.
        wanted: identities that were asked for; None where nobody was named.
        absent: those of them without a usable sequence, sorted.
    """

    source: str
    loaded: int
    skipped: tuple[Skipped, ...] = ()
    wanted: int | None = None
    absent: tuple[str, ...] = ()

    def summary(self) -> str:
        """One line for people: the counts and the first names; `skipped` has them all."""
        parts = [f"{self.source}: {self.loaded} sequences"]
        if self.skipped:
            first = "; ".join(f"{each.path}: {each.reason}" for each in self.skipped[:_SHOWN])
            more = "" if len(self.skipped) <= _SHOWN else f"; and {len(self.skipped) - _SHOWN} more"
            parts.append(f"{len(self.skipped)} skipped ({first}{more})")
        if self.absent:
            names = ", ".join(self.absent[:20]) + (", ..." if len(self.absent) > 20 else "")
            parts.append(f"{len(self.absent)} of {self.wanted} wanted identities without a usable sequence ({names})")
        return ", ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_usable(
    references: Sequence[SequenceRef],
    size: int,
    channels: int,
    skipped: list[Skipped],
    progress: Progress | None = None,
) -> Iterator[tuple[SequenceRef, Silhouettes]]:
    """Every sequence that can be used, normalised to `size`: uint8 [T, size, size] or [T, C, size, size], T >= 1.

    A file that is corrupt, empty, no silhouettes (NaN, for example) or shows nobody is added to `skipped` and logged;
    so is a folder whose maps are not of the same frames.

    Args:
        references: what to read.
        size: S; sequences of that size are taken as they are, others normalised.
        channels: C, maps per frame; of several, each folder's are joined by the names of its files.
        skipped: gets what was left out.
        progress: called after each.
    """
    for done, each in enumerate(references, 1):
        try:
            yield each, each.prepare(size, channels=channels, min_frames=1).silhouettes
        except (DatasetError, SilhouetteError) as error:
            path = _source(each, channels)
            skipped.append(Skipped(path, str(error).removeprefix(f"{path}: ")))
            logger.warning("skipped %s: %s", path, skipped[-1].reason)
        if progress is not None:
            progress(done, len(references))


def skipped_folders(tree: SequenceTree) -> list[Skipped]:
    """What the tree itself left out when it was listed."""
    parts = (each.partition(": ") for each in tree.skipped)
    return [Skipped(path, reason) for path, _, reason in parts]


def nothing_usable(where: str | Path, wanted: int, skipped: Sequence[Skipped]) -> DatasetError:
    """The error where not one sequence is left."""
    reasons = "; ".join(f"{each.path}: {each.reason}" for each in skipped[:_SHOWN])
    return DatasetError(
        "no usable sequence",
        where=str(where),
        got=f"{wanted} sequences of the wanted identities, types and views"
        + (f", all of them unusable ({reasons})" if wanted and reasons else ""),
        expected="at least one",
        fix="write the files again"
        if wanted
        else "check the folder, and that the partition's identities are named as its folders are",
    )


def _source(reference: SequenceRef, channels: int) -> str:
    """The file itself where there is one, and where that can still be told."""
    try:
        return str(reference.file() if channels == 1 else reference.path)
    except DatasetError:
        return str(reference.path)
