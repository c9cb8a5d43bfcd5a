"""What the repository's Python models share: settings, parsing, batching, typed errors. Runs inside Triton's backend.

Shapes: B sequences in a request, T frames, S pixels, s strips, d dimensions, M candidates listed, K of them re-ranked.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk import synthetic
from gaitsdk.errors import BundleError, GaitError, InputError, OptionError, UnknownIdentityError
from gaitsdk.pipeline import MAX_K, check_count, check_threshold
from gaitsdk.recognizer import TOP_K
from gaitsdk.rerankers import check_reranker, list_length
from gaitsdk.runtimes.wire import MAX_TOP_K, encode_error
from gaitsdk.silhouettes import normalise

if TYPE_CHECKING:
    from gaitsdk.bundle import Bundle
    from gaitsdk.gallery import Gallery
    from gaitsdk.runtimes import NetworkRuntime

logger = logging.getLogger(__name__)

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
    """

    bundle: str | None = None
    gallery: str | None = None
    runtime: str = "auto"
    device: str = "auto"
    threads: int | None = None

    @classmethod
    def from_environment(cls) -> Settings:
        """Reads the variables above. OptionError where `GAITSDK_THREADS` is no number."""
        found = {name: os.environ.get(f"GAITSDK_{name.upper()}") or None for name in cls.__dataclass_fields__}
        threads = found["threads"]
        if threads is not None and not threads.isdecimal():
            raise OptionError("not a number of threads", where="GAITSDK_THREADS", got=threads, expected="1, 2, ...")
        return cls(
            bundle=found["bundle"],
            gallery=found["gallery"],
            runtime=found["runtime"] or "auto",
            device=found["device"] or "auto",
            threads=int(threads) if threads else None,
        )

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
        self.pb = importlib.import_module("triton_python_backend_utils")
        self.config: dict[str, Any] = json.loads(args["model_config"])
        self.settings = Settings.from_environment()
        self.bundle = self.settings.open_bundle(self.parameter("fingerprint"))
        self.reranker = check_reranker(self.parameter("reranker"), self.bundle)
        self.open()

    @abstractmethod
    def open(self) -> None:
        """Opens networks or the gallery; what it raises keeps the server from starting."""

    @abstractmethod
    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response per request, in order."""

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

    def refuse(self, error: Exception) -> Any:
        """A response that carries a typed error; what is not ours to tell goes to the log only."""
        codes = self.pb.TritonError
        code = codes.INVALID_ARG if isinstance(error, InputError) else codes.INTERNAL
        if isinstance(error, UnknownIdentityError):
            code = codes.NOT_FOUND
        if isinstance(error, GaitError) and error.retryable:
            code = codes.UNAVAILABLE
        if not isinstance(error, GaitError):
            logger.error("%s failed", self.config["name"], exc_info=error)
        self.pb.Logger.log_warn(f"{self.config['name']}: {type(error).__name__}: {error}")
        return self.pb.InferenceResponse(error=codes(encode_error(error), code))


class Batched(Model):
    """A model that answers many requests in one step: it stacks those that can go together and splits the answer."""

    @abstractmethod
    def read(self, request: Any) -> tuple[Hashable, tuple[NDArray[Any], ...]]:
        """What a request asks: requests with equal keys may be stacked along the first axis of their arrays."""

    @abstractmethod
    def run(self, key: Any, *arrays: NDArray[Any]) -> Arrays:
        """Answers a stack; every output's first axis is that of the inputs."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        responses: list[Any] = [None] * len(requests)
        groups: dict[Hashable, list[tuple[int, tuple[NDArray[Any], ...]]]] = {}
        for i, request in enumerate(requests):
            try:
                key, arrays = self.read(request)
                groups.setdefault(key, []).append((i, arrays))
            except Exception as error:  # noqa: BLE001 - whatever it is, the server lives and the caller gets a typed error
                responses[i] = self.refuse(error)
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
                return [(members[0][0], self.refuse(error))]
            # Alone, only the guilty request fails.
            return [answer for member in members for answer in self._run_group(key, [member], requests)]
        answers, start = [], 0
        for i, arrays in members:
            part = slice(start, start := start + len(arrays[0]))
            answers.append((i, self.answer(requests[i], {name: value[part] for name, value in outputs.items()})))
        return answers


def example_walk(size: int, channels: int) -> NDArray[np.uint8]:
    """A made-up walk `[T, S, S]` (`[T, C, S, S]` for a model of C maps), to see that every model answers."""
    walk = normalise(synthetic.sequence(0, frames=10), size).silhouettes
    return walk if channels == 1 else np.stack([walk] * channels, axis=1)


def request_parameters(request: Any) -> dict[str, Any]:
    """The request's parameters (`top_k`, `k`, `threshold`); an ensemble hands them on to all of its steps."""
    return dict(json.loads(request.parameters() or "{}"))


def list_lengths(asked: Mapping[str, Any], bundle: Bundle, reranker: str) -> tuple[int, int]:
    """The request parameters `top_k` and `k`, by default 10 and the bundle's; k is 0 where nothing is re-ranked.

    Raises:
        OptionError: not a whole number from 1 to `MAX_TOP_K` or `MAX_K`; fetching more could use up the memory.
    """
    top_k = check_count(asked.get("top_k", TOP_K), "top_k", maximum=MAX_TOP_K)
    if "k" in asked:
        return top_k, check_count(asked["k"], "k", maximum=MAX_K)
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
