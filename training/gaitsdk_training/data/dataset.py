"""Labelled sequences of silhouettes, or of several maps per frame, in memory or memory-mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import DatasetError, InputError, OptionError

if TYPE_CHECKING:
    from gaitsdk_training.data.reading import LoadReport

Silhouettes = NDArray[np.uint8]


def check_share(value: float, where: str) -> None:
    """Refuses with OptionError a share of the identities that is not between 0 and 1, both exclusive."""
    if not 0.0 < value < 1.0:
        raise OptionError(
            "not a share of the identities",
            where=where,
            got=value,
            expected="more than 0 and less than 1 (at least two identities validate)",
            fix="use 0.1 for a tenth",
        )


class FrameSlices:
    """n sequences of any lengths that lie in one array; each is a view of it, made when it is asked for.

    Args:
        frames: uint8 [N, S, S] or [N, C, S, S], which may be memory-mapped.
        starts, lengths: int64 [n], where each sequence begins and how many frames it has, >= 1.
        prefetch: called as prefetch(start, length), makes the system fetch these frames; None where they are in memory.
    """

    def __init__(
        self,
        frames: Silhouettes,
        starts: ArrayLike,
        lengths: ArrayLike,
        prefetch: Callable[[int, int], None] | None = None,
    ) -> None:
        self.frames = frames
        self.prefetch = prefetch
        self.starts: NDArray[np.int64] = np.asarray(starts, np.int64)
        self.lengths: NDArray[np.int64] = np.asarray(lengths, np.int64)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Silhouettes:
        start = int(self.starts[index])
        return self.frames[start : start + int(self.lengths[index])]

    def __iter__(self) -> Iterator[Silhouettes]:
        return (self[index] for index in range(len(self)))

    def select(self, indices: NDArray[np.int64]) -> FrameSlices:
        """The sequences at these positions."""
        return FrameSlices(self.frames, self.starts[indices], self.lengths[indices], self.prefetch)


class SequenceDataset:
    """n sequences with identity, type (walking condition) and view.

    Args:
        sequences: n arrays [T_i, S, S] uint8, or one array [n, T, S, S] (which may be memory-mapped), or `FrameSlices`.
            Where C > 1 maps make up a frame (`gaitsdk.maps`), [T_i, C, S, S] and [n, T, C, S, S].
        identities, types, views: n strings each.
        report: what had to be left out when they were read; None where they were not read from files.

    Attributes:
        labels: int64 [n], position of the identity in `classes`.
        classes: the distinct identities, sorted.
        report: as above; a subset has that of the whole.

    Raises:
        DatasetError: no sequence. InputError: lengths or shapes do not fit, or the dtype is not uint8.
    """

    def __init__(
        self,
        sequences: Sequence[Silhouettes] | Silhouettes | FrameSlices,
        identities: ArrayLike,
        types: ArrayLike,
        views: ArrayLike,
        *,
        report: LoadReport | None = None,
    ) -> None:
        self.sequences = sequences
        self.report = report
        self.identities: NDArray[Any] = np.asarray(identities, dtype=str)
        self.types: NDArray[Any] = np.asarray(types, dtype=str)
        self.views: NDArray[Any] = np.asarray(views, dtype=str)
        self._check()
        classes, labels = np.unique(self.identities, return_inverse=True)
        self.classes: list[str] = [str(each) for each in classes]
        self.labels: NDArray[np.int64] = labels.astype(np.int64)

    def _check(self) -> None:
        count = len(self.sequences)
        if not count:
            raise DatasetError(
                "there is no sequence", where="SequenceDataset", fix="check the folder or the identities"
            )
        for name in ("identities", "types", "views"):
            if getattr(self, name).shape != (count,):
                raise InputError(
                    "does not fit the sequences",
                    where=name,
                    got=f"shape {getattr(self, name).shape}",
                    expected=f"({count},)",
                )
        one_array = isinstance(self.sequences, (np.ndarray, FrameSlices))
        for index in range(1 if one_array else count):
            each = self.sequences[index]
            square = each.ndim in (3, 4) and each.shape[0] > 0 and each.shape[-2] == each.shape[-1]
            if each.dtype != np.uint8 or not square or each.shape[1:] != self.sequences[0].shape[1:]:
                raise InputError(
                    "not a silhouette sequence like the others",
                    where=f"sequence {index}",
                    got=f"{each.dtype} {list(each.shape)}",
                    expected="uint8 [T, S, S] or [T, C, S, S], T > 0, the same C and S everywhere",
                    fix="gaitsdk.silhouettes.normalise",
                )

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Silhouettes:
        """Sequence `index`, uint8 [T, S, S] or [T, C, S, S]."""
        sequence: Silhouettes = self.sequences[index]
        return sequence

    def expect(self, indices: Iterable[int]) -> None:
        """Says which sequences are read next, so that a disk works on all at once; does nothing in memory."""
        if isinstance(self.sequences, FrameSlices) and self.sequences.prefetch is not None:
            for index in indices:
                self.sequences.prefetch(int(self.sequences.starts[index]), int(self.sequences.lengths[index]))

    @property
    def size(self) -> int:
        """S, the height and width of a frame."""
        return int(self.sequences[0].shape[-1])

    @property
    def channels(self) -> int:
        """C, the maps of a frame: 1, the silhouette, or 3: limbs, joints and silhouette."""
        frame = self.sequences[0].shape[1:]
        return 1 if len(frame) == 2 else int(frame[0])

    def subset(self, indices: ArrayLike) -> SequenceDataset:
        """The sequences at these positions (or where a boolean mask is True); labels are counted anew."""
        chosen = np.asarray(indices)
        chosen = np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen.astype(np.int64)
        sequences: FrameSlices | list[Silhouettes]  # views: nothing is copied
        if isinstance(self.sequences, FrameSlices):
            sequences = self.sequences.select(chosen)
        else:
            sequences = [self.sequences[int(i)] for i in chosen]
        names = self.identities[chosen], self.types[chosen], self.views[chosen]
        return SequenceDataset(sequences, *names, report=self.report)

    def of_identities(self, identities: Iterable[str]) -> SequenceDataset:
        """The sequences of these identities; those that have none here are ignored."""
        return self.subset(np.isin(self.identities, [str(each) for each in identities]))

    def split(self, fraction: float = 0.1) -> tuple[SequenceDataset, SequenceDataset]:
        """Training and validation parts: the last `fraction` of the identities validate (CarGait, section 4.3).

        Raises:
            OptionError: the fraction is not between 0 and 1.
            DatasetError: too few identities for at least two on either side.
        """
        check_share(fraction, "fraction")
        held_out = max(2, round(len(self.classes) * fraction))
        if len(self.classes) - held_out < 2:
            raise DatasetError(
                "too few identities to hold some out for validation",
                where="SequenceDataset.split",
                got=f"{len(self.classes)} identities, fraction {fraction}",
                expected="at least two on either side",
                fix="bring more people, or hold out a smaller share (--validation)",
            )
        return self.of_identities(self.classes[:-held_out]), self.of_identities(self.classes[-held_out:])
