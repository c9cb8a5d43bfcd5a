"""`identify` sends a walk and looks at it while the server works: nobody is told an answer about what is no walk."""

from __future__ import annotations

import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import QueueFullError, ServerUnavailableError, SilhouetteError, TooFewFramesError
from gaitsdk.walks import Walks

pytest.importorskip("grpc")
pytest.importorskip("tritonclient.http.aio")

if TYPE_CHECKING:
    from client_fakes import Client, FakeTriton
else:
    spec = importlib.util.spec_from_file_location("client_fakes", Path(__file__).with_name("client_fakes.py"))
    fakes = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    Client, FakeTriton = fakes.Client, fakes.FakeTriton

WALK = synthetic.sequence(2, type="nm-01", frames=12)
#: Normalised in form, so that it could be sent; no check but the last tells that it is none.
NOISE = ((np.random.default_rng(0).random((12, 64, 64)) > 0.6) * np.uint8(255)).astype(np.uint8)
NOISE[:, [0, -1], 32] = 255
STATIC = np.repeat(WALK[:1], 12, axis=0)


@pytest.fixture(params=["grpc", "http"])
def fake(request: pytest.FixtureRequest) -> Iterator[FakeTriton]:
    server = FakeTriton(request.param)
    yield server
    server.close()


@pytest.fixture
def client(fake: FakeTriton) -> Iterator[Recognizer]:
    with Recognizer.connect(fake.url, timeout=5, retries=0) as connected:
        yield connected


def test_the_server_has_the_walk_before_it_was_looked_at(
    fake: FakeTriton, client: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrived = threading.Event()
    carry_out = fake.carry_out

    def noticed(*arguments: Any) -> Any:
        arrived.set()
        return carry_out(*arguments)

    fake.carry_out = noticed  # type: ignore[method-assign]
    look, looked = Walks.check, []

    def looking(walks: Walks) -> Walks:
        looked.append(arrived.wait(4))
        return look(walks)

    monkeypatch.setattr(Walks, "check", looking)
    assert client.identify(WALK).identity == "alice"
    assert looked[0], "the look came before the request"
    assert fake.seen == ["identify"]


@pytest.mark.parametrize("walk", [NOISE, STATIC], ids=["noise", "static"])
def test_no_answer_about_what_is_no_walk(fake: FakeTriton, client: Recognizer, walk: np.ndarray) -> None:
    for _ in range(3):
        with pytest.raises(SilhouetteError):
            client.identify(walk)
    assert client.identify(WALK).identity == "alice"
    assert fake.seen == ["identify"] * 4
    assert fake.proxy.opened == 1 or fake.url.startswith("http"), "the channel is whole"


def test_what_is_wrong_with_a_walk_comes_before_what_is_wrong_with_the_server(
    fake: FakeTriton, client: Recognizer
) -> None:
    fake.script = ["queue"]
    with pytest.raises(SilhouetteError, match="noise"):
        client.identify(NOISE)
    fake.proxy.away()
    with pytest.raises(SilhouetteError, match="noise"):
        client.identify(NOISE)
    with pytest.raises(ServerUnavailableError):
        client.identify(WALK)
    assert fake.seen == ["identify"]
    fake.proxy.listen()


def test_a_walk_that_cannot_be_sent_is_not(fake: FakeTriton, client: Recognizer) -> None:
    with pytest.raises(TooFewFramesError):
        client.identify(WALK[:2])
    assert fake.seen == []


def test_it_is_looked_at_in_every_attempt_but_refused_once(fake: FakeTriton) -> None:
    fake.script = ["queue", "queue"]
    with Recognizer.connect(fake.url, timeout=5, retries=1) as client:
        with pytest.raises(QueueFullError, match="2 attempts"):
            client.identify(WALK)
        fake.script = ["queue"]
        assert client.identify(WALK).identity == "alice"
    assert fake.seen == ["identify"] * 4


@pytest.mark.parametrize("kind", ["grpc", "http", "grpc-async", "http-async"])
def test_all_else_is_looked_at_first(kind: str) -> None:
    fake = FakeTriton(kind.split("-")[0])
    client = Client(kind, fake.url, retries=0)
    calls: list[tuple[Any, ...]] = [
        ("identify_many", [WALK, NOISE]),
        ("enroll", "alice", NOISE),
        ("embed", NOISE),
        ("verify", WALK, NOISE),
    ]
    if kind.endswith("async"):
        calls.append(("identify", NOISE))
    for call in calls:
        with pytest.raises(SilhouetteError, match="noise"):
            client(*call)
    assert fake.seen == []
    client.close()
    fake.close()
