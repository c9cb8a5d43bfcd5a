"""Graph convolution based re-ranking (GCR): Zhang, Qian, Wang, Liu, Chen, Wang, "Graph convolution based efficient
re-ranking for visual retrieval", IEEE Transactions on Multimedia 2023.

Re-ranking as a graph convolution without weights and activations: every feature of the graph of nearest neighbours
becomes a mean of its neighbours', a few times over, and distances are taken again.

    A_ij = exp(-||x_i - x_j||^2 / gamma)    where j is among the k nearest of i, or i among those of j; else 0
    S    = D^-1/2 A D^-1/2                  D_ii = sum over j of A_ij
    X    <- S X, each row divided by its length, `layers` times

for features of unit length. Everybody is a neighbour of himself (the self-loop of graph convolutions). Strips: the unit
vector is that of `unit_strips`, so there is one graph for a sequence; every strip of X gets unit length again, and the
distance is the mean over strips of the Euclidean distance between unit strips.

This is the plain method. The paper's variant for several cameras takes the camera of each entry, which a re-ranker here
is not told, and its variant for videos makes one feature of several, which a gait backbone has done already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from gaitsdk.distance import Features, pairwise
from gaitsdk.rerankers.base import Array, ParameterFree, check_option, from_probe, nearest, unit_strips
from gaitsdk.rerankers.reciprocal_graph import Indices

_ROWS = 512  # of the graph, sought at a time with scope "full"


@dataclass(frozen=True, kw_only=True)
class GraphConvolutionReranker(ParameterFree):
    """Propagates features along a graph of nearest neighbours.

    Scope "list": the graph of one list. "full": of all probes and the whole gallery, as in the paper.

    Attributes:
        k: neighbours, itself not counted.
        gamma: width of the affinity, in squared distances of unit vectors (0 to 4).
        layers: propagations.
    """

    NAME: ClassVar[str] = "gcr"

    k: int = 5
    gamma: float = 0.2
    layers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(self, "k", whole=True, low=1)
        check_option(self, "gamma", low=1e-4)
        check_option(self, "layers", whole=True, low=1, high=100)

    def _rescore(self, lists: Array) -> Array:
        count, length, strips = lists.shape[:3]
        x = unit_strips(lists)
        flat = x.reshape(count, length, -1)
        squared = 2 - 2 * (flat @ flat.swapaxes(-1, -2)) / strips
        diagonal = np.arange(length)
        squared[:, diagonal, diagonal] = 0.0
        near = nearest(squared.astype(np.float32), self.k + 1)
        affinity = np.where(near | near.swapaxes(-1, -2), np.exp(-np.maximum(squared, 0.0) / self.gamma), 0.0)
        root = np.sqrt(affinity.sum(axis=-1))
        step = affinity / root[:, :, None] / root[:, None, :]
        for _ in range(self.layers):
            x = unit_strips((step @ x.reshape(count, length, -1)).reshape(lists.shape))
        return from_probe(x)

    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        x = unit_strips(np.concatenate([probes, gallery])).astype(np.float32)
        shape = x.shape
        starts, columns, weights = self._graph(x.reshape(len(x), -1), shape[1])
        for _ in range(self.layers):
            before, after = x.reshape(len(x), -1), np.empty((shape[0], shape[1] * shape[2]), np.float32)
            for row in range(len(x)):
                mine = slice(starts[row], starts[row + 1])
                after[row] = weights[mine] @ before[columns[mine]]
            x = unit_strips(after.reshape(shape)).astype(np.float32)
        return pairwise(x[: len(probes)], x[len(probes) :])

    def _graph(self, flat: Features, strips: int) -> tuple[Indices, Indices, Features]:
        """S by rows: where each row starts, columns and values."""
        n, wanted = len(flat), min(self.k + 1, len(flat))
        found = np.empty((n, wanted), np.int64)
        for start in range(0, n, _ROWS):
            squared = -(flat[start : start + _ROWS] @ flat.T)
            mine = np.arange(len(squared))
            squared[mine, start + mine] = -np.inf
            found[start : start + _ROWS] = np.argpartition(squared, wanted - 1, axis=1)[:, :wanted]
        i, j = np.repeat(np.arange(n), wanted), found.ravel()
        edges = np.unique(np.concatenate([i * n + j, j * n + i]))  # both directions, by rows
        i, j = edges // n, edges % n
        squared_distance = np.maximum(2 - 2 * _products(flat, i, j) / strips, 0.0)
        affinity = np.exp(-np.where(i == j, 0.0, squared_distance) / self.gamma)
        root = np.sqrt(np.bincount(i, affinity, n))
        starts = np.concatenate([[0], np.cumsum(np.bincount(i, minlength=n))])
        return starts, j, (affinity / root[i] / root[j]).astype(np.float32)


def _products(flat: Features, i: Indices, j: Indices) -> NDArray[np.float64]:
    """Inner products of the rows i with the rows j, a part at a time."""
    result = np.empty(len(i), np.float64)
    for start in range(0, len(i), 1024):
        part = slice(start, start + 1024)
        result[part] = np.einsum("ed,ed->e", flat[i[part]], flat[j[part]], dtype=np.float64)
    return result
