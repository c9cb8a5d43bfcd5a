"""`identify` sends a walk and looks at it while the server works: nobody is told an answer about what is no walk."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import ServerUnavailableError, SilhouetteError, StaticSequenceError, TooFewFramesError
from gaitsdk.runtimes.grpc_transport import message
from gaitsdk.runtimes.tensors import Request, call_arguments
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
    here = threading.Event()
    carry_out = fake.carry_out

    def noticed(*arguments: Any) -> Any:
        here.set()
        return carry_out(*arguments)

    fake.carry_out = noticed  # type: ignore[method-assign]
    look, looked = Walks.look, []

    def looking(walks: Walks) -> None:
        looked.append(here.wait(4))
        look(walks)

    monkeypatch.setattr(Walks, "look", looking)
    assert client.identify(WALK).identity == "alice"
    assert looked[0], "the look came before the request"
    assert fake.seen == ["identify"]


def arrived(fake: FakeTriton, count: int) -> bool:
    """Whether so many identifications, and no more, have reached the server; they may still be on their way."""
    deadline = time.monotonic() + 5
    while len(fake.seen) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    return fake.seen == ["identify"] * count


@pytest.mark.parametrize("walk", [NOISE, STATIC], ids=["noise", "static"])
def test_no_answer_about_what_is_no_walk(fake: FakeTriton, client: Recognizer, walk: np.ndarray) -> None:
    for _ in range(3):
        with pytest.raises(SilhouetteError):
            client.identify(walk)
    assert client.identify(WALK).identity == "alice"
    assert arrived(fake, 4)
    if fake.url.startswith("grpc"):
        assert fake.proxy.opened == 1, "the channel is whole"


def test_what_is_wrong_with_a_walk_comes_before_what_is_wrong_with_the_server(
    fake: FakeTriton, client: Recognizer
) -> None:
    for number, fault in enumerate(("queue", "empty", "denied", "reset"), 1):
        fake.script = [fault]
        with pytest.raises(SilhouetteError, match="noise"):
            client.identify(NOISE)
        assert arrived(fake, number), fault
    fake.proxy.away()
    try:
        with pytest.raises(SilhouetteError, match="noise"):
            client.identify(NOISE)
        with pytest.raises(ServerUnavailableError):
            client.identify(WALK)
    finally:
        fake.proxy.listen()
    assert arrived(fake, 4)


def test_a_refusal_is_the_client_s_even_where_the_server_refuses_too(
    fake: FakeTriton, client: Recognizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "same.npy", STATIC)
    look = Walks.look
    for seconds in (0.0, 0.3):  # before the server has answered, and after
        monkeypatch.setattr(Walks, "look", lambda walks, wait=seconds: (time.sleep(wait), look(walks)))
        fake.script = ["static"]
        with pytest.raises(StaticSequenceError, match=r"same\.npy.*12 of 12 frames") as caught:
            client.identify(tmp_path / "same.npy")
        assert "server" not in str(caught.value) and caught.value.__cause__ is None


def test_a_walk_that_cannot_be_sent_is_not(fake: FakeTriton, client: Recognizer) -> None:
    with pytest.raises(TooFewFramesError):
        client.identify(WALK[:2])
    assert fake.seen == []


def test_what_is_refused_is_not_sent_again(fake: FakeTriton, monkeypatch: pytest.MonkeyPatch) -> None:
    look, looks = Walks.look, []

    def counted(walks: Walks) -> None:
        looks.append(1)
        look(walks)

    monkeypatch.setattr(Walks, "look", counted)
    with Recognizer.connect(fake.url, timeout=5, retries=2) as client:
        fake.script = ["queue", "queue", "queue"]
        with pytest.raises(SilhouetteError, match="noise") as caught:
            client.identify(NOISE)
        assert arrived(fake, 1) and len(looks) == 1 and "attempts" not in str(caught.value)
        fake.script = ["queue", "queue"]
        assert client.identify(WALK).identity == "alice"
    assert arrived(fake, 4) and len(looks) == 4


def test_a_call_whose_walk_was_refused_is_not_cancelled() -> None:
    fake = FakeTriton("grpc")
    fake.script = ["late"]
    with Recognizer.connect(fake.url, timeout=5) as client:
        with pytest.raises(SilhouetteError, match="noise"):
            client.identify(NOISE)
    assert arrived(fake, 1)
    assert fake.wanted == [True, True], "closing does"
    fake.script = ["stall"]
    client = Recognizer.connect(fake.url, timeout=5)
    started = time.monotonic()
    with pytest.raises(SilhouetteError, match="noise"):
        client.identify(NOISE)
    assert time.monotonic() - started < 2, "the caller does not wait"
    started = time.monotonic()
    client.close()
    assert time.monotonic() - started < 3, "but not for ever"
    fake.close()


def test_an_interruption_ends_it(fake: FakeTriton, client: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(walks: Walks) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Walks, "look", interrupted)
        fake.script = ["stall"]
        started = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            client.identify(WALK)
        assert time.monotonic() - started < 2, "nobody waits for the answer"
        assert arrived(fake, 1)
    assert client.identify(WALK).identity == "alice"


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


@pytest.mark.parametrize(
    ("inputs", "parameters"),
    [
        ({"silhouettes": WALK[None]}, {"top_k": 3, "threshold": "0.5", "canary": True, "x": 0.25}),
        ({"action": np.array([b"list"], object), "lengths": np.array([3, 4])}, {}),
        ({"features": np.ones((2, 3, 4), np.float32)[:, ::2]}, {"k": 7}),
        ({"identity": np.array(["Zoë".encode(), b""], object)}, {}),
    ],
)
def test_the_message_is_what_tritonclient_makes(inputs: dict[str, np.ndarray], parameters: dict[str, Any]) -> None:
    client = pytest.importorskip("tritonclient.grpc")
    from tritonclient.grpc._utils import _get_inference_request

    request = Request("identify", inputs, ("distance", "identity"), parameters)
    theirs = _get_inference_request(
        model_name="identify", model_version="", sequence_id=0, sequence_start=False, sequence_end=False, priority=0,
        **call_arguments(client, request, 2.5),
    )  # fmt: skip
    assert message(client.service_pb2, request, 2.5) == theirs
