"""Local blurring re-ranking (LBR): the post-processing of Luo, Chen, Wang, Zhang, "Spectral feature transformation for
person re-identification", ICCV 2019. Its module for training is not here.

The probe and its first n candidates are a graph, and each feature becomes the mean of all, weighed by one step of a
random walk on it:

    w_ij = exp(cos(x_i, x_j) / sigma)       affinity
    T    = w divided by its rows' sums      (a softmax over the list)
    X'   = T X                              then distances again

Strips: one graph for a sequence and not one for each strip, since who belongs together is asked of the person; cos is
the mean over strips of the cosines. T moves all strips alike, and the distance of X' is `gaitsdk.distance`, the mean
over strips, where the paper takes the cosine again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gaitsdk.distance import Features, pairwise
from gaitsdk.rerankers.base import Array, ParameterFree, check_option, from_probe, unit_strips


@dataclass(frozen=True, kw_only=True)
class LocalBlurringReranker(ParameterFree):
    """Blurs the features of a list along its affinity graph.

    The method is local: scope "full" seeks the n nearest of each probe in the gallery and re-orders these; the others
    stay behind them, in their order.

    Attributes:
        sigma: temperature of the affinity; a large one makes all features of a list equal.
        n: length of the list with scope "full".
    """

    NAME: ClassVar[str] = "lbr"

    sigma: float = 0.02
    n: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option(self, "sigma", low=1e-4)
        check_option(self, "n", whole=True, low=1)

    def _rescore(self, lists: Array) -> Array:
        count, length = lists.shape[:2]
        unit = unit_strips(lists).reshape(count, length, -1)
        cosines = unit @ unit.swapaxes(-1, -2) / lists.shape[2]
        # The largest cosine of a row is its own; without it the exponential could overflow.
        walk = np.exp((cosines - cosines.max(axis=-1, keepdims=True)) / self.sigma)
        walk /= walk.sum(axis=-1, keepdims=True)
        return from_probe((walk @ lists.reshape(count, length, -1)).reshape(lists.shape))

    def _rescore_all(self, probes: Features, gallery: Features) -> Features:
        result = pairwise(probes, gallery)
        count = min(self.n, len(gallery))
        for row, distances in enumerate(result):
            first = np.argsort(distances, kind="stable")[:count]
            again = self.rescore(probes[row, None], gallery[first][None])[0]
            # What is not in the list comes behind it.
            behind = np.nextafter(again.max(), np.float32(np.inf))
            distances += max(np.float32(0), behind - distances[first[-1]])
            np.maximum(distances, behind, out=distances)
            distances[first] = again
        return result
