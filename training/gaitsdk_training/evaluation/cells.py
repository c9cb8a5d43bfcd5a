"""Cells: what a protocol ranks. Each has one gallery and the probes that are ranked in it.

A cell's distances are never all in memory: probes go through in blocks, several threads at once, and only the ranks of
the probes' own identities (and, for a re-ranker of lists, the first K) are kept of each block.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import pairwise
from gaitsdk_training.evaluation.hits import HitTable
from gaitsdk_training.evaluation.ranking import (
    BATCH,
    Features,
    Positions,
    nearest,
    rank_entries,
    reorder_ranks,
    rescore_lists,
    summarise,
)
from gaitsdk_training.evaluation.request import Progress, Request

#: Distances in one block: 64 MB.
_BLOCK = 1 << 24
#: More threads than this would hold more blocks in memory than they save time.
_MAX_THREADS = 8


@dataclass(frozen=True)
class Cell:
    """One gallery and its probes.

    Attributes:
        probes, gallery: int64 [n] and [m], positions in the arrays that are evaluated; neither is empty.
        condition: of the probes, "NM" for example.
        gallery_view: the gallery's view, or `hits.ALL_VIEWS`.
        reranked: False where the figures leave the cell out, so that it is not worth a re-ranker's time.
        excludes_own_view: entries of the probe's identity in the probe's view are taken out of its gallery.
    """

    probes: Positions
    gallery: Positions
    condition: str
    gallery_view: str
    reranked: bool = True
    excludes_own_view: bool = False


@dataclass(frozen=True)
class _Block:
    """What is kept of the distances of some probes.

    Attributes:
        rows, columns, ranks: int64 [P], each entry of a probe's identity: the probe in the cell, the entry, its rank.
        lists: the nearest K entries, int64 [b, K]; K = 0 where no list is re-ranked.
        out: bool [b, K], entries of the lists that are taken out.
    """

    rows: Positions
    columns: Positions
    ranks: Positions
    lists: Positions
    out: NDArray[np.bool_]


def rank_cells(request: Request, cells: list[Cell], progress: Progress | None = None) -> HitTable:
    """Ranks every cell, and re-ranks it where there is a re-ranker.

    Args:
        request: checked features, names and options.
        cells: at least one.
        progress: called as progress(done, total), in rankings (a probe in a gallery).

    Raises:
        InputError: the re-ranker's answer is unusable.
    """
    total, done = sum(len(each.probes) for each in cells), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    pool = ThreadPoolExecutor(threads, "ranking")
    try:
        return HitTable.join([_rank(request, cell, pool, threads, advance) for cell in cells])
    finally:
        pool.shutdown(wait=True, cancel_futures=True)  # Ctrl-C waits for the blocks that are begun, not for all


def _rank(
    request: Request, cell: Cell, pool: ThreadPoolExecutor, threads: int, advance: Callable[[int], None]
) -> HitTable:
    reranker = request.reranker if cell.reranked else None
    gallery = request.features[cell.gallery]
    count = len(cell.probes)
    # Whole batches, so that a re-ranker gets the same ones whatever the number of threads.
    step = BATCH * max(1, -(-min(-(-count // threads), _BLOCK // len(gallery)) // BATCH))
    k = request.k if reranker is not None and reranker.scope == "list" else 0
    work = partial(_block, request, cell, gallery, k)
    rows, columns, before, after = [], [], [], []
    for start, block in zip(range(0, count, step), pool.map(work, _slices(count, step)), strict=True):
        rows.append(block.rows + start)
        columns.append(block.columns)
        before.append(block.ranks)
        after.append(block.ranks)
        if reranker is not None and k:
            probes = request.features[cell.probes[start : start + step]]
            distances = rescore_lists(probes, gallery, block.lists, reranker)
            after[-1] = reorder_ranks(block.ranks, block.rows, np.where(block.out, np.inf, distances))
        advance(min(step, count - start))
    row, rank_before, rank_after = (np.concatenate(each) for each in (rows, before, after))
    if reranker is not None and reranker.scope == "full":
        distances = reranker.rescore(request.features[cell.probes], gallery)
        distances = np.where(_excluded(request, cell, slice(None)), np.inf, distances)
        rank_after = rank_entries(distances, row, np.concatenate(columns))
    return _table(request, cell, summarise(row, rank_before, count), summarise(row, rank_after, count))


def _block(request: Request, cell: Cell, gallery: Features, k: int, probes: slice) -> _Block:
    """The distances of some of the cell's probes, and what is kept of them; runs in a thread."""
    distances = pairwise(request.features[cell.probes[probes]], gallery, request.metric)
    out = _excluded(request, cell, probes)
    if cell.excludes_own_view:
        distances[out] = np.inf
    identities = request.names.identities
    same = identities[cell.probes[probes]][:, None] == identities[cell.gallery][None]
    rows, columns = np.nonzero(same & ~out)
    lists = nearest(distances, k) if k else np.zeros((len(distances), 0), np.int64)
    gone = np.isinf(np.take_along_axis(distances, lists, axis=1))
    return _Block(rows, columns, rank_entries(distances, rows, columns), lists, gone)


def _excluded(request: Request, cell: Cell, probes: slice) -> NDArray[np.bool_]:
    """bool [b, m], or [1, 1] where nothing is taken out: entries that do not count for a probe."""
    if not cell.excludes_own_view:
        return np.zeros((1, 1), bool)
    mine = cell.probes[probes]
    identities, views = request.names.identities, request.names.views
    same_view = views[mine][:, None] == views[cell.gallery][None]
    excluded: NDArray[np.bool_] = same_view & (identities[mine][:, None] == identities[cell.gallery][None])
    return excluded


def _slices(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


_Summary = tuple[Positions, NDArray[np.float64], NDArray[np.float64]]


def _table(request: Request, cell: Cell, before: _Summary, after: _Summary) -> HitTable:
    count, names = len(cell.probes), request.names
    return HitTable(
        probe=cell.probes,
        identity=names.labels[cell.probes],
        condition=np.full(count, cell.condition),
        probe_view=names.views[cell.probes],
        gallery_view=np.full(count, cell.gallery_view),
        rank_before=before[0],
        rank_after=after[0],
        ap_before=before[1],
        ap_after=after[1],
        inp_before=before[2],
        inp_after=after[2],
    )
