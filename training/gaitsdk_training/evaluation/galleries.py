"""Random galleries out of a data set, and what the product answers when they are searched.

One draw for a gallery of N entries, E of each person:

1. N / E people are drawn, and E enrollable sequences of each: these are the gallery.
2. Everybody else is a stranger: their probes are the non-mated ones. No stranger is in the gallery.
3. The probes of those enrolled are the mated ones, from views other than the ones they were enrolled in, where there
   are several views: a walk that was filmed from the enrolled camera is too easy.

A person gives at most so many probes per draw, drawn at random: many more would cost time and hardly narrow an
interval, which depends on the number of people. Several draws average over who happens to be enrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk import pipeline
from gaitsdk.distance import check_features, check_metric, pairwise
from gaitsdk.errors import CalibrationError, InputError, OptionError
from gaitsdk.tree_report import GALLERY_TYPES
from gaitsdk_training.evaluation.evaluate import choose
from gaitsdk_training.evaluation.open_set import Searches
from gaitsdk_training.evaluation.ranking import Features, Rescorer, as_reranker, rescore_lists
from gaitsdk_training.evaluation.request import Names

Rows = NDArray[np.int64]
#: Called as progress(done, total), in probes.
Progress = Callable[[int, int], None]

_BLOCK = 1024  # probes whose distances are in memory at once


@dataclass(frozen=True)
class Pool:
    """Features of n sequences, which of them may be enrolled, and which are probes. Made by `check`.

    Attributes:
        features: F [n, s, d].
        labels, views: [n] str.
        enrollable, asking: bool [n]; never both.
        metric: of the shortlist.
    """

    features: Features
    labels: NDArray[Any]
    views: NDArray[Any]
    enrollable: NDArray[np.bool_]
    asking: NDArray[np.bool_]
    metric: str = "euclidean"

    @classmethod
    def check(
        cls,
        features: ArrayLike,
        labels: ArrayLike,
        types: ArrayLike,
        views: ArrayLike,
        *,
        protocol: str | None = None,
        enroll_types: Sequence[str] | None = None,
        probe_set: Iterable[str] | None = None,
        metric: str = "euclidean",
    ) -> Pool:
        """Sorts sequences into those to enrol and probes.

        Args:
            features: F [n, s, d] float32. labels, types, views: [n].
            protocol: one of `PROTOCOLS`: its gallery, its probes. None = by types.
            enroll_types: types to enrol, the others are probes; None = nm-01 to nm-04, as far as they are there.
            probe_set: of the protocol that lists them.

        Raises:
            InputError: arrays that do not fit, nothing to enrol or no probe. OptionError: unknown metric or protocol.
        """
        maps = check_features(features, "features")
        names = Names.check(labels, types, views, probe_set, len(maps))
        if protocol is not None:
            enrollable, asking = np.zeros((2, len(maps)), bool)
            for cell in choose(protocol).cells(names):
                enrollable[cell.gallery] = asking[cell.probes] = True
            return cls(maps, names.labels, names.views, enrollable, asking & ~enrollable, check_metric(metric))
        wanted = GALLERY_TYPES if enroll_types is None else tuple(enroll_types)
        enrollable = np.isin(names.types, wanted)
        if not enrollable.any() or enrollable.all():
            raise InputError(
                "there is no probe" if enrollable.any() else "there is nothing to enrol",
                where="types",
                got=names.present("types"),
                expected=f"some of {', '.join(wanted)} to enrol, and other types as probes",
                fix="choose --enroll-types",
            )
        return cls(maps, names.labels, names.views, enrollable, ~enrollable, check_metric(metric))

    def of(self, people: ArrayLike) -> Pool:
        """The sequences of these people only."""
        kept = np.isin(self.labels, people)
        return replace(
            self,
            features=self.features[kept],
            labels=self.labels[kept],
            views=self.views[kept],
            enrollable=self.enrollable[kept],
            asking=self.asking[kept],
        )

    @property
    def people(self) -> NDArray[Any]:
        """Names of those with a probe, sorted."""
        names: NDArray[Any] = np.unique(self.labels[self.asking])
        return names


@dataclass(frozen=True)
class Plan:
    """How galleries are drawn.

    Attributes:
        per_person: E, entries of each enrolled person.
        galleries: draws per size.
        probes: of a person per draw, at most.
        seed: of the draws.
    """

    per_person: int = 1
    galleries: int = 10
    probes: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("per_person", "galleries", "probes"):
            pipeline.check_count(getattr(self, name), name)


@dataclass(frozen=True)
class Draw:
    """One gallery and who asks it: positions in the pool. `mated` belongs to `probes`."""

    gallery: Rows
    probes: Rows
    mated: NDArray[np.bool_]


def default_size(pool: Pool, plan: Plan) -> int:
    """A gallery of half of the people."""
    return plan.per_person * max(1, len(pool.people) // 2)


def draws(pool: Pool, size: int, plan: Plan) -> list[Draw]:
    """The draws of a plan for galleries of `size` entries, the same on every call.

    Raises:
        OptionError: the size is no multiple of the entries per person.
        CalibrationError: too few people to enrol, or nobody is left to be a stranger.
    """
    enrolled = people_enrolled(size, plan)
    entries, asking = (rows_by_person(pool, each) for each in (pool.enrollable, pool.asking))
    able = [name for name, found in entries.items() if len(found) >= plan.per_person]
    # Somebody must be left to ask, whoever is drawn.
    if enrolled > len(able) or enrolled >= len(asking):
        raise CalibrationError(
            f"too few people for a gallery of {size} entries",
            where="gallery_size",
            got=f"{len(asking)} people with a probe, {len(able)} with {plan.per_person} or more sequences to enrol",
            expected=f"at least {enrolled + 1}: {enrolled} to enrol, and strangers",
            fix="ask for a smaller gallery, bring more people, or enrol more of each (--per-person)",
        )
    several_views = len(np.unique(pool.views)) > 1
    drawn: list[Draw] = []
    for number in range(plan.galleries):
        rng = np.random.default_rng((plan.seed, size, number))
        chosen = {str(name) for name in rng.choice(able, enrolled, replace=False)}
        gallery = {name: rng.choice(entries[name], plan.per_person, replace=False) for name in sorted(chosen)}
        probes: dict[str, Rows] = {}
        for name, rows in asking.items():
            usable = rows
            if name in gallery and several_views:
                usable = rows[~np.isin(pool.views[rows], pool.views[gallery[name]])]
            probes[name] = rng.permutation(usable)[: plan.probes]
        mated = np.concatenate([np.full(len(rows), name in chosen) for name, rows in probes.items()])
        drawn.append(Draw(np.concatenate(list(gallery.values())), np.concatenate(list(probes.values())), mated))
    return drawn


def people_enrolled(size: int, plan: Plan) -> int:
    """How many people a gallery of `size` entries holds. Raises OptionError where it is no whole number."""
    number = pipeline.check_count(size, "gallery_size")
    if number % plan.per_person:
        raise OptionError(
            "not a multiple of the entries per person",
            where="gallery_size",
            got=f"{number} entries, {plan.per_person} of each person",
            fix="choose another size, or --per-person 1",
        )
    return number // plan.per_person


def strangers(pool: Pool, drawn: Sequence[Draw]) -> int:
    """Distinct people who are strangers in some of the draws."""
    return len(np.unique(np.concatenate([pool.labels[each.probes[~each.mated]] for each in drawn])))


def rows_by_person(pool: Pool, mask: NDArray[np.bool_]) -> dict[str, Rows]:
    """Positions where the mask is True, by name; names in order."""
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(pool.labels[rows], kind="stable")]
    names, first = np.unique(pool.labels[rows], return_index=True)
    return {str(name): part for name, part in zip(names, np.split(rows, first[1:]), strict=True)}


def search(pool: Pool, draw: Draw, reranker: Rescorer | None, k: int, progress: Progress | None = None) -> Searches:
    """Searches a gallery for every probe, exactly as `Recognizer.identify` does (`pipeline.decide`).

    Args:
        reranker: from `list_reranker`; None = the shortlist's order and distances.
        k: length of the list that is re-ranked; entries beyond it have no final distance.

    Raises:
        InputError: the re-ranker's answer has the wrong shape, or is not finite.
    """
    entries = pool.features[draw.gallery]
    names = pool.labels[draw.gallery]
    parts: list[Searches] = []
    for start in range(0, len(draw.probes), _BLOCK):
        block = slice(start, start + _BLOCK)
        rows = draw.probes[block]
        distances = pairwise(pool.features[rows], entries, pool.metric)
        order = np.argsort(distances, axis=1, kind="stable")
        ranked = np.take_along_axis(distances, order, axis=1)
        new = None if reranker is None else rescore_lists(pool.features[rows], entries, order[:, :k], reranker)
        found = pipeline.Shortlist(order, names[order].astype(object), ranked, np.zeros((0, 0, 0, 0), np.float32))
        answers = pipeline.decide(
            found, new, top_k=len(entries), threshold=None, fingerprint="", gallery_size=len(entries)
        )
        final = answers.distances.astype(np.float64)
        if reranker is not None:
            final[:, answers.reranked :] = np.inf  # the shortlist's: never compared with the re-ranker's
        matches = names[answers.entry_ids] == pool.labels[rows][:, None]
        ranks = np.where(matches, answers.shortlist_ranks, len(entries) + 1).min(axis=1)
        ranks[ranks > len(entries)] = 0
        parts.append(Searches.from_lists(final, matches, draw.mated[block], pool.labels[rows], ranks))
        if progress is not None:
            progress(min(start + _BLOCK, len(draw.probes)), len(draw.probes))
    return Searches.join(parts)


def list_reranker(value: Any) -> Rescorer | None:
    """A re-ranker of lists, or None; what `evaluate` takes will do.

    Raises:
        OptionError: no re-ranker, or one that needs the whole matrix of distances.
    """
    found = as_reranker(value)
    if found is not None and found.scope != "list":
        raise OptionError(
            "a threshold needs a re-ranker that sees one probe and its list",
            where="reranker",
            got=f"scope {found.scope!r}: its distances depend on who else asks",
            expected="scope 'list'",
        )
    return found
