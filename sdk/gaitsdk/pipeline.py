"""The steps around the two networks, as plain NumPy: one definition, used in-process and by Triton's models.

    sequences --batches, pad_cyclic--> backbone --> F --shortlist--> candidates --re-ranker--> decide --> Answers

Shapes: n probes, M candidates listed, K of them re-ranked (K <= M), s strips, d dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import thumbnails as thumbnail
from gaitsdk.distance import paired
from gaitsdk.errors import GalleryBehindError, GalleryError, OptionError, UnknownIdentityError

if TYPE_CHECKING:
    from gaitsdk.gallery import Gallery
    from gaitsdk.results import Evidence

Features = NDArray[np.float32]
Silhouettes = NDArray[np.uint8]

#: Sequences of a batch: the longest is at most this many times as long as the shortest.
PADDING_LIMIT = 1.25
#: Sequences in one call of the backbone. CPUs are slower per sequence with large batches (frames fall out of cache).
MAX_BATCH = 8
#: Longest list that is re-ranked: each candidate's feature map is fetched (8 KB at 16 x 128).
MAX_K = 1000
#: How often a search is repeated when entries are deleted under it.
SEARCH_AGAIN = 10


def pad_cyclic(frames: Silhouettes, length: int) -> Silhouettes:
    """Repeats `frames [T, ...]` from the start until there are `length >= T`: exact where pooling is a set maximum."""
    padded: Silhouettes = frames[np.arange(length) % len(frames)]
    return padded


def padding_limit(length_handling: str) -> float:
    """How many times as long a sequence may become by repeating frames: 1 where "alone" says that this changes the
    answer."""
    return PADDING_LIMIT if length_handling == "cyclic" else 1.0


@lru_cache(maxsize=4096)
def bucket(length: int, padding: float = PADDING_LIMIT) -> int:
    """The longest of those lengths that share a batch with `length`: one rule for this process, clients and Triton.

    It is at most `padding` times the shortest of them, to which their sequences can be padded; 1.0: every length for
    itself.
    """
    end = 1
    while end < length:
        end = max(end + 1, int(end * padding))
    return end


def batches(
    lengths: Sequence[int], max_batch: int = MAX_BATCH, padding: float = PADDING_LIMIT
) -> Iterator[NDArray[np.int64]]:
    """Yields groups of positions in `lengths`: at most `max_batch` of one `bucket`, shorter ones first. Groups depend
    on the lengths only, so answers do not depend on arrival order."""
    order = np.argsort(np.asarray(lengths), kind="stable")
    ends = [bucket(int(length), padding) for length in lengths]
    group: list[int] = []
    for position in order:
        if group and (len(group) == max_batch or ends[position] != ends[group[0]]):
            yield np.asarray(group, np.int64)
            group = []
        group.append(int(position))
    if group:
        yield np.asarray(group, np.int64)


def embed_many(
    embed: Callable[[Silhouettes], Features],
    sequences: Sequence[Silhouettes],
    max_batch: int = MAX_BATCH,
    length_handling: str = "cyclic",
) -> Features:
    """Embeds sequences of any lengths, in batches of similar length.

    Args:
        embed: `[B, T, S, S]` uint8 (`[B, T, C, S, S]` for a model of C maps) -> `[B, s, d]` float32.
        sequences: n arrays `[T_i, S, S]` uint8 (`[T_i, C, S, S]`).
        length_handling: "cyclic": shorter ones are repeated up to the longest of the batch; "alone": only sequences
            of the same length share a batch.

    Returns:
        `F [n, s, d]` float32, in the order of `sequences`.
    """
    padding = padding_limit(length_handling)
    rows: list[Features | None] = [None] * len(sequences)
    for group in batches([len(sequence) for sequence in sequences], max_batch, padding):
        longest = max(len(sequences[i]) for i in group)
        stacked = np.stack([pad_cyclic(sequences[i], longest) for i in group])
        for i, features in zip(group, embed(stacked), strict=True):
            rows[i] = features
    return np.stack([row for row in rows if row is not None])


@dataclass(frozen=True)
class Shortlist:
    """The M nearest entries of n probes by mean-of-strips distance, and the feature maps of the first K.

    Attributes:
        entry_ids: `[n, M]` int64.
        identities: `[n, M]` object (str).
        distances: `[n, M]` float32, ascending.
        features: `[n, K, s, d]` float32.
        sequence: the gallery's commit number when the search began: what was committed until then is in the answer.
    """

    entry_ids: NDArray[np.int64]
    identities: NDArray[np.object_]
    distances: Features
    features: Features
    sequence: int = 0


def shortlist(gallery: Gallery, features: Features, top_k: int, k: int) -> Shortlist:
    """Searches the gallery for what `identify(top_k)` with a re-ranking list of `k` needs: `M = max(top_k, k)`, both at
    most the gallery's size. `k = 0` means that nothing will be re-ranked."""
    for _ in range(SEARCH_AGAIN):
        try:
            return _shortlist(gallery, features, max(top_k, k), k)
        except UnknownIdentityError:
            continue  # somebody deleted an entry between the search and the reading of it
    raise GalleryError(
        "entries keep disappearing while they are being read", where="gallery", fix="search again when deletion is done"
    )


