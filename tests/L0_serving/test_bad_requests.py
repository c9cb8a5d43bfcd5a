"""What raw clients may send over both protocols: a refusal with a reason, and a server that answers the next request
rightly. Requests that are broken below their tensors are in test_hostile_clients.py."""

from __future__ import annotations

import concurrent.futures
import http.client
import json
import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gaitsdk import Recognizer, synthetic
from gaitsdk.errors import (
    GalleryBehindError,
    InputError,
    NoFramesError,
    OptionError,
    SilhouetteError,
    StaticSequenceError,
    TooFewFramesError,
    TooManyFramesError,
    UnknownIdentityError,
)
from gaitsdk.runtimes.wire import decode_error
from gaitsdk_export.triton.server import TritonServer

grpc_client = pytest.importorskip("tritonclient.grpc")
http_client = pytest.importorskip("tritonclient.http")
utils = pytest.importorskip("tritonclient.utils")

GOOD = synthetic.sequence(3, type="nm-03", frames=12)


@pytest.fixture(scope="module", params=["grpc", "http"])
def raw(request: pytest.FixtureRequest, server: TritonServer) -> Iterator[Any]:
    """A client of Triton's own, for threads too: `new()` gives a connection, `input` makes a tensor."""
    module, port = {"grpc": (grpc_client, server.grpc_port), "http": (http_client, server.http_port)}[request.param]
    opened: list[Any] = []

    def new() -> Any:
        opened.append(module.InferenceServerClient(f"{server.host}:{port}"))
        return opened[-1]

    yield SimpleNamespace(new=new, input=module.InferInput, protocol=request.param)
    for connection in opened:
        connection.close()


@pytest.fixture(autouse=True)
def still_right(server: TritonServer, remote: Recognizer) -> Iterator[None]:
    """After every test here the same server, with the same process id, gives the same good answer."""
    before, process = remote.identify(GOOD).to_dict(), server.pid
    yield
    after = remote.identify(GOOD).to_dict()
    assert server.pid == process
    assert after["candidates"] == before["candidates"]


def ask(raw: Any, model: str, parameters: dict[str, Any] | None = None, version: str = "", **arrays: np.ndarray) -> Any:
    """The error that a request gets, decoded where it is one of ours."""
    types = {"uint8": "UINT8", "float32": "FP32", "int64": "INT64", "object": "BYTES", "float64": "FP64"}
    inputs = []
    for name, array in arrays.items():
        tensor = raw.input(name, list(array.shape), types[array.dtype.name])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    with pytest.raises(utils.InferenceServerException) as caught:
        raw.new().infer(model, inputs, model_version=version, parameters=parameters)
    message = caught.value.message()
    assert not re.search(r"(?<![\w.])/\w", message), f"a path leaks: {message}"
    assert "shm" not in message and "Traceback" not in message and ".py" not in message
    return decode_error(message) or message


BLANK = np.zeros((1, 12, 64, 64), np.uint8)


@pytest.mark.parametrize("model", ["embed", "identify"])
@pytest.mark.parametrize(
    ("silhouettes", "error"),
    [
        (GOOD[None, :1], TooFewFramesError),
        (BLANK, NoFramesError),
        (np.repeat(GOOD[None, :1], 12, axis=1), StaticSequenceError),
        (np.concatenate([GOOD[None], BLANK]), NoFramesError),
        (np.resize(GOOD, (1, 20_000, 64, 64))[:, :2001], TooManyFramesError),
        (np.full((1, 12, 64, 64), 255, np.uint8), SilhouetteError),
    ],
    ids=["one-frame", "blank", "static", "one-of-two-blank", "too-long", "all-white"],
)
def test_unusable_silhouettes(raw: Any, model: str, silhouettes: np.ndarray, error: type[Exception]) -> None:
    assert isinstance(ask(raw, model, silhouettes=np.ascontiguousarray(silhouettes)), error)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"silhouettes": np.zeros((1, 12, 32, 32), np.uint8)}, "unexpected shape"),
        ({"silhouettes": np.zeros((2, 64, 64), np.uint8)}, "unexpected shape"),
        ({"silhouettes": np.zeros((1, 12, 64, 64), np.float32)}, "data-type"),
        ({"silhouettes": np.zeros((17, 4, 64, 64), np.uint8)}, "batch-size"),
        ({"pictures": GOOD[None]}, "pictures"),
        ({"silhouettes": np.zeros((1, 0, 64, 64), np.uint8)}, ""),
        ({"silhouettes": np.zeros((0, 12, 64, 64), np.uint8)}, ""),
        ({}, ""),
    ],
    ids=["size", "rank", "dtype", "batch", "name", "no-frames", "no-sequences", "nothing"],
)
def test_wrong_tensors(raw: Any, arrays: dict[str, np.ndarray], says: str) -> None:
    assert says in str(ask(raw, "identify", **arrays))


