"""Data set D of CarGait (section 3, figure 2): training sequences as probes, each with its nearest v candidates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.distance import pairwise
from gaitsdk.errors import InputError, OptionError, TrainingError

#: What a probe's candidates are taken from.
SCOPES = ("all", "view_pair")
_PROBES = 512  # probes whose distances are held at once


@dataclass(frozen=True)
class RankedLists:
    """m probes with v candidates each, nearest first. Positions refer to the arrays that `build_lists` got.

    Every list holds at least one positive and one negative.

    Attributes:
        probes: int64 [m].
        candidates: int64 [m, v].
        positive: bool [m, v], True where the candidate is of the probe's identity.
        completed: bool [m], True where the last candidate stands in for a positive or negative from further away.
        left_out: probes whose gallery has no positive or no negative at all (or, without `complete`, whose list has).
    """

    probes: NDArray[np.int64]
    candidates: NDArray[np.int64]
    positive: NDArray[np.bool_]
    completed: NDArray[np.bool_]
    left_out: int

    def __len__(self) -> int:
        return len(self.probes)


@dataclass(frozen=True)
class ListSet:
    """Lists together with the features and identities that they refer to.

    Attributes:
        features: F [n, s, d] float32.
        labels: [n], any identity names or numbers.
        lists: from `build_lists` on the same arrays.
    """

    features: NDArray[np.float32]
    labels: NDArray[Any]
    lists: RankedLists

    @classmethod
    def build(
        cls, features: ArrayLike, labels: ArrayLike, types: ArrayLike, views: ArrayLike, **options: Any
    ) -> ListSet:
        """`build_lists(...)` and what it was built from."""
        lists = build_lists(features, labels, types, views, **options)
        return cls(np.asarray(features, np.float32), np.asarray(labels), lists)


def build_lists(
    features: ArrayLike,
    labels: ArrayLike,
    types: ArrayLike,
    views: ArrayLike,
    v: int = 30,
    *,
    scope: str = "all",
    gallery_types: Sequence[str] | None = None,
    galleries_per_probe: int = 1,
    exclude_same_walk: bool | None = None,
    complete: bool = True,
    metric: str = "euclidean",
    seed: int = 0,
) -> RankedLists:
    """Ranks the training set against itself.

    Args:
        features: F [n, s, d] float32.
        labels, types, views: [n] each.
        v: candidates per list, >= 2 (paper: 30); fewer where a gallery is smaller.
        scope: "all" = the nearest of all other sequences, as in the paper. "view_pair" = the nearest in one other view,
            drawn at random, which is what the protocols of CASIA-B and OU-MVLP rank.
        gallery_types: only sequences of these types are candidates; None = all.
        galleries_per_probe: for "view_pair": lists per probe, each with another view.
        exclude_same_walk: leave out candidates of the probe's identity and type, which in a set-up with many cameras
            show the very same walk. None = for "view_pair" only.
        complete: where none of the v nearest is of the probe's identity, the nearest one that is takes the last place
            (likewise where all are); False leaves such probes out.
        metric: of the backbone.
        seed: of the choice of views.

    Raises:
        OptionError: an unknown scope or an impossible number. InputError: sizes do not fit.
        TrainingError: no probe has both a positive and a negative.
    """
    check_lists(scope, v, galleries_per_probe)
    maps = np.asarray(features, np.float32)
    columns = [np.asarray(each) for each in (labels, types, views)]
    if any(each.shape != maps.shape[:1] for each in columns):
        raise InputError(
            "labels do not fit the features",
            where="build_lists",
            got=f"features {maps.shape}, labels, types, views {[each.shape for each in columns]}",
        )
    same_walk = scope == "view_pair" if exclude_same_walk is None else exclude_same_walk
    allowed = np.ones(len(maps), bool) if gallery_types is None else np.isin(columns[1], list(gallery_types))
    found: list[tuple[Any, ...]] = []
    asked = 0
    for probes, gallery in _galleries(scope, columns[2], allowed, galleries_per_probe, np.random.default_rng(seed)):
        entries = maps[gallery]
        for start in range(0, len(probes), _PROBES):
            part = probes[start : start + _PROBES]
            distances = pairwise(maps[part], entries, metric)
            out = part[:, None] == gallery[None]
            if same_walk:
                out |= (columns[0][part][:, None] == columns[0][gallery]) & (
                    columns[1][part][:, None] == columns[1][gallery]
                )
            distances[out] = np.inf
            same = columns[0][part][:, None] == columns[0][gallery][None]
            asked += len(part)
            found.append(_rank(part, gallery, distances, same, v, complete))
    return _join(found, asked)


def check_lists(scope: str, v: int, galleries: int = 1) -> None:
    """Refuses with OptionError what `build_lists` cannot do, whatever the data."""
    if scope not in SCOPES:
        raise OptionError("unknown scope", where="scope", got=repr(scope), expected=" or ".join(SCOPES))
    if v < 2 or galleries < 1:
        raise OptionError(
            "impossible lists",
            where="build_lists",
            got=f"v={v}, galleries_per_probe={galleries}",
            expected="v of at least 2 (a positive and a negative), galleries_per_probe of at least 1",
        )


def _galleries(
    scope: str, views: NDArray[Any], allowed: NDArray[np.bool_], per_probe: int, rng: np.random.Generator
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Groups of probes that share a gallery, and that gallery."""
    everything = np.arange(len(views))
    if scope == "all":
        yield everything, np.flatnonzero(allowed)
        return
    names = sorted(set(views[allowed].tolist()))
    members: dict[str, list[int]] = {name: [] for name in names}
    for probe in everything:
        others = [name for name in names if name != views[probe]]
        for pick in rng.permutation(len(others))[:per_probe]:
            members[others[pick]].append(int(probe))
    for name, probes in members.items():
        if probes:
            yield np.asarray(probes, np.int64), np.flatnonzero(allowed & (views == name))


