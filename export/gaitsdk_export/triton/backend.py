"""What the repository's Python models share: settings, parsing, batching, typed errors, what is recorded of a request.
Runs inside Triton's backend.

Shapes: B sequences in a request, T frames, S pixels, s strips, d dimensions, M candidates listed, K of them re-ranked.
"""

from __future__ import annotations

import importlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import synthetic
from gaitsdk.errors import (
    BundleError,
    CalibrationError,
    EmptyGalleryError,
    GaitError,
    InputError,
    OptionError,
    ServerError,
    SilhouetteError,
    UnknownIdentityError,
)
from gaitsdk.pipeline import MAX_K, check_count, check_threshold
from gaitsdk.recognizer import TOP_K
from gaitsdk.rerankers import check_reranker, list_length
from gaitsdk.runtimes.wire import MAX_TOP_K, encode_error
from gaitsdk.silhouettes import normalise
from gaitsdk_export.triton.audit import ACTOR, Audit
from gaitsdk_export.triton.later import Later
from gaitsdk_export.triton.logs import EventLog, error_fields
from gaitsdk_export.triton.metrics import Metrics

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.gallery import Gallery
    from gaitsdk.runtimes import NetworkRuntime

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Settings:
    """What a deployment chooses, from the environment: the repository itself holds no path of any machine.

    Attributes:
        bundle: `GAITSDK_BUNDLE`, a folder NAME.gait; None = the shipped bundle.
        gallery: `GAITSDK_GALLERY`, the gallery file.
        runtime: `GAITSDK_RUNTIME`, default "auto".
        device: `GAITSDK_DEVICE`, default "auto".
        threads: `GAITSDK_THREADS` of the backbone, default the runtime's own.
        log_format: `GAITSDK_LOG_FORMAT`, "json" or "text": the lines of `gaitsdk_export.triton.logs`.
        audit: `GAITSDK_AUDIT`, the file of `gaitsdk_export.triton.audit`; None = no audit.
        audit_identities: `GAITSDK_AUDIT_IDENTITIES`, "hash" or "plain": how the audit names people.

    Raises:
        OptionError: `log_format` or `audit_identities` has another value.
    """

    bundle: str | None = None
    gallery: str | None = None
    runtime: str = "auto"
    device: str = "auto"
    threads: int | None = None
    log_format: str = "json"
    audit: str | None = None
    audit_identities: str = "hash"

    def __post_init__(self) -> None:
        for name, allowed in (("log_format", ("json", "text")), ("audit_identities", ("hash", "plain"))):
            if getattr(self, name) not in allowed:
                expected = " or ".join(allowed)
                raise OptionError("unknown", where=name, got=repr(getattr(self, name)), expected=expected)

    @classmethod
    def from_environment(cls) -> Settings:
        """Reads the variables above. OptionError where `GAITSDK_THREADS` is no number."""
        values = {name: os.environ.get(f"GAITSDK_{name.upper()}") for name in cls.__dataclass_fields__}
        found: dict[str, Any] = {name: value for name, value in values.items() if value}
        threads = found.get("threads", "1")
        if not threads.isdecimal():
            raise OptionError("not a number of threads", where="GAITSDK_THREADS", got=threads, expected="1, 2, ...")
        if "threads" in found:
            found["threads"] = int(threads)
        return cls(**found)

    def to_environment(self) -> dict[str, str]:
        """The variables that `from_environment` reads."""
        values = {f"GAITSDK_{name.upper()}": getattr(self, name) for name in self.__dataclass_fields__}
        return {name: str(value) for name, value in values.items() if value is not None}

    def open_bundle(self, fingerprint: str) -> Bundle:
        """The bundle, once it is certain that the repository was rendered for it."""
        from gaitsdk.bundle import Bundle

        bundle = Bundle.load(self.bundle)
        if bundle.fingerprint != fingerprint:
            raise BundleError(
                "the model repository was rendered for another bundle",
                where=str(bundle.path),
                got=f"fingerprint {bundle.fingerprint[:12]}...",
                expected=f"{fingerprint[:12]}...",
                fix="render it again: gaitsdk deploy --bundle BUNDLE --out REPOSITORY",
            )
        return bundle

    def open_networks(self, bundle: Bundle) -> NetworkRuntime:
        """The runtime that executes the bundle's networks."""
        from gaitsdk.runtimes import open_runtime

        return open_runtime(bundle, runtime=self.runtime, device=self.device, threads=self.threads)

    def open_gallery(self, bundle: Bundle) -> Gallery:
        """The gallery file, checked against the bundle."""
        from gaitsdk.gallery import Gallery

        if self.gallery is None or self.gallery == ":memory:":
            raise OptionError(
                "the server needs a gallery file: several of its processes share it",
                where="GAITSDK_GALLERY",
                got=self.gallery,
                fix="gaitsdk serve --gallery people.db",
            )
        return Gallery.open(
            self.gallery,
            fingerprint=bundle.fingerprint,
            strips=bundle.strips,
            dims=bundle.dims,
            metric=bundle.metric,
        )


