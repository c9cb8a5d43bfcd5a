"""A small server of each protocol behind a TCP proxy, which can cut, break and slow down connections; and clients.

Needs gRPC and tritonclient; tests load it by its path, because pytest's import mode makes no package of this folder.
"""

from __future__ import annotations

import asyncio
import http.server
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import numpy as np
from tritonclient import utils
from tritonclient.grpc import service_pb2 as service

from gaitsdk import Recognizer
from gaitsdk.async_recognizer import AsyncRecognizer
from gaitsdk.errors import EmptyGalleryError, StaticSequenceError
from gaitsdk.runtimes.wire import encode_error

MAX_BATCH = 4
ABOUT = {"fingerprint": "f", "size": 64, "strips": 2, "dims": 1, "reranker": "none", "k": 0, "runtime": "onnx"}
ABOUT |= {"device": "cpu", "length_handling": "cyclic", "max_batch": MAX_BATCH, "verify_threshold": None}

IDENTIFIED: dict[str, np.ndarray] = {
    "entry_id": np.array([[7]], np.int64),
    "identity": np.array([[b"alice"]], object),
    "distance": np.array([[0.5]], np.float32),
    "shortlist_distance": np.array([[0.5]], np.float32),
    "shortlist_rank": np.array([[1]], np.int32),
    "decision": np.array([[b"uncalibrated"]], object),
    "fingerprint": np.array([[b"f"]], object),
    "numbers": np.array([[np.nan, 0, 1, 1]]),
}


class Refused(Exception):
    """An HTTP status and a gRPC code for one refusal."""

    def __init__(self, number: int, code: str, message: str) -> None:
        super().__init__(message)
        self.number, self.code = number, getattr(grpc.StatusCode, code)


REFUSALS = {
    "busy": (429, "RESOURCE_EXHAUSTED", "too many requests"),
    "queue": (503, "UNAVAILABLE", "[request id: 3] Exceeds maximum queue size"),
    "unavailable": (503, "UNAVAILABLE", "upstream is away"),
    "denied": (401, "UNAUTHENTICATED", "who are you"),
    "expired": (503, "UNAVAILABLE", "Request timeout expired"),
    "empty": (400, "INTERNAL", encode_error(EmptyGalleryError("nobody is enrolled"))),
    "static": (400, "INVALID_ARGUMENT", encode_error(StaticSequenceError("all frames are the same, says the server"))),
}


class Proxy(threading.Thread):
    """Forwards TCP connections, and spoils them when told to."""

    def __init__(self, target: int) -> None:
        super().__init__(daemon=True)
        self.target, self.pairs = target, set[tuple[socket.socket, socket.socket]]()
        self.let_through: int | None = None  # bytes of the next answer before it breaks
        self.slowly = False
        self.opened = 0
        self.listener: socket.socket | None = None
        self.port = 0
        self.listen()
        self.start()

    def listen(self) -> None:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(64)
        self.port = listener.getsockname()[1]
        self.listener = listener

    def run(self) -> None:
        while True:
            listener = self.listener
            if listener is None:
                time.sleep(0.01)
                continue
            try:
                near, _ = listener.accept()
            except OSError:
                continue
            far = socket.create_connection(("127.0.0.1", self.target))
            self.opened += 1
            self.pairs.add((near, far))
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self.forward, args=(one, other, one is far), daemon=True).start()

    def forward(self, one: socket.socket, other: socket.socket, answer: bool) -> None:
        with suppress(OSError):
            while data := one.recv(1 << 16):
                if answer and self.let_through is not None:
                    data, self.let_through = data[: self.let_through], None
                    other.sendall(data)
                    break
                while answer and self.slowly and data:
                    other.sendall(data[:1])
                    data = data[1:]
                    time.sleep(0.05)
                other.sendall(data)
        for each in (one, other):
            if (one, other) in self.pairs or (other, one) in self.pairs:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """Every open connection ends with RST."""
        # One by one: a client that comes back while this loop runs must not be forgotten.
        for near, far in [self.pairs.pop() for _ in range(len(self.pairs))]:
            with suppress(OSError):
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                near.shutdown(socket.SHUT_RD)  # a thread that waits in recv keeps a closed socket open: wake it
                near.close()
            with suppress(OSError):
                far.shutdown(socket.SHUT_RDWR)

    def away(self) -> None:
        """Nobody listens any more, and all connections are gone."""
        listener, self.listener = self.listener, None
        assert listener is not None
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        self.reset()