def check_reached(gallery: Gallery, min_sequence: int) -> None:
    """GalleryBehindError where the gallery has not reached commit `min_sequence`. A search that begins after this check
    takes in that commit. There is no waiting: it would hold up everybody else's searches; who asked may ask again."""
    if min_sequence and (sequence := gallery.sequence) < min_sequence:
        raise GalleryBehindError(
            "the gallery has not reached that commit",
            where="min_sequence",
            got=f"commit {sequence}",
            expected=f"{min_sequence} or later",
            fix="ask again in a moment; where an older copy of the gallery was put back, open or connect anew",
        )


def _shortlist(gallery: Gallery, features: Features, listed: int, k: int) -> Shortlist:
    sequence = gallery.sequence  # before the search, which may find more
    entry_ids, distances = gallery.search(features, listed)
    reranked = entry_ids[:, :k]
    strips, dims = features.shape[1:]
    maps = gallery.get(reranked.ravel()) if reranked.size else np.zeros((0, strips, dims), np.float32)
    return Shortlist(
        entry_ids=entry_ids,
        identities=np.array(gallery.identity_of(entry_ids.ravel()), object).reshape(entry_ids.shape),
        distances=distances,
        features=maps.reshape(*reranked.shape, strips, dims),
        sequence=sequence,
    )


def strip_distances(probe: Features, candidates: Features) -> Features:
    """Mean-of-strips Euclidean distance of `[n, s, d]` to each of `[n, K, s, d]` -> `[n, K]` float32: what stands in
    for a re-ranker's distance where there is none."""
    n, k = candidates.shape[:2]
    flat = np.ascontiguousarray(candidates, np.float32).reshape(n * k, *candidates.shape[2:])
    return paired(np.repeat(probe, k, axis=0), flat).reshape(n, k)


@dataclass(frozen=True)
class Answers:
    """What identification says of n probes; the arrays are Triton's tensors too, `m = min(top_k, gallery size)`.

    Attributes:
        entry_ids: `[n, m]` int64.
        identities: `[n, m]` object (str).
        distances: `[n, m]` float32; the re-ranker's for entries that it scored, the shortlist's beyond.
        shortlist_distances: `[n, m]` float32.
        shortlist_ranks: `[n, m]` int32, 1 = nearest before re-ranking.
        reranked: how many leading candidates carry the re-ranker's distance.
        decisions: n of "known", "unknown", "uncalibrated".
        threshold: the one used, or None.
        fingerprint: of the model that embedded the probes.
        gallery_size: entries searched.
        gallery_sequence: commit number of the gallery; what was committed until then is in the answer.
        timings_ms: stage -> milliseconds for the whole batch.
        evidence: n functions for `Identification.explain`; empty over Triton.
    """

    entry_ids: NDArray[np.int64]
    identities: NDArray[np.object_]
    distances: Features
    shortlist_distances: Features
    shortlist_ranks: NDArray[np.int32]
    reranked: int
    decisions: list[str]
    threshold: float | None
    fingerprint: str
    gallery_size: int
    gallery_sequence: int
    timings_ms: dict[str, float] = field(default_factory=dict)
    evidence: Sequence[Evidence] = ()


