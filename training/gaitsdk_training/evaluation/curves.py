"""DET, CMC and verification curves, as arrays that a plot takes.

A point of a curve is *supported* where its rates are not below 3/people (`open_set`); `to_dict` and plots leave the
others out. Thresholds are the distances that occur: between two of them no rate changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import InputError, OptionError
from gaitsdk_training.evaluation.open_set import RESAMPLES, TAILS, Distances, Searches, bootstrap, smallest_rate

#: A curve has as many points as there are distances; written out, it has at most so many.
POINTS = 500


@dataclass(frozen=True)
class DetCurve:
    """FNIR against FPIR; p points, thresholds rising, so that FPIR never falls and FNIR never rises.

    Attributes:
        fpir, fnir: float64 [p], fractions.
        thresholds: float64 [p].
        fpir_floor, fnir_floor: 3/people of the non-mated and of the mated probes.
    """

    fpir: Distances
    fnir: Distances
    thresholds: Distances
    fpir_floor: float
    fnir_floor: float

    @property
    def supported(self) -> NDArray[np.bool_]:
        """bool [p]: both rates are ones that the sample can show."""
        return _supported(self.fpir, self.fpir_floor) & _supported(self.fnir, self.fnir_floor)

    def to_dict(self) -> dict[str, Any]:
        """The supported points, thinned out to `POINTS`, JSON-able."""
        kept = _thinned(self.supported)
        rates = {name: getattr(self, name)[kept].tolist() for name in ("fpir", "fnir", "thresholds")}
        return {**rates, "fpir_floor": self.fpir_floor, "fnir_floor": self.fnir_floor}


@dataclass(frozen=True)
class CmcCurve:
    """Closed-set identification rate by rank: T = inf, mated probes only.

    Attributes:
        accuracy: float64 [r], element i is rank i + 1; fractions.
        low, high: float64 [r], 95 % interval by bootstrap over people.
        probes, people: how many it rests on.
    """

    accuracy: Distances
    low: Distances
    high: Distances
    probes: int
    people: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        curves = {name: getattr(self, name).tolist() for name in ("accuracy", "low", "high")}
        return {**curves, "probes": self.probes, "people": self.people}


@dataclass(frozen=True)
class VerificationCurve:
    """False non-match against false match rate of single pairs; p points, thresholds rising.

    Attributes:
        fmr, fnmr: float64 [p], fractions.
        thresholds: float64 [p]; the first lies below every distance.
        floor: 3/people.
    """

    fmr: Distances
    fnmr: Distances
    thresholds: Distances
    floor: float

    @property
    def eer(self) -> float | None:
        """Equal error rate: the mean of both rates at the first point where they differ least, or None where the
        sample does not support it."""
        gaps = np.abs(self.fmr - self.fnmr)
        nearest = int(np.argmax(gaps <= gaps.min() + 1e-12))  # the first, whatever the last digit says
        rate = float(self.fmr[nearest] + self.fnmr[nearest]) / 2.0
        return rate if _supported(np.array(rate), self.floor) else None

    @property
    def supported(self) -> NDArray[np.bool_]:
        """bool [p]: both rates are ones that the sample can show."""
        return _supported(self.fmr, self.floor) & _supported(self.fnmr, self.floor)

    def to_dict(self) -> dict[str, Any]:
        """The supported points, thinned out to `POINTS`, JSON-able."""
        kept = _thinned(self.supported)
        rates = {name: getattr(self, name)[kept].tolist() for name in ("fmr", "fnmr", "thresholds")}
        return {**rates, "eer": self.eer, "floor": self.floor}


def det(searches: Searches, rank: int = 1) -> DetCurve:
    """The DET curve of some searches.

    Args:
        searches: with at least one mated and one non-mated probe.
        rank: R of FNIR(N, R, T).

    Raises:
        InputError: no mated or no non-mated probe.
    """
    mated, others = searches.where(searches.mated), searches.where(~searches.mated)
    if not len(mated) or not len(others):
        raise InputError("both kinds of probes are needed", where="det", got=f"{len(mated)} mated, {len(others)} not")
    reached = (mated.mate_rank > 0) & (mated.mate_rank <= rank)
    hits = np.where(reached, mated.mate_distance, np.inf)
    thresholds = _finite(np.concatenate([others.first, hits]))
    return DetCurve(
        _at_or_below(others.first, thresholds),
        1.0 - _at_or_below(hits, thresholds),
        thresholds,
        smallest_rate(len(np.unique(others.subject))),
        smallest_rate(len(np.unique(mated.subject))),
    )


def cmc(searches: Searches, length: int = 20, *, resamples: int = RESAMPLES, seed: int = 0) -> CmcCurve:
    """The CMC curve of the mated probes; a mate that is not listed is a miss at every rank.

    Raises:
        InputError: no mated probe. OptionError: a length below 1.
    """
    if length < 1:
        raise OptionError("not a length", where="length", got=length, expected="a whole number of at least 1")
    mated = searches.where(searches.mated)
    if not len(mated):
        raise InputError("no mated probe", where="cmc", got=f"{len(searches)} probes")
    people, owner = np.unique(mated.subject, return_inverse=True)
    found = mated.mate_rank[:, None]
    hits = (found > 0) & (found <= np.arange(1, length + 1))
    per_person = np.zeros((len(people), length + 1))
    np.add.at(per_person, owner, np.concatenate([hits, np.ones((len(hits), 1), bool)], axis=1))
    sums = bootstrap(per_person, resamples, seed)
    low, high = np.quantile(sums[:, :-1] / sums[:, -1:], TAILS, axis=0)
    return CmcCurve(hits.mean(axis=0), low, high, len(hits), len(people))


def verification(genuine: ArrayLike, impostor: ArrayLike, people: int) -> VerificationCurve:
    """FMR and FNMR over all thresholds.

    Args:
        genuine: [g] distances of pairs of one person.
        impostor: [i] distances of pairs of two people.
        people: distinct people among them.

    Raises:
        InputError: no pairs of a kind, or a distance that is not finite.
    """
    same, different = (np.asarray(each, np.float64).ravel() for each in (genuine, impostor))
    if not len(same) or not len(different) or not np.isfinite(np.concatenate([same, different])).all():
        raise InputError(
            "unusable pairs",
            where="verification",
            got=f"{len(same)} genuine and {len(different)} impostor distances",
            expected="at least one of each, all finite",
        )
    found = _finite(np.concatenate([same, different]))
    thresholds = np.concatenate([[np.nextafter(found[0], -np.inf)], found])
    fmr, fnmr = _at_or_below(different, thresholds), 1.0 - _at_or_below(same, thresholds)
    return VerificationCurve(fmr, fnmr, thresholds, smallest_rate(people))


def _at_or_below(distances: Distances, thresholds: Distances) -> Distances:
    """Share of the distances at or below each threshold."""
    share: Distances = np.searchsorted(np.sort(distances), thresholds, side="right") / len(distances)
    return share


def _finite(distances: Distances) -> Distances:
    finite: Distances = np.unique(distances[np.isfinite(distances)])
    return finite


def _supported(rates: Distances, floor: float) -> NDArray[np.bool_]:
    enough: NDArray[np.bool_] = np.asarray(rates >= floor - 1e-9)
    return enough


def _thinned(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Positions of the kept points, or of some of them, the ends included."""
    rows = np.flatnonzero(kept)
    if len(rows) <= POINTS:
        return rows
    spread: NDArray[np.int64] = rows[np.linspace(0, len(rows) - 1, POINTS).round().astype(np.int64)]
    return spread
