"""The protocols of data sets with fixed cameras (CASIA-B, OU-MVLP), in the field's two forms.

Single-view gallery: every pair of a probe view and a gallery view is a cell with its own gallery, identical views
excluded. A probe whose identity is missing in that gallery view counts as a miss; papers that leave such probes out
report higher figures, `..._with_mate` here.

Cross-view gallery (Hou et al., "Gait quality aware network", T-BIOM 2022): one gallery with all views; entries of the
probe's identity in the probe's own view are taken out of it. It has few positives at every rank, hence mAP.

Each cell is in percent, rounded to two decimals, and the figures are means of cells (`hits.CellMeans`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gaitsdk.errors import InputError
from gaitsdk_training.evaluation.cells import Cell
from gaitsdk_training.evaluation.hits import ALL_VIEWS, CellMeans, HitTable, within
from gaitsdk_training.evaluation.protocol import Figures
from gaitsdk_training.evaluation.ranking import Positions
from gaitsdk_training.evaluation.request import Names

RANKS = (1, 5)


@dataclass(frozen=True)
class SingleViewGallery:
    """One probe view and one gallery view at a time.

    Attributes:
        name, dataset: see `protocol.Protocol`.
        gallery: types that are ranked.
        probes: types of each condition.
        with_mate: also give the figures without probes that lack a mate.
    """

    name: str
    dataset: str
    gallery: tuple[str, ...]
    probes: Mapping[str, tuple[str, ...]]
    with_mate: bool = False
    about: ClassVar[str] = "identical views excluded"
    measures: ClassVar[tuple[str, ...]] = tuple(f"rank{rank}" for rank in RANKS)

    def cells(self, names: Names) -> list[Cell]:
        """Those of identical views are included (they give the same-view figures), but not re-ranked."""
        gallery, conditions = _roles(self.name, names, self.gallery, self.probes)
        views = sorted(set(names.views.tolist()))
        if len(views) < 2:
            raise InputError(
                "nothing is left when identical views are excluded",
                where=self.name,
                got=names.present("views"),
                expected="at least two views",
                fix="for one view, enrol and identify: gaitsdk identify --root",
            )
        of_view = {view: gallery[names.views[gallery] == view] for view in views}
        cells = []
        for condition, rows in conditions.items():
            for u in views:
                probes = rows[names.views[rows] == u]
                cells += [
                    Cell(probes, entries, condition, v, reranked=u != v)
                    for v, entries in of_view.items()
                    if len(probes) and len(entries)
                ]
        if all(not each.reranked for each in cells):
            raise InputError(
                "no probe view has another gallery view",
                where=self.name,
                got=f"probes in {names.present('views')}",
                expected="gallery sequences in another view than the probes'",
            )
        return cells

    def counted(self, names: Names, table: HitTable) -> HitTable:
        return table.where(table.cross_view)

    def figures(self, names: Names, table: HitTable, reranked: bool) -> Figures:
        cross, same = self.counted(names, table), table.where(~table.cross_view)
        conditions = list(self.probes)
        means = CellMeans(cross, conditions)
        results: Figures = {}
        for rank in RANKS:
            for ranks, suffix in _stages(cross, reranked):
                hits = within(ranks, rank)
                results.update(means.figures(f"rank{rank}{suffix}", hits))
                if self.with_mate:
                    results.update(
                        means.figures(f"rank{rank}_with_mate{suffix}", np.where(cross.has_mate, hits, np.nan))
                    )
        if len(same):
            results.update(CellMeans(same, conditions).figures("rank1_same_view", within(same.rank_before, 1)))
        lonely = int(np.count_nonzero(~cross.has_mate))
        return {
            **results,
            **_counts(names, self.probes, cross),
            "rankings": len(cross),
            "rankings_without_mate": lonely,
        }


@dataclass(frozen=True)
class CrossViewGallery:
    """All views in one gallery; attributes as for `SingleViewGallery`."""

    name: str
    dataset: str
    gallery: tuple[str, ...]
    probes: Mapping[str, tuple[str, ...]]
    about: ClassVar[str] = "one gallery of all views, without the probe's identity in its own view"
    measures: ClassVar[tuple[str, ...]] = ("rank1", "mAP")

    def cells(self, names: Names) -> list[Cell]:
        gallery, conditions = _roles(self.name, names, self.gallery, self.probes)
        return [
            Cell(rows, gallery, condition, ALL_VIEWS, excludes_own_view=True)
            for condition, rows in conditions.items()
            if len(rows)
        ]

    def counted(self, names: Names, table: HitTable) -> HitTable:
        return table

    def figures(self, names: Names, table: HitTable, reranked: bool) -> Figures:
        """Rank-1 is a mean over all probes of a view, mAP over those that have a mate."""
        means = CellMeans(table, list(self.probes))
        results: Figures = {}
        for ranks, suffix in _stages(table, reranked):
            results.update(means.figures(f"rank1{suffix}", within(ranks, 1)))
        results.update(means.figures("mAP", table.ap_after))
        if reranked:
            results.update(means.figures("mAP_initial", table.ap_before))
        lonely = int(np.count_nonzero(~table.has_mate))
        return {**results, **_counts(names, self.probes, table), "probes_without_mate": lonely}


def _stages(table: HitTable, reranked: bool) -> list[tuple[Positions, str]]:
    """Ranks, and what their keys end in."""
    after = (table.rank_after, "")
    return [after, (table.rank_before, "_initial")] if reranked else [after]


def _roles(
    name: str, names: Names, gallery_types: tuple[str, ...], probes: Mapping[str, tuple[str, ...]]
) -> tuple[Positions, dict[str, Positions]]:
    names.refuse_probe_set(name)
    gallery = np.flatnonzero(np.isin(names.types, gallery_types))
    conditions = {condition: np.flatnonzero(np.isin(names.types, types)) for condition, types in probes.items()}
    if not len(gallery) or not any(len(each) for each in conditions.values()):
        wanted = ", ".join(each for types in probes.values() for each in types)
        raise InputError(
            "no gallery" if not len(gallery) else "no probes",
            where=name,
            got=names.present("types"),
            expected=f"{', '.join(gallery_types)} in the gallery, and some of {wanted} as probes",
            fix="check the protocol's name, and the types of the data",
        )
    return gallery, conditions


def _counts(names: Names, probes: Mapping[str, tuple[str, ...]], table: HitTable) -> dict[str, int]:
    """Probes that were ranked, those that could not be (nothing to be ranked in), and the first by condition."""
    asked = int(np.isin(names.types, [each for types in probes.values() for each in types]).sum())
    ranked = {name: len(np.unique(table.probe[table.condition == name])) for name in probes}
    kept = sum(ranked.values())
    return {
        "probes": kept,
        "probes_dropped": asked - kept,
        **{f"probes/{name}": count for name, count in ranked.items() if count},
    }
