"""GREW: the local protocol, and the file for the benchmark's server, which alone knows who the real probes are.

Local: gallery 01, probes 02, one gallery; probes whose identity the gallery lacks are misses (unlike Gait3D's, which
are skipped). Which of a person's two gallery sequences is 01 depends on how a copy of the data was arranged, so the
local figures of two copies can differ by points.

Server: gallery 01 and 02, probes 03; for each probe the identities of the 20 nearest entries.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from gaitsdk.distance import pairwise
from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation.cells import Cell
from gaitsdk_training.evaluation.hits import ALL_VIEWS, HitTable, within
from gaitsdk_training.evaluation.protocol import Figures
from gaitsdk_training.evaluation.ranking import Positions, nearest, rescore_lists
from gaitsdk_training.evaluation.request import Names, Progress, Request

RANKS = (1, 5, 10, 20)
GALLERY, PROBES = ("01",), ("02",)
SERVER_GALLERY, SERVER_PROBES = ("01", "02"), ("03",)
#: Identities in each row of the file for the server.
LISTED = 20
_PROBES_PER_STEP = 256


@dataclass(frozen=True)
class Grew:
    """One gallery, probes without a mate are misses: Rank-1, 5, 10 and 20, rounded to two decimals."""

    name: ClassVar[str] = "grew"
    dataset: ClassVar[str] = "grew"
    about: ClassVar[str] = "local: one gallery, probes without a mate are misses"
    measures: ClassVar[tuple[str, ...]] = tuple(f"rank{rank}" for rank in RANKS)

    def cells(self, names: Names) -> list[Cell]:
        names.refuse_probe_set(self.name)
        gallery, probes = _positions(names, GALLERY, PROBES)
        return [Cell(probes, gallery, "probe", ALL_VIEWS)]

    def counted(self, names: Names, table: HitTable) -> HitTable:
        return table

    def figures(self, names: Names, table: HitTable, reranked: bool) -> Figures:
        stages = [("", table.rank_after)] + ([("_initial", table.rank_before)] if reranked else [])
        results: Figures = {
            f"rank{rank}{suffix}": float(np.round(100.0 * within(ranks, rank).mean(), 2))
            for suffix, ranks in stages
            for rank in RANKS
        }
        lonely = int(np.count_nonzero(~table.has_mate))
        return {**results, "probes": len(table), "probes_dropped": 0, "probes_without_mate": lonely}


GREW = Grew()


def check_submission(names: Names) -> tuple[Positions, Positions]:
    """The positions of gallery and probes of the file for the server.

    Raises:
        InputError: no gallery or no probes, fewer than 20 entries, an identity that is no number, or a video id twice.
    """
    gallery, probes = _positions(names, SERVER_GALLERY, SERVER_PROBES)
    if len(gallery) < LISTED:
        raise InputError(
            "the gallery is too small for the server's file",
            where="grew",
            got=f"{len(gallery)} entries",
            expected=f"at least {LISTED}",
        )
    strange = [each for each in names.labels[gallery].tolist() if not (each.isascii() and each.isdigit())]
    if strange:
        raise InputError(
            "the server's file takes numbers as identities",
            where="grew",
            got=repr(strange[0]),
            expected='names like "00001"',
        )
    videos, counts = np.unique(names.views[probes], return_counts=True)
    if (counts > 1).any():
        raise InputError(
            "two probes have the same video id, the server could not tell them apart", where="grew",
            got=repr(str(videos[counts > 1][0])), expected="every probe (type 03) in a folder of its own name",
            fix="use the names of the data set's own probe folder",
        )  # fmt: skip
    return gallery, probes


def submission(request: Request, progress: Progress | None = None) -> list[list[str]]:
    """The rows of the file that GREW's server takes: `videoId, rank1 .. rank20`, then one row for each probe.

    With a re-ranker its order is in the file: of the first k, or of the whole gallery where its scope is that.

    Raises:
        InputError: as for `check_submission`, or the re-ranker's answer is unusable.
    """
    names = request.names
    gallery, probes = check_submission(names)
    entries = request.features[gallery]
    reranker = request.reranker
    rows = [["videoId", *(f"rank{rank}" for rank in range(1, LISTED + 1))]]
    whole = None
    if reranker is not None and reranker.scope == "full":
        whole = reranker.rescore(request.features[probes], entries)  # at once: such methods look at all probes
    for start in range(0, len(probes), _PROBES_PER_STEP):
        chosen = slice(start, start + _PROBES_PER_STEP)
        walks = request.features[probes[chosen]]
        distances = pairwise(walks, entries, request.metric) if whole is None else whole[chosen]
        order = nearest(distances, max(LISTED, request.k))
        if reranker is not None and reranker.scope == "list":
            new = rescore_lists(walks, entries, order[:, : request.k], reranker)
            first = np.take_along_axis(order[:, : request.k], np.argsort(new, axis=1, kind="stable"), axis=1)
            order = np.concatenate([first, order[:, request.k :]], axis=1)
        for probe, found in zip(probes[chosen], order[:, :LISTED], strict=True):
            rows.append([str(names.views[probe]), *(str(int(names.labels[gallery[each]])) for each in found)])
        if progress is not None:
            progress(min(start + _PROBES_PER_STEP, len(probes)), len(probes))
    return rows


def write_submission(path: str | os.PathLike[str], rows: Sequence[Sequence[str]]) -> None:
    """Writes the rows of `submission` as CSV, the file whole or not at all.

    Raises:
        OptionError: it cannot be written.
    """
    target = Path(path)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(text.getvalue(), encoding="utf-8")
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OptionError(
            "the submission cannot be written", where=str(target), got=error.strerror or str(error)
        ) from error


def _positions(names: Names, gallery: tuple[str, ...], probes: tuple[str, ...]) -> tuple[Positions, Positions]:
    entries, walks = (np.flatnonzero(np.isin(names.types, each)) for each in (gallery, probes))
    if not len(entries) or not len(walks):
        raise InputError(
            "no gallery" if not len(entries) else "no probes",
            where="grew",
            got=names.present("types"),
            expected=f"{', '.join(gallery)} in the gallery, {', '.join(probes)} as probes",
            fix="check the protocol's name, and the types of the data",
        )
    return entries, walks
