"""AsyncRecognizer gives what Recognizer gives: against the real server over both protocols, and in this process."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.async_recognizer import AsyncRecognizer
from gaitsdk.errors import (
    CalibrationError,
    DeadlineExceededError,
    InputError,
    OptionError,
    RuntimeUnavailableError,
    ServerUnavailableError,
    TooFewFramesError,
    UnknownIdentityError,
)
from gaitsdk.results import Identification
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.server import TritonServer

PROBES = [synthetic.sequence(i, type="nm-03", frames=9 + i) for i in range(0, 40, 3)]

Connect = Callable[..., Any]


@pytest.fixture(params=["grpc", "http", "in-process"])
def connect(request: pytest.FixtureRequest, server: TritonServer, settings: Settings) -> Connect:
    """Opens an AsyncRecognizer on the gallery of the session's server."""
    if request.param == "in-process":
        options: dict[str, Any] = {"runtime": "torch", "device": "cpu", "gallery": settings.gallery, "threads": 1}
        return lambda: AsyncRecognizer.load(settings.bundle, **options)
    url = server.grpc_url if request.param == "grpc" else server.http_url
    return lambda: AsyncRecognizer.connect(url, timeout=60)


def essence(result: Identification) -> dict[str, Any]:
    told = result.to_dict()
    return {name: told[name] for name in ("candidates", "decision", "threshold", "reranker", "fingerprint")}


def test_the_same_verbs() -> None:
    verbs = {name for name, _ in inspect.getmembers(Recognizer, inspect.isfunction) if not name.startswith("_")}
    for name in verbs:
        here, there = inspect.signature(getattr(Recognizer, name)), inspect.signature(getattr(AsyncRecognizer, name))
        assert here == there, name
        assert inspect.iscoroutinefunction(getattr(AsyncRecognizer, name)), name
    here, there = (inspect.signature(each.connect).parameters for each in (Recognizer, AsyncRecognizer))
    assert here == there


def test_the_same_answers(connect: Connect, remote: Recognizer) -> None:
    async def ask() -> dict[str, Any]:
        async with connect() as rec:
            features = await rec.embed(PROBES[:6])
            return {
                "description": rec.description,
                "one": essence(await rec.identify(PROBES[0], top_k=4, k=3, threshold=1)),
                "many": [essence(each) for each in await rec.identify_many(PROBES, top_k=15)],
                "features": features,
                "single": await rec.embed(PROBES[1]),
                "search": await rec.search(features, 7),
                "rerank": await rec.rerank(features[:2], np.stack([features[1:5], features[2:6]])),
                "verify": (await rec.verify(PROBES[0], PROBES[1])).to_dict(),
                "identities": await rec.identities(),
                "count": await rec.count(),
            }

    there = asyncio.run(ask())
    features = remote.embed(PROBES[:6])
    assert there["description"] == remote.description
    assert there["identities"] == remote.identities() and there["count"] == remote.count
    for name, value in (
        ("features", features),
        ("single", remote.embed(PROBES[1])),
        ("rerank", remote.rerank(features[:2], np.stack([features[1:5], features[2:6]]))),
    ):
        np.testing.assert_allclose(there[name], value, atol=1e-5)
    np.testing.assert_array_equal(there["search"][0], remote.search(features, 7)[0])
    here = remote.verify(PROBES[0], PROBES[1]).to_dict()
    assert there["verify"].pop("distance") == pytest.approx(here.pop("distance"), abs=1e-5)
    assert there["verify"] == here
    expected = [essence(each) for each in remote.identify_many(PROBES, top_k=15)]
    for one, other in zip(
        [there["one"], *there["many"]],
        [essence(remote.identify(PROBES[0], top_k=4, k=3, threshold=1)), *expected],
        strict=True,
    ):
        for mine, theirs in zip(one.pop("candidates"), other.pop("candidates"), strict=True):
            for name in ("distance", "shortlist_distance"):
                assert mine.pop(name) == pytest.approx(theirs.pop(name), abs=1e-4)
            assert mine == theirs
        assert one == other


