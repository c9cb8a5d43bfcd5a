"""CASIA-B: gallery nm-01 to nm-04, one probe view and one gallery view at a time, identical views excluded.

Probes are nm-05, nm-06 (NM), bg-01, bg-02 (BG) and cl-01, cl-02 (CL). Every pair of a probe view and a gallery view is
a cell with its own gallery; its figure is the share of its probes that are found, in percent, rounded to two decimals
as in the field. A probe whose identity is missing in that gallery view counts as a miss. That of a probe view is the
mean over the other gallery views, that of a condition the mean over its probe views, and the first key the mean over
conditions: so it is a mean of cells, not of probes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import pairwise
from gaitsdk.errors import InputError
from gaitsdk.metrics import first_match, match
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.ranking import Features, Reranker, rank_gallery, rerank
from gaitsdk_training.evaluation.request import Progress, Request

GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")
PROBES = {"NM": ("nm-05", "nm-06"), "BG": ("bg-01", "bg-02"), "CL": ("cl-01", "cl-02")}
RANKS = (1, 5)


def hit_table(request: Request, progress: Progress | None = None) -> HitTable:
    """Ranks every cell, those of identical views included (they give the same-view figures).

    Raises:
        InputError: no gallery, no probe, or a probe set (which this protocol does not have).
    """
    if request.probe_set is not None:
        raise InputError("CASIA-B's probes are defined by their types", where="probe_set", expected="None")
    gallery = np.flatnonzero(np.isin(request.types, GALLERY))
    conditions = {name: np.flatnonzero(np.isin(request.types, types)) for name, types in PROBES.items()}
    if not len(gallery) or not any(len(each) for each in conditions.values()):
        raise InputError(
            "no gallery" if not len(gallery) else "no probes",
            where="casiab",
            got=f"types {', '.join(sorted(set(request.types.tolist())))}",
            expected="nm-01..nm-04 in the gallery, and some of nm-05, nm-06, bg-01, bg-02, cl-01, cl-02 as probes",
        )
    names = sorted(set(request.views.tolist()))
    cells = [(condition, u, v) for condition, rows in conditions.items() if len(rows) for u in names for v in names]
    tables: list[HitTable] = []
    distances: dict[str, Features] = {}
    for done, (condition, u, v) in enumerate(cells, 1):
        rows = conditions[condition]
        if condition not in distances:
            # One product for the whole condition: the cells are cut out of it.
            distances = {condition: pairwise(request.features[rows], request.features[gallery], request.metric)}
        in_u, in_v = request.views[rows] == u, request.views[gallery] == v
        if in_u.any() and in_v.any():
            block = distances[condition][np.ix_(in_u, in_v)]
            # Identical views are no part of the protocol's figures: they are not worth a re-ranker's time.
            reranker = request.reranker if u != v else None
            tables.append(_cell(request, rows[in_u], gallery[in_v], block, (condition, u, v), reranker))
        if progress is not None:
            progress(done, len(cells))
    if not tables:
        raise InputError("no probe view has a gallery view", where="casiab", got=f"views {', '.join(names)}")
    return HitTable.join(tables)


def _cell(
    request: Request,
    probes: NDArray[np.int64],
    gallery: NDArray[np.int64],
    distances: Features,
    names: tuple[str, str, str],
    reranker: Reranker | None,
) -> HitTable:
    order = rank_gallery(distances)
    labels = request.labels
    before = first_match(match(order, labels[probes], labels[gallery]))
    after = before
    if reranker is not None:
        new = rerank(order, request.features[probes], request.features[gallery], reranker, request.k)
        after = first_match(match(new, labels[probes], labels[gallery]))
    condition, probe_view, gallery_view = (np.full(len(probes), name) for name in names)
    return HitTable(probes, labels[probes], condition, probe_view, gallery_view, before, after)


def figures(request: Request, table: HitTable) -> dict[str, float | int]:
    """The flat figures of `evaluate`.

    Raises:
        InputError: a single view, so that excluding identical views leaves nothing.
    """
    cross = table.where(table.cross_view)
    if not len(cross):
        raise InputError(
            "nothing is left when identical views are excluded",
            where="casiab",
            got=f"views {', '.join(sorted(set(request.views.tolist())))}",
            expected="at least two views",
            fix="for one view, enrol and identify: gaitsdk identify --root",
        )
    results: dict[str, float | int] = {}
    for rank in RANKS:
        results.update(_means(f"rank{rank}", cross, cross.rank_after, rank))
        if request.reranker is not None:
            results.update(_means(f"rank{rank}_initial", cross, cross.rank_before, rank))
    same = table.where(~table.cross_view)
    if len(same):
        results.update(_means("rank1_same_view", same, same.rank_before, 1))
    asked = int(np.isin(request.types, [each for types in PROBES.values() for each in types]).sum())
    ranked = len(np.unique(cross.probe))
    return {**results, "probes": ranked, "probes_dropped": asked - ranked, **_counts(cross)}


def _means(key: str, table: HitTable, ranks: NDArray[np.int64], k: int) -> dict[str, float]:
    """`key`, `key/NM`, `key/NM/000`, ...: cells, rounded, then means over gallery views, probe views and conditions."""
    hits = (ranks > 0) & (ranks <= k)
    results: dict[str, float] = {}
    conditions = [name for name in PROBES if (table.condition == name).any()]
    for condition in conditions:
        of_condition = table.condition == condition
        views: list[float] = []
        for probe_view in sorted(set(table.probe_view[of_condition].tolist())):
            rows = of_condition & (table.probe_view == probe_view)
            gallery_views = sorted(set(table.gallery_view[rows].tolist()))
            cells = [_percent(hits[rows & (table.gallery_view == each)]) for each in gallery_views]
            views.append(float(np.mean(cells)))
            results[f"{key}/{condition}/{probe_view}"] = views[-1]
        results[f"{key}/{condition}"] = float(np.mean(views))
    total = float(np.mean([results[f"{key}/{condition}"] for condition in conditions]))
    return {key: total, **results}


def _percent(hits: NDArray[Any]) -> float:
    return round(float(hits.sum()) * 100.0 / len(hits), 2)


def _counts(table: HitTable) -> dict[str, int]:
    names = [name for name in PROBES if (table.condition == name).any()]
    return {f"probes/{name}": len(np.unique(table.probe[table.condition == name])) for name in names}
