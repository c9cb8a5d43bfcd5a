"""What metrics, log and audit cost a request: the model `rerank` alone on a real server, timed inside its process.

    chrt -r 5 python benchmarks/recording_cost.py

`rerank` records most: every identification. The times are its own, without anything that the server does around it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from serving_world import machine, save

from gaitsdk.bundle import Bundle
from gaitsdk.runtimes.addresses import Security
from gaitsdk.runtimes.tensors import Request
from gaitsdk.runtimes.transport import open_transport
from gaitsdk.runtimes.wire import RERANK
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.repository import render
from gaitsdk_export.triton.server import TritonServer

REQUESTS, WARM_UP, LISTED = 600, 100, 10
#: Goes to the end of the model: every part of `record` tells how long it took.
TIMED = """

def timed(part, call):
    def inner(*arguments, **named):
        started = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - started
    return inner


def opened(self):
    plain(self)
    for owner, part, names in (
        (self.metrics, "metrics", ("add", "observe")), (self.events, "log", ["write"]), (self.audit, "audit", ["write"])
    ):
        for name in names:
            setattr(owner, name, timed(part, getattr(owner, name)))


def recorded(self, request, outputs):
    spent.clear()
    timed("all", recording)(self, request, outputs)
    with open({out!r}, "a") as file:
        file.write(json.dumps(spent) + "\\n")


import json, time
spent, plain, recording = {{}}, TritonPythonModel.open, TritonPythonModel.record
TritonPythonModel.open, TritonPythonModel.record = opened, recorded
"""


class Server(TritonServer):
    """With one model only, which cannot identify."""

    def _canary(self) -> None:
        pass


def measure(folder: Path) -> dict[str, float]:
    """Part of `rerank`'s recording -> median microseconds of a request."""
    out = folder / "times"
    repository = render(None, folder / "models")
    for model in repository.iterdir():
        if model.name != RERANK:
            shutil.rmtree(model)
    program = repository / RERANK / "1" / "model.py"
    program.write_text(program.read_text() + TIMED.format(out=str(out)))
    bundle, numbers = Bundle.load(), np.random.default_rng(0)
    features = numbers.standard_normal((1, 1 + LISTED, bundle.strips, bundle.dims)).astype(np.float32)
    features[:, -1] = features[:, 0]  # the last candidate becomes the first, as it would at the worst
    inputs = {
        "candidate_ids": np.arange(1, LISTED + 1)[None],
        "candidate_identity": np.array([[f"person-{i}".encode() for i in range(LISTED)]], object),
        "shortlist_distance": np.linspace(0.1, 1, LISTED, dtype=np.float32)[None],
        "features": features[:, 0],
        "candidate_features": features[:, 1:],
        "gallery_state": np.array([[LISTED, LISTED]]),
    }
    request = Request(RERANK, inputs, ("shortlist_rank",), {"threshold": "1.0", "k": LISTED})
    settings = replace(Settings(gallery=str(folder / "people.db")), audit=str(folder / "audit"))
    with Server(repository, settings) as server:
        transport = open_transport(server.grpc_url, Security())
        for _ in range(REQUESTS):
            answer = transport.infer(request, 30)
        transport.close()
    if answer["shortlist_rank"][0, 0] == 1:
        raise SystemExit("the first place does not change")
    times = [json.loads(line) for line in out.read_text().splitlines()][WARM_UP:]
    return {part: round(statistics.median(each[part] for each in times) * 1e6, 1) for part in times[0]}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save("recording_cost", {**machine(), "requests": REQUESTS - WARM_UP, "microseconds": measure(Path(folder))})


if __name__ == "__main__":
    main()
