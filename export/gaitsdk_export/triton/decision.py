"""The last step of an identification: the final order and the decision, from the shortlist and the distances of the
re-ranker. Runs inside Triton's backend: in `rerank` where that is a Python model, else in one of its own, `decide`.

Request parameters: `top_k` and `k` as in shortlist, `threshold` (default: the bundle's calibration), `canary` (a health
check: audited and logged like any other, but not counted).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk.runtimes.wire import NUMBERS
from gaitsdk_export.triton.backend import (
    Arrays,
    Batched,
    asked_by,
    list_lengths,
    request_parameters,
    threshold_parameter,
    to_bytes,
)


class Decision(Batched):
    """A model that decides. Its inputs are `configurations.LISTED` and what `rescored` needs."""

    def open(self) -> None:
        for decision in ("known", "unknown", "uncalibrated"):
            self.metrics.declare("gaitsdk_decisions_total", decision=decision)
        self.metrics.declare("gaitsdk_rerank_changes_total")

    @abstractmethod
    def rescored(self, given: Arrays) -> NDArray[np.float32] | None:
        """The re-ranker's distances [B, K] of the first candidates; None where nothing is re-ranked."""

    def read(self, request: Any) -> tuple[Hashable, tuple[NDArray[Any], ...]]:
        arrays = tuple(self.require(request, name) for name in self.inputs())
        asked = request_parameters(request)
        top_k, k = list_lengths(asked, self.bundle, self.reranker, int(self.parameter("max_k")))
        size = int(self.require(request, "gallery_state")[0, 0])
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

    def run(self, key: Any, *arrays: NDArray[Any]) -> Arrays:
        top_k, threshold, size = key[:3]
        given = dict(zip(self.inputs(), arrays, strict=True))
        found = pipeline.Shortlist(
            entry_ids=given["candidate_ids"],
            identities=given["candidate_identity"],
            distances=given["shortlist_distance"],
            features=np.zeros((len(given["candidate_ids"]), 0, self.bundle.strips, self.bundle.dims), np.float32),
        )
        distances = self.rescored(given)
        answers = pipeline.decide(
            found,
            distances,
            top_k=top_k,
            threshold=threshold,
            fingerprint=self.bundle.fingerprint,
            gallery_size=size,
        )
        n = len(answers.entry_ids)
        numbers = np.empty((n, len(NUMBERS)))
        numbers[:, :2] = (np.nan if threshold is None else threshold, answers.reranked)
        numbers[:, 2:] = given["gallery_state"]
        return {
            "entry_id": np.ascontiguousarray(answers.entry_ids),
            "identity": to_bytes(answers.identities),
            "distance": np.ascontiguousarray(answers.distances),
            "shortlist_distance": np.ascontiguousarray(answers.shortlist_distances),
            "shortlist_rank": np.ascontiguousarray(answers.shortlist_ranks),
            "decision": to_bytes(answers.decisions).reshape(n, 1),
            "fingerprint": to_bytes([[answers.fingerprint]] * n),
            "numbers": numbers,
            "margin": margins(found),
            **({} if distances is None else {"rerank_distance": distances}),
        }

    def record(self, request: Any, outputs: Arrays) -> None:
        decisions = [each.decode() for each in outputs["decision"][:, 0]]
        who, canary = asked_by(request), bool(request_parameters(request).get("canary")) or None
        state = {name: int(value) for name, value in zip(NUMBERS[2:], outputs["numbers"][0, 2:], strict=True)}
        about = {**self.answering(), **who, **state, "event": "identify", "outcome": "done", "canary": canary}
        firsts = zip(outputs["identity"][:, 0], outputs["entry_id"][:, 0], decisions, strict=True)
        self.audit.write(
            [
                {**about, "identity": identity.decode(errors="replace"), "entries": [int(entry)], "decision": decision}
                for identity, entry, decision in firsts
            ]
        )
        counts = {decision: decisions.count(decision) for decision in sorted(set(decisions))}
        self.events.write("identified", "info", **who, **counts, **state, canary=canary, ms=self.elapsed_ms())
        for decision, count in counts.items():
            self.metrics.add("gaitsdk_decisions_total", 0 if canary else count, decision=decision)
        if canary:
            return
        if changed := int((outputs["shortlist_rank"][:, 0] != 1).sum()):
            self.metrics.add("gaitsdk_rerank_changes_total", changed)
        for margin in outputs["margin"][np.isfinite(outputs["margin"])]:
            self.metrics.observe("gaitsdk_shortlist_margin_ratio", float(margin))


def margins(found: pipeline.Shortlist) -> NDArray[np.floating[Any]]:
    """How much nearer the first identity of each shortlist is than the second, `[n]`: 1 - first / second distance. NaN
    where all candidates are of one identity."""
    others = found.identities != found.identities[:, :1]
    second = np.where(others.any(1), found.distances[np.arange(len(others)), others.argmax(1)], np.nan)
    least = np.finfo(np.float32).tiny
    ratios: NDArray[np.floating[Any]] = (second - found.distances[:, 0]) / np.maximum(second, least)
    return ratios
