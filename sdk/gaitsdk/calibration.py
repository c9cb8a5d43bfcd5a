"""Which calibrated threshold holds for an answer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gaitsdk.errors import CalibrationError

if TYPE_CHECKING:
    from gaitsdk.manifest import Calibration


def choose(stored: Iterable[Calibration], *, task: str, reranker: str, k: int, gallery_size: int) -> Calibration | None:
    """The calibration of this task and re-ranker whose gallery size is nearest, or None where there is none at all.

    Raises:
        CalibrationError: there are calibrations for the task, but only for another re-ranker or K: their distances
            are not comparable.
    """
    candidates = [each for each in stored if each.task == task]
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
    stored: Iterable[Calibration], *, task: str, reranker: str, k: int, gallery_size: int
) -> float | None:
    """The threshold of `choose`, or None."""
    chosen = choose(stored, task=task, reranker=reranker, k=k, gallery_size=gallery_size)
    return None if chosen is None else chosen.threshold
