"""Does the exported network give the same answers as the eager one? Figures and a verdict, never an impression.

Gates (float32): largest absolute difference <= 1e-4, smallest cosine >= 0.99999, candidates in the same order.
Half precision: cosine >= 0.999, largest difference <= a few percent of the largest value, clearly different candidates
in the same order. INT8: cosine >= 0.99. Engines in float32: cosine >= 0.9999.
A value that is not finite fails everywhere.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import ExportError

Array = NDArray[Any]
Outputs = Sequence[Array]
Network = Callable[..., Outputs]

BATCHES = (1, 2, 3, 8)
LENGTHS = (15, 30, 47)
LIST_LENGTHS = (1, 5, 10)
#: A reference vector shorter than this has no direction: it is compared by absolute difference alone.
ZERO_NORM = 1e-6


class Verdict(str, enum.Enum):
    """What the comparison came to. SKIPPED: nobody compared."""

    OK = "OK"
    FAIL = "FAIL"
    SKIPPED = "SKIPPED"


class ParityError(ExportError):
    """The exported network gives other answers; `.report` has the figures."""

    def __init__(self, report: ParityReport, where: str | None) -> None:
        self.report = report
        super().__init__(
            "the exported network does not give the same answers",
            where=where,
            got="; ".join(report.reasons[:3]) + (f"; and {len(report.reasons) - 3} more" if report.reasons[3:] else ""),
            expected=f"{report.tolerance}, the same order",
            fix="nothing was written; keep runtime='torch' for this model, and report the model and the versions",
        )


@dataclass(frozen=True)
class Tolerance:
    """The gates; None = not asked for.

    Attributes:
        max_abs: largest absolute difference of any output value.
        cosine: smallest cosine between corresponding vectors (last axis).
        relative: largest absolute difference as a share of the case's largest reference value. Where all of these are
            zero, so must the others be. A cosine does not see a wrong scale; this does.
    """

    max_abs: float | None = 1e-4
    cosine: float = 0.99999
    relative: float | None = None

    def __str__(self) -> str:
        limits = [f"max abs <= {self.max_abs:g}"] if self.max_abs is not None else []
        limits += [f"relative <= {self.relative:g}"] if self.relative is not None else []
        return ", ".join([*limits, f"cosine >= {self.cosine:g}"])

    def rank_margin(self, reference: Array) -> float:
        """Distances closer than this may swap by rounding alone."""
        if self.max_abs is not None:
            return 2 * self.max_abs
        largest = float(np.abs(reference).max()) if reference.size else 0.0
        return 2 * (self.relative or 0.0) * largest


#: By precision: of what runs on the CPU, and of engines (whose float32 sums in another order, over fused layers).
TOLERANCES = {
    "fp32": Tolerance(),
    "fp16": Tolerance(max_abs=None, cosine=0.999, relative=0.02),
    "bf16": Tolerance(max_abs=None, cosine=0.999, relative=0.05),
    "int8": Tolerance(max_abs=None, cosine=0.99, relative=0.1),
}
ENGINE_TOLERANCES = {**TOLERANCES, "fp32": Tolerance(max_abs=None, cosine=0.9999, relative=1e-3)}


@dataclass(frozen=True)
class Case:
    """One input to compare on."""

    name: str
    inputs: tuple[Array, ...]


@dataclass(frozen=True)
class CaseFigures:
    """What one case gave. None: `cosine` where every reference vector is zero, `rank_agreement` without lists."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    max_abs: float | None
    cosine: float | None
    rank_agreement: float | None
    reasons: tuple[str, ...]
    relative: float | None = None


@dataclass(frozen=True)
class ParityReport:
    """All cases, and the worst figures over them (None: there is none, because nothing could be compared)."""

    verdict: Verdict
    tolerance: Tolerance
    cases: tuple[CaseFigures, ...] = field(repr=False)
    max_abs: float | None
    cosine: float | None
    rank_agreement: float | None
    reasons: tuple[str, ...]
    relative: float | None = None

    def raise_for_verdict(self, where: str | None = None) -> None:
        """Raises ParityError (an ExportError) unless the verdict is OK."""
        if self.verdict is not Verdict.OK:
            raise ParityError(self, where)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**asdict(self), "verdict": self.verdict.value}


def check(eager: Network, exported: Network, cases: Iterable[Case], tolerance: Tolerance | None = None) -> ParityReport:
    """Runs both networks on every case and compares.

    Args:
        eager: the reference; takes a case's arrays, gives its outputs as arrays.
        exported: the network to judge, likewise. Whatever it raises is a FAIL with the message as the reason.
        cases: at least one; see `embedder_cases` and `reranker_cases`.
        tolerance: the gates; default the project's.

    Returns:
        A report; FAIL where a gate is missed, shapes or dtypes differ, or any value on either side is not finite.
    """
    gates = tolerance or Tolerance()
    figures = tuple(_compare_case(eager, exported, case, gates) for case in cases)
    reasons = tuple(f"{each.name}: {reason}" for each in figures for reason in each.reasons)
    if not figures:
        reasons = ("no case was compared",)
    return ParityReport(
        verdict=Verdict.FAIL if reasons else Verdict.OK,
        tolerance=gates,
        cases=figures,
        max_abs=_worst(max, (each.max_abs for each in figures)),
        cosine=_worst(min, (each.cosine for each in figures)),
        rank_agreement=_worst(min, (each.rank_agreement for each in figures)),
        reasons=reasons,
        relative=_worst(max, (each.relative for each in figures)),
    )


