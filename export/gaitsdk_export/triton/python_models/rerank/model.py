"""rerank: features [B, s, d] and candidate_features [B, K, s, d] -> the re-ranker's distances [B, K] float32. With what
else `shortlist` gives it ends the identification, too (`gaitsdk_export.triton.decision`): a step of its own would cost
a walk through one more process.
"""

from __future__ import annotations

import numpy as np

from gaitsdk.rerankers import create_reranker
from gaitsdk_export.triton.decision import Decision


class TritonPythonModel(Decision):
    def open(self):
        super().open()
        self.rescorer = create_reranker(self.reranker, self.bundle, self.settings.open_networks(self.bundle))

    def read(self, request):
        if self.array(request, "candidate_ids") is not None:
            return super().read(request)
        probe, candidates = self.require(request, "features"), self.require(request, "candidate_features")
        return candidates.shape[1], (probe, candidates)

    def run(self, key, *arrays):
        if isinstance(key, tuple):
            return super().run(key, *arrays)
        return {"rerank_distance": self.rescored(dict(zip(("features", "candidate_features"), arrays, strict=True)))}

    def record(self, request, outputs):
        if "decision" in outputs:
            super().record(request, outputs)

    def rescored(self, given):
        return np.ascontiguousarray(self.rescorer.rescore(given["features"], given["candidate_features"]), np.float32)