def decide(
    found: Shortlist,
    distances: Features | None,
    *,
    top_k: int,
    threshold: float | None,
    fingerprint: str,
    gallery_size: int,
) -> Answers:
    """Puts the first K candidates in the re-ranker's order, keeps the shortlist's order behind them, and decides.

    Args:
        found: from `shortlist`.
        distances: the re-ranker's `[n, K]`, or None where nothing was re-ranked.
        top_k: candidates to answer with.
        threshold: known means `distance of the first candidate <= threshold`; None = not calibrated.
        fingerprint: model fingerprint, handed through.
        gallery_size: number of entries, handed through.
    """
    n, listed = found.entry_ids.shape
    k = 0 if distances is None else distances.shape[1]
    order = np.tile(np.arange(listed), (n, 1))
    scores = found.distances.copy()
    if distances is not None and k:
        order[:, :k] = np.argsort(distances, axis=1, kind="stable")
        scores[:, :k] = distances
    order = order[:, :top_k]

    def take(values: NDArray[Any]) -> NDArray[Any]:
        return np.take_along_axis(values, order, axis=1)

    ranked = take(scores)
    return Answers(
        entry_ids=take(found.entry_ids),
        identities=take(found.identities),
        distances=ranked,
        shortlist_distances=take(found.distances),
        shortlist_ranks=(order + 1).astype(np.int32),
        reranked=min(k, order.shape[1]),
        decisions=[decision(float(first), threshold) for first in ranked[:, 0]],
        threshold=threshold,
        fingerprint=fingerprint,
        gallery_size=gallery_size,
        gallery_sequence=found.sequence,
    )


def decision(distance: float, threshold: float | None) -> str:
    """ "known", "unknown", or "uncalibrated" where there is no threshold."""
    if threshold is None:
        return "uncalibrated"
    return "known" if distance <= threshold else "unknown"


def enroll(gallery: Gallery, identity: str, sequences: Sequence[Silhouettes], features: Features) -> list[int]:
    """Adds one entry per sequence (`F [n, s, d]`), each with a frame for pictures; all of them or none."""
    kept = [{thumbnail.KEY: thumbnail.pack(thumbnail.frame(each))} for each in sequences]
    return [int(entry) for entry in gallery.add_many([identity] * len(features), features, kept)]


def delete(gallery: Gallery, identity: str) -> int:
    """Deletes an identity with all its entries and gives their number; UnknownIdentityError where there is none."""
    deleted = gallery.delete(identity=identity)
    if not deleted:
        raise UnknownIdentityError(
            "nobody of that name is enrolled", where="identity", got=repr(identity), fix="see identities()"
        )
    return deleted


def thumbnails(gallery: Gallery, entry_ids: Sequence[int], size: int) -> list[Silhouettes | None]:
    """The frames that `enroll` kept, `[size, size]` uint8 each."""
    return [thumbnail.unpack(gallery.metadata(entry).get(thumbnail.KEY), size) for entry in entry_ids]


def check_count(value: object, where: str, *, minimum: int = 1, maximum: int | None = None) -> int:
    """A whole number from `minimum` to `maximum`, or an OptionError that says which option it was."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, np.integer))
        or value < minimum
        or (maximum is not None and value > maximum)
    ):
        limits = f"of at least {minimum}" if maximum is None else f"from {minimum} to {maximum}"
        raise OptionError(
            "not a usable number",
            where=where,
            got=repr(value),
            expected=f"a whole number {limits}",
            fix=f"pass {where}=10, for example",
        )
    return int(value)


def check_sequence(value: object) -> int:
    """The commit that the gallery must have reached; 0 for None: any. OptionError where it is no whole number."""
    return 0 if value is None else check_count(value, "min_sequence", minimum=0)


def check_threshold(value: object) -> float | None:
    """A finite number >= 0 or None, or an OptionError."""
    if value is None:
        return None
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, np.floating, np.integer))
        or not 0 <= value < np.inf
    ):
        raise OptionError(
            "not a usable threshold",
            where="threshold",
            got=repr(value),
            expected="a distance: a finite number >= 0, or None",
            fix="leave it out to use the bundle's calibration",
        )
    return float(value)
