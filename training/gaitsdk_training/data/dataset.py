"""Labelled silhouette sequences in memory, or memory-mapped where all lengths are equal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import DatasetError, InputError, OptionError

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


class SequenceDataset:
    """n sequences with identity, type (walking condition) and view.

    Args:
        sequences: n arrays [T_i, S, S] uint8, or one array [n, T, S, S] (which may be memory-mapped).
        identities, types, views: n strings each.

    Attributes:
        labels: int64 [n], position of the identity in `classes`.
        classes: the distinct identities, sorted.

    Raises:
        DatasetError: no sequence. InputError: lengths or shapes do not fit, or the dtype is not uint8.
    """

    def __init__(
        self, sequences: Sequence[Silhouettes] | Silhouettes, identities: ArrayLike, types: ArrayLike, views: ArrayLike
    ) -> None:
        self.sequences = sequences
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
        stacked = isinstance(self.sequences, np.ndarray)
        for index in range(1 if stacked else count):
            each = self.sequences[index]
            square = each.ndim == 3 and each.shape[0] > 0 and each.shape[1] == each.shape[2]
            if each.dtype != np.uint8 or not square or each.shape[1:] != self.sequences[0].shape[1:]:
                raise InputError(
                    "not a silhouette sequence like the others",
                    where=f"sequence {index}",
                    got=f"{each.dtype} {list(each.shape)}",
                    expected="uint8 [T, S, S], T > 0, the same S everywhere",
                    fix="gaitsdk.silhouettes.normalise",
                )

    def __len__(self) -> int:
        return len(self.sequences)

    def __getitem__(self, index: int) -> Silhouettes:
        """Sequence `index`, uint8 [T, S, S]."""
        sequence: Silhouettes = self.sequences[index]
        return sequence

    @property
    def size(self) -> int:
        """S, the height and width of a frame."""
        return int(self.sequences[0].shape[-1])

    def subset(self, indices: ArrayLike) -> SequenceDataset:
        """The sequences at these positions (or where a boolean mask is True); labels are counted anew."""
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        sequences = [self.sequences[int(i)] for i in chosen]  # views: nothing is copied
        return SequenceDataset(sequences, self.identities[chosen], self.types[chosen], self.views[chosen])

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
            )
        return self.of_identities(self.classes[:-held_out]), self.of_identities(self.classes[-held_out:])
