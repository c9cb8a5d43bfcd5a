"""rerank: features [B, s, d] and candidate_features [B, K, s, d] -> the re-ranker's distances [B, K] float32. For those
who ask it by itself: `identify` re-ranks in `shortlist`, which has the candidates' maps.
"""

from __future__ import annotations

import numpy as np

from gaitsdk.rerankers import create_reranker
from gaitsdk_export.triton.backend import Batched


class TritonPythonModel(Batched):
    def open(self):
        self.rescorer = create_reranker(self.reranker, self.bundle, self.settings.open_networks(self.bundle))

    def read(self, request):
        probe, candidates = self.require(request, "features"), self.require(request, "candidate_features")
        return candidates.shape[1], (probe, candidates)

    def run(self, _, probe, candidates):
        return {"rerank_distance": np.ascontiguousarray(self.rescorer.rescore(probe, candidates), np.float32)}
