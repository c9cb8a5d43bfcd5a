"""Pairs of sequences for `verify`, which has a threshold of its own: it compares two, and nobody ranks first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk_training.evaluation.curves import VerificationCurve, verification
from gaitsdk_training.evaluation.galleries import Plan, Pool, Progress, Rows, rows_by_person
from gaitsdk_training.evaluation.ranking import Features, Rescorer, rescore_lists


@dataclass(frozen=True)
class Pairs:
    """Distances of pairs, as `Recognizer.verify` gives them.

    Attributes:
        distances: float32 [p].
        subject: [p], whose the first sequence is.
        genuine: bool [p], the second is of the same person.
    """

    distances: Features
    subject: NDArray[Any]
    genuine: NDArray[np.bool_]

    @property
    def people(self) -> int:
        """Distinct people among the first sequences."""
        return len(np.unique(self.subject))

    def curve(self) -> VerificationCurve:
        """FMR, FNMR and EER. Raises InputError where a kind of pairs is missing."""
        return verification(self.distances[self.genuine], self.distances[~self.genuine], self.people)


def pairs(pool: Pool, plan: Plan, reranker: Rescorer | None, progress: Progress | None = None) -> Pairs:
    """Per draw of the plan, every probe with an enrollable sequence of somebody else, and with one of its own person
    from another view (any other, where there is one view), as far as there is one.

    Raises:
        InputError: the re-ranker's answer has the wrong shape, or is not finite.
    """
    first, second = (np.concatenate(side) for side in zip(*_drawn(pool, plan), strict=True))
    parts: list[Features] = []
    for start in range(0, len(first), _BLOCK):
        a, b = first[start : start + _BLOCK], second[start : start + _BLOCK]
        if reranker is None:
            parts.append(pipeline.strip_distances(pool.features[a], pool.features[b][:, None])[:, 0])
        else:
            parts.append(rescore_lists(pool.features[a], pool.features, b[:, None], reranker)[:, 0])
        if progress is not None:
            progress(min(start + _BLOCK, len(first)), len(first))
    labels = pool.labels
    return Pairs(np.concatenate(parts), labels[first], labels[first] == labels[second])


_BLOCK = 1024


def _drawn(pool: Pool, plan: Plan) -> list[tuple[Rows, Rows]]:
    """The positions of the first and of the second sequences, in parts."""
    several_views = len(np.unique(pool.views)) > 1
    asking, own = rows_by_person(pool, pool.asking), rows_by_person(pool, pool.enrollable)
    entries = np.concatenate(
        list(own.values())
    )  # each person's stand together: one block is left out to draw another's
    starts = dict(zip(own, np.cumsum([0, *(len(each) for each in own.values())]).tolist(), strict=False))
    drawn: list[tuple[Rows, Rows]] = []
    for number in range(plan.galleries):
        rng = np.random.default_rng((plan.seed, number))
        for name, rows in asking.items():
            probes = rng.permutation(rows)[: plan.probes]
            mates = own.get(name, np.zeros(0, np.int64))
            if len(entries) > len(mates):
                others = rng.integers(0, len(entries) - len(mates), len(probes))
                others += np.where(others >= starts.get(name, len(entries)), len(mates), 0)
                drawn.append((probes, entries[others]))
            for probe in probes:
                fitting = mates[pool.views[mates] != pool.views[probe]] if several_views else mates
                if len(fitting):
                    drawn.append((np.array([probe]), rng.choice(fitting, 1)))
    return drawn
