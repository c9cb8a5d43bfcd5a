"""Thresholds: set on the final distance, in galleries of the size that will be used, on people nobody trained on.

For "identify" the threshold is the largest distance at which at most the wanted share of strangers is taken for
somebody, over all draws of `galleries` together. For "verify" it is the same over impostor pairs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from gaitsdk.manifest import Calibration
from gaitsdk.pipeline import MAX_K, check_count
from gaitsdk.rerankers import compares_pairs
from gaitsdk_training.evaluation.galleries import (
    Draw,
    Plan,
    Pool,
    default_size,
    draws,
    list_reranker,
    people_enrolled,
    search,
    strangers,
)
from gaitsdk_training.evaluation.open_set import (
    Rate,
    Searches,
    check_supported,
    measure,
    people_needed,
    threshold_at,
)
from gaitsdk_training.evaluation.pairs import Pairs, pairs
from gaitsdk_training.evaluation.sequences import embed_sequences, open_sequences

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle

#: Called as progress(stage, done, total).
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Calibrated:
    """One threshold and what it does to the people that it was set on.

    Attributes:
        entry: for the bundle.
        false_positives: FPIR ("verify": FMR) at the threshold: at most the rate asked for.
        misses: FNIR at rank 1 ("verify": FNMR) at the threshold, what the rate costs.
    """

    entry: Calibration
    false_positives: Rate
    misses: Rate

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        rates = {"false_positives": self.false_positives.to_dict(), "misses": self.misses.to_dict()}
        return {**self.entry.model_dump(mode="json"), **rates}


@dataclass(frozen=True)
class Goal:
    """What thresholds are wanted.

    Attributes:
        fpir: false positive identification rate, a fraction.
        fmr: false match rate of pairs; None = the same.
        sizes: entries of the galleries in use; none = one gallery of half of the people.
        enroll_types: see `Pool.check`.
        plan: how galleries are drawn.
    """

    fpir: float = 0.01
    fmr: float | None = None
    sizes: tuple[int, ...] = ()
    enroll_types: tuple[str, ...] | None = None
    plan: Plan = field(default_factory=Plan)

    def __post_init__(self) -> None:
        people_needed(self.fpir, "fpir")
        people_needed(self.pair_rate, "fmr")

    def galleries(self, pool: Pool) -> dict[int, list[Draw]]:
        """The draws per size.

        Raises:
            CalibrationError: too few people for a rate or a size; the message says how many are needed.
            OptionError: no size.
        """
        found: dict[int, list[Draw]] = {}
        for size in sorted(set(self.sizes or [default_size(pool, self.plan)])):
            where, enrolled = f"galleries of {size}", people_enrolled(size, self.plan)
            check_supported(self.fpir, len(pool.people), where, enrolled)  # its message counts all who are missing
            found[size] = draws(pool, size, self.plan)
            check_supported(self.fpir, strangers(pool, found[size]), where, enrolled)
        check_supported(self.pair_rate, len(pool.people), "pairs")
        return found

    @property
    def pair_rate(self) -> float:
        """The false match rate wanted."""
        return self.fpir if self.fmr is None else self.fmr


def calibrate(
    features: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    views: ArrayLike,
    goal: Goal | None = None,
    *,
    reranker: Any = None,
    name: str = "none",
    k: int = 10,
    metric: str = "euclidean",
    progress: Progress | None = None,
) -> list[Calibrated]:
    """Sets the thresholds of `identify` (one per gallery size) and of `verify` (where the re-ranker can judge a pair).

    Args:
        features: F [n, s, d] float32 of people whom the networks have not seen. labels, types, views: [n].
        goal: None = the defaults of `Goal`.
        reranker: see `gaitsdk_training.evaluation.evaluate`, of lists; None = the shortlist's distance.
        name: of the re-ranker, as `Recognizer.load` takes it.
        k: length of the list that is re-ranked.
        metric: of the shortlist.

    Raises:
        CalibrationError: too few people for a rate or a size; the message says how many are needed.
        InputError, OptionError: unusable features, labels, rates, sizes or re-ranker.
    """
    goal = goal or Goal()
    pool = Pool.check(features, labels, types, views, enroll_types=goal.enroll_types, metric=metric)
    planned = goal.galleries(pool)
    rescorer = list_reranker(reranker)
    length = 0 if rescorer is None else check_count(k, "k", maximum=MAX_K)
    found: list[Calibrated] = []
    for size, drawn in planned.items():
        parts: list[Searches] = []
        for number, draw in enumerate(drawn):
            parts.append(search(pool, draw, rescorer, length))
            if progress is not None:
                progress(f"galleries of {size}", number + 1, len(drawn))
        about = {"reranker": name, "k": length, "gallery_size": size}
        found.append(_identify(Searches.join(parts), goal.fpir, about))
    if compares_pairs(name):
        compared = pairs(pool, goal.plan, rescorer, None if progress is None else partial(progress, "pairs"))
        found.append(_verify(compared, goal.pair_rate, {"reranker": name, "k": length, "gallery_size": 1}))
    return found


def calibrate_bundle(
    root: str | os.PathLike[str],
    bundle: Bundle,
    goal: Goal | None = None,
    *,
    identities: Iterable[str] | None = None,
    reranker: str = "cargait",
    k: int | None = None,
    runtime: str = "auto",
    device: str = "auto",
    cache: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Calibrates a bundle on a tree or a packed file, and writes the thresholds into its manifest.

    The manifest is replaced in one step and the model's fingerprint stays, so that no gallery is lost. Thresholds for
    other re-rankers, K or gallery sizes stay; those for the same are replaced.

    Args:
        root: `<root>/<id>/<type>/<view>/*`, or a packed file.
        bundle: to calibrate. goal: None = the defaults of `Goal`.
        identities: whom to use; None = all.
        reranker: one of `gaitsdk.rerankers.RERANKERS`. k: length of the list; the bundle's by default.
        runtime, device: as for `gaitsdk.runtimes.open_runtime`.
        cache: folder that keeps the features (see `embed_sequences`); None keeps nothing.

    Returns:
        `calibrations` (see `Calibrated`), number of `sequences` and `people`, what was `skipped` and why, the `bundle`,
        its `fingerprint`, `reranker`, `runtime` and `device` really used.

    Raises:
        DatasetError: nothing usable. BundleError: the bundle cannot be written. Else as for `calibrate`.
    """
    from gaitsdk.rerankers import create_reranker, list_length
    from gaitsdk.runtimes import open_runtime

    spec = bundle.manifest.input
    sequences = open_sequences(root, spec.size, spec.channels)
    sequences = sequences if identities is None else sequences.of(identities)
    goal = goal or Goal()
    # What the names tell is refused before the embedding, which takes long.
    blank = np.zeros((len(sequences), 1, 1), np.float32)
    goal.galleries(
        Pool.check(blank, sequences.labels, sequences.types, sequences.views, enroll_types=goal.enroll_types)
    )
    length = check_count(list_length(reranker, bundle) if k is None else k, "k") if reranker != "none" else 0
    networks = open_runtime(bundle, runtime, device)
    try:
        rescorer = create_reranker(reranker, bundle, networks)
        stage = None if progress is None else partial(progress, "embedding")
        features, kept, skipped, _ = embed_sequences(sequences, bundle, networks, cache, stage)
        used = sequences.take(kept)
        name = reranker if rescorer is None else rescorer.name
        found = calibrate(
            features,
            used.labels,
            used.types,
            used.views,
            goal,
            reranker=rescorer,
            name=name,
            k=length,
            metric=bundle.metric,
            progress=progress,
        )
        about = {"reranker": name, "runtime": networks.name, "device": networks.device}
    finally:
        networks.close()
    bundle.add_calibrations(each.entry for each in found)
    return {
        "calibrations": [each.to_dict() for each in found],
        "sequences": len(kept),
        "people": len(set(used.labels)),
        "skipped": skipped,
        "bundle": str(bundle.path),
        "fingerprint": bundle.fingerprint,
        **about,
    }


def _identify(searches: Searches, rate: float, about: dict[str, Any]) -> Calibrated:
    strangers, mated = searches.where(~searches.mated), searches.where(searches.mated)
    threshold = threshold_at(strangers.first, rate)
    false_positives = measure(strangers.false_positives(threshold), strangers.subject, rule_of_three=False)
    misses = measure(mated.misses(threshold), mated.subject)
    return Calibrated(_entry("identify", threshold, rate, false_positives, about), false_positives, misses)


def _verify(compared: Pairs, rate: float, about: dict[str, Any]) -> Calibrated:
    genuine = compared.genuine
    threshold = threshold_at(compared.distances[~genuine], rate)
    accepted = compared.distances <= threshold
    false_positives = measure(accepted[~genuine], compared.subject[~genuine], rule_of_three=False)
    misses = measure(~accepted[genuine], compared.subject[genuine])
    return Calibrated(_entry("verify", threshold, rate, false_positives, about), false_positives, misses)


def _entry(task: Any, threshold: float, rate: float, measured: Rate, about: dict[str, Any]) -> Calibration:
    interval = (measured.low or 0.0, measured.high or 0.0)
    return Calibration(task=task, threshold=threshold, fpir=rate, people=measured.people, interval=interval, **about)