def _worst(choose: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return choose(known) if known else None


def _compare_case(eager: Network, exported: Network, case: Case, gates: Tolerance) -> CaseFigures:
    shapes = tuple(each.shape for each in case.inputs)
    reference = [np.asarray(each) for each in eager(*case.inputs)]
    try:
        found = [np.asarray(each) for each in exported(*case.inputs)]
    # Every runtime has its own exceptions, and the point is to judge, not to crash: a graph that refuses a shape FAILS.
    except Exception as error:  # noqa: BLE001
        reason = f"does not run on {list(map(list, shapes))}: {type(error).__name__}: {str(error).strip()[:200]}"
        return CaseFigures(case.name, shapes, None, None, None, (reason,))
    reasons = _structural_reasons(reference, found)
    if reasons:
        return CaseFigures(case.name, shapes, None, None, None, tuple(reasons))
    max_abs = max_abs_difference(reference[0], found[0])
    cosine, relative = min_cosine(reference[0], found[0]), relative_error(reference[0], found[0])
    agreement = None
    if len(reference) > 1:
        agreement = rank_agreement(reference[0], found[1], gates.rank_margin(reference[0]))
        if not np.array_equal(found[1], np.argsort(found[0], axis=1, kind="stable")):
            reasons.append("order is not the stable ascending order of the distances beside it")
    # Written so that a NaN, which compares false with everything, misses every gate.
    if gates.max_abs is not None and not max_abs <= gates.max_abs:
        reasons.append(f"max abs {max_abs:.3g} > {gates.max_abs:g}")
    if gates.relative is not None and not relative <= gates.relative:
        reasons.append(f"relative error {relative:.3g} > {gates.relative:g}")
    if cosine is not None and not cosine >= gates.cosine:
        reasons.append(f"cosine {cosine:.7f} < {gates.cosine:g}")
    if agreement is not None and not agreement >= 1.0:
        reasons.append(f"only {agreement:.2%} of clearly different candidates in the same order")
    return CaseFigures(case.name, shapes, max_abs, cosine, agreement, tuple(reasons), relative)


def _structural_reasons(reference: Outputs, found: Outputs) -> list[str]:
    """Why the outputs cannot be compared at all."""
    if len(reference) != len(found):
        return [f"{len(found)} outputs instead of {len(reference)}"]
    reasons = []
    for position, (a, b) in enumerate(zip(reference, found, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype:
            reasons.append(f"output {position} is {b.dtype} {list(b.shape)} instead of {a.dtype} {list(a.shape)}")
        for side, values in (("the eager network's", a), ("the exported network's", b)):
            if not np.isfinite(values).all():
                reasons.append(
                    f"{side} output {position} has {np.count_nonzero(~np.isfinite(values))} NaN or infinite values"
                )
    return reasons


def max_abs_difference(reference: Array, found: Array) -> float:
    """Largest |reference - found|; 0.0 for empty arrays; NaN where either has one."""
    difference = np.abs(reference.astype(np.float64) - found.astype(np.float64))
    return float(difference.max()) if difference.size else 0.0


def relative_error(reference: Array, found: Array) -> float:
    """Largest |reference - found| as a share of the largest |reference|; NaN where either has one.

    Where the reference is zero throughout: 0.0 if the other is, too, else infinite, so that it misses every gate.
    """
    difference = max_abs_difference(reference, found)
    largest = float(np.abs(reference.astype(np.float64)).max()) if reference.size else 0.0
    if largest == 0.0:
        return math.inf if difference > 0.0 else difference
    return difference / largest


def min_cosine(reference: Array, found: Array) -> float | None:
    """Smallest cosine between corresponding vectors along the last axis; NaN where either has one.

    Vectors whose reference is (nearly) zero have no direction and are left to `max_abs_difference`; None where all are.
    """
    a, b = reference.astype(np.float64), found.astype(np.float64)
    norm_a, norm_b = np.linalg.norm(a, axis=-1), np.linalg.norm(b, axis=-1)
    directed = ~(norm_a <= ZERO_NORM)  # a NaN norm stays in
    if not directed.any():
        return None
    a, b, norms = a[directed], b[directed], norm_a[directed] * norm_b[directed]
    # A vector that became zero has lost its direction altogether: cosine 0.
    cosines = np.where(norms == 0, 0.0, (a * b).sum(-1) / np.where(norms == 0, 1.0, norms))
    return float(cosines.min())


def rank_agreement(distances: Array, order: Array, margin: float) -> float:
    """Share of candidate pairs, more than `margin` apart in the reference, that `order` lists the same way round.

    Args:
        distances: `[B, K]`, the reference's.
        order: `[B, K]`, the exported network's; not a permutation of 0..K-1 counts as no agreement.
        margin: closer pairs may swap by rounding alone.
    """
    k = distances.shape[1]
    if not np.array_equal(np.sort(order, axis=1), np.broadcast_to(np.arange(k), order.shape)):
        return 0.0
    place = np.argsort(order, axis=1)  # of each candidate
    clear = distances[:, :, None] < distances[:, None, :] - margin
    return float((place[:, :, None] < place[:, None, :])[clear].mean()) if clear.any() else 1.0