@pytest.mark.parametrize(
    "parameters",
    [
        {"top_k": 0},
        {"top_k": -1},
        {"top_k": True},
        {"top_k": "ten"},
        {"top_k": 2.5},
        {"k": 0},
        {"k": -(2**62)},
        {"k": 101},
        {"k": 1001},
        {"k": 10**9},
        {"top_k": 10**9},
        {"top_k": 2**62},
        {"threshold": -1.0},
        {"threshold": float("nan")},
        {"threshold": "low"},
        {"threshold": float("inf")},
        {"threshold": -float("inf")},
        {"threshold": "1e999"},
        {"threshold": True},
        {"threshold": "9" * 2**20},
        {"min_sequence": -1},
        {"min_sequence": True},
        {"min_sequence": "1"},
        {"min_sequence": 0.5},
        {"min_sequence": float("nan")},
    ],
    ids=lambda each: str(each)[:40],
)
def test_wrong_parameters(raw: Any, parameters: dict[str, Any]) -> None:
    (name, value), *_ = parameters.items()
    error = ask(raw, "identify", parameters, silhouettes=GOOD[None])
    if raw.protocol == "http" and isinstance(value, float) and not np.isfinite(value):
        assert isinstance(error, OptionError) or "JSON" in error, "JSON has no such numbers"
        return
    assert isinstance(error, OptionError)
    assert name in str(error) and len(str(error)) < 2000


def test_a_commit_that_never_was(raw: Any) -> None:
    for far in (2**40, 2**62, 2**63 - 1):
        assert isinstance(ask(raw, "identify", {"min_sequence": far}, silhouettes=GOOD[None]), GalleryBehindError)


@pytest.mark.parametrize(("model", "version"), [("identify", "7"), ("identify", "0"), ("embed", "-1"), ("embed", "x")])
def test_unknown_versions(raw: Any, model: str, version: str) -> None:
    assert ask(raw, model, version=version, silhouettes=GOOD[None])


@pytest.mark.parametrize(
    "model", ["nobody", "../embed", "embed/../shortlist", "\u5fd7\u660e", "a" * 5000, "%00", "embed\n"]
)
def test_unknown_models(raw: Any, model: str) -> None:
    assert ask(raw, model, silhouettes=GOOD[None])


def test_lists_of_any_length_are_refused(raw: Any, remote: Recognizer) -> None:
    """Also where nobody asks the ensemble."""
    about = remote.description
    features = np.zeros((1, about.strips, about.dims), np.float32)
    for name in ("top_k", "k"):
        for model, arrays in (("shortlist", {"features": features}), ("identify", {"silhouettes": GOOD[None]})):
            error = ask(raw, model, {name: 10**9}, **arrays)
            assert isinstance(error, OptionError) and name in str(error)


def test_features_that_are_not_finite(raw: Any, remote: Recognizer) -> None:
    about = remote.description
    for value in (np.nan, np.inf):
        features = np.full((1, about.strips, about.dims), value, np.float32)
        assert isinstance(ask(raw, "shortlist", features=features), InputError)
        error = ask(raw, "rerank", features=features, candidate_features=features[:, None])
        assert isinstance(error, InputError)


