"""How typed errors and tokens travel; no server of Triton's is needed here."""

from __future__ import annotations

import http.server
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer
from gaitsdk.errors import (
    BundleError,
    CalibrationError,
    DeadlineExceededError,
    EmptyGalleryError,
    GaitError,
    GalleryError,
    InputError,
    OptionError,
    QueueFullError,
    RuntimeUnavailableError,
    ServerError,
    ServerUnavailableError,
    TooFewFramesError,
    UnknownIdentityError,
)
from gaitsdk.runtimes import triton
from gaitsdk.runtimes.addresses import Security, parse_address
from gaitsdk.runtimes.http_transport import HttpTransport
from gaitsdk.runtimes.statuses import typed
from gaitsdk.runtimes.wire import decode_error, encode_error


@pytest.mark.parametrize(
    "error",
    [
        TooFewFramesError(
            "too short a walk", where="silhouettes", got=1, expected="2 frames or more", fix="film longer"
        ),
        EmptyGalleryError("nobody is enrolled"),
        UnknownIdentityError("nobody of that name is enrolled", got="'Zoë {\"error\"}'"),
        OptionError("bad", where="top_k", got=0),
    ],
)
@pytest.mark.parametrize("prefix", ["", "in ensemble 'identify', ", "[request id: 7] "])
def test_an_error_arrives_as_it_was(error: GaitError, prefix: str) -> None:
    arrived = decode_error(prefix + encode_error(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)


def test_what_is_inside_the_server_stays_there() -> None:
    for error in (BundleError("damaged", where="/srv/secret/x.gait"), OSError("/dev/shm/triton_region"), KeyError("x")):
        text = encode_error(error)
        assert "secret" not in text and "triton_region" not in text
        assert type(decode_error(text)) is ServerError
    text = encode_error(GalleryError("cannot be written", where="/srv/secret/people.db", got="disk I/O error"))
    assert "secret" not in text and "<path>" in text
    assert type(decode_error(text)) is GalleryError


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        '{"error": "OptionError"',
        '{"error": "SystemExit", "what": "x"}',
        '{"error": "annotations", "what": "x"}',
        '{"error": "OptionError"}',
        '{"error": 3, "what": "x"}',
    ],
)
def test_other_texts_are_not_taken_for_our_errors(text: str) -> None:
    assert decode_error(text) is None


def test_the_token_is_sent_over_http() -> None:
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["authorization"])
            self.rfile.read(int(self.headers["content-length"] or 0))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as listener:
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        with pytest.raises(ServerError, match="401"):
            Recognizer.connect(f"http://127.0.0.1:{listener.server_port}", token="s3cret")
        listener.shutdown()
    assert seen == ["Bearer s3cret"]


def test_the_token_is_sent_over_grpc() -> None:
    grpc = pytest.importorskip("grpc")
    seen: list[str] = []

    class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> None:
            seen.extend(value for key, value in details.invocation_metadata if key == "authorization")

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Handler()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with pytest.raises(ServerError) as caught:
        Recognizer.connect(f"127.0.0.1:{port}", token="s3cret")
    server.stop(None)
    assert seen == ["Bearer s3cret"]
    assert "s3cret" not in str(caught.value)


def test_close_closes_the_connections_of_all_threads() -> None:
    with socket.socket() as listener, ThreadPoolExecutor(3) as pool:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        transport = HttpTransport(parse_address(url, Security()))
        together = threading.Barrier(3)

        def open_one() -> Any:
            connection = transport._take(time.monotonic() + 10)
            together.wait(10)  # all three are in use
            transport._give(connection, kept=True)
            return connection

        connections = [each.result() for each in [pool.submit(open_one) for _ in range(3)]]
        assert len(set(connections)) == 3 == len(transport._idle)
        assert transport._take(time.monotonic() + 10) in connections, "an idle connection is used again"
        transport.close()
        assert all(each._plain.fileno() == -1 for each in connections if each not in transport._busy)
        with pytest.raises(RuntimeUnavailableError, match="connect again"):
            transport._take(time.monotonic() + 10)
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("description", "kind"),
    [(b"{}", ServerError), (b"[]", ServerError), (b"no JSON", ServerError)],
    ids=["empty", "list", "text"],
)
def test_a_description_of_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, description: bytes, kind: type[GaitError]
) -> None:
    transport = Answering({"description": np.array([description], object)})
    monkeypatch.setattr(triton, "open_transport", lambda url, token: transport)
    with pytest.raises(kind, match="description"):
        Recognizer.connect("here:1")
    assert transport.closed


class Answering:
    """A transport that always gives the same answer."""

    url, closed = "grpc://here:1", False

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer

    def infer(self, *arguments: Any) -> dict[str, Any]:
        return self.answer

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize("sent", [None, 0.12345678901234567, encode_error(CalibrationError("calibrated for K=3"))])
def test_the_verification_threshold_arrives_as_number_or_error(
    monkeypatch: pytest.MonkeyPatch, sent: float | str | None
) -> None:
    about = {"fingerprint": "f", "size": 64, "strips": 16, "dims": 8, "reranker": "none", "k": 0, "runtime": "onnx"}
    about |= {"device": "cpu", "length_handling": "cyclic", "max_batch": 4, "verify_threshold": sent}
    answer = {"description": np.array([json.dumps(about).encode()], object)}
    monkeypatch.setattr(triton, "open_transport", lambda url, token: Answering(answer))
    engine = triton.RemoteEngine("here:1")
    if not isinstance(sent, str):
        assert engine.verify_threshold() == sent
        return
    for _ in range(2):
        with pytest.raises(CalibrationError, match="K=3"):
            engine.verify_threshold()


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        ("StatusCode.UNAVAILABLE", "[request id: 1] Exceeds maximum queue size", QueueFullError),
        ("503", "Exceeds maximum queue size", QueueFullError),
        ("StatusCode.UNAVAILABLE", "failed to connect to all addresses", ServerUnavailableError),
        ("StatusCode.INTERNAL", "Stub process 'embed_0_0' is not healthy.", ServerUnavailableError),
        ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", DeadlineExceededError),
        ("StatusCode.RESOURCE_EXHAUSTED", "Sent message larger than max", InputError),
        ("400", "unexpected shape for input", ServerError),
        ("400", encode_error(OptionError("bad", where="k")), OptionError),
    ],
)
def test_every_status_has_its_error(status: str, message: str, kind: type[GaitError]) -> None:
    error = typed(status, message, "grpc://here:1", 1.0)
    assert type(error) is kind
    assert error.retryable == (kind in (QueueFullError, ServerUnavailableError, DeadlineExceededError))
