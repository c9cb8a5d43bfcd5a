"""One request to a Triton server, over gRPC or HTTP, with typed errors. What speaks the protocol is `tritonclient`."""

from __future__ import annotations

import importlib
import threading
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import (
    DeadlineExceededError,
    GaitError,
    InputError,
    MissingDependencyError,
    OptionError,
    QueueFullError,
    RuntimeUnavailableError,
    ServerError,
    ServerUnavailableError,
)
from gaitsdk.runtimes.wire import MAX_MESSAGE_BYTES, decode_error

Arrays = Mapping[str, NDArray[Any]]
#: Seconds to find out whether anybody is there.
CONNECT_TIMEOUT = 2.0

_TYPES = {"uint8": "UINT8", "int32": "INT32", "int64": "INT64", "float32": "FP32", "float64": "FP64", "object": "BYTES"}


class Transport(Protocol):
    """Sends requests; may be used from several threads."""

    url: str

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Any], timeout: float
    ) -> dict[str, NDArray[Any]]:
        """The named outputs of a model.

        Raises:
            ServerUnavailableError: nobody answers, or the connection broke. DeadlineExceededError: not in time.
            QueueFullError: too much waits. Any GaitError that the server met. ServerError: any other failure.
            RuntimeUnavailableError: it was closed.
        """
        ...

    def close(self) -> None:
        """Closes the connections of all threads; requests in flight may fail."""
        ...


def open_transport(url: str, token: str | None) -> Transport:
    """ "grpc://host:port", "http://host:port" or "host:port" (gRPC). Does not connect yet."""
    scheme, separator, address = url.partition("://") if isinstance(url, str) else ("", "", "")
    scheme, address = (scheme, address) if separator else ("grpc", url)
    try:
        parts = urlsplit(f"//{address}")
        complete = scheme in ("grpc", "http") and bool(parts.hostname and parts.port) and parts.path in ("", "/")
    except (ValueError, TypeError):
        complete = False
    if not complete:
        raise OptionError(
            "not the address of a Triton server",
            where="url",
            got=repr(url),
            expected="grpc://host:8001, http://host:8000, or host:8001",
        )
    headers = {"authorization": f"Bearer {token}"} if token else {}
    kind = GrpcTransport if scheme == "grpc" else HttpTransport
    return kind(parts.netloc, headers)


