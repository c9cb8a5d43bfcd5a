"""The search index: all feature maps in memory, scanned by matrix products, exact by a proven error bound.

A `Snapshot` never changes: `append` and `remove` give a new one that shares the feature maps. So a search needs no
lock, and appending costs the new rows only (a chunk's spare rows lie beyond what older snapshots look at). Deleting
marks rows as dead; `tidied` gives their room back, a chunk at a time, so that no search waits long for it.

**Why the answer is exact.** The scan gives, per strip, `q = ||x||^2 + ||y||^2 - 2 x.y` in float32 with unit roundoff
u = 2^-24. Whatever the order of summation, a dot product of d terms is off by at most g ||x|| ||y||,
g = d u / (1 - d u); the squares (summed in float64) and the operations add at most 3 u (||x|| + ||y||)^2. Hence
`|q - true q| <= a^2` with `a = sqrt(g + 4 u) (||x|| + ||y||)`, and since |√p - √q| = |p - q| / (√p + √q) <= √|p - q|,
`|√q - true distance| <= a^2 / max(√q, a)`. The mean over strips of that, plus the rounding of the mean itself, bounds
each row's error. With k entries whose upper bound is at most T, the k-th true distance is at most T; a row whose lower
bound exceeds T is farther than all k. Every other row (k and a few) is measured again by `distance.paired`.
For cosine the bound is that of a dot product of unit vectors: g + 8 u.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import SMALLEST_NORM, Features, paired, squares

_U = 2.0**-24
_FIRST_ROWS, _MOST_ROWS, _CHUNK_BYTES = 64, 4096, 1 << 25
#: Elements of a scan's temporary (1 MB, so that it stays in cache), and of the [probes, rows] arrays of one pass.
_SCAN_ELEMENTS, _PASS_ELEMENTS = 1 << 18, 1 << 23
#: Multiplications up to which a scan keeps to one core (1 to 2 ms). BLAS gains little there, and the idle threads of
#: OpenBLAS go on spinning for some 25 ms on the core that the next network needs.
_SMALL_SCAN = 1 << 23
#: Pairs measured exactly at a time.
_PAIRS = 1024
#: A chunk is tidied when more of its rows than this, and more than the living, are dead.
_FEW_DEAD = 64

Ids = NDArray[np.int64]
#: `[strips, n, d]`, `[strips, rows, d]` -> `[strips, n, rows]`.
Multiply = Callable[[Features, Features], Features]


class _Chunk:
    """Room for a number of rows, strip-major so that each strip's rows are one contiguous matrix."""

    def __init__(self, strips: int, dims: int, rows: int) -> None:
        self.rows = rows
        self.ids = np.empty(rows, np.int64)
        self.marks = np.empty(rows, np.int64)
        self.features: Features = np.empty((strips, rows, dims), np.float32)
        self.squares: Features = np.empty((strips, rows), np.float32)
        self.norms: Features = np.empty((strips, rows), np.float32)

    def write(self, at: int, ids: Ids, marks: Ids, features: Features) -> None:
        end = at + len(ids)
        by_strip = features.transpose(1, 0, 2)
        square = squares(features).T
        self.ids[at:end], self.marks[at:end] = ids, marks
        self.features[:, at:end] = by_strip
        self.squares[:, at:end] = square
        self.norms[:, at:end] = np.sqrt(square)

    def picked(self, rows: NDArray[np.intp]) -> _Chunk:
        """A chunk of these rows alone."""
        strips, _, dims = self.features.shape
        fresh = _Chunk(strips, dims, len(rows))
        fresh.ids[:], fresh.marks[:] = self.ids[rows], self.marks[rows]
        for name in ("features", "squares", "norms"):
            np.take(getattr(self, name), rows, axis=1, out=getattr(fresh, name), mode="clip")  # "raise" copies twice
        return fresh


