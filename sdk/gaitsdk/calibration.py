"""Which calibrated threshold holds for an answer.

False positives grow with the gallery, so a threshold belongs to a gallery size. Between two calibrated sizes the larger
one's threshold is taken: it was measured, and in a smaller gallery it keeps its promise with room to spare. Beyond the
largest there is no such threshold; the largest's is taken with a warning, and its rate grows about in proportion.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gaitsdk.errors import CalibrationError

if TYPE_CHECKING:
    from gaitsdk.manifest import Calibration

logger = logging.getLogger(__name__)

#: A gallery may outgrow its calibration by so much before it is worth a warning.
TOLERANCE = 1.1
#: What was warned of already: (re-ranker, K, calibrated size, doublings of it). Once per doubling, not per answer.
_warned: set[tuple[str, int, int, int]] = set()


def choose(stored: Iterable[Calibration], *, task: str, reranker: str, k: int, gallery_size: int) -> Calibration | None:
    """The calibration of this task and re-ranker for a gallery of that size, or None where there is none at all: the
    smallest calibrated size that is not smaller than the gallery, else the largest.

    Raises:
        CalibrationError: there are calibrations for the task, but only for another re-ranker or K: their distances
            are not comparable.
    """
    candidates = [each for each in stored if each.task == task]
    fitting = [each for each in candidates if each.reranker == reranker and _same_list(each, k)]
    if candidates and not fitting:
        raise CalibrationError(
            "the bundle is calibrated for another re-ranker",
            where="threshold",
            got=f"reranker={reranker}, K={k}",
            expected=" or ".join(sorted({f"reranker={each.reranker}, K={each.k}" for each in candidates})),
            fix="load with that re-ranker, pass threshold=..., or calibrate again",
        )
    if not fitting:
        return None
    large_enough = [each for each in fitting if each.gallery_size >= gallery_size]
    if large_enough:
        return min(large_enough, key=lambda each: each.gallery_size)
    largest = max(fitting, key=lambda each: each.gallery_size)
    _warn(largest, gallery_size)
    return largest


def threshold_for(
    stored: Iterable[Calibration], *, task: str, reranker: str, k: int, gallery_size: int
) -> float | None:
    """The threshold of `choose`, or None."""
    chosen = choose(stored, task=task, reranker=reranker, k=k, gallery_size=gallery_size)
    return None if chosen is None else chosen.threshold


def merge(stored: Iterable[Calibration], new: Iterable[Calibration]) -> list[Calibration]:
    """All of them; a new one takes the place of those for the same task, re-ranker, K and gallery size."""
    merged = {_conditions(each): each for each in (*stored, *new)}
    return [merged[key] for key in sorted(merged)]


def _conditions(each: Calibration) -> tuple[str, str, int, int]:
    whole = each.task == "verify" or each.reranker == "none"
    return each.task, each.reranker, 0 if whole else each.k, each.gallery_size


def _same_list(each: Calibration, k: int) -> bool:
    """Whether K is the same, where it matters: not for pairs, and not without a re-ranker."""
    return each.k == k or each.task == "verify" or each.reranker == "none"


def _warn(largest: Calibration, gallery_size: int) -> None:
    ratio = gallery_size / max(1, largest.gallery_size)
    key = (largest.reranker, largest.k, largest.gallery_size, int(ratio).bit_length())
    if ratio <= TOLERANCE or key in _warned:
        return
    _warned.add(key)
    logger.warning(
        "the gallery has %d entries, its threshold was calibrated for %d: up to %.2g %% of strangers may be taken for "
        "somebody, not %.2g %%; calibrate for this size",
        gallery_size,
        largest.gallery_size,
        100.0 * min(1.0, largest.fpir * ratio),
        100.0 * largest.fpir,
    )