class Model(ABC):
    """A Python model: Triton calls `initialize` once and `execute` with a list of requests."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Opens what the model needs, from its configuration and the environment."""
        self.began = time.perf_counter()
        self.pb = importlib.import_module("triton_python_backend_utils")
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.name = str(self.config["name"])
        self.settings = Settings.from_environment()
        self.events = EventLog(self.name, self.settings.log_format)
        self.later = Later()
        self.metrics = Metrics(self.pb, self.later)
        self.audit = Audit(self.settings.audit, self.settings.audit_identities)
        self.bundle = self.settings.open_bundle(self.parameter("fingerprint"))
        self.reranker = check_reranker(self.parameter("reranker"), self.bundle)
        self.open()
        self.audit.write([{"event": "opened", **self.answering()}], durable=True)
        self.events.write("opened", fingerprint=self.bundle.fingerprint, reranker=self.reranker, ms=self.elapsed_ms())

    @abstractmethod
    def open(self) -> None:
        """Opens networks or the gallery; what it raises keeps the server from starting."""

    @abstractmethod
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order."""

    def finalize(self) -> None:
        """Triton calls this before the process ends."""
        self.later.close()
        self.metrics.close()
        self.audit.close()

    def parameter(self, name: str) -> str:
        """A parameter of the model's configuration. BundleError where another version rendered it without."""
        if name not in self.config["parameters"]:
            raise BundleError(
                "another version of gaitsdk rendered this model repository", where=name, fix="gaitsdk deploy again"
            )
        return str(self.config["parameters"][name]["string_value"])

    def inputs(self) -> list[str]:
        """Names of the model's inputs, from its configuration."""
        return [each["name"] for each in self.config["input"]]

    def array(self, request: Any, name: str) -> NDArray[Any] | None:
        """An input as an array, or None where the request does not have it."""
        tensor = self.pb.get_input_tensor_by_name(request, name)
        return None if tensor is None else tensor.as_numpy()

    def require(self, request: Any, name: str) -> NDArray[Any]:
        """An input as an array. InputError where the request does not have it."""
        array = self.array(request, name)
        if array is None:
            raise InputError("a tensor is missing", where=name, fix=f"send the input {name}")
        return array

    def answer(self, request: Any, outputs: Arrays) -> Any:
        """A response with those of `outputs` that were asked for."""
        wanted = set(request.requested_output_names())
        return self.pb.InferenceResponse([self.pb.Tensor(k, v) for k, v in outputs.items() if k in wanted])

    def refuse(self, error: Exception, request: Any) -> Any:
        """A response that carries a typed error; what is not ours to tell goes to the log only."""
        codes = self.pb.TritonError
        code = codes.INVALID_ARG if isinstance(error, InputError) else codes.INTERNAL
        if isinstance(error, UnknownIdentityError):
            code = codes.NOT_FOUND
        if isinstance(error, GaitError) and error.retryable:
            code = codes.UNAVAILABLE
        reason, told = reason_of(error), error_fields(error)
        level = "error" if reason == "server" else "warning"
        self.events.write("refused", level, **asked_by(request), reason=reason, ms=self.elapsed_ms(), **told)
        self.metrics.add("gaitsdk_refused_requests_total", model=self.name, reason=reason, error=told["error"])
        return self.pb.InferenceResponse(error=codes(encode_error(error, request.request_id()), code))

    def answering(self) -> dict[str, str]:
        """What answers here, for the records."""
        return {"model": self.name, "fingerprint": self.bundle.fingerprint, "reranker": self.reranker}

    def elapsed_ms(self) -> float:
        """Milliseconds since the model began with what it is doing."""
        return round((time.perf_counter() - self.began) * 1e3, 3)

    @contextmanager
    def changing(self, event: str, request: Any, identity: str) -> Iterator[dict[str, Any]]:
        """Around a change of the gallery: the audit has a line of the intent on disk before, and one of the outcome
        after. The block adds to the dictionary what the second one tells.

        Raises:
            ServerError: the intent cannot be written, and nothing is changed. (An outcome that cannot be written is
            logged and counted: the gallery tells what became of the intent, and an error would deny what is done.)
        """
        line = {"event": event, **self.answering(), **asked_by(request), "identity": identity}
        self.audit.write([{**line, "outcome": "asked"}], durable=True)
        done: dict[str, Any] = {}
        try:
            yield done
        except Exception as error:
            self.outcome({**line, "outcome": outcome_of(error), "error": type(error).__name__}, request)
            raise
        self.outcome({**line, "outcome": "done", **done}, request)

    def outcome(self, line: Mapping[str, Any], request: Any, *, durable: bool = True) -> None:
        """Audits what cannot be undone any more."""
        try:
            self.audit.write([line], durable=durable)
        except ServerError as error:
            self.events.write("audit_failed", "error", **asked_by(request), **error_fields(error))
            self.metrics.add("gaitsdk_audit_failures_total", model=self.name)


