"""AsyncRecognizer: the verbs of Recognizer with `await`, against Triton or in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from gaitsdk import pipeline
from gaitsdk.gallery.entries import check_identity
from gaitsdk.pipeline import Answers, Features, Silhouettes
from gaitsdk.recognizer import TOP_K, Recognizer
from gaitsdk.results import Identification, Verification
from gaitsdk.runtimes.retries import RETRIES, TIMEOUT

if TYPE_CHECKING:
    from types import TracebackType

    from gaitsdk.engine import Description, Engine
    from gaitsdk.walks import Walks

T = TypeVar("T")


class AsyncEngine(Protocol):
    """`gaitsdk.engine.Engine` with `await`."""

    @property
    def description(self) -> Description: ...

    async def embed(self, sequences: Sequence[Silhouettes]) -> Features: ...

    async def identify(
        self, sequences: Sequence[Silhouettes], top_k: int, k: int, threshold: float | None, min_sequence: int = 0
    ) -> Answers: ...

    async def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]: ...

    async def rerank(self, probe: Features, candidates: Features) -> Features: ...

    def verify_threshold(self) -> float | None: ...

    async def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]: ...

    async def delete(self, identity: str) -> int: ...

    async def identities(self) -> list[str]: ...

    async def count(self) -> int: ...

    async def gallery_sequence(self) -> int: ...

    def thumbnails(self, entry_ids: list[int]) -> list[Silhouettes | None]:
        """Waits in the calling thread: results ask for them when they draw themselves."""
        ...

    async def close(self) -> None: ...


class Opening(Awaitable["AsyncRecognizer"]):
    """An AsyncRecognizer that is being opened: `await` it, or use it as an asynchronous context manager."""

    def __init__(self, engine: Callable[[], Awaitable[AsyncEngine]]) -> None:
        self._engine = engine
        self._opened: AsyncRecognizer | None = None

    async def _open(self) -> AsyncRecognizer:
        self._opened = AsyncRecognizer(await self._engine())
        return self._opened

    def __await__(self) -> Generator[Any, None, AsyncRecognizer]:
        return self._open().__await__()

    async def __aenter__(self) -> AsyncRecognizer:
        return await self._open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._opened is not None:
            await self._opened.close()


class AsyncRecognizer:
    """A Recognizer for asynchronous programs: the same verbs, arguments, answers and errors, with `await`.

    async with AsyncRecognizer.connect("grpc://localhost:8001") as rec:
        results = await asyncio.gather(*(rec.identify(each) for each in walks))

    Any number of tasks of one event loop may use it. What takes the CPU's time (normalising silhouettes; everything,
    where it is in this process) runs in threads, so that the event loop goes on. A cancelled task's request is
    cancelled; work that already runs in a thread ends by itself. What a result draws (`plot`, `save`, `thumbnails`)
    waits in the calling thread: use `asyncio.to_thread`.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # For what comes before and after the engine's part; that reads the description and the thumbnails only.
        self._rules = Recognizer(cast("Engine", engine))

    @classmethod
    def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        timeout: float = TIMEOUT,
        retries: int = RETRIES,
        ca: str | os.PathLike[str] | None = None,
        cert: str | os.PathLike[str] | None = None,
        key: str | os.PathLike[str] | None = None,
        headers: Mapping[str, str] | None = None,
        plaintext_token: bool = False,
    ) -> Opening:
        """Against a Triton server; arguments and errors as of `Recognizer.connect`."""

        async def engine() -> AsyncEngine:
            from gaitsdk.runtimes.addresses import Security
            from gaitsdk.runtimes.triton import AsyncRemoteEngine

            security = Security(token, headers or {}, ca, cert, key, plaintext_token)
            return await AsyncRemoteEngine.open(url, security, timeout=timeout, retries=retries)

        return Opening(engine)

    @classmethod
    def load(cls, *arguments: Any, **options: Any) -> Opening:
        """Everything in this process; arguments and errors as of `Recognizer.load`."""

        async def engine() -> AsyncEngine:
            opened = await asyncio.to_thread(Recognizer.load, *arguments, **options)
            return ThreadedEngine(opened._engine)

        return Opening(engine)

    @property
    def description(self) -> Description:
        """Model, runtime, device and re-ranker really in use."""
        return self._engine.description

    async def enroll(self, identity: str, silhouettes: Any) -> list[int]:
        """Adds one entry per sequence to the gallery; durable when it returns. Gives the entries' ids."""
        check_identity(identity)
        walks = await asyncio.to_thread(self._rules._prepare, silhouettes)
        return await self._engine.enroll(identity, walks.sequences)

    async def identify(
        self,
        silhouettes: Any,
        top_k: int = TOP_K,
        *,
        k: int | None = None,
        threshold: float | None = None,
        min_sequence: int | None = None,
    ) -> Identification:
        """Who this one sequence shows."""
        return (await self._identify(self._rules._one, silhouettes, top_k, k, threshold, min_sequence))[0]

    async def identify_many(
        self,
        sequences: Sequence[Any],
        top_k: int = TOP_K,
        *,
        k: int | None = None,
        threshold: float | None = None,
        min_sequence: int | None = None,
    ) -> list[Identification]:
        """Like `identify` for each of a list of sequences of any lengths, in batches; the answers are the same."""
        return await self._identify(self._rules._many, sequences, top_k, k, threshold, min_sequence)

    async def verify(self, first: Any, second: Any, *, threshold: float | None = None) -> Verification:
        """Whether two sequences show the same person, by the re-ranker's distance of the pair."""
        pair = await asyncio.to_thread(self._rules._pair, first, second)
        cut = self._engine.verify_threshold() if threshold is None else pipeline.check_threshold(threshold)
        features = await self._engine.embed(pair)
        return self._rules._verification(await self._engine.rerank(features[:1], features[1:][None]), cut)

    async def embed(self, silhouettes: Any) -> Features:
        """`F [s, d]` float32 of one sequence, `[n, s, d]` of a list of n."""
        walks = await asyncio.to_thread(self._rules._prepare, silhouettes)
        features = await self._engine.embed(walks.sequences)
        return features[0] if walks.single else features

    async def search(
        self, features: Features, k: int = TOP_K, *, min_sequence: int | None = None
    ) -> tuple[NDArray[np.int64], Features]:
        """The shortlist alone: `F [s, d]` or `[n, s, d]` -> entry ids and distances, `[n, min(k, count)]` each."""
        batch, _ = self._rules._features(features, "features", 3)
        return await self._engine.search(batch, pipeline.check_count(k, "k"), pipeline.check_sequence(min_sequence))

    async def rerank(self, probe: Features, candidates: Features) -> Features:
        """The re-ranker alone: `F [s, d]` with `[K, s, d]` -> `[K]`; `[n, s, d]` with `[n, K, s, d]` -> `[n, K]`."""
        probes, lists, single = self._rules._lists(probe, candidates)
        distances = await self._engine.rerank(probes, lists)
        return distances[0] if single else distances

    async def delete(self, identity: str) -> int:
        """Deletes an identity with all its entries; gives their number. UnknownIdentityError where there is none."""
        return await self._engine.delete(identity)

    async def identities(self) -> list[str]:
        """Who is enrolled, sorted."""
        return await self._engine.identities()

    async def count(self) -> int:
        """Number of entries in the gallery."""
        return await self._engine.count()

    async def gallery_sequence(self) -> int:
        """Number of the gallery's newest commit, to be passed as `min_sequence`."""
        return await self._engine.gallery_sequence()

    async def close(self) -> None:
        """Releases the networks, the gallery and connections."""
        await self._engine.close()

    async def __aenter__(self) -> AsyncRecognizer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _identify(self, read: Callable[[Any], Walks], value: Any, *wishes: Any) -> list[Identification]:
        asked = await asyncio.to_thread(lambda: read(value).check())
        options = self._rules._options(*wishes)
        return self._rules._results(await self._engine.identify(asked.sequences, *options), asked, options[1])