class GrpcTransport:
    """One channel for all threads. It reconnects by itself, at least every second, when the server was away."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        self.url = f"grpc://{address}"
        self._client = _import("tritonclient.grpc")
        self._headers, self._closed = dict(headers), False
        options = [
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 500)),
            ("grpc.max_reconnect_backoff_ms", 1000),
            ("grpc.enable_retries", 0),  # an enrolment must never be sent twice
            ("grpc.use_local_subchannel_pool", 1),  # two connections to one address do not share a back-off
        ]
        self._server = self._client.InferenceServerClient(address, channel_args=options)

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Any], timeout: float
    ) -> dict[str, NDArray[Any]]:
        from tritonclient.utils import InferenceServerException

        if self._closed:
            raise _was_closed(self.url)
        try:
            answer = self._server.infer(
                model,
                _inputs(self._client, inputs),
                outputs=[self._client.InferRequestedOutput(name) for name in outputs],
                parameters=dict(parameters) or None,
                headers=self._headers,
                client_timeout=timeout,
            )
        except (InferenceServerException, ValueError) as error:
            if self._closed:  # by another thread, meanwhile
                raise _was_closed(self.url) from None
            if isinstance(error, ValueError):
                raise
            raise _typed(str(error.status()), error.message() or "", self.url, timeout) from None
        return _outputs(answer, outputs)

    def close(self) -> None:
        self._closed = True
        self._server.close()


class HttpTransport:
    """One client per thread: tritonclient's HTTP client must not be shared."""

    def __init__(self, address: str, headers: Mapping[str, str]) -> None:
        self.url = f"http://{address}"
        self._address, self._headers = address, dict(headers)
        self._client = _import("tritonclient.http")
        self._local = threading.local()
        # Of all threads, to close them; weak, because those of a thread that ended are gone with it.
        self._servers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock, self._closed = threading.Lock(), False

    def infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str], parameters: Mapping[str, Any], timeout: float
    ) -> dict[str, NDArray[Any]]:
        from geventhttpclient.response import HTTPParseError
        from tritonclient.utils import InferenceServerException

        tensors = _inputs(self._client, inputs)
        size = sum(int(array.nbytes) for array in inputs.values())
        if size > MAX_MESSAGE_BYTES:
            raise _typed("RESOURCE_EXHAUSTED", f"{size} bytes", self.url, timeout)
        try:
            answer = self._server(timeout).infer(
                model,
                tensors,
                outputs=[self._client.InferRequestedOutput(name) for name in outputs],
                parameters=dict(parameters) or None,
                headers=self._headers,
            )
        except InferenceServerException as error:
            raise _typed(str(error.status()), error.message() or "", self.url, timeout) from None
        except (OSError, HTTPParseError, RuntimeError) as error:
            self._forget()
            if self._closed:  # by another thread, meanwhile
                raise _was_closed(self.url) from None
            if isinstance(error, RuntimeError):
                raise
            status = "DEADLINE_EXCEEDED" if isinstance(error, TimeoutError) else "UNAVAILABLE"
            raise _typed(status, str(error), self.url, timeout) from None
        return _outputs(answer, outputs)

    def _server(self, timeout: float) -> Any:
        # A client has one time-out for life; there are few different ones (the engine's, and the first contact's).
        servers = self._local.__dict__.setdefault("servers", {})
        with self._lock:
            if self._closed:
                raise _was_closed(self.url)
            if timeout not in servers:
                servers[timeout] = self._client.InferenceServerClient(
                    self._address, connection_timeout=CONNECT_TIMEOUT, network_timeout=timeout
                )
                self._servers.add(servers[timeout])
            return servers[timeout]

    def _forget(self) -> None:
        """Closes this thread's connections: after a failure, what arrives on them may belong to an older request."""
        for server in self._local.__dict__.pop("servers", {}).values():
            server.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            servers = list(self._servers)
        for server in servers:
            server.close()


def _was_closed(url: str) -> RuntimeUnavailableError:
    return RuntimeUnavailableError("the recognizer was closed; connect again", where=url, fix="Recognizer.connect(...)")


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            "talking to a Triton server needs tritonclient", got=str(error), fix="pip install 'gaitsdk[client]'"
        ) from error


def _inputs(client: Any, arrays: Arrays) -> list[Any]:
    tensors = []
    for name, array in arrays.items():
        tensor = client.InferInput(name, list(array.shape), _TYPES[array.dtype.name])
        tensor.set_data_from_numpy(np.ascontiguousarray(array))
        tensors.append(tensor)
    return tensors


def _outputs(answer: Any, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    arrays = {name: answer.as_numpy(name) for name in names}
    missing = [name for name, array in arrays.items() if array is None]
    if missing:
        raise ServerError("the server's answer lacks outputs", got=f"no {', '.join(missing)}")
    return arrays


def _typed(status: str, message: str, url: str, timeout: float) -> GaitError:
    """The error of our tree that a status (gRPC's code or HTTP's number) and its message stand for."""
    told = decode_error(message)
    if told is not None:
        return told
    if "maximum queue size" in message.lower():
        return QueueFullError("the server's queue is full", where=url, fix="try again later, or send fewer at a time")
    if "is not healthy" in message:
        return ServerUnavailableError("a model of the server died", where=url, fix="start the server again")
    if "DEADLINE_EXCEEDED" in status:
        return DeadlineExceededError(
            "no answer in time", where=url, expected=f"one within {timeout:g} s", fix="pass a longer timeout"
        )
    if "RESOURCE_EXHAUSTED" in status:
        expected = f"at most {MAX_MESSAGE_BYTES} bytes"
        return InputError("too large a request", where=url, got=message, expected=expected, fix="send less at once")
    if "UNAVAILABLE" in status or "CANCELLED" in status or status == "503":
        return ServerUnavailableError(
            "no Triton server answers", where=url, got=message, fix="start one: gaitsdk serve, or check the address"
        )
    return ServerError("the server refused the request", where=url, got=f"{status}: {message}")