class Batched(Model):
    """A model that answers many requests in one step: it stacks those that can go together and splits the answer."""

    @abstractmethod
    def read(self, request: Any) -> tuple[Hashable, tuple[NDArray[Any], ...]]:
        """What a request asks: requests with equal keys may be stacked along the first axis of their arrays."""

    @abstractmethod
    def run(self, key: Any, *arrays: NDArray[Any]) -> Arrays:
        """Answers a stack; every output's first axis is that of the inputs."""

    def record(self, request: Any, outputs: Arrays) -> None:
        """Records an answer before it goes out; what this raises goes out in its place."""

    def refuse(self, error: Exception, request: Any) -> Any:
        line = {**self.answering(), **asked_by(request), "outcome": outcome_of(error), "error": type(error).__name__}
        self.outcome({"event": "identify", **line}, request, durable=False)  # or bad requests would wear out the disk
        return super().refuse(error, request)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        self.began = time.perf_counter()
        responses: list[Any] = [None] * len(requests)
        groups: dict[Hashable, list[tuple[int, tuple[NDArray[Any], ...]]]] = {}
        for i, request in enumerate(requests):
            try:
                key, arrays = self.read(request)
                groups.setdefault(key, []).append((i, arrays))
            except Exception as error:  # noqa: BLE001 - whatever it is, the server lives and the caller gets a typed error
                responses[i] = self.refuse(error, request)
        for key, members in groups.items():
            for i, response in self._run_group(key, members, requests):
                responses[i] = response
        return responses

    def _run_group(
        self, key: Hashable, members: list[tuple[int, Any]], requests: Sequence[Any]
    ) -> list[tuple[int, Any]]:
        try:
            outputs = self.run(key, *(np.concatenate(arrays) for arrays in zip(*(m[1] for m in members), strict=True)))
        except Exception as error:  # noqa: BLE001
            if len(members) == 1:
                return [(members[0][0], self.refuse(error, requests[members[0][0]]))]
            # Alone, only the guilty request fails.
            return [answer for member in members for answer in self._run_group(key, [member], requests)]
        answers, start = [], 0
        for i, arrays in members:
            part = slice(start, start := start + len(arrays[0]))
            answers.append((i, self._respond(requests[i], {name: value[part] for name, value in outputs.items()})))
        return answers

    def _respond(self, request: Any, outputs: Arrays) -> Any:
        try:
            self.record(request, outputs)
            return self.answer(request, outputs)
        except Exception as error:  # noqa: BLE001
            return self.refuse(error, request)


