"""Requests over gRPC: one channel for all threads, or for all tasks of an event loop."""

from __future__ import annotations

import asyncio
from typing import Any

from gaitsdk.errors import GaitError
from gaitsdk.runtimes.addresses import Address
from gaitsdk.runtimes.statuses import typed, unreadable, was_closed
from gaitsdk.runtimes.tensors import Reply, Request, call_arguments, import_client, reply
from gaitsdk.runtimes.wire import CONNECT_TIMEOUT, MAX_MESSAGE_BYTES


class GrpcTransport:
    """One channel for all threads. It reconnects by itself, at least every second, when the server was away."""

    def __init__(self, address: Address) -> None:
        self.url = address.url
        self._client = import_client("tritonclient.grpc")
        self._headers, self._closed = dict(address.headers), False
        self._server = self._client.InferenceServerClient(address.netloc, **_channel(address))

    def infer(self, request: Request, timeout: float) -> Reply:
        if self._closed:
            raise was_closed(self.url)
        arguments = call_arguments(self._client, request, timeout)
        try:
            answer = self._server.infer(request.model, headers=self._headers, client_timeout=timeout, **arguments)
        except self._client.InferenceServerException as error:
            if self._closed:  # by another thread, meanwhile
                raise was_closed(self.url) from None
            raise _typed(error, self.url, timeout) from None
        except ValueError:  # what gRPC says of a closed channel
            if self._closed:
                raise was_closed(self.url) from None
            raise
        return _read(answer, request, self.url)

    def close(self) -> None:
        self._closed = True
        self._server.close()


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
