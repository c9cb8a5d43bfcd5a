"""Clients and a failing server: what callers see, how often the server was asked, and that nothing happens twice."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.async_recognizer import AsyncRecognizer
from gaitsdk.errors import (
    AccessDeniedError,
    AnswerError,
    DeadlineExceededError,
    GaitError,
    QueueFullError,
    ServerUnavailableError,
)

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.http.aio")

if TYPE_CHECKING:
    from client_fakes import MAX_BATCH, Client, FakeTriton
else:
    spec = importlib.util.spec_from_file_location("client_fakes", Path(__file__).with_name("client_fakes.py"))
    fakes = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    MAX_BATCH, Client, FakeTriton = fakes.MAX_BATCH, fakes.Client, fakes.FakeTriton

CLIENTS = ("grpc", "http", "grpc-async", "http-async")


@pytest.fixture(params=CLIENTS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def fake(kind: str) -> Iterator[FakeTriton]:
    server = FakeTriton(kind.split("-")[0])
    yield server
    server.close()


@pytest.fixture
def connect(kind: str, fake: FakeTriton) -> Iterator[Callable[..., Client]]:
    clients: list[Client] = []

    def open_one(**options: Any) -> Client:
        clients.append(Client(kind, fake.url, **options))
        return clients[-1]

    yield open_one
    for client in clients:
        client.close()


WALK = synthetic.sequence(2, type="nm-01", frames=12)
ENROLL = ("enroll", "alice", WALK)
# fault: the error, attempts at a request that may be repeated, whether an enrolment may have happened all the same
FAULTS = {
    "reset": (ServerUnavailableError, 3, True),
    "half": (ServerUnavailableError, 3, True),
    "unavailable": (ServerUnavailableError, 3, True),
    "busy": (QueueFullError, 3, False),
    "queue": (QueueFullError, 3, False),
    "stall": (DeadlineExceededError, 1, True),
    "slow": (DeadlineExceededError, 1, True),
    "expired": (DeadlineExceededError, 1, True),
    "denied": (AccessDeniedError, 1, False),
    "nothing": (AnswerError, 1, True),
}


#: Faults that end the connection.
CUT = ("half", "reset")


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_caller_sees(fake: FakeTriton, connect: Callable[..., Client], fault: str) -> None:
    error, attempts, unknown = FAULTS[fault]
    client = connect(timeout=1.5 if attempts > 1 else 0.7)
    for call, expected in ((("identities",), attempts), (ENROLL, 1), (("delete", "3"), 1)):
        fake.script, fake.seen, fake.proxy.slowly = [fault] * 9, [], False
        started = time.monotonic()
        with pytest.raises(GaitError) as caught:
            client(*call)
        assert type(caught.value) is error, caught.value
        assert time.monotonic() - started < 2
        # What is cut may be HTTP/2's own frames, before the request has arrived.
        action = "list" if call[0] == "identities" else call[0]
        assert fake.seen == [action] * (len(fake.seen) if fault in CUT else expected)
        assert len(fake.seen) <= expected
        assert caught.value.where == fake.url
        may = unknown and call[0] != "identities"
        assert getattr(caught.value, "outcome_unknown", None) is may
        assert ("look at identities()" in str(caught.value)) is may
        assert caught.value.retryable is (not may and error not in (AccessDeniedError, AnswerError))
        assert (f"{expected} attempts" in str(caught.value)) is (expected > 1)
    assert fake.enrolled == ["alice"] * (len(fake.enrolled) if fault in CUT else 1) and len(fake.enrolled) <= 1
    fake.script, fake.proxy.slowly = [], False
    fake.stopping.set()
    assert client("identities") == ["alice", "bob"], "the client lives on"


@pytest.mark.parametrize("fault", [name for name, (_, attempts, _) in FAULTS.items() if attempts > 1])
def test_what_passes_is_not_seen(fake: FakeTriton, connect: Callable[..., Client], fault: str) -> None:
    client = connect(timeout=5)
    fake.script = [fault, fault]
    assert client("identities") == ["alice", "bob"]
    assert len(fake.seen) == 3
    once = connect(timeout=5, retries=0)
    fake.script, fake.seen = [fault], []
    with pytest.raises(FAULTS[fault][0]):
        once("identities")
    assert len(fake.seen) == 1


def test_an_enrolment_that_never_left_is_sent_again(fake: FakeTriton, connect: Callable[..., Client]) -> None:
    client = connect(timeout=10, retries=5)
    fake.proxy.away()
    time.sleep(0.05)  # so that the client knows that its connection is gone
    threading.Timer(0.15, fake.proxy.listen).start()
    assert client(*ENROLL) == [7]
    assert fake.enrolled == ["alice"]


def test_one_budget_covers_all_attempts(fake: FakeTriton, connect: Callable[..., Client]) -> None:
    client = connect(timeout=0.7, retries=10)
    fake.script, fake.deadlines = ["late"] * 20, []
    started = time.monotonic()
    with pytest.raises((ServerUnavailableError, DeadlineExceededError)):
        client("identities")
    assert time.monotonic() - started < 0.9
    assert 2 <= len(fake.seen) <= 3
    assert all(0 < each <= 0.7 for each in fake.deadlines), "the server knows the deadline"
    assert fake.deadlines == sorted(fake.deadlines, reverse=True) and fake.deadlines[-1] < 0.5


def test_more_than_the_servers_maximum_is_split(fake: FakeTriton, connect: Callable[..., Client]) -> None:
    walks = [np.roll(WALK, i, axis=0)[: 12 - i % 2].copy() for i in range(11)]
    features = connect(timeout=5)("embed", walks)
    assert sum(fake.batches) == 11 and max(fake.batches) == MAX_BATCH
    assert [-row[1, 0] for row in features] == [row[0, 0] for row in features]
    alone = [connect(timeout=5)("embed", walk) for walk in walks[:2]]
    assert len({float(row[0, 0]) for row in features}) > 1
    np.testing.assert_array_equal(features[0], alone[0])


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_threads_get_the_answers_to_their_own_questions(protocol: str) -> None:
    fake = FakeTriton(protocol)
    with Recognizer.connect(fake.url, timeout=20) as recognizer, ThreadPoolExecutor(12) as pool:
        asked = [str(i) for i in range(300)]
        assert list(pool.map(recognizer.delete, asked)) == list(range(300))
    assert sorted(fake.seen) == ["delete"] * 300
    assert fake.proxy.opened <= (1 if protocol == "grpc" else 13), "connections are used again"
    fake.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_tasks_get_the_answers_to_their_own_questions(protocol: str) -> None:
    fake = FakeTriton(protocol)

    async def ask() -> list[int]:
        async with AsyncRecognizer.connect(fake.url, timeout=20) as recognizer:
            return list(await asyncio.gather(*(recognizer.delete(str(i)) for i in range(300))))

    assert asyncio.run(ask()) == list(range(300))
    fake.close()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_cancelled_task_stays_cancelled(protocol: str) -> None:
    fake = FakeTriton(protocol)

    async def ask() -> float:
        async with AsyncRecognizer.connect(fake.url, timeout=20) as recognizer:
            fake.script = ["stall"]
            task = asyncio.create_task(recognizer.identities())
            await asyncio.sleep(0.2)
            started = time.monotonic()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await recognizer.identities() == ["alice", "bob"]
            return time.monotonic() - started

    assert asyncio.run(ask()) < 1
    assert len(fake.seen) == 2, "a cancelled request is not sent again"
    fake.close()
