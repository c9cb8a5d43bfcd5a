"""One request to a Triton server, over gRPC or HTTP, with typed errors; sent again where that may help."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Protocol

from gaitsdk.errors import GaitError
from gaitsdk.runtimes.addresses import Security, parse_address
from gaitsdk.runtimes.grpc_transport import AsyncGrpcTransport, GrpcTransport
from gaitsdk.runtimes.http_transport import AsyncHttpTransport, HttpTransport
from gaitsdk.runtimes.retries import Attempts
from gaitsdk.runtimes.tensors import Reply, Request

if TYPE_CHECKING:
    from gaitsdk.engine import Meanwhile


class Transport(Protocol):
    """Sends requests; may be used from several threads."""

    url: str

    def infer(self, request: Request, timeout: float, meanwhile: Meanwhile | None = None) -> Reply:
        """The outputs that the request names, within `timeout` seconds. `meanwhile` is called once the request is on
        its way; what it raises is raised in the answer's place.

        Raises:
            ServerUnavailableError: nobody answers, or the connection broke. DeadlineExceededError: not in time.
            QueueFullError: too much waits. AccessDeniedError, TlsError. Any GaitError that the server met.
            ServerError: any other failure. RuntimeUnavailableError: it was closed.
        """
        ...

    def close(self) -> None:
        """Closes the connections of all threads; requests in flight may fail."""
        ...


class AsyncTransport(Protocol):
    """The same with `await`, for the tasks of one event loop."""

    url: str

    async def infer(self, request: Request, timeout: float) -> Reply: ...

    async def close(self) -> None: ...


def open_transport(url: str, security: Security) -> Transport:
    """For "grpc://host:port", "http://host:port", with an s for TLS, or "host:port" (gRPC). Does not connect yet."""
    address = parse_address(url, security)
    return GrpcTransport(address) if address.protocol == "grpc" else HttpTransport(address)


def open_async_transport(url: str, security: Security) -> AsyncTransport:
    """The same for the running event loop."""
    address = parse_address(url, security)
    return AsyncGrpcTransport(address) if address.protocol == "grpc" else AsyncHttpTransport(address)


def send(
    transport: Transport, request: Request, budget: float, retries: int, meanwhile: Meanwhile | None = None
) -> Reply:
    """One request with all of its attempts, in `budget` seconds, and `meanwhile` in each of them."""
    attempts = Attempts(budget, retries, request.repeatable)
    while True:
        try:
            return transport.infer(request, attempts.remaining(), meanwhile)
        except GaitError as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        time.sleep(pause)


async def send_async(transport: AsyncTransport, request: Request, budget: float, retries: int) -> Reply:
    """One request with all of its attempts, in `budget` seconds."""
    attempts = Attempts(budget, retries, request.repeatable)
    while True:
        try:
            return await transport.infer(request, attempts.remaining())
        except GaitError as error:
            pause = attempts.pause_after(error)
            if pause is None:
                raise
        await asyncio.sleep(pause)
