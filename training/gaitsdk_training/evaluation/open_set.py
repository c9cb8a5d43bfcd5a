"""Open-set identification: how often strangers are taken for somebody (FPIR) and enrolled people are missed (FNIR).

ISO/IEC 19795-1 and NIST FRTE 1:N, in distances (lower is nearer). A *mated* probe's identity is enrolled, a *non-mated*
probe's is not. In a gallery of N entries, at threshold T:

    FPIR(N, T)     share of the non-mated probes for whom any candidate lies at or below T
    FNIR(N, R, T)  share of the mated probes whose mate is not among the first R candidates at or below T

T cuts the **final** distance: the re-ranker's, where there is one. Candidates beyond its list of K have none, so they
are never returned, whatever T is: FNIR is at least 1 - recall@K. All rates are fractions.

**What a sample can show.** No error among n independent people still allows a rate of 3/n (95 %, the rule of three),
and the probes of one person are not independent. So no rate below 3/people is given as a number: see `Rate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import CalibrationError, InputError, OptionError
from gaitsdk.metrics import first_match
from gaitsdk_training.evaluation.bootstrap import COVERAGE

Distances = NDArray[np.float64]

#: Rates at which FNIR is reported (NIST FRTE's identification is at 0.003).
FPIRS = (0.01, 0.003, 0.001)
#: Resamples of a bootstrap over people.
RESAMPLES = 1000
#: Quantiles of a 95 % interval.
TAILS = ((1.0 - COVERAGE) / 2.0, (1.0 + COVERAGE) / 2.0)
_ROUNDING = 1e-9  # 0.07 * 100 is a little more than 7


@dataclass(frozen=True)
class Searches:
    """n probes and what a gallery answered. Distances are inf where there is none.

    Attributes:
        subject: [n] whose probe it is.
        mated: bool [n], the subject is enrolled in the gallery that was searched.
        first: float64 [n], distance of the first candidate.
        mate_rank: int64 [n], final rank (from 1) of the first candidate of the subject; 0 = not in the list.
        mate_distance: float64 [n], final distance of that candidate.
        shortlist_rank: int64 [n], its best rank before re-ranking; 0 = not in the list.
    """

    subject: NDArray[Any]
    mated: NDArray[np.bool_]
    first: Distances
    mate_rank: NDArray[np.int64]
    mate_distance: Distances
    shortlist_rank: NDArray[np.int64]

    @classmethod
    def from_lists(
        cls,
        distances: ArrayLike,
        matches: ArrayLike,
        mated: ArrayLike,
        subject: ArrayLike,
        shortlist_rank: ArrayLike | None = None,
    ) -> Searches:
        """From ranked lists.

        Args:
            distances: [n, m] final distances, best first, inf for candidates without one; a probe that could not be
                embedded has a row of inf: a miss if mated, rightly nobody if not.
            matches: bool [n, m], the candidate is of the probe's identity.
            mated: bool [n]. subject: [n].
            shortlist_rank: int [n]; None = nothing was re-ranked.

        Raises:
            InputError: shapes that do not fit, NaN, or distances that fall within a list.
        """
        scores, names, enrolled = np.asarray(distances, np.float64), np.asarray(subject), np.asarray(mated)
        if scores.ndim != 2 or names.shape != scores.shape[:1] or enrolled.shape != names.shape:
            got = f"{list(scores.shape)}, {list(enrolled.shape)} and {list(names.shape)}"
            raise InputError("the arrays do not fit", where="Searches", got=got, expected="[n, m], [n] and [n]")
        # Written so that NaN fails too; inf after inf is in order.
        if not (scores[:, 1:] >= scores[:, :-1]).all() or np.isnan(scores).any():
            raise InputError("a list is not in order", where="distances", expected="best first, without NaN")
        ranks = first_match(np.asarray(matches, bool).reshape(scores.shape))
        padded = np.concatenate([np.full((len(scores), 1), np.inf), scores], axis=1)
        return cls(
            names,
            enrolled.astype(bool),
            padded[:, min(1, scores.shape[1])],
            ranks,
            np.take_along_axis(padded, ranks[:, None], axis=1)[:, 0],
            ranks if shortlist_rank is None else np.asarray(shortlist_rank, np.int64),
        )

    @classmethod
    def join(cls, parts: Sequence[Searches]) -> Searches:
        """All probes of some searches (at least one)."""
        names = cls.__dataclass_fields__
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def where(self, mask: NDArray[np.bool_]) -> Searches:
        """The probes where the mask is True."""
        return Searches(*(getattr(self, name)[mask] for name in self.__dataclass_fields__))

    def __len__(self) -> int:
        return len(self.subject)

    def false_positives(self, threshold: float) -> NDArray[np.bool_]:
        """bool [n]: some candidate lies at or below the threshold; it counts for non-mated probes."""
        wrong: NDArray[np.bool_] = (self.first <= threshold) & np.isfinite(self.first)
        return wrong

    def misses(self, threshold: float, rank: int = 1) -> NDArray[np.bool_]:
        """bool [n]: the mate is not among the first `rank` at or below the threshold; it counts for mated probes."""
        hit = (self.mate_rank > 0) & (self.mate_rank <= rank) & (self.mate_distance <= threshold)
        return ~hit


@dataclass(frozen=True)
class Rate:
    """A measured rate with its interval, or the reason why there is none.

    Attributes:
        value: fraction, or None where the sample does not support one.
        low, high: 95 % interval by bootstrap over people, or None.
        events: errors that were counted.
        trials: probes (or pairs) that were counted.
        people: distinct people among them.
        reason: "" or "not supported: ...".
    """

    value: float | None
    low: float | None
    high: float | None
    events: int
    trials: int
    people: int
    reason: str = ""

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return self.reason
        return f"{100 * self.value:.2f} % ({100 * self.low:.2f} to {100 * self.high:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def measure(
    events: ArrayLike, subject: ArrayLike, *, rule_of_three: bool = True, resamples: int = RESAMPLES, seed: int = 0
) -> Rate:
    """The share of events, with its interval from resampled people.

    Args:
        events: bool [n]. subject: [n], whose trial each is.
        rule_of_three: give no value below 3/people; False where the events are successes, or the rate was set and not
            measured.

    Returns:
        A rate without a value where there is no trial, or where the share is too small for the sample.
    """
    counted, names = np.asarray(events, bool), np.asarray(subject)
    people, owner = np.unique(names, return_inverse=True)
    errors, trials, n = int(counted.sum()), len(counted), len(people)
    if not trials or (rule_of_three and errors / trials < smallest_rate(n) - _ROUNDING):
        return Rate(None, None, None, errors, trials, n, unsupported(n))
    per_person = np.stack([np.bincount(owner, counted, n), np.bincount(owner, minlength=n)], axis=1)
    sums = bootstrap(per_person, resamples, seed)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], TAILS)
    return Rate(errors / trials, float(low), float(high), errors, trials, n)


def bootstrap(per_person: ArrayLike, resamples: int = RESAMPLES, seed: int = 0) -> Distances:
    """Sums over people drawn with replacement: counts [p, c] -> float64 [resamples, c].

    Raises:
        OptionError: no resample.
    """
    if resamples < 1:
        raise OptionError("at least one resample is needed", where="resamples", got=resamples)
    counts = np.asarray(per_person, np.float64)
    n = len(counts)
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=resamples)
    sums: Distances = drawn @ counts
    return sums


def smallest_rate(people: int) -> float:
    """3/people: what no error at all among so many independent people still allows (95 %)."""
    return 3.0 / people if people else math.inf


def people_needed(rate: float, name: str = "rate") -> int:
    """How many people it takes to support a rate; `name` is what the message calls it.

    Raises:
        OptionError: no fraction above 0 and below 1.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.floating)) or not 0.0 < rate < 1.0:
        raise OptionError(
            "not a rate", where=name, got=repr(rate), expected="a fraction above 0 and below 1", fix="1 % is 0.01"
        )
    return math.ceil(3.0 / rate - _ROUNDING)


