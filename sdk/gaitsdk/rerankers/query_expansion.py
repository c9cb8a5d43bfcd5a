"""Query expansion with weights (alpha-QE): Radenovic, Tolias, Chum, "Fine-tuning CNN image retrieval with no human
annotation", TPAMI 2019; alpha = 0 is the plain average of Chum et al. 2007.

    q' = q + sum over the n nearest x of (q . x)^alpha x,  divided by its length;  then distances to q'

for features of unit length. The candidates stay what they are. Strips: unit strips, q . x is the mean over strips of
the cosines (below 0 counts as 0), one weight for all strips of an entry, every strip of q' gets unit length again, and
the distance is the mean over strips of the Euclidean distance between unit strips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gaitsdk.distance import Features, pairwise
from gaitsdk.rerankers.base import Array, ParameterFree, check_option, from_probe, nearest, unit_strips

_ROWS = 64  # probes expanded at a time with scope "full"


@dataclass(frozen=True, kw_only=True)
class QueryExpansionReranker(ParameterFree):
    """Moves the probe towards its nearest entries.

    Scope "list" finds them among the candidates, "full" in the gallery: the same as long as the list holds n.

    Attributes:
        n: how many; the paper's 50 are for landmarks with hundreds of pictures, a person has few entries.
        alpha: the paper's 3; the larger, the less the farther ones weigh.
    """

    NAME: ClassVar[str] = "query-expansion"

    n: int = 3
    alpha: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(self, "n", whole=True, low=1)
        check_option(self, "alpha")

    def _rescore(self, lists: Array) -> Array:
        unit = unit_strips(lists)
        probe, others = unit[:, :1], unit[:, 1:]
        weights = self._weights(np.einsum("nksd,nosd->nk", others, probe) / lists.shape[2])
        unit[:, :1] = unit_strips(probe + np.einsum("nk,nksd->nsd", weights, others)[:, None])
        return from_probe(unit)

    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        query, entries = unit_strips(probes), unit_strips(gallery)
        cosines = 1 - pairwise(probes, gallery, "cosine").astype(np.float64)
        flat = entries.reshape(len(entries), -1)
        for start in range(0, len(query), _ROWS):
            rows = slice(start, start + _ROWS)
            query[rows] = query[rows] + (self._weights(cosines[rows]) @ flat).reshape(query[rows].shape)
        return pairwise(unit_strips(query).astype(np.float32), entries.astype(np.float32))

    def _weights(self, cosines: Array) -> Array:
        """`[n, K]`: (q . x)^alpha of the nearest, 0 elsewhere."""
        powers = np.power(np.maximum(cosines, 0.0), self.alpha)
        return np.where(nearest(-cosines, self.n), powers, 0.0)
