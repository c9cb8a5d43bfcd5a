"""k-reciprocal encoding: Zhong, Zheng, Cao, Li, "Re-ranking person re-identification with k-reciprocal encoding",
CVPR 2017 (equation numbers are that paper's).

    N(p, k)    the k nearest of p                                                                     Eq. (2)
    R(p, k)    those of them that have p among their k nearest, too                                   Eq. (3)
    R*(p, k)   R(p, k), joined by R(q, k/2) of every q in it that shares two thirds of it             Eq. (4)
    V_p        exp(-d(p, i)) for i in R*(p, k1), else 0                                               Eq. (7)
    V_p        <- mean of V_i over i in N(p, k2): local query expansion                               Eq. (11)
    d_J(p, g)  1 - sum min(V_p, V_g) / sum max(V_p, V_g)                                              Eq. (10)
    d*         (1 - lambda) d_J + lambda d                                                            Eq. (12)

What the paper leaves open or its users do otherwise is decided by the numbers of the field (test_rerankers_parity.py):
everybody is the nearest neighbour of himself and not counted in k; d is divided by the largest distance in its row
before Eq. (7) and (12); V_p is divided by its sum; "two thirds" means more than two thirds, where Eq. (4) says at
least. Strips: d is `gaitsdk.distance`, the mean over strips; the method needs nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gaitsdk.distance import Features, pairwise
from gaitsdk.rerankers.base import Array, ParameterFree, check_option, distances_within, nearest
from gaitsdk.rerankers.reciprocal_graph import rerank_graph

_ROWS = 1024  # of the distance matrix, computed at a time with scope "full"


@dataclass(frozen=True, kw_only=True)
class KReciprocalReranker(ParameterFree):
    """k-reciprocal re-ranking.

    Scope "list": the neighbours of everybody are sought in the list. "full": in all probes and the whole gallery, as
    in the paper; other probes then change a probe's answer, and memory is 4 bytes for each pair of the n + m maps.

    Attributes:
        k1: neighbours for R*. k2: neighbours for the query expansion, the probe counted; 1 = none.
        lambda_value: weight of the original distance, 0 to 1 (lambda).
    """

    NAME: ClassVar[str] = "k-reciprocal"

    k1: int = 20
    k2: int = 6
    lambda_value: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(self, "k1", whole=True, low=1)
        check_option(self, "k2", whole=True, low=1)
        check_option(self, "lambda_value", high=1)

    def _rescore(self, lists: Array) -> Features:
        return rerank_lists(distances_within(lists), self.k1, self.k2, self.lambda_value)

    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        distances = _among(np.concatenate([probes, gallery]))
        return rerank_graph(distances, len(probes), self.k1, self.k2, self.lambda_value)


def _among(maps: Features) -> Features:
    """Distances of all to all, `[N, s, d]` -> `[N, N]` float32, half of them computed and the others mirrored."""
    result = np.empty((len(maps), len(maps)), np.float32)
    for start in range(0, len(maps), _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows, start:] = pairwise(maps[rows], maps[start:])
        result[start:, rows] = result[rows, start:].T
    np.fill_diagonal(result, 0.0)
    return result


def rerank_lists(distances: Features, k1: int, k2: int, lambda_value: float) -> Features:
    """d* of the first of each list to the others, by dense matrices: `[n, L, L]` float32 -> `[n, L - 1]` float32."""
    largest = distances.max(axis=-1, keepdims=True)
    d = distances / np.where(largest > 0, largest, 1)
    near, near_half = nearest(d, k1 + 1), nearest(d, half(k1) + 1)
    reciprocal = near & near.swapaxes(-1, -2)
    reciprocal_half = (near_half & near_half.swapaxes(-1, -2)).astype(np.float32)
    shared = reciprocal.astype(np.float32) @ reciprocal_half
    joins = reciprocal & (3 * shared > 2 * reciprocal_half.sum(axis=-1)[:, None, :])
    expanded = reciprocal | (joins.astype(np.float32) @ reciprocal_half > 0)
    v = np.where(expanded, np.exp(-d), np.float32(0))
    v /= v.sum(axis=-1, keepdims=True)
    if k2 > 1:
        neighbours = nearest(d, k2).astype(np.float32)
        v = (neighbours @ v) / neighbours.sum(axis=-1, keepdims=True)
    smaller = np.minimum(v[:, :1], v[:, 1:]).sum(axis=-1)
    larger = np.maximum(v[:, :1], v[:, 1:]).sum(axis=-1)
    result: Features = (1 - lambda_value) * (1 - smaller / larger) + lambda_value * d[:, 0, 1:]
    return result.astype(np.float32)


def half(k: int) -> int:
    """k/2 of Eq. (4), rounded to the even number where it is none."""
    return round(k / 2)