@dataclass(frozen=True)
class _View:
    """The first `length` rows of a chunk, `dead` of which are not `alive` (None = all are)."""

    chunk: _Chunk
    length: int
    alive: NDArray[np.bool_] | None = None
    dead: int = 0

    def grown(self, rows: int) -> _View:
        alive = None if self.alive is None else np.concatenate([self.alive, np.ones(rows, np.bool_)])
        return replace(self, length=self.length + rows, alive=alive)

    def without(self, ids: Ids) -> tuple[_View, Ids]:
        """The view with these ids dead, and the rows that died."""
        rows = np.flatnonzero(np.isin(self.chunk.ids[: self.length], ids, assume_unique=True))
        if self.alive is not None:
            rows = rows[self.alive[rows]]
        if not len(rows):
            return self, rows
        alive = np.ones(self.length, np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return replace(self, alive=alive, dead=self.dead + len(rows)), rows

    def untidy(self) -> int:
        """By how many rows the dead exceed what may stay."""
        return self.dead - max(_FEW_DEAD, self.length - self.dead)

    def tidied(self) -> _View:
        living = np.arange(self.length) if self.alive is None else np.flatnonzero(self.alive)
        return _View(self.chunk.picked(living), len(living))


@dataclass(frozen=True)
class Snapshot:
    """One state of the gallery.

    Attributes:
        strips, dims: of a feature map.
        metric: "euclidean" or "cosine".
        count: living entries.
        digest: sum of the living entries' marks (checksums), to compare with the store's own sum.
        last_id: highest entry id ever appended.
    """

    strips: int
    dims: int
    metric: str
    count: int = 0
    digest: int = 0
    last_id: int = 0
    views: tuple[_View, ...] = field(default=(), repr=False)

    def append(self, ids: Ids, marks: Ids, features: Features) -> Snapshot:
        """With m more entries; ids ascend and exceed `last_id`. Only ever called on the newest snapshot."""
        views, at = list(self.views), 0
        while at < len(ids):
            if not views or views[-1].length == views[-1].chunk.rows:
                views.append(_View(self._new_chunk(views[-1].chunk.rows if views else 0, len(ids) - at), 0))
            last = views[-1]
            rows = min(last.chunk.rows - last.length, len(ids) - at)
            part = slice(at, at + rows)
            last.chunk.write(last.length, ids[part], marks[part], features[part])
            views[-1] = last.grown(rows)
            at += rows
        if not len(ids):
            return self
        return replace(
            self,
            views=tuple(views),
            count=self.count + len(ids),
            digest=self.digest + int(marks.sum()),
            last_id=int(ids[-1]),
        )

    def remove(self, ids: Ids) -> Snapshot:
        """Without these entries; ids that it does not hold are ignored."""
        views, died, marks = [], 0, 0
        for view in self.views:
            kept, rows = view.without(ids)
            views.append(kept)
            died += len(rows)
            marks += int(view.chunk.marks[rows].sum())
        if not died:
            return self
        return replace(self, views=tuple(views), count=self.count - died, digest=self.digest - marks)

    def tidied(self) -> Snapshot:
        """The same entries without the dead rows of the untidiest chunk; itself where there is little to gain."""
        worst = max(self.views, key=_View.untidy, default=None)
        if worst is None or worst.untidy() <= 0:
            return self
        views = (view.tidied() if view is worst else view for view in self.views)
        return replace(self, views=tuple(view for view in views if view.length))

    def search(self, probes: Features, k: int) -> tuple[Ids, Features]:
        """Ids `[n, k]` int64 and distances `[n, k]` float32, by distance, then id; `1 <= k <= count`."""
        ids = np.empty((len(probes), k), np.int64)
        distances = np.empty((len(probes), k), np.float32)
        rows = sum(view.length for view in self.views)
        step = max(1, min(64, _PASS_ELEMENTS // rows))
        for i in range(0, len(probes), step):
            part = slice(i, i + step)
            ids[part], distances[part] = self._pass(probes[part], k)
        return ids, distances

    def _pass(self, probes: Features, k: int) -> tuple[Ids, Features]:
        n = len(probes)
        size = probes.size * sum(view.length for view in self.views)
        multiply = _on_one_core if size <= _SMALL_SCAN else _by_blas
        scans = [_scan(view, probes, self.metric, multiply) for view in self.views]
        nearest = np.concatenate([low for low, _ in scans], axis=1)
        farthest = np.concatenate([high for _, high in scans], axis=1)
        limit = np.partition(farthest, k - 1, axis=1)[:, k - 1]
        of_probe, rows = np.nonzero(nearest <= limit[:, None])
        exact = self._measure(probes, of_probe, rows)
        row_ids = np.concatenate([view.chunk.ids[: view.length] for view in self.views])
        ids, distances = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
        ends = np.searchsorted(of_probe, np.arange(n + 1))
        for probe in range(n):
            part = slice(ends[probe], ends[probe + 1])
            # Rows ascend by entry id, so a stable sort breaks ties by it.
            order = np.argsort(exact[part], kind="stable")[:k]
            distances[probe] = exact[part][order]
            ids[probe] = row_ids[rows[part][order]]
        return ids, distances

    def _measure(self, probes: Features, of_probe: NDArray[np.intp], rows: NDArray[np.intp]) -> Features:
        """Exact distances of pairs (probe, row over all views)."""
        starts = np.cumsum([0] + [view.length for view in self.views])
        exact = np.empty(len(rows), np.float32)
        for i in range(0, len(rows), _PAIRS):
            block = rows[i : i + _PAIRS]
            maps = np.empty((len(block), self.strips, self.dims), np.float32)
            home = np.searchsorted(starts, block, side="right") - 1
            for number in np.unique(home):
                here = home == number
                features = self.views[number].chunk.features
                maps[here] = features[:, block[here] - starts[number]].transpose(1, 0, 2)
            exact[i : i + _PAIRS] = paired(probes[of_probe[i : i + _PAIRS]], maps, self.metric)
        return exact

    def _new_chunk(self, previous: int, wanted: int) -> _Chunk:
        """Twice the previous one or what is wanted, within limits: few chunks, and little spare room in small
        galleries."""
        most = max(_FIRST_ROWS, min(_MOST_ROWS, _CHUNK_BYTES // (4 * self.strips * self.dims)))
        return _Chunk(self.strips, self.dims, min(most, max(_FIRST_ROWS, 2 * previous, wanted)))


def _scan(view: _View, probes: Features, metric: str, multiply: Multiply) -> tuple[Features, Features]:
    """Lower and upper bounds `[n, rows]` of the distances of n probes to a view's rows; NaN and infinite for dead
    rows."""
    by_strip = np.ascontiguousarray(probes.transpose(1, 0, 2))
    distances, errors = (_scan_euclidean if metric == "euclidean" else _scan_cosine)(view, by_strip, multiply)
    strips = len(by_strip)
    # 1 % for the rounding of the bound itself; s + 16 roundings for the sum over strips, the division and the result.
    errors *= np.float32(1.01)
    errors += distances * np.float32((strips + 16) * _U)
    low, high = distances - errors, distances + errors
    if view.alive is not None:
        dead = ~view.alive
        high[:, dead] = np.inf
        # NaN is below no limit: a dead row is never a candidate.
        low[:, dead] = np.nan
    return low, high


def _blocks(view: _View, probes: Features) -> list[slice]:
    """Runs of strips whose temporary fits the cache."""
    strips, n, _ = probes.shape
    step = max(1, _SCAN_ELEMENTS // (n * view.length))
    return [slice(i, i + step) for i in range(0, strips, step)]


def _products(view: _View, probes: Features, strips: slice, multiply: Multiply) -> Features:
    """`[strips, n, rows]` dot products."""
    return multiply(probes[strips], view.chunk.features[strips, : view.length])


def _by_blas(probes: Features, rows: Features) -> Features:
    products: Features = np.matmul(probes, rows.transpose(0, 2, 1))
    return products


def _on_one_core(probes: Features, rows: Features) -> Features:
    products: Features = np.einsum("snd,srd->snr", probes, rows)
    return products


def _scan_euclidean(view: _View, probes: Features, multiply: Multiply) -> tuple[Features, Features]:
    strips, n, dims = probes.shape
    gamma = dims * _U / (1.0 - dims * _U)
    scale = np.float32(np.sqrt(gamma + 4.0 * _U))
    square = squares(probes)
    probe_square = square.astype(np.float32)[..., None]
    # The summand keeps the quotient below defined, and covers products too small for float32.
    probe_norm = (np.sqrt(square).astype(np.float32) * scale + np.float32(1e-18))[..., None]
    doubled = probes * np.float32(-2.0)  # exact, and n x d elements instead of n x rows
    total, error = np.zeros((n, view.length), np.float32), np.zeros((n, view.length), np.float32)
    for part in _blocks(view, probes):
        root = _products(view, doubled, part, multiply)
        root += probe_square[part] + view.chunk.squares[part, None, : view.length]
        np.sqrt(np.maximum(root, 0.0, out=root), out=root)
        bound = probe_norm[part] + (view.chunk.norms[part, : view.length] * scale)[:, None]
        total += root.sum(axis=0)
        np.maximum(root, bound, out=root)
        bound *= bound
        bound /= root
        error += bound.sum(axis=0)
    total /= np.float32(strips)
    error /= np.float32(strips)
    return total, error


def _scan_cosine(view: _View, probes: Features, multiply: Multiply) -> tuple[Features, Features]:
    strips, n, dims = probes.shape
    inverse = (1.0 / np.maximum(np.sqrt(squares(probes)), SMALLEST_NORM)).astype(np.float32)[..., None]
    total = np.zeros((n, view.length), np.float32)
    for part in _blocks(view, probes):
        similarity = _products(view, probes, part, multiply)
        similarity *= inverse[part]
        similarity /= np.maximum(view.chunk.norms[part, None, : view.length], np.float32(SMALLEST_NORM))
        total += similarity.sum(axis=0)
    distances = np.float32(1.0) - total / np.float32(strips)
    bound = dims * _U / (1.0 - dims * _U) + 8.0 * _U + (strips + 16) * _U
    return distances, np.full_like(distances, bound)
