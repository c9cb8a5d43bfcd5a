"""decide: the final order and the decision where Triton itself runs the re-ranker, from the shortlist and its
distances. See `gaitsdk_export.triton.decision`.
"""

from __future__ import annotations

import numpy as np

from gaitsdk import pipeline
from gaitsdk_export.triton.backend import list_lengths, request_parameters, threshold_parameter
from gaitsdk_export.triton.decision import Decision


class TritonPythonModel(Decision):
    def read(self, request):
        arrays = tuple(self.require(request, name) for name in self.inputs())
        asked = request_parameters(request)
        top_k, k = list_lengths(asked, self.bundle, self.reranker, int(self.parameter("max_k")))
        size = int(self.require(request, "gallery_state")[0, 0])
        threshold = self.threshold(threshold_parameter(asked), k, size)
        return (top_k, threshold, size, *(array.shape[1] for array in arrays)), arrays

    def run(self, key, *arrays):
        top_k, threshold = key[:2]
        given = dict(zip(self.inputs(), arrays, strict=True))
        found = pipeline.Shortlist(
            entry_ids=given["candidate_ids"],
            identities=given["candidate_identity"],
            distances=given["candidate_distance"],
            features=np.zeros((len(given["candidate_ids"]), 0, self.bundle.strips, self.bundle.dims), np.float32),
        )
        return self.decided(found, given["rerank_distance"], given["gallery_state"], top_k, threshold)
