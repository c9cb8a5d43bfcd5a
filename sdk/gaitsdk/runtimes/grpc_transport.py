"""Requests over gRPC: one channel for all threads, or for all tasks of an event loop."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

from gaitsdk.errors import GaitError
from gaitsdk.runtimes.addresses import Address
from gaitsdk.runtimes.statuses import typed, unreadable, was_closed
from gaitsdk.runtimes.tensors import (
    TYPES,
    Reply,
    Request,
    call_arguments,
    import_client,
    microseconds,
    raw_bytes,
    reply,
)
from gaitsdk.runtimes.wire import CONNECT_TIMEOUT, MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from gaitsdk.engine import Meanwhile

#: Seconds that closing waits for answers that nobody wants any more.
_CLOSING = 1.0
_PARAMETERS = {str: "string_param", bool: "bool_param", int: "int64_param", float: "double_param"}


class GrpcTransport:
    """One channel for all threads. It reconnects by itself, at least every second, when the server was away.

    A request is sent by one call and its answer awaited by another, both in the calling thread, so that something can
    be done between them. tritonclient offers that with a thread of gRPC's only, which costs a quarter of a millisecond;
    so only its messages are used here.
    """

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._grpc, self._messages = import_client("grpc"), import_client("tritonclient.grpc.service_pb2")
        self._result = import_client("tritonclient.grpc").InferResult
        self._headers, self._closed = tuple(address.headers.items()), False
        self._unwanted: list[threading.Thread] = []
        arguments = _channel(address)
        experimental = import_client("grpc.experimental").ChannelOptions
        options = [*arguments["channel_args"], (experimental.SingleThreadedUnaryStream, 1)]
        credentials = arguments.get("creds")
        if credentials is None:
            self._channel = self._grpc.insecure_channel(address.netloc, options)
        else:
            self._channel = self._grpc.secure_channel(address.netloc, credentials, options)
        # To gRPC a call with one answer is a stream with one message.
        self._ask = self._channel.unary_stream(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=self._messages.ModelInferRequest.SerializeToString,
            response_deserializer=self._messages.ModelInferResponse.FromString,
        )

    def infer(self, request: Request, timeout: float, meanwhile: Meanwhile | None = None) -> Reply:
        if self._closed:
            raise was_closed(self.url)
        call = self._send(request, timeout)
        try:
            if meanwhile is not None:
                meanwhile()
            answers = list(islice(call, 2))
        except self._grpc.RpcError as error:
            if self._closed:  # by another thread, meanwhile
                raise was_closed(self.url) from None
            raise typed(str(error.code()), error.details() or "", self.url, timeout) from None
        except BaseException:  # of `meanwhile`, or Ctrl-C
            self._hear_out(call)
            raise
        finally:
            del call  # it is the error itself, and would hold this frame, which holds it
        if len(answers) != 1:
            raise unreadable(self.url, ValueError(f"{len(answers) or 'no'} messages"))
        return _read(self._result(answers[0]), request, self.url)

    def _send(self, request: Request, timeout: float) -> Any:
        try:
            return self._ask(message(self._messages, request, timeout), timeout=timeout, metadata=self._headers)
        except ValueError:  # what gRPC says of a closed channel
            if self._closed:
                raise was_closed(self.url) from None
            raise

    def _hear_out(self, call: Any) -> None:
        """Waits, in a thread, for an answer that nobody wants any more: older servers may die of a call that is
        cancelled, and a call is cancelled when it is forgotten or its channel closed. It has a deadline."""

        def wait() -> None:
            with suppress(Exception):
                list(islice(call, 2))

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        self._unwanted = [*(each for each in self._unwanted if each.is_alive()), thread]

    def close(self) -> None:
        self._closed = True
        until = time.monotonic() + _CLOSING
        for each in self._unwanted:
            each.join(max(0.0, until - time.monotonic()))
        self._channel.close()


class AsyncGrpcTransport:
    """The same with `await`; belongs to the event loop in which it was made."""

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._client = import_client("tritonclient.grpc.aio")
        self._headers, self._closed = dict(address.headers), False
        self._server = self._client.InferenceServerClient(address.netloc, **_channel(address))

    async def infer(self, request: Request, timeout: float) -> Reply:
        if self._closed:
            raise was_closed(self.url)
        arguments = call_arguments(self._client, request, timeout)
        call = self._server.infer(request.model, headers=self._headers, client_timeout=timeout, **arguments)
        try:
            answer = await call
        except self._client.InferenceServerException as error:
            if self._closed:
                raise was_closed(self.url) from None
            raise _typed(error, self.url, timeout) from None
        except asyncio.CancelledError:
            # Closing the channel looks like a cancelled task; a task that was cancelled must stay so.
            if self._closed and not _is_cancelled():
                raise was_closed(self.url) from None
            raise
        return _read(answer, request, self.url)

    async def close(self) -> None:
        self._closed = True
        await self._server.close()


def message(messages: Any, request: Request, timeout: float) -> Any:
    """The request as Triton's message; the time-out in it is for the server's queues.

    Args:
        messages: tritonclient's module `service_pb2`.
    """
    made = messages.ModelInferRequest(model_name=request.model, id=request.id)
    for name, array in request.inputs.items():
        made.inputs.add(name=name, datatype=TYPES[array.dtype.name], shape=array.shape)
        made.raw_input_contents.append(raw_bytes(array))
    for name in request.outputs:
        made.outputs.add(name=name)
    made.parameters["timeout"].int64_param = microseconds(timeout)
    for name, value in request.parameters.items():
        setattr(made.parameters[name], _PARAMETERS[type(value)], value)
    return made


def _channel(address: Address) -> dict[str, Any]:
    options = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", int(CONNECT_TIMEOUT * 500)),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # Bytes that the other machine does not confirm within this time end the connection (TCP_USER_TIMEOUT). Pings
        # come too seldom to be taken for an attack.
        ("grpc.keepalive_time_ms", 600_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.enable_retries", 0),  # ours know what may be sent twice
        ("grpc.use_local_subchannel_pool", 1),  # two connections to one address do not share a back-off
    ]
    if not address.tls:
        return {"channel_args": options}
    credentials = import_client("grpc").ssl_channel_credentials(**address.security.tls_bytes())
    return {"channel_args": options, "creds": credentials}


def _typed(error: Any, url: str, timeout: float) -> GaitError:
    return typed(str(error.status()), error.message() or "", url, timeout)


def _read(answer: Any, request: Request, url: str) -> Reply:
    try:
        return reply(answer, request.outputs, url)
    except (ValueError, TypeError, LookupError) as error:
        raise unreadable(url, error) from error


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    cancelling = getattr(task, "cancelling", None)  # since Python 3.11
    return cancelling is not None and bool(cancelling())
