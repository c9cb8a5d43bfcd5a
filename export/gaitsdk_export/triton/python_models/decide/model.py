"""decide: the final order and the decision, from the shortlist and, where Triton itself runs the re-ranker, its
distances. See `gaitsdk_export.triton.decision`.
"""

from __future__ import annotations

from gaitsdk_export.triton.decision import Decision


class TritonPythonModel(Decision):
    def rescored(self, given):
        return given.get("rerank_distance")
