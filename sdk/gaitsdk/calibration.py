"""Thresholds, and what each of them holds for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gaitsdk.errors import CalibrationError


@dataclass(frozen=True)
class Calibration:
    """One calibrated threshold on the final distance.

    Attributes:
        task: "identify" or "verify".
        reranker: name of the re-ranker whose distance the threshold cuts, "none" for the shortlist's.
        k: length of the re-ranked list.
        gallery_size: entries in the gallery that it was calibrated on; false positives grow with it.
        threshold: known means distance <= threshold.
        fpir: the false positive identification rate that it was set for (fraction).
    """

    task: str
    reranker: str
    k: int
    gallery_size: int
    threshold: float
    fpir: float


def choose(
    stored: Iterable[Mapping[str, Any]], *, task: str, reranker: str, k: int, gallery_size: int
) -> Calibration | None:
    """The calibration of this task and re-ranker whose gallery size is nearest, or None where there is none at all.

    Raises:
        CalibrationError: there are calibrations for the task, but only for another re-ranker or K: their distances
            are not comparable.
    """
    candidates = [each for each in (Calibration(**entry) for entry in stored) if each.task == task]
    fitting = [each for each in candidates if each.reranker == reranker and (each.k == k or task == "verify")]
    if candidates and not fitting:
        raise CalibrationError(
            "the bundle is calibrated for another re-ranker",
            where="threshold",
            got=f"reranker={reranker}, K={k}",
            expected=" or ".join(sorted({f"reranker={each.reranker}, K={each.k}" for each in candidates})),
            fix="load with that re-ranker, pass threshold=..., or calibrate again",
        )
    return min(fitting, key=lambda each: abs(each.gallery_size - gallery_size), default=None)


def threshold_for(
    stored: Iterable[Mapping[str, Any]], *, task: str, reranker: str, k: int, gallery_size: int
) -> float | None:
    """The threshold of `choose`, or None."""
    chosen = choose(stored, task=task, reranker=reranker, k=k, gallery_size=gallery_size)
    return None if chosen is None else chosen.threshold
