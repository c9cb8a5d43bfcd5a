"""Gait3D: the listed probes against all other test sequences, in one gallery.

No view or camera is excluded. Probes whose identity the gallery lacks are skipped from every figure (unlike GREW's,
which are misses), and counted as dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation.cells import Cell
from gaitsdk_training.evaluation.hits import ALL_VIEWS, HitTable, within
from gaitsdk_training.evaluation.protocol import Figures
from gaitsdk_training.evaluation.request import Names

RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Gait3D:
    """One gallery, listed probes: Rank-1, 5, 10, mAP and mINP."""

    name: ClassVar[str] = "gait3d"
    dataset: ClassVar[str] = "gait3d"
    about: ClassVar[str] = "one gallery, probes without a mate skipped"
    measures: ClassVar[tuple[str, ...]] = (*(f"rank{rank}" for rank in RANKS), "mAP", "mINP")

    def cells(self, names: Names) -> list[Cell]:
        if not names.probe_set:
            raise OptionError(
                "Gait3D lists its probes",
                where="probe_set",
                got="none",
                expected='strings like "0001-camid1_videoid2-seq0"',
                fix="pass the PROBE_SET of Gait3D.json, which comes with the data (--partition Gait3D.json)",
            )
        listed = names.listed()
        if not listed.any() or listed.all():
            raise InputError(
                "no listed probe is there" if not listed.any() else "every sequence is a probe, the gallery is empty",
                where="gait3d",
                got=f"{len(names.labels)} sequences like {'-'.join(names.name(0).split('/'))}",
                expected=f"some of {len(names.probe_set)} probes like {min(names.probe_set)}, and others to rank",
                fix="check that the list belongs to these data",
            )
        return [Cell(np.flatnonzero(listed), np.flatnonzero(~listed), "probe", ALL_VIEWS)]

    def counted(self, names: Names, table: HitTable) -> HitTable:
        return table.where(table.has_mate)

    def figures(self, names: Names, table: HitTable, reranked: bool) -> Figures:
        kept = self.counted(names, table)
        if not len(kept):
            raise InputError(
                "no probe has a sequence of its identity in the gallery", where="gait3d", got=f"{len(table)} probes"
            )
        results: Figures = {}
        stages = [("", kept.rank_after, kept.ap_after, kept.inp_after)]
        if reranked:
            stages.append(("_initial", kept.rank_before, kept.ap_before, kept.inp_before))
        for suffix, ranks, precision, penalty in stages:
            results.update({f"rank{rank}{suffix}": 100.0 * float(within(ranks, rank).mean()) for rank in RANKS})
            results[f"mAP{suffix}"] = 100.0 * float(precision.mean())
            results[f"mINP{suffix}"] = 100.0 * float(penalty.mean())
        absent = len(names.probe_set or ()) - len(table)
        return {**results, "probes": len(kept), "probes_dropped": len(table) - len(kept), "probes_absent": absent}


GAIT3D = Gait3D()