class ThreadedEngine:
    """An engine of this process, each call in a thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.description, self.thumbnails = engine.description, engine.thumbnails
        self.verify_threshold = engine.verify_threshold

    async def embed(self, sequences: Sequence[Silhouettes]) -> Features:
        return await asyncio.to_thread(self._engine.embed, sequences)

    async def identify(
        self, sequences: Sequence[Silhouettes], top_k: int, k: int, threshold: float | None, min_sequence: int = 0
    ) -> Answers:
        return await asyncio.to_thread(self._engine.identify, sequences, top_k, k, threshold, min_sequence)

    async def search(self, features: Features, k: int, min_sequence: int = 0) -> tuple[NDArray[np.int64], Features]:
        return await asyncio.to_thread(self._engine.search, features, k, min_sequence)

    async def rerank(self, probe: Features, candidates: Features) -> Features:
        return await asyncio.to_thread(self._engine.rerank, probe, candidates)

    async def enroll(self, identity: str, sequences: Sequence[Silhouettes]) -> list[int]:
        return await asyncio.to_thread(self._engine.enroll, identity, sequences)

    async def delete(self, identity: str) -> int:
        return await asyncio.to_thread(self._engine.delete, identity)

    async def identities(self) -> list[str]:
        return await asyncio.to_thread(self._engine.identities)

    async def count(self) -> int:
        return await asyncio.to_thread(self._engine.count)

    async def gallery_sequence(self) -> int:
        return await asyncio.to_thread(self._engine.gallery_sequence)

    async def close(self) -> None:
        await asyncio.to_thread(self._engine.close)
