"""The end of an identification: the final order and the decision, from the shortlist and the distances of the
re-ranker. Runs inside Triton's backend: in `shortlist`, or behind a re-ranker that is an engine, in `decide`.

Request parameters: `top_k` and `k` as in shortlist, `threshold` (default: the bundle's calibration), `canary` (a health
check: audited and logged like any other, but not counted).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.calibration import threshold_for
from gaitsdk.runtimes.wire import NUMBERS
from gaitsdk_export.triton.backend import Arrays, Batched, asked_by, request_parameters, to_bytes
from gaitsdk_export.triton.logs import now

#: Whose seconds are counted, where they are spent in one process: Triton tells only that one's.
STAGES = ("search", "rerank")
_LEAST = float(np.finfo(np.float32).tiny)


class Decision(Batched):
    """A model that can decide."""

    @property
    def decides(self) -> bool:
        """Whether it does in this repository."""
        return any(each["name"] == "decision" for each in self.config["output"])

    def open(self) -> None:
        for decision in ("known", "unknown", "uncalibrated"):
            self.metrics.declare("gaitsdk_decisions_total", decision=decision)
        self.metrics.declare("gaitsdk_rerank_changes_total")

    def threshold(self, asked: float | None, k: int, size: int) -> float | None:
        """What a distance is compared with: what was asked, else the bundle's calibration for this list and gallery.

        Raises:
            CalibrationError: the bundle's is for others.
        """
        if asked is not None:
            return asked
        return threshold_for(
            self.bundle.manifest.calibration,
            task="identify",
            reranker=self.reranker,
            k=k,
            gallery_size=size,
        )

    def decided(
        self,
        found: pipeline.Shortlist,
        distances: NDArray[np.float32] | None,
        gallery_state: NDArray[np.int64],
        top_k: int,
        threshold: float | None,
    ) -> dict[str, NDArray[Any]]:
        """What `identify` answers, and what `record` needs.

        Args:
            found: the shortlists of n walks; identities may be bytes.
            distances: the re-ranker's `[n, K]` of the first candidates; None where nothing is re-ranked.
            gallery_state: `[n, 2]`, entries and commit of the gallery.
            top_k: candidates to answer with.
            threshold: from `threshold`.
        """
        answers = pipeline.decide(
            found,
            distances,
            top_k=top_k,
            threshold=threshold,
            fingerprint=self.bundle.fingerprint,
            gallery_size=int(gallery_state[0, 0]),
        )
        n = len(answers.entry_ids)
        numbers = np.empty((n, len(NUMBERS)))
        numbers[:, :2] = (np.nan if threshold is None else threshold, answers.reranked)
        numbers[:, 2:] = gallery_state
        return {
            "entry_id": np.ascontiguousarray(answers.entry_ids),
            "identity": to_bytes(answers.identities),
            "distance": np.ascontiguousarray(answers.distances),
            "shortlist_distance": np.ascontiguousarray(answers.shortlist_distances),
            "shortlist_rank": np.ascontiguousarray(answers.shortlist_ranks),
            "decision": to_bytes(answers.decisions).reshape(n, 1),
            "fingerprint": np.full((n, 1), answers.fingerprint.encode(), object),
            "numbers": numbers,
            "margin": margins(found),
        }

    def record(self, request: Any, outputs: Arrays) -> None:
        """The audit has an identification before anybody is told; the log and the metrics get it later."""
        if "decision" not in outputs:
            return
        parameters = request_parameters(request)
        who, canary = asked_by(request, parameters), bool(parameters.get("canary")) or None
        state = {name: int(value) for name, value in zip(NUMBERS[2:], outputs["numbers"][0, 2:], strict=True)}
        if self.audit.kept:
            about = {**self.answering(), **who, **state, "event": "identify", "outcome": "done", "canary": canary}
            firsts = (outputs[name][:, 0].tolist() for name in ("identity", "entry_id", "decision"))
            self.audit.write(
                {**about, "identity": name.decode(errors="replace"), "entries": [entry], "decision": decision.decode()}
                for name, entry, decision in zip(*firsts, strict=True)
            )
        line = {**who, **state, "canary": canary, "at": now(), "ms": self.elapsed_ms()}
        told = {name: outputs[name][:, 0].copy() for name in ("decision", "shortlist_rank")}  # not the whole lists
        told |= {name: outputs[name].copy() for name in ("margin", "seconds") if name in outputs}
        self.later.do(lambda: self.tell(told, line))

    def tell(self, firsts: Arrays, line: Mapping[str, Any]) -> None:
        """Logs and counts an identification.

        Args:
            firsts: `decision`, `shortlist_rank` (of the first candidates) and `margin`, `[n]` each; `seconds` `[n, 2]`,
                unless several models share the work.
            line: of the log, without the decisions.
        """
        decisions = [each.decode() for each in firsts["decision"]]
        counts = {decision: decisions.count(decision) for decision in sorted(set(decisions))}
        self.events.write("identified", **{**line, **counts})
        for decision, count in counts.items():
            self.metrics.add("gaitsdk_decisions_total", 0 if line["canary"] else count, decision=decision)
        if line["canary"]:
            return
        if changed := int((firsts["shortlist_rank"] != 1).sum()):
            self.metrics.add("gaitsdk_rerank_changes_total", changed)
        for stage, seconds in zip(STAGES, firsts["seconds"].sum(0) if "seconds" in firsts else (), strict=False):
            self.metrics.add("gaitsdk_stage_seconds_total", float(seconds), stage=stage)
        for margin in firsts["margin"][np.isfinite(firsts["margin"])]:
            self.metrics.observe("gaitsdk_shortlist_margin_ratio", float(margin))


def margins(found: pipeline.Shortlist) -> NDArray[np.float64]:
    """How much nearer the first identity of each shortlist is than the second, `[n]`: 1 - first / second distance. NaN
    where all candidates are of one identity."""
    ratios = []
    for names, distances in zip(found.identities.tolist(), found.distances.tolist(), strict=True):
        second = next((each for name, each in zip(names, distances, strict=True) if name != names[0]), math.nan)
        ratios.append((second - distances[0]) / max(second, _LEAST))
    return np.array(ratios)
