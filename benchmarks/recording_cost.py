"""What metrics, log and audit cost a request: the model `shortlist` alone on a real server, timed inside its process.

    chrt -r 5 python benchmarks/recording_cost.py

`shortlist` records most: every identification. The answer waits for the audit; the log and the metrics follow it. The
times are the model's own, without anything that the server does around it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from serving_world import machine, save

from gaitsdk.bundle import Bundle
from gaitsdk.runtimes.addresses import Security
from gaitsdk.runtimes.tensors import Request
from gaitsdk.runtimes.transport import open_transport
from gaitsdk.runtimes.wire import SHORTLIST
from gaitsdk_export.serving_cli import prepare_gallery
from gaitsdk_export.triton.backend import Settings
from gaitsdk_export.triton.later import DELAY_S
from gaitsdk_export.triton.repository import render
from gaitsdk_export.triton.server import TritonServer

REQUESTS, WARM_UP, LISTED, ENTRIES = 600, 100, 10, 200
#: Goes to the end of the model: every part of `record` and `tell` tells how long it took.
TIMED = """

def timed(part, call):
    def inner(*arguments, **named):
        started = time.perf_counter()
        try:
            return call(*arguments, **named)
        finally:
            spent = of_thread.__dict__
            spent[part] = spent.get(part, 0.0) + time.perf_counter() - started
    return inner


def opened(self):
    plain(self)
    for owner, part, names in (
        (self.metrics, "metrics", ("add", "observe")), (self.events, "log", ["write"]), (self.audit, "audit", ["write"])
    ):
        for name in names:
            setattr(owner, name, timed(part, getattr(owner, name)))


def written(part, call):
    def inner(self, *arguments):
        of_thread.__dict__.clear()
        timed(part, call)(self, *arguments)
        with open({out!r}, "a") as file:
            file.write(json.dumps(of_thread.__dict__) + "\\n")
    return inner


import json, threading, time
of_thread, plain = threading.local(), TritonPythonModel.open
TritonPythonModel.open = opened
TritonPythonModel.record = written("before the answer", TritonPythonModel.record)
TritonPythonModel.tell = written("after the answer", TritonPythonModel.tell)
"""


class Server(TritonServer):
    """With one model only, which cannot identify."""

    def _canary(self) -> None:
        pass


def measure(folder: Path) -> dict[str, float]:
    """Part of `shortlist`'s recording -> median microseconds of a request."""
    out = folder / "times"
    repository = render(None, folder / "models")
    for model in repository.iterdir():
        if model.name != SHORTLIST:
            shutil.rmtree(model)
    program = repository / SHORTLIST / "1" / "model.py"
    program.write_text(program.read_text() + TIMED.format(out=str(out)))
    bundle, numbers = Bundle.load(), np.random.default_rng(0)
    settings = Settings(gallery=str(folder / "people.db"), audit=str(folder / "audit"))
    prepare_gallery(settings)
    with closing(settings.open_gallery(bundle)) as gallery:
        maps = numbers.standard_normal((ENTRIES, bundle.strips, bundle.dims)).astype(np.float32)
        gallery.add_many([f"person-{i}" for i in range(ENTRIES)], maps)
    with Server(repository, settings) as server:
        transport = open_transport(server.grpc_url, Security())

        def ask() -> bool:
            """Whether the re-ranker moved another entry to the first place, as it does at the worst."""
            parameters = {"threshold": "1.0", "k": LISTED}
            request = Request(SHORTLIST, {"features": probe}, ("shortlist_rank", "decision"), parameters)
            return bool(transport.infer(request, 30)["shortlist_rank"][0, 0] != 1)

        for _ in range(100):
            probe = numbers.standard_normal((1, bundle.strips, bundle.dims)).astype(np.float32)
            if ask():
                break
        else:
            raise SystemExit("the first place does not change")
        time.sleep(3 * DELAY_S)
        out.unlink()
        for _ in range(REQUESTS):
            ask()
        time.sleep(3 * DELAY_S)
        transport.close()
    times = [json.loads(line) for line in out.read_text().splitlines()]
    parts = {part: [each[part] for each in times if part in each][WARM_UP:] for each in times[-50:] for part in each}
    return {part: round(statistics.median(taken) * 1e6, 1) for part, taken in parts.items()}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        save("recording_cost", {**machine(), "requests": REQUESTS - WARM_UP, "microseconds": measure(Path(folder))})


if __name__ == "__main__":
    main()
