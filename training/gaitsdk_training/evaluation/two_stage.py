"""Where the errors of a two-stage search are: in the shortlist, in the re-ranker's order, or at the threshold.

A mate that the shortlist leaves out is lost to every re-ranker: FNIR >= 1 - recall@K. The people are halved at random:
the thresholds are set on one half, on the final distance of each stage, and everything is measured on the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from gaitsdk.errors import CalibrationError, InputError
from gaitsdk.pipeline import check_count
from gaitsdk_training.evaluation.curves import CmcCurve, DetCurve, cmc, det
from gaitsdk_training.evaluation.galleries import (
    Draw,
    Plan,
    Pool,
    default_size,
    draws,
    list_reranker,
    search,
    strangers,
)
from gaitsdk_training.evaluation.open_set import (
    FPIRS,
    Distances,
    Rate,
    Searches,
    fnir_at,
    fpir_at,
    measure,
    people_needed,
    threshold_at,
    unsupported,
)
from gaitsdk_training.evaluation.ranking import Rescorer

#: Lengths of the list that the report compares.
LENGTHS = (5, 10, 20, 50)
#: How galleries are drawn unless something else is said.
PLAN = Plan(galleries=5)
#: Called as progress(done, total), in galleries searched.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold from the calibration half, and what it does to the test half.

    Attributes:
        target: the FPIR that it was set for.
        threshold: None where the calibration half does not support the target.
        fpir, fnir: measured on the test half.
    """

    target: float
    threshold: float | None
    fpir: Rate
    fnir: Rate

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rates = {"fpir": self.fpir.to_dict(), "fnir": self.fnir.to_dict()}
        return {"target": self.target, "threshold": self.threshold, **rates}


@dataclass(frozen=True)
class Stage:
    """The test half after one stage.

    Attributes:
        k: length of the list that was re-ranked; 0 = the shortlist itself.
        recall: share of the mated probes with their mate among the first k of the shortlist; None for k = 0.
        rank1: closed-set Rank-1.
        points: one per FPIR.
        det, cmc: curves.
        mates: final distances of the mates that were found. strangers: of the first candidates of people who are not
            enrolled. For histograms; not in `to_dict`.
    """

    k: int
    recall: Rate | None
    rank1: Rate
    points: tuple[OperatingPoint, ...]
    det: DetCurve
    cmc: CmcCurve
    mates: Distances
    strangers: Distances

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "k": self.k,
            "recall": None if self.recall is None else self.recall.to_dict(),
            "rank1": self.rank1.to_dict(),
            "points": [each.to_dict() for each in self.points],
            "det": self.det.to_dict(),
            "cmc": self.cmc.to_dict(),
        }


@dataclass(frozen=True)
class TwoStageReport:
    """Rates are fractions, with 95 % intervals by bootstrap over people.

    Attributes:
        gallery_size: entries. plan: how galleries were drawn.
        calibration_people, test_people: of the two halves; nobody is in both.
        initial: the shortlist alone.
        reranked: one stage per K.
    """

    gallery_size: int
    plan: Plan
    calibration_people: int
    test_people: int
    initial: Stage
    reranked: tuple[Stage, ...]

    @property
    def columns(self) -> list[str]:
        """Names of the columns of `rows`."""
        rates = [f"FPIR {100 * each.target:g} %" for each in self.initial.points]
        shown = [name for rate in rates for name in (f"FNIR at {rate}, initial", f"FNIR at {rate}")]
        return ["K", "recall@K", "Rank-1 initial", "Rank-1", *shown]

    def rows(self) -> list[list[str]]:
        """One row per K; percent with intervals, "-" where the sample does not support the rate (see `notes`)."""
        return [
            [
                str(stage.k),
                _cell(stage.recall),
                _cell(self.initial.rank1),
                _cell(stage.rank1),
                *(
                    _cell(each)
                    for before, after in zip(self.initial.points, stage.points, strict=True)
                    for each in (before.fnir, after.fnir)
                ),
            ]
            for stage in self.reranked
        ]

    def notes(self) -> list[str]:
        """How it was measured, and why a cell is empty."""
        plan = self.plan
        lines = [
            f"galleries of {self.gallery_size} entries, {plan.per_person} per person, drawn {plan.galleries} times; "
            f"at most {plan.probes} probes per person and gallery; mates are enrolled in other views",
            f"thresholds set on {self.calibration_people} people, figures from {self.test_people} others",
        ]
        empty: dict[tuple[float, str], list[str]] = {}
        for stage in (self.initial, *self.reranked):
            for point in stage.points:
                if point.fnir.reason:
                    stages = empty.setdefault((point.target, point.fnir.reason), [])
                    stages.append(f"K={stage.k}" if stage.k else "initial")
        for (target, reason), stages in empty.items():
            lines.append(f"FNIR at FPIR {100 * target:g} % ({', '.join(stages)}): {reason}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "gallery_size": self.gallery_size,
            "per_person": self.plan.per_person,
            "galleries": self.plan.galleries,
            "probes_per_person": self.plan.probes,
            "seed": self.plan.seed,
            "calibration_people": self.calibration_people,
            "test_people": self.test_people,
            "initial": self.initial.to_dict(),
            "reranked": [each.to_dict() for each in self.reranked],
            "columns": self.columns,
            "rows": self.rows(),
            "notes": self.notes(),
        }


