"""The remote engines: the verbs of `gaitsdk.engine.Engine`, answered by a Triton server that `gaitsdk serve` runs.

`RemoteEngine` waits in the calling thread, `AsyncRemoteEngine` with `await`; what they say is in conversations.py.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from gaitsdk.errors import DeadlineExceededError, GaitError, ServerUnavailableError
from gaitsdk.pipeline import Answers, Features, Silhouettes
from gaitsdk.runtimes.addresses import Security
from gaitsdk.runtimes.conversations import DESCRIBE, Conversations, Done, Talk, advance
from gaitsdk.runtimes.retries import RETRIES, TIMEOUT, check_retries, check_seconds
from gaitsdk.runtimes.transport import open_async_transport, open_transport, send, send_async
from gaitsdk.runtimes.wire import CONNECT_TIMEOUT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gaitsdk.engine import Description, Meanwhile
    from gaitsdk.runtimes.transport import AsyncTransport

T = TypeVar("T")


class RemoteEngine:
    """A Triton server as an engine. May be used from several threads.

    Where the server was away, the same engine works again once it is back. A request is sent again after an error that
    may pass (nobody there, a broken connection, a full queue), with pauses, inside its time. Enrolments and deletions
    are not, unless they certainly did not reach the server.

    Args:
        url: "grpc://host:port", "http://host:port", "grpcs://" and "https://" for TLS, or "host:port" (gRPC).
        security: token, certificates.
        timeout: seconds for one request with all of its attempts; the server gets what is left of them as the
            request's deadline. A call that is split into n requests has n times as long.
        retries: further attempts.
        connect_timeout: seconds for the first request, which finds out whether a gaitsdk server is there.

    Raises:
        ServerUnavailableError: nobody answers there within two seconds.
        ServerError: something answers, but it is not a gaitsdk repository.
    """

    def __init__(
        self,
        url: str,
        security: Security | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> None:
        self._timeout, self._retries = check_seconds(timeout), check_retries(retries)
        self._transport = open_transport(url, security or Security())
        try:
            reply = send(self._transport, DESCRIBE, min(connect_timeout, self._timeout), self._retries)
            self._talk = Conversations.read(self._transport.url, reply)
        except GaitError as error:
            self.close()
            raise _first_contact(error) from error.__cause__
        self.description: Description = self._talk.description

    def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        return self._run(self._talk.embed(sequences))

    def identify(
        self,
        sequences: Sequence[Silhouettes],
        top_k: int,
        k: int,
        threshold: float | None,
        min_sequence: int = 0,
        meanwhile: Meanwhile | None = None,
    ) -> Answers:
        return self._run(self._talk.identify(sequences, top_k, k, threshold, min_sequence), meanwhile)

    def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]:
        return self._run(self._talk.search(features, k, min_sequence))

    def rerank(self, probe: Features, candidates: Features) -> Features:
        return self._run(self._talk.rerank(probe, candidates))

    def verify_threshold(self) -> float | None:
        return self._talk.verify_threshold()

    def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        return self._run(self._talk.enroll(identity, sequences))

    def delete(self, identity: str) -> int:
        return self._run(self._talk.delete(identity))

    def identities(self) -> list[str]:
        return self._run(self._talk.identities())

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        return self._run(self._talk.thumbnails(entry_ids))

    def count(self) -> int:
        return self._run(self._talk.count())

    def gallery_sequence(self) -> int:
        return self._run(self._talk.gallery_sequence())

    def close(self) -> None:
        self._transport.close()

    def _run(self, talk: Talk[T], meanwhile: Meanwhile | None = None) -> T:
        step = advance(talk, None, self._transport.url)
        while not isinstance(step, Done):
            reply = send(self._transport, step, self._timeout, self._retries, meanwhile)
            meanwhile = None
            step = advance(talk, reply, self._transport.url)
        return step.answer


class AsyncRemoteEngine:
    """The same with `await`, for the tasks of one event loop: any number at a time, over one connection where it is
    gRPC. Cancelling a task cancels its request. Made by `open`."""

    def __init__(
        self, url: str, security: Security, transport: AsyncTransport, talk: Conversations, timeout: float, retries: int
    ) -> None:
        self._url, self._security, self._transport, self._talk = url, security, transport, talk
        self._timeout, self._retries = timeout, retries
        self.description: Description = talk.description
        self._pictures: RemoteEngine | None = None
        self._lock = threading.Lock()

    @classmethod
    async def open(
        cls,
        url: str,
        security: Security | None = None,
        *,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        connect_timeout: float = CONNECT_TIMEOUT,
    ) -> AsyncRemoteEngine:
        """Connects; arguments and errors as of `RemoteEngine`."""
        security = security or Security()
        timeout, retries = check_seconds(timeout), check_retries(retries)
        transport = open_async_transport(url, security)
        try:
            reply = await send_async(transport, DESCRIBE, min(connect_timeout, timeout), retries)
            talk = Conversations.read(transport.url, reply)
        except GaitError as error:
            await transport.close()
            raise _first_contact(error) from error.__cause__
        except BaseException:  # cancelled
            await transport.close()
            raise
        return cls(url, security, transport, talk, timeout, retries)

    async def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        return await self._run(self._talk.embed(sequences))

    async def identify(
        self, sequences: Sequence[Silhouettes], top_k: int, k: int, threshold: float | None, min_sequence: int = 0
    ) -> Answers:
        return await self._run(self._talk.identify(sequences, top_k, k, threshold, min_sequence))

    async def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]:
        return await self._run(self._talk.search(features, k, min_sequence))

    async def rerank(self, probe: Features, candidates: Features) -> Features:
        return await self._run(self._talk.rerank(probe, candidates))

    def verify_threshold(self) -> float | None:
        return self._talk.verify_threshold()

    async def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        return await self._run(self._talk.enroll(identity, sequences))

    async def delete(self, identity: str) -> int:
        return await self._run(self._talk.delete(identity))

    async def identities(self) -> list[str]:
        return await self._run(self._talk.identities())

    async def count(self) -> int:
        return await self._run(self._talk.count())

    async def gallery_sequence(self) -> int:
        return await self._run(self._talk.gallery_sequence())

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        """Without `await`, because results ask for them when they draw themselves: over a connection of its own."""
        with self._lock:
            if self._pictures is None:
                self._pictures = RemoteEngine(self._url, self._security, timeout=self._timeout, retries=self._retries)
        return self._pictures.thumbnails(entry_ids)

    async def close(self) -> None:
        if self._pictures is not None:
            self._pictures.close()
        await self._transport.close()

    async def _run(self, talk: Talk[T]) -> T:
        step = advance(talk, None, self._transport.url)
        while not isinstance(step, Done):
            reply = await send_async(self._transport, step, self._timeout, self._retries)
            step = advance(talk, reply, self._transport.url)
        return step.answer


def _first_contact(error: GaitError) -> GaitError:
    """Whoever does not answer the first request is not there."""
    if not isinstance(error, DeadlineExceededError):
        return error
    fix = "start one: gaitsdk serve, or check the address"
    return ServerUnavailableError("no Triton server answers", where=error.where, got=error.got, fix=fix)
