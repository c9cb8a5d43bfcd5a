"""Ranking arithmetic: who is found at which rank, and how good a ranked list is.

Everything here starts from `matches [n, m]`: row i is probe i's list, nearest first, True where the entry is of the
probe's identity. `rank` and `match` make it from distances. `excluded [n, m]`, in the same order as `matches`, marks
entries that do not count for a probe (its own view, its own sequence): they take no rank, as if they were not there.

Ties: equal distances keep the gallery's order (stable sort), so a list never depends on the sorting method.
Fractions are in 0..1, not percent.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gaitsdk.errors import InputError, OptionError

Matches = NDArray[np.bool_]


def rank(distances: ArrayLike) -> NDArray[np.int64]:
    """Order of the gallery for each probe, nearest first; equal distances in the gallery's order.

    Args:
        distances: `[n, m]`, lower is nearer.

    Returns:
        int64 `[n, m]`, positions in the gallery.

    Raises:
        InputError: not two-dimensional, or NaN (which has no rank).
    """
    values = np.asarray(distances)
    if values.ndim != 2:
        raise InputError("wrong rank", where="distances", got=f"shape {list(values.shape)}", expected="[n, m]")
    if np.isnan(values).any():
        raise InputError("NaN has no rank", where="distances", got=f"{int(np.isnan(values).sum())} NaN")
    return np.argsort(values, axis=1, kind="stable")


def match(order: ArrayLike, probe_labels: ArrayLike, gallery_labels: ArrayLike) -> Matches:
    """Which entries of each ranked list are of the probe's identity.

    Args:
        order: int `[n, m]`, positions in the gallery, nearest first.
        probe_labels: `[n]`.
        gallery_labels: `[g]`.

    Returns:
        bool `[n, m]`.

    Raises:
        InputError: shapes do not fit, or a position lies outside the gallery.
    """
    positions, probes, gallery = np.asarray(order), np.asarray(probe_labels), np.asarray(gallery_labels)
    if positions.ndim != 2 or probes.shape != positions.shape[:1] or gallery.ndim != 1:
        got = f"order {list(positions.shape)}, probes {list(probes.shape)}, gallery {list(gallery.shape)}"
        raise InputError("shapes do not fit", where="match", got=got, expected="[n, m], [n] and [g]")
    if positions.size and not (positions.min() >= 0 and positions.max() < len(gallery)):
        got = f"{positions.min()}..{positions.max()}"
        raise InputError("a position outside the gallery", where="order", got=got, expected=f"0..{len(gallery) - 1}")
    matches: Matches = gallery[positions] == probes[:, None]
    return matches


def first_match(matches: ArrayLike, excluded: ArrayLike | None = None) -> NDArray[np.int64]:
    """Rank (from 1) of each probe's first match; 0 where there is none.

    Args:
        matches: bool `[n, m]`, nearest first.
        excluded: bool `[n, m]` in the same order, or None.

    Returns:
        int64 `[n]`.
    """
    hits, ranks = _ranked(matches, excluded)
    if not hits.shape[1]:
        return np.zeros(len(hits), np.int64)
    first = hits.argmax(axis=1)[:, None]
    found: NDArray[np.int64] = np.where(
        np.take_along_axis(hits, first, 1), np.take_along_axis(ranks, first, 1), 0
    ).ravel()
    return found


def rank_k(matches: ArrayLike, k: int, excluded: ArrayLike | None = None) -> Matches:
    """Whether each probe has a match among its first k entries. A probe without any match is a miss.

    Args:
        matches, excluded: as in `first_match`.
        k: >= 1; may exceed the length of the list.

    Returns:
        bool `[n]`; its mean is the rank-k accuracy.
    """
    found = first_match(matches, excluded)
    hit: Matches = (found > 0) & (found <= _count(k, "k"))
    return hit


def cmc(matches: ArrayLike, length: int, excluded: ArrayLike | None = None) -> NDArray[np.float64]:
    """Cumulative match characteristic: element r - 1 is the rank-r accuracy over all probes.

    Args:
        matches, excluded: as in `first_match`; at least one probe.
        length: ranks to give, >= 1.

    Returns:
        float64 `[length]`, never falling.
    """
    found = first_match(matches, excluded)
    if not len(found):
        raise InputError("no probes", where="matches", got="shape [0, m]", expected="at least one probe")
    counts = np.bincount(found, minlength=_count(length, "length") + 1)[1 : length + 1]
    curve: NDArray[np.float64] = np.cumsum(counts) / len(found)
    return curve


def average_precision(matches: ArrayLike, excluded: ArrayLike | None = None) -> NDArray[np.float64]:
    """Average precision per probe, not interpolated: the mean, over its matches, of the share of matches among the
    entries up to and including that one.

    Args:
        matches, excluded: as in `first_match`.

    Returns:
        float64 `[n]`, in 0..1; NaN for a probe without a match (the mean over the others is mAP).
    """
    hits, ranks = _ranked(matches, excluded)
    precision = np.divide(np.cumsum(hits, axis=1), ranks, where=hits, out=np.zeros(hits.shape))
    return _share(precision.sum(axis=1), hits.sum(axis=1))


def inverse_negative_penalty(matches: ArrayLike, excluded: ArrayLike | None = None) -> NDArray[np.float64]:
    """INP per probe: number of matches / rank of the last (hardest) match.

    Args:
        matches, excluded: as in `first_match`.

    Returns:
        float64 `[n]`, in 0..1; NaN for a probe without a match (the mean over the others is mINP).
    """
    hits, ranks = _ranked(matches, excluded)
    hardest = np.where(hits, ranks, 0).max(axis=1, initial=0)
    return _share(hits.sum(axis=1).astype(np.float64), hardest)


def _ranked(matches: ArrayLike, excluded: ArrayLike | None) -> tuple[Matches, NDArray[np.int64]]:
    """Matches that count, and the rank (from 1) that each entry has among those that are not excluded."""
    hits = np.asarray(matches)
    if hits.ndim != 2 or hits.dtype != np.bool_:
        raise InputError(
            "not a list of matches", where="matches", got=f"{hits.dtype} {list(hits.shape)}", expected="bool [n, m]"
        )
    if excluded is None:
        return hits, np.broadcast_to(np.arange(1, hits.shape[1] + 1), hits.shape)
    out = np.asarray(excluded)
    if out.shape != hits.shape or out.dtype != np.bool_:
        got = f"{out.dtype} {list(out.shape)}"
        raise InputError("does not fit the matches", where="excluded", got=got, expected=f"bool {list(hits.shape)}")
    return hits & ~out, np.cumsum(~out, axis=1)


def _share(part: NDArray[np.float64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(part, whole, where=whole > 0, out=np.full(len(part), np.nan))


def _count(value: int, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise OptionError("not a count", where=where, got=repr(value), expected="an integer >= 1")
    return int(value)
