"""The table behind the figures: every (probe, gallery) that a protocol ranks, and who was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: `gallery_view` where the gallery holds all views.
ALL_VIEWS = "all"


@dataclass(frozen=True)
class HitTable:
    """One row per probe and gallery that it was ranked in; m rows.

    Attributes:
        probe: int64 [m], position of the probe in the arrays that were evaluated.
        identity, condition, probe_view, gallery_view: [m] str; `gallery_view` is `ALL_VIEWS` where it holds all.
        rank_before, rank_after: int64 [m], rank (from 1) of the first entry of the probe's identity before and after
            re-ranking; 0 = the gallery has none.
        ap_before, ap_after: float64 [m] in 0..1, average precision, not interpolated; NaN = the gallery has none.
        inp_before, inp_after: float64 [m] in 0..1, inverse negative penalty: entries of the probe's identity / rank of
            the last of them; NaN = the gallery has none.
    """

    probe: NDArray[np.int64]
    identity: NDArray[Any]
    condition: NDArray[Any]
    probe_view: NDArray[Any]
    gallery_view: NDArray[Any]
    rank_before: NDArray[np.int64]
    rank_after: NDArray[np.int64]
    ap_before: NDArray[np.float64]
    ap_after: NDArray[np.float64]
    inp_before: NDArray[np.float64]
    inp_after: NDArray[np.float64]

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

    @property
    def has_mate(self) -> NDArray[np.bool_]:
        """bool [m]: the gallery has an entry of the probe's identity."""
        found: NDArray[np.bool_] = self.rank_before > 0
        return found

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


class CellMeans:
    """Means over the cells of a table, as the field computes them.

    A cell is one condition, probe view and gallery view. Its figure is the mean over its probes in percent, rounded to
    two decimals; that of a probe view is the mean over gallery views, that of a condition the mean over probe views,
    the first key the mean over conditions. So it is a mean of cells, not of probes.
    """

    def __init__(self, table: HitTable, conditions: Sequence[str]) -> None:
        levels = []
        code = np.zeros(len(table), np.int64)
        for column in (table.condition, table.probe_view, table.gallery_view):
            names, of_row = np.unique(column, return_inverse=True)
            levels.append(names)
            code = code * len(names) + of_row
        cells, self._cell = np.unique(code, return_inverse=True)
        places = np.unravel_index(cells, [len(names) for names in levels])
        self._names = [str(levels[0][at]) for at in places[0]], [str(levels[1][at]) for at in places[1]]
        self._conditions = conditions

    def figures(self, key: str, values: NDArray[Any]) -> dict[str, float]:
        """`key`, `key/NM`, `key/NM/000`, ... in percent.

        Args:
            key: of the figure.
            values: [m], one for each row of the table, in 0..1; NaN = does not count. What no row counts for is absent.
        """
        counted = ~np.isnan(values.astype(np.float64))
        sums = np.bincount(self._cell, np.where(counted, values, 0.0), minlength=len(self._names[0]))
        counts = np.bincount(self._cell[counted], minlength=len(self._names[0]))
        of_view: dict[tuple[str, str], list[float]] = {}
        for condition, view, total, count in zip(*self._names, sums, counts, strict=True):
            if count:
                of_view.setdefault((condition, view), []).append(float(np.round(100.0 * total / count, 2)))
        results: dict[str, float] = {}
        for condition in self._conditions:
            views = {view: float(np.mean(cells)) for (name, view), cells in of_view.items() if name == condition}
            if views:
                results[f"{key}/{condition}"] = float(np.mean(list(views.values())))
                results.update({f"{key}/{condition}/{view}": value for view, value in sorted(views.items())})
        means = [value for name, value in results.items() if name.count("/") == 1]
        return {key: float(np.mean(means)), **results} if means else {}


def within(ranks: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    """float64 [m]: 1 where a rank is at most k, else 0 (a rank of 0 is no rank)."""
    return ((ranks > 0) & (ranks <= k)).astype(np.float64)