def test_many_at_once_and_the_loop_goes_on(connect: Connect, remote: Recognizer) -> None:
    async def ask() -> tuple[list[Identification], int]:
        async with connect() as rec:
            ticks, done = 0, False

            async def tick() -> None:
                nonlocal ticks
                while not done:
                    await asyncio.sleep(0.005)
                    ticks += 1

            clock = asyncio.create_task(tick())
            found = await asyncio.gather(*(rec.identify(PROBES[i % len(PROBES)]) for i in range(48)))
            done = True
            await clock
            return list(found), ticks

    found, ticks = asyncio.run(ask())
    expected = [each.identity for each in remote.identify_many(PROBES)]
    assert [each.identity for each in found] == [expected[i % len(PROBES)] for i in range(48)]
    assert ticks > 10, "the event loop stood still"


def test_enrol_draw_delete(connect: Connect, remote: Recognizer) -> None:
    name, walk = "Zoë / 志明 async", synthetic.sequence(88, type="nm-01", frames=11)

    async def ask() -> None:
        async with connect() as rec:
            entries = await rec.enroll(name, [walk, synthetic.sequence(88, type="nm-02", frames=14)])
            try:
                assert len(entries) == 2 and name in remote.identities()
                result = await rec.identify(walk, top_k=50)
                place = [each.entry_id for each in result.candidates].index(entries[0])
                picture = (await asyncio.to_thread(result.thumbnails))[place]
                assert picture is not None and picture.shape == (64, 64) and picture.max() == 255
            finally:
                assert await rec.delete(name) == 2
            with pytest.raises(UnknownIdentityError, match="Zoë"):
                await rec.delete(name)

    asyncio.run(ask())
    assert name not in remote.identities()


def test_the_same_errors(connect: Connect) -> None:
    async def ask() -> None:
        async with connect() as rec:
            for error, call in (
                (TooFewFramesError, rec.identify(PROBES[0][:1])),
                (InputError, rec.identify(PROBES)),
                (InputError, rec.identify_many(PROBES[0])),
                (InputError, rec.enroll("", PROBES[0])),
                (InputError, rec.verify(PROBES, PROBES[0])),
                (InputError, rec.search(np.zeros((3, 3), np.float32))),
                (OptionError, rec.identify(PROBES[0], top_k=0)),
                (OptionError, rec.identify(PROBES[0], threshold=float("nan"))),
                (CalibrationError, rec.identify(PROBES[0], k=3)),
            ):
                with pytest.raises(error):
                    await call

    asyncio.run(ask())


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_closed_and_closing(server: TritonServer, scheme: str) -> None:
    async def ask() -> None:
        rec = await AsyncRecognizer.connect(getattr(server, f"{scheme}_url"), timeout=60)
        long = np.resize(PROBES[0], (900, 64, 64))
        await rec.identities()
        running = asyncio.create_task(rec.embed([long] * 12))
        await asyncio.sleep(0.7)
        await rec.close()
        for call in (running, rec.identities(), rec.embed(PROBES[0])):
            with pytest.raises(RuntimeUnavailableError, match="closed"):
                await call
        await rec.close()  # once more does nothing

    asyncio.run(ask())


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there_and_no_time(server: TritonServer, scheme: str) -> None:
    async def ask() -> None:
        with pytest.raises(ServerUnavailableError, match="gaitsdk serve"):
            await AsyncRecognizer.connect(f"{scheme}://127.0.0.1:1")
        with pytest.raises(ServerUnavailableError):
            async with AsyncRecognizer.connect(f"{scheme}://127.0.0.1:1"):
                pass
        async with AsyncRecognizer.connect(getattr(server, f"{scheme}_url")) as rec:
            rec._engine._timeout = 0.02
            started = time.monotonic()
            features = np.random.default_rng(0).random((4, 400, 16, 32), np.float32)
            with pytest.raises(DeadlineExceededError):
                await rec.rerank(features[:, 0], features)
            assert time.monotonic() - started < 1

    asyncio.run(ask())


def test_in_process_without_a_server(bundle_path: Path, tmp_path: Path) -> None:
    async def ask() -> set[str]:
        async with AsyncRecognizer.load(bundle_path, runtime="torch", gallery=tmp_path / "people.db") as rec:
            await asyncio.gather(*(rec.enroll(f"p{i}", PROBES[i]) for i in range(5)))
            assert await rec.count() == 5
            found = await rec.identify_many(PROBES[:5], threshold=1)
            assert [each.identity for each in found] == [f"p{i}" for i in range(5)]
            return {thread.name for thread in threading.enumerate()}

    assert any(name.startswith("asyncio_") for name in asyncio.run(ask()))