def reason_of(error: Exception) -> str:
    """Why a request is refused: "quality" of its silhouettes, the "request" itself, "busy" (later it may work), or the
    "server", whose operator should look."""
    if isinstance(error, SilhouetteError):
        return "quality"
    if isinstance(error, (InputError, CalibrationError, EmptyGalleryError, UnknownIdentityError)):
        return "request"
    return "busy" if isinstance(error, GaitError) and error.retryable else "server"


def outcome_of(error: Exception) -> str:
    """What the audit calls the end of a request with this error."""
    return "failed" if reason_of(error) == "server" else "refused"


def asked_by(request: Any, parameters: Mapping[str, Any] | None = None) -> dict[str, str | None]:
    """The id that the client gave the request, and who asks, where a proxy tells (`audit.ACTOR`).

    Args:
        parameters: of the request, where they have been read already.
    """
    given = request_parameters(request) if parameters is None else parameters
    found = {name.lower(): value for name, value in given.items()}
    return {"request_id": request.request_id() or None, "actor": str(found[ACTOR]) if ACTOR in found else None}


def example_walk(size: int, channels: int) -> NDArray[np.uint8]:
    """A made-up walk `[T, S, S]` (`[T, C, S, S]` for a model of C maps), to see that every model answers."""
    walk = normalise(synthetic.sequence(0, frames=10), size).silhouettes
    return walk if channels == 1 else np.stack([walk] * channels, axis=1)


def request_parameters(request: Any) -> dict[str, Any]:
    """The request's parameters (`top_k`, `k`, `threshold`); an ensemble hands them on to all of its steps."""
    return dict(json.loads(request.parameters() or "{}"))


def list_lengths(asked: Mapping[str, Any], bundle: Bundle, reranker: str, max_k: int = MAX_K) -> tuple[int, int]:
    """The request parameters `top_k` and `k`, by default 10 and the bundle's; k is 0 where nothing is re-ranked.

    Raises:
        OptionError: not a whole number from 1 to `MAX_TOP_K` or `max_k`; fetching more could use up the memory, and an
            engine takes no longer list than it was built for.
    """
    top_k = check_count(asked.get("top_k", TOP_K), "top_k", maximum=MAX_TOP_K)
    if "k" in asked:
        return top_k, check_count(asked["k"], "k", maximum=max_k)
    return top_k, list_length(reranker, bundle)


def threshold_parameter(asked: Mapping[str, Any]) -> float | None:
    """The request parameter `threshold`, a number or the text of one, or None. OptionError where it is unusable."""
    value = asked.get("threshold")
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            pass  # refused below, as it was written
    return check_threshold(value)


def to_bytes(texts: Any) -> NDArray[np.object_]:
    """Strings (or bytes) as what Triton calls BYTES: an object array of UTF-8, of the same shape."""
    array = np.asarray(texts, dtype=object)
    flat = [text if isinstance(text, bytes) else str(text).encode() for text in array.ravel()]
    encoded = np.empty(len(flat), dtype=object)
    encoded[:] = flat
    return encoded.reshape(array.shape)