def two_stage_report(
    features: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    views: ArrayLike,
    protocol: str | None = "casiab",
    *,
    reranker: Any,
    k: int = 10,
    lengths: Sequence[int] = LENGTHS,
    fpirs: Sequence[float] = FPIRS,
    gallery_size: int | None = None,
    probe_set: Iterable[str] | None = None,
    plan: Plan = PLAN,
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> TwoStageReport:
    """Recall@K of the shortlist, Rank-1 and FNIR before and after the re-ranker.

    Args:
        features: F [n, s, d] float32 of test people. labels, types, views: [n].
        protocol: whose gallery sequences may be enrolled and whose probes ask; None = by types, see `Pool.check`.
        reranker: see `evaluate`, of lists.
        k: length of the list in use; `lengths`: the others to compare. Those beyond the gallery are left out.
        fpirs: targets, fractions.
        gallery_size: entries; None = half of the people of each half.
        probe_set: of the protocol that lists them. metric: of the shortlist.
        plan: how galleries are drawn.

    Raises:
        CalibrationError: too few people for the gallery. InputError, OptionError: unusable arguments.
    """
    pool = Pool.check(features, labels, types, views, protocol=protocol, probe_set=probe_set, metric=metric)
    for target in fpirs:
        people_needed(target)
    rescorer = list_reranker(reranker)
    if rescorer is None:
        raise InputError("there is one stage only", where="reranker", got="None", fix="name a re-ranker")
    planned = halve(pool, plan, gallery_size)
    size = len(planned[0][1][0].gallery)
    counts = sorted({min(check_count(each, "k"), size) for each in (k, *(other for other in lengths if other <= size))})
    run = _Run(planned, len(counts) + 1, progress)
    initial = _stage(*run.search(None, 0), 0, fpirs, strangers(*planned[0]))
    reranked = tuple(_stage(*run.search(rescorer, each), each, fpirs, strangers(*planned[0])) for each in counts)
    people = [len(half.people) for half, _ in planned]
    return TwoStageReport(size, plan, people[0], people[1], initial, reranked)


def halve(pool: Pool, plan: Plan, gallery_size: int | None = None) -> list[tuple[Pool, list[Draw]]]:
    """The people in two halves, each with its galleries; arguments as for `two_stage_report`.

    Raises:
        CalibrationError: too few people.
    """
    people = pool.people
    if len(people) < 4:
        raise CalibrationError(
            "too few people to halve",
            where="two stages",
            got=f"{len(people)} people with a probe",
            expected="at least 4: thresholds are set on one half and measured on the other",
            fix="bring more people, or ask for the figures alone",
        )
    mixed = np.random.default_rng((plan.seed, len(people))).permutation(people)
    halves = [pool.of(mixed[: len(mixed) // 2]), pool.of(mixed[len(mixed) // 2 :])]
    size = default_size(halves[1], plan) if gallery_size is None else gallery_size
    return [(half, draws(half, size, plan)) for half in halves]


class _Run:
    """Searches the galleries of both halves, once per stage."""

    def __init__(self, planned: list[tuple[Pool, list[Draw]]], stages: int, progress: Progress | None) -> None:
        self.planned, self.progress = planned, progress
        self.done, self.total = 0, stages * sum(len(drawn) for _, drawn in planned)

    def search(self, rescorer: Rescorer | None, k: int) -> tuple[Searches, Searches]:
        """Of the calibration half and of the test half."""
        found: list[Searches] = []
        for pool, drawn in self.planned:
            parts: list[Searches] = []
            for draw in drawn:
                parts.append(search(pool, draw, rescorer, k))
                self.done += 1
                if self.progress is not None:
                    self.progress(self.done, self.total)
            found.append(Searches.join(parts))
        return found[0], found[1]


def _stage(calibration: Searches, test: Searches, k: int, fpirs: Sequence[float], people: int) -> Stage:
    points: list[OperatingPoint] = []
    for target in fpirs:
        threshold, reason = None, unsupported(people)
        if people >= people_needed(target):
            threshold, reason = threshold_at(calibration.first[~calibration.mated], target), ""
        points.append(
            OperatingPoint(target, threshold, fpir_at(test, threshold, reason), fnir_at(test, threshold, reason))
        )
    mated = test.where(test.mated)
    if not len(mated):
        raise InputError("no mated probe", where="two_stage_report", fix="bring several views or types per person")
    listed = (mated.shortlist_rank > 0) & (mated.shortlist_rank <= k)
    recall = measure(listed, mated.subject, rule_of_three=False) if k else None
    rank1 = measure(mated.mate_rank == 1, mated.subject, rule_of_three=False)
    mates, others = mated.mate_distance[mated.mate_rank > 0], test.first[~test.mated]
    found, answered = mates[np.isfinite(mates)], others[np.isfinite(others)]
    return Stage(k, recall, rank1, tuple(points), det(test), cmc(test), found, answered)


def _cell(rate: Rate | None) -> str:
    return "-" if rate is None or rate.value is None else str(rate)