class FakeTriton:
    """Answers like `gallery`, `embed` and `identify`, unless the script tells it to fail."""

    def __init__(self, protocol: str) -> None:
        self.script: list[str] = []
        self.seen: list[str] = []
        self.enrolled: list[str] = []
        self.batches: list[int] = []
        self.deadlines: list[float] = []
        self.headers: list[dict[str, str]] = []
        self.wanted: list[bool] = []  # whether a gRPC call was still there when its answer was
        self.stopping = threading.Event()
        self.stop, port = (_serve_grpc if protocol == "grpc" else _serve_http)(self)
        self.proxy = Proxy(port)
        self.url = f"{protocol}://127.0.0.1:{self.proxy.port}"

    def answer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        action = inputs["action"].ravel()[0].decode() if "action" in inputs else model
        if action == "describe":
            return {"description": np.array([json.dumps(ABOUT).encode()], object)}
        self.seen.append(action)
        fault = self.script.pop(0) if self.script else "ok"
        outputs = self.carry_out(action, inputs)
        if fault in REFUSALS:
            raise Refused(*REFUSALS[fault])
        if fault == "reset":
            self.proxy.reset()
        if fault == "half":
            self.proxy.let_through = 30
        if fault == "slow":
            self.proxy.slowly = True
        if fault == "stall":
            self.stopping.wait(20)
        if fault == "late":
            time.sleep(0.25)
            raise Refused(*REFUSALS["unavailable"])
        return {} if fault == "nothing" else outputs

    def carry_out(self, action: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if action == "embed":
            self.batches.append(len(inputs["silhouettes"]))
            first = inputs["silhouettes"].reshape(len(inputs["silhouettes"]), -1).sum(1).astype(np.float32)
            return {"features": np.stack([first, -first], 1)[..., None]}
        if action == "identify":
            return IDENTIFIED
        if action == "enroll":
            self.enrolled.append(inputs["identity"][0].decode())
            return {"entry_id": np.array([7], np.int64), "sequence": np.array([1], np.int64)}
        if action == "delete":  # an answer that tells which request it belongs to
            return {"count": np.array([int(inputs["identity"][0])], np.int64), "sequence": np.array([2], np.int64)}
        return {"identity": np.array([b"alice", b"bob"], object)}

    def close(self) -> None:
        self.stopping.set()
        self.proxy.away()
        self.stop()


def encode(array: np.ndarray) -> tuple[str, bytes]:
    kind = utils.np_to_triton_dtype(array.dtype)
    return kind, utils.serialize_byte_tensor(array).item() if kind == "BYTES" else array.tobytes()


def decode(kind: str, raw: bytes) -> np.ndarray:
    return (
        utils.deserialize_bytes_tensor(raw) if kind == "BYTES" else np.frombuffer(raw, utils.triton_to_np_dtype(kind))
    )


def _serve_grpc(fake: FakeTriton) -> tuple[Callable[[], Any], int]:
    def infer(request: Any, context: Any) -> Any:
        fake.headers.append(dict(context.invocation_metadata()))
        fake.deadlines.append(min(context.time_remaining(), request.parameters["timeout"].int64_param / 1e6))
        inputs = {}
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
            inputs[tensor.name] = decode(tensor.datatype, raw).reshape(tuple(tensor.shape))
        try:
            outputs = fake.answer(request.model_name, inputs)
        except Refused as refused:
            context.abort(refused.code, str(refused))
        finally:
            fake.wanted.append(context.is_active())
        response = service.ModelInferResponse(model_name=request.model_name)
        for name, array in outputs.items():
            kind, raw = encode(array)
            response.outputs.add(name=name, datatype=kind, shape=array.shape)
            response.raw_output_contents.append(raw)
        return response

    handler = grpc.unary_unary_rpc_method_handler(
        infer, service.ModelInferRequest.FromString, service.ModelInferResponse.SerializeToString
    )
    server = grpc.server(ThreadPoolExecutor(24))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return lambda: server.stop(None), port


def _serve_http(fake: FakeTriton) -> tuple[Callable[[], Any], int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            fake.headers.append({name.lower(): value for name, value in self.headers.items()})
            size = int(self.headers["inference-header-content-length"])
            head, rest, inputs = json.loads(body[:size]), body[size:], {}
            fake.deadlines.append(head["parameters"]["timeout"] / 1e6)
            for tensor in head["inputs"]:
                length = tensor["parameters"]["binary_data_size"]
                inputs[tensor["name"]] = decode(tensor["datatype"], rest[:length]).reshape(tensor["shape"])
                rest = rest[length:]
            try:
                outputs = fake.answer(self.path.split("/")[3], inputs)
                tensors = [(name, *encode(array), list(array.shape)) for name, array in outputs.items()]
                told = [
                    {"name": name, "datatype": kind, "shape": shape, "parameters": {"binary_data_size": len(raw)}}
                    for name, kind, raw, shape in tensors
                ]
                self.reply(200, {"outputs": told}, b"".join(raw for _, _, raw, _ in tensors))
            except Refused as refused:
                self.reply(refused.number, {"error": str(refused)})

        def reply(self, status: int, told: dict[str, Any], rest: bytes = b"") -> None:
            head = json.dumps(told).encode()
            with suppress(OSError):
                self.send_response(status)
                self.send_header("content-length", str(len(head + rest)))
                self.send_header("inference-header-content-length", str(len(head)))
                self.end_headers()
                self.wfile.write(head + rest)

        def log_message(self, *arguments: Any) -> None:
            """Quiet."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.shutdown, server.server_port


class Client:
    """A Recognizer or an AsyncRecognizer, called the same way."""

    def __init__(self, kind: str, url: str, **options: Any) -> None:
        self.loop = asyncio.new_event_loop() if kind.endswith("async") else None
        if self.loop is None:
            self.recognizer: Any = Recognizer.connect(url, **options)
        else:
            self.recognizer = self.loop.run_until_complete(self._connect(url, options))

    @staticmethod
    async def _connect(url: str, options: dict[str, Any]) -> AsyncRecognizer:
        return await AsyncRecognizer.connect(url, **options)

    def __call__(self, verb: str, *arguments: Any) -> Any:
        answer = getattr(self.recognizer, verb)(*arguments)
        return answer if self.loop is None else self.loop.run_until_complete(answer)

    def close(self) -> None:
        self("close")
        if self.loop is not None:
            self.loop.close()
