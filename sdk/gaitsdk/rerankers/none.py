"""No re-ranking, as an object: the shortlist's own distance, so that comparisons need no special case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from gaitsdk.distance import Features, pairwise
from gaitsdk.rerankers.base import Array, ParameterFree, from_probe


@dataclass(frozen=True, kw_only=True)
class NoReranker(ParameterFree):
    """The mean-of-strips Euclidean distance again."""

    NAME: ClassVar[str] = "none"

    def _rescore(self, lists: Array) -> Array:
        return from_probe(lists)

    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        return pairwise(probes, gallery)
