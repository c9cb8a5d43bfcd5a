"""k-reciprocal encoding of a whole gallery (`k_reciprocal` says what it computes): neighbour lists and sparse rows
instead of N x N matrices, a block of rows at a time.

Shapes: N = n probes and m gallery entries, the probes first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import Features

#: Elements of one dense block of rows (float64: 64 MB).
_BLOCK = 1 << 23

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class SparseRows:
    """N rows of N columns; row i has `values[starts[i]:starts[i + 1]]` at the ascending `columns` of the same slice."""

    starts: Indices
    columns: Indices
    values: Features

    @classmethod
    def join(cls, blocks: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]) -> SparseRows:
        """From blocks of rows: (how many each row holds, their columns, their values)."""
        lengths, columns, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
        return cls(np.concatenate([[0], np.cumsum(lengths)]), columns, values)

    def rows(self, chosen: Indices) -> tuple[Indices, Indices, Features]:
        """(position in `chosen`, column, value) of all that these rows hold."""
        lengths = self.starts[chosen + 1] - self.starts[chosen]
        owner = np.repeat(np.arange(len(chosen)), lengths)
        first = np.repeat(self.starts[chosen] - np.cumsum(lengths) + lengths, lengths)
        places = first + np.arange(len(owner))
        return owner, self.columns[places], self.values[places]


def rerank_graph(distances: Features, probes: int, k1: int, k2: int, lambda_value: float) -> Features:
    """d* of the first `probes` rows to the others.

    Equal distances count in the order of the rows here, so that neighbour lists stay short whatever comes.

    Args:
        distances: `[N, N]` float32, symmetric, 0 on the diagonal; overwritten.
        probes: n.

    Returns:
        `[n, N - n]` float32.
    """
    count = len(distances)
    largest = distances.max(axis=1, keepdims=True)
    distances /= np.where(largest > 0, largest, 1)
    order = nearest_of_each(distances, max(k1 + 1, k2))
    v = _encode(distances, order[:, : k1 + 1], order[:, : round(k1 / 2) + 1])
    if k2 > 1:
        v = _expand(v, order[:, :k2])
    result = _jaccard(v, probes, count)
    result *= 1 - lambda_value
    result += lambda_value * distances[:probes, probes:]
    return result


def nearest_of_each(distances: Features, count: int) -> Indices:
    """The `count` nearest of every row, itself first, then by (distance, position): `[N, N]` -> int64 `[N, count]`."""
    n = len(distances)
    count = min(count, n)
    result = np.empty((n, count), np.int64)
    for start in range(0, n, step := max(1, _BLOCK // n)):
        block = distances[start : start + step].copy()
        mine = np.arange(len(block))
        block[mine, start + mine] = -1.0
        found = np.argpartition(block, count - 1, axis=1)[:, :count]
        last = block[mine, found[:, -1]]
        found.sort(axis=1)
        # Which of several equally far ones a partition takes is chance.
        for row in np.flatnonzero(np.count_nonzero(block <= last[:, None], axis=1) > count):
            found[row] = np.sort(np.argsort(block[row], kind="stable")[:count])
        by_distance = np.argsort(np.take_along_axis(block, found, axis=1), axis=1, kind="stable")
        result[start : start + step] = np.take_along_axis(found, by_distance, axis=1)
    return result


def _reciprocal(order: Indices) -> NDArray[np.bool_]:
    """Which neighbours have the row among theirs, too: `[N, k]` -> bool `[N, k]`."""
    n, k = order.shape
    result = np.empty((n, k), bool)
    for start in range(0, n, step := max(1, _BLOCK // (k * k))):
        block = order[start : start + step]
        mine = np.arange(start, start + len(block))[:, None, None]
        result[start : start + step] = (order[block] == mine).any(axis=2)
    return result


def _encode(distances: Features, order: Indices, order_half: Indices) -> SparseRows:
    """V of Eq. (7), each row divided by its sum."""
    n, k = order.shape
    mutual, mutual_half = _reciprocal(order), _reciprocal(order_half)
    sizes = mutual_half.sum(axis=1)
    blocks = []
    for start in range(0, n, step := max(1, _BLOCK // max(n, k * order_half.shape[1]))):
        own, is_own = order[start : start + step], mutual[start : start + step]
        row = np.arange(len(own))
        member = np.zeros((len(own), n), bool)
        member[np.nonzero(is_own)[0], own[is_own]] = True
        theirs, is_theirs = order_half[own], mutual_half[own]  # [rows, k, k/2]: R(q, k/2) of every neighbour q
        shared = (member[row[:, None, None], theirs] & is_theirs).sum(axis=2)
        joined = (is_own & (3 * shared > 2 * sizes[own]))[..., None] & is_theirs
        member[np.nonzero(joined)[0], theirs[joined]] = True
        rows, columns = np.nonzero(member)
        weights = np.exp(-distances[start + rows, columns])
        weights /= np.bincount(rows, weights, len(own)).astype(np.float32)[rows]
        blocks.append((member.sum(axis=1), columns, weights))
    return SparseRows.join(blocks)


def _expand(v: SparseRows, order: Indices) -> SparseRows:
    """The mean of V over the neighbours, Eq. (11)."""
    n, k = order.shape
    blocks = []
    for start in range(0, n, step := max(1, _BLOCK // n)):
        chosen = order[start : start + step]
        owner, columns, values = v.rows(chosen.ravel())
        summed = np.bincount(owner // k * n + columns, values, len(chosen) * n).reshape(len(chosen), n)
        rows, columns = np.nonzero(summed)
        means = (summed[rows, columns] / k).astype(np.float32)
        blocks.append((np.bincount(rows, minlength=len(chosen)), columns, means))
    return SparseRows.join(blocks)


def _jaccard(v: SparseRows, probes: int, count: int) -> Features:
    """d_J of Eq. (10), `[n, N - n]`. Only entries that share a column with the probe are touched: by column, the
    gallery's values lie together."""
    owner = np.repeat(np.arange(count), np.diff(v.starts))
    sums = np.bincount(owner, v.values, count)
    in_gallery = owner >= probes
    by_column = np.argsort(v.columns[in_gallery], kind="stable")
    columns = v.columns[in_gallery][by_column]
    inverted = SparseRows(
        np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=count))]),
        owner[in_gallery][by_column] - probes,
        v.values[in_gallery][by_column],
    )
    result = np.ones((probes, count - probes), np.float32)
    for probe in range(probes):
        mine = slice(v.starts[probe], v.starts[probe + 1])
        place, entries, values = inverted.rows(v.columns[mine])
        smaller = np.bincount(entries, np.minimum(v.values[mine][place], values), count - probes)
        result[probe] -= (smaller / (sums[probe] + sums[probes:] - smaller)).astype(np.float32)
    return result
