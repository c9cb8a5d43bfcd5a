"""The table behind the figures: every (probe, gallery) that a protocol ranks, and who was found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HitTable:
    """One row per probe and gallery that it was ranked in; m rows.

    Attributes:
        probe: int64 [m], position of the probe in the arrays that were evaluated.
        identity, condition, probe_view, gallery_view: [m] str.
        rank_before, rank_after: int64 [m], rank (from 1) of the first entry of the probe's identity before and after
            re-ranking; 0 = the gallery has none.
    """

    probe: NDArray[np.int64]
    identity: NDArray[Any]
    condition: NDArray[Any]
    probe_view: NDArray[Any]
    gallery_view: NDArray[Any]
    rank_before: NDArray[np.int64]
    rank_after: NDArray[np.int64]

    @property
    def before(self) -> NDArray[np.bool_]:
        """bool [m]: Rank-1 hit before re-ranking."""
        hit: NDArray[np.bool_] = self.rank_before == 1
        return hit

    @property
    def after(self) -> NDArray[np.bool_]:
        """bool [m]: Rank-1 hit after re-ranking; the same as `before` where nothing was re-ranked."""
        hit: NDArray[np.bool_] = self.rank_after == 1
        return hit

    @property
    def cross_view(self) -> NDArray[np.bool_]:
        """bool [m]: probe and gallery have different views."""
        different: NDArray[np.bool_] = self.probe_view != self.gallery_view
        return different

    def __len__(self) -> int:
        return len(self.probe)

    def where(self, mask: NDArray[np.bool_]) -> HitTable:
        """The rows where the mask is True."""
        return HitTable(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    @classmethod
    def join(cls, tables: list[HitTable]) -> HitTable:
        """All rows of some tables (at least one)."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(table, name) for table in tables]) for name in names))
