"""decide: the final order and the decision, from the shortlist and, where there is one, the re-ranker's distances.

Request parameters: `top_k` and `k` as in shortlist, `threshold` (default: the bundle's calibration).
"""

from __future__ import annotations

import numpy as np

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk_export.triton.backend import Batched, list_lengths, request_parameters, threshold_parameter, to_bytes


class TritonPythonModel(Batched):
    def open(self):
        """Needs nothing."""

    def read(self, request):
        arrays = tuple(self.require(request, name) for name in self.inputs())
        asked = request_parameters(request)
        top_k, k = list_lengths(asked, self.bundle, self.reranker)
        size = int(self.require(request, "gallery_size").ravel()[0])
        threshold = threshold_parameter(asked)
        if threshold is None:
            threshold = threshold_for(
                self.bundle.manifest.calibration,
                task="identify",
                reranker=self.reranker,
                k=k,
                gallery_size=size,
            )
        return (top_k, threshold, size, *(array.shape[1] for array in arrays)), arrays

    def run(self, key, *arrays):
        top_k, threshold, size = key[:3]
        given = dict(zip(self.inputs(), arrays, strict=True))
        found = pipeline.Shortlist(
            entry_ids=given["candidate_ids"],
            identities=given["candidate_identity"],
            distances=given["shortlist_distance"],
            features=np.zeros((len(given["candidate_ids"]), 0, self.bundle.strips, self.bundle.dims), np.float32),
        )
        answers = pipeline.decide(
            found,
            given.get("rerank_distance"),
            top_k=top_k,
            threshold=threshold,
            fingerprint=self.bundle.fingerprint,
            gallery_size=size,
        )
        n = len(answers.entry_ids)
        return {
            "entry_id": np.ascontiguousarray(answers.entry_ids),
            "identity": to_bytes(answers.identities),
            "distance": np.ascontiguousarray(answers.distances),
            "shortlist_distance": np.ascontiguousarray(answers.shortlist_distances),
            "shortlist_rank": np.ascontiguousarray(answers.shortlist_ranks),
            "decision": to_bytes(answers.decisions).reshape(n, 1),
            "fingerprint": to_bytes([[answers.fingerprint]] * n),
            "threshold": np.full((n, 1), np.nan if threshold is None else threshold, np.float64),
            "reranked": np.full((n, 1), answers.reranked, np.int32),
            "gallery_size": np.full((n, 1), size, np.int64),
        }
