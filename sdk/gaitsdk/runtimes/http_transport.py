"""Requests over HTTP: a pool of connections for all threads, or one session for all tasks of an event loop.

tritonclient's own HTTP client may not be shared between threads and cannot tell a request that was never sent from one
that got no answer, so only its formats are used for the threads' side; the tasks' side is its aiohttp client.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
import threading
import time
from typing import TYPE_CHECKING

from gaitsdk.errors import GaitError
from gaitsdk.runtimes.addresses import Address
from gaitsdk.runtimes.http_connection import Answer, HttpConnection
from gaitsdk.runtimes.statuses import bad_tls, too_large, too_late, typed, unavailable, unreadable, was_closed
from gaitsdk.runtimes.tensors import Reply, Request, call_arguments, import_client, reply
from gaitsdk.runtimes.wire import MAX_MESSAGE_BYTES

if TYPE_CHECKING:
    from gaitsdk.engine import Meanwhile

#: Connections that are kept open while nobody needs them.
IDLE = 16


class HttpTransport:
    """A pool: every request has a connection for itself while it lasts, in whatever thread."""

    def __init__(self, address: Address) -> None:
        self.url, self._address = address.url, address
        self._client = import_client("tritonclient.http")
        self._context = address.security.tls_context() if address.tls else None
        self._idle: list[HttpConnection] = []
        self._busy: set[HttpConnection] = set()
        self._lock, self._closed = threading.Lock(), False

    def infer(self, request: Request, timeout: float, meanwhile: Meanwhile | None = None) -> Reply:
        deadline = time.monotonic() + timeout
        if request.nbytes > MAX_MESSAGE_BYTES:
            raise too_large(self.url, f"{request.nbytes} bytes")
        arguments = call_arguments(self._client, request, timeout)
        body, size = self._client.InferenceServerClient.generate_request_body(**arguments)
        headers = {**self._address.headers, "content-type": "application/octet-stream"}
        if size is not None:
            headers["inference-header-content-length"] = str(size)
        connection = self._take(deadline)
        kept = False  # after a failure, what arrives on it may belong to an older request
        try:
            answer = connection.post(f"/v2/models/{request.model}/infer", body, headers, deadline, meanwhile)
            kept = answer.kept
        except (OSError, http.client.HTTPException) as error:
            raise self._failed(error, timeout) from error
        finally:
            self._give(connection, kept)
        return self._read(answer, request, timeout)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            for connection in self._busy:
                connection.interrupt()
        for connection in idle:
            connection.close()

    def _take(self, deadline: float) -> HttpConnection:
        while True:
            with self._lock:
                if self._closed:
                    raise was_closed(self.url)
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                connection = HttpConnection(self._address, self._context, deadline)
            elif not connection.is_fresh():
                connection.close()
                continue
            with self._lock:
                if not self._closed:
                    self._busy.add(connection)
                    return connection
            connection.close()

    def _give(self, connection: HttpConnection, kept: bool) -> None:
        with self._lock:
            self._busy.discard(connection)
            if kept and not self._closed and len(self._idle) < IDLE:
                self._idle.append(connection)
                return
        connection.close()

    def _failed(self, error: Exception, timeout: float) -> GaitError:
        if self._closed:  # by another thread, meanwhile
            return was_closed(self.url)
        if isinstance(error, TimeoutError):
            return too_late(self.url, timeout)
        if _is_alert(error):
            return bad_tls(self.url, str(error))
        return unavailable(self.url, str(error) or type(error).__name__, reached=True)

    def _read(self, answer: Answer, request: Request, timeout: float) -> Reply:
        if answer.status != 200:
            raise typed(str(answer.status), _message(answer.body), self.url, timeout)
        headers = answer.headers
        try:
            result = self._client.InferenceServerClient.parse_response_body(
                answer.body,
                header_length=headers.get("inference-header-content-length"),
                content_encoding=headers.get("content-encoding"),
            )
            return reply(result, request.outputs, self.url)
        except (ValueError, TypeError, LookupError, self._client.InferenceServerException) as error:
            raise unreadable(self.url, error) from error


class AsyncHttpTransport:
    """One aiohttp session; belongs to the event loop in which it was made."""

    def __init__(self, address: Address) -> None:
        self.url, self._headers = address.url, dict(address.headers)
        self._client, self._aiohttp = import_client("tritonclient.http.aio"), import_client("aiohttp")
        context = address.security.tls_context() if address.tls else True
        self._server = self._client.InferenceServerClient(
            address.netloc, ssl=address.tls, ssl_context=context, conn_timeout=None
        )
        self._closed = False

    async def infer(self, request: Request, timeout: float) -> Reply:
        if request.nbytes > MAX_MESSAGE_BYTES:
            raise too_large(self.url, f"{request.nbytes} bytes")
        if self._closed:
            raise was_closed(self.url)
        arguments = call_arguments(self._client, request, timeout)
        call = self._server.infer(request.model, headers=dict(self._headers), **arguments)
        try:
            return reply(await asyncio.wait_for(call, timeout), request.outputs, self.url)
        except self._client.InferenceServerException as error:
            raise typed(str(error.status()), str(error.message() or ""), self.url, timeout) from None
        except (self._aiohttp.ClientError, OSError, asyncio.TimeoutError, RuntimeError) as error:
            raise self._failed(error, timeout) from error
        except (ValueError, TypeError, LookupError) as error:
            raise unreadable(self.url, error) from error

    async def close(self) -> None:
        self._closed = True
        await self._server.close()

    def _failed(self, error: Exception, timeout: float) -> BaseException:
        errors = self._aiohttp
        if self._closed:
            return was_closed(self.url)
        if isinstance(error, (TimeoutError, asyncio.TimeoutError)):
            return too_late(self.url, timeout)
        if isinstance(error, errors.ClientSSLError) or _is_alert(error):
            return bad_tls(self.url, str(error))
        if isinstance(error, RuntimeError):
            return error
        reached = not isinstance(error, errors.ClientConnectorError)
        return unavailable(self.url, str(error) or type(error).__name__, reached=reached)


def _is_alert(error: Exception) -> bool:
    """Whether the server refused the client's certificate; with TLS 1.3 it does so after the handshake."""
    return isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason)


def _message(body: bytes) -> str:
    """The text of a refusal: the `error` of Triton's JSON, or what a proxy wrote."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
    except ValueError:
        return text[:500]
    return str(told.get("error", text[:500])) if isinstance(told, dict) else text[:500]
