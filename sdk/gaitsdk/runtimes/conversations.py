"""What a client says to the server for each verb: generators that yield requests, are sent replies and return answers.

They wait for nothing themselves, so one definition serves the engine with threads and the one with `await`.

Shapes: n probes, T frames, S pixels, s strips, d dimensions, K candidates re-ranked.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.engine import Description
from gaitsdk.errors import GaitError, OptionError, ServerError
from gaitsdk.pipeline import Answers, Features, Silhouettes
from gaitsdk.runtimes.statuses import unreadable
from gaitsdk.runtimes.tensors import Reply, Request
from gaitsdk.runtimes.wire import EMBED, GALLERY, IDENTIFY, MAX_MESSAGE_BYTES, NUMBERS, RERANK, SHORTLIST, decode_error

T = TypeVar("T")
Talk = Generator[Request, Reply, T]

#: Outputs of an identification: per candidate, and per sequence.
_LISTS = ("entry_id", "identity", "distance", "shortlist_distance", "shortlist_rank")
_SINGLE = ("decision", "fingerprint", "numbers")

#: Who answers there, and the limits of it.
DESCRIBE = Request(GALLERY, {"action": np.array([b"describe"], object)}, ("description",))


@dataclass(frozen=True)
class Done(Generic[T]):
    """The end of a conversation."""

    answer: T


def advance(talk: Talk[T], reply: Reply | None, url: str) -> Request | Done[T]:
    """The next request, after the reply to the last one (None: the first), or the answer.

    Raises:
        AnswerError: the reply is not what a gaitsdk server says.
    """
    try:
        return next(talk) if reply is None else talk.send(reply)
    except StopIteration as done:
        return Done(done.value)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if reply is None or isinstance(error, GaitError):
            raise
        raise unreadable(url, error) from error


@dataclass
class Conversations:
    """The verbs of `gaitsdk.engine.Engine` with one server. Whoever enrols or deletes finds it done in what is asked
    next, in whatever thread: the commit number of the answer goes with every later question.

    Attributes:
        url: for messages.
        description: model, runtime and re-ranker of the server.
        length_handling: "cyclic" or "alone", see `pipeline.embed_many`.
        max_batch: sequences per request; more are split.
        threshold: the calibration for pairs: a number, None, or the text of the error that asking for it raises.
        changed: the highest commit number that an enrolment or deletion was answered with.
    """

    url: str
    description: Description
    length_handling: str
    max_batch: int
    threshold: float | str | None
    changed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @classmethod
    def read(cls, url: str, reply: Reply) -> Conversations:
        """From the reply to `DESCRIBE`; ServerError where another software answers."""
        try:
            about = dict(json.loads(reply["description"].ravel()[0]))
            known = [each.name for each in fields(Description) if each.name in about]
            return cls(
                url=url,
                description=Description(**{name: about[name] for name in known}),
                length_handling=about["length_handling"],
                max_batch=min(pipeline.MAX_BATCH, int(about["max_batch"])),
                threshold=about["verify_threshold"],
            )
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(
                "the server's description cannot be read", where=url, fix="update gaitsdk on both sides"
            ) from error

    def embed(self, sequences: Sequence[Silhouettes]) -> Talk[Features]:
        rows: list[Features | None] = [None] * len(sequences)
        for group, stacked in self._batches(sequences):
            answer = yield Request(EMBED, {"silhouettes": stacked}, ("features",))
            for i, row in zip(group, answer["features"], strict=True):
                rows[i] = row
        return np.stack([row for row in rows if row is not None])

    def identify(
        self, sequences: Sequence[Silhouettes], top_k: int, k: int, threshold: float | None, min_sequence: int = 0
    ) -> Talk[Answers]:
        parameters = self._parameters(top_k, min_sequence)
        if k:  # 0: the server re-ranks nothing
            parameters["k"] = k
        if threshold is not None:
            parameters["threshold"] = repr(float(threshold))  # as a text: the server prints numbers with 16 digits only
        started = time.perf_counter()
        order: list[int] = []
        parts: list[Reply] = []
        for group, stacked in self._batches(sequences):
            parts.append((yield Request(IDENTIFY, {"silhouettes": stacked}, (*_LISTS, *_SINGLE), parameters)))
            order.extend(group)
        answers = _answers(parts, order, (time.perf_counter() - started) * 1e3)
        if answers.fingerprint != self.description.fingerprint:
            raise ServerError(
                "the server serves another model than when this client connected",
                where=self.url,
                got=answers.fingerprint,
                expected=self.description.fingerprint,
                fix="connect again",
            )
        return answers

    def search(self, features: Features, k: int, min_sequence: int = 0) -> Talk[tuple[NDArray[np.int64], Features]]:
        outputs = ("candidate_ids", "candidate_distance")
        parameters = self._parameters(k, min_sequence)
        parts = []
        for part in _parts(len(features), self.max_batch):
            parts.append((yield Request(SHORTLIST, {"features": features[part]}, outputs, parameters)))
        listed = min(part["candidate_ids"].shape[1] for part in parts)
        ids, distances = (np.concatenate([part[name][:, :listed] for part in parts]) for name in outputs)
        return ids, distances

    def rerank(self, probe: Features, candidates: Features) -> Talk[Features]:
        if self.description.reranker == "none":
            return pipeline.strip_distances(probe, candidates)
        probe, candidates = np.asarray(probe, np.float32), np.asarray(candidates, np.float32)
        step = max(1, min(self.max_batch, MAX_MESSAGE_BYTES // max(1, 2 * candidates[:1].nbytes)))
        distances = []
        for part in _parts(len(probe), step):
            inputs = {"features": probe[part], "candidate_features": candidates[part]}
            answer = yield Request(RERANK, inputs, ("rerank_distance",))
            distances.append(answer["rerank_distance"])
        return np.concatenate(distances)

    def verify_threshold(self) -> float | None:
        if isinstance(self.threshold, str):
            raise decode_error(self.threshold) or ServerError(
                "the server's threshold cannot be read", where=self.url, got=self.threshold
            )
        return self.threshold

    def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> Talk[list[int]]:
        lengths = np.array([len(each) for each in sequences], np.int64)
        inputs = {"identity": _text(identity), "silhouettes": np.concatenate(list(sequences)), "lengths": lengths}
        answer = yield _gallery("enroll", ("entry_id", "sequence"), repeatable=False, **inputs)
        self._remember(answer)
        return [int(entry) for entry in answer["entry_id"]]

    def delete(self, identity: str) -> Talk[int]:
        answer = yield _gallery("delete", ("count", "sequence"), repeatable=False, identity=_text(identity))
        self._remember(answer)
        return int(answer["count"][0])

    def identities(self) -> Talk[list[str]]:
        answer = yield _gallery("list", ("identity",))
        return [name.decode() for name in answer["identity"]]

    def thumbnails(self, entry_ids: list[int]) -> Talk[list[Silhouettes | None]]:
        if not entry_ids:
            return []
        answer = yield _gallery("thumbnails", ("thumbnail",), entry_id=np.asarray(entry_ids, np.int64))
        return [picture if picture.any() else None for picture in answer["thumbnail"]]

    def count(self) -> Talk[int]:
        answer = yield _gallery("count", ("count",))
        return int(answer["count"][0])

    def gallery_sequence(self) -> Talk[int]:
        answer = yield _gallery("count", ("sequence",))
        return int(answer["sequence"][0])

    def _parameters(self, top_k: int, min_sequence: int) -> dict[str, Any]:
        reached = max(min_sequence, self.changed)
        return {"top_k": top_k, "min_sequence": reached} if reached else {"top_k": top_k}

    def _remember(self, answer: Reply) -> None:
        with self._lock:
            self.changed = max(self.changed, int(answer["sequence"][0]))

    def _batches(self, sequences: Sequence[Silhouettes]) -> Iterator[tuple[list[int], Silhouettes]]:
        """Positions and their sequences stacked: similar lengths together, no request above the message limit."""
        if len(sequences) == 1:  # most calls: nothing to sort, nothing to copy
            yield [0], sequences[0][None]
            return
        padding = pipeline.padding_limit(self.length_handling)
        for group in pipeline.batches([len(each) for each in sequences], self.max_batch, padding):
            longest = max(len(sequences[i]) for i in group)
            step = max(1, MAX_MESSAGE_BYTES // (longest * sequences[group[0]][0].nbytes))
            for part in _parts(len(group), step):
                chosen = [int(i) for i in group[part]]
                yield chosen, np.stack([pipeline.pad_cyclic(sequences[i], longest) for i in chosen])


def _gallery(action: str, outputs: tuple[str, ...], *, repeatable: bool = True, **inputs: NDArray[Any]) -> Request:
    return Request(GALLERY, {"action": _text(action), **inputs}, outputs, repeatable=repeatable)


def _answers(parts: list[Reply], order: list[int], elapsed_ms: float) -> Answers:
    """The answers of several requests as one, rows in the order of the sequences. Where somebody enrolled or deleted
    between two requests, lists have the length of the shortest."""
    if len(parts) == len(order) == len(parts[0]["entry_id"]) == 1:
        rows = parts[0]
    else:
        listed = min(part["entry_id"].shape[1] for part in parts)
        back = np.argsort(order)
        rows = {name: np.concatenate([part[name][:, :listed] for part in parts])[back] for name in _LISTS}
        rows |= {name: np.concatenate([part[name] for part in parts])[back] for name in _SINGLE}
    numbers = dict(zip(NUMBERS, rows["numbers"].T.tolist(), strict=True))
    cut = numbers["threshold"][0]
    identities = np.empty(rows["identity"].shape, object)
    identities.ravel()[:] = [each.decode() for each in rows["identity"].ravel().tolist()]
    return Answers(
        entry_ids=rows["entry_id"],
        identities=identities,
        distances=rows["distance"],
        shortlist_distances=rows["shortlist_distance"],
        shortlist_ranks=rows["shortlist_rank"],
        reranked=min(int(min(numbers["reranked"])), identities.shape[1]),
        decisions=[each.decode() for each in rows["decision"].ravel().tolist()],
        threshold=None if math.isnan(cut) else cut,
        fingerprint=rows["fingerprint"].ravel()[0].decode(),
        gallery_size=int(numbers["gallery_size"][0]),
        gallery_sequence=int(min(numbers["gallery_sequence"])),
        timings_ms={"round_trip": elapsed_ms},
    )


def _parts(count: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, count, step))


def _text(text: object) -> NDArray[np.object_]:
    if not isinstance(text, str):
        raise OptionError("not a text", where="identity", got=repr(text), expected="a string")
    return np.array([text.encode(errors="surrogatepass")], object)