def _rank(
    probes: NDArray[np.int64],
    gallery: NDArray[np.int64],
    distances: NDArray[np.float32],
    same: NDArray[np.bool_],
    v: int,
    complete: bool,
) -> tuple[Any, ...]:
    """Lists of these probes: probes, candidates, positives, completed. Excluded entries have distance infinity."""
    usable = np.isfinite(distances)
    to_positive = np.where(same, distances, np.inf)
    to_negative = np.where(same, np.inf, distances)
    kept = np.isfinite(to_positive).any(axis=1) & np.isfinite(to_negative).any(axis=1)
    probes, distances, same = probes[kept], distances[kept], same[kept]
    length = min(v, int(usable[kept].sum(axis=1).min())) if len(probes) else 0
    order = np.argsort(distances, axis=1, kind="stable")[:, :length]
    positive = np.take_along_axis(same, order, axis=1)
    completed = np.zeros(len(probes), bool)
    if not len(probes):
        return probes, order, positive, completed
    for wanted, nearest in ((True, to_positive[kept].argmin(axis=1)), (False, to_negative[kept].argmin(axis=1))):
        lacking = ~(positive == wanted).any(axis=1)
        order[lacking, -1] = nearest[lacking]
        positive[lacking, -1] = wanted
        completed |= lacking
    if not complete:
        kept = ~completed
        return probes[kept], gallery[order[kept]], positive[kept], completed[kept]
    return probes, gallery[order], positive, completed


def _join(found: list[tuple[Any, ...]], asked: int) -> RankedLists:
    found = [each for each in found if len(each[0])]
    if not found:
        raise TrainingError(
            "no probe has both a positive and a negative candidate",
            where="build_lists",
            fix="use at least two identities with several sequences each, in several views for 'view_pair'",
        )
    # Galleries of different sizes may give shorter lists: all are cut to the shortest, keeping what completes them.
    shortest = min(each[1].shape[1] for each in found)
    parts = [_shorten(each, shortest) for each in found]
    probes, candidates, positive, completed = (np.concatenate(each) for each in zip(*parts, strict=True))
    return RankedLists(probes, candidates, positive, completed, asked - len(probes))


def _shorten(lists: tuple[Any, ...], length: int) -> tuple[Any, ...]:
    probes, candidates, positive, completed = lists
    if candidates.shape[1] == length:
        return lists
    cut, hits, completed = candidates[:, :length].copy(), positive[:, :length].copy(), completed.copy()
    for wanted in (True, False):
        lacking = ~(hits == wanted).any(axis=1)
        first = (positive == wanted).argmax(axis=1)
        cut[lacking, -1] = candidates[lacking, first[lacking]]
        hits[lacking, -1] = wanted
        completed |= lacking
    return probes, cut, hits, completed
