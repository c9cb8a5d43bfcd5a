"""The load generator itself, and a server under more than it can do."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import QueueFullError
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.installation import Installation
from gaitsdk_export.triton.repository import Options, render
from gaitsdk_export.triton.server import TritonServer

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    yield importlib.import_module("load")
    sys.path.remove(str(BENCHMARKS))


def test_arrivals_are_poisson_and_the_same_again(load: ModuleType) -> None:
    times = np.array(list(load.arrivals(50.0, 200.0)))
    gaps = np.diff(times)
    assert times[0] >= 0 and times[-1] < 200 and (gaps > 0).all()
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05), "as wide as an exponential distribution"
    assert times.tolist() == list(load.arrivals(50.0, 200.0))


class Stalling:
    """An engine that answers nothing for a while, then all at once; and refuses every tenth."""

    description = SimpleNamespace(k=10)

    def __init__(self, until: float) -> None:
        self.until, self.asked = until, 0

    async def identify(self, *_: Any) -> SimpleNamespace:
        self.asked += 1
        if self.asked % 10 == 0:
            raise QueueFullError("full")
        await asyncio.sleep(max(0.0, self.until - time.perf_counter()))
        return SimpleNamespace(
            entry_ids=np.array([[1]]),
            identities=np.array([["a"]], object),
            distances=np.array([[0.5]]),
            decisions=["x"],
        )


def test_latency_counts_from_when_a_request_was_due(load: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Stalling(time.perf_counter() + 1.0)

    @asynccontextmanager
    async def connected(url: str, clients: int) -> AsyncIterator[list[Stalling]]:
        yield [engine] * clients

    monkeypatch.setattr(load, "connected", connected)
    questions = load.Questions.__new__(load.Questions)
    questions.walks = [None]
    candidate = SimpleNamespace(entry_id=1, identity="a", distance=0.5)
    questions._expected = [SimpleNamespace(candidates=[candidate], decision="x")]
    found = asyncio.run(load.open_loop("", questions, rate=100.0, seconds=1.0, clients=2))
    assert engine.asked == sum(1 for _ in load.arrivals(100.0, 1.0)), "asked at its own pace, whatever was answered"
    assert found["errors"] == {"QueueFullError": engine.asked // 10} and found["wrong"] == 0
    # Whoever waited for answers before asking again would have seen one slow answer; half of all waited half a second.
    assert found["milliseconds"]["p50"] > 300 and found["milliseconds"]["max"] > 900


@pytest.mark.parametrize("change", [{"entry_ids": 2}, {"identities": "b"}, {"distances": 0.5002}, {"decisions": ["y"]}])
def test_a_wrong_answer_is_seen(load: ModuleType, change: dict[str, Any]) -> None:
    expected = SimpleNamespace(candidates=[SimpleNamespace(entry_id=1, identity="a", distance=0.5)], decision="x")
    told: dict[str, Any] = {"entry_ids": 1, "identities": "a", "distances": 0.50001}
    answers = {name: np.array([[value]], object if name == "identities" else None) for name, value in told.items()}
    assert load.same(expected, SimpleNamespace(**answers, decisions=["x"]))
    for name, value in change.items():
        answers[name] = value if name == "decisions" else np.array([[value]])
    assert not load.same(expected, SimpleNamespace(**{"decisions": ["x"], **answers}))


@pytest.mark.parametrize("clients", [1, 16, 64])
def test_no_wrong_answer_from_many_clients(
    load: ModuleType, server: TritonServer, local: Recognizer, monkeypatch: pytest.MonkeyPatch, clients: int
) -> None:
    monkeypatch.setattr(load, "TOP_K", 5)
    walks = [synthetic.sequence(i, type="nm-03", frames=10 + i) for i in range(12)]
    questions = load.Questions(local, walks)
    found = asyncio.run(load.closed_loop(server.grpc_url, questions, clients, 2.0))
    assert found["wrong"] == 0 and found["answered"] >= clients / 2
    assert set(found["errors"]) <= {"QueueFullError"}


@pytest.mark.serving
def test_more_than_a_server_can_do_is_refused_and_the_rest_answered_in_time(
    load: ModuleType, installation: Installation, settings: Settings, local: Recognizer, tmp_path: Path
) -> None:
    models = render(settings.bundle, tmp_path / "models", Options(max_batch=2, max_queue=4))
    walks = [synthetic.sequence(i, type="nm-03", frames=60) for i in range(6)]
    with TritonServer(models, replace(settings), installation=installation) as server:
        questions = load.Questions(local, walks)
        capacity = asyncio.run(load.closed_loop(server.grpc_url, questions, 4, 2.0))["per_second"]
        twice = asyncio.run(load.open_loop(server.grpc_url, questions, 3 * capacity, 3.0))
        assert set(twice["errors"]) == {"QueueFullError"} and twice["wrong"] == 0
        assert twice["answered"] > 0
        # Without a limit the last ones would have waited for all that came before: some six seconds.
        assert twice["milliseconds"]["max"] < 3000
        assert server.pid and asyncio.run(load.closed_loop(server.grpc_url, questions, 1, 0.5))["answered"]


def test_the_page_says_what_was_measured(load: ModuleType) -> None:
    pages, tables = importlib.import_module("pages"), importlib.import_module("serving_tables")
    page = tables.PAGE.read_text(encoding="utf-8")
    for start, name, table in tables.TABLES:
        figures = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert page == pages.written(page, tables.PAGE.name, start, table(figures)), (
            "run python benchmarks/serving_tables.py"
        )