def test_wrong_gallery_requests(raw: Any) -> None:
    def text(*values: bytes) -> np.ndarray:
        return np.array(values, object)

    lengths = np.array([12], np.int64)
    cases: list[tuple[dict[str, np.ndarray], type]] = [
        ({"action": text(b"drop")}, OptionError),
        ({"action": text(b"drop" * 2**18)}, OptionError),
        ({"action": text(b"list", b"list")}, str),  # Triton's own words
        ({"action": text()}, str),
        ({"action": text(b"enroll")}, InputError),
        ({"action": text(b"delete")}, InputError),
        ({"action": text(b"delete"), "identity": text(b"\xff\xfe")}, InputError),
        ({"action": text(b"enroll"), "identity": text(b""), "silhouettes": GOOD, "lengths": lengths}, InputError),
        ({"action": text(b"enroll"), "identity": text(b"a"), "silhouettes": GOOD, "lengths": lengths + 1}, InputError),
        ({"action": text(b"enroll"), "identity": text(b"a"), "silhouettes": GOOD, "lengths": -lengths}, InputError),
        (
            {"action": text(b"enroll"), "identity": text(b"a"), "silhouettes": BLANK[0], "lengths": lengths},
            NoFramesError,
        ),
        ({"action": text(b"thumbnails"), "entry_id": np.array([10**12], np.int64)}, UnknownIdentityError),
        ({"action": text(b"thumbnails"), "entry_id": np.array([-(2**63)], np.int64)}, UnknownIdentityError),
    ]
    for arrays, error in cases:
        assert isinstance(ask(raw, "gallery", **arrays), error), arrays["action"]


def test_one_bad_request_does_not_spoil_the_batch_it_shares(remote: Recognizer, raw: Any) -> None:
    """Requests that wait together at `embed` are stacked; each gets its own answer."""
    expected = remote.embed(GOOD)
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        good = [pool.submit(remote.embed, GOOD) for _ in range(12)]
        bad = [pool.submit(ask, raw, "embed", silhouettes=BLANK) for _ in range(12)]
        assert all(isinstance(each.result(), NoFramesError) for each in bad)
        for each in good:
            np.testing.assert_allclose(each.result(), expected, atol=1e-5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 10_000,
        json.dumps({"inputs": []}).encode(),
        json.dumps(
            {"inputs": [{"name": "silhouettes", "shape": [1, -4, 64, 64], "datatype": "UINT8", "data": []}]}
        ).encode(),
        json.dumps(
            {"inputs": [{"name": "silhouettes", "shape": [1, 2, 64, 64], "datatype": "UINT8", "data": [1]}]}
        ).encode(),
        json.dumps({"inputs": [{"name": "silhouettes", "shape": [2**62, 2, 64, 64], "datatype": "UINT8"}]}).encode(),
        json.dumps({"parameters": {"top_k": 2**70}, "inputs": []}).encode(),
        json.dumps({"parameters": {"top_k": [1, {"a": None}]}, "inputs": []}).encode(),
        b'{"inputs": [{"name": "\xff\xfe"}]}',
    ],
    ids=["empty", "cut", "deep", "no-inputs", "negative", "too-short", "overflow", "huge-number", "nested", "no-utf8"],
)
def test_malformed_http(server: TritonServer, body: bytes) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=10)
    connection.request("POST", "/v2/models/identify/infer", body)
    assert 400 <= connection.getresponse().status < 600
    connection.close()


@pytest.mark.parametrize("path", ["systemsharedmemory/region/x/register", "repository/models/embed/unload", "logging"])
def test_administration_is_closed(server: TritonServer, path: str) -> None:
    connection = http.client.HTTPConnection(server.host, server.http_port, timeout=10)
    connection.request("POST", f"/v2/{path}", b"{}")
    assert connection.getresponse().status == 403
    connection.close()


def test_administration_is_closed_over_grpc(server: TritonServer) -> None:
    triton = grpc_client.InferenceServerClient(f"{server.host}:{server.grpc_port}")
    for call in (triton.get_system_shared_memory_status, triton.get_model_repository_index, triton.get_log_settings):
        with pytest.raises(utils.InferenceServerException, match="restricted"):
            call()
