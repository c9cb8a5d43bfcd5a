"""The pictures of an evaluation, as files: what `gaitsdk evaluate --plots` writes.

cmc.png      share of the probes with a mate among the first r, before and after re-ranking
spider.png   Rank-1 of each condition, or of each probe view where there is one condition; three axes at least
det.png      FNIR against FPIR, before and after re-ranking, where the two stages were measured
scores-*.png distances of mates and of strangers at each of these stages, with the threshold for the highest FPIR
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gaitsdk.errors import OptionError
from gaitsdk.pictures import new_figure, save_figure
from gaitsdk_training.evaluation import plots
from gaitsdk_training.evaluation.hits import CellMeans, HitTable, within
from gaitsdk_training.evaluation.protocol import Figures, Protocol
from gaitsdk_training.evaluation.two_stage import TwoStageReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RANKS = 20


def check_plots(folder: str | os.PathLike[str]) -> None:
    """Refuses now what could not be drawn or written after hours of work.

    Raises:
        OptionError: the folder cannot be made or written to. MissingDependencyError: matplotlib is not installed.
    """
    new_figure(1, 1)
    try:
        Path(folder).mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        got = error.strerror or str(error)
        raise OptionError(
            "no picture can be written there", where="plots", got=f"{folder}: {got}", fix="choose another name"
        ) from error


def draw(
    folder: str | os.PathLike[str],
    table: HitTable,
    figures: Figures,
    stages: TwoStageReport | None,
    protocol: Protocol,
    reranker: str,
) -> list[str]:
    """Draws what there is to draw.

    Args:
        folder: that exists; files of the same names are replaced.
        table: the rows that are in the figures.
        figures: of `evaluate`.
        stages: for the DET curve; None = none.
        protocol: what was measured. reranker: its name, for the legend.

    Returns:
        The files.
    """
    about = f"{protocol.name}, {figures['probes']:,} probes of {len(np.unique(table.identity)):,} people"
    before = {"initial": "_initial"} if "rank1_initial" in figures else {}
    methods = {**before, reranker if before else "initial": ""}
    drawn: dict[str, Figure] = {"cmc": plots.cmc(_curves(table, methods), title=about, ranks=RANKS)}
    if (axes := _axes(figures, methods)) is not None:
        drawn["spider"] = plots.spider(axes, title=about)
    if stages is not None:
        shown = {"initial": stages.initial, **{f"{reranker}, K = {each.k}": each for each in stages.reranked}}
        about = f"{protocol.name}, galleries of {stages.gallery_size:,}, {stages.test_people:,} people"
        drawn["det"] = plots.det({name: stage.det for name, stage in shown.items()}, title=about)
        for name, stage in shown.items():
            if not len(stage.mates) or not len(stage.strangers):
                continue
            file = f"scores-K{stage.k}" if stage.k else "scores-initial"
            drawn[file] = plots.score_histogram(
                stage.mates, stage.strangers, title=f"{name}; {about}", threshold=stage.points[0].threshold
            )
    return [str(save_figure(figure, Path(folder) / f"{name}.png")) for name, figure in drawn.items()]


def _curves(table: HitTable, methods: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """CMC curves that begin at the report's Rank-1: means of cells, as the protocol's figures are."""
    means = CellMeans(table, np.unique(table.condition).tolist())
    curves = {}
    for name, suffix in methods.items():
        ranks = table.rank_before if suffix else table.rank_after
        rates = [means.figures("", within(ranks, rank))[""] / 100.0 for rank in range(1, RANKS + 1)]
        curves[name] = {"accuracy": rates, "probes": len(np.unique(table.probe))}
    return curves


def _axes(figures: Figures, methods: Mapping[str, str]) -> dict[str, dict[str, float]] | None:
    """Method -> condition (or view) -> Rank-1."""
    for level in (1, 2):
        found = {
            name: {
                key.rpartition("/")[2]: value
                for key, value in figures.items()
                if key.startswith(f"rank1{suffix}/") and key.count("/") == level
            }
            for name, suffix in methods.items()
        }
        count = len(next(iter(found.values())))
        if count >= 3:
            return found
        if count > 1:  # views of several conditions would be several figures for one axis
            return None
    return None
