"""The remote engine: the verbs of `gaitsdk.engine.Engine`, answered by a Triton server that `gaitsdk serve` runs.

Shapes: n probes, T frames, S pixels, s strips, d dimensions, K candidates re-ranked.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.engine import Description
from gaitsdk.errors import DeadlineExceededError, GaitError, OptionError, ServerError, ServerUnavailableError
from gaitsdk.pipeline import Answers, Features, Silhouettes
from gaitsdk.runtimes.transport import CONNECT_TIMEOUT, Arrays, open_transport
from gaitsdk.runtimes.wire import EMBED, GALLERY, IDENTIFY, MAX_MESSAGE_BYTES, RERANK, SHORTLIST, decode_error

if TYPE_CHECKING:
    from gaitsdk.runtimes.transport import Transport

_IDENTIFY_OUTPUTS = (
    "entry_id",
    "identity",
    "distance",
    "shortlist_distance",
    "shortlist_rank",
    "decision",
    "fingerprint",
    "threshold",
    "reranked",
    "gallery_size",
)


class RemoteEngine:
    """A Triton server as an engine. May be used from several threads.

    A request is never sent twice. When the server was away, the same engine works again once it is back.

    Args:
        url: "grpc://host:port", "http://host:port", or "host:port" (gRPC).
        token: sent with every request as `authorization: Bearer TOKEN`. Triton itself does not look at it: put a proxy
            in front of the server that does, and let nobody reach the server around it.
        timeout: seconds for one request.
        connect_timeout: seconds for the first one, which finds out whether a gaitsdk server is there.

    Raises:
        ServerUnavailableError: nobody answers there within two seconds.
        ServerError: something answers, but it is not a gaitsdk repository.
    """

    def __init__(
        self, url: str, token: str | None = None, timeout: float = 10.0, connect_timeout: float = CONNECT_TIMEOUT
    ) -> None:
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not 0 < timeout < 1e6:
            raise OptionError("not a usable time-out", where="timeout", got=repr(timeout), expected="seconds > 0")
        self._transport: Transport = open_transport(url, token)
        self._timeout = float(timeout)
        try:
            about = self._describe(min(connect_timeout, self._timeout))
            known = [each.name for each in fields(Description) if each.name in about]
            self.description = Description(**{name: about[name] for name in known})
            self._length_handling: str = about["length_handling"]
            self._max_batch = min(pipeline.MAX_BATCH, int(about["max_batch"]))
            #: A number, None, or the text of the error that asking for it raises.
            self._verify_threshold: float | str | None = about["verify_threshold"]
        except GaitError:
            self.close()
            raise
        except (ValueError, LookupError, TypeError) as error:
            self.close()
            raise ServerError(
                "the server's description cannot be read", where=self._transport.url, fix="update gaitsdk on both sides"
            ) from error

    def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        rows: list[Features | None] = [None] * len(sequences)
        for group, stacked in self._batches(sequences):
            answer = self._infer(EMBED, {"silhouettes": stacked}, ("features",))
            for i, row in zip(group, answer["features"], strict=True):
                rows[i] = row
        return np.stack([row for row in rows if row is not None])

    def identify(self, sequences: Sequence[Silhouettes], top_k: int, k: int, threshold: float | None) -> Answers:
        parameters: dict[str, Any] = {"top_k": top_k}
        if k:  # 0: the server re-ranks nothing
            parameters["k"] = k
        if threshold is not None:
            parameters["threshold"] = repr(float(threshold))  # as a text: the server prints numbers with 16 digits only
        started = time.perf_counter()
        order: list[int] = []
        parts: list[dict[str, NDArray[Any]]] = []
        for group, stacked in self._batches(sequences):
            parts.append(self._infer(IDENTIFY, {"silhouettes": stacked}, _IDENTIFY_OUTPUTS, parameters))
            order.extend(group)
        elapsed = (time.perf_counter() - started) * 1e3
        answers = _answers(parts, order, elapsed)
        if answers.fingerprint != self.description.fingerprint:
            raise ServerError(
                "the server serves another model than when this client connected",
                where=self._transport.url,
                got=answers.fingerprint,
                expected=self.description.fingerprint,
                fix="connect again",
            )
        return answers

    def search(self, features: Features, k: int) -> tuple[NDArray[np.int64], Features]:
        outputs = ("candidate_ids", "shortlist_distance")
        parts = [
            self._infer(SHORTLIST, {"features": features[part]}, outputs, {"top_k": k})
            for part in _parts(len(features), self._max_batch)
        ]
        listed = min(part["candidate_ids"].shape[1] for part in parts)
        ids, distances = (np.concatenate([part[name][:, :listed] for part in parts]) for name in outputs)
        return ids, distances

    def rerank(self, probe: Features, candidates: Features) -> Features:
        if self.description.reranker == "none":
            return pipeline.strip_distances(probe, candidates)
        probe, candidates = np.asarray(probe, np.float32), np.asarray(candidates, np.float32)
        step = max(1, min(self._max_batch, MAX_MESSAGE_BYTES // max(1, 2 * candidates[:1].nbytes)))
        parts = [
            self._infer(RERANK, {"features": probe[part], "candidate_features": candidates[part]}, ("rerank_distance",))
            for part in _parts(len(probe), step)
        ]
        return np.concatenate([part["rerank_distance"] for part in parts])

    def verify_threshold(self) -> float | None:
        if isinstance(self._verify_threshold, str):
            raise decode_error(self._verify_threshold) or ServerError(
                "the server's threshold cannot be read", where=self._transport.url, got=self._verify_threshold
            )
        return self._verify_threshold

    def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        answer = self._gallery(
            "enroll",
            ("entry_id",),
            identity=_text(identity),
            silhouettes=np.concatenate(list(sequences)),
            lengths=np.array([len(each) for each in sequences], np.int64),
        )
        return [int(entry) for entry in answer["entry_id"]]

    def delete(self, identity: str) -> int:
        return int(self._gallery("delete", ("count",), identity=_text(identity))["count"][0])

    def identities(self) -> list[str]:
        return [name.decode() for name in self._gallery("identities", ("identity",))["identity"]]

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        if not entry_ids:
            return []
        answer = self._gallery("thumbnails", ("thumbnail",), entry_id=np.asarray(entry_ids, np.int64))
        return [picture if picture.any() else None for picture in answer["thumbnail"]]

    def count(self) -> int:
        return int(self._gallery("count", ("count",))["count"][0])

    def close(self) -> None:
        self._transport.close()

    def _batches(self, sequences: Sequence[Silhouettes]) -> Iterator[tuple[list[int], Silhouettes]]:
        """Positions and their sequences stacked: similar lengths together, no request above the message limit."""
        padding = pipeline.PADDING_LIMIT if self._length_handling == "cyclic" else 1.0
        for group in pipeline.batches([len(each) for each in sequences], self._max_batch, padding):
            longest = max(len(sequences[i]) for i in group)
            step = max(1, MAX_MESSAGE_BYTES // (longest * sequences[group[0]][0].nbytes))
            for part in _parts(len(group), step):
                chosen = [int(i) for i in group[part]]
                yield chosen, np.stack([pipeline.pad_cyclic(sequences[i], longest) for i in chosen])

    def _describe(self, timeout: float) -> dict[str, Any]:
        try:
            answer = self._infer(GALLERY, {"action": _text("describe")}, ("description",), timeout=timeout)
        except DeadlineExceededError as error:
            raise ServerUnavailableError(
                "no Triton server answers",
                where=self._transport.url,
                fix="start one: gaitsdk serve, or check the address",
            ) from error
        return dict(json.loads(answer["description"].ravel()[0]))

    def _gallery(self, action: str, outputs: tuple[str, ...], **inputs: NDArray[Any]) -> dict[str, NDArray[Any]]:
        return self._infer(GALLERY, {"action": _text(action), **inputs}, outputs)

    def _infer(
        self,
        model: str,
        inputs: Arrays,
        outputs: Sequence[str],
        parameters: dict[str, Any] | None = None,
        timeout: float | None = None,
    ) -> dict[str, NDArray[Any]]:
        return self._transport.infer(model, inputs, outputs, parameters or {}, timeout or self._timeout)


def _answers(parts: list[dict[str, NDArray[Any]]], order: list[int], elapsed_ms: float) -> Answers:
    """The answers of several requests as one, rows in the order of the sequences. Where somebody enrolled or deleted
    between two requests, lists have the length of the shortest."""
    listed = min(part["entry_id"].shape[1] for part in parts)
    back = np.argsort(order)
    rows = {name: np.concatenate([part[name][:, :listed] for part in parts])[back] for name in _IDENTIFY_OUTPUTS}
    cut = float(rows["threshold"][0, 0])
    identities = np.array([each.decode() for each in rows["identity"].ravel()], object)
    return Answers(
        entry_ids=rows["entry_id"],
        identities=identities.reshape(rows["identity"].shape),
        distances=rows["distance"],
        shortlist_distances=rows["shortlist_distance"],
        shortlist_ranks=rows["shortlist_rank"],
        reranked=min(int(rows["reranked"].min()), listed),
        decisions=[each.decode() for each in rows["decision"].ravel()],
        threshold=None if np.isnan(cut) else cut,
        fingerprint=rows["fingerprint"].ravel()[0].decode(),
        gallery_size=int(rows["gallery_size"][0, 0]),
        timings_ms={"round_trip": elapsed_ms},
    )


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


def _text(text: object) -> NDArray[np.object_]:
    if not isinstance(text, str):
        raise OptionError("not a text", where="identity", got=repr(text), expected="a string")
    return np.array([text.encode(errors="surrogatepass")], object)
