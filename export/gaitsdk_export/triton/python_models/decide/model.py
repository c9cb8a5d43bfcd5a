"""decide: the final order and the decision, from the shortlist and, where there is one, the re-ranker's distances.

Request parameters: `top_k` and `k` as in shortlist, `threshold` (default: the bundle's calibration), `canary` (a health
check: audited and logged like any other, but not counted).
"""

from __future__ import annotations

import numpy as np

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk_export.triton.backend import (
    Batched,
    asked_by,
    list_lengths,
    request_parameters,
    threshold_parameter,
    to_bytes,
)


class TritonPythonModel(Batched):
    def open(self):
        for decision in ("known", "unknown", "uncalibrated"):
            self.metrics.declare("gaitsdk_decisions_total", decision=decision)
        self.metrics.declare("gaitsdk_rerank_changes_total")

    def read(self, request):
        arrays = tuple(self.require(request, name) for name in self.inputs())
        asked = request_parameters(request)
        top_k, k = list_lengths(asked, self.bundle, self.reranker, int(self.parameter("max_k")))
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
            "gallery_sequence": given["gallery_sequence"],
            "margin": margins(found),
        }

    def record(self, request, outputs):
        decisions = [each.decode() for each in outputs["decision"][:, 0]]
        who, canary = asked_by(request), bool(request_parameters(request).get("canary")) or None
        state = {name: int(outputs[name][0, 0]) for name in ("gallery_size", "gallery_sequence")}
        about = {**self.answering(), **who, **state, "event": "identify", "outcome": "done", "canary": canary}
        firsts = zip(outputs["identity"][:, 0], outputs["entry_id"][:, 0], decisions, strict=True)
        self.audit.write(
            [
                {**about, "identity": identity.decode(errors="replace"), "entries": [int(entry)], "decision": decision}
                for identity, entry, decision in firsts
            ]
        )
        counts = {decision: decisions.count(decision) for decision in sorted(set(decisions))}
        self.events.write("identified", **who, **counts, **state, canary=canary, ms=self.elapsed_ms())
        for decision, count in counts.items():
            self.metrics.add("gaitsdk_decisions_total", 0 if canary else count, decision=decision)
        if canary:
            return
        if changed := int((outputs["shortlist_rank"][:, 0] != 1).sum()):
            self.metrics.add("gaitsdk_rerank_changes_total", changed)
        for margin in outputs["margin"][np.isfinite(outputs["margin"])]:
            self.metrics.observe("gaitsdk_shortlist_margin_ratio", float(margin))


def margins(found):
    """How much nearer the first identity of each shortlist is than the second, `[n]`: 1 - first / second distance. NaN
    where all candidates are of one identity."""
    others = found.identities != found.identities[:, :1]
    second = np.where(others.any(1), found.distances[np.arange(len(others)), others.argmax(1)], np.nan)
    return (second - found.distances[:, 0]) / np.maximum(second, np.finfo(np.float32).tiny)