def unsupported(people: int) -> str:
    """Why a rate is not given as a number."""
    if not people:
        return "not supported: n=0"
    return f"not supported: n={people} people show no rate below {100 * smallest_rate(people):.3g} %"


def fpir(searches: Searches, threshold: float) -> float:
    """FPIR(T), a fraction; NaN without a non-mated probe. As counted: `measure` says what may be told of it."""
    return _mean(searches.false_positives(threshold)[~searches.mated])


def fnir(searches: Searches, threshold: float, rank: int = 1) -> float:
    """FNIR(R, T), a fraction; NaN without a mated probe. T = inf asks for the rank alone (closed set)."""
    return _mean(searches.misses(threshold, rank)[searches.mated])


def _mean(events: NDArray[np.bool_]) -> float:
    return float(events.mean()) if len(events) else math.nan


def threshold_at(distances: ArrayLike, rate: float) -> float:
    """The largest of the distances at which at most `rate` of them lie at or below it, equal ones included.

    Args:
        distances: [n] of trials that should all stay out: the first candidates of non-mated probes, or impostor pairs.
        rate: fraction.

    Returns:
        One of the distances, or a number just below the smallest where even that one (with its equals) is too many.

    Raises:
        InputError: no finite distance, or NaN. OptionError: no rate.
    """
    people_needed(rate)
    values = np.sort(np.asarray(distances, np.float64).ravel())
    if not len(values) or not np.isfinite(values[0]) or np.isnan(values).any():
        raise InputError("no usable distance", where="threshold_at", got=f"{len(values)} distances")
    outside = values[min(math.floor(rate * len(values) + _ROUNDING), len(values) - 1)]
    inside = values[values < outside]
    return float(inside[-1]) if len(inside) else float(np.nextafter(values[0], -np.inf))


def check_supported(rate: float, people: int, where: str, enrolled: int = 0) -> None:
    """Refuses a rate that so many people cannot support.

    Args:
        people: who are strangers (or impostors). enrolled: how many others it takes.

    Raises:
        CalibrationError: says how many are needed. OptionError: no rate.
    """
    needed = people_needed(rate)
    if people < needed:
        others = f" besides the {enrolled} who are enrolled: {needed + enrolled} will do" if enrolled else ""
        shown = f": no rate below {100 * smallest_rate(people):.3g} % can be shown" if people > 3 else ""
        raise CalibrationError(
            f"too few people for a rate of {100 * rate:.3g} %",
            where=where,
            got=f"{people} people{shown}",
            expected=f"at least {needed} (3/rate, the rule of three){others}",
            fix="bring more people, ask for a higher rate, or for a smaller gallery",
        )


def fnir_at(searches: Searches, threshold: float | None, reason: str, rank: int = 1) -> Rate:
    """FNIR with its interval at a threshold that was set elsewhere; None hands the reason through."""
    mated = searches.where(searches.mated)
    if threshold is None:
        return Rate(None, None, None, 0, len(mated), len(np.unique(mated.subject)), reason)
    return measure(mated.misses(threshold, rank), mated.subject)


def fpir_at(searches: Searches, threshold: float | None, reason: str) -> Rate:
    """FPIR, likewise."""
    others = searches.where(~searches.mated)
    if threshold is None:
        return Rate(None, None, None, 0, len(others), len(np.unique(others.subject)), reason)
    return measure(others.false_positives(threshold), others.subject)
